"""The whole evaluation: the one model and its peers on the same data, by the same protocol, seed by seed."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mainstem
from mainstem import __version__
from mainstem.evaluate.comparison import SHOWN, Comparison
from mainstem.evaluate.next_item import LEAST, NextItem, Outcome, Seen, Split, run, segments
from mainstem.evaluate.peers import PEERS
from mainstem.next_item.actions import Actions
from mainstem.next_item.checkpoints import Checkpoints
from mainstem.next_item.display import TrainingDisplay
from mainstem.next_item.model import SequenceModel
from mainstem.next_item.outcomes import Outcomes
from mainstem.next_item.preset import AVERAGE, configured
from mainstem.progress import Show
from mainstem.schema.config import Config
from mainstem.schema.errors import MainstemError, MissingExtra, NotReady

__all__ = ["RULES", "SYSTEMS", "Asked", "Rules", "compare"]

Say = Callable[[str], None]
OURS = SequenceModel.name
SYSTEMS = (OURS, *PEERS)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the protocol of a public set says beyond leave one out. min_count: items with fewer actions are left out;
    seen: whether items that the user had are ranked too."""

    min_count: int = 1
    seen: Seen = "filter"


RULES: dict[str, Rules] = {
    # films with fewer than 5 ratings are out of the published runs
    "ml-1m": Rules(min_count=5),
    # a household buys again what it bought
    "completejourney": Rules(seen="keep"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted. changes: a configuration whose `features`, `model` and `train` lie over the preset; resume: a
    folder for checkpoints; minutes of training at most; large: the larger setting; first: the seed to begin with."""

    split: Split = "test"
    ks: tuple[int, ...] = (10, 5)
    seeds: int = 1
    systems: Sequence[str] = SYSTEMS
    rules: Rules = Rules()
    refit: bool = False
    changes: Config | None = None
    resume: Path | None = None
    minutes: float = math.inf
    large: bool = False
    first: int = 0

    def protocol(self) -> str:
        """In words."""
        what = "last action" if self.split == "test" else "last but one action"
        seen = "what the user had before is left out, but never the target" if self.rules.seen == "filter" else (
            "what the user had before is ranked too"
        )  # fmt: skip
        learned = "Learned from: all before validation (each user's last but one action)" + (
            ", and for the final fit validation too" if self.refit else ""
        )
        least = f"; items with under {self.rules.min_count} actions left out" if self.rules.min_count > 1 else ""
        size = "The large setting. " if self.large else ""
        within = f", within {self.minutes:g} minutes of training" if self.minutes < math.inf else ""
        return (
            f"Next item, leave one out: each user's {what}, of users with {LEAST} actions or more, among all items "
            f"that occur{least}; {seen}; ties by place in the catalogue. {learned}. Settings and epochs by NDCG@10 on "
            f"validation{within}. {size}{self.seeds} seed{'s' if self.seeds > 1 else ''}: mean ± standard deviation."
        )


def compare(actions: Actions, asked: Asked, show: Show, say: Say) -> Comparison:
    """Train and ask each system that is wanted, `asked.seeds` times where it draws at all. show: bars; say: lines.

    Raises NotReady where no user has enough actions.
    """
    data = actions.data
    if not len(data.held("test")):
        raise NotReady(f"{actions.name}: no user has {LEAST} actions, so there is nobody to ask")
    outcomes: dict[str, list[Outcome]] = {}
    left_out: dict[str, str] = {}
    kept, most = Outcomes(asked.resume), max(SHOWN, *asked.ks)
    for name in asked.systems:
        for seed in range(asked.first, asked.first + asked.seeds):
            if seed > asked.first and name in PEERS and not PEERS[name].drawn:
                break  # it would say the same again
            config = configured(actions.config, asked.changes, seed, large=asked.large)
            what = ""
            if asked.resume is not None:
                own = f"{asked.minutes}" if name == OURS else repr(PEERS[name].grid)
                what = identity(actions, config if name == OURS else None, asked)
                what += f" {asked.split} {most} {asked.refit} {own} {_code()}"
            found = kept.take(name, seed, what)
            if found is None:
                system = _system(name, actions, asked, config, seed, show, say)
                try:
                    found = run(system, data, asked.split, most=most, seen=asked.rules.seen, refit=asked.refit)
                except (MissingExtra, NotReady) as error:
                    left_out[name] = str(error)
                    break
                kept.keep(name, seed, what, found)
            else:
                say(f"{name}, seed {seed}: answered before, see {asked.resume}")
            outcomes.setdefault(name, []).append(found)
            if name != OURS:
                show(f"{name}, seed {seed}" if seed else name, 1, 1)
    if not outcomes:
        raise MainstemError("; ".join(left_out.values()))
    learned = data.learned(asked.refit)
    return Comparison(
        asked.protocol(), outcomes, segments(data, data.held(asked.split), learned),
        np.bincount(data.item[learned], minlength=data.items), asked.ks,
        {"data": actions.name, **data.facts(), "split": asked.split, "refit": asked.refit, "seeds": asked.seeds,
         "mainstem": __version__}, left_out,
    )  # fmt: skip


def _system(name: str, actions: Actions, asked: Asked, config: Config, seed: int, show: Show, say: Say) -> NextItem:
    if name != OURS:
        show(f"{name}, seed {seed}" if seed else name, 0, 1)
        return PEERS[name].new(name, seed)
    checkpoints = None
    if asked.resume is not None:
        checkpoints = Checkpoints(asked.resume, seed, identity(actions, config, asked))
    display = TrainingDisplay(show, say, f"{OURS}, seed {seed}", asked.minutes)
    return SequenceModel(actions, config, checkpoints, display, asked.minutes)


def identity(actions: Actions, config: Config | None, asked: Asked) -> str:
    """All that a training depends on; without `config`, of a peer. The split is not among it: validation ends the
    training either way."""
    data, catalog, entities = actions.data, actions.catalog, actions.entities
    attributes = [name for kind in (config or actions.config).entities.values() for name in kind.attributes]
    codes = [catalog.codes(name, catalog.rows(entities)) for name in attributes]
    digest = hashlib.sha256()
    arrays: list[NDArray[Any]] = [
        data.item, data.offsets, entities, actions.positives.user, actions.positives.interest,
        actions.positives.time, actions.positives.note, *codes,
    ]  # fmt: skip
    for array in arrays:
        digest.update(array.tobytes())
    for key in entities.tolist():
        digest.update(catalog.text(key).encode())
    learned = "a peer"
    if config is not None:
        learned = f"{config.model!r} {config.train!r} {config.history_length()} {AVERAGE} {attributes}"
    return f"{__version__} {digest.hexdigest()} {learned} {asked.rules!r}"


@functools.cache
def _code() -> str:
    """Digest of the code that makes an answer: one that is kept is of the code that gave it."""
    root, digest = Path(mainstem.__file__).parent, hashlib.sha256()
    for folder in ("evaluate", "models", "next_item", "train", "weights"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
