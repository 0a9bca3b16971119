"""`mainstem serve` and `mainstem train` as processes of their own, which end with the one that started them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from mainstem.loop import NO_MODEL
from mainstem.schema.errors import MainstemError

__all__ = ["OnlineProcess", "ServerProcess", "TrainingProcess", "check_port"]

PATIENCE = 600.0


class ServerProcess:
    """Starts the server for `config_file`; its output goes to `log_file`. The server watches its standard input:
    when the parent ends, however it ends, the pipe closes and the server shuts down."""

    def __init__(self, config_file: Path, log_file: Path, port: int) -> None:
        self.host, self.port = "127.0.0.1", port or _free_port()
        self.log_file = log_file
        command = [sys.executable, "-m", "mainstem", "serve", "--config", str(config_file), "--port", str(self.port)]
        with log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--log-level", "warning", "--while-stdin-open"],
                stdin=subprocess.PIPE, stdout=output, stderr=output,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def wait_ready(self, *lines: str) -> dict[str, Any]:
        """Block until it welcomes traffic and has a model of each of these lines in use; what it says of itself."""
        deadline = time.monotonic() + PATIENCE
        said: dict[str, Any] = {}
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise MainstemError(f"the server ended with status {self._process.returncode}: see {self.log_file}")
            ready, said = self._readiness()
            parts = said.get("parts", {})
            of_line = {"main": parts, **parts.get("lines", {})}
            wanting = [line for line in lines if of_line.get(line, {}).get("model", NO_MODEL) == NO_MODEL]
            for line in wanting:
                if refused := of_line.get(line, {}).get("refused models"):
                    raise MainstemError(f"the server takes no model of line {line!r} into use: {refused}")
            if ready and not wanting:
                return said
            time.sleep(0.2)
        raise MainstemError(f"the server was not ready in {PATIENCE:.0f} s ({said}): see {self.log_file}")

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                return True, json.load(response)
        except urllib.error.HTTPError as answer:
            with answer:
                return False, {"status": answer.code, "said": answer.read().decode(errors="replace")}
        except OSError as error:
            return False, {"error": str(error)}

    def wait(self) -> None:
        """Until it ends."""
        self._process.wait()

    def stop(self) -> None:
        """Ask it to finish what it has begun and end; insist after half a minute."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class OnlineProcess:
    """`mainstem train --online` for `config_file`; its output goes to `log_file`. It ends with its parent."""

    def __init__(self, config_file: Path, log_file: Path) -> None:
        self.log_file = log_file
        command = [sys.executable, "-m", "mainstem", "train", "--online", "--config", str(config_file)]
        with log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--while-stdin-open"], stdin=subprocess.PIPE, stdout=output, stderr=output
            )

    def check(self) -> None:
        """Raises MainstemError where it has ended."""
        if self._process.poll() is not None:
            raise MainstemError(f"the trainer ended with status {self._process.returncode}: see {self.log_file}")

    def __enter__(self) -> OnlineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class TrainingProcess:
    """`mainstem train` for `config_file`; shows its progress on this process's stderr."""

    def __init__(self, config_file: Path) -> None:
        command = [sys.executable, "-m", "mainstem", "train", "--config", str(config_file), "--json"]
        self._process = subprocess.Popen(
            [*command, "--while-stdin-open"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def result(self) -> dict[str, Any]:
        """Wait for it; what it printed. Raises MainstemError where it failed (it has said why)."""
        assert self._process.stdout
        assert self._process.stdin
        said = self._process.stdout.read()
        status = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        if status != 0:
            raise MainstemError(f"training ended with status {status}")
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found


def check_port(port: int, host: str = "127.0.0.1") -> None:
    """Raises MainstemError where something listens on `port` already: better told before the work than after it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise MainstemError(f"port {port} is not free ({error.strerror}); --port 0 picks one that is") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
