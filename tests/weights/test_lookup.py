import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mainstem.models.jagged import bag
from mainstem.models.losses import log_inclusion, sampled_softmax
from mainstem.schema.ids import key64
from mainstem.weights import Adagrad, Family, Lookup, SlabTable, lookup
from mainstem.weights.lookup import _cuts, _row_sums, _sums_on_device


def _keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_places_give_each_role_its_own_rows_and_every_key_is_gathered_once() -> None:
    table = SlabTable(4)
    gathered = Lookup(table).gather({"history": _keys(7, 8, 7), "target": _keys(9, 0, 8), "none": _keys()})
    assert gathered.rows.shape == (4, 4)
    assert gathered.rows.is_leaf
    assert gathered.rows.requires_grad
    assert (gathered.rows[0] == 0).all()
    assert {name: places.tolist() for name, places in gathered.places.items()} == {
        "history": [1, 2, 1],
        "target": [3, 0, 2],
        "none": [],
    }
    want = table.gather(table.find(_keys(9, 0, 8)))
    np.testing.assert_array_equal(gathered.rows[gathered.places["target"]].detach().numpy(), want)


def test_creation_is_per_role_and_what_is_not_created_reads_the_default() -> None:
    table = SlabTable(4)
    lookup = Lookup(table)
    serving = lookup.gather({"a": _keys(1, 2)}, create=False, gradient=False)
    assert len(table) == 0
    assert (serving.rows == 0).all()
    assert not serving.rows.requires_grad
    mixed = lookup.gather({"a": _keys(1, 2), "b": _keys(2, 3)}, create={"b"})
    assert len(table) == 2
    assert mixed.places["a"][0] == 0
    assert mixed.places["a"][1] == mixed.places["b"][0] > 0
    with pytest.raises(ValueError, match="typo"):
        lookup.gather({"a": _keys(1)}, create={"typo"})


def test_the_gradient_of_a_step_is_applied_once_per_row() -> None:
    table, plain = SlabTable(2), SlabTable(2)
    keys = _keys(5, 6, 7)
    rows = plain.find_or_create(keys)
    lookup = Lookup(table)
    gathered = lookup.gather({"a": _keys(5, 5, 6), "b": _keys(5, 7, 0)})
    (2.0 * gathered.rows[gathered.places["a"]].sum() + gathered.rows[gathered.places["b"]].sum()).backward()
    lookup.apply_gradients(0.1)
    # key 5 is met three times: one update with the summed gradient, not three
    plain.update(rows, np.array([[5, 5], [2, 2], [1, 1]], np.float32), 0.1)
    np.testing.assert_array_equal(table.gather(table.find(keys)), plain.gather(rows))
    assert (table.gather(np.array([-1])) == 0).all()
    with pytest.raises(RuntimeError, match="gather"):
        lookup.apply_gradients(0.1)


def test_an_empty_step_and_rows_without_gradient_change_nothing() -> None:
    table = SlabTable(2)
    lookup = Lookup(table)
    assert lookup.gather({}).rows.shape == (1, 2)
    lookup.gather({"a": _keys(1)})
    before = table.state()["values"]
    lookup.apply_gradients(1.0)
    np.testing.assert_array_equal(table.state()["values"], before)


