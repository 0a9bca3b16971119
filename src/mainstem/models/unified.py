"""The one model: any canvas' request and any entity as unit vectors whose dot product is affinity.

A request is the union of what any canvas knows (Bhattacharya et al. 2024, "Joint Modeling of Search and
Recommendations Via an Unified Contextual Recommender (UniCoRn)"): user, history, source entities, query, single-valued
fields. What a canvas lacks is a learned sentinel, and the canvas itself is an input: the task type. Two towers with
normalised vectors and a temperature, after Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations"
(the user from what they did) and Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
Recommendations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.history import (
    HSTU,
    Histories,
    HistoryEncoder,
    HSTUConfig,
    Pooling,
    PoolingConfig,
    Transformer,
    TransformerConfig,
)
from mainstem.models.jagged import bag, pick

__all__ = ["PARTS", "Asked", "EncoderConfig", "Unified", "UnifiedConfig", "encoder_of"]

EncoderConfig = PoolingConfig | TransformerConfig | HSTUConfig

PARTS = ("user", "history", "sources", "query")
"""What speaks for a request, beside its fields."""


@dataclass(frozen=True, slots=True)
class UnifiedConfig:
    """history: the encoder's. dim: width of rows and of both vectors. hidden: width of each side's one hidden layer.
    canvases: size of their vocabulary, 0 for one that training never saw. fields: single-valued context fields. text:
    width of the vectors that a text encoder gives, 0 without one."""

    history: EncoderConfig
    dim: int = 64
    hidden: int = 128
    canvases: int = 1
    fields: int = 0
    text: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """b requests, gathered. A part that a request lacks is masked, and its numbers are not read.

    canvas int64 [b]. user float [b, dim]: the users' rows; knows_user bool [b]. history float [b, width]: the encoder's
    state as of the request (`HistoryEncoder.last`, whose own sentinel stands for no history). sources float [b, dim]:
    the mean of the source entities' bodies (`Unified.body`); has_sources bool [b]. fields float [b, fields, dim]: the
    rows of the fields' values; has_field bool [b, fields]. query float [b, dim]: the mean of its words' rows, and what
    `Unified.told` makes of the whole; has_query bool [b].
    """

    canvas: Tensor
    user: Tensor
    knows_user: Tensor
    history: Tensor
    sources: Tensor
    has_sources: Tensor
    fields: Tensor
    has_field: Tensor
    query: Tensor
    has_query: Tensor


def encoder_of(config: EncoderConfig) -> HistoryEncoder:
    """An untrained encoder."""
    match config:
        case PoolingConfig():
            return Pooling(config)
        case TransformerConfig():
            return Transformer(config)
        case HSTUConfig():
            return HSTU(config)
        case _:
            assert_never(config)


def _correction(width: int, hidden: int, dim: int) -> nn.Sequential:
    """width -> hidden -> dim whose last layer starts at zero: training begins at plain sums."""
    last = nn.Linear(hidden, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)


class Unified(nn.Module):
    """Both sides over one gathered leaf tensor `rows [u, dim]` (law 7); rows of keys without one are zeros.

        request    user   history   sources   query   country ...
                    |        |          |       -        |             -: sentinel, learned for each part
                    +--------+----+-----+-------+--------+
                 a sum, each part weighted as the canvas has learned to,
                 + a network of all parts and the canvas  ->  unit vector [dim]

    Sources and history are entities: an item's row learns from being taken and from what is taken after it.
    """

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__()
        self.config = config
        dim, parts = config.dim, len(PARTS) + config.fields
        self.encoder = encoder_of(config.history)
        self.history = nn.Linear(self.encoder.width, dim, bias=False) if self.encoder.width != dim else nn.Identity()
        self.sentinels = nn.Parameter(torch.zeros(parts, dim))
        self.mix = nn.Parameter(torch.ones(config.canvases, parts))
        self.canvas = nn.Embedding(config.canvases, dim)
        nn.init.zeros_(self.canvas.weight)
        self.request_correction = _correction((parts + 1) * dim, config.hidden, dim)
        self.entity_correction = _correction(dim, config.hidden, dim)
        if config.text:
            self.text = nn.Linear(config.text, dim, bias=False)
            self.no_text = nn.Parameter(torch.zeros(dim))

    # ---- entities ------------------------------------------------------------------------------------

    def body(self, rows: Tensor, places: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
        """What entities are made of, [n, dim], not normalised: the (weighted) sum of their keys' rows.

        rows [u, dim]; places int64 [total], offsets int64 [n + 1]: the keys (id, attributes, words) of each; weights
        float [total].
        """
        return bag(rows, places, offsets, weights)

    def entity(self, body: Tensor) -> Tensor:
        """Unit vectors [n, dim] of entities: body [n, dim] and a residual network. They are what the index holds."""
        return functional.normalize(body + self.entity_correction(body), dim=-1)

    def told(self, texts: Tensor) -> Tensor:
        """What texts add to the body of an entity, and to a query: [n, dim], from the frozen vectors [n, text] that
        their encoder gives, by one projection for both; of a row of zeros, no text, a learned sentinel."""
        return torch.where(texts.any(dim=1, keepdim=True), self.text(texts), self.no_text)

    # ---- requests ------------------------------------------------------------------------------------

    def request(self, asked: Asked) -> Tensor:
        """Unit vectors [b, dim] of requests: what queries the index.

        The network's first layer is applied to each part by itself, and once for all where no request has it: most
        batches ask on few canvases, which know few parts.
        """
        first = cast(nn.Linear, self.request_correction[0])
        *of_parts, of_canvas = torch.split(first.weight, self.config.dim, dim=1)
        mix = self.mix[asked.canvas]
        hidden = functional.linear(self.canvas(asked.canvas), of_canvas, first.bias)
        summed = torch.zeros_like(asked.user)
        for place, (value, known) in enumerate(self._parts(asked)):
            sentinel = self.sentinels[place]
            part = torch.where(known[:, None], value, sentinel) if bool(known.any()) else sentinel
            summed = summed + mix[:, place, None] * part
            hidden = hidden + functional.linear(part, of_parts[place])
        return functional.normalize(summed + self.request_correction[1:](hidden), dim=-1)

    def _parts(self, asked: Asked) -> list[tuple[Tensor, Tensor]]:
        """Of each part the values [b, dim], and which requests have it, bool [b]: in the order of `PARTS`, then the
        fields."""
        fields = zip(asked.fields.unbind(dim=1), asked.has_field.unbind(dim=1), strict=True)
        return [
            (asked.user, asked.knows_user), (self.history(asked.history), torch.ones_like(asked.knows_user)),
            (asked.sources, asked.has_sources), (asked.query, asked.has_query), *fields,
        ]  # fmt: skip

    def states(self, histories: Histories) -> Tensor:
        """The encoder's states [t, width], one per event."""
        out: Tensor = self.encoder(histories)
        return out

    def at(self, states: Tensor, places: Tensor) -> Tensor:
        """States [b, width] at these places int64 [b]; the encoder's `empty` at -1: nothing was done yet."""
        table = torch.cat((states, self.encoder.empty[None]))
        return pick(table, torch.where(places < 0, len(states), places))
