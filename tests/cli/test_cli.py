"""The command line: what it refuses and how it says so, in files and folders of all names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
AT = "2020-01-01T00:00:00Z"
HEAD = "user,time,kind,entity\n"


@pytest.mark.parametrize("name", ["[/foo].csv", "[bold]x.csv", "[red", "a\\[b].csv", "long " * 40 + ".csv"])
def test_errors_print_names_as_they_are(run: Run, name: str) -> None:
    assert run("ingest", name) == (1, "", f"mainstem: {name}: there is no such file\n")
    assert run("config", "check", name)[2].startswith(f"mainstem: there is no {name}; ")


@pytest.mark.parametrize("folder", [".", "there"])
def test_a_folder_is_no_file(run: Run, folder: str) -> None:
    Path("there").mkdir()
    assert run("ingest", folder) == (1, "", f"mainstem: {folder} is a folder; name a file in it\n")
    assert sorted(path.name for path in Path().iterdir()) == ["there"], "nothing was opened for it"


def test_a_kind_for_all_rows_must_be_known_unless_allowed(run: Run) -> None:
    Path("e.csv").write_text(f"user,time,entity\nu,{AT},i\n")
    status, _, err = run("ingest", "e.csv", "--kind", "purchas")
    assert status == 1
    assert "--kind: kind 'purchas' is not among events; did you mean 'purchase'?" in err
    assert "--allow-unknown-kinds" in err
    assert not Path("mainstem-data").exists()
    status, out, _ = run("ingest", "e.csv", "--kind", "purchas", "--allow-unknown-kinds")
    assert (status, out.splitlines()[0]) == (0, "1 events in, 0 known before, 0 set aside")
    assert "1 of kind 'purchas'" in out
    for kind in ("purchase", "hide", "alias", "impression"):
        assert run("ingest", "e.csv", "--kind", kind)[0] == 0, "canary: known kinds are taken"


def test_unknown_kinds_in_rows_go_in_and_are_told(run: Run) -> None:
    kinds = ["purchase", "purchas", "purchas", "impression", *(f"strange{i}" for i in range(12))]
    Path("e.csv").write_text(HEAD + "".join(f"u,{AT},{kind},i\n" for kind in kinds))
    status, out, _ = run("ingest", "e.csv")
    assert (status, out.splitlines()[0]) == (0, "16 events in, 0 known before, 0 set aside")
    assert "2 of kind 'purchas' count for nothing: it is not among events; did you mean 'purchase'?" in out
    assert "'impression' count" not in out
    assert "3 more kinds" in out


def test_events_without_their_entity_are_set_aside_as_configured(run: Run) -> None:
    Path("mainstem.yaml").write_text("events: {buy: {}, search: {interest: 0}}\nheads: {buy: {event: buy}}\n")
    Path("e.csv").write_text(HEAD + f"u,{AT},buy,\nu,{AT},search,\n")
    status, out, _ = run("ingest", "e.csv")
    assert (status, out.splitlines()[0]) == (0, "1 events in, 0 known before, 1 set aside")
    kept = [json.loads(line) for line in Path("e.csv.rejects.jsonl").read_text().splitlines()]
    assert [row["reason"].split(":")[0] for row in kept] == ["entity"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ": it holds no rows"),
        (HEAD, ": it holds no rows"),
        (HEAD + "u,never,view,i\n", "; line 2: time: 'never' is not ISO 8601, as in 2017-12-04T09:30:00Z"),
    ],
)
def test_nothing_went_in(run: Run, text: str, why: str) -> None:
    Path("e.csv").write_text(text)
    status, _, err = run("ingest", "e.csv")
    assert (status, err.splitlines()[-1]) == (1, f"mainstem: nothing of e.csv went into the log{why}")


def test_what_is_known_already_is_no_failure(run: Run) -> None:
    Path("e.csv").write_text(HEAD + f"u,{AT},view,i\n")
    assert run("ingest", "e.csv")[0] == 0
    assert run("ingest", "e.csv")[:2] == (0, "0 events in, 1 known before, 0 set aside\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--days", "nan"), "--days: nan must be above 0 and at most 36,500"),
        (("--days", "-4"), "--days: -4 must be above 0 and at most 36,500"),
        (("--days", "0"), "--days: 0 must be above 0 and at most 36,500"),
        (("--days", "inf"), "--days: inf must be above 0 and at most 36,500"),
        (("--most", "0"), "--most: 0 must be at least 1"),
    ],
)
def test_evaluate_names_its_bounds(run: Run, words: tuple[str, ...], says: str) -> None:
    assert run("evaluate", *words) == (1, "", f"mainstem: {says}\n")


def test_config_check(run: Run) -> None:
    status, out, _ = run("config", "check")
    assert (status, out[:50]) == (0, "no mainstem.yaml here, the defaults apply: fine; c")
    assert run("config", "check", "mainstem.yaml")[0] == 1, "a file that is named must be there"
    Path("mainstem.yaml").write_text("heads: {a: {event: vew}}\ncanvases: {home: {order: {b: 1}}}\n")
    status, _, err = run("config", "check")
    assert status == 1
    assert [line.rpartition("yaml:")[2][:2] for line in err.splitlines()] == ["1:", "2:"]
    assert run("init", "--force")[0] == 0
    assert run("config", "check", "mainstem.yaml")[1].startswith("mainstem.yaml: fine; canvases: home, similar")


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="the system knows no nice")
def test_a_process_that_trains_gives_way(tmp_path: Path) -> None:
    config = tmp_path / "mainstem.yaml"
    config.write_text("train: {nice: 7}\n")
    before = os.getpriority(os.PRIO_PROCESS, 0)
    command = [sys.executable, "-m", "mainstem", "train", "--online", "--while-stdin-open", "--config", str(config)]
    said = tmp_path / "said"
    with said.open("w") as out, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out) as child:
        assert child.stdin is not None
        until = time.monotonic() + 60
        while (now := os.getpriority(os.PRIO_PROCESS, child.pid)) != max(before, 7) and time.monotonic() < until:
            assert child.poll() is None, said.read_text()
            time.sleep(0.05)
        child.stdin.close()
        child.wait(60)
    assert now == max(before, 7)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
