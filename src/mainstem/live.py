"""The model in use: built from a snapshot, moved by deltas, its index kept current (law 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from mainstem import index, text
from mainstem.models import NumpyInterest, Ranker, numpy_scorer
from mainstem.rank import ModelVersion
from mainstem.rank.score import RankInputs, Reads
from mainstem.schema.config import Config
from mainstem.schema.errors import Incompatible, NotReady
from mainstem.schema.ids import Keys, digest128, key64, keys64
from mainstem.schema.pasts import Pasts
from mainstem.schema.protocols import Catalog, FeatureStore, FeatureView, Floats
from mainstem.schema.records import Context, Entity
from mainstem.schema.settings import Setting
from mainstem.text.kept import KeptTexts
from mainstem.train import Towers, Wide, kinds_read, neighbourhoods, restore
from mainstem.train.interactions import Sequences, notes
from mainstem.train.towers import CATEGORY, FIELDS, TABLE, Request
from mainstem.train.wide import WIDE
from mainstem.train.words import keys_of, word_keys
from mainstem.weights import Delta, Snapshot, Snapshots, Table

__all__ = ["LiveModel", "LiveModels", "fingerprint", "model_of", "scores_of"]


@dataclass(frozen=True, slots=True)
class LiveModel:
    """`answers` is what requests are answered with; `towers`, `ranker` and, where it has a wide part, `wide` hold the
    rows and networks behind it."""

    towers: Towers
    ranker: Ranker
    answers: ModelVersion
    wide: Wide | None = None

    def tables(self) -> dict[str, Table]:
        """The rows, by their names in snapshots and deltas."""
        wide = self.wide
        return {TABLE: self.towers.table} if wide is None else {TABLE: self.towers.table, WIDE: wide.table}


class LiveModels:
    """Makes and moves `LiveModel`s; what `refresh.ModelKeeper` works with.

    kept: the encoder that `model.text` names; snapshots: where the weights between items lie, without which the sources
    that read such are not ready.
    """

    def __init__(
        self, config: Config, catalog: Catalog, store: FeatureStore, line: str = "main", kept: KeptTexts | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:  # fmt: skip
        self.config, self.catalog, self.store, self.line, self.kept = config, catalog, store, line, kept
        self.snapshots = snapshots

    def build(self, snapshot: Snapshot) -> LiveModel:
        """Raises Incompatible where the snapshot was trained for another configuration."""
        manifest = snapshot.manifest
        if manifest.fingerprint != fingerprint(self.config, self.store):
            raise Incompatible(
                f"{manifest.version} was trained with other features, heads, entity types or sizes than configured "
                "now: run `mainstem train`"
            )
        towers, ranker, wide = restore(snapshot, self.config, self.catalog, self.kept)
        answers = model_of(
            towers, self.config, self.store.kinds, manifest.extras["inputs"], manifest.dense_version, self.catalog
        )
        sparse = f"{manifest.base}+{manifest.sequence}"
        between = neighbourhoods.load(self.snapshots.neighbours, manifest, self.config) if self.snapshots else {}
        answers = replace(
            answers, scores=scores_of(ranker, wide), sparse_version=sparse, line=self.line, neighbourhoods=between
        )
        return LiveModel(towers, ranker, answers, wide)

    def apply(self, model: LiveModel, delta: Delta) -> tuple[LiveModel, Keys]:
        """The rows of a delta, under the model in use; which entities have a row of their own among them.

        Raises Incompatible, changing nothing, where it holds other tables or rows of another width.
        """
        tables = model.tables()
        for name, part in delta.tables.items():
            if name not in tables or part.values.shape[1] != tables[name].dim:
                known = ", ".join(f"{name!r} with rows of {table.dim}" for name, table in tables.items())
                raise Incompatible(
                    f"delta {delta.sequence} holds table {name!r} with rows of {part.values.shape[1]}; the model "
                    f"in use has {known}: run `mainstem train`"
                )
        for name, part in delta.tables.items():
            tables[name].delete(part.deleted)
            tables[name].write(part.keys, part.values)
        touched = np.zeros(0, np.uint64)
        if (found := delta.tables.get(TABLE)) is not None:
            touched = np.concatenate([found.keys, found.deleted])
        answers = replace(model.answers, sparse_version=f"{delta.base}+{delta.sequence}")
        return replace(model, answers=answers), touched[self.catalog.rows(touched) >= 0]

    def renew(self, model: LiveModel, delta: Delta) -> LiveModel:
        """New networks over the same rows, with the whole catalogue embedded by them.

        Raises Incompatible where the dense part is not one of these networks.
        """
        old = model.towers
        # copies, to be overwritten: new ones would draw from the trainer's random numbers
        module, ranker = deepcopy(old.module), deepcopy(model.ranker)
        for prefix, network in (("towers.", module), ("ranker.", ranker)):
            tensors = {
                name.removeprefix(prefix): torch.from_numpy(np.array(array))
                for name, array in (delta.dense or {}).items()
                if name.startswith(prefix)
            }
            try:
                network.load_state_dict(tensors)
            except RuntimeError as error:  # torch says so for every shape and name that does not fit
                raise Incompatible(f"the dense part of delta {delta.sequence} does not fit: {error}") from error
            network.eval()
        towers = Towers(
            module, old.table, self.catalog, old.attributes, old.canvases, old.words, old.texts,
            user_rows=old.user_rows,
        )  # fmt: skip
        before = model.answers
        answers = model_of(towers, self.config, self.store.kinds, before.inputs, delta.dense_version, self.catalog)
        answers = replace(
            answers, scores=scores_of(ranker, model.wide), sparse_version=before.sparse_version, line=before.line,
            neighbourhoods=before.neighbourhoods,
        )  # fmt: skip
        return LiveModel(towers, ranker, answers, model.wide)

    def take_over(self, renewed: LiveModel, current: LiveModel) -> LiveModel:
        """Deltas moved the rows of both meanwhile."""
        return replace(renewed, answers=replace(renewed.answers, sparse_version=current.answers.sparse_version))

    def embed(self, model: LiveModel, entities: Keys) -> None:
        if len(entities):
            model.answers.index.upsert(entities, model.answers.embed(entities))

    def touch(self, model: LiveModel, changed: Sequence[Entity], left: Sequence[int]) -> None:
        """Between dense versions only touched entities are embedded anew."""
        keys = keys_of(changed)
        model.towers.forget(keys)
        self.embed(model, keys)
        model.answers.index.delete(np.array(left, np.uint64))


def fingerprint(config: Config, store: FeatureStore) -> str:
    """Of everything a snapshot's networks depend on (law 11)."""
    entities = {name: (kind.attributes, kind.text) for name, kind in config.entities.items()}
    model = config.model
    sizes = model.dim, model.hidden, model.temperature, model.history, model.words, list(config.canvases), FIELDS
    encoder = "" if model.text.encoder == "none" else f" {text.version_of(model.text.encoder)}"
    definition = f"{store.fingerprint} {config.heads!r} {sizes!r} {entities!r}{encoder}"
    chosen: list[object] = [model.ranking.model_dump(exclude_defaults=True, exclude={"wide"})]
    chosen += [
        head.model_dump(include={"levels", "unit", "each_next"}, exclude_defaults=True)
        for head in config.heads.values()
    ]
    chosen += ["no user rows"] if not model.user_rows else []
    chosen += [model.ranking.wide.crosses] if model.ranking.wide.crosses else []
    if any(chosen):  # left out where all is as before there was a choice: snapshots from then stay good
        definition += f" {chosen!r}"
    return digest128(definition).hex()


