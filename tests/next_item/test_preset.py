"""One setting for all data, changed key by key."""

from __future__ import annotations

from mainstem.next_item import LARGE, PRESET, configured
from mainstem.schema.config import Config, TrainConfig

SHOP = Config.model_validate(
    {
        "events": {"buy": {}}, "heads": {"buy": {"event": "buy"}}, "model": {"dim": 8}, "train": {"patience": 9},
        "canvases": {"home": {"order": {"buy": 2}}, "similar": {"learns_from": "previous"}},
    }
)  # fmt: skip


def test_the_preset_holds_whatever_the_data_say() -> None:
    made = configured(SHOP, seed=3)
    assert SHOP.model.dim != configured(Config()).model.dim, "canary: the set has another size"
    assert made.model == configured(Config()).model, "a set's own sizes are no part of it"
    assert made.train.patience == PRESET["train"]["patience"]
    assert made.model.history.encoder == PRESET["model"]["history"]["encoder"]
    assert made.train.seed == 3
    assert list(made.events) == ["buy"]
    assert list(made.canvases) == ["home"]
    assert made.canvases["home"].learns_from == "events"


def test_histories_are_kept_as_long_as_they_are_read_and_a_sets_own_features_stay() -> None:
    given = {"entities": {"item": {"attributes": {"brand": "category"}}}, "features": {"by": ["brand"], "history": 9}}
    made = configured(Config.model_validate(given))
    assert made.features.by == ["brand"]
    assert made.history_length() == PRESET["model"]["history"]["length"] > Config().history_length()


def test_changes_lie_over_it_key_by_key() -> None:
    changes = Config.model_validate({"model": {"history": {"layers": 5}}, "train": {"patience": 1, "seed": 8}})
    made = configured(SHOP, changes, seed=3)
    assert made.model.history.layers == 5
    assert made.model.history.encoder == PRESET["model"]["history"]["encoder"]
    assert (made.train.patience, made.train.seed) == (1, 3)
    assert made.train.retrieval_epochs == PRESET["train"]["retrieval_epochs"]
    assert TrainConfig().patience not in (1, PRESET["train"]["patience"]), "canary: the default is another"


def test_the_large_setting_lies_between_the_preset_and_changes() -> None:
    small, large = configured(SHOP), configured(SHOP, large=True)
    assert (large.model.dim, large.model.history.layers) == (LARGE["model"]["dim"], LARGE["model"]["history"]["layers"])
    assert large.model.dim > small.model.dim
    assert large.model.history.dropout == small.model.history.dropout == PRESET["model"]["history"]["dropout"]
    assert configured(SHOP, Config.model_validate({"train": {"device": "cuda"}})).train.retrieval_batch > (
        small.train.retrieval_batch
    ), "a GPU takes more at once"
    assert configured(SHOP, Config.model_validate({"model": {"dim": 32}}), large=True).model.dim == 32
