"""What P4 rests on: a peer is judged by our figure and asked once, ours stops where it must, falling short is told."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from mainstem.evaluate.next_item import LeaveOneOut
from mainstem.next_item.actions import of_records
from mainstem.next_item.preset import configured
from mainstem.next_item.runs import Epoch, Run
from mainstem.schema.config import Config
from mainstem.schema.records import Entity, Event

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# What a peer's script is to do, by one that knows what is asked for (or with --wrong, what is not) in its last epoch
# alone; it notes how often it ran.
SCRIPT = """
import argparse, pathlib, numpy as np
parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--wrong", type=int, default=0)
parser.add_argument("--runs", type=pathlib.Path)
args = parser.parse_args()
actions = np.load(args.folder / "actions.npz")
wanted = actions["item"][actions["validation"]]
assert not actions["learned"][actions["validation"]].any() and not actions["learned"][actions["test"]].any()
scores = np.zeros((len(wanted), int(actions["items"])), np.float32)
scores[np.arange(len(wanted)), (wanted + args.wrong) % scores.shape[1]] = 1
np.save(args.folder / "last.npy", scores)
np.save(args.folder / "scores.npy", -scores)
np.savez(args.folder / "facts.npz", seconds=60.0, epochs=0.25, peak_gib=1.5, version="1.0")
args.runs.write_text(args.runs.read_text() + "x")
"""


@pytest.fixture(scope="module")
def p4() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        return importlib.import_module("p4_sequence_training")


@pytest.fixture
def data() -> LeaveOneOut:
    rng = np.random.default_rng(0)
    return LeaveOneOut(np.concatenate([rng.permutation(50)[:5] for _ in range(20)]), np.arange(0, 101, 5), 50)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").write_text("")
    return tmp_path / "runs"


@pytest.fixture
def peer(p4: ModuleType, tmp_path: Path) -> object:
    (tmp_path / "script.py").write_text(SCRIPT)
    return p4.Peer("a peer", "package", tmp_path / "script.py")


def a_run(*figures: float) -> Run:
    return Run([Epoch(number, 1.0, figure, 10.0 * number) for number, figure in enumerate(figures, 1)])


def looks_at(p4: ModuleType, *figures: float) -> list[object]:
    return [p4.Look(10.0 * number, figure) for number, figure in enumerate(figures, 1)]


def trained(p4: ModuleType, ndcg: float, seconds: float = 100.0) -> object:
    return p4.Trained(
        ndcg=ndcg, best_and_last=(ndcg, 0.0), seconds=seconds, epochs=1.5, peak_gib=2.0, version="1.0"
    )  # fmt: skip


def bench(p4: ModuleType) -> object:
    return p4.Bench("p4", metric="seconds", goal=p4.GOAL, lower_is_better=True, goal_is_ratio=True)


def test_a_peer_is_judged_by_our_figure_and_the_better_of_best_and_last_counts(
    p4: ModuleType, data: LeaveOneOut, peer: object, runs: Path
) -> None:
    found = p4.asked(peer, sys.executable, data, ["--runs", str(runs)], "filter", None)
    assert found.ndcg == 1
    assert found.best_and_last == (0, 1)
    assert (found.seconds, found.epochs, found.peak_gib, found.version) == (60, 0.25, 1.5, "1.0")
    assert p4.asked(peer, sys.executable, data, ["--runs", str(runs), "--wrong", "1"], "filter", None).ndcg < 0.5


def test_a_peer_is_not_asked_the_same_again(
    p4: ModuleType, data: LeaveOneOut, peer: object, runs: Path, tmp_path: Path
) -> None:
    def ask(*more: str, of: LeaveOneOut = data) -> tuple[float, bool]:
        told = ["--runs", str(runs), *more]
        found = p4.asked(peer, sys.executable, of, told, "filter", tmp_path / "kept")
        return found.ndcg, found.earlier

    assert ask() == (1, False)
    assert ask() == (1, True)
    assert runs.read_text() == "x"
    assert ask("--wrong", "1")[0] < 0.5
    assert runs.read_text() == "xx"
    ask(of=LeaveOneOut(data.item[::-1].copy(), data.offsets, 50))
    assert runs.read_text() == "xxx"
    assert ask() == (1, True)
    assert runs.read_text() == "xxx"


def test_every_peer_is_told_what_ours_is_trained_with_or_a_size_of_its_own(p4: ModuleType) -> None:
    history = SimpleNamespace(layers=3, heads=4, dropout=0.3)
    config = SimpleNamespace(model=SimpleNamespace(dim=128, history=history))
    smaller = [peer for peer in p4.PEERS if "64 wide, 2 blocks" in peer.name]
    assert len(smaller) == 1
    for peer in p4.PEERS:
        words = p4.words(peer, "amazon-beauty", config, 30.0)
        told = dict(zip(words[::2], words[1::2], strict=True))
        assert told["--minutes"] == "30.0"
        size = (told["--factors"], told["--blocks"], told["--heads"], told["--dropout"])
        assert size == (("64", "2", "2", "0.2") if peer in smaller else ("128", "3", "4", "0.3"))
        assert told["--length"] == "50"
        assert all(f'"{option}"' in peer.script.read_text() for option in told)
        words = p4.words(peer, "ml-1m", config, 30.0)
        assert dict(zip(words[::2], words[1::2], strict=True))["--length"] == "200"


def test_training_ends_at_the_first_look_or_epoch_that_reaches_the_goal(p4: ModuleType) -> None:
    found = iter([0.1, 0.2])
    watch = p4.Until(0.2, lambda: next(found), every=0.0)
    watch.begin("choose", a_run(), 10, 5, 100)
    watch.step(10)
    watch.epoch(a_run(0.19))
    with pytest.raises(p4.Reached):
        watch.step(10)
    assert [look.ndcg for look in watch.looks] == [0.1, 0.19, 0.2]
    watch = p4.Until(0.2, lambda: 1.0, every=3600.0)
    watch.begin("choose", a_run(), 10, 5, 100)
    watch.step(10)
    with pytest.raises(p4.Reached):
        watch.epoch(a_run(0.2))
    assert watch.looks == [(10, 0.2)], "too soon for a look within the epoch"


def test_looking_is_no_part_of_the_seconds(p4: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(p4, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def looks_for_a_minute() -> float:
        clock.now += 60
        return 0.1

    def goes_on(seconds: float) -> None:
        clock.now += seconds
        watch.step(10)

    watch = p4.Until(0.2, looks_for_a_minute, every=10.0)
    watch.begin("choose", a_run(), 10, 5, 100)
    goes_on(6)
    goes_on(6)
    goes_on(6)
    clock.now += 2
    watch.epoch(Run([Epoch(1, 1.0, 0.15, 80.0)]))  # 20 of training and a look, as the model's clock says
    goes_on(10)
    goes_on(10)
    assert watch.looks == [(12, 0.1), (20, 0.15), (30, 0.1), (40, 0.1)]


def test_what_is_looked_at_learns_as_if_nobody_had_looked(p4: ModuleType) -> None:
    world = of_records(
        "a world", Config(), [Entity(record_id=f"e{n}", time=n, entity=str(n)) for n in range(12)],
        [
            Event(event_id=f"{user}-{n}", time=1000 * n, user=f"u{user}", kind="purchase", entity=str((user + n) % 12))
            for n in range(1, 9) for user in range(60)
        ],
    )  # fmt: skip
    small = Config.model_validate(
        {"model": {"dim": 16, "history": {"layers": 1, "heads": 2}},
         "train": {"retrieval_batch": 64, "retrieval_epochs": 2, "threads": 1}}
    )  # fmt: skip
    config, epochs = configured(world.config, small), []
    for every in (0.0, 3600.0):
        looks, peak = p4.ours(world, config, 2.0, every, "filter")
        assert peak is None or peak > 0
        epochs.append(looks)
    assert len(epochs[1]) == 2, "canary: without looks there are the epochs alone"
    assert len(epochs[0]) > 4, "several looks an epoch"
    within = [look.ndcg for look in epochs[0]]
    assert [look.ndcg for look in epochs[1]] == [within[len(within) // 2 - 1], within[-1]]


def test_the_worst_of_the_ratios_is_the_figure(p4: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    peers = {"low": trained(p4, 0.1), "high": trained(p4, 0.2), "slow": trained(p4, 0.2, seconds=400)}
    p4.report(bench(p4), looks_at(p4, 0.1, 0.15, 0.15, 0.25), peers, keep=False, peak_gib=3.0)
    told = json.loads(capsys.readouterr().out)
    assert (told["ours"], told["peer"], told["peer_name"], told["ratio"]) == (40, 100, "high", 0.4)
    assert told["met"] is False
    assert {name: part["ours"] for name, part in told["parts"].items()} == {"low": 0.1, "high": 0.4, "slow": 0.1}
    assert {name: part["met"] for name, part in told["parts"].items()} == {"low": True, "high": False, "slow": True}
    assert told["parts"]["low"]["seconds"] == 10
    assert told["parts"]["low"]["peer"]["peak_gib"] == 2
    assert told["peak_gib"] == 3
    assert told["looks"][-1] == {"seconds": 40, "ndcg": 0.25}


def test_a_training_that_ends_below_a_peer_is_told_and_not_met(
    p4: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = {"low": trained(p4, 0.1, seconds=1000), "high": trained(p4, 0.3)}
    p4.report(bench(p4), looks_at(p4, 0.1, 0.2, 0.15), peers, keep=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["ours"], told["peer"], told["peer_name"], told["ratio"]) == (None, 100, "high", None)
    assert told["met"] is False
    assert told["reached"] == 0.2
    assert (told["parts"]["low"]["ours"], told["parts"]["low"]["met"]) == (0.01, True)
    assert (told["parts"]["high"]["ours"], told["parts"]["high"]["met"]) == (None, False)
    assert told["parts"]["high"]["peer"]["ndcg"] == 0.3


def test_a_goal_without_a_peer_is_not_judged(p4: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench(p4).report(ours=1.0, peer=None, peer_name="none", keep=False)
    assert json.loads(capsys.readouterr().out)["met"] is None
