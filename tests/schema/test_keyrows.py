"""The map from keys to rows and its compiled parts agree with a dictionary."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.schema.keyrows import KeyRows, find, insert, mix, remove, unique_places

keys = st.lists(st.integers(1, 40), unique=True, max_size=30)
# few distinct keys, so that they meet again; some share their low bits, some are at the ends
KEYS = st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1, *(i << 32 for i in range(1, 12)), *range(1000, 1012)])
KEY_ARRAYS = st.lists(KEYS, max_size=20).map(lambda keys: np.array(keys, np.uint64))


@settings(deadline=None)
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
        assert dict(zip(*(column.tolist() for column in table.items()), strict=True)) == oracle
        asked = np.arange(50, dtype=np.uint64)
        assert table.find(asked).tolist() == [oracle.get(key, -1) for key in range(50)]


@settings(max_examples=100, deadline=None)
@given(KEY_ARRAYS, KEY_ARRAYS)
def test_hash_kernels_agree_with_a_dict_when_nearly_full(put: np.ndarray, take: np.ndarray) -> None:
    put = np.unique(put[put != 0])
    slot_keys, slot_rows = np.zeros(32, np.uint64), np.zeros(32, np.int64)
    assert insert(slot_keys, slot_rows, put, np.arange(len(put))) == 0
    assert insert(slot_keys, slot_rows, put, np.arange(len(put)) + 100) == len(put)
    oracle = dict(zip(put.tolist(), range(len(put)), strict=True))
    assert remove(slot_keys, slot_rows, take).tolist() == [oracle.pop(key, -1) for key in take.tolist()]
    everything = np.concatenate((put, take))
    assert find(slot_keys, slot_rows, everything).tolist() == [oracle.get(key, -1) for key in everything.tolist()]
    assert np.count_nonzero(slot_keys) == len(oracle)


@settings(max_examples=100, deadline=None)
@given(KEY_ARRAYS)
def test_unique_places_agrees_with_numpy(keys: np.ndarray) -> None:
    unique, places = unique_places(keys)
    np.testing.assert_array_equal(unique[places], keys)
    assert unique[0] == 0
    assert sorted(unique.tolist()) == np.unique(np.append(keys, np.uint64(0))).tolist()


def test_mix_is_the_splitmix64_finaliser() -> None:
    # the first outputs of splitmix64 seeded with 0 and 1234567, as its published test vectors give them
    golden = 0x9E3779B97F4A7C15
    assert int(mix(np.uint64(golden))) == 0xE220A8397B1DCDAF
    assert int(mix(np.uint64((1234567 + golden) % 2**64))) == 6457827717110365317
