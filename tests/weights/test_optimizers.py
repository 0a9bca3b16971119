"""Steps, compiled ones and those of `weights.device`, against torch's optimizers on a dense matrix, and against the
formulas written in plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.weights.device.optimizers import step, summed
from mainstem.weights.family import Adagrad, Adam, Ftrl, Optimizer, RowwiseAdagrad
from mainstem.weights.optimizers import all_finite, apply

OPTIMIZERS = [RowwiseAdagrad(), Adagrad(), Adam(), Ftrl(l1=0.1, l2=0.2)]
RATE = 0.05

Step = tuple[np.ndarray, np.ndarray]


def _plain(optimizer: Optimizer, w: np.ndarray, s: dict[str, np.ndarray], g: np.ndarray) -> None:
    """The step of one row, in float64 and by the book; `s` holds the row's state by name."""
    if isinstance(optimizer, RowwiseAdagrad):
        s["a"] += (g**2).mean()
        w -= RATE * g / (np.sqrt(s["a"]) + optimizer.epsilon)
    elif isinstance(optimizer, Adagrad):
        s["a"] += g**2
        w -= RATE * g / (np.sqrt(s["a"]) + optimizer.epsilon)
    elif isinstance(optimizer, Adam):
        s["t"] += 1
        s["m"] *= optimizer.beta1
        s["m"] += (1 - optimizer.beta1) * g
        s["v"] *= optimizer.beta2
        s["v"] += (1 - optimizer.beta2) * g**2
        m = s["m"] / (1 - optimizer.beta1 ** s["t"])
        v = s["v"] / (1 - optimizer.beta2 ** s["t"])
        w -= RATE * m / (np.sqrt(v) + optimizer.epsilon)
    else:
        sigma = (np.sqrt(s["n"] + g**2) - np.sqrt(s["n"])) / RATE
        s["z"] += g - sigma * w
        s["n"] += g**2
        shrunk = np.where(np.abs(s["z"]) <= optimizer.l1, 0.0, s["z"] - np.sign(s["z"]) * optimizer.l1)
        w[:] = -shrunk / ((optimizer.beta + np.sqrt(s["n"])) / RATE + optimizer.l2)


def _by_the_book(optimizer: Optimizer, values: np.ndarray, steps: list[Step]) -> np.ndarray:
    w = values.astype(np.float64)
    state = [{name: np.zeros(w.shape[1]) for name in "amvtnz"} for _ in w]
    for rows, gradients in steps:
        for row in sorted(set(rows.tolist()) - {-1}):
            _plain(optimizer, w[row], state[row], gradients[rows == row].astype(np.float64).sum(axis=0))
    return w


