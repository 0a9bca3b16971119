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
from mainstem.models.jagged import pick
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import unique_places
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
# The roles whose keys may earn rows and count as seen, and their families.
SEEN = {"taken": ENTITY, "taken attribute": ATTRIBUTE, "taken word": WORD, "taken user": USER, "query": WORD}
# The attribute that `Context.category` is a value of.
CATEGORY = "category"
# Single-valued fields of the context that speak for a request.
FIELDS = (CATEGORY,)

Ints = NDArray[np.int64]
NONE: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand in a look-up. Each entity has one body, whatever it is asked for as; body 0 is of none.

    entities: the candidates' bodies are 1 .. entities. source int64 [m], event int64 [t]: the bodies of the requests'
    sources and of the events of the past. offsets int64 [n + 1], weights float32 [k]: the keys of each body, and what
    each counts in its sum. query int64 [m + 1]: where the words of each request's query begin.
    """

    entities: int
    source: Ints
    event: Ints
    offsets: Ints
    weights: Floats
    query: Ints


@dataclass(frozen=True, slots=True)
class _MadeOf:
    """The keys that speak for n entities: fixed uint64 [n, 1 + attributes], words uint64 [w]; spelled int64 [n + 1]:
    where each one's words begin."""

    fixed: Keys
    words: Keys
    spelled: Ints

    def summed(self) -> tuple[Keys, Ints, Floats]:
        """Keys uint64 [k] of one entity after the other, offsets int64 [n + 1], and weights float32 [k]: an entity is
        the sum of its own row, its attributes' and the mean of its words'."""
        n, width = self.fixed.shape
        offsets = np.arange(n + 1) * width + self.spelled
        at = (offsets[:-1, None] + np.arange(width)).ravel()
        spoken = np.ones(offsets[-1], np.bool_)
        spoken[at] = False
        keys, weights = np.empty(len(spoken), np.uint64), np.ones(len(spoken), np.float32)
        keys[at], keys[spoken] = self.fixed.ravel(), self.words
        sizes = np.diff(self.spelled)
        weights[spoken] = np.repeat(1 / np.maximum(sizes, 1), sizes)
        return keys, offsets, weights


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
        words, query = self.words.of_queries(requests.query, batch.queries)
        made, (candidates, source, event) = self._distinct(entities, requests.source, batch.sequences.entity)
        if len(entities) and candidates[-1] != len(entities):
            raise ValueError("an entity stands twice among the candidates")
        keys, offsets, weights = made.summed()
        layout = Layout(len(entities), source, event, offsets, weights, query)
        roles = {
            "made of": keys,
            "user": np.where(requests.personal, batch.user[requests.positive], 0).astype(np.uint64),
            "category": requests.category,
            "query": words,
        }
        if not learn:
            return self.lookup.gather(roles, create=False, gradient=False), layout
        # a sight of a user is a positive of theirs, however many requests it answers
        taken = self._made_of(batch.entity)
        roles |= {
            "taken": batch.entity, "taken attribute": taken.fixed[:, 1:].ravel(), "taken word": taken.words,
            "taken user": batch.user,
        }  # fmt: skip
        return self.lookup.gather(roles, families=SEEN, time=int(batch.time.max()), create=SEEN.keys()), layout

    def _distinct(self, *asked: Keys) -> tuple[_MadeOf, list[Ints]]:
        """What all these entities are made of, each once after key 0, in order of appearance; and which one each is."""
        distinct, place = unique_places(np.concatenate(asked))
        return self._made_of(distinct), np.split(place, np.cumsum([len(each) for each in asked[:-1]]))

    def _made_of(self, entities: Keys) -> _MadeOf:
        return _MadeOf(self.entity_keys(entities), *self.words.of(entities))

    # ---- vectors of a batch --------------------------------------------------------------------------

    def bodies(self, gathered: Gathered, layout: Layout) -> Tensor:
        """What each entity of the look-up is made of: [n, dim]."""
        offsets, weights = torch.from_numpy(layout.offsets), torch.from_numpy(layout.weights)
        return self.module.body(gathered.rows, gathered.places["made of"], offsets, weights)

    def entity_batch(self, bodies: Tensor, layout: Layout) -> Tensor:
        """Vectors [c, dim] of the candidates."""
        return self.module.entity(bodies[1 : 1 + layout.entities])

    def request_batch(
        self, gathered: Gathered, bodies: Tensor, layout: Layout, batch: Interactions, requests: Requests
    ) -> Tensor:
        """Vectors [m, dim] of the requests."""
        states = self.module.states(_histories(bodies, layout.event, batch.sequences))
        told = torch.from_numpy(np.where(requests.personal, batch.state[requests.positive], -1))
        has_source, has_category = (torch.from_numpy(keys != 0) for keys in (requests.source, requests.category))
        user = torch.from_numpy(requests.personal & (batch.user[requests.positive] != 0))
        asked = Asked(
            canvas=torch.from_numpy(requests.canvas),
            user=gathered.take("user"), knows_user=user,
            history=self.module.at(states, told),
            sources=pick(bodies, torch.from_numpy(layout.source)), has_sources=has_source,
            fields=gathered.take("category")[:, None], has_field=has_category[:, None],
            query=self._mean(gathered, layout.query), has_query=torch.from_numpy(np.diff(layout.query) > 0),
        )  # fmt: skip
        return self.module.request(asked)

    def _mean(self, gathered: Gathered, offsets: Ints) -> Tensor:
        """The mean of each query's words: [m, dim]."""
        sizes = np.diff(offsets)
        weights = np.repeat(1 / np.maximum(sizes, 1), sizes).astype(np.float32)
        of = torch.from_numpy(offsets), torch.from_numpy(weights)
        return self.module.body(gathered.rows, gathered.places["query"], *of)

    # ---- vectors to serve ----------------------------------------------------------------------------

    @torch.no_grad()
    def entity_vectors(self, entities: Keys, chunk: int = 20_000) -> Floats:
        """Unit vectors float32 [n, dim]; attributes alone speak for an entity without a row of its own."""
        self.module.eval()
        parts = [np.zeros((0, self.table.dim), np.float32)]
        for start in range(0, len(entities), chunk):
            some = entities[start : start + chunk]
            keys, offsets, weights = self._made_of(some).summed()
            gathered = self.lookup.gather({"made of": keys}, create=False, gradient=False)
            layout = Layout(len(some), NONE, NONE, offsets, weights, NONE)
            parts.append(self.module.entity(self.bodies(gathered, layout)).numpy())
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
        bodies = self.bodies(gathered, layout)
        found: Floats = self.request_batch(gathered, bodies, layout, batch, requests).numpy()
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
        made, (source, event) = self._distinct(request.sources, request.sequences.entity)
        keys, offsets, weights = made.summed()
        layout = Layout(0, source, event, offsets, weights, np.array([0, len(request.query)]))
        roles = {
            "made of": keys, "user": np.array([request.user], np.uint64),
            "category": np.array([request.category], np.uint64), "query": request.query,
        }  # fmt: skip
        gathered = self.lookup.gather(roles, create=False, gradient=False)
        bodies = self.bodies(gathered, layout)
        states = self.module.states(_histories(bodies, event, request.sequences))
        sources = pick(bodies, torch.from_numpy(source))
        asked = Asked(
            canvas=torch.tensor([request.canvas]),
            user=gathered.take("user"), knows_user=torch.tensor([request.user != 0]),
            history=self.module.at(states, torch.tensor([len(states) - 1])),
            sources=sources.sum(dim=0, keepdim=True) / max(len(sources), 1),
            has_sources=torch.tensor([len(sources) > 0]),
            fields=gathered.take("category")[:, None], has_field=torch.tensor([[request.category != 0]]),
            query=self._mean(gathered, layout.query),
            has_query=torch.tensor([len(request.query) > 0]),
        )  # fmt: skip
        found: Floats = self.module.request(asked)[0].numpy()
        return found


def _histories(bodies: Tensor, event: Ints, past: Sequences) -> Histories:
    return Histories(
        pick(bodies, torch.from_numpy(event)), torch.from_numpy(past.action()),
        torch.from_numpy(past.canvas()), torch.from_numpy(past.value()), torch.from_numpy(past.time),
        torch.from_numpy(past.offsets), torch.from_numpy(past.asked),
    )  # fmt: skip


def _means(rows: Floats, offsets: Ints) -> Floats:
    """The mean of each segment of rows [w, dim]: [n, dim]; zeros of an empty one."""
    sizes = np.diff(offsets)
    out = np.zeros((len(sizes), rows.shape[1]), np.float32)
    filled = sizes > 0
    if filled.any():
        out[filled] = np.add.reduceat(rows, offsets[:-1][filled]) / sizes[filled][:, None]
    return out
