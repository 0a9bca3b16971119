"""Towers trained on the checkerboard or on other events, and what they put nearest."""

from __future__ import annotations

import numpy as np
import torch
from checkerboard import CONFIG, ITEM_KEYS, ITEMS, T0, catalog_of

from mainstem.join.sessions import session_starts
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.time import DAY
from mainstem.train import RetrievalTrainer, Towers, new_towers
from mainstem.train.interactions import Positives, Sequences, notes
from mainstem.train.towers import Request

HOME, SIMILAR = 1, 2
NOTHING: Keys = np.zeros(0, np.uint64)


def positives_of(events: EventBatch, interest: dict[str, float] | None = None) -> Positives:
    return Positives.of(events, interest or {"purchase": 1.0}, session_starts)


def trainer_of(data: Positives, config: Config = CONFIG) -> RetrievalTrainer:
    return RetrievalTrainer(new_towers(config, catalog_of()), data, config.model, config.train)


def trained(events: EventBatch, epochs: int = 3, config: Config = CONFIG) -> RetrievalTrainer:
    torch.manual_seed(0)
    trainer = trainer_of(positives_of(events), config)
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        losses = [loss for loss, _ in trainer.epoch(np.arange(len(trainer.positives)), rng, epoch)]
    assert np.isfinite(losses).all()
    return trainer


def past(items: Keys, time: int = T0) -> Sequences:
    n = len(items)
    if not n:
        return Sequences.none()
    noted = notes(np.zeros(n), np.full(n, HOME), np.ones(n))
    return Sequences(items, noted, np.full(n, time), np.array([time + DAY]), np.array([0, n]))


def user_vector(towers: Towers, items: Keys, user: int = 0) -> np.ndarray:
    return towers.request_vector(Request(HOME, user, past(items), NOTHING, 0, NOTHING))


def share_right(towers: Towers) -> float:
    """Share of the half of the items nearest to a visitor who took three even (odd) ones that are even (odd)."""
    return nearest(towers, [user_vector(towers, ITEM_KEYS[parity : parity + 6 : 2]) for parity in (0, 1)])


def nearest(towers: Towers, asked: list[np.ndarray]) -> float:
    """Share of the half of the items nearest to the first (second) vector that is even (odd)."""
    vectors = towers.entity_vectors(ITEM_KEYS)
    found = [(np.argsort(-vectors @ one)[: ITEMS // 2] % 2 == parity).mean() for parity, one in enumerate(asked)]
    return float(np.mean(found))
