"""Text to words: compatibility-normalised, case-folded, split wherever there is neither letter, digit nor mark."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["tokenize"]

_ASCII_WORD = re.compile(r"[a-z0-9]+")


def tokenize(text: str) -> list[str]:
    """`"Café-CRÈME, 2.5l"` -> `["café", "crème", "2", "5l"]`.

    NFKC first, so that full-width and composed forms meet; marks (vowel signs, accents that do not
    compose) belong to the word they stand in. Scripts without spaces come as one word a run.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(
        letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else " " for letter in folded
    ).split()