def _run(optimizer: Optimizer, values: np.ndarray, steps: list[Step], extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """values and state after the steps; the state is `extra` columns wider than it must be."""
    values = values.copy()
    state = np.zeros((len(values), optimizer.state_width(values.shape[1]) + extra), np.float32)
    for rows, gradients in steps:
        apply(optimizer, values, state, rows, gradients, RATE)
    return values, state


def _run_in_torch(
    optimizer: Optimizer, values: np.ndarray, steps: list[Step], extra: int = 0, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """`_run` by the steps of a table on a device."""
    w = torch.from_numpy(values.copy()).to(device)
    state = torch.zeros((len(values), optimizer.state_width(values.shape[1]) + extra), device=device)
    for rows, gradients in steps:
        mine = torch.from_numpy(np.asarray(rows, np.int64)).to(device)
        g = torch.from_numpy(gradients).to(device)
        step(optimizer, w, state, *summed(mine[mine >= 0], g[mine >= 0]), RATE)
    return w.cpu().numpy(), state.cpu().numpy()


_on_gpu = pytest.param(
    partial(_run_in_torch, device="cuda"),
    id="cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)
every_way = pytest.mark.parametrize(
    "run", [pytest.param(_run, id="compiled"), pytest.param(_run_in_torch, id="torch"), _on_gpu]
)


def _made(seed: int, capacity: int, dim: int, sizes: list[int], zero: bool = False) -> tuple[np.ndarray, list[Step]]:
    rng = np.random.default_rng(seed)
    values = (0 if zero else 1) * rng.normal(size=(capacity, dim)).astype(np.float32)
    return values, [(rng.integers(-1, capacity, n), rng.normal(size=(n, dim)).astype(np.float32)) for n in sizes]


@every_way
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    capacity=st.integers(1, 9),
    dim=st.integers(1, 20),
    sizes=st.lists(st.integers(0, 30), max_size=8),
    extra=st.integers(0, 3),
)
def test_every_sequence_of_steps_follows_the_formula(
    run: Callable[..., Step], optimizer: Optimizer, seed: int, capacity: int, dim: int, sizes: list[int], extra: int
) -> None:
    values, steps = _made(seed, capacity, dim, sizes)
    got, state = run(optimizer, values, steps, extra)
    np.testing.assert_allclose(got, _by_the_book(optimizer, values, steps), rtol=2e-3, atol=2e-4)
    assert (state[:, optimizer.state_width(dim) :] == 0).all(), "columns of other families are not this one's"


@every_way
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param((RowwiseAdagrad(), RowwiseAdagrad(epsilon=0.1)), id="another epsilon"),
        pytest.param((Adagrad(), RowwiseAdagrad()), id="a row's mean for each coordinate's own"),
        pytest.param((Adam(), Adam(beta2=0.99)), id="another decay"),
        pytest.param((Ftrl(l1=0.1), Ftrl()), id="no shrinking"),
    ],
)
def test_the_comparison_tells_wrong_steps_apart(run: Callable[..., Step], wrong: tuple[Optimizer, Optimizer]) -> None:
    """The canary: what differs by one term, or by its sign, fails the test above."""
    values, steps = _made(1, 6, 4, [20] * 12, zero=True)
    right = _by_the_book(wrong[0], values, steps)
    for other in (run(wrong[1], values, steps)[0], run(wrong[0], values, [(r, -g) for r, g in steps])[0]):
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(other, right, rtol=2e-3, atol=2e-4)


def _torch_optimizer(optimizer: Optimizer) -> Callable[[torch.nn.Parameter], torch.optim.Optimizer]:
    if isinstance(optimizer, Adagrad):
        return lambda p: torch.optim.Adagrad([p], lr=RATE, eps=optimizer.epsilon)
    assert isinstance(optimizer, Adam)
    betas = (optimizer.beta1, optimizer.beta2)
    return lambda p: torch.optim.SparseAdam([p], lr=RATE, betas=betas, eps=optimizer.epsilon)


@every_way
@pytest.mark.parametrize("optimizer", [Adagrad(), Adam()], ids=repr)
@pytest.mark.parametrize("every", [True, False], ids=["all rows each step", "some rows"])
def test_torch_makes_the_same_steps(run: Callable[..., Step], optimizer: Optimizer, every: bool) -> None:
    """One torch optimizer for each row, given only the steps in which the row has a gradient: SparseAdam counts steps
    for the matrix, ours for the row, and so the two mean the same."""
    values, steps = _made(2, 12, 8, [60] * 20)
    if every:
        steps = [(np.concatenate([np.arange(12), rows[:48]]), gradients) for rows, gradients in steps]
    parameters = [torch.nn.Parameter(torch.from_numpy(values[row : row + 1].copy())) for row in range(12)]
    peers = [_torch_optimizer(optimizer)(p) for p in parameters]
    for rows, gradients in steps:
        for row in sorted(set(rows.tolist()) - {-1}):
            total = torch.from_numpy(gradients[rows == row]).sum(dim=0, keepdim=True)
            parameters[row].grad = total.to_sparse(1) if isinstance(optimizer, Adam) else total
            peers[row].step()
    want = torch.cat([p.detach() for p in parameters]).numpy()
    np.testing.assert_allclose(run(optimizer, values, steps)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_threads_do_not_change_a_bit(optimizer: Optimizer) -> None:
    values, steps = _made(3, 5000, 16, [12_000, 12_000])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(_run(optimizer, values, steps))
            assert torch.get_num_threads() == threads, "the steps leave torch's setting alone"
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_steps_of_rows_known_to_be_distinct_are_the_same_to_the_bit(optimizer: Optimizer, threads: int) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(6000, 16)).astype(np.float32)
    steps = []
    for n in (1, 5000, 5000):
        rows = rng.permutation(6000)[:n]
        rows[:: 7 if n > 1 else 2] = -1  # what is skipped may repeat
        steps.append((rows, rng.normal(size=(n, 16)).astype(np.float32)))
    want = _run(optimizer, values, steps)
    fast, state = values.copy(), np.zeros_like(want[1])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows, gradients in steps:
            apply(optimizer, fast, state, rows, gradients, RATE, distinct=True)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(fast, want[0])
    np.testing.assert_array_equal(state, want[1])
    assert (fast != values).any()


