"""`mainstem evaluate --protocol next-item`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cycle import CHANGES, cycle_csv

Run = Callable[..., tuple[int, str, str]]
ASK = ("evaluate", "--protocol", "next-item")


def test_a_table_of_recommenders(run: Run, tmp_path: Path) -> None:
    cycle_csv(tmp_path)
    Path("quick.yaml").write_text(yaml.safe_dump(CHANGES.model_dump(exclude_unset=True)))
    words = (*ASK, "--dataset", "cycle.csv", "--config", "quick.yaml", "--only", "mainstem", "--only", "popularity")
    status, out, err = run(*words, "--plot", "found.html", "--resume", "kept")
    assert status == 0, err
    assert "ndcg@10" in out
    assert "mainstem" in out
    assert "popularity" in out
    assert "long tail targets" in out
    assert "epoch 1, loss" in err
    assert "<svg" in Path("found.html").read_text()
    status, out, err = run(*words, "--resume", "kept", "--json", "--k", "1")
    told = json.loads(out)
    assert "mainstem, seed 0: answered before" in err
    assert "popularity, seed 0: answered before" in err
    assert "epoch 1, loss" not in err, "it was finished"
    assert list(told["systems"]) == ["mainstem", "popularity"]
    assert told["systems"]["mainstem"]["metrics"]["hr@1"]["mean"] > 0.9
    status, _, err = run(*words, "--resume", "kept", "--min-count", "2")
    assert (status, "holds a run on other data" in err) == (1, True)
    shutil.rmtree("kept")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--k", "0"), "--k: 0 must be from 1 to 1,000"),
        (("--seeds", "0"), "--seeds: 0 must be from 1 to 100"),
        (("--users", "nan"), "--users: nan must be above 0 and at most 1"),
        (("--minutes", "nan"), "--minutes: nan must be above 0"),
        (("--min-count", "0"), "--min-count: 0 must be at least 1"),
        (("--only", "popularty"), "--only: there is no 'popularty'; did you mean 'popularity'?"),
        (("--refit", "--split", "validation"), "--refit learns from validation"),
        (("--items", "i.csv"), "--items and --map go with a file as --dataset"),
        (("--dataset", "ml-1m", "--map", "user=u"), "--items and --map go with a file as --dataset"),
        (("--dataset", "ml-10m"), "no data set 'ml-10m'; did you mean 'ml-1m'?"),
        (("--dataset", "my.csv"), "my.csv: there is no such file"),
        (("--dataset", "my.csv", "--map", "user"), "--map wants FIELD=COLUMN"),
        (("--config", "none.yaml"), "there is no none.yaml"),
        (("--users", "0.5"), "--users goes with --dataset"),
        ((), "the log has no events yet"),
    ],
)
def test_what_is_wrong_is_said(run: Run, words: tuple[str, ...], says: str) -> None:
    status, out, err = run(*ASK, *words)
    assert (status, out) == (1, "")
    assert says in err


def test_files_that_do_not_fit(run: Run) -> None:
    Path("a.csv").write_text("who,item,time\na,b,1\n")
    status, _, err = run(*ASK, "--dataset", "a.csv")
    assert (status, "columns found: who, item, time" in err) == (1, True)
    Path("a.csv").write_text("user,item,time\na,b,1\na,c,2\n")
    status, _, err = run(*ASK, "--dataset", "a.csv")
    assert (status, "no user has 3 actions" in err) == (1, True)


def test_help_teaches(run: Run) -> None:
    status, out, _ = run("evaluate", "--help")
    assert status == 0
    for word in ("With --protocol next-item", "--dataset", "time or order", "--resume", "--protocol replay"):
        assert word in out
