"""A world in which only an exact combination says the answer: who looked last at a thing of one flavour takes things of
another, and which one goes with which is drawn by lot. The inputs are noise and which canvas asks."""

from __future__ import annotations

import numpy as np

from mainstem import catalog as catalogs
from mainstem.catalog import MemoryCatalog
from mainstem.models import Ranker
from mainstem.schema.config import (
    Config,
    EntityTypeConfig,
    EventConfig,
    HeadConfig,
    ModelConfig,
    RankingConfig,
    TrainConfig,
)
from mainstem.schema.examples import Examples
from mainstem.schema.ids import keys64
from mainstem.schema.pasts import Pasts
from mainstem.schema.position import START
from mainstem.schema.protocols import Floats
from mainstem.schema.records import Entity
from mainstem.train import RankingLearner, Wide, new_ranker, new_wide

T0 = 1_500_000_000_000
FLAVOURS, ENTITIES, RIGHT, CANDIDATES = 8, 64, 3, 24
GOES_WITH = np.random.default_rng(5).permutation(FLAVOURS)
KEYS = keys64("item", map(str, range(ENTITIES)))
INPUTS = ("noise", "canvas_home", "canvas_similar")
BUY = HeadConfig(event="purchase")

CROSSES: dict[str, list[list[str]]] = {
    "none": [],
    "apart": [["candidate.flavour"], ["candidate"], ["canvas", "candidate"]],
    "crossed": [["latest.flavour", "candidate.flavour"]],
}


def config_of(crosses: str, network: str = "deep", **wide: object) -> Config:
    ranking = RankingConfig.model_validate({"network": network, "wide": {"crosses": CROSSES[crosses], **wide}})
    return Config(
        events={"purchase": EventConfig(owned=True), "view": EventConfig()},
        entities={"item": EntityTypeConfig(attributes={"flavour": "category"})},
        model=ModelConfig(hidden=[16], ranking=ranking),
    )


def catalog_of() -> MemoryCatalog:
    catalog = catalogs.open("memory://", entities=config_of("none").entities)
    entities = [
        Entity(record_id=f"e{i}", time=T0, entity=str(i), attributes={"flavour": f"f{i % FLAVOURS}"})
        for i in range(ENTITIES)
    ]
    catalog.write(entities, START)
    return catalog


def group(number: int) -> Examples:
    """Three right candidates and 21 others, mixed; two events of the past."""
    rng = np.random.default_rng((7, number))
    flavour = int(rng.integers(FLAVOURS))
    of_each = ENTITIES // FLAVOURS

    def some(flavours: np.ndarray) -> np.ndarray:
        return rng.integers(of_each, size=len(flavours)) * FLAVOURS + flavours

    right = rng.choice(of_each, RIGHT, replace=False) * FLAVOURS + GOES_WITH[flavour]
    others = np.setdiff1d(np.arange(FLAVOURS), GOES_WITH[[flavour]])
    wrong = np.concatenate([rng.choice(of_each, RIGHT, replace=False) * FLAVOURS + other for other in others])
    past = KEYS[some(np.array([rng.integers(FLAVOURS), flavour]))]
    time = T0 + 1_000 * number
    mixed = rng.permutation(CANDIDATES)  # of equal scores the first would win
    canvas = np.tile(np.eye(2)[number % 2], (CANDIDATES, 1))
    return Examples(
        inputs=np.column_stack([rng.normal(size=CANDIDATES), canvas]).astype(np.float32),
        labels=(mixed < RIGHT).astype(np.float32)[:, None],
        negative_rate=np.ones(CANDIDATES, np.float32), fresh=np.ones(CANDIDATES, np.bool_),
        weight=np.ones(CANDIDATES, np.float32), keys=KEYS[np.concatenate([right, wrong])[mixed]],
        offsets=np.array([0, CANDIDATES]), time=np.array([time]), user=np.array([1], np.uint64),
        pasts=Pasts(past, np.array([0, 1], np.uint8), time - np.array([2_000, 1_000]), np.array([0, 2])),
    )  # fmt: skip


def made(config: Config) -> tuple[Ranker, Wide | None]:
    """Untrained."""
    return new_ranker(config, len(INPUTS)), new_wide(config, catalog_of(), INPUTS)


def learner_of(config: Config, train: TrainConfig) -> RankingLearner:
    ranker, wide = made(config)
    return RankingLearner(ranker, [BUY], train, wide=wide)


def share_right(logits: Floats, examples: Examples) -> float:
    """Share of the groups whose best candidate by score is a right one; an eighth by chance."""
    best = logits[:, 0].reshape(len(examples), CANDIDATES).argmax(axis=1)
    return float(examples.labels.reshape(len(examples), CANDIDATES)[np.arange(len(examples)), best].mean())
