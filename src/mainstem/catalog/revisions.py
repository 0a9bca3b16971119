"""Which record wins: an entity's state is the fold of its records in the order of (time, arrival).

The fold is kept incrementally, as a last-writer-wins register per field (Shapiro et al. 2011, "A
comprehensive study of convergent and commutative replicated data types", section 3.2.1): `base` is
the time of the last whole write (Entity, EntityDelete, Erase), `fields` the times of the fields that
were patched after it. So a record that arrives late changes only what no newer record has written.

An erasure takes all that lies before it in the log, whatever its time, as the log itself does: a catalogue that
followed along is then the one that a new reader of the log gets.

One thing is not kept: a patch that meets no entity (unknown, or deleted) is dropped for good, even if
an entity older than the patch arrives later.
"""

from __future__ import annotations

import msgspec

from mainstem.schema.records import Attribute, Entity, EntityDelete, EntityPatch, Erase

__all__ = ["PATCHED", "Revision", "apply", "decode_revision", "encode_revision", "same_content"]

PATCHED = ("text", "group", "available_from", "available_until", "stock")
"""The fields of an EntityPatch besides `attributes`."""


class Revision(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of one entity. `entity` None: deleted or erased, only the time is remembered."""

    base: int
    entity: Entity | None = None
    fields: dict[str, int] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Revision)


def encode_revision(revision: Revision) -> bytes:
    return _encoder.encode(revision)


def decode_revision(data: bytes | memoryview) -> Revision:
    return _decoder.decode(data)


def apply(revision: Revision | None, record: Entity | EntityPatch | EntityDelete | Erase) -> Revision | None:
    """The revision after `record`; the same object where the record changes nothing.

    None means that nothing is known, and stays None only for a patch.
    """
    if isinstance(record, EntityPatch):
        return _patch(revision, record)
    if isinstance(record, Erase):
        return Revision(record.time)
    if revision is not None and record.time < revision.base:
        return revision
    if not isinstance(record, Entity):
        return Revision(record.time)
    if revision is None or revision.entity is None or not revision.fields:
        return Revision(record.time, record)
    newer = {name: time for name, time in revision.fields.items() if time > record.time}
    return Revision(record.time, _keep(record, revision.entity, newer), newer)


def _keep(entity: Entity, old: Entity, newer: dict[str, int]) -> Entity:
    """`entity`, but with the fields `newer` as they are in `old`."""
    if not newer:
        return entity
    attributes = dict(entity.attributes)
    changed: dict[str, object] = {}
    for name in newer:
        head, _, attribute = name.partition(".")
        if not attribute:
            changed[head] = getattr(old, head)
        elif attribute in old.attributes:
            attributes[attribute] = old.attributes[attribute]
        else:
            attributes.pop(attribute, None)
    changed["time"] = max(newer.values())
    return msgspec.structs.replace(entity, attributes=attributes, **changed)


def _patch(revision: Revision | None, patch: EntityPatch) -> Revision | None:
    if revision is None or revision.entity is None or patch.time < revision.base:
        return revision
    fields = dict(revision.fields)
    changed: dict[str, object] = {}
    for name in PATCHED:
        value = getattr(patch, name)
        if value is not msgspec.UNSET and patch.time >= fields.get(name, revision.base):
            changed[name] = value
            fields[name] = patch.time
    attributes: dict[str, Attribute] = dict(revision.entity.attributes)
    for attribute, value in patch.attributes.items():
        name = f"attributes.{attribute}"
        if patch.time < fields.get(name, revision.base):
            continue
        fields[name] = patch.time
        if value is None:
            attributes.pop(attribute, None)
        else:
            attributes[attribute] = value
    if fields == revision.fields and not changed and attributes == revision.entity.attributes:
        return revision
    time = max(revision.entity.time, patch.time)
    entity = msgspec.structs.replace(revision.entity, attributes=attributes, time=time, **changed)
    return Revision(revision.base, entity, fields)


def same_content(a: Entity | None, b: Entity | None) -> bool:
    """Do both say the same of the entity, whatever record it came from?"""
    if a is None or b is None:
        return a is b
    return a.attributes == b.attributes and all(getattr(a, name) == getattr(b, name) for name in PATCHED)
