"""Texts as vectors of an encoder: read once, read anew when they change, learned from, in serving as in training.

In the world here even users take items of one kind and odd users those of the other. Every item's name is a word of its
own, `evenly12` or `oddly13`: a row of that word says nothing of the next item, its letters do.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from checkerboard import CONFIG, ITEMS, purchases
from test_train_retrieval import past, positives_of

from mainstem import catalog as catalogs
from mainstem import text
from mainstem.catalog import MemoryCatalog
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig, HistoryConfig
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.position import Position
from mainstem.schema.records import Entity, EntityDelete, Event
from mainstem.schema.text_config import TextConfig
from mainstem.text.hashing import HashingEncoder
from mainstem.text.kept import KeptTexts
from mainstem.train import RetrievalTrainer, Towers, new_towers
from mainstem.train.texts import Texts
from mainstem.train.towers import Request
from mainstem.train.words import keys_of, word_keys

HOME, SIMILAR, SEARCH = 1, 2, 3
NOTHING: Keys = np.zeros(0, np.uint64)
NAMES = ("evenly", "oddly")
NEW = range(ITEMS, ITEMS + 40)


def write(catalog: MemoryCatalog, texts: dict[str, str], at: int = 1) -> list[Entity]:
    records = [Entity(record_id=f"{at}{name}", time=0, entity=name, text=one) for name, one in texts.items()]
    return catalog.write(list(records), Position.at(at))


def shop(texts: dict[str, str]) -> MemoryCatalog:
    catalog = catalogs.open("memory://", entities={"item": EntityTypeConfig()})
    write(catalog, texts)
    return catalog


def keys(*names: str) -> Keys:
    return keys64("item", names)


# ---- reading ---------------------------------------------------------------------------------------


class Counting(HashingEncoder):
    def __init__(self) -> None:
        super().__init__(32)
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return super().encode(texts)


def test_each_entity_has_the_vector_of_its_text() -> None:
    texts = Texts(shop({"a": "red shoes", "b": "", "c": "blue"}), KeptTexts(encoder := Counting(), None))
    found = texts.of(keys("c", "a", "unknown", "b", "a"))
    expected = HashingEncoder(32).encode(["blue", "red shoes", "", "", "red shoes"])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert sorted(encoder.asked) == ["blue", "red shoes"]
    assert texts.of(keys()).shape == (0, 32)
    np.testing.assert_allclose(texts.of_query("blue"), expected[0], atol=1e-6)
    assert not texts.of_query(None).any()


def test_without_an_encoder_there_is_nothing() -> None:
    texts = Texts(shop({"a": "red"}), None)
    assert texts.width == 0
    assert texts.of(keys("a", "b")).shape == (2, 0)
    assert texts.of_queries(np.array([7, 0], np.uint64), {7: "red"}).shape == (2, 0)
    assert texts.of_query("red").shape == (0,)
    texts.forget(keys("a"))


def test_a_request_does_not_wait_for_what_was_not_read() -> None:
    texts = Texts(shop({"a": "red", "b": "blue"}), KeptTexts(encoder := Counting(), None))
    texts.of(keys("a"))
    found = texts.of(keys("a", "b"), encode=False)
    assert (found[0].any(), found[1].any()) == (True, False)
    assert encoder.asked == ["red"]


def test_a_changed_text_is_read_anew_when_it_is_said_so() -> None:
    catalog = shop({"a": "red"})
    texts = Texts(catalog, KeptTexts(Counting(), None))
    red = texts.of(keys("a"))
    changed = write(catalog, {"a": "blue"}, 2)
    np.testing.assert_array_equal(texts.of(keys("a")), red)  # canary: it is kept
    texts.forget(keys_of(changed))
    np.testing.assert_allclose(texts.of(keys("a"))[0], texts.of_query("blue"), atol=1e-3)


def test_who_gets_the_place_of_a_deleted_entity_has_a_text_of_its_own() -> None:
    catalog = shop({"a": "red"})
    texts = Texts(catalog, KeptTexts(Counting(), None))
    texts.of(keys("a"))
    catalog.write([EntityDelete(record_id="d", time=1, entity="a")], Position.at(2))
    assert not texts.of(keys("a")).any()
    texts.forget(keys_of(write(catalog, {"b": "blue"}, 3)))
    np.testing.assert_allclose(texts.of(keys("b"))[0], texts.of_query("blue"), atol=1e-3)


def test_a_text_that_changes_while_it_is_encoded_is_read_again() -> None:
    catalog, begun, go_on = shop({"a": "red"}), threading.Event(), threading.Event()

    class Slow(Counting):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            begun.set()
            assert go_on.wait(60)
            return super().encode(texts)

    texts = Texts(catalog, KeptTexts(encoder := Slow(), None))
    reader = threading.Thread(target=texts.of, args=(keys("a"),))
    reader.start()
    assert begun.wait(60)
    assert not texts.of(keys("a"), encode=False).any()  # who does not encode does not wait
    texts.forget(keys_of(write(catalog, {"a": "blue"}, 2)))
    go_on.set()
    reader.join()
    assert encoder.asked == ["red", "blue"]
    np.testing.assert_allclose(texts.of(keys("a"), encode=False)[0], texts.of_query("blue"), atol=1e-3)


def test_many_entities_agree_with_one_by_one() -> None:
    names = {f"i{i}": f"text {i % 701}" for i in range(3_000)}
    texts, alone = (Texts(shop(names), KeptTexts(Counting(), None)) for _ in range(2))
    some = [f"i{i}" for i in np.random.default_rng(0).permutation(3_000)[:1_500]]
    np.testing.assert_array_equal(texts.of(keys(*some)), np.concatenate([alone.of(keys(name)) for name in some]))


# ---- learning --------------------------------------------------------------------------------------


def config_of(encoder: str, **model: object) -> Config:
    canvases = {
        "home": CanvasConfig(), "similar": CanvasConfig(learns_from="previous"),
        "search": CanvasConfig(learns_from="query", share=1.0),
    }  # fmt: skip
    changes = {"dim": 64, "text": TextConfig(encoder=encoder), **model}
    return CONFIG.model_copy(
        update={
            "entities": {"item": EntityTypeConfig()}, "canvases": canvases,
            "model": CONFIG.model.model_copy(update=changes),
            "train": CONFIG.train.model_copy(update={"retrieval_batch": 64}),
        }
    )  # fmt: skip


def spelled(item: int) -> str:
    return f"{NAMES[item % 2]}{item}"


def searching() -> EventBatch:
    """The checkerboard's purchases, each found by a search in words that no other search has."""
    batch = purchases(days=20)
    number = {int(key): i for i, key in enumerate(keys(*map(str, range(ITEMS))).tolist())}
    return EventBatch.of(
        [
            Event(
                event_id=str(i), time=int(time), user=f"u{user}", kind="purchase", entity=str(number[entity]),
                session=str(session), query=f"{NAMES[number[entity] % 2]}{1000 + i}",
            )
            for i, (time, user, entity, session) in enumerate(
                zip(
                    batch.time.tolist(), (batch.user % 1_000_003).tolist(), batch.entity.tolist(),
                    batch.session.tolist(), strict=True,
                )
            )
        ]
    )  # fmt: skip