def model_of(
    towers: Towers, config: Config, kinds: Sequence[str], inputs: Sequence[str], version: str, catalog: Catalog
) -> ModelVersion:
    """Towers with their index over the whole catalogue; `scores` still to come."""
    keys = catalog.keys()
    keys = keys[keys != 0]
    vectors = index.open("auto://", config.model.dim, version=version)
    vectors.upsert(keys, towers.entity_vectors(keys))
    return ModelVersion(
        line="main",
        version=version,
        heads=tuple(config.heads),
        inputs=tuple(inputs),
        canvases=tuple(config.canvases),
        index=vectors,
        request_vector=_request_vector(towers, config, kinds),
        scores=_no_scores,
        embed=towers.entity_vectors,
        reads=_reads(config, kinds),
    )


def scores_of(ranker: Ranker, wide: Wide | None = None) -> Callable[[RankInputs], Floats]:
    """`ModelVersion.scores` by the network's weights of now and the wide part's of when it is asked, without torch."""
    scorer = numpy_scorer(ranker)
    interest = None if ranker.interest is None else NumpyInterest(ranker.interest)

    def scores(inputs: RankInputs) -> Floats:
        met, embeddings, crossed = inputs.met, None, None
        if interest is not None:
            if met is None:
                raise ValueError("this network reads histories, and these inputs have none")
            embeddings = interest(met.vectors, met.events, met.past.action, met.gaps)
        if wide is not None:
            one = np.array([0, len(inputs.keys)])
            crossed = wide.of_requests(inputs.values, inputs.keys, one, None if met is None else met.past)
        return scorer(inputs.values, embeddings=embeddings, crossed=crossed)

    return scores


