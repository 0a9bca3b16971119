"""Pretrained sentence encoders, through the library sentence-transformers (Reimers and Gurevych, 2019)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import MissingExtra

__all__ = ["SentenceTransformersEncoder"]


class SentenceTransformersEncoder:
    """A TextEncoder around the model `model`: a name of the public hub, or a folder. Loaded when first needed.

    Raises MissingExtra where the library is not installed.
    """

    def __init__(self, model: str) -> None:
        try:
            library: Any = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise MissingExtra("text", f"sentence-transformers://{model}") from error
        self._model: Any = library.SentenceTransformer(model, device="cpu")
        self.name = f"sentence-transformers://{model}"
        # the newer name first: the older one warns
        width = getattr(self._model, "get_embedding_dimension", None) or self._model.get_sentence_embedding_dimension
        self.dim = int(width())
        self.version = f"sentence-transformers-{model}-{self.dim}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [len(texts), dim], rows of length 1; a text of white space alone is a zero row."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        filled = [row for row, text in enumerate(texts) if text.strip()]
        if filled:
            vectors[filled] = self._model.encode(
                [texts[row] for row in filled],
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        return vectors
