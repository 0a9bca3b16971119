"""RecBole's SASRec for p4_sequence_training.py, run by an interpreter that has `recbole`; nothing of ours.

    PYTHON benchmarks/_recbole_sasrec.py FOLDER --minutes 30 [--factors 128] [--length 50] ...

FOLDER/actions.npz is read, and scores.npy, last.npy and facts.npz are written, as _rectools_sasrec.py does with the
whole softmax when it is asked for validation. RecBole's defaults hold for all else (a feed-forward layer of 256, Adam
at .001) but two: batches of 256, not 2048, which take a little more time a row and give eight times the steps in the
time there is; and mixed precision where it proves faster. RecBole makes a padded row of every action with the history
before it, so that an epoch may take longer than the time there is: training ends before the first batch after it, and
what was learned by then is the last. The best epoch is that of the best MRR@10 on validation, by RecBole's own figure.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

USER, ITEM, PLACE = "user_id", "item_id", "timestamp"
EXACT = 2**24  # RecBole keeps times in float32; so many places it keeps apart


class TimeIsUp(Exception):
    """Raised instead of a batch that would begin too late."""


class Held(SequentialDataset):
    """Validation is what is at the places `held`: RecBole's own rule would learn from it where a user has little."""

    held: Any

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[SequentialDataset]:
        asked = np.isin(self.inter_feat[PLACE].numpy(), self.held)
        rows = (np.flatnonzero(~asked), np.flatnonzero(asked), np.empty(0, np.int64))
        return [self.copy(self.inter_feat[each]) for each in rows]


class Bounded(Trainer):
    """Trains for so many seconds; what asking validation takes is not among them."""

    def __init__(self, config: Config, model: SASRec, limit: float) -> None:
        super().__init__(config, model)
        self.limit, self.seconds, self.steps = limit, 0.0, 0

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        began, before = time.monotonic(), self.seconds

        def loss(batch: Any) -> torch.Tensor:
            self.seconds = before + time.monotonic() - began
            if self.seconds >= self.limit:
                raise TimeIsUp
            self.steps += 1
            value: torch.Tensor = self.model.calculate_loss(batch)
            return value

        found = super()._train_epoch(train_data, epoch_idx, loss, show_progress)
        self.seconds = before + time.monotonic() - began
        return found


def configured(args: argparse.Namespace, seed: int) -> Config:
    told = {
        "data_path": str(args.folder), "checkpoint_dir": str(args.folder), "seed": seed, "use_gpu": False,
        "show_progress": False, "load_col": {"inter": [USER, ITEM, PLACE]}, "MAX_ITEM_LIST_LENGTH": args.length,
        "hidden_size": args.factors, "n_layers": args.blocks, "n_heads": args.heads, "loss_type": "CE",
        "hidden_dropout_prob": args.dropout, "attn_dropout_prob": args.dropout, "train_neg_sample_args": None,
        "train_batch_size": args.batch, "eval_batch_size": 256, "epochs": 10_000, "stopping_step": 10_000,
        "eval_args": {"split": {"LS": "valid_only"}, "group_by": "user", "order": "TO", "mode": "full"},
    }  # fmt: skip
    return Config(model="SASRec", dataset="told", config_dict=told)


def dataset_of(actions: Any, config: Config, args: argparse.Namespace) -> Held:
    places = actions["validation"]
    kept = actions["learned"].copy()
    kept[places] = True
    if len(kept) > EXACT:
        raise SystemExit(f"{len(kept):,} actions: RecBole tells no more than {EXACT:,} apart")
    user = np.repeat(np.arange(len(actions["offsets"]) - 1), np.diff(actions["offsets"]))
    columns = {f"{USER}:token": user, f"{ITEM}:token": actions["item"], f"{PLACE}:float": np.arange(len(user))}
    (args.folder / "told").mkdir()
    pd.DataFrame(columns)[kept].to_csv(args.folder / "told" / "told.inter", sep="\t", index=False)
    dataset = Held(config)
    dataset.held = places
    return dataset


def mixed_is_faster(model: SASRec, batch: Any) -> bool:
    """Whether a step takes less processor time in RecBole's mixed precision: bfloat16, which not all multiply fast."""
    taken = {}
    for mixed in (False, True, False, True):  # the first of each warms up
        began = time.process_time()
        with torch.autocast("cpu", enabled=mixed):
            loss = model.calculate_loss(batch)
        loss.backward()
        taken[mixed] = time.process_time() - began
    model.zero_grad()
    return taken[True] < taken[False]


@torch.no_grad()
def scores(model: SASRec, asked: Any, actions: Any) -> Any:
    """Of every item for each user asked: float32 [q, items]; an item that RecBole was not told of gets less than the
    least it gives."""
    model.eval()
    places = actions["validation"]
    names = asked.dataset.field2id_token[ITEM][1:].astype(np.int64)  # the first is padding
    found = np.full((len(places), int(actions["items"])), np.nan, np.float32)
    for batch, *_ in asked:
        rows = np.searchsorted(places, batch[PLACE].numpy())
        found[np.ix_(rows, names)] = model.full_sort_predict(batch)[:, 1:].numpy()
    unknown = np.setdiff1d(np.arange(found.shape[1]), names)
    found[:, unknown] = found[:, names].min() - 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda name: Path(name).resolve())
    parser.add_argument("--minutes", type=float, required=True, help="of training")
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    os.chdir(args.folder)  # RecBole writes its logs beneath
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    actions = dict(np.load(args.folder / "actions.npz"))
    torch.set_num_threads(1)
    config = configured(args, int(actions["seed"]))
    init_seed(config["seed"], config["reproducibility"])
    train, asked, _ = data_preparation(config, dataset_of(actions, config, args))
    model = SASRec(config, train.dataset)
    config["enable_amp"] = mixed_is_faster(model, next(iter(train))[:64])
    trainer = Bounded(config, model, 60 * args.minutes)
    try:
        trainer.fit(train, asked)
    except TimeIsUp:
        logging.info("the time is up in epoch %d", len(trainer.train_loss_dict) + 1)
    np.save(args.folder / "last.npy", scores(model, asked, actions))
    if Path(trainer.saved_model_file).exists():  # else no epoch ended: the last is the best
        # weights_only=False: RecBole keeps its configuration beside the weights
        model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    np.save(args.folder / "scores.npy", scores(model, asked, actions))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    np.savez(
        args.folder / "facts.npz", seconds=trainer.seconds, epochs=trainer.steps / len(train),
        version=f"{recbole.__version__}, {'mixed precision' if config['enable_amp'] else 'float32'}", peak_gib=peak,
    )  # fmt: skip


if __name__ == "__main__":
    main()
