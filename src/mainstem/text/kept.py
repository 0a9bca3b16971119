"""An encoder whose vectors are kept: a text is encoded once, by whichever process meets it first."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.text import TextEncoder
from mainstem.text.vectors import VectorFile

__all__ = ["KeptTexts"]

Ints = NDArray[np.int64]

# Texts encoded between two writes: what a kill loses at most.
CHUNK = 256
# Queries whose vectors are remembered: 30 MB at 384 numbers each.
QUERIES = 20_000
NOWHERE = -1


class KeptTexts:
    """`encoder` with the vectors of what entities say in a file of `folder`, None: of this process alone. Those of
    queries are remembered in memory: a query is its user's, and must not outlive them (law 10). Safe to use from
    several threads; several processes may share a folder."""

    def __init__(self, encoder: TextEncoder, folder: Path | None) -> None:
        self.encoder, self.dim = encoder, encoder.dim
        path = None if folder is None else folder / _name(encoder.version)
        self.vectors = VectorFile(path, encoder.dim, encoder.version)
        self._encoding = threading.Lock()
        self._queries: OrderedDict[str, Floats] = OrderedDict()
        self._remembering = threading.Lock()

    def places(self, texts: Sequence[str]) -> Ints:
        """Where the vector of each text is, for `take`: int64 [n], -1 for an empty one. Those that are not kept yet are
        encoded."""
        keys = _keys(texts)
        found = self.vectors.find(keys)
        if (lacking := (found == NOWHERE) & (keys != 0)).any():
            with self._encoding:  # who waited finds what the other encoded
                self.vectors.refresh()
                wanted, first = np.unique(keys[lacking], return_index=True)
                new = first[self.vectors.find(wanted) == NOWHERE]
                some = np.flatnonzero(lacking)[new]
                for start in range(0, len(some), CHUNK):
                    chunk = some[start : start + CHUNK]
                    self.vectors.put(keys[chunk], self.encoder.encode([texts[at] for at in chunk.tolist()]))
            found = self.vectors.find(keys)
        return found

    def take(self, places: Ints) -> Floats:
        """The vectors at these places: float32 [n, dim]; zeros at -1."""
        return self.vectors.take(places)

    def queries(self, texts: Sequence[str]) -> Floats:
        """The vectors of what is searched for: float32 [n, dim]; zeros of a text without a word."""
        found: dict[str, Floats] = {}
        with self._remembering:
            for text in dict.fromkeys(texts):
                if text in self._queries:
                    self._queries.move_to_end(text)
                    found[text] = self._queries[text]
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            found |= dict(zip(new, self.encoder.encode(new), strict=True))
            with self._remembering:
                self._queries |= {text: found[text] for text in new}
                while len(self._queries) > QUERIES:
                    self._queries.popitem(last=False)
        return np.array([found[text] for text in texts], np.float32).reshape(len(texts), self.dim)


def _name(version: str) -> str:
    """Of the file: readable, and none of two versions."""
    digest = hashlib.blake2b(version.encode(), digest_size=4).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', version)[-80:]}-{digest}.vectors"


def _keys(texts: Sequence[str]) -> Keys:
    """A key of each text's own: uint64 [n]; 0 of an empty one. Not `key64`, which would remember the texts."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    found = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    found[found == 0] = 1
    found[[not text.strip() for text in texts]] = 0
    return found