def trained(encoder: str, **model: object) -> RetrievalTrainer:
    """After one epoch: in a second one the rows of words that come once learn by heart."""
    config, catalog = config_of(encoder, **model), shop({str(i): spelled(i) for i in (*range(ITEMS), *NEW)})
    torch.manual_seed(0)
    towers = new_towers(config, catalog, text.keep(encoder, "memory://"))
    trainer = RetrievalTrainer(towers, positives_of(searching()), config.model, config.train)
    list(trainer.epoch(np.arange(len(trainer.positives)), np.random.default_rng(0)))
    return trainer


@pytest.fixture(scope="module")
def learned() -> RetrievalTrainer:
    return trained("hashing")


def asked(towers: Towers, parity: int) -> list[np.ndarray]:
    """Who took items of this parity; a stranger beside one; a stranger's search in a word that was never seen."""
    some, query = keys(*(str(item) for item in range(parity, parity + 6, 2))), f"{NAMES[parity]}99999"
    words, told = word_keys(query, towers.words.most), towers.texts.of_query(query)
    return [
        towers.request_vector(Request(HOME, 0, past(some), NOTHING, 0, NOTHING, towers.texts.of_query(None))),
        towers.request_vector(Request(SIMILAR, 0, past(NOTHING), some[:1], 0, NOTHING, towers.texts.of_query(None))),
        towers.request_vector(Request(SEARCH, 0, past(NOTHING), NOTHING, 0, words, told)),
    ]


