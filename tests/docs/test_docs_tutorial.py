"""The tutorial does what it says, block by block."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_snippets import Page, SnippetFailed, free_port, loosely, snippets

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    made = Page(tmp_path, free_port())
    yield made
    made.close()


def test_the_tutorial_runs(page: Page) -> None:
    text = (DOCS / "tutorial.md").read_text()
    shown = {"console"}
    expected = sum(1 for snippet in snippets(text) if snippet.language not in shown)
    assert page.run(text) == expected >= 20


@pytest.mark.parametrize(
    "broken",
    [
        "```python\nassert 1 == 2\n```\n",
        "```python\nno_such_name\n```\n",
        "```bash\nfalse\n```\n",
        "```bash\nfalse\ntrue\n```\n",
        "```bash\nmainstem no-such-command\n```\n",
        "```bash\necho one\n```\n\n```text\ntwo\n```\n",
        "```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n",
    ],
)
def test_canary_a_broken_block_fails(page: Page, broken: str) -> None:
    with pytest.raises(SnippetFailed, match=r"^line \d+: "):
        page.run(broken)


def test_blocks_share_the_folder_and_the_namespace(page: Page) -> None:
    text = (
        '```text title="a.txt"\nhello 8080\n```\n'
        "```bash\ncat a.txt\n```\n```text\nhello 17\n```\n"
        '```python\nfound = open("a.txt").read().split()\n```\n'
        "```python\nprint(found[0])\n```\n```text\nhello\n```\n```console\nnot compared\n```\n"
    )
    text = text.replace('open("a.txt").read()', '__import__("pathlib").Path("a.txt").read_text()')
    assert page.run(text) == 6
    assert (page.folder / "a.txt").read_text() == f"hello {page.port}\n"


def test_figures_may_differ_and_words_may_not() -> None:
    assert loosely("published  v-01ab, 3 s\n\n") == loosely("published v-02ab, 12 s")
    assert loosely("2 events in") != loosely("2 events out")
