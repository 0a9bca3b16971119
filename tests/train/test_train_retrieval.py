"""The towers: they learn a world with a known answer, and their histories never know it beforehand."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from checkerboard import CONFIG, ITEM_KEYS, ITEMS, T0, catalog_of, purchases
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_towers import (
    HOME,
    NOTHING,
    SIMILAR,
    nearest,
    past,
    positives_of,
    share_right,
    trained,
    trainer_of,
    user_vector,
)

from mainstem.catalog import MemoryCatalog
from mainstem.join.sessions import GAP
from mainstem.models.history import How
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import CanvasConfig, Config, HistoryConfig
from mainstem.schema.ids import keys64
from mainstem.schema.records import Event
from mainstem.schema.time import DAY
from mainstem.train import RetrievalTrainer, Towers, new_towers
from mainstem.train.interactions import Positives
from mainstem.train.texts import Texts
from mainstem.train.towers import Request
from mainstem.train.words import Words


def with_history(**changes: object) -> Config:
    history = HistoryConfig.model_validate({"layers": 1, "dropout": 0.0} | changes)
    return CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"history": history})})


@pytest.fixture(scope="module")
def learned() -> RetrievalTrainer:
    return trained(purchases(), epochs=4)


def test_learns_the_checkerboard(learned: RetrievalTrainer) -> None:
    untrained = new_towers(CONFIG, catalog_of())
    assert share_right(untrained) < 0.8  # canary
    assert share_right(learned.towers) > 0.98
    rows = np.arange(len(learned.positives))[-300:]
    assert learned.recall(rows, k=ITEMS // 2) > 0.95


@pytest.mark.parametrize("windows", ["sessions", "last", "sliding", "mixed"])
@pytest.mark.parametrize("encoder", ["pooling", "transformer", "hstu"])
def test_every_encoder_learns_it_by_every_way_over_the_past(encoder: str, windows: str) -> None:
    """A window of the history a user is few positives of the log: as many epochs as make up for it."""
    epochs = 4 if windows == "sessions" else 12
    trainer = trained(purchases(), epochs, with_history(encoder=encoder, windows=windows))
    assert share_right(trainer.towers) > 0.9
    assert nearest(trainer.towers, related(trainer.towers)) > 0.9


def related(towers: Towers) -> list[np.ndarray]:
    """A stranger's requests beside an even and an odd item."""
    return [towers.request_vector(Request(SIMILAR, 0, past(NOTHING), ITEM_KEYS[p : p + 1], 0, NOTHING)) for p in (0, 1)]


def test_related_items_need_no_user(learned: RetrievalTrainer) -> None:
    assert nearest(learned.towers, related(learned.towers)) > 0.98
    untrained = new_towers(CONFIG, catalog_of())
    assert nearest(untrained, related(untrained)) < 0.8  # canary


def test_a_new_item_is_known_by_its_attributes(learned: RetrievalTrainer) -> None:
    old = learned.towers
    towers = on(old, catalog_of(ITEMS + 2), old.attributes)
    new = towers.entity_vectors(keys64("item", [str(ITEMS), str(ITEMS + 1)]))
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, rtol=1e-5)
    even, odd = (user_vector(towers, ITEM_KEYS[p : p + 6 : 2]) for p in (0, 1))
    assert new[0] @ even > new[0] @ odd + 0.2
    assert new[1] @ odd > new[1] @ even + 0.2
    # canary: without its attributes nothing is known of it
    bare = on(old, catalog_of(ITEMS + 2), ())
    np.testing.assert_array_equal(*bare.entity_vectors(keys64("item", [str(ITEMS), str(ITEMS + 1)])))


def on(towers: Towers, catalog: MemoryCatalog, attributes: tuple[str, ...]) -> Towers:
    """The same over another catalogue."""
    words = Words(catalog, CONFIG.model.words)
    texts = Texts(catalog, None)
    return Towers(
        towers.module, towers.table, catalog, attributes, towers.canvases, words, texts, user_rows=towers.user_rows
    )


