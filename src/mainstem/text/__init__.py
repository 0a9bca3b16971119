"""Text to vectors: what an entity says of itself, usable from its first second, before anybody touched it.

hashing.py                feature hashing of words and their letters: no model file, the default
sentence_transformers.py  a pretrained sentence encoder, where one is installed
tokenizer.py              text -> words
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import ConfigError
from mainstem.text.tokenizer import tokenize

__all__ = ["TextEncoder", "open", "tokenize"]


class TextEncoder(Protocol):
    """Texts to vectors whose inner product is their cosine. Safe to use from several threads."""

    name: str
    """The url that opens it."""
    dim: int
    version: str
    """Vectors of different versions may not be compared (law 11)."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [len(texts), dim], rows of length 1; a text without a word is a zero row."""
        ...


def open(url: str = "hashing://256") -> TextEncoder:
    """`hashing://WIDTH`, or `sentence-transformers://NAME` with the name or the folder of a model.

    Raises ConfigError on any other url, MissingExtra where the engine is not installed.
    """
    parts = urlsplit(url)
    rest = url.removeprefix(f"{parts.scheme}://")
    if parts.scheme == "hashing" and rest.isascii() and rest.isdigit() and int(rest) > 0:
        from mainstem.text.hashing import HashingEncoder

        return HashingEncoder(int(rest))
    if parts.scheme == "sentence-transformers" and rest:
        from mainstem.text.sentence_transformers import SentenceTransformersEncoder

        return SentenceTransformersEncoder(rest)
    raise ConfigError(f"text url {url!r}: write hashing://WIDTH, as in hashing://256, or sentence-transformers://NAME")
