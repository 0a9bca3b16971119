"""The circle while it turns: events are learned from, and the model in use moves, under those who ask."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_loop import CONFIG, DAYS, START, THINGS, USERS, checkerboard, purchase

from mainstem.learning import Learning
from mainstem.loop import Loop
from mainstem.schema.config import Config
from mainstem.schema.ids import key64, keys64
from mainstem.schema.records import Context, Entity, Erase, LogRecord, Slate, SlateRequest
from mainstem.schema.time import DAY

NOW = START + (DAYS + 2) * DAY
THING_KEYS = keys64("item", [str(number) for number in range(THINGS)])
EVEN, ODD = 2_000, 2_001


def config() -> Config:
    """Rows at once, dense parts a little later, no snapshot but the last; users have rows, which an erasure reaches."""
    times = {"publish_every": "20ms", "dense_every": "150ms", "snapshot_every": "30d", "batch": 64}
    online = CONFIG.train.online.model_copy(update=times)
    train, model = (
        CONFIG.train.model_copy(update={"online": online}),
        CONFIG.model.model_copy(update={"user_rows": True}),
    )
    return CONFIG.model_copy(update={"train": train, "model": model})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with log, state and a trained base, to be copied."""
    folder = tmp_path_factory.mktemp("base")
    with Loop(config(), folder) as loop:
        loop.append(checkerboard())
        loop.train()
        loop.catch_up()
    return folder


