"""A model is judged on every canvas: by its slates there against those without a model, and by the canvas' gate."""

from __future__ import annotations

import numpy as np
import pytest

from mainstem import eventlog
from mainstem.canvas_evaluation import PLAIN
from mainstem.evaluate.table import Evaluation
from mainstem.evaluation import evaluate_log
from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig, ModelConfig, SourceConfig, TrainConfig
from mainstem.schema.records import Entity, Event, LogRecord
from mainstem.schema.time import DAY

T0 = 1_500_000_000_000
USERS, ITEMS, DAYS = 24, 40, 40
SHELF = ("even", "odd")

CONFIG = Config(
    entities={"item": EntityTypeConfig(attributes={"category": "category"})},
    canvases={
        "home": CanvasConfig(),
        "similar": CanvasConfig(learns_from="previous"),
        "shelf": CanvasConfig(learns_from="category"),
        "search": CanvasConfig(learns_from="query"),
        "letter": CanvasConfig(),
    },
    model=ModelConfig(dim=16, hidden=[16]),
    train=TrainConfig(retrieval_batch=128, retrieval_epochs=3, ranking_epochs=2, ranking_learning_rate=0.01),
)  # fmt: skip


def world() -> list[LogRecord]:
    """Even users take even items, odd users odd ones, three a visit; every third visit is a search."""
    rng = np.random.default_rng(0)
    out: list[LogRecord] = [
        Entity(record_id=f"e{i}", time=T0, entity=f"{i}", attributes={"category": SHELF[i % 2]}, text=SHELF[i % 2])
        for i in range(ITEMS)
    ]
    for day in range(DAYS):
        for user in range(USERS):
            if rng.random() < 0.4:
                query = SHELF[user % 2] if rng.random() < 1 / 3 else None
                for k, item in enumerate(rng.choice(ITEMS // 2, 3, replace=False)):
                    at = T0 + day * DAY + user * 60_000 + k
                    out.append(
                        Event(
                            event_id=f"{day}-{user}-{k}", time=at, user=f"u{user}", kind="purchase", query=query,
                            entity=str(2 * int(item) + user % 2), session=f"{day}-{user}",
                        )
                    )  # fmt: skip
    return out


def judged(config: Config) -> Evaluation:
    log = eventlog.open("memory://", history="file:///nowhere")
    log.append(world())
    return evaluate_log(config, log, days=6, most=60, progress=lambda stage, done, total: None)[0]


def with_gates(gate: float) -> Config:
    canvases = {name: canvas.model_copy(update={"gate": gate}) for name, canvas in CONFIG.canvases.items()}
    return CONFIG.model_copy(update={"canvases": canvases})


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return judged(with_gates(0.5))


def test_every_canvas_has_a_figure_of_both_systems(evaluation: Evaluation) -> None:
    for canvas in CONFIG.canvases:
        ours, plain = (evaluation.rows[system][f"ndcg@10 {canvas}"] for system in ("mainstem", PLAIN))
        assert ours is not None, canvas
        assert plain is not None, canvas
        assert 0 < ours < 1
    assert "Each canvas" in evaluation.protocol


def test_what_is_asked_beside_is_used(evaluation: Evaluation) -> None:
    """A slate of ten from the right twenty finds more than one from all forty, wherever the parity is known from."""
    for canvas in ("home", "similar", "shelf", "search", "letter"):
        found = evaluation.rows["mainstem"][f"ndcg@10 {canvas}"]
        assert found is not None
        assert found > 0.2, canvas  # about .15 from all forty, .3 from the right twenty


def test_gates_name_the_canvases_that_fell_behind(evaluation: Evaluation) -> None:
    assert evaluation.failures == ()
    failed = judged(with_gates(1000.0))
    assert [line.split(":")[0] for line in failed.failures] == [f"canvases.{name}" for name in CONFIG.canvases]
    assert "1000 times" in failed.failures[0]
    assert judged(CONFIG).failures == ()  # no gate, nothing to pass


def test_weights_between_items_are_of_the_past_that_is_trained_on() -> None:
    """Alone, so that every candidate is theirs: of the right twenty, where what fills up is of all forty."""
    alone = CanvasConfig(sources={"item_knn": SourceConfig()})
    found = judged(CONFIG.model_copy(update={"canvases": {"home": alone}})).rows
    ours, plain = (found[system]["ndcg@10 home"] for system in ("mainstem", PLAIN))
    assert ours is not None
    assert plain is not None
    assert ours > 0.2
    assert plain < 0.2  # canary: without a model there are no weights