def _actions(config: Config, kinds: Sequence[str]) -> NDArray[np.int64]:
    """The action of each kind that `History.kind` can be, -1 for those of no interest: int64 [kinds]."""
    names = list(config.interest())
    return np.array([names.index(kind) if kind in names else -1 for kind in kinds] or [-1], np.int64)


def _reads(config: Config, kinds: Sequence[str]) -> Reads | None:
    named, actions, most = kinds_read(config), _actions(config, kinds), config.history_length()
    if named is None:
        return None

    def past(view: FeatureView) -> Pasts:
        history = view.history()
        action = actions[history.kind]
        rows = np.flatnonzero(action >= 0)[-most:]
        return Pasts(history.entity[rows], action[rows].astype(np.uint8), history.time[rows], np.array([0, len(rows)]))

    return Reads(named, past)


def _request_vector(
    towers: Towers, config: Config, kinds: Sequence[str]
) -> Callable[[Context, FeatureView, str], Floats]:
    actions, most = _actions(config, kinds), config.history_length()
    vector_of = towers.request_vectors()
    memo: WeakKeyDictionary[FeatureView, tuple[Context, Floats]] = WeakKeyDictionary()  # retrieval and scoring both ask

    def request_vector(context: Context, view: FeatureView, tenant: str) -> Floats:
        known = memo.get(view)
        if known is None or known[0] is not context:
            canvas = config.canvases.get(context.canvas)
            shown = "item" if canvas is None else canvas.entity_type
            request = _request(towers, actions, most, context, view, tenant, shown)
            known = memo[view] = (context, vector_of(request))
        return known[1]

    return request_vector


def _request(
    towers: Towers, actions: NDArray[np.int64], most: int, context: Context, view: FeatureView, tenant: str, shown: str
) -> Request:
    """most: events of the history, the latest; shown: the type of entity that the canvas shows, whose category the
    context names."""
    history = view.history()
    action = actions[history.kind]
    rows = np.flatnonzero(action >= 0)[-most:]
    n = len(rows)
    past = Sequences(
        history.entity[rows], notes(action[rows], history.canvas[rows], history.value[rows]), history.time[rows],
        np.array([view.time] if n else [], np.int64), np.array([0, n] if n else [0], np.int64),
    )  # fmt: skip
    return Request(
        towers.canvases.places.of(context.canvas),
        0 if context.user is None else key64("user", context.user, tenant),
        past,
        keys64(context.source_type, context.sources, tenant),
        0 if context.category is None else key64(f"{shown}.{CATEGORY}", context.category, tenant),
        word_keys(context.query or "", towers.words.most),
        towers.texts.of_query(context.query),
        np.array(Setting.of(context).keys(), np.uint64),
    )


def _no_scores(inputs: RankInputs) -> Floats:
    raise NotReady("these towers have no ranking network yet")
