"""What only shows at size: twenty million keys, and memory as the formula says."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mainstem.weights.slabs import SlabTable

pytestmark = pytest.mark.slow
BATCH = 1_000_000


def _keys(first: int, stop: int) -> np.ndarray:
    """Distinct, scattered over all 64 bits: an odd factor is a bijection."""
    return np.arange(first, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _signature(keys: np.ndarray) -> np.ndarray:
    """A row that says whose it is: the key's four quarters."""
    return keys.view(np.uint16).reshape(-1, 4).astype(np.float32)


@pytest.mark.parametrize("count", [20_000_000])
def test_twenty_million_keys_come_and_go_and_none_is_lost_or_mixed(count: int) -> None:
    table = SlabTable(4, most_rows=count)
    batches = [(first, first + BATCH) for first in range(1, count + 1, BATCH)]
    for first, stop in batches:
        keys = _keys(first, stop)
        table.write(keys, _signature(keys))
    assert len(table) == count

    def check(halved: bool) -> None:
        for first, stop in batches:
            keys = _keys(first, stop)
            want = _signature(keys)
            if halved:
                want[::2] = 0
                assert (table.find(keys[::2].copy()) == -1).all()
            np.testing.assert_array_equal(table.read(keys), want)

    check(halved=False)
    for first, stop in batches:
        assert table.delete(_keys(first, stop)[::2].copy()) == BATCH // 2
    assert len(table) == count // 2
    check(halved=True)
    for first, stop in reversed(batches):
        keys = _keys(first, stop)[::2].copy()
        table.write(keys, _signature(keys))
    assert len(table) == table._body.high == count  # rows were used again
    check(halved=False)
    rows = np.concatenate([table.find(_keys(first, stop)) for first, stop in batches])
    rows.sort()
    np.testing.assert_array_equal(rows, np.arange(count))


@pytest.mark.parametrize(("dim", "optimizer"), [(8, "RowwiseAdagrad"), (16, "RowwiseAdagrad"), (16, "Adam")])
def test_the_process_grows_as_predicted(dim: int, optimizer: str) -> None:
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        import numpy as np
        from mainstem.weights import family
        from mainstem.weights.slabs import SlabTable

        def resident():
            text = Path("/proc/self/smaps_rollup").read_text()
            return 1024 * int(text.split("Rss:")[1].split()[0])

        def fill(table, rows):
            rng = np.random.default_rng(0)
            for _ in range(rows // 20_000):
                keys = rng.integers(1, 2**63, 20_000).astype(np.uint64)
                table.update(table.find_or_create(keys), np.ones((20_000, {dim}), np.float32), 0.1)

        rule = family.Family(optimizer=family.{optimizer}())
        fill(SlabTable({dim}, (rule,)), 20_000)  # the compiled code is in memory now
        before = resident()
        table = SlabTable({dim}, (rule,))
        fill(table, 2_000_000)
        memory = table.explain()
        assert memory.rows == 2_000_000
        print(resident() - before, memory.predicted, memory.total)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, predicted, total = map(int, done.stdout.split())
    assert abs(grown / predicted - 1) < 0.1, (grown, predicted)
    assert total == predicted
