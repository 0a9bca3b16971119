"""The towers: they learn a world with a known answer, and their histories never know it beforehand."""

import dataclasses

import numpy as np
import pytest
import torch
from checkerboard import CONFIG, ITEM_KEYS, ITEMS, T0, catalog_of, purchases
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.join.sessions import GAP, session_starts
from mainstem.schema.batch import EventBatch
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.protocols import History
from mainstem.schema.records import Event
from mainstem.schema.time import DAY
from mainstem.train import RetrievalTrainer, Towers, new_towers, retrieval
from mainstem.train.interactions import HISTORY, Positives
from mainstem.train.towers import CHANNELS


def positives_of(events: EventBatch, interest: dict[str, float] | None = None) -> Positives:
    return Positives.of(events, interest or {"purchase": 1.0}, session_starts)


def trained(events: EventBatch, epochs: int = 3) -> RetrievalTrainer:
    torch.manual_seed(0)
    trainer = RetrievalTrainer(new_towers(CONFIG, catalog_of()), positives_of(events), CONFIG.model, CONFIG.train)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        losses = list(trainer.epoch(np.arange(len(trainer.positives)), rng))
    assert np.isfinite(losses).all()
    return trainer


@pytest.fixture(scope="module")
def learned() -> RetrievalTrainer:
    return trained(purchases(), epochs=4)


def user_vector(towers: Towers, items: Keys, user: int = 0) -> np.ndarray:
    n = len(items)
    history = History(items, np.zeros(n, np.int16), np.ones(n, np.float32), np.full(n, T0))
    return towers.user_vectors()(user, history, np.ones(n, np.float32), T0 + DAY)


