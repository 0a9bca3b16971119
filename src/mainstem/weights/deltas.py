"""A delta: what changed in a model line since the delta before, as one immutable run of bytes.

    0    8   magic    89 4D 53 44 45 4C 54 41 (\\x89MSDELTA)
    8    4   format   1
    12   4   tables   t, how many tables the header names
    16   8   header   h, bytes of the header, a multiple of 8
    24   8   body     b, bytes of the body
    32   h   header   JSON: who, after what, seen how far; per table name, dim, rows, deleted; bytes of the dense part
    ..   b   body     per table: keys u64[rows], deleted u64[deleted], values f32[rows, dim], zeros to 8 bytes;
                      then the dense part, a safetensors file
    ..   32  seal     SHA-256 of all before

Numbers are little-endian. Optimizer state is never in a delta: it is for serving. `docs/weights-format.md` says more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import Incompatible, InvalidRecord, StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.position import Position
from mainstem.schema.protocols import Floats
from mainstem.schema.time import now_ms
from mainstem.weights import arrays
from mainstem.weights.files import Part
from mainstem.weights.manifests import Place

__all__ = ["FORMAT", "MAGIC", "Delta", "TableDelta", "decode", "encode"]

MAGIC = b"\x89MSDELTA"
FORMAT = 1
_FIXED, _SEAL = 32, 32
_MOST_TABLES = 1_024

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_-]{0,63}\Z")]
_Version = Annotated[str, msgspec.Meta(pattern=r"\Av-[0-9a-f]{32}\Z")]
_Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True, slots=True)
class TableDelta:
    """What changed in one table.

    keys uint64 [n]: rows to write; values float32 [n, dim]: their contents, finite; deleted uint64 [m]: rows to
    forget. No key is 0 or named twice. Ascending when decoded; any order is encoded.
    """

    keys: Keys
    values: Floats
    deleted: Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One step of a model line.

    sequence: 1, 2, ... within `base`, without holes; previous: SHA-256 of the delta before, of the base's manifest
    body for the first; dense_version: of the dense part in use after this delta; dense: that part, where it is new;
    position: the log it has seen; created: wall-clock ms; extras: any JSON; sha256: of the bytes it was decoded from,
    less the seal.
    """

    line: str
    base: str
    sequence: int
    previous: str
    dense_version: str
    position: Position
    tables: Mapping[str, TableDelta]
    dense: Mapping[str, NDArray[Any]] | None = None
    created: int = field(default_factory=now_ms)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = field(default="", compare=False)

    @property
    def place(self) -> Place:
        """Where the line stands after this delta."""
        return Place(self.base, self.sequence, self.sha256)


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    dim: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    rows: _Count
    deleted: _Count


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    line: _Name
    base: _Version
    sequence: Annotated[int, msgspec.Meta(ge=1, le=9_999_999_999)]
    previous: _Hash
    dense_version: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    position: str
    created: int
    metrics: dict[str, float | None]
    extras: dict[str, Any]
    tables: Annotated[list[_Table], msgspec.Meta(max_length=_MOST_TABLES)]
    dense: _Count | None


def encode(delta: Delta, *, finite: bool = True) -> bytes:
    """The bytes of a delta; `delta.sha256` is not among them. finite=False lets values pass that are not finite.

    Raises StoreError where it breaks what a delta promises, TypeError or OverflowError where `extras` is no JSON.
    """
    name = f"delta {delta.sequence} of {delta.base}"
    tables: list[_Table] = []
    body: list[Part] = []
    for table, change in sorted(delta.tables.items()):
        ready = _ascending(change, f"{name}, table {table}")
        _check(ready, f"{name}, table {table}", finite)
        tables.append(_Table(table, ready.values.shape[1], len(ready.keys), len(ready.deleted)))
        body += [arrays.raw(ready.keys), arrays.raw(ready.deleted), arrays.raw(ready.values)]
        body.append(bytes(-ready.values.nbytes % 8))
    dense = None
    if delta.dense is not None:
        _check_dense(delta.dense, name, finite)
        dense = b"".join(arrays.encode(delta.dense))
        body.append(dense)
    header = _header_of(delta, tables, None if dense is None else len(dense), name)
    counts = FORMAT.to_bytes(4, "little") + len(tables).to_bytes(4, "little")
    lengths = len(header).to_bytes(8, "little") + sum(map(len, body)).to_bytes(8, "little")
    parts = [MAGIC, counts, lengths, header, *body]
    seal = hashlib.sha256()
    for part in parts:
        seal.update(part)
    return b"".join((*parts, seal.digest()))


