"""The peak of a stretch is that stretch's, and told where the system tells it."""

from __future__ import annotations

import numpy as np
import pytest

from mainstem.evaluate import peak_memory
from mainstem.evaluate.peak_memory import PeakMemory


@pytest.mark.skipif(not peak_memory._reset(), reason="the system does not tell")
def test_what_was_held_before_counts_no_more() -> None:
    with PeakMemory() as high:
        held = np.ones(2**26, np.uint8)  # 64 MB, written
        del held
    with PeakMemory() as low:
        pass
    assert high.gib is not None
    assert low.gib is not None
    assert low.gib < high.gib - 0.04


def test_elsewhere_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "_RESET", peak_memory.Path("/nowhere/clear_refs"))
    with PeakMemory() as memory:
        pass
    assert memory.gib is None
