"""What reads give: rows that stay put, masks, text; growth; readers beside the writer; other processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mainstem import catalog
from mainstem.catalog import lmdb as durable
from mainstem.catalog.columns import TagsColumn
from mainstem.catalog.lookup import RowTable
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.errors import ConfigError, Incompatible, StoreError
from mainstem.schema.ids import key64, keys64
from mainstem.schema.position import Position
from mainstem.schema.protocols import Catalog
from mainstem.schema.records import Entity, EntityDelete, EntityPatch

ITEM = EntityTypeConfig(
    attributes={"color": "category", "price": "number", "tags": "tags", "blurb": "text"},
    text=["color", "blurb", "tags"],
)
TYPES = {"item": ITEM, "film": EntityTypeConfig(attributes={"color": "tags", "year": "number"})}


def item(name: str, time: int = 1, **fields: object) -> Entity:
    return Entity(record_id=f"r-{name}-{time}", time=time, entity=name, **fields)  # type: ignore[arg-type]


def test_it_is_a_catalog() -> None:
    found: Catalog = catalog.open("memory://", entities=TYPES)
    assert len(found) == 0
    assert found.rows(np.array([0, 5], np.uint64)).tolist() == [-1, -1]
    rows = np.array([-1, -1], np.int32)
    assert not found.available(rows, 0).any()
    assert not found.matches(rows, {}).any()
    assert found.codes("color", rows).tolist() == [0, 0]
    assert np.isnan(found.numbers("price", rows)).all()
    assert found.entity(5) is None
    assert found.attributes(5) == {}


def test_unknown_schemes_are_refused() -> None:
    for url in ("redis://x", "lmdb://", "/some/path"):
        with pytest.raises(ConfigError, match="allowed: memory://, lmdb://"):
            catalog.open(url, entities=TYPES)


def test_matches_says_what_the_docstring_says() -> None:
    found = catalog.open("memory://", entities=TYPES)
    found.write(
        [
            item("a", attributes={"color": "red", "price": 7.0, "tags": ["x", "y"], "blurb": "hi"}, group="g"),
            item("b", attributes={"color": "blue", "price": 8.0, "tags": "x"}),
            item("c", attributes={"color": True, "tags": []}),
            item("d", entity_type="film", attributes={"color": ["red", "blue"], "year": 1999.0}),
        ],
        Position.at(1),
    )
    rows = found.rows(np.concatenate([keys64("item", "abc"), keys64("film", "d"), keys64("item", "z")]))

    def names(wanted: dict[str, object]) -> str:
        return "".join(n for n, hit in zip("abcdz", found.matches(rows, wanted), strict=True) if hit)

    assert names({}) == "abcd"
    assert names({"color": "red"}) == "ad"
    assert names({"color": ["red", "blue"]}) == "abd"
    assert names({"color": True}) == names({"color": "true"}) == "c"
    assert names({"tags": "x"}) == "ab"
    assert names({"tags": ["y", "none"]}) == "a"
    assert names({"price": 7}) == names({"price": "7.0"}) == "a"
    assert names({"price": [7, 8.0, "cheap"]}) == "ab"
    assert names({"year": 1999}) == "d"
    assert names({"group": "g"}) == "a"
    assert names({"color": "red", "tags": "x"}) == "a"
    for nothing in ({"color": []}, {"blurb": "hi"}, {"unknown": "red"}, {"color": None}, {"color": ""}):
        assert names(nothing) == ""


def test_tenants_do_not_meet() -> None:
    found = catalog.open("memory://", entities=TYPES)
    found.write([item("a", text="ours"), item("a", text="theirs", tenant="other")], Position.at(1))
    assert len(found) == 2
    assert [found.text(key64("item", "a", tenant)) for tenant in ("main", "other")] == ["ours", "theirs"]


def test_text_joins_the_configured_attributes() -> None:
    found = catalog.open("memory://", entities=TYPES)
    found.write(
        [item("a", text="Red shoe", attributes={"tags": ["x", "y"], "blurb": "light", "price": 3.0})], Position.at(1)
    )
    assert found.text(key64("item", "a")) == "Red shoe light x y"
    assert found.text(key64("item", "b")) == ""


def test_a_deleted_entity_gets_its_row_back() -> None:
    found = catalog.open("memory://", entities=TYPES)
    found.write([item("a"), item("b")], Position.at(1))
    keys = keys64("item", "ab")
    rows = found.rows(keys)
    found.write([EntityDelete(record_id="d", time=2, entity="a")], Position.at(2))
    assert found.rows(keys).tolist() == [-1, rows[1]]
    assert not found.matches(rows, {})[0]
    assert found.keys().tolist() == [0, keys[1]]
    found.write([item("a", 1)], Position.at(3))
    assert found.rows(keys)[0] == -1, "an older record does not bring it back"
    found.write([item("a", 3)], Position.at(4))
    assert found.rows(keys).tolist() == rows.tolist()


def test_patches_of_unknown_entities_are_counted() -> None:
    found = catalog.open("memory://", entities=TYPES)
    patch = EntityPatch(record_id="p", time=5, entity="a", stock=0.0)
    assert found.write([patch], Position.at(1)) == []
    assert (len(found), found.ignored_patches) == (0, 1)
    found.write([item("a", 4)], Position.at(2))
    assert found.available(found.rows(keys64("item", "a")), 5).all()
    assert found.write([patch], Position.at(3))[0].stock == 0.0
    assert not found.available(found.rows(keys64("item", "a")), 5).any()


def test_an_unchanged_entity_is_not_returned() -> None:
    found = catalog.open("memory://", entities=TYPES)
    assert len(found.write([item("a", 1, text="x")], Position.at(1))) == 1
    assert found.write([item("a", 2, text="x")], Position.at(2)) == []
    assert found.entity(key64("item", "a")).time == 2  # type: ignore[union-attr]


def test_it_grows(tmp_path: Path) -> None:
    found = catalog.open(f"lmdb://{tmp_path}", entities=TYPES)
    n = 5000
    for i in range(0, n, 500):
        batch = [item(str(j), attributes={"price": float(j), "tags": [str(j % 7)]}) for j in range(i, i + 500)]
        found.write(batch, Position.at(i + 500))
    keys = keys64("item", map(str, range(n)))
    rows = found.rows(keys)
    assert len(np.unique(rows)) == len(found) == n
    assert (found.keys()[rows] == keys).all()
    np.testing.assert_array_equal(found.numbers("price", rows), np.arange(n))
    np.testing.assert_array_equal(found.matches(rows, {"tags": "3"}), np.arange(n) % 7 == 3)
    found.close()


def test_row_table_probes_past_collisions() -> None:
    table = RowTable(slots=8)
    keys = (np.arange(1, 200, dtype=np.uint64) << np.uint64(32)) | np.uint64(3)
    for i in range(0, 199, 3):
        table.insert(keys[i : i + 3], np.arange(i, min(i + 3, 199), dtype=np.int32))
    assert table.find(keys, keys).tolist() == list(range(199))
    assert table.find(keys + np.uint64(1), keys).tolist() == [-1] * 199
    frozen = keys.copy()
    frozen.flags.writeable = False
    assert table.find(frozen, keys).tolist() == list(range(199))


def test_tags_are_packed_when_they_change_often() -> None:
    column = TagsColumn(16)
    rows = np.arange(16, dtype=np.int32)
    rng = np.random.default_rng(0)
    truth: list[list[int]] = [[] for _ in rows]
    for _ in range(600):
        some = rng.choice(rows, 5, replace=False)
        values = [rng.integers(1, 50, rng.integers(0, 6)).tolist() for _ in some]
        column.set(some, values)
        for row, codes in zip(some, values, strict=True):
            truth[row] = codes
        wanted = np.array([7, 11], np.uint64)
        assert column.among(rows, wanted).tolist() == [bool({7, 11} & set(codes)) for codes in truth]
    assert len(column._state[1]) < 5000, "the arena stays in proportion to what is in use"


def test_readers_beside_the_writer_see_whole_cells() -> None:
    """Every entity's price is its colour's number; a reader may see old or new, never another's, never an error."""
    found = catalog.open("memory://", entities=TYPES)
    keys = keys64("item", map(str, range(3000)))
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            rows = found.rows(keys)
            prices = found.numbers("price", rows)
            known = rows >= 0
            expected = np.arange(3000)[known]
            if not np.array_equal(prices[known] % 3000, expected):
                wrong.append(prices)
            hits = found.matches(rows, {"tags": "even"})[known]
            if not np.array_equal(hits, expected % 2 == 0):
                wrong.append(hits)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(4):
        for i in range(0, 3000, 300):
            batch = [
                item(
                    str(j),
                    turn,
                    attributes={"price": float(j + 3000 * turn), "tags": ["even" if j % 2 == 0 else "odd"]},
                )
                for j in range(i, i + 300)
            ]
            found.write(batch, Position.at(turn * 3000 + i))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


