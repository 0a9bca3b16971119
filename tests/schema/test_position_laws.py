"""Position: a partial order with joins, and a text form that comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem.schema.errors import InvalidRecord
from mainstem.schema.position import START, Position

positions = st.dictionaries(st.integers(0, 3), st.integers(0, 5), max_size=4).map(Position)


@given(positions)
def test_it_is_reflexive_and_start_is_least(a: Position) -> None:
    assert a <= a
    assert a >= START
    assert not a < a


@given(positions, positions)
def test_it_is_antisymmetric(a: Position, b: Position) -> None:
    assert (a <= b and b <= a) == (a == b)
    assert (a < b) == (a <= b and a != b) == (b > a)
    assert (a <= b) == (b >= a)
    if a == b:
        assert hash(a) == hash(b)


@given(positions, positions, positions)
def test_it_is_transitive(a: Position, b: Position, c: Position) -> None:
    if a <= b and b <= c:
        assert a <= c


@given(positions, positions, positions)
def test_merge_is_the_least_upper_bound(a: Position, b: Position, c: Position) -> None:
    both = a.merge(b)
    assert a <= both
    assert b <= both
    assert (both <= c) == (a <= c and b <= c)
    assert both == b.merge(a)
    assert a.merge(b.merge(c)) == both.merge(c)
    assert a.merge(a) == a


@given(positions)
def test_text_comes_back(a: Position) -> None:
    assert Position.parse(str(a)) == a


def test_it_is_partial() -> None:
    """Canary: with two partitions not everything is comparable."""
    a, b = Position({0: 1}), Position({1: 1})
    assert not a <= b
    assert not b <= a


def test_a_partition_at_zero_is_not_there() -> None:
    assert Position({0: 0, 2: 0}) == START
    assert Position.at(0) == START
    assert (Position.at(7).offset(), Position.at(7).offset(1)) == (7, 0)


@pytest.mark.parametrize("text", ["", "0:1", "p0", "p0:x", "p-1:2", "p0:-2", "p0:1:2", "x"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRecord, match="is not a position") as caught:
        Position.parse(text, "after")
    assert caught.value.field == "after"
