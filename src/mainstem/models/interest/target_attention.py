"""What of the history speaks for this candidate: a weighted sum of events, by how each goes with the candidate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mainstem.models.jagged import padded

__all__ = ["TargetAttention", "TargetAttentionConfig"]


@dataclass(frozen=True, slots=True)
class TargetAttentionConfig:
    """dim: width of events and candidates. hidden: of the activation unit. block: pairs whose hidden layers are laid
    out at once (at least one candidate of each request)."""

    dim: int
    hidden: int = 36
    block: int = 1 << 16


class TargetAttention(nn.Module):
    """Deep interest network: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", equation 3.

        interest(c) = sum over events h of a(h, c) h,   a(h, c) = v . PReLU(W [h, c, h - c, h * c] + b) + b'

    (the inputs of the unit are those of the authors' code). The weights are not normalised: their sum says how strong
    the interest is, which a softmax would hide (section 4.3).

    With h fixed, the unit's hidden layer is linear in c:

        W [h, c, h - c, h * c] + b  =  (W_p diag(h) + W_c - W_d) c  +  (W_h + W_d) h + b

    so the matrices of all events of a request, one above the other, take all its candidates in one product, and of a
    pair no more is laid out than its hidden layer: at most `block` pairs at once, and where there are more, backward
    lays each block out anew. Requests stand side by side, padded to the longest history and the most candidates.
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
        order = requests.argsort(stable=True)
        starts = torch.arange(len(history_offsets), device=requests.device)
        asked, is_candidate = padded(candidates[order], torch.searchsorted(requests[order], starts))
        past, is_event = padded(history, history_offsets)
        weights = self._weights(asked, past).masked_fill(~is_event[:, None, :], 0.0)
        found = (weights @ past)[is_candidate]
        return found[order.argsort()]

    def _weights(self, asked: Tensor, past: Tensor) -> Tensor:
        """a of each pair; asked [r, m, dim], past [r, l, dim]: [r, m, l]."""
        of_event, of_candidate, of_difference, of_product = torch.split(self.unit.weight, self.config.dim, dim=1)
        matrices = of_product * past[:, :, None] + (of_candidate - of_difference)
        matrices = matrices.flatten(1, 2)  # [r, l * hidden, dim]
        shift = functional.linear(past, of_event + of_difference, self.unit.bias).flatten(1)  # [r, l * hidden]
        rows = max(self.config.block // max(past.shape[0] * past.shape[1], 1), 1)
        blocks = torch.split(asked, rows, dim=1)
        if len(blocks) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._block(some, matrices, shift) for some in blocks], dim=1)
        return torch.cat(
            [checkpoint(self._block, some, matrices, shift, use_reentrant=False) for some in blocks], dim=1
        )

    def _block(self, asked: Tensor, matrices: Tensor, shift: Tensor) -> Tensor:
        hidden = torch.baddbmm(shift[:, None], asked, matrices.transpose(1, 2))  # [r, m, l * hidden]
        pairs = matrices.shape[1] // self.config.hidden, self.config.hidden
        out: Tensor = self.out(self.activation(hidden).unflatten(2, pairs))
        return out[..., 0]