READER = """
import sys
from mainstem import catalog
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.ids import key64
found = catalog.open("lmdb://" + sys.argv[1], entities={"item": EntityTypeConfig()}, readonly=True)
for line in sys.stdin:
    count = found.refresh()
    print(count, len(found), found.position(), found.text(key64("item", line.strip())), flush=True)
"""


def test_another_process_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_CHANGES", 3)
    found = catalog.open(f"lmdb://{tmp_path}", entities=TYPES)
    found.write([item("a", text="one"), item("b")], Position.at(2))
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask(name: str) -> str:
            print(name, file=reader.stdin, flush=True)
            return reader.stdout.readline().strip()

        assert ask("a") == "0 2 p0:2 one"
        found.write([item("a", 2, text="two")], Position.at(3))
        found.write([EntityDelete(record_id="d", time=2, entity="b")], Position.at(4))
        assert ask("a") == "2 1 p0:4 two"
        assert ask("a") == "0 1 p0:4 two"
        reader.stdin.close()
    found.close()


def test_a_reader_that_missed_too_much_reads_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_CHANGES", 3)
    found = catalog.open(f"lmdb://{tmp_path}", entities=TYPES)
    assert isinstance(found, durable.LmdbCatalog)
    for i in range(10):
        found.write([item(str(i))], Position.at(i + 1))
    found._version = 5
    assert found.refresh() == 10
    found._version = 7
    assert found.refresh() == 2
    found.close()