class Asker:
    """A user of the product who never stops asking."""

    def __init__(self, loop: Loop) -> None:
        self.slates: list[Slate] = []
        self.failure: Exception | None = None
        self._loop, self._stop = loop, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._stop.is_set():
            context = Context(user=f"u{len(self.slates) % USERS}", time=NOW)
            try:
                self.slates.append(self._loop.slate(SlateRequest(context=context, shown=False, deadline_ms=10_000)))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shall say it
                self.failure = error
                return

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Every request was answered by one whole model."""
        assert self.failure is None
        assert len(self.slates) > 20
        for slate in self.slates:
            assert len(slate.items) == 10
            assert slate.dense_version is not None
            assert slate.dense_version == slate.index_version
            assert slate.sparse_version is not None
            assert not {degraded.what for degraded in slate.degraded} & {"model", "two_tower"}

    def versions(self) -> list[tuple[str, int]]:
        """(base, sequence) of the rows that answered, one after the other."""
        pairs = [str(slate.sparse_version).partition("+") for slate in self.slates]
        return [(base, int(sequence)) for base, _, sequence in pairs]


@pytest.fixture
def turning(base: Path, tmp_path: Path) -> Iterator[tuple[Loop, Learning, Asker]]:
    folder = tmp_path / "shop"
    shutil.copytree(base, folder)
    with Loop(config(), folder, follow=True) as loop, Learning(config(), folder) as learning:
        learning.start()
        with Asker(loop) as asker:
            yield loop, learning, asker
        assert learning.failure is None
        assert learning.trainer is not None
        assert learning.trainer.status.failure == ""
        assert loop.parts.keeper.failure is None


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until it holds; the time is only the end of patience."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, f"not within a minute: {what}"
        time.sleep(0.01)


def learned(loop: Loop, learning: Learning) -> None:
    """Wait until the model in use has learned all that is in the log, networks included where any are new."""
    end = loop.end().offset()

    def done() -> bool:
        trainer, keeper = learning.trainer, loop.parts.keeper
        if trainer is None or trainer.position.offset() < end or trainer._window.cuts:
            return False
        in_use = keeper.current().answers
        place = f"{trainer.place.base}+{trainer.place.sequence}"
        return (in_use.sparse_version, in_use.version) == (place, trainer.dense_version)

    eventually(done, "what was posted is in the model in use")


def posted(loop: Loop, buys: int, tag: str) -> None:
    """Two things without any attribute: one is bought by even users, one by odd ones. Old things go on selling."""
    things = [Entity(record_id=f"thing-{number}", time=NOW, entity=str(number)) for number in (EVEN, ODD)]
    loop.append(list[LogRecord](things))
    for at in range(buys):
        user = at % USERS
        old = (2 * at + user % 2) % THINGS
        moment = NOW + at * 1_000
        loop.append([
            purchase(user, old // 2 * 2 + user % 2, moment, f"{tag}-old-{at}"),
            purchase(user, (EVEN, ODD)[user % 2], moment + 1, f"{tag}-new-{at}"),
        ])  # fmt: skip


def leaning(loop: Loop) -> tuple[float, float]:
    """How much nearer each of the two new things is to the even things than to the odd ones, in the index in use."""
    vectors = loop.parts.keeper.current().answers.index
    things = vectors.vectors(THING_KEYS)
    found = vectors.vectors(keys64("item", [str(EVEN), str(ODD)])) @ (
        things[::2].mean(axis=0) - things[1::2].mean(axis=0)
    )
    return float(found[0]), float(found[1])


def test_the_model_in_use_learns_from_what_is_posted(turning: tuple[Loop, Learning, Asker]) -> None:
    loop, learning, asker = turning
    eventually(lambda: learning.trainer is not None, "the trainer has recovered")
    loop.append([Entity(record_id=f"before-{number}", time=NOW, entity=str(number)) for number in (EVEN, ODD)])
    eventually(lambda: loop.position == loop.end(), "the follower has come to the end")
    first = loop.parts.keeper.current().answers
    before = leaning(loop)
    assert before[0] == before[1]
    posted(loop, 240, "a")
    learned(loop, learning)
    even, odd = leaning(loop)
    assert even > before[0] + 0.05
    assert odd < before[1] - 0.05
    now = loop.parts.keeper.current().answers
    assert now.sparse_version != first.sparse_version
    assert now.version != first.version
    assert loop.parts.keeper.applied > 1
    eventually(lambda: asker.versions()[-1:] == [tuple_of(now.sparse_version)], "slates name the newest delta")
    asker.check()
    assert asker.versions() == sorted(asker.versions())
    assert len({slate.dense_version for slate in asker.slates}) > 1


def tuple_of(sparse_version: str | None) -> tuple[str, int]:
    base, _, sequence = str(sparse_version).partition("+")
    return base, int(sequence)


def test_back_to_an_old_version_while_both_run(turning: tuple[Loop, Learning, Asker]) -> None:
    loop, learning, asker = turning
    eventually(lambda: learning.trainer is not None, "the trainer has recovered")
    assert learning.trainer is not None
    store = loop.parts.snapshots
    (first,) = store.versions("main")
    posted(loop, 120, "b")
    learned(loop, learning)
    made = store.rollback("main", first, learning.trainer.position)
    eventually(lambda: loop.parts.keeper.version == made, "the rolled back is in use")
    posted(loop, 120, "c")
    learned(loop, learning)
    base, sequence = tuple_of(loop.parts.keeper.current().answers.sparse_version)
    assert base == made
    assert sequence > 0
    asker.check()
    assert asker.versions() == sorted(asker.versions())
    assert {base for base, _ in asker.versions()} == {first, made}


def test_an_erased_user_leaves_the_model_in_use(turning: tuple[Loop, Learning, Asker]) -> None:
    loop, learning, asker = turning
    eventually(lambda: learning.trainer is not None, "the trainer has recovered")
    gone, stays = (np.array([key64("user", name)], np.uint64) for name in ("u3", "u4"))

    def rows() -> list[int]:
        table = loop.parts.keeper.current().towers.table
        return [int(table.find(key)[0]) for key in (gone, stays)]

    assert min(rows()) >= 0
    loop.append([Erase(record_id="forget-u3", time=NOW, user="u3"), purchase(4, 2, NOW, "later")])
    learned(loop, learning)
    assert rows()[0] == -1
    assert rows()[1] >= 0
    eventually(lambda: len(asker.slates) > 20, "slates are asked for")
    asker.check()
