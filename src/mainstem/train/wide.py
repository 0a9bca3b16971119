"""The wide part of the ranking network: which combinations a candidate is of, and the table of what each one weighs.

One definition of the keys, used by training, on the stream and by serving, made of what slates have on record anyway:

| field | of | key |
|---|---|---|
| `canvas` | the request | the canvas, as the inputs say it; none for one that the configuration does not name |
| `kind` | the request | the kind of the latest event of interest before it |
| `latest`, `latest.ATTRIBUTE` | the request | the entity of that event, an attribute of it |
| `candidate`, `candidate.ATTRIBUTE` | each candidate | the entity, an attribute of it |

Attributes are those of the catalogue as it is when it is asked, as in the towers. A cross of a field that is missing is
missing: it has no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models import cross_keys, crossed
from mainstem.schema.canvases import canvas_inputs
from mainstem.schema.config import Config
from mainstem.schema.examples import Examples
from mainstem.schema.ids import NO_KEY, Keys, keys64
from mainstem.schema.pasts import Pasts
from mainstem.schema.protocols import Catalog, Floats
from mainstem.schema.wide_config import CANDIDATE, CANVAS, KIND, LATEST, attribute_of
from mainstem.weights import Lookup, Table

__all__ = ["WIDE", "Crosses", "Crossings", "Wide"]

# The table's name in snapshots and deltas.
WIDE = "wide"

Ints = NDArray[np.int64]


class Crosses:
    """The crosses that `config` names. inputs: the names of the ranking network's inputs. Raises ValueError where
    `canvas` is crossed and they do not say which canvas asks."""

    def __init__(self, config: Config, catalog: Catalog, inputs: Sequence[str]) -> None:
        chosen = config.model.ranking.wide
        self.catalog, self.fields, self.reads_history = catalog, chosen.fields(), chosen.reads_history()
        self.columns = [tuple(map(self.fields.index, cross)) for cross in chosen.crosses]
        self._canvases = keys64("canvas", config.canvases, config.tenant)
        self._kinds = keys64("kind", config.interest(), config.tenant)
        said = canvas_inputs(config.canvases) if CANVAS in self.fields else ()
        self._canvas_inputs = [list(inputs).index(name) for name in said]

    def keys(self, inputs: Floats, candidates: Keys, offsets: Ints, pasts: Pasts | None) -> Keys:
        """uint64 [n, crosses], 0 where a cross is missing.

        inputs [n, f] and candidates uint64 [n] of g requests, those of request i at offsets[i]:offsets[i + 1]; pasts:
        of the g requests. Raises ValueError where a cross needs the history and there is none.
        """
        if self.reads_history and pasts is None:
            raise ValueError("the crosses need the users' histories, and there are none")
        sizes, asked = np.diff(offsets), self._asked(pasts, len(offsets) - 1)
        known = {CANDIDATE: candidates} | {name: np.repeat(keys, sizes) for name, keys in asked.items()}
        if CANVAS in self.fields:
            known[CANVAS] = self._canvas(inputs)
        columns = [known[name] if name in known else self._attribute(name, known) for name in self.fields]
        return cross_keys(np.column_stack(columns), self.columns)

    def _asked(self, pasts: Pasts | None, requests: int) -> dict[str, Keys]:
        """The fields of each request's history: uint64 [g] each."""
        if not self.reads_history or pasts is None:
            return {}
        past, newest = np.flatnonzero(np.diff(pasts.offsets)), pasts.offsets[1:] - 1
        found = {KIND: np.zeros(requests, np.uint64), LATEST: np.zeros(requests, np.uint64)}
        found[KIND][past] = self._kinds[pasts.action[newest[past]]]
        found[LATEST][past] = pasts.entity[newest[past]]
        for name in self.fields:
            if attribute_of(name)[0] == LATEST and name != LATEST:
                found[name] = self._attribute(name, found)
        return found

    def _attribute(self, name: str, known: dict[str, Keys]) -> Keys:
        of, attribute = attribute_of(name)
        assert attribute is not None
        return self.catalog.codes(attribute, self.catalog.rows(known[of]))

    def _canvas(self, inputs: Floats) -> Keys:
        said = inputs[:, self._canvas_inputs] > 0
        return np.where(said.any(axis=1), self._canvases[said.argmax(axis=1)], np.uint64(NO_KEY))