def test_a_reader_writes_nothing_and_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no catalogue"):
        catalog.open(f"lmdb://{tmp_path}", entities=TYPES, readonly=True)
    catalog.open(f"lmdb://{tmp_path}", entities=TYPES).close()
    found = catalog.open(f"lmdb://{tmp_path}", entities=TYPES, readonly=True)
    with pytest.raises(StoreError, match="reading only"):
        found.write([item("a")], Position.at(1))
    assert len(found) == 0
    found.close()


def test_a_damaged_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"\x00" * 8192)
    with pytest.raises(StoreError, match="cannot be opened"):
        catalog.open(f"lmdb://{tmp_path}", entities=TYPES)


def test_another_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.open(f"lmdb://{tmp_path}", entities=TYPES).close()
    monkeypatch.setattr(durable, "_FORMAT", b"2")
    with pytest.raises(Incompatible, match="rebuild it"):
        catalog.open(f"lmdb://{tmp_path}", entities=TYPES)


def test_a_changed_definition_needs_no_rebuild(tmp_path: Path) -> None:
    found = catalog.open(f"lmdb://{tmp_path}", entities=TYPES)
    found.write([item("a", attributes={"other": "x"})], Position.at(1))
    found.close()
    found = catalog.open(f"lmdb://{tmp_path}", entities={"item": EntityTypeConfig(attributes={"other": "category"})})
    assert found.matches(found.rows(keys64("item", "a")), {"other": "x"}).all()
    found.close()
