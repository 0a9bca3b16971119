"""The section `model.text` of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TextConfig"]


class TextConfig(BaseModel):
    """What reads the texts of entities and queries whole, beside their words."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    encoder: str = Field(default="none", min_length=1)
    """`none`; `hashing`: words and their letters, hashed, no package needed; `minilm`: MiniLM, trained on a billion
    pairs of sentences, with mainstem[text]; or the name, or folder, of any sentence-transformers model."""
