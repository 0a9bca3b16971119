"""The one model with its table: which keys speak for an entity and for a request.

One definition, used by training (many requests at once) and by serving (one request, many entities).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models import Asked, NumpyRequests, Unified
from mainstem.models.history import Histories, Pooling
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, Floats
from mainstem.train.canvases import Canvases, Requests
from mainstem.train.interactions import Interactions, Sequences
from mainstem.train.words import Words
from mainstem.weights import Gathered, Lookup, Table

__all__ = ["CATEGORY", "FAMILIES", "FIELDS", "TABLE", "Request", "Towers"]

# The table's name in snapshots and deltas.
TABLE = "towers"
# Feature families of the table, and which one the keys of each role belong to.
FAMILIES = ("user", "entity", "attribute", "word")
USER, ENTITY, ATTRIBUTE, WORD = range(4)
# What an entity is made of, a role each.
MADE_OF = {"": ENTITY, " attribute": ATTRIBUTE, " word": WORD}
# The attribute that `Context.category` is a value of.
CATEGORY = "category"
# Single-valued fields of the context that speak for a request.
FIELDS = (CATEGORY,)

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the words of gathered entities, sources, entities of the past and queries begin: int64 [n + 1] each; and
    `event` int64 [t]: which entity of the past each event is of."""

    entity: Ints
    source: Ints
    past: Ints
    query: Ints
    event: Ints


@dataclass(frozen=True, slots=True)
class _MadeOf:
    """Keys by role, each role's family, and where each entity's words begin."""

    roles: dict[str, Keys]
    families: dict[str, int]
    offsets: Ints


@dataclass(frozen=True, slots=True)
class Request:
    """One request as serving has it, in keys: what `Towers.request_vector` reads.

    canvas: its place; user: 0 for a stranger; sequences: the user's history, one sequence, none for an empty one;
    sources uint64 [s]; category: 0 where there is none; query: its words, uint64 [w].
    """

    canvas: int
    user: int
    sequences: Sequences
    sources: Keys
    category: int
    query: Keys

    def known(self) -> bool:
        """Whether anything is known that a vector could come from."""
        return bool(self.category or len(self.sources) or len(self.query) or len(self.sequences.entity))


