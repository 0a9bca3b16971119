"""What all state takes: bytes in each place where something of a user or an item is kept.

    footprint(config, Shape(users=1_000_000, items=50_000, events=10, distinct=9.3)).total

The formula of docs/operations.md, with the widths of the very records. `benchmarks/p8_memory.py` holds it against
files and processes. Not counted: the log and its history, snapshots, kept slates, and what a process takes without any
state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mainstem.assemble import CONTENT_DIM
from mainstem.features.cooccurrence import ENTRY
from mainstem.features.history import UserHistory
from mainstem.features.place import Place
from mainstem.features.popularity import Ring
from mainstem.rank.categories import has_categories
from mainstem.rank.retrieve import DEFAULT_MIX
from mainstem.schema.config import Config
from mainstem.schema.keyrows import slots_for
from mainstem.train.history_bytes import BLOCK, ROOM, USER
from mainstem.train.networks import families_of
from mainstem.weights.slabs import predicted_bytes

__all__ = ["Footprint", "Shape", "footprint"]

PAGE = 4096
NODE = 18
"""Of an entry in LMDB beside its value: header, key, place in the page."""
FILL = 0.66
"""How full LMDB's pages are of records of one width, written in no order."""
PACKED_USER, PACKED_EVENT, PACKED_ENTITY, PACKED_SESSION = 24, 3, 8, 5
"""Of a user's value (`features/packing.py`) whose counts follow from the history: whatever it holds; per event its step
in time and what tells it apart; per different entity its key; per session its number, and a longer step. Measured; the
rest of this file is exact or follows from the structure."""
COUNTED = 17
"""Of an entity counted for which the history holds no event any more, compressed. Measured."""
LEARNED_EVENT, LEARNED_SESSION, LEARNED_FIRST = 5, 2, 4
"""Of an event in the trainer's histories (`train/history_bytes.py`): its entity's number and a step of seconds; more of
a session, whose step is longer; less of the oldest, which has no step. Measured."""
COPIES = 2
"""LMDB copies the pages that a commit changes, and takes them again two commits later."""
OBJECTS = 150
"""Of a catalogue record as Python objects beside its bytes: its place in a dict, key and header."""
LINKS = 272
"""Of a vector in the graph: links of the lowest layer and above."""
GRAPH_FROM = 200_000
"""Vectors above which an index has a graph."""
NAME, MOST_NAMES = 283, 1 << 14
"""Of a name whose key a process remembers (`schema.ids.key64`), and how many it remembers at most."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is of what. Counts are of what has not expired; the rest are means.

    users, items        with events; `catalogue` entities are described (0: as many as items)
    events, distinct    of a user in the history (features.history at most); entities counted of a user
    session             events in a row by one user
    neighbours          of an item (features.neighbours at most); 0: at most
    values, pairs       attribute values with a row; pairs of place and item
    record              bytes of a catalogue record, encoded
    words               of an entity's text (model.words at most); 0: texts are not counted
    batch               events in a commit of the feature state: 16,000 while it catches up, few in live traffic
    """

    users: int
    items: int
    events: float
    distinct: float
    session: float = 3.0
    neighbours: float = 0.0
    catalogue: int = 0
    values: int = 0
    pairs: int = 0
    record: float = 150.0
    words: float = 0.0
    batch: int = 16_000


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes. `parts` are named PLACE.WHAT: features and catalog are files, serving and trainer are memory of a process;
    a second serving process takes `serving` again."""

    parts: dict[str, int]

    def of(self, place: str) -> int:
        """The sum of a place's parts."""
        return sum(size for name, size in self.parts.items() if name.startswith(f"{place}."))

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def of_users(self) -> dict[str, int]:
        """The parts that grow with the users."""
        return {name: size for name, size in self.parts.items() if name.endswith((".users", ".histories"))}


def footprint(config: Config, shape: Shape) -> Footprint:
    """Predict what a configuration takes for so many users and items."""
    described = shape.catalogue or shape.items
    parts = _features(config, shape) | _serving(config, shape, described)
    parts["catalog.items"] = _file(described, shape.record + 8, FILL, 0)
    parts |= _trainer(config, shape, described)
    return Footprint({name: round(size) for name, size in parts.items()})


def _features(config: Config, shape: Shape) -> dict[str, float]:
    users, items = shape.users, shape.items
    item = Ring(config).dtype.itemsize
    asked = _distinct(shape.batch / shape.session, users)
    taken = _distinct(shape.batch, items)
    counted = min(shape.distinct, config.features.items_per_user)
    kept = min(shape.events, config.features.history)
    beside = shape.neighbours or config.features.neighbours
    packed = PACKED_USER + PACKED_EVENT * kept + PACKED_SESSION * kept / shape.session
    packed += PACKED_ENTITY * min(kept, counted) + COUNTED * max(counted - kept, 0.0)
    return {
        "features.users": _file(users, packed, FILL, asked),
        "features.items": _file(items, item, FILL, taken) + _file(items, ENTRY.itemsize * beside, FILL, taken),
        "features.values": _file(shape.values if config.features.by else 0, item, FILL, shape.values),
        "features.pairs": _file(shape.pairs, _pair(config), FILL, shape.batch),
    }


