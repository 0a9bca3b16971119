"""The networks that a configuration asks for: new ones, and those of a snapshot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mainstem.models import Head, InterestConfig, Ranker, RankerConfig, Unified, UnifiedConfig, logistic
from mainstem.models.heads import task_of
from mainstem.models.history import EventConfig, HSTUConfig, PoolingConfig, TransformerConfig
from mainstem.models.unified import EncoderConfig
from mainstem.schema.config import Config, FamilyConfig, ModelConfig
from mainstem.schema.errors import Incompatible, StoreError
from mainstem.schema.protocols import Catalog
from mainstem.schema.time import parse_duration
from mainstem.text.kept import KeptTexts
from mainstem.train.canvases import Canvases
from mainstem.train.texts import Texts
from mainstem.train.towers import FAMILIES, FIELDS, TABLE, Towers
from mainstem.train.wide import WIDE, Crosses, Wide
from mainstem.train.words import Words
from mainstem.weights import Adagrad, Adam, Family, Ftrl, RowwiseAdagrad, SlabTable, Snapshot

__all__ = ["families_of", "kinds_read", "new_ranker", "new_tables", "new_towers", "new_wide", "restore"]

# Attention heads of the ranking network's transformer, where the width has no other divisor.
MOST_HEADS = 4

OPTIMIZERS = {"rowwise_adagrad": RowwiseAdagrad, "adagrad": Adagrad, "adam": Adam, "ftrl": Ftrl}


def families_of(model: ModelConfig) -> tuple[Family, ...]:
    """The table's families as configured."""
    configured = {str(name): family for name, family in model.families.items()}
    chosen = [configured.get(name, FamilyConfig()) for name in FAMILIES]
    return tuple(
        Family(
            name,
            scale=family.scale,
            optimizer=OPTIMIZERS[family.optimizer](),
            admit_after=family.admit_after,
            admit_probability=family.admit_probability,
            expire=None if family.expire is None else parse_duration(family.expire),
            capacity=family.capacity,
        )
        for name, family in zip(FAMILIES, chosen, strict=True)
    )


def new_towers(config: Config, catalog: Catalog, kept: KeptTexts | None = None, *, concurrent: bool = False) -> Towers:
    """Untrained towers as configured; the category attributes of every entity type speak for its entities.

    kept: the encoder that `model.text` names; ValueError where it is configured and not given, or the other way round.
    concurrent: for serving, where one thread applies deltas while others read.
    """
    if (kept is None) != (config.model.text.encoder == "none"):
        raise ValueError(f"model.text.encoder is {config.model.text.encoder}: hand in what text.keep gives for it")
    canvases = Canvases(config.canvases, config.tenant)
    texts = Texts(catalog, kept)
    module = Unified(
        UnifiedConfig(
            encoder_config(config), dim=config.model.dim, canvases=len(canvases.places), fields=len(FIELDS),
            text=texts.width,
        )
    )  # fmt: skip
    table = _towers_table(config, concurrent)
    words, user_rows = Words(catalog, config.model.words), config.model.user_rows
    return Towers(module, table, catalog, config.categories(), canvases, words, texts, user_rows=user_rows)


def new_wide(config: Config, catalog: Catalog, inputs: Sequence[str], *, concurrent: bool = False) -> Wide | None:
    """The untrained wide part of a ranking network with these inputs, as configured; None where nothing is crossed."""
    chosen = config.model.ranking.wide
    if not chosen.crosses:
        return None
    return Wide(Crosses(config, catalog, inputs), _wide_table(config, concurrent), chosen.learning_rate)


def new_tables(config: Config) -> dict[str, SlabTable]:
    """The tables of a model line, empty, by the names that snapshots have them under."""
    found = {TABLE: _towers_table(config, False)}
    return found | {WIDE: _wide_table(config, False)} if config.model.ranking.wide.crosses else found


def _towers_table(config: Config, concurrent: bool) -> SlabTable:
    return SlabTable(config.model.dim, families_of(config.model), seed=config.train.seed, concurrent=concurrent)


def _wide_table(config: Config, concurrent: bool) -> SlabTable:
    """Of one weight for each raw output of the ranking network a row."""
    chosen = config.model.ranking.wide
    family = Family(
        "cross", scale=0.0, optimizer=Ftrl(l1=chosen.l1, l2=chosen.l2), admit_after=chosen.admit_after,
        expire=None if chosen.expire is None else parse_duration(chosen.expire), capacity=chosen.capacity,
    )  # fmt: skip
    outputs = sum(task_of(head).outputs for head in _heads(config))
    return SlabTable(outputs, (family,), seed=config.train.seed, concurrent=concurrent)


