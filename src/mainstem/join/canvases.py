"""Label preparation for ranking: which request on a canvas a visit can stand for.

| `learns_from` | the request | what of the visit answers it |
|---|---|---|
| `events` | the user | all |
| `previous` | and the visit's first entity as the source | the others |
| `category` | and the category of one of the visit's entities | those of the category |
| `query` | and the query of one of its events | all that were taken with it |

Country, language and device are those of one of its events. What does not answer is no candidate: a source is not shown
beside itself, a category's page shows nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from mainstem.join.replay import StoredRequest
from mainstem.join.sessions import Visit
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import CanvasConfig
from mainstem.schema.protocols import Catalog
from mainstem.schema.records import Context
from mainstem.schema.settings import Setting

__all__ = ["CanvasRequests"]


class CanvasRequests:
    """Makes requests of visits to `events`, whose rows the visits name; `users`: the id of each user's key."""

    def __init__(
        self, canvases: Mapping[str, CanvasConfig], events: EventBatch, users: Mapping[int, str], catalog: Catalog
    ) -> None:
        self.canvases, self.events, self.users, self.catalog = canvases, events, users, catalog

    def of(
        self, visit: Visit, canvas: str, rng: np.random.Generator, *, stranger: bool = False
    ) -> StoredRequest | None:
        """The visit as a request on this canvas, asked by a stranger or its user; None where it is none."""
        user = None if stranger else self.users[visit.user]
        row = int(visit.rows[rng.integers(len(visit.rows))])
        setting = self.events.settings.get(int(self.events.setting[row]), Setting())
        context = Context(canvas=canvas, user=user, time=visit.time, **setting._asdict())
        match self.canvases[canvas].learns_from:
            case "events":
                return StoredRequest(visit, context)
            case "previous":
                taken = self.events.entity[visit.rows]
                source = self.catalog.entity(int(taken[0])) if (taken != taken[0]).any() else None
                if source is None:
                    return None
                found = msgspec.structs.replace(context, sources=[source.entity], source_type=source.entity_type)
            case "category":
                category = self.catalog.attributes(int(self.events.entity[row])).get("category")
                if not isinstance(category, str) or not category:
                    return None
                found = msgspec.structs.replace(context, category=category)
            case "query":
                query = self.events.queries.get(int(self.events.query[row]))
                if query is None:
                    return None
                found = msgspec.structs.replace(context, query=query)
        return StoredRequest(visit, found)
