"""The map from keys to rows agrees with a dictionary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mainstem.schema.keyrows import KeyRows

keys = st.lists(st.integers(1, 40), unique=True, max_size=30)


@given(st.lists(st.tuples(st.booleans(), keys), max_size=20))
def test_put_remove_and_find_agree_with_a_dictionary(steps: list[tuple[bool, list[int]]]) -> None:
    table, oracle = KeyRows(), dict[int, int]()
    for number, (put, some) in enumerate(steps):
        named = np.array(some, np.uint64)
        if put:
            rows = np.arange(len(some)) + 100 * number
            table.put(named, rows)
            oracle |= dict(zip(some, rows.tolist(), strict=True))
        else:
            assert table.remove(named).tolist() == [oracle.pop(key, -1) for key in some]
        assert len(table) == len(oracle)
        asked = np.arange(50, dtype=np.uint64)
        assert table.find(asked).tolist() == [oracle.get(key, -1) for key in range(50)]