def decode(data: Part, name: str, *, finite: bool = True) -> Delta:
    """The delta; its arrays are views of `data`. finite=False lets values pass that are not finite.

    Raises StoreError naming `name` where anything is not as `encode` writes it, Incompatible where a later release
    wrote it. All lengths are checked against `data` before they are used.
    """
    try:
        return _decode(memoryview(data), finite)
    except Incompatible as error:
        raise Incompatible(f"{name} is {error}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, InvalidRecord, StoreError) as error:
        raise StoreError(f"{name} is damaged: {error}") from error


def _decode(view: memoryview, finite: bool) -> Delta:
    tables, length, body = _fixed_part(view)
    seal = hashlib.sha256(view[:-_SEAL]).digest()
    if seal != view[-_SEAL:]:
        raise ValueError("its SHA-256 is another")
    header = _parse_header(view[_FIXED : _FIXED + length])
    if len(header.tables) != tables:
        raise ValueError(f"its header names {len(header.tables)} tables, {tables} are counted")
    changes, rest = _tables(view[_FIXED + length : _FIXED + length + body], header)
    if len(rest) != (header.dense or 0):
        raise ValueError(f"its dense part has {len(rest)} bytes, the header says {header.dense or 0}")
    for table, change in changes.items():
        _check(change, f"table {table}", finite)
    dense = None
    if header.dense is not None:
        dense = arrays.decode(rest, "its dense part")
        _check_dense(dense, "its dense part", finite)
    return Delta(
        line=header.line,
        base=header.base,
        sequence=header.sequence,
        previous=header.previous,
        dense_version=header.dense_version,
        position=Position.parse(header.position),
        tables=changes,
        dense=dense,
        created=header.created,
        metrics=header.metrics,
        extras=header.extras,
        sha256=seal.hex(),
    )


def _fixed_part(view: memoryview) -> tuple[int, int, int]:
    """How many tables, bytes of the header, bytes of the body: agreeing with what is there."""
    if len(view) < _FIXED + _SEAL:
        raise ValueError(f"{len(view)} bytes are too few")
    if view[:8] != MAGIC:
        raise ValueError("it does not begin as a delta does")
    form, tables = (int.from_bytes(view[at : at + 4], "little") for at in (8, 12))
    length, body = (int.from_bytes(view[at : at + 8], "little") for at in (16, 24))
    if form != FORMAT:
        # one flipped byte must not pass for a later release's work: that would be sealed
        if form > FORMAT and hashlib.sha256(view[:-_SEAL]).digest() == view[-_SEAL:]:
            raise Incompatible(f"of format {form}, this release reads {FORMAT}: use the release that wrote it")
        raise ValueError(f"its format {form} is unknown")
    if len(view) != _FIXED + length + body + _SEAL or length % 8:
        raise ValueError(f"it has {len(view)} bytes, and says {length} of header and {body} of body")
    return tables, length, body


def _header_of(delta: Delta, tables: list[_Table], dense: int | None, name: str) -> bytes:
    """The header's JSON, padded; what could not be read back is not written."""
    header = _Header(
        line=delta.line,
        base=delta.base,
        sequence=delta.sequence,
        previous=delta.previous,
        dense_version=delta.dense_version,
        position=str(delta.position),
        created=delta.created,
        metrics={key: None if value is None else float(value) for key, value in delta.metrics.items()},
        extras=dict(delta.extras),
        tables=tables,
        dense=dense,
    )
    data = msgspec.json.encode(header)
    try:
        _parse_header(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, InvalidRecord) as error:
        raise StoreError(f"{name} cannot be written: {error}") from error
    return data + b" " * (-len(data) % 8)


def _parse_header(data: Part) -> _Header:
    header = msgspec.json.decode(data, type=_Header)
    names = [table.name for table in header.tables]
    if names != sorted(set(names)):
        raise ValueError("its tables are not in order")
    Position.parse(header.position)
    return header


def _tables(body: memoryview, header: _Header) -> tuple[dict[str, TableDelta], memoryview]:
    """The tables' arrays, and what of the body comes after them."""
    changes = {}
    for table in header.tables:
        values_bytes = 4 * table.rows * table.dim
        sizes = (8 * table.rows, 8 * table.deleted, values_bytes, -values_bytes % 8)
        if sum(sizes) > len(body):
            raise ValueError(f"table {table.name} reaches beyond the end")
        parts = []
        for size in sizes:
            parts.append(body[:size])
            body = body[size:]
        if any(parts[3]):
            raise ValueError(f"table {table.name} is padded with something")
        keys, deleted = (_view(part, "<u8") for part in parts[:2])
        values = _view(parts[2], "<f4").reshape(table.rows, table.dim)
        changes[table.name] = TableDelta(keys, values, deleted)
    return changes, body


def _view(part: memoryview, dtype: str) -> NDArray[Any]:
    # np.frombuffer refuses a buffer without bytes
    return np.frombuffer(part, dtype) if part else np.zeros(0, dtype)


def _ascending(change: TableDelta, name: str) -> TableDelta:
    keys, values, deleted = change.keys, change.values, change.deleted
    for array in (keys, deleted):
        if array.dtype != np.uint64 or array.ndim != 1:
            raise StoreError(f"{name}: keys must be uint64 [n], not {array.dtype} {array.shape}")
    if values.dtype != np.float32 or values.ndim != 2 or len(values) != len(keys):
        raise StoreError(f"{name}: values must be float32 [{len(keys)}, dim], not {values.dtype} {values.shape}")
    if (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys)
        keys, values = keys[order], values[order]
    return TableDelta(keys, values, np.sort(deleted))


def _check(change: TableDelta, name: str, finite: bool) -> None:
    """The promises of `TableDelta`."""
    for keys, what in ((change.keys, "keys"), (change.deleted, "deleted keys")):
        if len(keys) and keys[0] == 0:
            raise StoreError(f"{name}: key 0 stands for none, and is among its {what}")
        if (keys[1:] <= keys[:-1]).any():
            raise StoreError(f"{name}: its {what} repeat or do not ascend")
    if len(np.intersect1d(change.keys, change.deleted, assume_unique=True)):
        raise StoreError(f"{name}: a key is both written and deleted")
    if finite and not np.isfinite(change.values).all():
        raise StoreError(f"{name}: a value is not finite")


def _check_dense(dense: Mapping[str, NDArray[Any]], name: str, finite: bool) -> None:
    for tensor, array in dense.items():
        if finite and not np.isfinite(array).all():
            raise StoreError(f"{name}: {tensor} holds a value that is not finite")
