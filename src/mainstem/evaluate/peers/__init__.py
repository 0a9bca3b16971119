"""What a recommender of the next item must beat: one file each, its settings chosen on validation from a small grid.

popularity.py  what is taken most, the same for everybody
item_knn.py    items that the same users took (mainstem.models.neighbourhood)
ease.py        a linear autoencoder with a closed form (the same)
ials.py        implicit matrix factorisation, by the package `implicit`
matrix.py      users' actions as a sparse matrix, for those that want one
tuned.py       a peer and its grid as a `NextItem`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mainstem.evaluate.peers import ease, ials, item_knn, popularity
from mainstem.evaluate.peers.tuned import Fit, Tuned

__all__ = ["PEERS", "Peer", "Tuned"]


@dataclass(frozen=True, slots=True)
class Peer:
    """How one is fitted, the settings to choose from, and whether anything in it is drawn: seeds differ then."""

    fit: Fit
    grid: Sequence[Mapping[str, Any]]
    drawn: bool = False

    def new(self, name: str, seed: int = 0) -> Tuned:
        """Not fitted yet. Fitting raises MissingExtra where its package is absent."""
        return Tuned(name, self.fit, self.grid, seed if self.drawn else None)


PEERS = {
    "popularity": Peer(popularity.fit, popularity.GRID),
    "item-knn": Peer(item_knn.fit, item_knn.GRID),
    "ease": Peer(ease.fit, ease.GRID),
    "ials": Peer(ials.fit, ials.GRID, drawn=True),
}
