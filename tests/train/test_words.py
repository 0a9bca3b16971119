"""Words as keys: shared by texts and queries, read once, read anew when a text changes."""

import itertools

import numpy as np

from mainstem import catalog as catalogs
from mainstem.catalog import MemoryCatalog
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.ids import keys64
from mainstem.schema.position import Position
from mainstem.schema.records import Entity, EntityDelete
from mainstem.train.words import Words, keys_of, word_keys


def shop(texts: dict[str, str]) -> MemoryCatalog:
    catalog = catalogs.open("memory://", entities={"item": EntityTypeConfig()})
    write(catalog, texts)
    return catalog


def write(catalog: MemoryCatalog, texts: dict[str, str], at: int = 1) -> list[Entity]:
    records = [Entity(record_id=f"{at}{name}", time=0, entity=name, text=text) for name, text in texts.items()]
    return catalog.write(list(records), Position.at(at))


def spelled(words: Words, names: list[str]) -> list[list[int]]:
    found, offsets = words.of(keys64("item", names))
    return [found[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]


def keys(text: str) -> list[int]:
    return keys64("word", text.split()).tolist()


def test_each_entity_has_its_first_different_words() -> None:
    catalog = shop({"a": "Red shoes, red LACES", "b": "", "c": "one two three four"})
    words = Words(catalog, 3)
    assert spelled(words, ["c", "a", "unknown", "b", "a"]) == [
        keys("one two three"), keys("red shoes laces"), [], [], keys("red shoes laces")
    ]  # fmt: skip
    assert spelled(words, []) == []
    assert spelled(Words(catalog, 0), ["a", "c"]) == [[], []]


def test_a_changed_text_is_read_anew_when_it_is_said_so() -> None:
    catalog = shop({"a": "red"})
    words = Words(catalog, 4)
    assert spelled(words, ["a"]) == [keys("red")]
    changed = write(catalog, {"a": "blue"}, 2)
    assert spelled(words, ["a"]) == [keys("red")]  # canary: it is kept
    words.forget(keys_of(changed))
    assert spelled(words, ["a"]) == [keys("blue")]


def test_who_gets_the_place_of_a_deleted_entity_has_words_of_its_own() -> None:
    catalog = shop({"a": "red"})
    words = Words(catalog, 4)
    spelled(words, ["a"])
    catalog.write([EntityDelete(record_id="d", time=1, entity="a")], Position.at(2))
    assert spelled(words, ["a"]) == [[]]
    words.forget(keys_of(write(catalog, {"b": "blue"}, 3)))
    assert spelled(words, ["b"]) == [keys("blue")]


def test_many_entities_agree_with_one_by_one() -> None:
    texts = {f"i{i}": " ".join(f"w{(i * k) % 97}" for k in range(1, 1 + i % 7)) for i in range(3_000)}
    words, alone = Words(shop(texts), 5), Words(shop(texts), 5)
    names = [f"i{i}" for i in np.random.default_rng(0).permutation(3_000)]
    assert spelled(words, names) == [spelled(alone, [name])[0] for name in names]


def test_queries_are_spelled_as_texts_are() -> None:
    words = Words(shop({"a": "red shoes"}), 4)
    queries = {7: "shoes RED", 9: "..."}
    found, offsets = words.of_queries(np.array([7, 0, 9, 7], np.uint64), queries)
    assert offsets.tolist() == [0, 2, 2, 2, 4]
    assert found.tolist() == keys("shoes red shoes red")
    assert set(spelled(words, ["a"])[0]) == set(found.tolist())
    assert word_keys("shoes red", 1).tolist() == keys("shoes")
