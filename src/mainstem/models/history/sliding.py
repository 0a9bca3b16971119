"""Which part of a long history each epoch of training reads.

Joshi et al. 2024, "Sliding Window Training: Utilizing Historical Recommender Systems Data for Foundation Models"
(Netflix): all of a long history is learned from, though the encoder reads no more than a window of it at a time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chunks", "How", "chunks"]

How = Literal["last", "sliding", "mixed"]

Ints = NDArray[np.int64]


class Chunks(NamedTuple):
    """Events start:stop of a user's history, one chunk a place: int64 [c] each.

    Its targets are all its events but the first; those before a target are read.

    events    0 1 2 3 4 5 6        window 3
    newest          3 4 5 6        targets 4 5 6
    older     0 1 2 3              targets 1 2 3
    """

    user: Ints
    start: Ints
    stop: Ints


def chunks(lengths: Ints, window: int, how: How, epoch: int, seed: int) -> Chunks:
    """One chunk of each user with two events or more, by user; a pure function of its arguments.

    lengths int64 [u]: events of each history; window: the most events that a target is predicted from; epoch from 0.
    Chunks are laid back from the newest event, so that only a user's oldest can be short. They meet in one
    event: the last target of one is what the first of the next is predicted from.

    last     the newest chunk, in every epoch.
    sliding  the user's chunks in turn, one an epoch, from one drawn by seed: in as many epochs as the user has chunks
             each event but the first is a target exactly once. The turns of long histories do not fall together.
    mixed    `last` in even epochs, the next of `sliding` in odd ones.

    Raises ValueError where window is below 1 or epoch below 0.
    """
    if window < 1 or epoch < 0:
        raise ValueError(f"window {window} must be at least 1 and epoch {epoch} at least 0")
    user = np.flatnonzero(lengths >= 2)
    count = -(-(lengths[user] - 1) // window)
    # one draw for each user, short or not: a history that grows changes no other user's turn
    turn = (np.random.default_rng(seed).random(len(lengths))[user] * count).astype(np.int64)
    match how:
        case "last":
            back = np.zeros_like(turn)
        case "sliding":
            back = (turn + epoch) % count
        case "mixed":
            back = (turn + epoch // 2) % count if epoch % 2 else np.zeros_like(turn)
        case _:
            assert_never(how)
    stop = lengths[user] - back * window
    return Chunks(user, np.maximum(stop - window - 1, 0), stop)
