"""The two-tower retrieval model: users and entities as unit vectors whose dot product is affinity.

Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations" (the user from a history of
items), and Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling" (normalised towers, temperature).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.jagged import bag, segment_sum

__all__ = ["TwoTower", "TwoTowerConfig"]


@dataclass(frozen=True, slots=True)
class TwoTowerConfig:
    """dim: width of embedding rows and of both towers' vectors. hidden: width of each tower's one hidden
    layer. channels: weightings of the history (say long and recent), each pooled on its own. context, content:
    widths of the user's dense features and of the entity's content vector; 0 leaves them out."""

    dim: int = 64
    hidden: int = 128
    channels: int = 2
    context: int = 0
    content: int = 0


def _correction(width: int, hidden: int, dim: int) -> nn.Sequential:
    """width -> hidden -> dim whose last layer starts at zero: training begins at plain embedding sums."""
    last = nn.Linear(hidden, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)


class TwoTower(nn.Module):
    """Both towers over one gathered leaf tensor `rows [u, dim]` (law 7).

    Every place is an index into `rows`; a key that has no row is given the place of the default row (zeros).
    History and entities share rows, so an item's vector learns from being bought and from what is bought after.

        entity 0: id, category        places  3 7 | 4 7 | 5      offsets 0 2 4 5
        entity 1: id, category
        entity 2: id
    """

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.blend = nn.Parameter(torch.full((config.channels,), 1.0 / max(config.channels, 1)))
        self.content = nn.Linear(config.content, config.dim, bias=False) if config.content else None
        self.entity_correction = _correction(config.dim, config.hidden, config.dim)
        width = (config.channels + 1) * config.dim + config.context
        self.user_correction = _correction(width, config.hidden, config.dim)

    def entity(self, rows: Tensor, places: Tensor, offsets: Tensor, content: Tensor | None = None) -> Tensor:
        """Unit vectors [n, dim] of entities: the sum of the rows of their keys, plus a residual MLP.

        rows [u, dim]; places int64 [total] and offsets int64 [n+1]: the keys (id, attributes) of each;
        content float [n, config.content] where the config has it.
        """
        x = bag(rows, places, offsets)
        if self.content is not None:
            if content is None:
                raise ValueError("this model was built with content vectors: pass content [n, config.content]")
            x = x + self.content(content)
        return functional.normalize(x + self.entity_correction(x), dim=-1)

    def user(
        self,
        rows: Tensor,
        user_places: Tensor,
        history_places: Tensor,
        history_offsets: Tensor,
        history_weights: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Unit vectors [n, dim] of users: weighted means of their history, their own row, a residual MLP.

        rows [u, dim]; user_places int64 [n]; history_places int64 [total], history_offsets int64 [n+1],
        history_weights float >= 0 [total, channels]: how much each event counts in each channel (recency,
        interest); context float [n, config.context], of scale about 1, where the config has it. A channel
        whose weights are all 0, like an empty history, pools to zeros.
        """
        if history_weights.shape[1:] != (self.config.channels,):
            raise ValueError(f"history_weights must be [total, {self.config.channels}], not {[*history_weights.shape]}")
        own = rows[user_places]
        blended, parts = own, [own]
        for channel in range(self.config.channels):
            pooled = self._mean(rows, history_places, history_offsets, history_weights[:, channel].contiguous())
            blended = blended + self.blend[channel] * pooled
            parts.append(pooled)
        if self.config.context:
            if context is None:
                raise ValueError("this model was built with context features: pass context [n, config.context]")
            parts.append(context)
        return functional.normalize(blended + self.user_correction(torch.cat(parts, dim=-1)), dim=-1)

    @staticmethod
    def _mean(rows: Tensor, places: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        total = segment_sum(weights, offsets).clamp(min=1e-12)
        return bag(rows, places, offsets, weights) / total[:, None]
