"""What `Histories` does, said plainly: for each user a list of the past and a list of what waits. The oracle."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HistoryConfig

Event = tuple[int, int, int]
"""entity, time, note"""
Seen = tuple[list[Event], int]
"""What lies before a positive's session, oldest first, and the other entity that was taken last."""


@dataclass
class User:
    session: int
    last: int
    past: list[Event] = field(default_factory=list)
    waiting: list[Event] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)


class PlainHistories:
    def __init__(self, gap: int, length: int = HistoryConfig().length) -> None:
        self.gap, self.length = gap, length
        self.users: dict[int, User] = {}

    def before(self, events: EventBatch, note: np.ndarray) -> list[Seen]:
        found = list[Seen]()
        for i in range(len(events)):
            key, session, time = int(events.user[i]), int(events.session[i]), int(events.time[i])
            user, entity = self.users.get(key), int(events.entity[i])
            if user is None or session != user.session or (session == 0 and time - user.last > self.gap):
                user = self.users.setdefault(key, User(session, time))
                user.session = session
                while user.waiting and user.waiting[0][1] < time:
                    user.past.append(user.waiting.pop(0))
                user.past = user.past[-self.length :]
            others = [one for one in user.taken if one != entity]
            found.append((list(user.past), others[-1] if others else 0))
            user.taken.append(entity)
            user.waiting.append((entity, time, int(note[i])))
            user.last = max(user.last, time)
        return found

    def forget(self, users: list[int]) -> None:
        for key in users:
            self.users.pop(key, None)

    def expire(self, before: int) -> int:
        gone = [key for key, user in self.users.items() if user.last < before]
        self.forget(gone)
        return len(gone)
