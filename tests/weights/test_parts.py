import threading
from collections.abc import Iterator

import numba
import numpy as np
import pytest
import torch

from mainstem.schema.keyrows import mix
from mainstem.weights.parts import owner, parts


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_work_is_cut_as_torchs_setting_says_and_small_work_is_not() -> None:
    most = min(2, numba.config.NUMBA_NUM_THREADS)
    before = numba.get_num_threads()
    with parts(1000, 100) as count:
        assert count == most
        assert numba.get_num_threads() == (most if most > 1 else before)
    assert numba.get_num_threads() == before
    with parts(199, 100) as count:
        assert count == 1
    torch.set_num_threads(1)
    with parts(1000, 100) as count:
        assert count == 1


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core has no parts to give")
@pytest.mark.usefixtures("_two_threads")
def test_who_comes_second_works_in_one_piece_and_does_not_wait() -> None:
    met: list[int] = []

    def second() -> None:
        with parts(1000, 100) as count:
            met.append(count)

    def run() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=30)

    with parts(1000, 100) as count:
        assert count == 2
        run()
    run()
    with pytest.raises(KeyError), parts(1000, 100):  # what fails gives the threads back too
        raise KeyError
    run()
    assert met == [1, 2, 2]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core has no parts to give")
@pytest.mark.usefixtures("_two_threads")
def test_torch_keeps_its_threads_where_numba_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its first answer does where both have the same OpenMP library."""
    real = numba.get_num_threads

    def greedy() -> int:
        torch.set_num_threads(7)
        return real()

    monkeypatch.setattr(numba, "get_num_threads", greedy)
    with parts(1000, 100):
        assert torch.get_num_threads() == 7, "canary: it was changed"
    assert torch.get_num_threads() == 2


def test_owners_are_in_range_and_even() -> None:
    for count in (1, 2, 3, 7):
        owned = np.array([owner(np.uint64(mix(np.uint64(number))), count) for number in range(7000)])
        shares = np.bincount(owned, minlength=count) / 7000
        assert len(shares) == count
        assert (abs(shares - 1 / count) < 0.03).all()