def share_right(towers: Towers, items: Sequence[int]) -> list[float]:
    """Of each kind of request, the share of the nearer half of these items that is of the right parity."""
    vectors = towers.entity_vectors(keys(*map(str, items)))
    parity = np.array(items) % 2
    nearer = [[np.argsort(-vectors @ one)[: len(items) // 2] for one in asked(towers, p)] for p in (0, 1)]
    return [float(np.mean([(parity[nearer[p][way]] == p).mean() for p in (0, 1)])) for way in range(3)]


def test_new_items_and_new_words_are_known_by_what_they_are_made_of(learned: RetrievalTrainer) -> None:
    assert min(share_right(learned.towers, NEW)) > 0.85
    assert min(share_right(learned.towers, range(ITEMS))) > 0.85
    assert max(share_right(trained("none").towers, NEW)) < 0.8  # canary: by whole words alone they are not


@pytest.mark.parametrize("encoder", ["pooling", "transformer"])
def test_training_and_serving_make_the_same_vector(encoder: str) -> None:
    trainer = trained("hashing", history=HistoryConfig(encoder=encoder, layers=1, dropout=0.0))
    towers, data = trainer.towers, trainer.positives
    rows = np.array([len(data) - 9, len(data) - 1])
    batch = data.batch(rows)
    for vector, row in zip(towers.vectors_before(batch), rows.tolist(), strict=True):
        request = Request(
            HOME, int(data.user[row]), data.batch(np.array([row])).sequences, NOTHING, 0, NOTHING,
            towers.texts.of_query(None),
        )  # fmt: skip
        np.testing.assert_allclose(towers.request_vector(request), vector, atol=1e-6)


def test_without_torch_the_vector_is_the_same_whatever_is_known(learned: RetrievalTrainer) -> None:
    towers, user = learned.towers, int(learned.positives.user[0])
    with torch.no_grad():
        for parameter in towers.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fast, items, unspoken = towers.request_vectors(), keys("3", "4", "3"), keys("unknown")
    for told, taken, sources, query in itertools.product(
        (0, user), (NOTHING, items, unspoken), (NOTHING, items, unspoken), (None, "evenly7 oddly", "…")
    ):
        words = word_keys(query or "", 16)
        request = Request(HOME, told, past(taken), sources, 0, words, towers.texts.of_query(query))
        np.testing.assert_allclose(fast(request), towers.request_vector(request), atol=1e-5)
    assert fast(Request(SEARCH, 0, past(NOTHING), NOTHING, 0, NOTHING, towers.texts.of_query("evenly"))).any()
    assert not fast(Request(SEARCH, 0, past(NOTHING), NOTHING, 0, NOTHING, towers.texts.of_query("…"))).any()


def test_the_encoder_that_is_configured_must_be_handed_in() -> None:
    catalog = shop({})
    with pytest.raises(ValueError, match=r"model\.text\.encoder is hashing"):
        new_towers(config_of("hashing"), catalog)
    with pytest.raises(ValueError, match=r"model\.text\.encoder is none"):
        new_towers(config_of("none"), catalog, text.keep("hashing", "memory://"))