def serving(data: Positives, row: int) -> Request:
    """A positive's request as serving would have it."""
    batch = data.batch(np.array([row]))
    return Request(HOME, int(data.user[row]), batch.sequences, NOTHING, 0, NOTHING)


@pytest.mark.parametrize("encoder", ["pooling", "transformer", "hstu"])
def test_training_and_serving_make_the_same_vector(encoder: str) -> None:
    trainer = trained(purchases(days=10), 1, with_history(encoder=encoder))
    towers, data = trainer.towers, trainer.positives
    rows = np.array([3, len(data) - 9, len(data) - 1])
    batch = data.batch(rows)
    assert batch.lengths()[1:].min() > 3
    for vector, row in zip(towers.vectors_before(batch)[1:], rows[1:].tolist(), strict=True):
        np.testing.assert_allclose(towers.request_vector(serving(data, row)), vector, atol=1e-6)
        np.testing.assert_allclose(towers.request_vectors()(serving(data, row)), vector, atol=1e-5)


@pytest.mark.parametrize("encoder", ["pooling", "transformer"])
def test_without_user_rows_a_user_is_what_they_did(encoder: str) -> None:
    config = with_history(encoder=encoder)
    having = config.model_copy(update={"model": config.model.model_copy(update={"user_rows": True})})
    trainer, with_rows = trained(purchases(days=10), 1, config), trained(purchases(days=10), 1, having)
    assert (trainer.towers.table.counts()["user"], trainer.towers.table.counts()["entity"]) == (0, ITEMS)
    assert with_rows.towers.table.counts()["user"] > 0  # canary
    asked = serving(trainer.positives, len(trainer.positives) - 1)
    stranger = dataclasses.replace(asked, user=0)
    for vector_of in (trainer.towers.request_vector, trainer.towers.request_vectors()):
        np.testing.assert_array_equal(vector_of(asked), vector_of(stranger))
    batch = trainer.positives.batch(np.array([len(trainer.positives) - 1]))
    np.testing.assert_allclose(trainer.towers.vectors_before(batch)[0], vector_of(asked), atol=1e-5)


@pytest.mark.parametrize("encoder", ["pooling", "transformer"])
def test_without_torch_the_vector_is_the_same_whatever_is_known(encoder: str) -> None:
    learned = trained(purchases(days=10), 1, with_history(encoder=encoder))
    towers = learned.towers
    with torch.no_grad():
        for parameter in towers.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fast, user = towers.request_vectors(), int(learned.positives.user[0])
    query, category = ITEM_KEYS[7:9], int(towers.entity_keys(ITEM_KEYS[:1])[0, 1])
    for canvas, told, items, sources, kind, words in itertools.product(
        (0, HOME, SIMILAR), (0, user), (NOTHING, ITEM_KEYS[[3, 4, 3]]), (NOTHING, ITEM_KEYS[9:11]), (0, category),
        (NOTHING, query),
    ):  # fmt: skip
        request = Request(canvas, told, past(items), sources, kind, words)
        np.testing.assert_allclose(fast(request), towers.request_vector(request), atol=1e-5)
    assert np.abs(fast(request)).max() > 0.01  # canary: the last one is not nothing


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
    batch = trainer.positives.batch(np.arange(len(data)))
    place_of = {int(entity): place for place, entity in enumerate(data.entity.tolist())}
    lengths = batch.lengths()
    for row in range(len(data)):
        end = int(batch.state[row]) + 1
        for entity in batch.sequences.entity[end - lengths[row] : end].tolist() if end else []:
            place = place_of[entity]
            if data.user[place] != data.user[row] or data.time[place] >= data.time[row]:
                return True
            mine, its = session[int(data.entity[row])], session[int(data.entity[place])]
            if mine == its and (mine != 0 or not (np.diff(times_between(data, place, row)) > GAP).any()):
                return True
    return False


def times_between(data: Positives, first: int, last: int) -> np.ndarray:
    return data.time[first : last + 1]


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


