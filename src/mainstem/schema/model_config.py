"""The `model` section: sizes of the networks, and how embedding rows live."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mainstem.schema.ranking_config import RankingConfig
from mainstem.schema.section import Duration, Section
from mainstem.schema.text_config import TextConfig

__all__ = ["FamilyConfig", "HistoryConfig", "ModelConfig"]


class FamilyConfig(Section):
    """How the embedding rows of one kind of key start, learn, earn their place and leave."""

    optimizer: Literal["rowwise_adagrad", "adagrad", "adam", "ftrl"] = "rowwise_adagrad"
    scale: float = Field(default=0.05, ge=0)
    """New rows are uniform between minus this and this."""
    admit_after: int = Field(default=1, ge=1, le=255)
    """A key earns its row when it is seen for the n-th time; sights are counted in bounded memory."""
    admit_probability: float = Field(default=1.0, gt=0, le=1)
    """Each such sight earns the row with this chance."""
    expire: Duration | None = "400d"
    """A row that was not trained on for so long, in event time, is dropped; null: never."""
    capacity: int | None = Field(default=None, ge=1)
    """Rows at most; one more makes one of the least recently seen leave."""


class HistoryConfig(Section):
    """What reads the user's history."""

    encoder: Literal["pooling", "transformer", "hstu"] = "pooling"
    """`pooling`: means that fade with age, fast; `transformer` (LiGR blocks) and `hstu` read the order too."""
    length: int = Field(default=50, ge=1, le=10_000)
    """Latest events that are read; `features.history`, what serving keeps, where that is less."""
    layers: int = Field(default=2, ge=1, le=32)
    heads: int = Field(default=2, ge=1, le=64)
    """Attention heads; `model.dim` must be a multiple of them, for `transformer` an even one."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    windows: Literal["sessions", "last", "sliding", "mixed"] = "sessions"
    """How an epoch goes over the past: session by session, each with what lay before it; or user by user, a window of
    the history at a time, the newest (`last`), one after the other (`sliding`) or in turn (`mixed`)."""
    query_time: bool = False
    """Whether it knows when it is asked; `hstu` and `transformer` alone."""


class ModelConfig(Section):
    """Sizes of the networks."""

    dim: int = Field(default=64, ge=4, le=1024)
    """Width of the entity and user vectors of retrieval."""
    hidden: list[int] = [64, 32]
    """Hidden layers of the ranking network."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the retrieval softmax over normalised vectors."""
    words: int = Field(default=16, ge=0, le=1000)
    """Words of an entity's text, and of a query, that speak for it; 0 for none."""
    text: TextConfig = TextConfig()
    history: HistoryConfig = HistoryConfig()
    ranking: RankingConfig = RankingConfig()
    user_rows: bool = False
    """Whether users have a row of their own beside what they did: it can hold what a history has forgotten, and takes
    memory."""
    families: dict[Literal["user", "entity", "attribute", "word"], FamilyConfig] = {
        "user": FamilyConfig(),
        "entity": FamilyConfig(),
        "attribute": FamilyConfig(),
        "word": FamilyConfig(),
    }
    """Embedding rows by kind of key; what is not named has the defaults."""