def test_the_checkerboard_is_learned_through_lookups() -> None:
    """Even users take even items, odd users odd ones; ids are keys, rows are made as they are met."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    n, b = 30, 64
    users = np.array([key64("user", str(i)) for i in range(n)], np.uint64)
    items = np.array([key64("item", str(i)) for i in range(n)], np.uint64)
    table = SlabTable(16)
    lookup = Lookup(table)
    log_q = log_inclusion(torch.full((b,), 1 / n), b - 1, 0, n)

    def step(who: np.ndarray, what: np.ndarray, history: np.ndarray, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        roles = {"user": users[who], "history": items[history.ravel()], "target": items[what]}
        gathered = lookup.gather(roles, create=train, gradient=train)
        past = bag(gathered.rows, gathered.places["history"], torch.arange(len(who) + 1) * 2)
        return normalize(gathered.take("user") + past, dim=1), normalize(gathered.take("target"), dim=1)

    for _ in range(100):
        who = random.integers(0, n, b)
        what = random.integers(0, n // 2, b) * 2 + who % 2
        history = random.integers(0, n // 2, (b, 2)) * 2 + who[:, None] % 2
        u, v = step(who, what, history, train=True)
        sampled_softmax(u, v, torch.from_numpy(what), log_q, temperature=0.2).backward()
        lookup.apply_gradients(0.05)
    everyone = np.arange(n)
    with torch.no_grad():
        u, v = step(everyone, everyone, np.tile([0, 2], (n, 1)) + everyone[:, None] % 2, train=False)
        top = (u @ v.T).topk(n // 2).indices
    assert (top % 2 == torch.arange(n)[:, None] % 2).float().mean() == 1.0
    assert len(table) == 2 * n


class _Noting(SlabTable):
    """A table of two families, which notes what it was asked to create."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, (Family("first"), Family("second")))
        self.asked: dict[int, tuple[int, int, int]] = {}

    def find_or_create(
        self, keys: np.ndarray, family: int = 0, time: int = 0, sights: np.ndarray | None = None
    ) -> np.ndarray:
        assert sights is not None
        for key, seen in zip(keys.tolist(), sights.tolist(), strict=True):
            if key:
                assert key not in self.asked, "each key is asked for once a look-up"
                self.asked[key] = (family, time, seen)
        return super().find_or_create(keys, family, time, sights)


def test_creation_says_family_time_and_how_often_a_key_was_seen() -> None:
    table = _Noting(2)
    roles = {"a": _keys(1, 2, 1), "b": _keys(3, 2, 0), "c": _keys(4, 1, 4), "d": _keys(3, 5)}
    gathered = Lookup(table).gather(roles, create={"b", "c", "d"}, families={"a": 1, "b": 1, "d": 1}, time=77)
    # `a` creates nothing: its sights do not count; 3 is seen in b and d, 1 and 4 belong to c, whose family is 0
    assert table.asked == {1: (0, 77, 1), 2: (1, 77, 1), 3: (1, 77, 2), 4: (0, 77, 2), 5: (1, 77, 1)}
    for name, keys in roles.items():
        want = table.gather(table.find(keys))
        np.testing.assert_array_equal(gathered.rows[gathered.places[name]].detach().numpy(), want)
    with pytest.raises(ValueError, match="typo"):
        Lookup(table).gather(roles, families={"typo": 1})


def test_keys_that_every_role_shares_take_the_first_creating_family() -> None:
    table = _Noting(2)
    Lookup(table).gather({"a": _keys(9), "b": _keys(9), "c": _keys(9)}, create={"b", "c"}, families={"b": 1})
    assert table.asked == {9: (1, 0, 2)}


def test_a_key_seen_often_enough_in_one_step_is_admitted_at_once() -> None:
    table = SlabTable(2, (Family("user"), Family("item", admit_after=3)))
    lookup = Lookup(table)
    roles = {"history": _keys(7, 8, 7), "target": _keys(7, 9, 0), "query": _keys(8)}
    families = {"history": 1, "target": 1}
    gathered = lookup.gather(roles, families=families, create={"history", "target"})
    assert gathered.places["history"].tolist() == [1, 0, 1], "7 was seen three times, 8 only once where it counts"
    assert table.counts() == {"user": 0, "item": 1}
    lookup.gather(roles, families=families)
    # 8 is at 1 + 2 sights now; 9 at 2
    assert table.counts() == {"user": 0, "item": 2}
    np.testing.assert_array_equal(table.find(_keys(8, 9)) >= 0, [True, False])


def test_the_time_of_a_look_up_keeps_rows_from_expiring() -> None:
    table = SlabTable(2, (Family(expire=10_000),))
    lookup = Lookup(table)
    lookup.gather({"a": _keys(1, 2)}, time=1_000)
    lookup.gather({"a": _keys(2)}, time=9_000)
    lookup.gather({"a": _keys(1)}, time=9_000, create=False, gradient=False)  # serving marks nothing as seen
    assert table.sweep(15_000, 100) == 1
    np.testing.assert_array_equal(table.find(_keys(1, 2)) >= 0, [False, True])


