from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem.evaluate import Latency

times = st.lists(st.floats(0.0011, 1e5), min_size=1, max_size=200)


@given(times, st.floats(0.01, 1.0))
def test_a_percentile_is_within_one_percent(values: list[float], share: float) -> None:
    latency = Latency()
    for value in values:
        latency.add(value)
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert latency.percentile(share) == pytest.approx(exact, rel=0.0101)


@given(times)
def test_state_and_histogram_lose_nothing(values: list[float]) -> None:
    latency = Latency()
    for value in values:
        latency.add(value)
    assert Latency.of(json.loads(json.dumps(latency.state()))) == latency
    bars = latency.histogram(bins=10)
    assert sum(count for _, _, count in bars) == len(values)
    assert len(bars) <= 10
    assert bars[0][0] < min(values)
    assert max(values) <= bars[-1][1] * 1.0001


def test_nothing_measured_is_none_and_zero_is_a_time() -> None:
    assert Latency().summary() == {"p50": None, "p99": None}
    assert Latency().histogram() == []
    latency = Latency()
    latency.add(0.0)
    assert latency.percentile(0.5) == 0.0