class Towers:
    """`module` over `table`. `attributes` are the category attributes whose keys speak for an entity too, as its words
    do."""

    def __init__(
        self, module: Unified, table: Table, catalog: Catalog, attributes: Sequence[str], canvases: Canvases,
        words: Words,
    ) -> None:  # fmt: skip
        self.module, self.table, self.catalog = module, table, catalog
        self.attributes, self.canvases, self.words = tuple(attributes), canvases, words
        self.lookup = Lookup(table)

    # ---- keys ----------------------------------------------------------------------------------------

    def entity_keys(self, entities: Keys) -> Keys:
        """Keys that speak for each entity: uint64 [n, 1 + attributes]; 0 where an attribute is absent."""
        rows = self.catalog.rows(entities)
        return np.column_stack([entities, *(self.catalog.codes(name, rows) for name in self.attributes)])

    def categories(self, entities: Keys) -> Keys:
        """The category of each entity, as a key: uint64 [n]; 0 where it has none."""
        if CATEGORY not in self.attributes:
            return np.zeros(len(entities), np.uint64)
        return self.catalog.codes(CATEGORY, self.catalog.rows(entities))

    def gather(
        self, batch: Interactions, requests: Requests, entities: Keys, *, learn: bool = False
    ) -> tuple[Gathered, Layout]:
        """One look-up (law 7) of everything that these requests and entities are made of.

        learn: for a training step. What the users took, and the users, may then earn rows and count as seen at the time
        of the batch's newest positive. What is only drawn as a negative, or stands in a history, does neither.
        """
        words, word_offsets = self.words.of_queries(requests.query, batch.queries)
        distinct, event = np.unique(batch.sequences.entity, return_inverse=True)
        entity, source = self._made_of("entity", entities), self._made_of("source", requests.source)
        past = self._made_of("past", distinct)
        roles = entity.roles | source.roles | past.roles | {
            "user": np.where(requests.personal, batch.user[requests.positive], 0).astype(np.uint64),
            "category": requests.category,
            "query": words,
        }  # fmt: skip
        families = entity.families | source.families | past.families
        families |= {"user": USER, "category": ATTRIBUTE, "query": WORD}
        layout = Layout(entity.offsets, source.offsets, past.offsets, word_offsets, event)
        if not learn:
            return self.lookup.gather(roles, families=families, create=False, gradient=False), layout
        # a sight of a user is a positive of theirs, however many requests it answers
        taken = self._made_of("taken", batch.entity)
        seen = taken.roles | {"taken user": batch.user}
        families |= taken.families | {"taken user": USER}
        time = int(batch.time.max())
        creating = (*seen, "query")
        return self.lookup.gather(roles | seen, families=families, time=time, create=creating), layout

    def _made_of(self, prefix: str, entities: Keys) -> _MadeOf:
        """The keys that speak for these entities, by role."""
        keys = self.entity_keys(entities)
        words, offsets = self.words.of(entities)
        parts = np.ascontiguousarray(keys[:, 0]), keys[:, 1:].ravel(), words
        roles = {f"{prefix}{name}": part for name, part in zip(MADE_OF, parts, strict=True)}
        return _MadeOf(roles, {f"{prefix}{name}": family for name, family in MADE_OF.items()}, offsets)

    # ---- vectors of a batch --------------------------------------------------------------------------

    def entity_batch(self, gathered: Gathered, layout: Layout) -> Tensor:
        """Vectors [n, dim] of the entities whose keys were gathered."""
        return self.module.entity(self._bodies(gathered, "entity", layout.entity))

    def _bodies(self, gathered: Gathered, prefix: str, offsets: Ints) -> Tensor:
        """An entity's own row, its attributes', and the mean of its words': [n, dim]."""
        own, attributes, words = (gathered.places[f"{prefix}{name}"] for name in MADE_OF)
        n, k = len(own), len(self.attributes)
        fixed = torch.cat([own[:, None], attributes.reshape(n, k)], dim=1)
        bodies = self.module.body(gathered.rows, fixed.ravel(), torch.arange(n + 1) * (k + 1))
        return bodies + self._mean(gathered, words, offsets) if len(words) else bodies

    def _mean(self, gathered: Gathered, places: Tensor, offsets: Ints) -> Tensor:
        sizes = np.diff(offsets)
        weights = np.repeat(1 / np.maximum(sizes, 1), sizes).astype(np.float32)
        return self.module.body(gathered.rows, places, torch.from_numpy(offsets), torch.from_numpy(weights))

    def request_batch(self, gathered: Gathered, layout: Layout, batch: Interactions, requests: Requests) -> Tensor:
        """Vectors [m, dim] of the requests that were gathered."""
        states = self.module.states(self._histories(gathered, layout.past, layout.event, batch.sequences))
        told = torch.from_numpy(np.where(requests.personal, batch.state[requests.positive], -1))
        has_source, has_category = (torch.from_numpy(keys != 0) for keys in (requests.source, requests.category))
        user = torch.from_numpy(requests.personal & (batch.user[requests.positive] != 0))
        asked = Asked(
            canvas=torch.from_numpy(requests.canvas),
            user=gathered.take("user"), knows_user=user,
            history=self.module.at(states, told),
            sources=self._bodies(gathered, "source", layout.source), has_sources=has_source,
            fields=gathered.take("category")[:, None], has_field=has_category[:, None],
            query=self._mean(gathered, gathered.places["query"], layout.query),
            has_query=torch.from_numpy(np.diff(layout.query) > 0),
        )  # fmt: skip
        return self.module.request(asked)

    def _histories(self, gathered: Gathered, offsets: Ints, event: Ints, past: Sequences) -> Histories:
        bodies = self._bodies(gathered, "past", offsets)
        return Histories(
            bodies.index_select(0, torch.from_numpy(event)), torch.from_numpy(past.action()),
            torch.from_numpy(past.canvas()), torch.from_numpy(past.value()), torch.from_numpy(past.time),
            torch.from_numpy(past.offsets), torch.from_numpy(past.asked),
        )  # fmt: skip

    # ---- vectors to serve ----------------------------------------------------------------------------

    @torch.no_grad()
    def entity_vectors(self, entities: Keys, chunk: int = 20_000) -> Floats:
        """Unit vectors float32 [n, dim]; attributes alone speak for an entity without a row of its own."""
        self.module.eval()
        parts = [np.zeros((0, self.table.dim), np.float32)]
        for start in range(0, len(entities), chunk):
            some = entities[start : start + chunk]
            made = self._made_of("entity", some)
            gathered = self.lookup.gather(made.roles, create=False, gradient=False)
            parts.append(self.module.entity(self._bodies(gathered, "entity", made.offsets)).numpy())
        return np.concatenate(parts)

    def known_vectors(self, entities: Keys) -> Floats:
        """The same for what the catalogue has, zeros for all else: as an index over the catalogue gives them."""
        known = (entities != 0) & (self.catalog.rows(entities) >= 0)
        vectors = np.zeros((len(entities), self.table.dim), np.float32)
        vectors[known] = self.entity_vectors(entities[known])
        return vectors

    @torch.no_grad()
    def vectors_of(self, batch: Interactions, requests: Requests) -> Floats:
        """Unit vectors float32 [m, dim] of requests as of then."""
        self.module.eval()
        gathered, layout = self.gather(batch, requests, batch.entity[:0])
        found: Floats = self.request_batch(gathered, layout, batch, requests).numpy()
        return found

    def vectors_before(self, batch: Interactions) -> Floats:
        """Unit vectors float32 [b, dim] of the users of `batch` as of then, asked on the first canvas."""
        return self.vectors_of(batch, self.canvases.plain(batch))

    def request_vectors(self) -> Callable[[Request], Floats]:
        """A function that gives the unit vector float32 [dim] of a request, zeros where nothing is known of it, by the
        networks' weights of now."""
        if not isinstance(self.module.encoder, Pooling):
            return self.request_vector
        forward = NumpyRequests(self.module)

        def request_vector(request: Request) -> Floats:
            if not request.known():
                return np.zeros(self.table.dim, np.float32)
            past, sources, query = request.sequences, request.sources, request.query
            distinct, event = np.unique(past.entity, return_inverse=True)
            entities = np.concatenate([distinct, sources])
            keys, (words, offsets) = self.entity_keys(entities), self.words.of(entities)
            own = np.array([request.user, request.category], np.uint64)
            rows = self.table.read(np.concatenate([own, query, keys.ravel(), words]))
            sizes = [2, len(query), keys.size]
            first, asked, fixed, spelled = np.split(rows, np.cumsum(sizes))
            bodies = fixed.reshape(*keys.shape, self.table.dim).sum(axis=1) + _means(spelled, offsets)
            history = forward.history(bodies[event], past.action(), past.time)
            return forward(
                request.canvas,
                history,
                (
                    first[0] if request.user else None,
                    bodies[len(distinct) :].mean(axis=0) if len(sources) else None,
                    asked.mean(axis=0) if len(query) else None,
                    first[1] if request.category else None,
                ),
            )

        return request_vector

    @torch.no_grad()
    def request_vector(self, request: Request) -> Floats:
        """Unit vector float32 [dim] of one request; zeros where nothing is known of it."""
        if not request.known():
            return np.zeros(self.table.dim, np.float32)
        distinct, event = np.unique(request.sequences.entity, return_inverse=True)
        made, past = self._made_of("source", request.sources), self._made_of("past", distinct)
        roles = made.roles | past.roles | {
            "user": np.array([request.user], np.uint64),
            "category": np.array([request.category], np.uint64), "query": request.query,
        }  # fmt: skip
        gathered = self.lookup.gather(roles, create=False, gradient=False)
        states = self.module.states(self._histories(gathered, past.offsets, event, request.sequences))
        bodies = self._bodies(gathered, "source", made.offsets)
        asked = Asked(
            canvas=torch.tensor([request.canvas]),
            user=gathered.take("user"), knows_user=torch.tensor([request.user != 0]),
            history=self.module.at(states, torch.tensor([len(states) - 1])),
            sources=bodies.sum(dim=0, keepdim=True) / max(len(bodies), 1),
            has_sources=torch.tensor([len(bodies) > 0]),
            fields=gathered.take("category")[:, None], has_field=torch.tensor([[request.category != 0]]),
            query=self._mean(gathered, gathered.places["query"], np.array([0, len(request.query)])),
            has_query=torch.tensor([len(request.query) > 0]),
        )  # fmt: skip
        found: Floats = self.module.request(asked)[0].numpy()
        return found


def _means(rows: Floats, offsets: Ints) -> Floats:
    """The mean of each segment of rows [w, dim]: [n, dim]; zeros of an empty one."""
    sizes = np.diff(offsets)
    out = np.zeros((len(sizes), rows.shape[1]), np.float32)
    filled = sizes > 0
    if filled.any():
        out[filled] = np.add.reduceat(rows, offsets[:-1][filled]) / sizes[filled][:, None]
    return out
