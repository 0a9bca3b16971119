"""Fenced blocks of a page, and what runs them in order.

bash              run by `bash -e` in the page's folder, which ends with them
python            run in one namespace for the whole page
LANG title="F"    saved as file F
text              compared with what the block before printed; figures may differ
console, others   shown only
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"/]+)"')


class SnippetFailed(AssertionError):
    """A block of a page did not do what the page says."""


@dataclass(frozen=True)
class Snippet:
    language: str
    title: str | None
    body: str
    line: int


def snippets(text: str) -> Iterator[Snippet]:
    """The fenced blocks of a page, in order."""
    for match in _FENCE.finditer(text):
        info = match["info"].strip()
        title = _TITLE.search(info)
        line = text.count("\n", 0, match.start()) + 1
        yield Snippet(info.split(" ")[0], title[1] if title else None, match["body"], line)


def loosely(text: str) -> list[str]:
    """Lines with figures blanked out, so that those may differ from run to run."""
    lines = [re.sub(r"\d+", "#", " ".join(line.split())) for line in text.splitlines()]
    return [line for line in lines if line]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Page:
    """Runs the blocks of one page in `folder`. `port` stands for 8080 wherever the page says it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.names: dict[str, Any] = {"__name__": "page"}
        self.printed = ""
        self._groups: list[int] = []

    def run(self, text: str) -> int:
        """All blocks, in order; how many were run or compared. Raises SnippetFailed naming the line."""
        done = 0
        for snippet in snippets(text):
            try:
                done += self._one(snippet)
            except SnippetFailed as error:
                raise SnippetFailed(f"line {snippet.line}: {error}") from error
            except Exception as error:
                raise SnippetFailed(f"line {snippet.line}: {type(error).__name__}: {error}") from error
        return done

    def _one(self, snippet: Snippet) -> bool:
        body = snippet.body.replace("8080", str(self.port))
        if snippet.title:
            (self.folder / snippet.title).write_text(body)
        elif snippet.language == "bash":
            self._bash(body)
        elif snippet.language == "python":
            shown = io.StringIO()
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(shown):
                exec(compile(body, f"<line {snippet.line}>", "exec"), self.names)
            self.printed = shown.getvalue()
        elif snippet.language == "text":
            if loosely(self.printed) != loosely(body):
                raise SnippetFailed(f"the page says\n{body}\nbut it printed\n{self.printed}")
        else:
            return False
        return True

    def _bash(self, body: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        process = subprocess.Popen(
            ["bash", "-e", "-c", body],
            cwd=self.folder, env={**os.environ, "PATH": path}, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._groups.append(process.pid)
        self.printed, said = process.communicate(timeout=300)
        if process.returncode:
            raise SnippetFailed(f"status {process.returncode}\n{body}\n{self.printed}\n{said}")

    def close(self) -> None:
        """End what the blocks left running and close what they left open."""
        for value in self.names.values():
            if callable(close := getattr(value, "close", None)) and not isinstance(value, type):
                close()
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
