"""The HTTP page shows what a real server answers: each request is sent, in order, and the answer's form compared."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from docs_snippets import Snippet, snippets

from mainstem.loop import Loop
from mainstem.schema.config_file import parse
from mainstem.serve import Background

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
# Maps of names that depend on what was at hand.
OPEN = ("scores", "timings_ms", "candidates", "arms")


def form(value: Any, key: str = "") -> Any:
    """What two answers of one kind share: keys, nesting, types; of a list, its first entry."""
    if isinstance(value, dict):
        return "names" if key in OPEN else {name: form(inner, name) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    if isinstance(value, bool) or value is None:
        return value
    return "number" if isinstance(value, int | float) else "text"


def exchanges(text: str) -> list[tuple[Snippet, Snippet | None]]:
    """Each request with the answer that follows it, if the page shows one."""
    blocks = list(snippets(text))
    pairs = zip(blocks, [*blocks[1:], None], strict=True)
    return [(a, b if b and b.language == "json" else None) for a, b in pairs if a.language == "http"]


def send(client: httpx.Client, request: Snippet) -> httpx.Response:
    head, _, body = request.body.partition("\n")
    method, _, path = head.partition(" ")
    return client.request(method, path, content=body.strip() or None)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    config = parse(next(block.body for block in snippets(PAGE) if block.language == "yaml"))
    with (
        Loop(config, tmp_path_factory.mktemp("http"), follow=True) as loop,
        Background(loop, port=0) as server,
        httpx.Client(base_url=server.url, timeout=20) as made,
    ):
        yield made


def test_answers_have_the_form_that_is_shown(client: httpx.Client) -> None:
    found = exchanges(PAGE)
    assert len(found) >= 10
    for request, shown in found:
        answer = send(client, request)
        expected = json.loads(shown.body) if shown else None
        wrong = expected is not None and "error" in expected
        assert answer.is_error == wrong, f"line {request.line}: {answer.status_code} {answer.text}"
        if expected is not None:
            assert form(answer.json()) == form(expected), f"line {request.line}: {answer.text}"


def test_every_address_is_documented(client: httpx.Client) -> None:
    missing = [path for path in client.get("/openapi.json").json()["paths"] if f"`{path}`" not in PAGE]
    assert not missing


def test_canary_another_form_is_told_apart() -> None:
    assert form({"a": 1, "b": "x"}) == form({"b": "y", "a": 2.5})
    assert form({"a": 1}) != form({"a": 1, "b": 2})
    assert form({"a": 1}) != form({"a": "1"})
    assert form({"a": [{"b": 1}]}) != form({"a": [{"c": 1}]})
    assert form({"a": None}) != form({"a": "x"})