def test_histories_are_the_latest_events() -> None:
    n = 60
    data = positives_of(batch_of([("u", i * DAY, f"s{i}", "purchase") for i in range(n)]))
    batch = data.batch(np.array([n - 1, 0, 2]))
    assert batch.lengths().tolist() == [data.length, 0, 2]
    assert batch.sequences.entity.tolist() == [*data.entity[:2], *data.entity[n - 1 - data.length : n - 1]]
    assert batch.sequences.asked.tolist() == [T0 + 2 * DAY, T0 + (n - 1) * DAY]
    assert batch.previous.tolist() == [data.entity[n - 2], 0, data.entity[1]]


def test_positives_of_one_session_share_a_sequence() -> None:
    rows = [("u", 0, "s", "purchase"), ("u", DAY, "t", "purchase"), ("u", DAY + 1, "t", "purchase")]
    batch = positives_of(batch_of(rows)).batch(np.arange(3))
    assert batch.state.tolist() == [-1, 0, 0]
    assert len(batch.sequences) == 1
    assert batch.previous.tolist() == [0, batch.entity[0], batch.entity[1]]  # that of its own session counts here
    some = batch.take(np.array([2]))
    assert (some.state.tolist(), len(some.sequences)) == ([0], 1)
    assert batch.take(np.array([0])).sequences.entity.tolist() == []


@settings(max_examples=100, deadline=None)
@given(rows_of_events, st.sampled_from(["last", "sliding", "mixed"]), st.integers(0, 3), st.data())
def test_windows_hold_beginnings_of_the_same_histories(
    rows: list[tuple[str, int, str | None, str]], how: How, epoch: int, data: st.DataObject
) -> None:
    """What a positive sees in a window is the end of what it sees alone, and only what is wanted is a positive."""
    positives = positives_of(batch_of(rows), {"purchase": 1.0, "view": 0.1})
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(positives), max_size=len(positives))), np.bool_)
    windows = positives.windows(wanted, how, epoch, 0)
    batch = positives.window_batch(windows, wanted)
    place = {int(entity): at for at, entity in enumerate(positives.entity.tolist())}
    lengths, state = batch.lengths(), batch.state
    alone = positives.batch(np.array([place[int(entity)] for entity in batch.entity], np.int64))
    for i, entity in enumerate(batch.entity.tolist()):
        assert wanted[place[entity]]
        seen = batch.sequences.entity[state[i] + 1 - lengths[i] : state[i] + 1] if state[i] >= 0 else NOTHING
        end, length = int(alone.state[i]) + 1, int(alone.lengths()[i])
        full = alone.sequences.entity[end - length : end]
        assert seen.tolist() == full[len(full) - len(seen) :].tolist()
        assert (len(seen) == 0) == (len(full) == 0)
    if how == "last" and len(positives) and wanted.all():  # histories here are shorter than a window
        starts, ends = positives.begin, np.bincount(positives.begin, minlength=len(positives))
        assert len(batch) == sum(int(ends[at]) for at in np.unique(starts) if ends[at] >= 2)


# ---- recall and what is drawn ----------------------------------------------------------------------


def test_recall_is_the_oracles(learned: RetrievalTrainer) -> None:
    data, towers = learned.positives, learned.towers
    rows, hits = np.arange(0, len(data), 7), 0
    vectors = towers.entity_vectors(learned.entities)
    for row in rows:
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


def test_a_canvas_counts_by_its_weight() -> None:
    """The first loss is a weighted sum of the canvases' losses: linear in each weight, and not constant in it."""

    def first_loss(weight: float) -> float:
        canvases = {
            "home": CanvasConfig(),
            "similar": CanvasConfig(learns_from="previous", share=1.0, weight=weight),
        }
        config = CONFIG.model_copy(update={"canvases": canvases})
        torch.manual_seed(0)
        data = positives_of(purchases())
        trainer = RetrievalTrainer(new_towers(config, catalog_of()), data, config.model, config.train)
        rng = np.random.default_rng(0)
        return next(trainer.epoch(np.arange(len(data)), rng))[0]

    one, two, four = (first_loss(weight) for weight in (1.0, 2.0, 4.0))
    assert four - two == pytest.approx(2 * (two - one), rel=1e-4)
    assert two - one > 0.5