@dataclass(frozen=True, slots=True)
class Crossings:
    """The crosses of n candidates of g requests.

    keys int64 [n, crosses]: the bits of uint64; taken bool [n]: those that an event is about; time int64 [g]: of the
    requests, ms
    """

    keys: Tensor
    taken: Tensor
    time: Tensor

    @classmethod
    def of(cls, examples: Examples, taken: Tensor, crosses: Crosses) -> Crossings:
        """taken bool [n]. Raises ValueError where the crosses need histories that the examples do not have."""
        keys = crosses.keys(examples.inputs, examples.keys, examples.offsets, examples.pasts)
        return cls(torch.from_numpy(keys.view(np.int64)), taken, torch.from_numpy(examples.time))

    def groups(self, which: Tensor, rows: Tensor) -> Crossings:
        """Those of the requests at these places, in this order; rows: the places of their candidates."""
        return Crossings(self.keys.index_select(0, rows), self.taken.index_select(0, rows), self.time[which])

    def newly(self, before: Tensor) -> Crossings:
        """The same but for what was taken `before`, bool [n]: an event is a sight of a cross once."""
        return replace(self, taken=self.taken & ~before)

    def bits(self) -> Keys:
        """uint64 [n, crosses]."""
        found: Keys = self.keys.numpy().view(np.uint64)
        return found


class Wide:
    """`crosses` with the table of their weights: rows of one weight for each raw output of the ranking network.

    What a user took earns its crosses their weights; what was only a candidate moves weights that are there. A step:
    `look_up`, forward, `loss.backward()`, `learn`. While one thread writes the table, others may call `of_requests`,
    where the table allows it.
    """

    def __init__(self, crosses: Crosses, table: Table, learning_rate: float) -> None:
        self.crosses, self.table, self.learning_rate = crosses, table, learning_rate
        self._lookup = Lookup(table)
        self._rows = torch.zeros(0, table.dim)

    def look_up(self, crossings: Crossings, *, admit: bool) -> Tensor:
        """What the crosses say of each candidate, [n, outputs], for a training step. admit: whether what was taken may
        earn a weight."""
        keys = crossings.bits()
        roles = {"taken": keys[crossings.taken.numpy()].ravel(), "all": keys.ravel()}
        latest = int(crossings.time.max()) if len(crossings.time) else 0
        gathered = self._lookup.gather(roles, time=latest, create={"taken"} if admit else ())
        self._rows = gathered.rows
        return crossed(gathered.rows, gathered.places["all"].reshape(keys.shape))

    def finite(self) -> bool:
        """Whether the gradient of the latest `look_up` is."""
        return self._rows.grad is None or bool(self._rows.grad.isfinite().all())

    def learn(self, slates: int) -> None:
        """One step of FTRL. slates: of how many the loss was the mean: FTRL counts gradients, so it is given their sum,
        and a slate moves a weight by the same in a batch of any size."""
        if self._rows.grad is not None:
            self._rows.grad.mul_(slates)
        self._lookup.apply_gradients(self.learning_rate)

    def read(self, crossings: Crossings) -> Tensor:
        """What the crosses say of each candidate, without a gradient: [n, outputs]."""
        keys = crossings.bits()
        gathered = self._lookup.gather({"all": keys.ravel()}, create=False, gradient=False)
        return crossed(gathered.rows, gathered.places["all"].reshape(keys.shape))

    def of_requests(self, inputs: Floats, candidates: Keys, offsets: Ints, pasts: Pasts | None) -> Floats:
        """The same without torch, float32 [n, outputs]; arguments as in `Crosses.keys`."""
        keys = self.crosses.keys(inputs, candidates, offsets, pasts)
        rows = self.table.read(keys.ravel()).reshape(*keys.shape, self.table.dim)
        said: Floats = rows.sum(axis=1)
        return said
