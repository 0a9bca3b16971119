"""A process that folds a fixed log into the state at argv[1], a batch after the other, until it is killed."""

from __future__ import annotations

import sys

import numpy as np
from laws import HOUR, ITEMS, START, WORLD, Colours, event, write

import mainstem.features as features
from mainstem.schema.records import Event

BATCH = 6


def the_log(size: int = 60_000) -> list[Event]:
    """The same events every time; about three share a time."""
    random = np.random.default_rng(11)
    users, items, places = random.integers(4, size=size), random.integers(len(ITEMS), size=size), "ab"
    return [
        event(n, START + n // 3 * HOUR, f"u{users[n]}", ITEMS[items[n]], session=f"s{n // 7}", store=places[n % 2])
        for n in range(size)
    ]


def main(folder: str, size: int) -> None:
    store = features.open(f"lmdb://{folder}", WORLD, Colours())
    events = the_log()
    for start in range(store.position().offset(), size, BATCH):
        write(store, events[start : start + BATCH], first=start)
        print(start, flush=True)
    store.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60_000)
