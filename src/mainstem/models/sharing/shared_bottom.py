"""One network for all tasks, and a layer of its own for each on top: the plain default (Caruana 1997)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mainstem.models.sharing.experts import Experts

__all__ = ["SharedBottom", "SharedBottomConfig"]


@dataclass(frozen=True, slots=True)
class SharedBottomConfig:
    """width: of the input. hidden: layers of the shared bottom. out: width of each task's own layer."""

    width: int
    tasks: int
    hidden: tuple[int, ...] = (128,)
    out: int = 32

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        bottom = (self.width, *self.hidden)
        return Experts.parameters_of(1, bottom) + Experts.parameters_of(self.tasks, (bottom[-1], self.out))


class SharedBottom(nn.Module):
    """y_k = tower_k(f(x)): Caruana 1997, "Multitask Learning"; Ma et al. 2018 (MMoE), equation 1.

    Tasks that want different things of f pull at the same weights.
    """

    def __init__(self, config: SharedBottomConfig) -> None:
        super().__init__()
        self.config = config
        self.bottom = Experts(1, (config.width, *config.hidden))
        self.towers = Experts(config.tasks, ((config.width, *config.hidden)[-1], config.out))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width] -> [n, tasks, out]."""
        out: Tensor = self.towers(self.bottom(x)[0])
        return out.transpose(0, 1)
