"""The one model with its table: which keys speak for an entity and for a request.

One definition, used by training (many requests at once) and by serving (one request, many entities).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models import Asked, NumpyRequests, Unified
from mainstem.models.history import Histories
from mainstem.models.jagged import pick
from mainstem.models.numpy_history import Past, has_numpy
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import unique_places
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
# The roles whose keys may earn rows and count as seen, and their families.
SEEN = {
    "taken": ENTITY, "taken attribute": ATTRIBUTE, "taken word": WORD, "taken user": USER, "taken setting": ATTRIBUTE,
    "query": WORD,
}  # fmt: skip
# The attribute that `Context.category` is a value of.
CATEGORY = "category"
# Single-valued fields of the context that speak for a request.
FIELDS = (CATEGORY, *Setting._fields)
NO_SETTING: Keys = np.zeros(len(Setting._fields), np.uint64)

Ints = NDArray[np.int64]
NONE: Ints = np.zeros(0, np.int64)
NO_TEXTS: Floats = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand in a look-up. Each entity has one body, whatever it is asked for as; body 0 is of none.

    entities: the candidates' bodies are 1 .. entities. source int64 [m], event int64 [t]: the bodies of the requests'
    sources and of the events of the past. offsets int64 [n + 1], weights float32 [k]: the keys of each body, and what
    each counts in its sum; texts float32 [n, width]: the vector of each one's text. query int64 [m + 1]: where the
    words of each request's query begin, and asked float32 [m, width]: the vector of the whole.
    """

    entities: int
    source: Ints
    event: Ints
    offsets: Ints
    weights: Floats
    texts: Floats
    query: Ints
    asked: Floats


