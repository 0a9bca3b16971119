"""What `Histories` does, said plainly: for each user a list of the past and a list of what waits. The oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mainstem.schema.batch import EventBatch
from mainstem.train.interactions import HISTORY, Interactions

Event = tuple[int, int, float]
"""entity, time, interest"""


@dataclass
class User:
    session: int
    last: int
    moved: int = 0
    past: list[Event] = field(default_factory=list)
    waiting: list[Event] = field(default_factory=list)


class PlainHistories:
    def __init__(self, gap: int) -> None:
        self.gap = gap
        self.users: dict[int, User] = {}

    def before(self, events: EventBatch, interest: np.ndarray) -> Interactions:
        found, offsets = list[Event](), [0]
        for i in range(len(events)):
            key, session, time = int(events.user[i]), int(events.session[i]), int(events.time[i])
            user = self.users.get(key)
            if user is None or session != user.session or (session == 0 and time - user.last > self.gap):
                user = self.users.setdefault(key, User(session, time))
                user.session = session
                while user.waiting and user.waiting[0][1] < time:
                    user.past.append(user.waiting.pop(0))
                    user.moved += 1
                user.past = user.past[-HISTORY:]
            found += [(entity, time - then, weight) for entity, then, weight in user.past]
            offsets.append(len(found))
            user.waiting.append((int(events.entity[i]), time, float(interest[i])))
            user.last = max(user.last, time)
        entity, age, weight = zip(*found, strict=True) if found else ((), (), ())
        return Interactions(
            events.user, events.entity, interest, events.time, np.array(entity, np.uint64), np.array(age, np.int64),
            np.array(weight, np.float32), np.array(offsets),
        )  # fmt: skip

    def forget(self, users: list[int]) -> None:
        for key in users:
            self.users.pop(key, None)

    def rings(self) -> dict[str, Any]:
        """A checkpoint as earlier releases wrote it: a ring of `HISTORY` events a user, the k-th at k % HISTORY."""
        keys = sorted(self.users)
        users = [self.users[key] for key in keys]
        rings = np.zeros((len(users), HISTORY), [("entity", "u8"), ("time", "i8"), ("interest", "f4")])
        for ring, user in zip(rings, users, strict=True):
            for k, event in enumerate(user.past, user.moved - len(user.past)):
                ring[k % HISTORY] = event
        waits = np.array([event for user in users for event in user.waiting], rings.dtype)
        names = rings.dtype.names or ()
        return {
            "user": np.array(keys, np.uint64), "session": np.array([user.session for user in users], np.uint64),
            "last": np.array([user.last for user in users], np.int64),
            "count": np.array([user.moved for user in users], np.int64),
            "waiting": np.array([len(user.waiting) for user in users], np.int64),
            **{f"ring_{name}": rings[name].copy() for name in names}, **{f"w_{name}": waits[name] for name in names},
        }  # fmt: skip
