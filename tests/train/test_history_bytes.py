"""What is appended to a chain of blocks is read back, whatever the numbers; what is dropped leaves nothing."""

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mainstem.schema.keyrows import compiled
from mainstem.train.history_bytes import BLOCK, LINE, ROOM, USER, append, blank, drop, drop_all, first_of, grown, read

LEAST, MOST = -(1 << 63), (1 << 63) - 1
EDGES = [LEAST, LEAST + 1, -(1 << 62), -1, 0, 1, 63, 64, (1 << 62) - 1, 1 << 62, MOST - 1, MOST]

Event = tuple[int, int, int]
events = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 63, 64, (1 << 31) - 1, (1 << 32) - 1]) | st.integers(0, 1 << 20),
        st.sampled_from(EDGES) | st.integers(LEAST, MOST) | st.integers(0, 1 << 20),
        st.sampled_from([0, 1, 1 << 24, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1),
    ),
    min_size=1, max_size=60,
)  # fmt: skip
"""(number, time, note)"""


@compiled
def _append(blocks: Any, user: Any, number: Any, time: Any, note: Any) -> None:
    for i in range(len(number)):
        append(blocks, user[0], number[i], time[i], note[i])


@compiled
def _read(blocks: Any, user: Any, number: Any, time: Any, note: Any) -> None:
    at = first_of(user[0])
    for i in range(len(number)):
        number[i], time[i], at = read(blocks, at)
        note[i] = at.note


@compiled
def _drop(blocks: Any, user: Any, count: int) -> None:
    drop(blocks, user[0], count)


def new_user() -> np.ndarray:
    user = np.zeros(1, USER)
    user["head"], user["last"] = -1, LEAST
    return user


def columns(rows: list[Event]) -> tuple[np.ndarray, ...]:
    number, time, note = zip(*rows, strict=True)
    return np.array(number, np.int64), np.array(time, np.int64), np.array(note, np.uint32)


def read_back(blocks: Any, user: np.ndarray, count: int) -> list[Event]:
    out = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.uint32)
    _read(blocks, user, *out)
    return list(zip(*(column.tolist() for column in out), strict=True))


def appended(rows: list[Event]) -> tuple[Any, np.ndarray]:
    blocks, user = blank(len(rows)), new_user()
    _append(blocks, user, *columns(rows))
    return blocks, user


def size_of(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def said(rows: list[Event]) -> int:
    """Bytes of the events, from the form that the module states."""
    latest, before, size = rows[0][1], rows[0][2], 0
    for number, time, note in rows:
        gap = (time - latest + (1 << 63)) % (1 << 64) - (1 << 63)
        size += size_of(2 * number + 1) + size_of(2 * gap if gap >= 0 else -2 * gap - 1)
        size += size_of(note ^ before) if note != before else 0
        latest, before = max(latest, time), note
    return size


@settings(max_examples=200, deadline=None)
@given(events, st.integers(0, 60))
@example([(1, LEAST, 0), (2, MOST, 0), (3, LEAST, (1 << 32) - 1), (4, 0, 0), (5, MOST, 0)], 3)
def test_every_event_comes_back_and_what_is_dropped_leaves_nothing(rows: list[Event], dropped: int) -> None:
    blocks, user = appended(rows)
    assert read_back(blocks, user, len(rows)) == rows
    assert blocks.free.tolist() == [-1, 0, -(-said(rows) // ROOM)]
    assert user["last"][0] == max(time for _, time, _ in rows)
    # another room is the same chain
    blocks = grown(blocks, 2 * len(rows) + 1)
    dropped = min(dropped, len(rows))
    _drop(blocks, user, dropped)
    assert read_back(blocks, user, len(rows) - dropped) == rows[dropped:]
    # and goes on
    _append(blocks, user, *columns(rows))
    assert read_back(blocks, user, 2 * len(rows) - dropped) == rows[dropped:] + rows
    drop_all(blocks, user, np.zeros(1, np.int64))
    assert blocks.free[1] == blocks.free[2]
    assert not blocks.data[:, :ROOM].any()


def test_canary_read_from_another_time_all_are_others() -> None:
    rows = [(1, 5, 7), (2, 9, 7)]
    blocks, user = appended(rows)
    user["since"] += 1
    assert read_back(blocks, user, 2) == [(1, 6, 7), (2, 10, 7)]


def test_the_longest_event_fits_a_block() -> None:
    """So that an event takes one new block at most, which is what room is made for."""
    rows = [(1, 0, 0), ((1 << 32) - 1, LEAST, (1 << 32) - 1)]
    assert said(rows) - said(rows[:1]) == 20 <= ROOM
    # the same from a block that is full but for any number of bytes
    for before in range(ROOM):
        blocks, _ = appended([(1, 0, 0)] * before + rows)
        assert blocks.free[2] <= -(-2 * before // ROOM) + 2


def test_blocks_are_of_the_size_that_they_say_and_lie_within_lines() -> None:
    blocks = blank(5)
    assert blocks.data.shape == (5, BLOCK)
    assert blocks.data.ctypes.data % LINE == 0
    assert np.shares_memory(blocks.data, blocks.next)
    assert blocks.next.ctypes.data == blocks.data.ctypes.data + ROOM
