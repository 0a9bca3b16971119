"""Trains the two towers on the log's positives: (user's history before the session, entity taken)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mainstem.models.losses import log_inclusion, sampled_softmax
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import ModelConfig, TrainConfig
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.train.towers import CHANNELS, HISTORY, Towers

__all__ = ["Positives", "RetrievalTrainer"]

# Evenly drawn negatives beside those of the batch: they reach the entities that nobody takes.
UNIFORM = 1024


@dataclass(frozen=True, slots=True)
class Positives:
    """All events of interest, sorted by user and time; an event's history is what lies before its session.

    user uint64 [n], entity uint64 [n], time int64 [n], interest float32 [n]; `begin` int64 [n] the place
    where the user's events begin, `session` int64 [n] the place before which the history of the event ends: all
    that lies there happened strictly before the first event of its session (law 4).
    """

    user: Keys
    entity: Keys
    time: NDArray[np.int64]
    interest: Floats
    begin: NDArray[np.int64]
    session: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        events: EventBatch,
        interest: Mapping[str, float],
        session_starts: Callable[[EventBatch, NDArray[np.int64]], NDArray[np.bool_]],
    ) -> Positives:
        """`session_starts(events, order)` is the join's definition of where sessions begin: a mask along `order`,
        in which a session's events stand together."""
        weight = np.array([interest.get(kind, 0.0) for kind in events.kinds] or [0.0], np.float32)
        events = events.take((weight[events.kind] > 0) & (events.entity != 0))
        places = np.arange(len(events))
        order = np.lexsort((places, events.time, events.user))
        user, time = events.user[order], events.time[order]
        new_user = _changes(user)
        # Sessions may overlap (two tabs): group them, find each one's first event, and go back to the user's time.
        grouped = np.lexsort((places, events.time, events.session, events.user))
        opening, place_of = np.empty_like(places), np.empty_like(places)
        opening[grouped] = grouped[_latest(session_starts(events, grouped))]
        place_of[order] = places
        return cls(
            user=user,
            entity=events.entity[order],
            time=time,
            interest=weight[events.kind[order]],
            begin=_latest(new_user),
            # What another session did in that very moment is not before it.
            session=_latest(new_user | _changes(time))[place_of[opening[order]]],
        )

    def __len__(self) -> int:
        return len(self.user)


def _changes(values: NDArray[np.int64] | Keys) -> NDArray[np.bool_]:
    """Mask [n]: where a value differs from the one before it; the first does."""
    changed = np.ones(len(values), np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _latest(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The place of the latest start at or before each place: int64 [n]."""
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))


class RetrievalTrainer:
    """One pass over positives at a time; the table learns by row-wise Adagrad, the towers by Adam."""

    def __init__(self, towers: Towers, positives: Positives, model: ModelConfig, train: TrainConfig) -> None:
        self.towers, self.positives, self.model, self.train = towers, positives, model, train
        self.adam = torch.optim.Adam(towers.module.parameters(), lr=1e-3)
        # Distinct entities, and the place of each positive's among them.
        self.entities, self.place = np.unique(positives.entity, return_inverse=True)
        self.draw_from(np.arange(len(positives)))

    def draw_from(self, rows: NDArray[np.int64]) -> None:
        """Say which positives batches come from: Q of the logQ correction is their distribution, and even draws are
        of their entities alone. Those that come up only later must not be learned as unwanted before they exist."""
        count = np.bincount(self.place[rows], minlength=len(self.entities))
        self.share = (count / max(len(rows), 1)).astype(np.float32)
        self.drawable = np.flatnonzero(count)

    def epoch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[float]:
        """One pass over these positives in random order; yields each step's loss."""
        self.draw_from(rows)
        size = self.train.retrieval_batch
        order = rng.permutation(rows)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            if len(batch) > 1:
                yield self.step(batch, rng)

    def step(self, rows: NDArray[np.int64], rng: np.random.Generator) -> float:
        """One optimizer step on positives `rows` [b], b > 1; the loss. One look-up for all roles (law 7)."""
        data, towers = self.positives, self.towers
        towers.module.train()
        draws = min(UNIFORM, len(self.drawable))
        uniform = rng.choice(self.drawable, draws)
        drawn = np.unique(np.concatenate([self.place[rows], uniform]))
        candidates = self.entities[drawn]
        places, offsets, weights = self.histories(rows)
        gathered = towers.lookup.gather(
            {
                "user": data.user[rows],
                "history": data.entity[places],
                "candidate": towers.entity_keys(candidates).ravel(),
            }
        )
        users = towers.user_batch(gathered, offsets, weights)
        log_q = log_inclusion(torch.from_numpy(self.share[drawn]), len(rows) - 1, draws, len(self.drawable))
        loss = sampled_softmax(
            users,
            towers.entity_batch(gathered, "candidate", len(candidates)),
            torch.from_numpy(candidates.view(np.int64)),
            log_q,
            self.model.temperature,
            targets=torch.from_numpy(np.searchsorted(drawn, self.place[rows])),
            weights=torch.from_numpy(data.interest[rows]),
        )
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        towers.lookup.apply_gradients(self.train.retrieval_learning_rate)
        return float(loss.detach())

    def histories(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """The latest HISTORY events before each positive's session, jagged.

        places int64 [t], offsets int64 [b + 1], weights float32 [t, channels].
        """
        data = self.positives
        end = data.session[rows]
        begin = np.maximum(data.begin[rows], end - HISTORY)
        sizes = end - begin
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], sizes)
        age = np.repeat(data.time[rows], sizes) - data.time[places]
        if not len(places):
            return places, offsets, np.zeros((0, len(CHANNELS)), np.float32)
        return places, offsets, self.towers.history_weights(age, data.interest[places])

    @torch.no_grad()
    def recall(self, rows: NDArray[np.int64], k: int = 100, chunk: int = 512) -> float:
        """Share of positives `rows` that are among the k nearest of all entities: full ranking."""
        towers, data = self.towers, self.positives
        towers.module.eval()
        vectors = torch.from_numpy(towers.entity_vectors(self.entities))
        hits = 0
        for start in range(0, len(rows), chunk):
            some = rows[start : start + chunk]
            places, offsets, weights = self.histories(some)
            gathered = towers.lookup.gather(
                {"user": data.user[some], "history": data.entity[places]}, create=False, gradient=False
            )
            users = towers.user_batch(gathered, offsets, weights)
            best = (users @ vectors.T).topk(min(k, len(self.entities)), dim=1).indices.numpy()
            target = np.searchsorted(self.entities, data.entity[some])
            hits += int((best == target[:, None]).any(axis=1).sum())
        return hits / max(len(rows), 1)
