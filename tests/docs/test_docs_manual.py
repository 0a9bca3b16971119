"""The manual holds together: nothing generated is stale, links lead somewhere, commands and keys exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import cyclopts
import pytest
from docs_snippets import snippets
from pydantic import BaseModel

from mainstem.cli import app
from mainstem.datasets.files import FIELDS
from mainstem.rank.score import extra_inputs
from mainstem.schema.config import Config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def load_generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()


def prose(text: str) -> str:
    """Without fenced blocks and comments."""
    for snippet in snippets(text):
        text = text.replace(snippet.body, "\n")
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


# ---- generated parts -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", generate.pages(), ids=lambda path: path.name)
def test_generated_parts_are_fresh(page: Path) -> None:
    assert page.read_text() == generate.pages()[page], f"{page.name} is stale: run `make docs`"


def test_canary_a_stale_part_is_told() -> None:
    stale = "before\n<!-- folders -->\n| stale row |\n<!-- /folders -->\nafter\n"
    fresh = generate.filled(stale)
    assert "stale row" not in fresh
    assert fresh.startswith("before\n<!-- folders -->\n")
    assert fresh.endswith("<!-- /folders -->\nafter\n")
    assert generate.filled(fresh) == fresh


def test_results_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"processor": "P", "cores": 2, "memory_gib": 4.0}
    result = {"metric": "m/s", "ours": 1234.5, "peer": None, "ratio": None, "goal": 2000, "met": False}
    scores = {which: {"ndcg@10": 0.25, "recall@10": None} for which in ("all", "new")}
    demo = {"mainstem": scores, "baselines": {"popular lately": scores}}
    (tmp_path / "p0_x.json").write_text(json.dumps({**result, "machine": machine}))
    (tmp_path / "d1_demo.json").write_text(json.dumps({**result, "machine": machine, "demo": demo}))
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    monkeypatch.setattr(generate, "DEMO_TEXT", tmp_path / "demo-output.txt")
    (tmp_path / "demo-output.txt").write_text("what it printed\n")
    assert "| [p0_x](benchmarks/results/p0_x.json) | m/s | 1,230 | none | none | 2,000 | no |" in generate.figures()
    assert "| popular lately | 0.2500 | none | 0.2500 | none |" in generate.demo_output()
    assert "```text\nwhat it printed\n```" in generate.demo_output()


def test_every_part_is_used_and_every_marker_is_known() -> None:
    opened = [name for page in PAGES for name in re.findall(r"^<!-- ([a-z-]+) -->$", page.read_text(), re.MULTILINE)]
    assert set(opened) == set(generate.PARTS)


# ---- links ---------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """As common Markdown renderers make them from headings."""
    heads = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {"".join(c for c in head.lower().replace(" ", "-") if c.isalnum() or c in "-_") for head in heads}


def dead_links(text: str, folder: Path) -> Iterator[str]:
    for link in _LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (folder / path).resolve() if path else None
        if target and not target.exists():
            found = False
        else:
            found = not anchor or anchor in anchors(target.read_text() if target else text)
        if not found:
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(dead_links(page.read_text(), page.parent))


def test_every_page_is_in_the_contents() -> None:
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall((DOCS / "index.md").read_text())}
    assert set(DOCS.rglob("*.md")) - listed == {DOCS / "index.md"}


@pytest.mark.parametrize("text", ["[x](no-such.md)", "[x](index.md#no-such)", "[x](#no-such)", "[x](../no/such)"])
def test_canary_dead_links_are_found(text: str) -> None:
    assert list(dead_links(text, DOCS)) == [text[4:-1]]
    assert not list(dead_links("# A head\n[x](#a-head) [y](index.md#use)", DOCS))


# ---- commands ------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Every `mainstem ...` that a page tells people to run."""
    for snippet in snippets(text):
        if snippet.language == "bash":
            yield from (line for line in snippet.body.splitlines() if line.startswith("mainstem "))
    yield from (span for span in _SPAN.findall(prose(text)) if span.startswith("mainstem "))


def refused(command: str) -> str | None:
    """Why the command line does not take it; a missing argument is fine, since text names commands without."""
    tokens = shlex.split(re.split(r"\s[>|&]|\s2>", command)[0], comments=True)[1:]
    try:
        app.parse_args(tokens, exit_on_error=False, print_error=False)
    except cyclopts.MissingArgumentError:
        return None
    except cyclopts.CycloptsError as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_exist(page: Path) -> None:
    assert not {command: why for command in commands(page.read_text()) if (why := refused(command))}


def test_commands_are_found_in_blocks_and_in_text() -> None:
    text = "Run `mainstem train`.\n\n```bash\nmainstem serve > log &\nls\n```\n\n```console\nmainstem shown\n```\n"
    assert list(commands(text)) == ["mainstem serve > log &", "mainstem train"]
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 20


@pytest.mark.parametrize("command", ["mainstem fly", "mainstem train --fast", "mainstem datasets fetch ml-1m"])
def test_canary_unknown_commands_are_refused(command: str) -> None:
    assert refused(command)
    assert refused("mainstem ingest") is None
    assert refused("mainstem ingest FILE --map user=customer > out.txt 2>&1 &") is None


# ---- keys and columns ----------------------------------------------------------------------------