def encoder_config(config: Config) -> EncoderConfig:
    """The history encoder as configured."""
    chosen, dim, interest = config.model.history, config.model.dim, config.interest()
    if chosen.encoder == "pooling":
        return PoolingConfig(dim=dim, interest=tuple(interest.values()))
    events = EventConfig(dim, len(interest), 1 + len(config.canvases), query_time=chosen.query_time)
    if chosen.encoder == "transformer":
        return TransformerConfig(events, dim, chosen.layers, chosen.heads, 4 * dim, dropout=chosen.dropout)
    return HSTUConfig(
        events, dim, chosen.layers, chosen.heads, positions=config.history_length(), dropout=chosen.dropout
    )


def restore(
    snapshot: Snapshot, config: Config, catalog: Catalog, kept: KeptTexts | None = None
) -> tuple[Towers, Ranker, Wide | None]:
    """The networks of a published snapshot, ready to answer, and the wide part where it has one; `kept` as in
    `new_towers`.

    Raises Incompatible where it was trained for another configuration than `config`.
    """
    towers = new_towers(config, catalog, kept, concurrent=True)
    version, extras = snapshot.manifest.version, snapshot.manifest.extras
    remedy = "train again with this configuration (`mainstem train`), or go back to the one it was trained with"
    trained_with = extras.get("attributes"), extras.get("heads", list(config.heads))
    if trained_with != (list(towers.attributes), list(config.heads)):
        raise Incompatible(
            f"{version} was trained with the attributes {trained_with[0]} and heads {trained_with[1]}, configured are "
            f"{list(towers.attributes)} and {list(config.heads)}: {remedy}"
        )
    ranker = new_ranker(config, len(extras["inputs"]))
    wide = new_wide(config, catalog, extras["inputs"], concurrent=True)
    try:
        towers.module.load_state_dict(_part(snapshot, "towers."))
        ranker.load_state_dict(_part(snapshot, "ranker."))
        towers.table.load(snapshot.tables[TABLE])
        if wide is not None:
            wide.table.load(snapshot.tables[WIDE])
    except (
        RuntimeError,
        StoreError,
        KeyError,
    ) as error:  # torch says RuntimeError for every shape and name that does not fit
        raise Incompatible(f"{version} does not fit the configured networks: {remedy}. {error}") from error
    towers.module.eval()
    ranker.eval()
    return towers, ranker, wide


def new_ranker(config: Config, inputs: int) -> Ranker:
    """An untrained ranking network for so many input columns, as configured."""
    chosen, interest, heads = config.model.ranking, interest_config(config), _heads(config)
    crossed = bool(chosen.wide.crosses)
    if chosen.network == "logistic":
        return logistic(inputs, heads, loss=chosen.loss, crossed=crossed)
    return Ranker(
        RankerConfig(
            features=inputs, heads=heads, hidden=tuple(config.model.hidden), loss=chosen.loss, sharing=chosen.sharing,
            experts=chosen.experts, expert_width=chosen.expert_width, interest=interest,
            embeddings=0 if interest is None else interest.width, crossed=crossed,
        )
    )  # fmt: skip


def _heads(config: Config) -> tuple[Head, ...]:
    return tuple(Head(name, head.type, tuple(head.levels), head.unit) for name, head in config.heads.items())


def interest_config(config: Config) -> InterestConfig | None:
    """Of the part of the ranking network that reads histories, as configured; None for none."""
    kind, dim = config.model.ranking.interest, config.model.dim
    if kind == "none":
        return None
    return InterestConfig(kind, dim, max(len(config.interest()), 1), heads=math.gcd(dim, MOST_HEADS))


def kinds_read(config: Config) -> tuple[str, ...] | None:
    """The kinds of events whose history the ranking network reads, in the order of its actions; None where it reads
    none."""
    chosen = config.model.ranking
    return tuple(config.interest()) if chosen.interest != "none" or chosen.wide.reads_history() else None


def _part(snapshot: Snapshot, prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in snapshot.tensors.items()
        if name.startswith(prefix)
    }
