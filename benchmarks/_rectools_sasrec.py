"""RecTools' SASRec for next_item.py and p4_sequence_training.py, run by an interpreter that has `rectools[torch]`;
nothing of ours.

    PYTHON benchmarks/_rectools_sasrec.py FOLDER [--epochs 100] [--patience 10] [--minutes 30] [--negatives 32] ...

FOLDER/actions.npz: item int64 [n], offsets int64 [u + 1], items, learned bool [n], validation and test int64 [q]
(places), seed. Written: FOLDER/scores.npy float32 [q, items], of every item as the action that `--ask` names of each
user asked, and FOLDER/facts.npz. An item that it does not know gets less than the least it gives. Epochs end when the
loss on validation has not fallen for `--patience` of them, or the time is up, and the best one counts; in
FOLDER/last.npy the scores of the last one.

32 negatives: on one thread it went three times over Amazon Beauty with them in three minutes and a half, and had .0136
NDCG@10 on validation. With the whole softmax it went over it once in five minutes and a half and had .0079; with 256
negatives eleven minutes were two or three times, which were not asked on validation.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rectools
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def frame(actions: Any, kept: Any) -> pd.DataFrame:
    user = np.repeat(np.arange(len(actions["offsets"]) - 1), np.diff(actions["offsets"]))
    at = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(user)), unit="s")
    whole = pd.DataFrame({Columns.User: user, Columns.Item: actions["item"], Columns.Weight: 1, Columns.Datetime: at})
    return whole[kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, at most")
    parser.add_argument("--ask", choices=["test", "validation"], default="test")
    parser.add_argument("--negatives", type=int, default=32, help="a position; 0 is the whole softmax")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--dropout", type=float, default=0.2)
    args = parser.parse_args()
    actions = np.load(args.folder / "actions.npz")
    seed_everything(int(actions["seed"]))
    torch.set_num_threads(1)
    held = np.zeros(len(actions["item"]), bool)
    held[actions["validation"]] = True
    known = frame(actions, actions["learned"] | held)
    before = known if args.ask == "test" else frame(actions, actions["learned"])
    checkpoints = tempfile.mkdtemp(dir=args.folder)
    best = ModelCheckpoint(checkpoints, monitor=SASRecModel.val_loss_name, save_weights_only=True)

    def trainer() -> Trainer:
        early = EarlyStopping(SASRecModel.val_loss_name, patience=args.patience)
        return Trainer(
            max_epochs=args.epochs, max_time=None if args.minutes == math.inf else {"seconds": args.minutes * 60},
            callbacks=[best, early], logger=False, devices=1, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip

    model = SASRecModel(
        n_factors=args.factors, n_blocks=args.blocks, n_heads=args.heads, session_max_len=args.length,
        dropout_rate=args.dropout, loss="sampled_softmax" if args.negatives else "softmax",
        n_negatives=args.negatives or 1, get_trainer_func=trainer,
        get_val_mask_func=lambda rows: np.isin(rows.index, np.flatnonzero(held[known.index])),
    )  # fmt: skip
    began = time.monotonic()
    model.fit(Dataset.construct(known.reset_index(drop=True)))
    seconds = time.monotonic() - began
    np.save(args.folder / "last.npy", scores(model, actions, before, actions[args.ask]))
    callbacks = [each for each in model.fit_trainer.callbacks if isinstance(each, ModelCheckpoint)]
    if callbacks[0].best_model_path:  # else no epoch ended: the last is the best
        state = torch.load(callbacks[0].best_model_path, weights_only=False)["state_dict"]
        model.lightning_model.load_state_dict(state)
    np.save(args.folder / "scores.npy", scores(model, actions, before, actions[args.ask]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    np.savez(
        args.folder / "facts.npz", seconds=seconds, epochs=model.fit_trainer.current_epoch,
        version=rectools.__version__, peak_gib=peak,
    )  # fmt: skip


def scores(model: SASRecModel, actions: Any, known: pd.DataFrame, places: Any) -> Any:
    """Of every item for each user who is asked at these places, from `known`: float32 [q, items]."""
    asked = np.searchsorted(actions["offsets"], places, side="right") - 1
    whole = Dataset.construct(known)
    ready = model.data_preparator.transform_dataset_u2i(whole, asked)
    loader = model.data_preparator.get_dataloader_recommend(ready, 256)
    users, items = model.lightning_model._get_user_item_embeddings(loader, "cpu")
    names = model.data_preparator.get_known_item_ids().astype(np.int64)
    given = (users @ items[-len(names) :].T).numpy().astype(np.float32)
    found = np.full((len(asked), int(actions["items"])), given.min() - 1, np.float32)
    rows = np.searchsorted(asked, ready.user_id_map.external_ids.astype(np.int64))
    found[np.ix_(rows, names)] = given
    return found


if __name__ == "__main__":
    main()
