"""What is folded online equals what Ibis on DuckDB says of the Parquet history; with a canary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from laws import CANDIDATES, HOUR, ITEMS, START, USERS, WORLD, Colours, event, write

import mainstem.features as features
from mainstem.features import offline
from mainstem.schema.config import Config
from mainstem.schema.ids import key64
from mainstem.schema.records import Context, Event
from mainstem.schema.time import DAY

# Ibis 12 still calls a method that DuckDB 2 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")

LIVES, WINDOWS = WORLD.features.half_lives, WORLD.features.popularity_windows


def world(seed: int, size: int = 300) -> list[Event]:
    random = np.random.default_rng(seed)
    hours = np.sort(random.integers(0, 12 * 24, size))
    made = []
    for n, hour in enumerate(hours.tolist()):
        user, item = random.choice(USERS), random.choice(ITEMS)
        kind = random.choice(["purchase", "click", "impression"])
        session = f"{user}-{hour // 6}" if random.random() < 0.7 else None
        made.append(event(n, START + hour * HOUR, str(user), str(item), str(kind), session))
    return made


def table(events: list[Event], folder: Path) -> Any:
    """The history as the event log seals it: Parquet, read by DuckDB."""
    names = ("time", "user", "entity_type", "entity", "kind", "value", "session")
    columns: dict[str, Any] = {name: [getattr(e, name) for e in events] for name in names}
    columns["session"] = pa.array(columns["session"], pa.string())
    path = folder / "history.parquet"
    pq.write_table(pa.table({"offset": range(len(events)), "tag": ["event"] * len(events), **columns}), path)
    return ibis.duckdb.connect().read_parquet(path)


def rows(expression: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = expression.to_pyarrow().to_pylist()
    return found


def check_parity(log: Any, events: list[Event], time: int, config: Config = WORLD) -> None:
    """Raises AssertionError where the store, having seen `events`, and the history in `log` disagree at `time`."""
    store = features.open("memory://", WORLD, Colours())
    write(store, events, [50, 51, 120])
    column = {name: place for place, name in enumerate(store.names)}
    item = {name: place for place, name in enumerate(ITEMS)}
    stats = {row["entity"]: row for row in rows(offline.popularity(log, config, time))}
    mine = rows(offline.user_item(log, config, time))
    recent = rows(offline.history(log, config, time))
    met = rows(offline.cooccurrence(log, config, time))
    for user in USERS:
        with store.view(Context(user=user, time=time)) as view:
            values, counts, history = view.values(CANDIDATES), view.counts(), view.history()
        theirs = {row["entity"]: row for row in mine if row["user"] == user}
        assert {key64("item", name) for name in theirs} == set(counts.keys.tolist())
        for name, row in theirs.items():
            at = int(np.searchsorted(counts.keys, key64("item", name)))
            assert (row["count"], row["first"], row["last"], row["owned"]) == (
                counts.count[at], counts.first[at], counts.last[at], counts.owned[at],
            )  # fmt: skip
            for life in LIVES:
                got = values[item[name], column[f"user_item_decayed_{life}"]]
                np.testing.assert_allclose(got, np.log1p(50 * row[f"decayed_{life}"]), rtol=1e-4)
            since = np.log1p((time - row["last"]) / DAY)
            np.testing.assert_allclose(values[item[name], column["user_item_days_since"]], since, rtol=1e-4)
        expected = sorted((row for row in recent if row["user"] == user), key=lambda row: -row["place"])
        assert [key64("item", row["entity"]) for row in expected] == history.entity.tolist()
        assert [row["time"] for row in expected] == history.time.tolist()
    for name, row in stats.items():
        for window in WINDOWS:
            for ours, theirs_ in ((f"popularity_{window}", "window"), (f"popularity_fresh_{window}", "fresh")):
                got = values[item[name], column[ours]]
                np.testing.assert_allclose(got, np.log1p(row[f"{theirs_}_{window}"]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values[item[name], column["popularity_total"]], np.log1p(row["count"]), rtol=1e-5)
    check_neighbours(store, met, {name: row["count"] for name, row in stats.items()}, time)
    store.close()


def check_neighbours(store: features.Store, met: list[dict[str, Any]], seen: dict[str, int], time: int) -> None:
    for name in ITEMS:
        key = np.array([key64("item", name)], np.uint64)
        with store.view(Context(time=time)) as view:
            found = view.neighbours(key, np.ones(1, np.float32), 100)
        scores = dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True))
        expected = {
            key64("item", row["other"]): row["count"] / (np.sqrt(seen[name] * seen[row["other"]]) + 10.0)
            for row in met
            if row["entity"] == name
        }
        assert scores.keys() == expected.keys()
        for other, score in expected.items():
            np.testing.assert_allclose(scores[other], score, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_store_agrees_with_duckdb(seed: int, tmp_path: Path) -> None:
    events = world(seed)
    log = table(events, tmp_path)
    newest = events[-1].time
    for time in (newest, newest + 1, newest + 40 * HOUR):
        check_parity(log, events, time)


def test_a_parity_break_is_caught(tmp_path: Path) -> None:
    """Another span, and a history that leaks what is at the time asked about."""
    events = world(2)
    log, time = table(events, tmp_path), events[-1].time
    other = WORLD.model_copy(update={"features": WORLD.features.model_copy(update={"cooccurrence_span": 2})})
    with pytest.raises(AssertionError):
        check_parity(log, events, time + 1, other)
    shifted = log.mutate(time=log.time - 1)
    with pytest.raises(AssertionError):
        check_parity(shifted, events, time)