def test_rows_that_another_family_evicts_in_the_same_look_up_read_the_default() -> None:
    """`old` has a row of the bounded family and is looked up under another: it may lose its row to `new`."""
    table = SlabTable(2, (Family("open"), Family("bounded", capacity=1)))
    lookup = Lookup(table)
    old, new = _keys(5), _keys(6)
    lookup.gather({"a": old}, families={"a": 1})
    gathered = lookup.gather({"old": old, "new": new}, families={"new": 1}, time=2_000)
    for name, keys in (("old", old), ("new", new)):
        want = table.gather(table.find(keys))
        np.testing.assert_array_equal(gathered.rows[gathered.places[name]].detach().numpy(), want)


def test_keys_of_another_type_are_refused() -> None:
    for wrong in (np.array([1, 2]), np.array([1.0]), np.array([[1]], np.uint64)):
        with pytest.raises(TypeError, match="role 'a' must be uint64"):
            Lookup(SlabTable(2)).gather({"a": wrong})


def _places_and_weights(seed: int, n: int, kinds: int) -> tuple[np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, kinds, n).astype(np.uint64), torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    kinds=st.integers(1, 12),
    taken=st.sampled_from(["a", "b", "a b", "b a", "a b a"]),
)
def test_taking_is_indexing_forward_and_backward(seed: int, sizes: tuple[int, int], kinds: int, taken: str) -> None:
    """Any mixture of takes and indexings of both roles gives the loss and the gradient of indexing alone."""
    roles, weights = {}, {}
    for number, name in enumerate("ab"):
        roles[name], weights[name] = _places_and_weights(seed + number, sizes[number], kinds)
    table = SlabTable(3)
    results = []
    for take in (True, False):
        gathered = Lookup(table).gather(roles)
        loss = torch.zeros(())
        for name in [*taken.split(), "plain"]:
            if name == "plain":  # indexing beside the takes, in both runs
                loss = loss + (gathered.rows[gathered.places["a"]] * weights["a"]).sum()
            else:
                each = gathered.take(name) if take else gathered.rows[gathered.places[name]]
                assert each.shape == (len(roles[name]), 3)
                loss = loss + (each.square() * weights[name]).sum()
        loss.backward()
        assert gathered.rows.grad is not None
        results.append((loss.detach().numpy(), gathered.rows.grad.numpy()[1:]))  # row 0 does not learn
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


