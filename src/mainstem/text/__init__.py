"""Text to vectors: what an entity says of itself, usable from its first second, before anybody touched it.

hashing.py                feature hashing of words and their letters: no model file, the default
minilm.py                 a pretrained sentence encoder whose weights come as a package
sentence_transformers.py  any pretrained sentence encoder, where its library is installed
vectors.py                vectors in a file that processes share, by key
kept.py                   an encoder whose vectors are kept there: each text is encoded once
tokenizer.py              text -> words

`open` gives an encoder by URL, `keep` one of the configuration's names with its vectors kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import ConfigError
from mainstem.text.tokenizer import tokenize

if TYPE_CHECKING:
    from mainstem.text.kept import KeptTexts

__all__ = ["TextEncoder", "keep", "open", "tokenize", "url_of", "version_of"]


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
    """`hashing://WIDTH`, `minilm://`, or `sentence-transformers://NAME` with the name or the folder of a model.

    Raises ConfigError on any other url, MissingExtra where the engine is not installed.
    """
    parts = urlsplit(url)
    rest = url.removeprefix(f"{parts.scheme}://")
    if parts.scheme == "hashing" and rest.isascii() and rest.isdigit() and int(rest) > 0:
        from mainstem.text.hashing import HashingEncoder

        return HashingEncoder(int(rest))
    if url == "minilm://":
        from mainstem.text.minilm import MiniLMEncoder

        return MiniLMEncoder()
    if parts.scheme == "sentence-transformers" and rest:
        from mainstem.text.sentence_transformers import SentenceTransformersEncoder

        return SentenceTransformersEncoder(rest)
    raise ConfigError(
        f"text url {url!r}: write hashing://WIDTH, as in hashing://256, minilm:// or sentence-transformers://NAME"
    )


def url_of(encoder: str) -> str | None:
    """The url of what `model.text.encoder` names; None for `none`."""
    own = {"none": None, "hashing": "hashing://256", "minilm": "minilm://"}
    return own.get(encoder, f"sentence-transformers://{encoder}")


def version_of(encoder: str) -> str:
    """What a model that learned with this encoder depends on, told without opening it."""
    return {"hashing": "hashing-1-256", "minilm": "minilm-1"}.get(encoder, encoder)


def keep(encoder: str, folder: str) -> KeptTexts | None:
    """What `model.text.encoder` names, its vectors kept at the url `folder`: `file:///FOLDER`, or `memory://` for as
    long as the process lives. None for `none`. All who ask for the same get the same, while anybody holds it.

    Raises ConfigError on any other url, MissingExtra where the engine is not installed.
    """
    url = url_of(encoder)
    if url is None:
        return None
    scheme, _, path = folder.partition("://")
    if scheme not in ("file", "memory") or (scheme == "file") != bool(path):
        raise ConfigError(f"storage.text {folder!r}: write file:///FOLDER or memory://")
    from mainstem.text.kept import KeptTexts

    with _opening:
        found = _kept.get((url, folder))
        if found is None:
            found = _kept[url, folder] = KeptTexts(open(url), Path(path) if path else None)
        return found


_opening = Lock()
_kept: WeakValueDictionary[tuple[str, str], KeptTexts] = WeakValueDictionary()