def share_right(towers: Towers) -> float:
    """Share of the half of the items nearest to a visitor who took three even (odd) ones that are even (odd)."""
    vectors, right = towers.entity_vectors(ITEM_KEYS), []
    for parity in (0, 1):
        user = user_vector(towers, ITEM_KEYS[parity : parity + 6 : 2])
        right.append((np.argsort(-vectors @ user)[: ITEMS // 2] % 2 == parity).mean())
    return float(np.mean(right))


def test_learns_the_checkerboard(learned: RetrievalTrainer) -> None:
    untrained = new_towers(CONFIG, catalog_of())
    assert share_right(untrained) < 0.8  # canary
    assert share_right(learned.towers) > 0.98
    rows = np.arange(len(learned.positives))[-300:]
    assert learned.recall(rows, k=ITEMS // 2) > 0.95


def test_a_new_item_is_known_by_its_attributes(learned: RetrievalTrainer) -> None:
    old = learned.towers
    towers = Towers(old.module, old.table, catalog_of(ITEMS + 2), old.attributes)
    new = towers.entity_vectors(keys64("item", [str(ITEMS), str(ITEMS + 1)]))
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, rtol=1e-5)
    even, odd = (user_vector(towers, ITEM_KEYS[p : p + 6 : 2]) for p in (0, 1))
    assert new[0] @ even > new[0] @ odd + 0.2
    assert new[1] @ odd > new[1] @ even + 0.2
    # canary: without its attributes nothing is known of it
    bare = Towers(towers.module, towers.table, catalog_of(ITEMS + 2), ())
    np.testing.assert_array_equal(*bare.entity_vectors(keys64("item", [str(ITEMS), str(ITEMS + 1)])))


def test_training_and_serving_make_the_same_user_vector(learned: RetrievalTrainer) -> None:
    towers, data = learned.towers, learned.positives
    row = np.array([len(data) - 1])
    places, _ = data.histories(row)
    assert len(places) > 3
    batch = towers.vectors_before(data.batch(row))[0]
    history = History(data.entity[places], np.zeros(len(places), np.int16), data.interest[places], data.time[places])
    alone = towers.user_vectors()(int(data.user[row[0]]), history, data.interest[places], int(data.time[row[0]]))
    np.testing.assert_allclose(alone, batch, atol=1e-6)


def test_an_unknown_visitor_has_no_vector(learned: RetrievalTrainer) -> None:
    assert not user_vector(learned.towers, ITEM_KEYS[:0]).any()


# ---- histories -------------------------------------------------------------------------------------

rows_of_events = st.lists(
    st.tuples(
        st.sampled_from("uv"),
        st.sampled_from([0, 1, GAP, GAP + 1, 3 * GAP, 3 * GAP + 1]),
        st.sampled_from([None, "s", "t"]),
        st.sampled_from(["purchase", "view", "impression"]),
    ),
    max_size=14,
)


def batch_of(rows: list[tuple[str, int, str | None, str]]) -> EventBatch:
    return EventBatch.of(
        [
            Event(event_id=str(i), time=T0 + t, user=u, kind=kind, entity=f"i{i}", session=s)
            for i, (u, t, s, kind) in enumerate(rows)
        ]
    )


def leaks(data: Positives, trainer: RetrievalTrainer, events: EventBatch) -> bool:
    """Whether any history holds the positive's own session, that moment, anything later, or another user's."""
    session = dict(zip(events.entity.tolist(), events.session.tolist(), strict=True))
    places, offsets = trainer.positives.histories(np.arange(len(data)))
    for row in range(len(data)):
        for place in places[offsets[row] : offsets[row + 1]]:
            if data.user[place] != data.user[row] or data.time[place] >= data.time[row]:
                return True
            mine, its = session[int(data.entity[row])], session[int(data.entity[place])]
            if mine == its and (mine != 0 or not (np.diff(times_between(data, place, row)) > GAP).any()):
                return True
    return False


def times_between(data: Positives, first: int, last: int) -> np.ndarray:
    return data.time[first : last + 1]


def trainer_of(data: Positives) -> RetrievalTrainer:
    return RetrievalTrainer(new_towers(CONFIG, catalog_of()), data, CONFIG.model, CONFIG.train)


@settings(max_examples=150, deadline=None)
@given(rows_of_events)
def test_histories_are_strictly_before_the_session(rows: list[tuple[str, int, str | None, str]]) -> None:
    # of those without a session only: a gap among them may be filled by other sessions' events
    rows = [(u, t, s, kind) for u, t, s, kind in rows if s is not None]
    events = batch_of(rows)
    data = positives_of(events, {"purchase": 1.0, "view": 0.1})
    assert len(data) == sum(kind != "impression" for *_, kind in rows)
    assert not leaks(data, trainer_of(data), events)


@settings(max_examples=100, deadline=None)
@given(rows_of_events)
def test_histories_without_session_ids_are_before_the_gap(rows: list[tuple[str, int, str | None, str]]) -> None:
    events = batch_of([(u, t, None, kind) for u, t, _, kind in rows])
    data = positives_of(events, {"purchase": 1.0, "view": 0.1})
    assert not leaks(data, trainer_of(data), events)


def test_canary_leaking_histories_are_caught() -> None:
    events = batch_of([("u", 0, "s", "purchase"), ("u", 0, "t", "purchase"), ("u", 1, "s", "purchase")])
    data = positives_of(events)
    assert not leaks(data, trainer_of(data), events)
    own_session = dataclasses.replace(data, session=np.arange(3))
    assert leaks(own_session, trainer_of(own_session), events)
    this_moment = dataclasses.replace(data, session=np.array([0, 1, 0]))
    assert leaks(this_moment, trainer_of(this_moment), events)


def test_histories_are_the_latest_events_and_their_weights_fall_with_age() -> None:
    n = HISTORY + 10
    events = batch_of([("u", i * DAY, f"s{i}", "purchase") for i in range(n)])
    trainer = trainer_of(positives_of(events))
    rows = np.array([n - 1, 0, 2])
    places, offsets = trainer.positives.histories(rows)
    batch = trainer.positives.batch(rows)
    weights = trainer.towers.history_weights(batch.age, batch.history_interest)
    assert offsets.tolist() == [0, HISTORY, HISTORY, HISTORY + 2]
    assert places.tolist() == [*range(n - 1 - HISTORY, n - 1), 0, 1]
    age = np.array([2, 1])[:, None] * DAY
    np.testing.assert_allclose(weights[-2:], np.exp2(-age / np.array(CHANNELS)), rtol=1e-6)


# ---- recall and what is drawn ----------------------------------------------------------------------


def test_recall_is_the_oracles(learned: RetrievalTrainer) -> None:
    data, towers = learned.positives, learned.towers
    rows, hits = np.arange(0, len(data), 7), 0
    vectors = towers.entity_vectors(learned.entities)
    for row in rows:
        places, _ = data.histories(np.array([row]))
        history = History(
            data.entity[places], np.zeros(len(places), np.int16), data.interest[places], data.time[places]
        )
        keys = np.array([data.user[row]], np.uint64)
        if len(places):
            user = towers.user_vectors()(int(keys[0]), history, data.interest[places], int(data.time[row]))
        else:
            user = towers.vectors_before(data.batch(np.array([row])))[0]
        best = learned.entities[np.argsort(-(vectors @ user), kind="stable")[:10]]
        hits += data.entity[row] in best
    assert learned.recall(rows, k=10, chunk=13) == pytest.approx(hits / len(rows), abs=1.01 / len(rows))
    assert learned.recall(rows, k=10**6) == 1.0
    assert learned.recall(rows[:0]) == 0.0


def test_what_comes_up_only_later_is_not_learned_as_unwanted() -> None:
    early = purchases(days=10)
    late = EventBatch.of([Event(event_id="x", time=T0 + 99 * DAY, user="u1", kind="purchase", entity="brand new")])
    trainer = trainer_of(positives_of(EventBatch.concat([early, late])))
    data, new = trainer.positives, late.entity
    list(trainer.epoch(np.flatnonzero(data.time < T0 + 50 * DAY), np.random.default_rng(0)))
    assert trainer.towers.table.find(new).tolist() == [-1]
    assert trainer.population.share(new) == 0
    assert trainer.population.share(trainer.entities).sum() == pytest.approx(1)
    list(trainer.epoch(np.arange(len(data)), np.random.default_rng(0)))  # canary
    assert trainer.towers.table.find(new) >= 0


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_taken_often_scores_higher_and_with_the_flipped_correction_lower(
    sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "UNIFORM", 0)
    right = retrieval.log_inclusion
    monkeypatch.setattr(retrieval, "log_inclusion", lambda *args: sign * right(*args))
    taken = np.random.default_rng(0).choice(60, 4_000, p=[0.25, 0.25, *[0.5 / 58] * 58])
    events = [
        Event(event_id=str(i), time=T0 + i * DAY // 50, user=f"u{i % 50}", kind="purchase", entity=f"x{item}")
        for i, item in enumerate(taken)
    ]
    config = CONFIG.train.model_copy(update={"retrieval_batch": 16})
    torch.manual_seed(0)
    trainer = RetrievalTrainer(
        new_towers(CONFIG, catalog_of()), positives_of(EventBatch.of(events)), CONFIG.model, config
    )
    for _ in range(2):
        list(trainer.epoch(np.arange(len(events)), np.random.default_rng(0)))
    keys = keys64("item", [f"x{i}" for i in range(60)])
    users = np.mean([user_vector(trainer.towers, keys[[i]]) for i in range(60)], axis=0)
    scores = trainer.towers.entity_vectors(keys) @ users
    gap = scores[:2].mean() - scores[2:].mean()
    assert gap > 0.1 if sign == 1 else gap < 0.0