@dataclass(frozen=True, slots=True)
class _MadeOf:
    """What speaks for n entities: fixed uint64 [n, 1 + attributes], words uint64 [w]; spelled int64 [n + 1]: where each
    one's words begin; texts float32 [n, width]: the vector of each one's text."""

    fixed: Keys
    words: Keys
    spelled: Ints
    texts: Floats

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
    and its text do. user_rows: whether users have rows (`model.user_rows`)."""

    def __init__(
        self, module: Unified, table: Table, catalog: Catalog, attributes: Sequence[str], canvases: Canvases,
        words: Words, texts: Texts, *, user_rows: bool,
    ) -> None:  # fmt: skip
        self.module, self.table, self.catalog = module, table, catalog
        self.attributes, self.canvases, self.words, self.texts = tuple(attributes), canvases, words, texts
        self.user_rows, self.lookup = user_rows, Lookup(table)

    def forget(self, entities: Keys) -> None:
        """What these say of themselves has changed."""
        self.words.forget(entities)
        self.texts.forget(entities)

    # ---- where it computes ---------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the module computes; the table stays in host memory."""
        return self.lookup.device

    def move(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.module.to(device)
        self.lookup.device = device

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """The array where the module computes."""
        return torch.from_numpy(array).to(self.device)

    # ---- keys ----------------------------------------------------------------------------------------

    def entity_keys(self, entities: Keys) -> Keys:
        """Keys that speak for each entity: uint64 [n, 1 + attributes]; 0 where an attribute is absent."""
        rows = self.catalog.rows(entities)
        return np.column_stack([entities, *(self.catalog.codes(name, rows) for name in self.attributes)])

    def _users(self, users: Keys) -> Keys:
        """The keys of their rows: uint64 [n]; 0 for none."""
        return users if self.user_rows else np.zeros_like(users)

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
        asked = self.texts.of_queries(requests.query, batch.queries)
        layout = Layout(len(entities), source, event, offsets, weights, made.texts, query, asked)
        roles = {
            "made of": keys,
            "user": self._users(np.where(requests.personal, batch.user[requests.positive], 0).astype(np.uint64)),
            "category": requests.category,
            "query": words,
            "setting": requests.setting.ravel(),
        }
        if not learn:
            return self.lookup.gather(roles, create=False, gradient=False), layout
        # a sight of a user is a positive of theirs, however many requests it answers
        roles |= {
            "taken": batch.entity, "taken attribute": self.entity_keys(batch.entity)[:, 1:].ravel(),
            "taken word": self.words.of(batch.entity)[0], "taken user": self._users(batch.user),
            "taken setting": setting_keys(batch.setting, batch.settings).ravel(),
        }  # fmt: skip
        return self.lookup.gather(roles, families=SEEN, time=int(batch.time.max()), create=SEEN.keys()), layout

    def _distinct(self, *asked: Keys, encode: bool = True) -> tuple[_MadeOf, list[Ints]]:
        """What all these entities are made of, each once after key 0, in order of appearance; and which one each is."""
        distinct, place = unique_places(np.concatenate(asked))
        return self._made_of(distinct, encode=encode), np.split(place, np.cumsum([len(each) for each in asked[:-1]]))

    def _made_of(self, entities: Keys, *, encode: bool = True) -> _MadeOf:
        """Without `encode` with the texts alone that were read before."""
        return _MadeOf(self.entity_keys(entities), *self.words.of(entities), self.texts.of(entities, encode=encode))

    # ---- vectors of a batch --------------------------------------------------------------------------

    def bodies(self, gathered: Gathered, layout: Layout) -> Tensor:
        """What each entity of the look-up is made of: [n, dim]."""
        offsets, weights = self.tensor(layout.offsets), self.tensor(layout.weights)
        bodies = self.module.body(gathered.rows, gathered.places["made of"], offsets, weights)
        return bodies + self.module.told(self.tensor(layout.texts)) if self.texts.width else bodies

    def entity_batch(self, bodies: Tensor, layout: Layout) -> Tensor:
        """Vectors [c, dim] of the candidates."""
        return self.module.entity(bodies[1 : 1 + layout.entities])

    def request_batch(
        self, gathered: Gathered, bodies: Tensor, layout: Layout, batch: Interactions, requests: Requests
    ) -> Tensor:
        """Vectors [m, dim] of the requests."""
        states = self.module.states(self._histories(bodies, layout.event, batch.sequences))
        told = self.tensor(np.where(requests.personal, batch.state[requests.positive], -1))
        query, has_query = self._queries(gathered, layout)
        fields, has_field = self._fields(gathered, requests.category, requests.setting)
        user = self.tensor(requests.personal & (self._users(batch.user)[requests.positive] != 0))
        asked = Asked(
            canvas=self.tensor(requests.canvas),
            user=gathered.take("user"), knows_user=user,
            history=self.module.at(states, told),
            sources=pick(bodies, self.tensor(layout.source)), has_sources=self.tensor(requests.source != 0),
            fields=fields, has_field=has_field, query=query, has_query=has_query,
        )  # fmt: skip
        return self.module.request(asked)

    def _queries(self, gathered: Gathered, layout: Layout) -> tuple[Tensor, Tensor]:
        """The mean of each query's words and what the whole tells, [m, dim]; which are known, bool [m]."""
        sizes = np.diff(layout.query)
        weights = np.repeat(1 / np.maximum(sizes, 1), sizes).astype(np.float32)
        of = self.tensor(layout.query), self.tensor(weights)
        queries = self.module.body(gathered.rows, gathered.places["query"], *of)
        if self.texts.width:
            queries = queries + self.module.told(self.tensor(layout.asked))
        return queries, self.tensor((sizes > 0) | layout.asked.any(axis=1))

    def _fields(self, gathered: Gathered, category: Keys, setting: Keys) -> tuple[Tensor, Tensor]:
        """The rows of category uint64 [m] and setting uint64 [m, fields - 1]: [m, fields, dim]; which are known."""
        rows = gathered.take("setting").reshape(*setting.shape, self.table.dim)
        known = np.column_stack([category, setting]) != 0
        return torch.cat((gathered.take("category")[:, None], rows), dim=1), self.tensor(known)

    # ---- vectors to serve ----------------------------------------------------------------------------

    @torch.no_grad()
    def entity_vectors(self, entities: Keys, chunk: int = 20_000) -> Floats:
        """Unit vectors float32 [n, dim]; attributes alone speak for an entity without a row of its own."""
        self.module.eval()
        parts = [np.zeros((0, self.table.dim), np.float32)]
        for start in range(0, len(entities), chunk):
            some = entities[start : start + chunk]
            made = self._made_of(some)
            keys, offsets, weights = made.summed()
            gathered = self.lookup.gather({"made of": keys}, create=False, gradient=False)
            layout = Layout(len(some), NONE, NONE, offsets, weights, made.texts, NONE, NO_TEXTS)
            parts.append(self.module.entity(self.bodies(gathered, layout)).cpu().numpy())
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
        found: Floats = self.request_batch(gathered, bodies, layout, batch, requests).cpu().numpy()
        return found

    def vectors_before(self, batch: Interactions) -> Floats:
        """Unit vectors float32 [b, dim] of the users of `batch` as of then, asked on the first canvas."""
        return self.vectors_of(batch, self.canvases.plain(batch))

    def request_vectors(self) -> Callable[[Request], Floats]:
        """A function that gives the unit vector float32 [dim] of a request, zeros where nothing is known of it, by the
        networks' weights of now."""
        if not has_numpy(self.module.encoder):
            return self.request_vector
        forward = NumpyRequests(self.module)

        def request_vector(request: Request) -> Floats:
            if not request.known():
                return np.zeros(self.table.dim, np.float32)
            past, sources, query = request.sequences, request.sources, request.query
            distinct, event = np.unique(past.entity, return_inverse=True)
            entities = np.concatenate([distinct, sources])
            keys, (words, offsets) = self.entity_keys(entities), self.words.of(entities)
            own = np.array(
                [request.user if self.user_rows else 0, request.category, *request.setting.tolist()], np.uint64
            )
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
            asked_at = int(past.asked[-1]) if len(past) else 0
            history = forward.history(
                Past(bodies[event], past.action(), past.canvas(), past.value(), past.time, asked_at)
            )
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
        made, (source, event) = self._distinct(request.sources, request.sequences.entity, encode=False)
        keys, offsets, weights = made.summed()
        words, users = np.array([0, len(request.query)]), self._users(np.array([request.user], np.uint64))
        layout = Layout(0, source, event, offsets, weights, made.texts, words, request.asked[None])
        roles = {
            "made of": keys, "user": users,
            "category": np.array([request.category], np.uint64), "query": request.query, "setting": request.setting,
        }  # fmt: skip
        gathered = self.lookup.gather(roles, create=False, gradient=False)
        bodies = self.bodies(gathered, layout)
        states = self.module.states(self._histories(bodies, event, request.sequences))
        sources = pick(bodies, self.tensor(source))
        query, has_query = self._queries(gathered, layout)
        fields, has_field = self._fields(gathered, np.array([request.category], np.uint64), request.setting[None])
        asked = Asked(
            canvas=torch.tensor([request.canvas], device=self.device),
            user=gathered.take("user"), knows_user=self.tensor(users != 0),
            history=self.module.at(states, torch.tensor([len(states) - 1], device=self.device)),
            sources=sources.sum(dim=0, keepdim=True) / max(len(sources), 1),
            has_sources=torch.tensor([len(sources) > 0], device=self.device),
            fields=fields, has_field=has_field, query=query, has_query=has_query,
        )  # fmt: skip
        found: Floats = self.module.request(asked)[0].cpu().numpy()
        return found

    def _histories(self, bodies: Tensor, event: Ints, past: Sequences) -> Histories:
        return Histories(
            pick(bodies, self.tensor(event)), self.tensor(past.action()),
            self.tensor(past.canvas()), self.tensor(past.value()), self.tensor(past.time),
            self.tensor(past.offsets), self.tensor(past.asked),
        )  # fmt: skip


def _means(rows: Floats, offsets: Ints) -> Floats:
    """The mean of each segment of rows [w, dim]: [n, dim]; zeros of an empty one."""
    sizes = np.diff(offsets)
    out = np.zeros((len(sizes), rows.shape[1]), np.float32)
    filled = sizes > 0
    if filled.any():
        out[filled] = np.add.reduceat(rows, offsets[:-1][filled]) / sizes[filled][:, None]
    return out
