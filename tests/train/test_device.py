"""Where the networks of the retrieval training compute: named, refused with a reason, and the same anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkerboard import CONFIG, purchases
from learned_towers import share_right, trained

from mainstem.schema.config import Config
from mainstem.schema.errors import ConfigError
from mainstem.train import RetrievalTrainer
from mainstem.train.device import device_of, matmul_precision

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on(device: str, encoder: str = "pooling") -> Config:
    history = CONFIG.model.history.model_copy(update={"encoder": encoder, "dropout": 0.0})
    return CONFIG.model_copy(
        update={
            "train": CONFIG.train.model_copy(update={"device": device}),
            "model": CONFIG.model.model_copy(update={"history": history}),
        }
    )


def test_a_device_is_named_or_found_and_one_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto").type == device_of("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"sees no GPU.*set train.device to auto or cpu"):
        trained(purchases(), epochs=1, config=on("cuda"))


def test_less_exact_products_are_for_the_gpu_alone_and_end_with_the_training() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == before
    with matmul_precision(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high" != before
    assert torch.get_float32_matmul_precision() == before


def test_an_optimizer_that_was_moved_goes_on_as_if_it_were_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(moved: bool) -> list[float]:
        trainer = trained(purchases(), epochs=1, config=on("cpu"))
        if moved:
            # another name of the same device: everything is taken there and back
            monkeypatch.setattr(trainer, "device", torch.device("cpu", 0))
        rows, rng = np.arange(len(trainer.positives)), np.random.default_rng(1)
        found = [loss for loss, _ in trainer.epoch(rows, rng, 1)]
        assert trainer.towers.device == torch.device("cpu"), "it is where it was"
        return found

    assert losses(moved=True) == losses(moved=False)


@needs_gpu
@pytest.mark.parametrize("encoder", ["pooling", "transformer", "hstu"])
def test_a_gpu_learns_the_same(encoder: str) -> None:
    here, there = (trained(purchases(), config=on(device, encoder)) for device in ("cpu", "cuda"))
    assert share_right(there.towers) == pytest.approx(share_right(here.towers), abs=0.1)
    assert all(each.device.type == "cpu" for each in there.towers.module.parameters()), "it is brought back"
    assert all(value.device.type == "cpu" for state in there.learner.adam.state.values() for value in state.values()), (
        "and so is the optimizer"
    )


@needs_gpu
def test_a_step_has_the_loss_of_the_processor() -> None:
    def losses(device: str) -> list[float]:
        trainer: RetrievalTrainer = trained(purchases(), epochs=1, config=on(device, "transformer"))
        rows, rng = np.arange(len(trainer.positives)), np.random.default_rng(1)
        return [loss for loss, _ in trainer.epoch(rows, rng, 1)]

    np.testing.assert_allclose(losses("cuda"), losses("cpu"), rtol=0.02)