def test_gradients_of_a_row_are_summed_in_float32_in_the_order_they_stand() -> None:
    gradients = np.array([[1e8], [1.0], [-1e8], [3.0]], np.float32)
    once, _ = _run(Adagrad(), np.zeros((1, 1), np.float32), [(np.zeros(4, np.int64), gradients)])
    summed = ((gradients[0] + gradients[1]) + gradients[2]) + gradients[3]
    want, _ = _run(Adagrad(), np.zeros((1, 1), np.float32), [(np.zeros(1, np.int64), summed[None])])
    assert summed == 3.0, "another order would give 4 or 0"
    np.testing.assert_array_equal(once, want)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=_on_gpu.marks)])
def test_on_a_device_pairs_of_neighbours_are_summed_first(device: str) -> None:
    """In float32 and in an order of its own, but always the same."""
    gradients = torch.tensor([[1.0], [7.0], [1e8], [-1e8], [3.0], [5.0]], device=device)
    rows, totals = summed(torch.tensor([4, 2, 4, 4, 4, 0], device=device), gradients)
    assert rows.tolist() == [0, 2, 4]
    assert totals[:2, 0].tolist() == [5.0, 7.0]
    one, other = np.float32(1.0) + np.float32(1e8), np.float32(-1e8) + np.float32(3.0)
    assert totals[2, 0] == one + other, "one after the other gives another sum"
    long = torch.ones(1001, 3, device=device)
    assert summed(torch.zeros(1001, dtype=torch.int64, device=device), long)[1].tolist() == [[1001.0] * 3]


@every_way
def test_a_wide_weight_without_evidence_is_exactly_zero(run: Callable[..., Step]) -> None:
    gradients = np.array([[0.05, 5.0]], np.float32)
    values, _ = run(Ftrl(l1=1.0), np.zeros((1, 2), np.float32), [(np.zeros(1, np.int64), gradients)])
    assert values[0, 0] == 0.0
    assert values[0, 1] < 0.0


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    values, state = np.ones((3, 2), np.float32), np.zeros((3, 1), np.float32)
    rows, gradients = np.array([0, 1]), np.ones((2, 2), np.float32)
    call: list[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = [
        ("rows must lie", (values, state, np.array([0, 3]), gradients)),
        ("rows must lie", (values, state, np.array([0, -2]), gradients)),
        ("rows must be", (values, state, rows.astype(np.int32), gradients)),
        ("gradients must be", (values, state, rows, np.ones((2, 3), np.float32))),
        ("gradients must be", (values, state, rows, np.ones((2, 2)))),
        ("gradients must be", (values, state, rows, np.ones((2, 4), np.float32)[:, ::2])),
        ("state must be", (values, np.zeros((2, 1), np.float32), rows, gradients)),
        ("state must be", (values, np.zeros((3, 0), np.float32), rows, gradients)),
    ]
    for message, given_ in call:
        with pytest.raises(ValueError, match=message):
            apply(RowwiseAdagrad(), *given_, RATE)
    for rate, optimizer in ((float("nan"), Adagrad()), (0.0, Ftrl())):
        with pytest.raises(ValueError, match="learning rate"):
            apply(optimizer, values, np.zeros((3, 4), np.float32), rows, gradients, rate)
    assert (values == 1).all()
    assert (state == 0).all()


@pytest.mark.parametrize("n", [0, 1, 5000])
@pytest.mark.parametrize("dim", [1, 7, 16, 37])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(n: int, dim: int) -> None:
    rng = np.random.default_rng(n + dim)
    gradients = rng.normal(size=(n, dim)).astype(np.float32)
    gradients.flat[: min(3, gradients.size)] = [3e38, -3e38, 1e-45][: min(3, gradients.size)]
    assert all_finite(gradients), "the largest and the smallest numbers are finite"
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for wrong in (np.inf, -np.inf, np.nan):
                for place in {0, gradients.size - 1, int(rng.integers(0, max(1, gradients.size)))} if n else ():
                    spoilt = gradients.copy()
                    spoilt.flat[place] = wrong
                    assert not all_finite(spoilt)
    finally:
        torch.set_num_threads(before)