def unknown_keys(text: str) -> list[str]:
    """Code spans such as `train.negatives` that name a section and a key it does not have."""
    sections = {
        name: field.annotation.model_fields
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    found = re.findall(r"`([a-z]+)\.([a-z_]+)`", prose(text))
    known_files = {"py", "md", "json", "yaml", "sqlite"}
    return [
        f"{section}.{key}"
        for section, key in found
        if section in sections and key not in sections[section] and key not in known_files
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_configuration_keys_exist(page: Path) -> None:
    assert not unknown_keys(page.read_text())


def test_canary_unknown_keys_are_found() -> None:
    assert unknown_keys("`train.negativs` and `train.negatives`, `features.py`") == ["train.negativs"]


def test_every_field_of_a_file_is_documented() -> None:
    page = (DOCS / "ingest.md").read_text()
    assert not [field for field in FIELDS if f"`{field}`" not in page]


def patterns(text: str) -> dict[str, re.Pattern[str]]:
    """Documented columns: the first cell of each row of the tables on features."""
    names = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(names) == len(set(names))
    some = {"LIFE": r"\d+[a-z]+", "WINDOW": r"\d+[a-z]+", "BY": r"[a-z_]+?"}
    return {name: re.compile(re.sub("LIFE|WINDOW|BY", lambda m: some[m[0]], name)) for name in names}


def undocumented(columns: tuple[str, ...], text: str) -> list[str]:
    known = patterns(text).values()
    return [name for name in columns if sum(bool(pattern.fullmatch(name)) for pattern in known) != 1]


def test_every_feature_column_is_documented_once() -> None:
    text, columns = (DOCS / "features.md").read_text(), (*generate.columns(), *extra_inputs(("NAME",)))
    assert not undocumented(columns, text)
    idle = [name for name, pattern in patterns(text).items() if not any(map(pattern.fullmatch, columns))]
    assert not idle, "documented, but no such column"


def test_canary_an_undocumented_column_is_found() -> None:
    text = "| `popularity_WINDOW` | x |\n| `affinity_BY_share` | x |\n"
    assert undocumented(("popularity_7d", "affinity_a_b_share"), text) == []
    assert undocumented(("popularity_7d", "popularity_fresh_7d"), text) == ["popularity_fresh_7d"]


# ---- the next item ---------------------------------------------------------------------------------


def test_next_item_results_become_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    monkeypatch.setattr(generate, "PLOTS", tmp_path)
    assert "python benchmarks/next_item.py SET" in generate.next_item(), "without a result it says what makes one"
    one = {"mean": 0.25, "spread": 0.01, "seeds": [0.24, 0.26]}
    alone = {"mean": 0.125, "spread": None, "seeds": [0.125]}
    nobody = {"mean": None, "spread": None, "seeds": [None]}
    systems = {
        name: {
            "metrics": dict.fromkeys(("hr@10", "ndcg@10", "hr@5", "ndcg@5"), value),
            "beyond": dict.fromkeys(("coverage@10", "novelty@10", "seconds", "peak GiB"), value),
            "segments": {"cold targets": {"ndcg@10": nobody}},
        }
        for name, value in (("mainstem", one), ("ease", alone))
    }
    facts = {"users": 1200, "items": 30, "actions": 5000, "asked": 1000}
    found = {
        "protocol": "Leave one out.", "facts": facts, "systems": systems, "left out": {"ials": "pip install it"},
        "segments": {"all": 1000, "cold targets": 0},
    }  # fmt: skip
    result = {"found": found, "command": "python it", "seconds_of_all": 60.0, "machine": {"processor": "P", "cores": 2}}
    (tmp_path / "next_item_a-set_large.json").write_text(json.dumps(result))
    (tmp_path / "next_item_a-set_large.svg").write_text("<svg/>")
    text = generate.next_item()
    assert "### a-set, large\n" in text
    assert "1,200 users, 30 items, 5,000 actions; 1,000 users asked. Leave one out." in text
    assert "| mainstem | 0.2500 ± 0.0100 | 0.2500 ± 0.0100 |" in text
    assert "| ease | 0.1250 | 0.1250 |" in text
    assert "| all | 1,000 | 0.2500 ± 0.0100 | 0.1250 |" in text
    assert "| cold targets | 0 | none | none |" in text
    assert "ials: not run. pip install it" in text
    assert "](benchmarks/plots/next_item_a-set_large.svg)" in text
    assert "Made by `python it` on P, 2 cores;" in text


def test_speed_results_become_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    monkeypatch.setattr(generate, "PLOTS", tmp_path)
    assert "p4_sequence_training.py SET" in generate.training_speed(), "without a result it says what makes one"
    peer = {"ndcg": 0.25, "epochs": 2.5, "seconds": 1800.0, "peak_gib": 3.0, "version": "1.0"}
    result = {
        "parts": {
            "soon": {"ours": 0.05, "seconds": 90.0, "peer": peer},
            "late": {"ours": None, "seconds": None, "peer": peer},
        },
        "reached": 0.26, "looks": [{"seconds": 90.0, "ndcg": 0.26}], "peak_gib": 1.5, "command": "python it",
        "machine": {"processor": "P"},
    }  # fmt: skip
    (tmp_path / "p4_sequence_training_a-set.json").write_text(json.dumps(result))
    text = generate.training_speed()
    assert "| soon (1.0) | 0.2500 | 2.5 epochs, 1,800 s | 3.0 | 90 s | 0.050 |" in text
    assert "| late (1.0) | 0.2500 | 2.5 epochs, 1,800 s | 3.0 | not reached |  |" in text
    assert "Ours reached 0.2600, after 90 s of training, 1.5 GiB at its peak. Made by `python it` on P" in text
