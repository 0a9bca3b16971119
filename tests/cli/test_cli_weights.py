"""`mainstem weights`: what it lists, how it goes back, what it says of things that are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainstem import weights
from mainstem.cli import main
from mainstem.schema.config import Config, ModelConfig, RankingConfig
from mainstem.schema.position import Position
from mainstem.train.networks import families_of, new_tables
from mainstem.train.towers import TABLE
from mainstem.train.wide import WIDE
from mainstem.weights import Delta, SlabTable, SnapshotMeta, Snapshots, TableDelta

KEYS = np.arange(1, 41, dtype=np.uint64)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mainstem.yaml").write_text("data: here\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def store_of(folder: Path) -> Snapshots:
    return weights.open(str(folder / "here" / "weights"))


def table() -> SlabTable:
    made = SlabTable(Config().model.dim, families_of(Config().model))
    made.find_or_create(KEYS[:30], 0)
    made.find_or_create(KEYS[30:], 1)
    return made


def save(store: Snapshots, position: int) -> str:
    dense = {"towers.mix": np.full(2, position, np.float32)}
    return store.save("main", dense, {TABLE: table()}, SnapshotMeta(position=Position.at(position)))


def publish(store: Snapshots, base: str, position: int) -> None:
    place = store.load("main", base).place
    rows = TableDelta(KEYS[:2], np.ones((2, Config().model.dim), np.float32), KEYS[:0])
    store.publish(
        "main",
        Delta(
            line="main", base=base, sequence=1, previous=place.sha256, dense_version=base,
            position=Position.at(position), tables={TABLE: rows},
        ),
    )  # fmt: skip


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["weights", *words])
    assert not left.value.code
    return " ".join(capsys.readouterr().out.split())


def test_nothing_is_trained_yet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run `mainstem train`" in said(capsys, "list")
    assert said(capsys, "refused") == "nothing was refused"
    with pytest.raises(SystemExit) as left:
        main(["weights", "explain"])
    assert left.value.code == 1
    assert "nothing is trained yet" in capsys.readouterr().err


def test_a_rollback_is_a_new_version_and_goes_on_where_training_had_come_to(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_of(folder)
    first = save(store, 10)
    second = save(store, 20)
    publish(store, second, 33)
    text = said(capsys, "list")
    assert f"delta 1 of base {second}" in text
    assert "p0:10" in text
    made = said(capsys, "rollback", first).split()[0]
    assert store.latest("main").version == made
    assert store.load("main", made).tensors["towers.mix"].tolist() == [10, 10]
    assert store.load("main", made).position == Position.at(33)
    again = said(capsys, "rollback", first, "--relearn").split()[0]
    assert store.load("main", again).position == Position.at(10)
    with pytest.raises(SystemExit):
        main(["weights", "rollback", "v-nonsense"])
    assert "there is no version v-nonsense" in " ".join(capsys.readouterr().err.split())


def test_what_was_refused_is_listed_with_its_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = store_of(folder)
    base = save(store, 10)
    place = store.load("main", base).place
    bad = TableDelta(KEYS[:1], np.full((1, Config().model.dim), np.nan, np.float32), KEYS[:0])
    delta = Delta(
        line="main", base=base, sequence=1, previous=place.sha256, dense_version=base, position=Position.at(12),
        tables={TABLE: bad},
    )  # fmt: skip
    name = store.deltas.refuse("main", delta, "finite: it holds values that are not finite")
    text = said(capsys, "refused")
    assert name in text
    assert "finite" in text


def test_explain_agrees_with_its_formula(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(store_of(folder), 10)
    text = said(capsys, "explain")
    memory = table().explain()
    assert "40 rows of 64" in text
    assert f"{memory.predicted:,}" in text
    assert "user: 30 rows" in text
    assert "entity: 10 rows" in text


def test_explain_tells_every_table_that_is_configured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = folder / "mainstem.yaml", store_of(folder)
    file.write_text(file.read_text() + "model: {ranking: {wide: {crosses: [[canvas, candidate]]}}}\n")
    save(store, 10)
    with pytest.raises(SystemExit) as left:
        main(["weights", "explain"])
    assert left.value.code == 1
    assert "has the tables towers, configured are towers, wide" in " ".join(capsys.readouterr().err.split())
    ranking = RankingConfig.model_validate({"wide": {"crosses": [["canvas", "candidate"]]}})
    wide = new_tables(Config(model=ModelConfig(ranking=ranking)))[WIDE]
    wide.find_or_create(KEYS[:7])
    store.save("main", {}, {TABLE: table(), WIDE: wide}, SnapshotMeta(position=Position.at(20)))
    text = said(capsys, "explain")
    assert "towers: 40 rows of 64" in text
    assert "wide: 7 rows of 1" in text
    assert "cross: 7 rows" in text
