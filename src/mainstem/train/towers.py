"""The one model with its table: which keys speak for an entity and for a request.

One definition, used by training (many requests at once) and by serving (one request, many entities).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models import Asked, NumpyRequests, Unified
from mainstem.models.history import Histories, Pooling
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, Floats
from mainstem.schema.settings import Setting, setting_keys
from mainstem.train.canvases import Canvases, Requests
from mainstem.train.interactions import Interactions, Sequences
from mainstem.train.texts import Texts
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
FIELDS = (CATEGORY, *Setting._fields)
NO_SETTING: Keys = np.zeros(len(Setting._fields), np.uint64)

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MadeOf:
    """What n entities are made of: keys by role, each role's family, where each one's words begin int64 [n + 1], and
    the vectors of their texts float32 [n, width]. Roles begin with `prefix`."""

    prefix: str
    roles: dict[str, Keys]
    families: dict[str, int]
    offsets: Ints
    texts: Floats


@dataclass(frozen=True, slots=True)
class Layout:
    """What was gathered of m requests beside rows: what entities, sources and entities of the past are made of; where
    the words of each query begin int64 [m + 1] and the vectors of queries float32 [m, width]; and `event` int64 [t]:
    which entity of the past each event is of."""

    entity: MadeOf
    source: MadeOf
    past: MadeOf
    query: Ints
    asked: Floats
    event: Ints


@dataclass(frozen=True, slots=True)
class Request:
    """One request as serving has it, in keys: what `Towers.request_vector` reads.

    canvas: its place; user: 0 for a stranger; sequences: the user's history, one sequence, none for an empty one;
    sources uint64 [s]; category: 0 where there is none; query: its words, uint64 [w]; asked: its vector, float32
    [width]; setting uint64 [fields - 1]: country, language, device, 0 where one is not known.
    """

    canvas: int
    user: int
    sequences: Sequences
    sources: Keys
    category: int
    query: Keys
    asked: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    setting: Keys = field(default_factory=lambda: NO_SETTING)

    def known(self) -> bool:
        """Whether anything is known that a vector could come from."""
        said = self.category or self.setting.any() or len(self.query) or self.asked.any()
        return bool(said or len(self.sources) or len(self.sequences.entity))


class Towers:
    """`module` over `table`. `attributes` are the category attributes whose keys speak for an entity too, as its words
    and its text do."""

    def __init__(
        self, module: Unified, table: Table, catalog: Catalog, attributes: Sequence[str], canvases: Canvases,
        words: Words, texts: Texts,
    ) -> None:  # fmt: skip
        self.module, self.table, self.catalog = module, table, catalog
        self.attributes, self.canvases, self.words, self.texts = tuple(attributes), canvases, words, texts
        self.lookup = Lookup(table)

    def forget(self, entities: Keys) -> None:
        """What these say of themselves has changed."""
        self.words.forget(entities)
        self.texts.forget(entities)

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
            "setting": requests.setting.ravel(),
        }  # fmt: skip
        families = entity.families | source.families | past.families
        families |= {"user": USER, "category": ATTRIBUTE, "query": WORD, "setting": ATTRIBUTE}
        asked = self.texts.of_queries(requests.query, batch.queries)
        layout = Layout(entity, source, past, word_offsets, asked, event)
        if not learn:
            return self.lookup.gather(roles, families=families, create=False, gradient=False), layout
        # a sight of a user is a positive of theirs, however many requests it answers
        taken, of_taken, _ = self._roles("taken", batch.entity)
        settings = setting_keys(batch.setting, batch.settings).ravel()
        seen = taken | {"taken user": batch.user, "taken setting": settings}
        families |= of_taken | {"taken user": USER, "taken setting": ATTRIBUTE}
        time = int(batch.time.max())
        creating = (*seen, "query")
        return self.lookup.gather(roles | seen, families=families, time=time, create=creating), layout

    def _made_of(self, prefix: str, entities: Keys, *, encode: bool = True) -> MadeOf:
        """What these entities are made of; without `encode` of texts only those that were read before."""
        return MadeOf(prefix, *self._roles(prefix, entities), self.texts.of(entities, encode=encode))

    def _roles(self, prefix: str, entities: Keys) -> tuple[dict[str, Keys], dict[str, int], Ints]:
        """The keys that speak for these entities by role, each role's family, and where each one's words begin."""
        keys = self.entity_keys(entities)
        words, offsets = self.words.of(entities)
        parts = np.ascontiguousarray(keys[:, 0]), keys[:, 1:].ravel(), words
        roles = {f"{prefix}{name}": part for name, part in zip(MADE_OF, parts, strict=True)}
        return roles, {f"{prefix}{name}": family for name, family in MADE_OF.items()}, offsets

    # ---- vectors of a batch --------------------------------------------------------------------------

    def entity_batch(self, gathered: Gathered, layout: Layout) -> Tensor:
        """Vectors [n, dim] of the entities whose keys were gathered."""
        return self.module.entity(self._bodies(gathered, layout.entity))

    def _bodies(self, gathered: Gathered, made: MadeOf) -> Tensor:
        """An entity's own row, its attributes', the mean of its words', and what its text tells: [n, dim]."""
        own, attributes, words = (gathered.places[f"{made.prefix}{name}"] for name in MADE_OF)
        n, k = len(own), len(self.attributes)
        fixed = torch.cat([own[:, None], attributes.reshape(n, k)], dim=1)
        bodies = self.module.body(gathered.rows, fixed.ravel(), torch.arange(n + 1) * (k + 1))
        if len(words):
            bodies = bodies + self._mean(gathered, words, made.offsets)
        return bodies + self.module.told(torch.from_numpy(made.texts)) if self.texts.width else bodies

    def _queries(self, gathered: Gathered, offsets: Ints, asked: Floats) -> tuple[Tensor, Tensor]:
        """The mean of each query's words and what the whole tells, [m, dim]; which are known, bool [m]."""
        queries = self._mean(gathered, gathered.places["query"], offsets)
        if self.texts.width:
            queries = queries + self.module.told(torch.from_numpy(asked))
        return queries, torch.from_numpy((np.diff(offsets) > 0) | asked.any(axis=1))

    def _mean(self, gathered: Gathered, places: Tensor, offsets: Ints) -> Tensor:
        sizes = np.diff(offsets)
        weights = np.repeat(1 / np.maximum(sizes, 1), sizes).astype(np.float32)
        return self.module.body(gathered.rows, places, torch.from_numpy(offsets), torch.from_numpy(weights))

    def request_batch(self, gathered: Gathered, layout: Layout, batch: Interactions, requests: Requests) -> Tensor:
        """Vectors [m, dim] of the requests that were gathered."""
        states = self.module.states(self._histories(gathered, layout.past, layout.event, batch.sequences))
        query, has_query = self._queries(gathered, layout.query, layout.asked)
        told = torch.from_numpy(np.where(requests.personal, batch.state[requests.positive], -1))
        fields, has_field = self._fields(gathered, requests.category, requests.setting)
        user = torch.from_numpy(requests.personal & (batch.user[requests.positive] != 0))
        asked = Asked(
            canvas=torch.from_numpy(requests.canvas),
            user=gathered.take("user"), knows_user=user,
            history=self.module.at(states, told),
            sources=self._bodies(gathered, layout.source), has_sources=torch.from_numpy(requests.source != 0),
            fields=fields, has_field=has_field, query=query, has_query=has_query,
        )  # fmt: skip
        return self.module.request(asked)

    def _fields(self, gathered: Gathered, category: Keys, setting: Keys) -> tuple[Tensor, Tensor]:
        """The rows of category uint64 [m] and setting uint64 [m, fields - 1]: [m, fields, dim]; which are known."""
        rows = gathered.take("setting").reshape(*setting.shape, self.table.dim)
        known = np.column_stack([category, setting]) != 0
        return torch.cat((gathered.take("category")[:, None], rows), dim=1), torch.from_numpy(known)

    def _histories(self, gathered: Gathered, made: MadeOf, event: Ints, past: Sequences) -> Histories:
        bodies = self._bodies(gathered, made)
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
            parts.append(self.module.entity(self._bodies(gathered, made)).numpy())
        return np.concatenate(parts)

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
            own = np.array([request.user, request.category, *request.setting.tolist()], np.uint64)
            rows = self.table.read(np.concatenate([own, query, keys.ravel(), words]))
            sizes = [len(own), len(query), keys.size]
            first, asked, fixed, spelled = np.split(rows, np.cumsum(sizes))
            bodies = fixed.reshape(*keys.shape, self.table.dim).sum(axis=1) + _means(spelled, offsets)
            queried = asked.mean(axis=0) if len(query) else None
            if self.texts.width:
                bodies += forward.told(self.texts.of(entities, encode=False))
                if len(query) or request.asked.any():
                    told = forward.told(request.asked[None])[0]
                    queried = told if queried is None else queried + told
            history = forward.history(bodies[event], past.action(), past.time)
            return forward(
                request.canvas,
                history,
                (
                    first[0] if own[0] else None,
                    bodies[len(distinct) :].mean(axis=0) if len(sources) else None,
                    queried,
                    *(row if key else None for key, row in zip(own[1:], first[1:], strict=True)),
                ),
            )

        return request_vector

    @torch.no_grad()
    def request_vector(self, request: Request) -> Floats:
        """Unit vector float32 [dim] of one request; zeros where nothing is known of it."""
        if not request.known():
            return np.zeros(self.table.dim, np.float32)
        distinct, event = np.unique(request.sequences.entity, return_inverse=True)
        made = self._made_of("source", request.sources, encode=False)
        past = self._made_of("past", distinct, encode=False)
        roles = made.roles | past.roles | {
            "user": np.array([request.user], np.uint64),
            "category": np.array([request.category], np.uint64), "query": request.query, "setting": request.setting,
        }  # fmt: skip
        gathered = self.lookup.gather(roles, create=False, gradient=False)
        states = self.module.states(self._histories(gathered, past, event, request.sequences))
        bodies = self._bodies(gathered, made)
        query, has_query = self._queries(gathered, np.array([0, len(request.query)]), request.asked[None])
        fields, has_field = self._fields(gathered, np.array([request.category], np.uint64), request.setting[None])
        asked = Asked(
            canvas=torch.tensor([request.canvas]),
            user=gathered.take("user"), knows_user=torch.tensor([request.user != 0]),
            history=self.module.at(states, torch.tensor([len(states) - 1])),
            sources=bodies.sum(dim=0, keepdim=True) / max(len(bodies), 1),
            has_sources=torch.tensor([len(bodies) > 0]),
            fields=fields, has_field=has_field, query=query, has_query=has_query,
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
