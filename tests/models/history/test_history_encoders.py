"""Laws of every history encoder: causal, each history by itself, the fast path equal to the plain one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from histories import (
    ACTIONS,
    ATTENTIVE,
    CANVASES,
    DIM,
    ENCODERS,
    LENGTHS,
    TIMED,
    batch,
    encoder,
    piece,
    plain,
    shaken,
    states_and_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.models.history import HSTU, EventConfig, Histories, HSTUConfig, Transformer, TransformerConfig
from mainstem.models.history.rotary import turns

each = pytest.mark.parametrize("name", ENCODERS)
some = settings(max_examples=15, deadline=None)


@each
@some
@given(data=st.data())
def test_a_later_event_changes_no_earlier_state_and_no_other_history(name: str, data: st.DataObject) -> None:
    lengths = data.draw(LENGTHS.filter(any))
    histories, made = batch(lengths), shaken(name)
    event = data.draw(st.integers(0, sum(lengths) - 1))
    here = torch.arange(sum(lengths)) == event
    changed = replace(
        histories,
        rows=torch.where(here[:, None], histories.rows + 1, histories.rows),
        action=torch.where(here, (histories.action + 1) % ACTIONS, histories.action),
        canvas=torch.where(here, (histories.canvas + 1) % CANVASES, histories.canvas),
        value=torch.where(here, histories.value + 5, histories.value),
    )
    before, after = made(histories), made(changed)
    user = int(torch.searchsorted(histories.offsets, event, right=True)) - 1
    end = int(histories.offsets[user + 1])
    may = torch.zeros(len(here), dtype=torch.bool)
    may[event:end] = True
    torch.testing.assert_close(after[~may], before[~may], rtol=0, atol=0)
    assert (after[event] - before[event]).abs().max() > 1e-3  # canary: the change is seen at all


@each
@some
@given(data=st.data())
def test_a_later_time_changes_no_state_before_the_one_that_waits_for_it(name: str, data: st.DataObject) -> None:
    lengths = data.draw(LENGTHS.filter(any))
    histories, made = batch(lengths), shaken(name)
    event = data.draw(st.integers(0, sum(lengths) - 1))
    user = int(torch.searchsorted(histories.offsets, event, right=True)) - 1
    end = int(histories.offsets[user + 1])
    # this event and those after it come an hour later
    later = (torch.arange(sum(lengths)) >= event) & (torch.arange(sum(lengths)) < end)
    assert histories.query_time is not None
    asked = histories.query_time + 3_600_000 * (torch.arange(len(lengths)) == user)
    before, after = made(histories), made(replace(histories, time=histories.time + 3_600_000 * later, query_time=asked))
    start = max(event - 1, int(histories.offsets[user])) if "query" in name else event
    kept = torch.ones(len(later), dtype=torch.bool)
    kept[start:end] = False
    torch.testing.assert_close(after[kept], before[kept], rtol=0, atol=0)


@each
@some
@given(lengths=LENGTHS)
def test_a_history_is_encoded_alone_as_in_any_batch(name: str, lengths: list[int]) -> None:
    histories, made = batch(lengths), shaken(name)
    states = made(histories)
    for i in range(len(lengths)):
        alone = piece(histories, slice(i, i + 1))
        begin, end = int(histories.offsets[i]), int(histories.offsets[i + 1])
        torch.testing.assert_close(made(alone), states[begin:end])


@pytest.mark.parametrize("name", ATTENTIVE)
@some
@given(lengths=LENGTHS)
def test_groups_by_length_equal_the_plain_padded_path(name: str, lengths: list[int]) -> None:
    histories = batch(lengths)
    fast, slow = states_and_gradients(shaken(name), histories), states_and_gradients(plain(name), histories)
    for key, want in slow.items():
        torch.testing.assert_close(fast[key], want, msg=lambda text, key=key: f"{key}: {text}")


@each
def test_empty_short_and_long_histories(name: str) -> None:
    made = shaken(name)
    lengths = [0, 1, 300, 0, 2]
    histories = batch(lengths)
    got = states_and_gradients(made, histories)
    assert all(value.isfinite().all() for value in got.values())
    torch.testing.assert_close(got["last"][1:3], got["states"][histories.offsets[2:4] - 1])
    torch.testing.assert_close(got["last"][[0, 3]], made.empty.detach().expand(2, -1))
    for none in ([], [0], [0, 0]):
        states = made(batch(none))
        assert states.shape == (0, made.width)
        torch.testing.assert_close(made.last(states, batch(none).offsets), made.empty.expand(len(none), -1))


@each
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    got = states_and_gradients(shaken(name), batch([0, 1, 5, 40]))
    for key, gradient in got.items():
        assert gradient.isfinite().all(), key
        assert (gradient != 0).any(), key


@each
def test_weights_survive_a_round_trip_and_a_seed_decides_them(name: str) -> None:
    histories = batch([3, 0, 7])
    made = shaken(name)
    other = shaken(name, seed=1)
    assert not torch.equal(other(histories), made(histories))
    other.load_state_dict(made.state_dict())
    torch.testing.assert_close(other(histories), made(histories), rtol=0, atol=0)
    torch.testing.assert_close(shaken(name)(histories), made(histories), rtol=0, atol=0)
    fresh = []
    for _ in range(2):
        torch.manual_seed(5)
        fresh.append(encoder(name).double()(histories))
    torch.testing.assert_close(fresh[0], fresh[1], rtol=0, atol=0)


@each
def test_order_matters_to_all_but_pooling(name: str) -> None:
    histories = batch([6])
    still = replace(histories, time=torch.zeros_like(histories.time))  # at one time, so that place alone is order
    turned = replace(
        still,
        **{
            f: torch.cat((getattr(still, f)[:5].flip(0), getattr(still, f)[5:]))
            for f in ("rows", "action", "canvas", "value")
        },
    )
    made = shaken(name)
    moved = float((made(turned)[-1] - made(still)[-1]).abs().max().detach())
    assert moved < 1e-12 if name == "pooling" else moved > 1e-3


@each
def test_time_matters_to_those_that_know_it(name: str) -> None:
    histories, made = batch([1, 6]), shaken(name)
    offsets = histories.offsets
    assert histories.query_time is not None
    last = made.last(made(histories), offsets)
    # a fresh first event would hide a shift of all times: move the events before the last one back
    spread = replace(histories, time=histories.time - 100_000_000 * torch.tensor([0, 1, 1, 1, 1, 1, 0]))
    waited = replace(histories, query_time=histories.query_time + 100_000_000)
    of_events = (made.last(made(spread), offsets) - last).abs().amax(dim=1)
    of_query = (made.last(made(waited), offsets) - last).abs().amax(dim=1)
    assert (of_events[1] > 1e-6) == ("timeless" not in name)
    assert (of_query > 1e-3).tolist() == [("query" in name)] * 2


@pytest.mark.parametrize("name", ["hstu", "transformer", "pooling"])
def test_the_beginning_of_a_history_stands_as_it_is(name: str) -> None:
    histories = batch([9])
    beginning = piece(histories, slice(0, 1), 0, 4)
    made = shaken(name)
    torch.testing.assert_close(made(beginning), made(histories)[:4])


@pytest.mark.parametrize("name", ATTENTIVE)
def test_dropout_is_of_training_alone(name: str) -> None:
    histories = batch([5, 2])
    made: HSTU | Transformer
    if name.startswith("hstu"):
        made = HSTU(HSTUConfig(TIMED, 8, dropout=0.5)).double()
    else:
        made = Transformer(TransformerConfig(TIMED, 8, dropout=0.5)).double()
    assert not torch.equal(made(histories), made(histories))
    made.eval()
    assert torch.equal(made(histories), made(histories))


def test_what_does_not_fit_is_refused() -> None:
    histories = batch([2, 3])
    for change in (
        {"action": histories.action[:4]},
        {"value": histories.value[:, None]},
        {"rows": histories.rows[0]},
        {"offsets": histories.offsets[:0]},
        {"query_time": histories.time},
    ):
        with pytest.raises(ValueError, match="must be"):
            replace(histories, **change)
    for name in ("hstu-query", "transformer-query"):
        with pytest.raises(ValueError, match="query_time"):
            shaken(name)(replace(histories, query_time=None))
    with pytest.raises(ValueError, match="time_buckets"):
        EventConfig(DIM, time_buckets=0, query_time=True)
    for refused in (
        lambda: HSTU(HSTUConfig(TIMED, 8, heads=3)),
        lambda: Transformer(TransformerConfig(TIMED, 8, heads=3)),
    ):
        with pytest.raises(ValueError, match="multiple of heads"):
            refused()
    with pytest.raises(ValueError, match="even"):
        Transformer(TransformerConfig(TIMED, 6, heads=2))
    with pytest.raises(ValueError, match="even"):
        turns(5, 3)


def test_gaps_and_times_of_asking_stay_within_their_history() -> None:
    histories = Histories(
        rows=torch.zeros(5, 1), action=torch.zeros(5), canvas=torch.zeros(5), value=torch.zeros(5),
        time=torch.tensor([1, 5, 9, 2, 4]), offsets=torch.tensor([0, 3, 3, 5]), query_time=torch.tensor([9, 7, 8]),
    )  # fmt: skip
    assert len(histories) == 3
    assert histories.since_previous().tolist() == [0, 4, 4, 0, 2]
    assert histories.asked_at().tolist() == [5, 9, 9, 4, 8]
    assert histories.first().tolist() == [0, 3]
