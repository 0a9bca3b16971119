"""The recorder: which slates go on record and which are kept, in how many appends, and what is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import pytest

from mainstem import eventlog, slates
from mainstem.schema.errors import InvalidRecord, StoreError
from mainstem.schema.pools import unpack_pool
from mainstem.schema.position import START
from mainstem.schema.records import Context, Degraded, LogRecord, Past, Served, Slate, SlateItem, SlateRequest
from mainstem.schema.time import now_ms
from mainstem.slates import recorder
from mainstem.slates import recorder as recorder_module
from mainstem.slates.recorder import Recorder

NOW = now_ms()
INPUTS = ("bought", "two_tower")


def slate(number: int, *degraded: Degraded, time: int = NOW, items: int = 2) -> Slate:
    shown = [SlateItem(entity=str(place), score=1.0) for place in range(items)]
    return Slate(request_id=f"slate-{number}", canvas="home", time=time, items=shown, degraded=list(degraded))


class Desk:
    """A recorder whose appends and keeps are written down; `log` refuses when told to."""

    def __init__(self, sample: float = 1.0, append: Callable[[Sequence[LogRecord]], object] | None = None) -> None:
        self.appends: list[list[str]] = []
        self.kept: list[str] = []
        self.records: list[Served] = []
        self.recorder = Recorder(append or self.append, self.keep, sample)

    def append(self, records: Sequence[LogRecord]) -> None:
        served = [record for record in records if isinstance(record, Served)]
        self.appends.append([record.record_id for record in served])
        self.records += served

    def keep(self, served: Served) -> None:
        self.kept.append(served.record_id)

    def take(self, slate: Slate, **fields: object) -> None:
        request = SlateRequest(context=Context(user="u"), **fields)  # type: ignore[arg-type]
        self.recorder.record(request, slate, INPUTS, np.arange(2 * len(slate.items), dtype=np.float64).reshape(-1, 2))


def names(numbers: Sequence[int]) -> list[str]:
    return [f"slate-{number}" for number in numbers]


def test_a_slate_on_record_says_what_was_asked_shown_and_seen() -> None:
    desk = Desk()
    desk.take(slate(1), shown=False)
    desk.recorder.close()
    [served] = desk.records
    assert (served.record_id, served.user, served.shown, served.time) == ("slate-1", "u", False, NOW)
    assert served.feature_names == list(INPUTS)
    assert np.frombuffer(served.features, np.float32).reshape(2, 2).tolist() == [[0, 1], [2, 3]]


def test_it_writes_to_a_real_log_and_a_real_store() -> None:
    log, kept = eventlog.open("memory://", history=""), slates.open("memory://")
    written = Recorder(log.append, lambda s: kept.keep(s.tenant, s.slate.canvas, s.user, s.slate, s.time))
    request = SlateRequest(context=Context(user="u"))
    written.record(request, slate(1), (), np.zeros((2, 0), np.float32))
    written.close()
    assert [record.record_id for record in log.read(START).records] == ["slate-1"]  # type: ignore[union-attr]
    found = kept.get("main", "home", "u", 1000, NOW)
    assert found is not None
    assert found.request_id == "slate-1"


@pytest.mark.parametrize(("sample", "on_record"), [(1.0, 1000), (0.5, 500), (0.1, 100), (0.0, 0), (1 / 3, 333)])
def test_the_share_on_record_is_exact_and_all_are_kept(sample: float, on_record: int) -> None:
    desk = Desk(sample)
    for number in range(1000):
        desk.take(slate(number))
    desk.recorder.close()
    assert len(desk.records) == on_record
    assert desk.kept == names(range(1000)), "the fallback does not depend on how many go on record"
    places = [int(record.record_id.split("-")[1]) for record in desk.records]
    gaps = set(np.diff(places).tolist())
    assert not gaps or max(gaps) - min(gaps) <= 1, "evenly spaced"


@pytest.mark.parametrize("sample", [-0.1, 1.1])
def test_a_share_is_between_none_and_all(sample: float) -> None:
    with pytest.raises(ValueError, match="sample"):
        Recorder(lambda records: None, lambda served: None, sample)


def test_many_slates_share_appends_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "BATCH", 7)
    first, go = threading.Event(), threading.Event()
    desk = Desk()

    def slow(records: Sequence[LogRecord]) -> None:
        first.set()
        assert go.wait(20)
        desk.append(records)

    desk.recorder.append = slow
    desk.take(slate(0))
    assert first.wait(20)  # it is writing now; these come meanwhile
    for number in range(1, 101):
        desk.take(slate(number))
    go.set()
    desk.recorder.close()
    assert list(chain(*desk.appends)) == names(range(101))
    assert max(map(len, desk.appends)) == 7
    assert len(desk.appends) == 1 + -(-100 // 7)


def test_slates_from_many_threads_all_arrive() -> None:
    desk = Desk(0.5)
    threads = [
        threading.Thread(target=lambda at=at: [desk.take(slate(1000 * at + n)) for n in range(100)]) for at in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    desk.recorder.close()
    assert len(desk.records) == 400
    assert len(set(desk.kept)) == 800


def test_only_good_slates_are_kept() -> None:
    desk = Desk()
    desk.take(slate(1, Degraded(stage="retrieve", what="content", why="late")))
    desk.take(slate(2, Degraded(stage="freshness", what="after", why="behind")))
    desk.take(slate(3, items=0))
    desk.recorder.close()
    assert desk.kept == ["slate-2"]
    assert len(desk.records) == 3


def test_what_the_log_cannot_take_is_counted_and_the_recorder_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    full = [True]
    desk = Desk()

    def append(records: Sequence[LogRecord]) -> None:
        if full[0]:
            full[0] = False
            raise StoreError("disk full")
        desk.append(records)

    desk.recorder.append = append
    desk.take(slate(1))
    while desk.recorder.failures < 1:
        threading.Event().wait(0.005)
    desk.take(slate(2))
    desk.recorder.close()
    assert desk.recorder.failures == 1
    assert desk.appends == [["slate-2"]]
    assert desk.kept == ["slate-1", "slate-2"]
    assert "disk full" in caplog.text


def test_one_slate_that_the_log_refuses_does_not_take_the_others_with_it() -> None:
    log = eventlog.open("memory://", history="")
    with pytest.raises(InvalidRecord):  # the canary: the log does refuse such a one
        log.append([Served(record_id="x", time=10**18, user="", request=SlateRequest(), slate=slate(0))])
    desk = Desk(append=log.append)
    desk.recorder.record(SlateRequest(context=Context(user="")), slate(2), (), np.zeros((2, 0), np.float32))
    desk.take(slate(1))
    desk.take(slate(3))
    desk.recorder.close()
    assert desk.recorder.failures == 1
    assert [record.record_id for record in log.read(START).records] == ["slate-1", "slate-3"]  # type: ignore[union-attr]


def test_a_store_that_cannot_keep_is_counted() -> None:
    desk = Desk()

    def keep(served: Served) -> None:
        raise StoreError("damaged")

    desk.recorder.keep = keep
    desk.take(slate(1))
    desk.recorder.close()
    assert (desk.recorder.unkept, desk.recorder.failures, len(desk.records)) == (1, 0, 1)


def test_closing_writes_what_waits_and_counts_what_comes_after() -> None:
    desk = Desk()
    for number in range(50):
        desk.take(slate(number))
    desk.recorder.close()
    desk.recorder.close()
    assert list(chain(*desk.appends)) == names(range(50))
    desk.take(slate(51))
    assert desk.recorder.failures == 1


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "WAITING", 3)
    first, go = threading.Event(), threading.Event()
    desk = Desk()

    def stuck(records: Sequence[LogRecord]) -> None:
        first.set()
        assert go.wait(20)
        desk.append(records)

    desk.recorder.append = stuck
    desk.take(slate(0))
    assert first.wait(20)
    for number in range(1, 11):
        desk.take(slate(number))
    assert desk.recorder.failures == 7
    go.set()
    desk.recorder.close()
    assert list(chain(*desk.appends)) == names(range(4))


def pool(n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, n + 1, dtype=np.uint64), np.arange(2 * n, dtype=np.float32).reshape(n, 2)


@pytest.mark.parametrize(
    ("share", "asked", "want"), [(0.5, False, [2, 4]), (0.0, False, []), (0.0, True, [1, 2, 3, 4])]
)
def test_a_share_of_slates_goes_on_record_with_all_candidates(share: float, asked: bool, want: list[int]) -> None:
    desk = Desk()
    desk.recorder.close()
    desk.recorder = Recorder(desk.append, desk.keep, 0.0, share)  # which takes along the slates that have a pool alone
    for number in range(1, 5):
        request = SlateRequest(context=Context(user="u"), pool=asked)
        desk.recorder.record(request, slate(number), INPUTS, np.zeros((2, 2), np.float32), pool())
    desk.recorder.record(SlateRequest(), slate(9), INPUTS, np.zeros((2, 2), np.float32))  # has none
    desk.recorder.close()
    assert [served.record_id for served in desk.records] == names(want)
    for served in desk.records:
        assert served.pool is not None
        keys, inputs = unpack_pool(served.pool, 2)
        np.testing.assert_array_equal(keys, pool()[0])
        np.testing.assert_array_equal(inputs, pool()[1])
    assert desk.kept == names([1, 2, 3, 4, 9])


def test_what_was_read_of_the_history_goes_on_record_with_every_slate() -> None:
    desk, past = Desk(), Past(kinds=["purchase"], entities=bytes(8), actions=bytes(1), times=bytes(8))
    desk.recorder.record(SlateRequest(), slate(1), INPUTS, np.zeros((2, 2), np.float32), past=past)
    desk.take(slate(2))
    desk.recorder.close()
    assert [served.past for served in desk.records] == [past, None]


def test_pools_are_left_out_where_slates_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WAITING_FOR_POOLS", 0)
    desk = Desk()
    desk.recorder.pools = 1.0
    desk.recorder.record(SlateRequest(), slate(1), INPUTS, np.zeros((2, 2), np.float32), pool())
    desk.recorder.close()
    assert [served.pool for served in desk.records] == [None]