def _file(entries: float, value: float, fill: float, touched: float) -> float:
    """Bytes of one LMDB table with `touched` of its entries changed in a commit."""
    pages = entries * (value + NODE) / (fill * (PAGE - 16))
    copied = pages * -math.expm1(-touched / pages) if pages else 0.0
    return PAGE * (pages + COPIES * copied)


def _distinct(draws: float, of: int) -> float:
    """How many different ones of `of` come up in so many draws."""
    return of * -math.expm1(-draws / of) if of else 0.0


def _serving(config: Config, shape: Shape, described: int) -> dict[str, float]:
    rows = _rows(config, shape, described)
    sources = [canvas.sources or DEFAULT_MIX for canvas in config.canvases.values()]
    content = any("content" in names for names in sources)
    ring, windows = Ring(config).dtype.itemsize, len(config.features.popularity_windows)
    return {
        "serving.users": shape.users * rows if config.model.user_rows else 0.0,
        "serving.rows": (described + shape.values) * rows,
        "serving.vectors": _index(described, config.model.dim),
        "serving.content": _index(described, CONTENT_DIM) if content else 0.0,
        # a mirror's slots are spread over all of their room; of its records the used ones alone are in memory
        "serving.mirrors": _mirror(shape.items, ring) + _mirror(shape.pairs, _pair(config))
        + (_mirror(shape.values, ring) if config.features.by else 0.0),
        "serving.ranking": 4.0 * 4 * windows * _room(shape.items),
        "serving.columns": _columns(config, described),
        "serving.names": _names(shape, described),
        "serving.words": _words(config, shape, described),
        "serving.texts": _texts(config, described),
        "serving.categories": 8.0 * described if has_categories(config) else 0.0,
        "serving.neighbours": _neighbours(config, shape),
    }  # fmt: skip


def _trainer(config: Config, shape: Shape, described: int) -> dict[str, float]:
    rows, users, items = _rows(config, shape, described), shape.users, shape.items
    held = min(shape.events, config.history_length() + shape.session)
    events = max(held * (LEARNED_EVENT + LEARNED_SESSION / shape.session) - LEARNED_FIRST, 0.0)
    return {
        "trainer.users": users * rows if config.model.user_rows else 0.0,
        "trainer.rows": (described + shape.values) * rows,
        # half of the last block of each user is empty, in the mean
        "trainer.histories": users * (USER.itemsize + BLOCK * (events / ROOM + 0.5)) + _key_rows(users)
        + 8.0 * items + _key_rows(items),
        "trainer.counts": 16.0 * items + _key_rows(items),
        "trainer.catalog": described * (shape.record + OBJECTS) + _columns(config, described),
        "trainer.names": _names(shape, described),
        "trainer.words": _words(config, shape, described),
        "trainer.texts": _texts(config, described),
    }  # fmt: skip


def _rows(config: Config, shape: Shape, described: int) -> float:
    """Bytes of one row of the embedding table."""
    width = max(family.optimizer.state_width(config.model.dim) for family in families_of(config.model))
    count = (shape.users if config.model.user_rows else 0) + described + shape.values
    return predicted_bytes(count, config.model.dim, width) / max(count, 1)


def _names(shape: Shape, described: int) -> float:
    """Of a process that has met all users; sessions and places, which it remembers too, come on top."""
    return float(NAME * min(shape.users + described + shape.values, MOST_NAMES))


def _words(config: Config, shape: Shape, described: int) -> float:
    """Keys of the words of each entity, and where they lie."""
    words = min(shape.words, config.model.words)
    return described * (8.0 * words + 12) if words else 0.0


def _texts(config: Config, described: int) -> float:
    """Where the vector of each entity's text lies in the file, by entity and by text."""
    return 8.0 * described + _key_rows(described) if config.model.text.encoder != "none" else 0.0


def _neighbours(config: Config, shape: Shape) -> float:
    """Key and offset of each item, place and weight of each of its neighbours, at most."""
    settings = config.train.neighbourhoods
    knn = shape.items * (16 + 8.0 * settings.item_knn.neighbours) if config.asks("item_knn") else 0.0
    most = min(shape.items, settings.ease.most)
    return knn + (most * (16 + 8.0 * settings.ease.neighbours) if config.asks("ease") else 0.0)


def _index(vectors: int, dim: int) -> float:
    graph = vectors * (LINKS + 100) if vectors > GRAPH_FROM else _key_rows(vectors)
    return vectors * (4.0 * dim + 8) + graph


def _mirror(rows: int, width: int) -> float:
    return rows * (width + 8) + 8.0 * _room(rows)


def _pair(config: Config) -> int:
    """Bytes of a record of place and item."""
    return Place(config, UserHistory(config)).dtype.itemsize


def _room(rows: int) -> int:
    return 1 << max(10, (rows + 1).bit_length()) if rows else 0


def _key_rows(keys: int) -> float:
    """Of a map from keys to rows: key and row in each slot."""
    return 16.0 * slots_for(keys) if keys else 0.0


def _columns(config: Config, entities: int) -> float:
    """Of the catalogue: key, type, availability, stock, group and configured attributes; the look-up by key."""
    kinds = {
        name: kind for each in config.entities.values() for name, kind in each.attributes.items() if kind != "text"
    }
    slots = 1 << (4 * entities - 1).bit_length() if entities else 0
    return entities * (42.0 + 8 * len(kinds)) + 12.0 * slots
