"""What of the history speaks for this candidate: a weighted sum of events, by how each goes with the candidate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mainstem.models.interest.pairs import Pairs, pairs_of
from mainstem.models.jagged import bag

__all__ = ["TargetAttention", "TargetAttentionConfig"]


@dataclass(frozen=True, slots=True)
class TargetAttentionConfig:
    """dim: width of events and candidates. hidden: of the activation unit. block: pairs that are laid out at once."""

    dim: int
    hidden: int = 36
    block: int = 1 << 16


class TargetAttention(nn.Module):
    """Deep interest network: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", equation 3.

        interest(c) = sum over events h of a(h, c) h,   a(h, c) = v . PReLU(W [h, c, h - c, h * c] + b) + b'

    (the inputs of the unit are those of the authors' code). The weights are not normalised: their sum says how strong
    the interest is, which a softmax would hide (section 4.3).

    A pair costs one product of width dim, not four: W [h, c, h - c, h * c] is (W_h + W_d) h + (W_c - W_d) c
    + W_p (h * c), and the first two are made once an event and once a candidate. Events are read by place; at most
    `block` pairs are laid out at once, and where there are more, backward lays each block out anew.
    """

    def __init__(self, config: TargetAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.unit = nn.Linear(4 * config.dim, config.hidden)
        self.activation = nn.PReLU()
        self.out = nn.Linear(config.hidden, 1)

    def forward(self, candidates: Tensor, requests: Tensor, history: Tensor, history_offsets: Tensor) -> Tensor:
        """Interest [n, dim]; zeros where the history is empty.

        candidates [n, dim]; requests int64 [n]: the request each candidate belongs to; history [total, dim];
        history_offsets int64 [r + 1]: the events of request i are history_offsets[i]:history_offsets[i + 1].
        """
        pairs = pairs_of(requests, history_offsets)
        return bag(history, pairs.event, pairs.offsets, self.weights(candidates, history, pairs))

    def weights(self, candidates: Tensor, history: Tensor, pairs: Pairs) -> Tensor:
        """a of each pair: [p]."""
        of_event, of_candidate, of_difference, of_product = torch.split(self.unit.weight, self.config.dim, dim=1)
        events = functional.linear(history, of_event + of_difference)
        targets = functional.linear(candidates, of_candidate - of_difference, self.unit.bias)
        size = self.config.block
        blocks = list(zip(torch.split(pairs.candidate, size), torch.split(pairs.event, size), strict=True))
        tensors = (candidates, history, targets, events, of_product)
        if len(blocks) == 1:
            return self._block(*tensors, *blocks[0])
        if not torch.is_grad_enabled():
            return torch.cat([self._block(*tensors, *block) for block in blocks])
        return torch.cat([checkpoint(self._block, *tensors, *block, use_reentrant=False) for block in blocks])

    def _block(
        self,
        candidates: Tensor,
        history: Tensor,
        targets: Tensor,
        events: Tensor,
        of_product: Tensor,
        candidate: Tensor,
        event: Tensor,
    ) -> Tensor:
        products = functional.linear(history[event] * candidates[candidate], of_product)
        hidden = self.activation(products + events[event] + targets[candidate])
        out: Tensor = self.out(hidden)
        return out[:, 0]