def _one_gradient(threads: int) -> np.ndarray:
    """The gradient of a take that is large enough to be cut into parts, many places a row."""
    keys, weights = _places_and_weights(5, 40_000, 3000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gathered = Lookup(SlabTable(3)).gather({"a": keys})
        (gathered.take("a") * weights).sum().backward()
    finally:
        torch.set_num_threads(before)
    assert gathered.rows.grad is not None
    return gathered.rows.grad.numpy()


def test_sums_are_in_the_order_of_places_whatever_the_threads() -> None:
    keys, weights = _places_and_weights(5, 40_000, 3000)
    places = Lookup(SlabTable(3)).gather({"a": keys}).places["a"].numpy()
    want = np.zeros((places.max() + 1, 3), np.float32)
    np.add.at(want, places, weights.numpy())  # one after the other, in float32
    want[0] = 0
    for threads in (1, 2):
        np.testing.assert_array_equal(_one_gradient(threads), want)
    # the canary: sums in another order, and the last gradient in place of the sum, are told apart
    backwards, last = np.zeros_like(want), np.zeros_like(want)
    np.add.at(backwards, places[::-1], weights.numpy()[::-1])
    last[places] = weights.numpy()
    assert (backwards[1:] != want[1:]).any()
    assert (last[1:] != want[1:]).any()


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_a_gradient_is_cut_into_parts_that_share_no_row(count: int) -> None:
    """However uneven the places are; all rows are somebody's."""
    for places in (np.zeros(999, np.int64), np.arange(999), np.repeat([3, 0, 5], [900, 9, 90]), np.zeros(0, np.int64)):
        rows = int(places.max(initial=0)) + 1
        bounds = _cuts(places, rows, count if len(places) else 1)
        assert bounds[0] == 0
        assert bounds[-1] == rows
        assert (np.diff(bounds) >= 0).all()
    evenly = np.diff(_cuts(np.arange(16_000), 16_000, count))
    assert evenly.max() - evenly.min() <= 2 * 16


@pytest.mark.parametrize("threads", [1, 2])
def test_keys_are_told_apart_in_parts_as_in_one_piece(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_LEAST_KEYS", 100)
    keys = np.random.default_rng(6).integers(0, 700, 2000).astype(np.uint64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gathered = Lookup(SlabTable(3)).gather({"a": keys[:1500], "b": keys[1500:]})
    finally:
        torch.set_num_threads(before)
    _, first = np.unique(keys, return_index=True)
    order = np.sort(first[keys[first] != 0])
    number = {int(keys[place]): 1 + rank for rank, place in enumerate(order)} | {0: 0}
    got = torch.cat([gathered.places["a"], gathered.places["b"]]).tolist()
    assert got == [number[int(key)] for key in keys], "numbers stand in the order of first appearance"


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_step_of_a_look_up_is_the_tables_own_step(concurrent: bool) -> None:
    """Lookup says that its rows are distinct; a table that is not told makes the same step, beside readers too."""
    tables = [
        SlabTable(4, (Family(), Family("wide", optimizer=Adagrad())), concurrent=each) for each in (concurrent, False)
    ]
    keys = _keys(3, 1, 4, 1, 5, 9, 2, 6)
    for step in range(3):
        looking = Lookup(tables[0])
        rows = looking.gather({"a": keys, "b": keys[:3] + np.uint64(100)}, families={"b": 1}).rows
        (rows.square().sum() + (step + 1) * rows.sum()).backward()
        slope = 2 * rows.detach().numpy() + (step + 1)
        looking.apply_gradients(0.1)
        mine = tables[1].find_or_create(keys), tables[1].find_or_create(keys[:3] + np.uint64(100), 1)
        named = np.unique(np.concatenate(mine))
        plain = 2 * tables[1].gather(named) + (step + 1)
        assert {row.tobytes() for row in plain} == {row.tobytes() for row in slope[1:]}
        tables[1].update(named, plain, 0.1)
    one, two = (table.state() for table in tables)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_the_default_row_gets_no_gradient_from_a_take() -> None:
    gathered = Lookup(SlabTable(2)).gather({"a": _keys(0, 5, 0), "unknown": _keys(6, 7)}, create={"a"})
    (gathered.take("a").sum() + gathered.take("unknown").sum()).backward()
    assert gathered.rows.grad is not None
    assert gathered.rows.grad.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_steps_of_takes_move_the_table_as_indexing_does() -> None:
    tables = [SlabTable(3), SlabTable(3)]
    for step in range(5):
        keys, weights = _places_and_weights(step, 50, 20)
        for table, take in zip(tables, (True, False), strict=True):
            lookup = Lookup(table)
            gathered = lookup.gather({"a": keys})
            each = gathered.take("a") if take else gathered.rows[gathered.places["a"]]
            (each.square() * weights).sum().backward()
            lookup.apply_gradients(0.1)
    one, two = (table.state() for table in tables)
    np.testing.assert_array_equal(one["keys"], two["keys"])
    np.testing.assert_allclose(one["values"], two["values"], rtol=1e-5, atol=1e-6)


def test_sums_on_a_device_are_those_of_the_compiled_loop() -> None:
    rng = np.random.default_rng(0)
    places, gradients = rng.integers(0, 9, 300), rng.normal(size=(300, 5)).astype(np.float32)
    want = _row_sums(places, gradients, 9)
    got = _sums_on_device(torch.from_numpy(places), torch.from_numpy(gradients), 9)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)
    assert not want[0].any(), "the default row does not learn"
    assert want[1:].any(axis=1).all()
