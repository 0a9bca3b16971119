"""`mainstem ingest` and `mainstem train`, killed in the middle and given again: as if nobody had killed them."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from chaos_shop import BEGAN, SETTINGS, THINGS, names
from chaos_survival import seed_of
from chaos_world import HUNG, Command, Fresh

from mainstem import weights
from mainstem.assemble import open_log
from mainstem.loop import Loop
from mainstem.schema.config_file import load
from mainstem.schema.position import START
from mainstem.schema.records import Context, Event, SlateRequest
from mainstem.schema.time import DAY
from mainstem.weights.checkpoints import flatten

USERS = 300
BAD = (7, 2_345, 5_999)
"""Rows without a time, numbers from 0."""
STAGES = ("reading the log", "towers", "replay", "ranking", "towers, to the end")
"""Of training, as its output names them."""
Row = tuple[str, str, int]


def write_rows(path: Path, count: int) -> list[Row]:
    """A CSV file without ids; its good rows. Some are there twice: they are two events."""
    dice = random.Random(3)
    good, lines = list[Row](), ["user,entity,time,kind,session"]
    for number in range(count):
        user, at = dice.randrange(USERS), BEGAN + number * 40 * DAY // count
        row = f"u{user}", str(2 * dice.randrange(THINGS // 2) + user % 2), at // 1000 * 1000
        if number % 100 == 99:
            row = good[-1]
        bad = number in BAD
        lines.append(f"{row[0]},{row[1]},{'' if bad else row[2]},purchase,{row[0]}-{row[2] // DAY}")
        good += [] if bad else [row]
    path.write_text("\n".join(lines) + "\n")
    return good


def shop_of(folder: Path, count: int) -> list[Row]:
    """Settings and a file to ingest; the good rows of it."""
    folder.mkdir()
    (folder / "mainstem.yaml").write_text(yaml.safe_dump(SETTINGS))
    return write_rows(folder / "rows.csv", count)


def logged(folder: Path) -> Iterator[Event]:
    with closing(open_log(load(folder / "mainstem.yaml"), folder)) as log:
        seen = START
        while (batch := log.read(seen, 50_000)).records:
            yield from (record for record in batch.records if isinstance(record, Event))
            seen = batch.next


def end_of(folder: Path) -> int:
    with closing(open_log(load(folder / "mainstem.yaml"), folder)) as log:
        return log.end().offset()


def rows_of(events: Iterator[Event]) -> list[Row]:
    return [(str(event.user), str(event.entity), event.time) for event in events]


def run(command: Command) -> str:
    """To its end; what it said in this run."""
    before = len(command.output.read_text()) if command.output.exists() else 0
    command.start()
    assert command.wait(2 * HUNG) == 0, command.output.read_text()[-1000:]
    return command.output.read_text()[before:]


def killed(command: Command, when: Callable[[], bool], delay: float) -> bool:
    """Start it and kill it `delay` seconds after `when()`; False where it ended before."""
    when()  # what it compares with
    command.start()
    end = time.monotonic() + HUNG
    while command.running.exitcode is None and not when():
        assert time.monotonic() < end, f"{command.name} does not come to where it is to be killed"
        time.sleep(0.01)
    time.sleep(delay)
    if command.running.exitcode is None:
        command.kill()
        return True
    assert command.wait() == 0, command.output.read_text()[-1000:]
    return False


@pytest.mark.slow
def test_an_ingest_killed_in_the_middle_and_given_again_adds_every_row_once(tmp_path: Path) -> None:
    dice, shop = random.Random(seed_of("ingest")), tmp_path / "shop"
    rows = shop_of(shop, 30_000)  # some transactions
    command = Command("ingest", ["ingest", "rows.csv"], shop)
    counts = [0]
    for _ in range(8):
        if dice.random() < 0.6:
            ended = not killed(command, Fresh(lambda: [end_of(shop)]), dice.uniform(0, 0.2))
        else:
            ended = not killed(command, lambda: True, dice.uniform(0.02, 1.5))
        found = rows_of(logged(shop))
        assert found == rows[: len(found)]  # the beginning of the file
        counts.append(len(found))
        if ended or counts[-1] == len(rows):
            break
    assert counts == sorted(counts)
    assert any(0 < count < len(rows) for count in counts)  # killed in the middle indeed

    run(command)
    assert rows_of(logged(shop)) == rows
    assert max(Counter(event.event_id for event in logged(shop)).values()) == 1
    aside = [json.loads(line) for line in (shop / "rows.csv.rejects.jsonl").read_text().splitlines()]
    assert [one["line"] for one in aside] == [number + 2 for number in BAD]
    assert f"0 events in, {len(rows):,} known before, {len(BAD)} set aside" in run(command)
    assert rows_of(logged(shop)) == rows

    shop_of(tmp_path / "calm", 30_000)
    run(Command("ingest", ["ingest", "rows.csv"], tmp_path / "calm"))
    assert answers(shop) == answers(tmp_path / "calm")


def answers(folder: Path) -> list[list[str]]:
    """What some users are shown: the state that the slates come from is that of the log."""
    with Loop(load(folder / "mainstem.yaml"), folder) as loop:
        requests = [
            SlateRequest(context=Context(user=f"u{n}", time=BEGAN + 41 * DAY), shown=False, deadline_ms=10_000)
            for n in range(0, USERS, 10)
        ]
        found = [[item.entity for item in loop.slate(request).items] for request in requests]
    assert all(found)
    return found


@pytest.mark.slow
def test_a_training_killed_in_every_stage_and_given_again_makes_the_same_model(tmp_path: Path) -> None:
    dice = random.Random(seed_of("train"))
    shop, calm = tmp_path / "shop", tmp_path / "calm"
    shop_of(shop, 6_000)
    run(Command("ingest", ["ingest", "rows.csv"], shop))
    shutil.copytree(shop, calm)
    run(Command("train", ["train"], calm))

    command, line = Command("train", ["train"], shop), shop / "data" / "weights" / "main"
    command.output.touch()
    for stage in dice.sample(STAGES, len(STAGES)):
        come_to = Fresh(lambda stage=stage: range(command.output.read_text().count(f"{stage}: ")))  # type: ignore[misc]
        killed(command, come_to, dice.uniform(0, 0.05))
    for _ in range(2):  # while it writes the version, or as soon as it has
        killed(command, Fresh(lambda: names(line, "v-*")), dice.uniform(0, 0.02))
    run(command)
    assert_same_model(shop, calm)
    assert [name for name in names(line, "v-*") if not (line / name / "manifest.json").exists()] == []


def assert_same_model(shop: Path, calm: Path) -> None:
    """Bit by bit, with all that decides what is learned next."""
    arrays = []
    for folder in (shop, calm):
        store = weights.open(str(folder / "data" / "weights"))
        newest = store.latest("main")
        assert newest.version is not None
        assert newest.skipped == {}
        snapshot = store.load("main", newest.version, training=True)
        tree = {"dense": snapshot.tensors, "tables": snapshot.tables, "training": snapshot.training}
        arrays.append(flatten({name: dict(part) for name, part in tree.items()})[0])
    assert arrays[0].keys() == arrays[1].keys()
    assert len(arrays[0]) > 10
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(array, arrays[1][name], err_msg=name)
