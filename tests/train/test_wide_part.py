"""The wide part: one definition of its keys, weights earned by what was taken, and exact combinations learned, offline
and online."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from crossed_world import BUY, FLAVOURS, INPUTS, KEYS, catalog_of, config_of, group, learner_of, made, share_right

from mainstem.models import numpy_scorer
from mainstem.schema.config import Config, OnlineConfig, TrainConfig
from mainstem.schema.examples import Examples, Revision
from mainstem.schema.pasts import Pasts
from mainstem.train import Wide, fit_ranker
from mainstem.train.ranking_loss import Slates, raw_of, said
from mainstem.train.wide import Crosses, Crossings

LATER = Examples.concat([group(number) for number in range(9_000, 9_200)])
EVERYTHING = [
    ["canvas", "candidate"], ["kind", "candidate.flavour"], ["latest", "candidate"],
    ["candidate.flavour", "latest.flavour"], ["canvas", "kind", "latest.flavour", "candidate.flavour"], ["candidate"],
]  # fmt: skip


def everything() -> Config:
    config = config_of("crossed", learning_rate=0.5)
    wide = config.model.ranking.wide.model_copy(update={"crosses": EVERYTHING})
    ranking = config.model.ranking.model_copy(update={"wide": wide})
    return config.model_copy(update={"model": config.model.model_copy(update={"ranking": ranking})})


def crosses_of(config: Config) -> Crosses:
    return Crosses(config, catalog_of(), INPUTS)


def keys_of(examples: Examples, crosses: Crosses) -> np.ndarray:
    return crosses.keys(examples.inputs, examples.keys, examples.offsets, examples.pasts)


def revisions(start: int, count: int) -> list[Revision]:
    return [Revision(one, np.zeros_like(one.labels)) for one in (group(n) for n in range(start, start + count))]


def weights_of(wide: Wide) -> dict[int, np.ndarray]:
    state = wide.table.state()
    return dict(zip(state["keys"].tolist(), state["values"], strict=True))


# ---- keys ----------------------------------------------------------------------------------------------


def test_keys_of_many_requests_are_those_of_each_by_itself() -> None:
    crosses, some = crosses_of(everything()), [group(number) for number in range(20)]
    together = keys_of(Examples.concat(some), crosses)
    np.testing.assert_array_equal(together, np.concatenate([keys_of(one, crosses) for one in some]))
    assert together.shape == (len(some) * len(some[0].keys), len(EVERYTHING))
    assert (together != 0).all()
    # every field matters: each cross has as many keys as its fields have values together
    assert len(np.unique(together[:, 5])) == len(np.unique(np.concatenate([one.keys for one in some])))
    assert len(np.unique(together[:, 3])) == len(
        {(i % FLAVOURS, j) for one in some for i in [flavour_of(one)] for j in range(FLAVOURS)}
    )


def latest_of(one: Examples) -> int:
    assert one.pasts is not None
    return int(np.flatnonzero(one.pasts.entity[-1] == KEYS)[0])


def flavour_of(one: Examples) -> int:
    return latest_of(one) % FLAVOURS


def test_what_is_not_known_has_no_cross() -> None:
    crosses, one = crosses_of(everything()), group(1)
    assert one.pasts is not None
    nobody = dataclasses.replace(one, pasts=Pasts.none(1))
    assert [bool(column.any()) for column in keys_of(nobody, crosses).T] == [True, False, False, False, False, True]
    elsewhere = dataclasses.replace(one, inputs=one.inputs * np.array([1, 0, 0], np.float32))
    assert [bool(column.any()) for column in keys_of(elsewhere, crosses).T] == [False, True, True, True, False, True]
    strange = dataclasses.replace(one, keys=one.keys + np.uint64(1))  # not in the catalogue: a key without attributes
    assert [bool(column.any()) for column in keys_of(strange, crosses).T] == [True, False, True, False, False, True]
    unread = dataclasses.replace(one, pasts=None)
    with pytest.raises(ValueError, match="histories"):
        keys_of(unread, crosses)
    assert keys_of(unread, crosses_of(config_of("apart"))).all()  # what needs no history asks for none


def test_each_field_is_what_its_name_says() -> None:
    """Canary: a change of any one of them changes the crosses that name it, and no other."""
    crosses, one = crosses_of(everything()), group(1)
    assert one.pasts is not None
    before = keys_of(one, crosses)
    another, alike = KEYS[latest_of(one) - 1], KEYS[(latest_of(one) + FLAVOURS) % len(KEYS)]
    pasts = {
        "canvas": one.pasts,
        "kind": dataclasses.replace(one.pasts, action=np.array([0, 0], np.uint8)),
        "latest": dataclasses.replace(one.pasts, entity=np.append(one.pasts.entity[:1], another)),
        "the one before": dataclasses.replace(one.pasts, entity=np.append(another, one.pasts.entity[1:])),
        "another of its flavour": dataclasses.replace(one.pasts, entity=np.append(one.pasts.entity[:1], alike)),
    }
    inputs = {"canvas": np.column_stack([one.inputs[:, :1], one.inputs[:, [2, 1]]])}
    for name, named in {
        "canvas": {0, 4}, "kind": {1, 4}, "latest": {2, 3, 4}, "the one before": set(), "another of its flavour": {2},
    }.items():  # fmt: skip
        changed = dataclasses.replace(one, pasts=pasts[name], inputs=inputs.get(name, one.inputs))
        moved = (keys_of(changed, crosses) != before).all(axis=0)
        assert set(np.flatnonzero(moved)) == named, name
        assert not (keys_of(changed, crosses) != before)[:, ~moved].any()


def test_inputs_must_say_which_canvas_asks_where_it_is_crossed() -> None:
    with pytest.raises(ValueError, match="canvas_home"):
        Crosses(config_of("apart"), catalog_of(), ("noise",))
    Crosses(config_of("crossed"), catalog_of(), ("noise",))


# ---- learning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["deep", "logistic"])
@pytest.mark.parametrize("crosses", ["none", "apart", "crossed"])
def test_offline_it_learns_which_goes_with_which(crosses: str, network: str) -> None:
    torch.manual_seed(0)
    ranker, wide = made(config_of(crosses, network, learning_rate=0.5))
    train, valid = (Examples.concat([group(n) for n in range(*span)]) for span in ((0, 500), (500, 600)))
    config = TrainConfig(ranking_epochs=3, ranking_batch=16, ranking_learning_rate=0.01)
    fit = fit_ranker(ranker, train, valid, [BUY], config, wide=wide)
    slates = Slates.of(LATER, [BUY], crosses=None if wide is None else wide.crosses)
    with torch.no_grad():
        right = share_right(raw_of(ranker, slates, said(wide, slates)).numpy(), LATER)
    assert right > 0.95 if crosses == "crossed" else right < 0.3, right
    assert (fit.best_epoch > 0) or crosses != "crossed"


@pytest.mark.parametrize("crosses", ["none", "apart", "crossed"])
def test_online_it_learns_the_same_from_revisions(crosses: str) -> None:
    torch.manual_seed(0)
    train = TrainConfig(ranking_batch=8, online=OnlineConfig(ranking_learning_rate=0.01))
    learner = learner_of(config_of(crosses, learning_rate=0.5), train)
    for step in range(100):
        learner.step(revisions(8 * step, 8))
        learner.level([group(8 * step + i) for i in range(8)])
    right = share_right(learner.order(LATER), LATER)
    assert right > 0.95 if crosses == "crossed" else right < 0.3, right


def test_a_request_alone_and_without_torch_is_scored_as_in_training() -> None:
    torch.manual_seed(0)
    config = everything()
    learner = learner_of(config, TrainConfig(ranking_batch=8, online=OnlineConfig(ranking_learning_rate=0.01)))
    for step in range(10):
        learner.step(revisions(8 * step, 8))
    wide, scorer = learner.wide, numpy_scorer(learner.ranker.eval())
    assert wide is not None
    slates = Slates.of(LATER, [BUY], crosses=wide.crosses)
    assert slates.crossings is not None
    with torch.no_grad():
        want = raw_of(learner.ranker, slates, said(wide, slates)).numpy()
        np.testing.assert_allclose(wide.look_up(slates.crossings, admit=False).numpy(), wide.read(slates.crossings))
    for place in range(0, len(LATER), 17):
        one = LATER.groups(np.array([place]))
        crossed = wide.of_requests(one.inputs, one.keys, one.offsets, one.pasts)
        assert np.abs(crossed).max() > 0.1
        got = scorer.logits(one.inputs, crossed=crossed)
        np.testing.assert_allclose(got, want[LATER.offsets[place] : LATER.offsets[place + 1]], atol=1e-4)
        with pytest.raises(ValueError, match="histories"):
            wide.of_requests(one.inputs, one.keys, one.offsets, None)


def test_what_was_only_a_candidate_earns_no_weight_and_moves_one_that_is_there() -> None:
    learner = learner_of(config_of("crossed", l1=0.0), TrainConfig(ranking_batch=1))
    wide, one = learner.wide, group(0)
    assert wide is not None
    taken = int(keys_of(one, wide.crosses)[one.labels[:, 0].argmax(), 0])
    learner.step([Revision(one, np.zeros_like(one.labels))])
    assert list(weights_of(wide)) == [taken]
    first = float(weights_of(wide)[taken][0])
    assert first > 0
    same = next(n for n in range(1, 99) if flavour_of(group(n)) == flavour_of(one))
    left = group(same)
    other = np.zeros_like(left.labels)
    other[left.labels[:, 0].argmin()] = 1.0  # this time something else was taken
    learner.step([Revision(dataclasses.replace(left, labels=other), np.zeros_like(other))])
    now = weights_of(wide)
    assert len(now) == 2
    assert float(now[taken][0]) < first


def test_an_event_is_one_sight_of_its_crosses_however_often_it_is_read() -> None:
    train = Examples.concat([group(n) for n in range(100)])
    config = TrainConfig(ranking_epochs=4, ranking_batch=16, ranking_learning_rate=1e-3, patience=9)
    for admit_after, there in ((2, True), (90, False)):
        ranker, wide = made(config_of("crossed", admit_after=admit_after))
        assert wide is not None
        fit_ranker(ranker, train, train, [BUY], config, wide=wide)
        assert bool(weights_of(wide)) is there  # some thirteen requests of a flavour, three sights each
    learner = learner_of(config_of("crossed", admit_after=4), TrainConfig(ranking_batch=1))
    one = group(0)
    assert learner.wide is not None
    before = np.zeros_like(one.labels)
    for _ in range(3):  # the same events again, as other heads' labels come: no further sights
        learner.step([Revision(one, before)])
        before = one.labels
    assert not weights_of(learner.wide)
    learner.step([Revision(one, np.zeros_like(one.labels))])
    assert len(weights_of(learner.wide)) == 1


def test_a_slate_moves_a_weight_by_the_same_in_a_batch_of_any_size() -> None:
    def moved(batch: int) -> dict[int, np.ndarray]:
        torch.manual_seed(0)
        learner = learner_of(config_of("crossed", l1=0.0), TrainConfig(ranking_batch=batch))
        learner.step(revisions(0, 4))
        assert learner.wide is not None
        return weights_of(learner.wide)

    small, large = moved(4), moved(64)
    assert small.keys() == large.keys()
    np.testing.assert_allclose(list(small.values()), [large[key] for key in small], rtol=1e-4)
    assert np.abs(list(small.values())).min() > 1e-3


def test_the_weights_of_the_best_epoch_stay() -> None:
    train = Examples.concat([group(n) for n in range(200)])
    against = dataclasses.replace(train, labels=np.roll(train.labels, 9, axis=0))
    ranker, wide = made(config_of("crossed", "logistic", learning_rate=0.5))  # which starts where all are equal
    assert wide is not None
    config = TrainConfig(ranking_epochs=3, ranking_batch=16, patience=9)
    assert fit_ranker(ranker, train, against, [BUY], config, wide=wide).best_epoch == 0
    assert not weights_of(wide)


def test_what_is_not_finite_changes_no_weight() -> None:
    learner = learner_of(config_of("crossed"), TrainConfig(ranking_batch=1))
    for number in range(30):
        learner.step(revisions(number, 1))
    assert learner.wide is not None
    before = {key: value.copy() for key, value in weights_of(learner.wide).items()}
    assert any(value.any() for value in before.values())
    wrong = revisions(99, 1)[0]
    wrong.examples.inputs[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="finite"):
        learner.step([wrong])
    after = weights_of(learner.wide)
    assert all(np.array_equal(after[key], value) for key, value in before.items())


def test_groups_keep_their_crosses() -> None:
    crosses = crosses_of(everything())
    slates, which = Slates.of(LATER, [BUY], crosses=crosses), torch.tensor([7, 3, 3])
    some, whole = slates.groups(which).crossings, slates.crossings
    assert some is not None
    assert whole is not None
    part = LATER.groups(which.numpy())
    want = Crossings.of(part, torch.from_numpy(part.labels[:, 0] > 0), crosses)
    torch.testing.assert_close(some.keys, want.keys)
    torch.testing.assert_close(some.taken, want.taken)
    torch.testing.assert_close(some.time, want.time)


def test_one_weight_a_raw_output() -> None:
    config = config_of("crossed")
    heads = {"buy": BUY, "worth": BUY.model_copy(update={"type": "lifetime_value", "window": "2d"})}
    ranker, wide = made(config.model_copy(update={"heads": heads}))
    assert wide is not None
    assert wide.table.dim == sum(ranker.sizes) == 4
