"""What an erasure removes (law 10): pure functions on records.

A *name* is (tenant, family, id); the family of users is `user`. A record is erased where one of its names is:

    Event                        its user, and the entity it is about
    Entity, EntityPatch, -Delete the entity
    Erase                        whom it erases (an earlier erasure of the same name goes with the later one)
    Served                       the user it was made for; of other erased names it loses the places alone
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from mainstem.eventlog.admission import id_digest
from mainstem.schema.records import Erase, Erased, Event, LogRecord, Served

__all__ = ["USER", "Name", "forgotten", "guest_in", "target"]

Name = tuple[str, str, str]
USER, ALIAS = "user", "alias"


def target(erase: Erase) -> Name:
    """The name that `erase` forgets."""
    if erase.user is not None:
        return erase.tenant, USER, erase.user
    return erase.tenant, erase.entity_type, str(erase.entity)


def forgotten(record: LogRecord, gone: Callable[[Name], bool]) -> LogRecord:
    """`record` as it is once all names that are `gone` are erased: itself, less of it, or an `Erased` in its place."""
    if isinstance(record, Served):
        users = {record.user, record.request.context.user} - {None}
        if any(gone((record.tenant, USER, str(user))) for user in users):
            return _in_its_place(record)
        return _without_places(record, gone)
    return _in_its_place(record) if any(map(gone, _names(record))) else record


def guest_in(record: LogRecord) -> str | None:
    """The guest that `record` says to be its user from now on."""
    if isinstance(record, Event) and record.kind == ALIAS and record.entity_type == USER:
        return record.entity
    return None


def _names(record: LogRecord) -> tuple[Name, ...]:
    if isinstance(record, Event):
        user = (record.tenant, USER, record.user)
        return (user,) if record.entity is None else (user, (record.tenant, record.entity_type, record.entity))
    if isinstance(record, Erase):
        return (target(record),)
    if isinstance(record, Erased | Served):
        return ()
    return ((record.tenant, record.entity_type, record.entity),)


def _in_its_place(record: LogRecord) -> Erased:
    return Erased(digest=id_digest(record), tenant=record.tenant)


def _without_places(served: Served, gone: Callable[[Name], bool]) -> Served:
    """The slate without the places of erased entities, and the request without their ids. Pool and past go with the
    first of them: what they hold has keys, not names."""
    tenant, items, request = served.tenant, served.slate.items, served.request
    context, show = request.context, request.show

    def left(family: str, ids: list[str]) -> list[str]:
        return [name for name in ids if not gone((tenant, family, name))]

    kept = [place for place, item in enumerate(items) if not gone((tenant, item.entity_type, item.entity))]
    sources, exclude = left(context.source_type, context.sources), left(show.entity_type, show.exclude)
    only = None if show.only is None else left(show.entity_type, show.only)
    if (len(kept), sources, exclude, only) == (len(items), context.sources, show.exclude, show.only):
        return served
    features = served.features
    if len(features) == 4 * len(items) * len(served.feature_names):
        features = np.frombuffer(features, np.float32).reshape(len(items), -1)[kept].tobytes()
    elif len(kept) < len(items):
        features = b""  # rows that cannot be told apart
    replace = msgspec.structs.replace
    request = replace(
        request, context=replace(context, sources=sources), show=replace(show, exclude=exclude, only=only)
    )
    slate = replace(served.slate, items=[items[place] for place in kept])
    return replace(served, request=request, slate=slate, features=features, pool=None, past=None)
