"""Feature hashing (Weinberger et al., 2009, "Feature hashing for large scale multitask learning", eq. 1).

A word is the sum of two parts of equal length: itself, and its letters in threes and fours (with its ends
marked, as in fastText: Bojanowski et al., 2017, section 3.2), so that "yogurt" and "yogurts" meet. Each
feature adds +1 or -1 at one of `dim` places, both taken from its hash: products of unrelated texts are 0
in the mean. Nothing is fitted: the vector of a text is the same on every machine and for ever.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mainstem.text.tokenizer import tokenize

__all__ = ["HashingEncoder"]

# Texts encoded at a time, and words whose vectors are held: tens of MB at 256 dimensions.
CHUNK = 512
WORDS = 20_000
# Words whose features are remembered; about 400 bytes each.
REMEMBERED = 100_000
GRAMS = (3, 4)


class HashingEncoder:
    """A TextEncoder without a model file. `dim` >= 1; 256 keeps chance products of short texts near 1/16."""

    def __init__(self, dim: int = 256) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        self.dim = dim
        self.name = f"hashing://{dim}"
        self.version = f"hashing-1-{dim}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [len(texts), dim], rows of length 1; a text without a word is a zero row.

        A word that comes n times counts sqrt(n) times: repeating says little more.
        """
        place: dict[str, int] = {}  # catalogues repeat themselves: each distinct text is encoded once
        places = [place.setdefault(text, len(place)) for text in texts]
        distinct = list(place)
        vectors = np.zeros((len(distinct), self.dim), np.float32)
        known = _Words(self.dim)
        for at in range(0, len(distinct), CHUNK):
            if len(known.row) > WORDS:
                known = _Words(self.dim)
            _encode(distinct[at : at + CHUNK], known, vectors[at : at + CHUNK])
        return vectors if len(distinct) == len(texts) else vectors[places]


def _encode(texts: Sequence[str], known: _Words, out: NDArray[np.float32]) -> None:
    words: list[str] = []
    weights: list[float] = []
    starts: list[int] = []
    filled: list[int] = []
    for row, text in enumerate(texts):
        # Sorted, so that the order of the words cannot change a bit of the sum.
        counts = sorted(Counter(tokenize(text)).items())
        if counts:
            filled.append(row)
            starts.append(len(words))
            words.extend(word for word, _ in counts)
            weights.extend(count**0.5 for _, count in counts)
    if not filled:
        return
    vectors = known.vectors(words)
    vectors *= np.array(weights, np.float32)[:, None]
    sums = np.add.reduceat(vectors, np.array(starts), axis=0)
    lengths = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
    # A text whose features cancel to nothing (only at tiny widths) stays a zero row.
    out[filled] = np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0)


class _Words:
    """The vectors of the words met in one call: each is made once."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.row: dict[str, int] = {}
        self._matrix = np.zeros((0, dim), np.float32)

    def vectors(self, words: list[str]) -> NDArray[np.float32]:
        """A copy, [len(words), dim]."""
        start = len(self.row)
        rows = [self.row.setdefault(word, len(self.row)) for word in words]
        if len(self.row) > len(self._matrix):
            grown = np.zeros((max(len(self.row), 2 * start), self.dim), np.float32)
            grown[:start] = self._matrix[:start]
            self._matrix = grown
        if len(self.row) > start:
            self._matrix[start : len(self.row)] = self._made(list(islice(self.row, start, None)))
        return self._matrix[rows]

    def _made(self, words: list[str]) -> NDArray[np.float32]:
        features = [_features(word) for word in words]
        rows = np.repeat(np.arange(len(words)), [len(hashes) for hashes, _ in features])
        hashes = np.concatenate([hashes for hashes, _ in features])
        values = np.concatenate([values for _, values in features])
        columns = ((hashes >> np.uint64(1)) % np.uint64(self.dim)).astype(np.int64)
        signed = np.where(hashes & np.uint64(1), values, -values)
        flat = np.bincount(rows * self.dim + columns, weights=signed, minlength=len(words) * self.dim)
        return flat.astype(np.float32).reshape(len(words), self.dim)


@lru_cache(maxsize=REMEMBERED)
def _features(word: str) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Hashes [m] and sizes [m] of a word's features: the word with size 1, its m-1 grams together with size 1."""
    marked = f"<{word}>"
    grams = [marked[at : at + size] for size in GRAMS for at in range(len(marked) - size + 1)]
    texts = [f"w{word}", *(f"g{gram}" for gram in grams)]
    digest = b"".join(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    sizes = np.full(len(texts), 1 / max(1, len(grams)) ** 0.5, np.float32)
    sizes[0] = 1.0
    return np.frombuffer(digest, "<u8").astype(np.uint64), sizes
