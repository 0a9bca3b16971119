"""Q5: do collisionless tables pay? The same towers with a row for every key, and with keys that share rows.

Arms, all with the same networks, positives, order, negatives and seeds, and with ids alone (no attributes):

    collisionless        a row for every user and every item
    as in the paper      hashed so that 7.73 % of the users and 2.86 % of the items find their row taken: our
                         reading of the shares that Liu et al. 2022, "Monolith", give for their hashed ids
    half, tenth          hashed into half and a tenth as many rows as there are ids
    equal bytes          hashed into as many rows as fit into the bytes of the collisionless table
    admitted, half       collisionless, after admission and expiry, in the bytes of `half`
    admitted, tenth      the same in the bytes of `tenth`

Equal bytes are counted against us: a hashed table is charged for values and optimizer state alone, the collisionless
one also for keys, times, slots and the counters of admission (docs/tables.md). Rows are then bought by one threshold
for all kinds of keys: a key earns its row at its n-th sight, the least n that fits (found by a dry run over the order
of training that trains nothing); the counters get a quarter of the bytes at most. Keys without a row read zeros. Bytes
are those at the end of training: rows that expired on the way took theirs until then.

Where events have true times, training is one pass in order of time, batches as they come, sweeping out what
expired; the last days are the test. ml-1m has an order within each user and no times: every rating is a session of its
own, training passes several times in random order over all but each user's last ratings, which are the test, and
nothing expires. Every test positive is ranked among all entities with a training positive (others no arm can know;
they are left out of all alike). What the user had is left out where the data set's home canvas shows new things only.
Entities that share a row tie exactly: a tie counts as the mean over its orders.

The canary: towers that do not beat popularity (all of training, or its last days) have learned nothing that
collisions could spoil. Goals: the paired mean over seeds is no more than one standard error below a hashed arm, and
above at a tenth; with equal bytes alike. Data sets that a run does not name keep their part of the last result.

    python benchmarks/q5_collisions.py [--dataset completejourney ml-1m] [--seeds 3] [--users 0.2]
"""

from __future__ import annotations

import argparse
import bisect
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from _prequential import Stage
from bench import RESULTS, Bench, say
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix
from mainstem.schema.time import DAY
from mainstem.train import new_towers
from mainstem.train.interactions import Positives
from mainstem.train.networks import families_of
from mainstem.train.population import Population
from mainstem.train.retrieval import RetrievalLearner
from mainstem.train.threads import torch_threads
from mainstem.train.towers import Towers
from mainstem.weights import SlabTable
from mainstem.weights.slabs import predicted_bytes

PAPER = (0.0773, 0.0286)
OWN = "collisionless"
# What each arm is compared with, and whether it must be beaten or only not be better by more than a standard error.
PAIRS = (
    (OWN, "as in the paper", False),
    (OWN, "half", False),
    (OWN, "tenth", True),
    (OWN, "equal bytes", False),
    ("admitted, half", "half", False),
    ("admitted, tenth", "tenth", True),
)
EXPIRE = "180d"  # of the admitted arms, where times are true
LAST = 5  # ratings a user that are the test, where they are not
TEST_POSITIVES = 6_000
NDCG_AT, RECALL_AT = 10, 100
SWEEP = 4_096  # rows looked at after each batch

Rows = NDArray[np.int64]


def rows_for(taken: float, ids: int) -> int:
    """Rows in which so large a share of `ids` keys finds its row taken: with x ids a row, 1 - (1 - exp(-x)) / x."""
    low, high = 1e-6, 100.0
    for _ in range(60):
        x = (low + high) / 2
        low, high = (x, high) if 1 + np.expm1(-x) / x < taken else (low, x)
    return max(round(ids / low), 1)


@compiled
def _shared(keys: Keys, rows: np.uint64, salt: np.uint64, first: np.uint64) -> Keys:
    out = np.empty_like(keys)
    for i in range(len(keys)):
        out[i] = mix(keys[i] ^ salt) % rows + first
    return out


class Hashed:
    """A table whose users share `sizes[0]` rows and whose items share `sizes[1]`; users and items never meet.

    Keys are mapped before the table sees them, so training and scoring read the same rows; key 0 stays without one.
    """

    def __init__(self, table: SlabTable, users: Keys, sizes: tuple[int, int], seed: int) -> None:
        self.table, self.users, self.sizes = table, users, sizes
        self.dim = table.dim
        self._salt = np.uint64(mix(np.uint64(seed + 1)))

    def meet(self, keys: Keys) -> Keys:
        """The key of the row that each key shares."""
        place = np.minimum(np.searchsorted(self.users, keys), len(self.users) - 1)
        is_user = self.users[place] == keys
        users, items = (np.uint64(size) for size in self.sizes)
        out = _shared(keys, items, self._salt, np.uint64(1 << 40))
        out[is_user] = _shared(keys[is_user], users, self._salt, np.uint64(1))
        out[keys == 0] = 0
        return out

    def find(self, keys: Keys) -> Rows:
        return self.table.find(self.meet(keys))

    def find_or_create(self, keys: Keys, family: int = 0, time: int = 0, sights: Any = None) -> Rows:
        return self.table.find_or_create(self.meet(keys), family, time, sights)

    def gather(self, rows: Rows, out: Any = None) -> Any:
        return self.table.gather(rows, out)

    def read(self, keys: Keys, out: Any = None) -> Any:
        return self.table.read(self.meet(keys), out)

    def update(self, rows: Rows, gradients: Any, learning_rate: float) -> None:
        self.table.update(rows, gradients, learning_rate)


@dataclass(slots=True)
class Task:
    """Positives of a data set's users, which of them are learned, and which are asked; the same for all arms."""

    config: Config
    catalog: Any
    positives: Positives
    train: Rows
    test: Rows
    timed: bool
    new_only: bool
    epochs: int
    cut: int

    @classmethod
    def of(cls, stage: Stage, users: float, days: float, epochs: int) -> Task:
        source, timed = stage.source, stage.name != "ml-1m"
        events = source.events
        kept = np.unique(events.user)
        kept = kept[np.random.default_rng(99).random(len(kept)) < users]
        events = events.take(np.isin(events.user, kept))
        starts = source.session_starts if timed else lambda events, order: np.ones(len(order), np.bool_)
        positives = Positives.of(events, stage.config.interest(), starts)
        cut, _ = stage.cut(days)
        end = np.append(np.flatnonzero(np.diff(positives.user)) + 1, len(positives))
        to_go = np.repeat(end, np.diff(end, prepend=0)) - np.arange(len(positives))
        learned = positives.time < cut if timed else to_go > LAST
        train = np.flatnonzero(learned)
        known = np.isin(positives.entity, np.unique(positives.entity[train]))
        test = np.random.default_rng(1).permutation(np.flatnonzero(~learned & known))[:TEST_POSITIVES]
        say(f"{stage.name}: {len(kept):,} users, {len(train):,} positives learned, {len(test):,} asked; "
            f"{np.mean(known[~learned]):.1%} of those after are of known entities")  # fmt: skip
        canvas = next(iter(stage.config.canvases.values()))
        return cls(stage.config, source.catalog, positives, train, np.sort(test), timed,
                   canvas.repeat == "new_only", 1 if timed else epochs, cut)  # fmt: skip

    @property
    def ids(self) -> tuple[Keys, Keys]:
        """Users and entities with a positive that is learned."""
        return np.unique(self.positives.user[self.train]), np.unique(self.positives.entity[self.train])

    def batches(self, seed: int) -> Iterator[Rows]:
        """Places of the positives of each step."""
        rng, size = np.random.default_rng(seed), self.config.train.retrieval_batch
        in_time = self.train[np.argsort(self.positives.time[self.train], kind="stable")]
        for _ in range(self.epochs):
            order = in_time if self.timed else rng.permutation(self.train)
            yield from (order[start : start + size] for start in range(0, len(order) - 1, size))


def new_table(task: Task, seed: int, dim: int, admit: int = 1, cells: int = 2) -> SlabTable:
    families = {
        name: family.model_copy(update={"admit_after": admit, "expire": EXPIRE if admit > 1 and task.timed else None})
        for name, family in task.config.model.families.items()
    }
    model = task.config.model.model_copy(update={"families": families})
    return SlabTable(dim, families_of(model), seed=seed, sight_cells=cells)


def admitted(task: Task, seed: int, budget: int) -> SlabTable:
    """An empty table whose admission makes it fit `budget` bytes when training is over."""
    dim, cells = task.config.model.dim, 2
    while 2 * cells * 4 <= budget / 4:
        cells *= 2

    def fits(admit: int) -> bool:
        table = new_table(task, seed, 4, admit, cells)
        for rows in task.batches(seed):
            now = int(task.positives.time[rows].max())
            for family, keys in enumerate((task.positives.user[rows], task.positives.entity[rows])):
                unique, sights = np.unique(keys, return_counts=True)
                table.find_or_create(unique, family, now, sights)
            table.sweep(now, SWEEP)
        return predicted_bytes(len(table), dim, 1, cells) <= budget

    admit = bisect.bisect_left(range(2, 256), True, key=fits) + 2
    if admit > 255:
        raise SystemExit("no admission threshold fits the bytes")
    say(f"a key earns its row at sight {admit}; {cells:,} counters a line")
    return new_table(task, seed, dim, admit, cells)


def table_of(task: Task, seed: int, arm: str) -> tuple[Any, int]:
    """The arm's empty table, and its counters a line."""
    users, items = (len(keys) for keys in task.ids)
    dim = task.config.model.dim
    row, ids = 4 * (dim + 1), users + items
    own = new_table(task, seed, dim)
    if own.width != 1:
        raise SystemExit("bytes are counted for row-wise Adagrad")
    if arm == OWN:
        return own, 0
    if arm.startswith("admitted"):
        budget = row * ids // (2 if arm.endswith("half") else 10)
        table = admitted(task, seed, budget)
        return table, table._sight_cells
    if arm == "as in the paper":
        sizes = rows_for(PAPER[0], users), rows_for(PAPER[1], items)
    else:
        ratio = {"half": 0.5, "tenth": 0.1, "equal bytes": predicted_bytes(ids, dim, 1) / (row * ids)}[arm]
        sizes = max(round(users * ratio), 1), max(round(items * ratio), 1)
    return Hashed(own, np.unique(task.positives.user), sizes, seed), 0


def one(task: Task, seed: int, arm: str) -> dict[str, float]:
    """Train and score one arm."""
    train = task.config.train.model_copy(update={"seed": seed})
    torch.manual_seed(seed)
    plain = new_towers(task.config, task.catalog)
    table, cells = table_of(task, seed, arm)
    towers = Towers(plain.module, table, task.catalog, (), plain.canvases, plain.words, plain.texts, user_rows=True)
    learner, population, rng = (
        RetrievalLearner(towers, task.config.model, train),
        Population(),
        np.random.default_rng(seed),
    )
    if not task.timed:
        population.add(task.positives.entity[task.train])
    for rows in task.batches(seed):
        batch = task.positives.batch(rows)
        if task.timed:
            population.add(batch.entity)
        learner.step(batch, population, rng)
        if isinstance(table, SlabTable):
            table.sweep(int(batch.time.max()), SWEEP)
    users, items = task.ids
    held = table.table if isinstance(table, Hashed) else table
    width = held.width
    found = ranked(task, items, by_towers(task, towers, items))
    for name, keys in (("users", users), ("items", items)):
        places = table.find(keys)
        found[f"{name} without a row"] = float(np.mean(places < 0))
        found[f"{name} in a taken row"] = 1 - len(np.unique(places[places >= 0])) / max(int((places >= 0).sum()), 1)
    hashed = sum(table.sizes) * 4 * (table.dim + width) if isinstance(table, Hashed) else 0
    return found | {"bytes": float(hashed or predicted_bytes(len(held), held.dim, width, cells))}


Scorer = Callable[[Rows], tuple[NDArray[np.float32], Rows]]


def by_towers(task: Task, towers: Towers, items: Keys) -> Scorer:
    """Scores of positives' users for groups of items that share a row [b, groups], and each item's group [n]."""
    towers.module.eval()
    _, first, group = np.unique(towers.table.find(items), return_index=True, return_inverse=True)
    vectors = towers.entity_vectors(items[first]).T.copy()

    def scores(rows: Rows) -> tuple[NDArray[np.float32], Rows]:
        return towers.vectors_before(task.positives.batch(rows)) @ vectors, group

    return scores


def by_counts(task: Task, items: Keys, since: int) -> Scorer:
    """How often each item was taken in training since then, whoever asks."""
    taken = task.train[task.positives.time[task.train] >= since]
    counts = np.bincount(np.searchsorted(items, task.positives.entity[taken]), minlength=len(items))
    return lambda rows: (np.broadcast_to(counts.astype(np.float32), (len(rows), len(items))), np.arange(len(items)))


def ranked(task: Task, items: Keys, scores: Scorer) -> dict[str, float]:
    """NDCG and recall of the test positives, each ranked among all items [n]; a tie is the mean of its orders."""
    ranks = np.arange(1, len(items) + 1)
    gains = np.append(0, np.cumsum(np.where(ranks <= NDCG_AT, 1 / np.log2(ranks + 1), 0)))
    entity, place = task.positives.entity, np.searchsorted(items, task.positives.entity)
    place[items[np.minimum(place, len(items) - 1)] != entity] = -1
    ndcg = recall = 0.0
    for rows in np.array_split(task.test, max(len(task.test) // 256, 1)):
        by_group, group = scores(rows)
        if not np.isfinite(by_group).all():
            raise SystemExit("scores are not finite")
        every = by_group[:, group]
        target = every[np.arange(len(rows)), place[rows]]
        if task.new_only:
            for line, row in enumerate(rows):
                had = place[task.positives.begin[row] : task.positives.session[row]]
                every[line, had[(had >= 0) & (had != place[row])]] = -np.inf
        above = (every > target[:, None]).sum(axis=1)
        tied = (every == target[:, None]).sum(axis=1)
        ndcg += float(((gains[above + tied] - gains[above]) / tied).sum())
        recall += float((np.clip(RECALL_AT - above, 0, tied) / tied).sum())
    return {"ndcg@10": ndcg / len(task.test), "recall@100": recall / len(task.test)}


def compared(rows: dict[str, list[dict[str, float]]], ours: str, theirs: str, beaten: bool) -> dict[str, Any]:
    """The paired difference of NDCG@10 over seeds, in our favour, with its standard error, and whether it will do."""
    pairs = np.array([a["ndcg@10"] - b["ndcg@10"] for a, b in zip(rows[ours], rows[theirs], strict=True)])
    error = float(pairs.std(ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else float("nan")
    gain = float(pairs.mean())
    return {
        "metric": f"NDCG@10 gained by {ours!r} over {theirs!r}", "ours": round(gain, 5),
        "goal": 0.0 if beaten or np.isnan(error) else -round(error, 5),
        "met": gain > 0 if beaten else gain >= -error, "standard_error": round(error, 5),
        "runs": [round(float(pair), 5) for pair in pairs],
    }  # fmt: skip


def data_set(bench: Bench, name: str, arguments: argparse.Namespace) -> None:
    """All arms and seeds of one data set, into the benchmark's parts."""
    stage = Stage(name)
    task = Task.of(stage, arguments.users, arguments.days, arguments.epochs)
    arms = list(dict.fromkeys(arm for pair in PAIRS for arm in reversed(pair[:2])))
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for seed in range(arguments.seeds):
        for arm in arms:
            began = time.monotonic()
            rows[arm].append(one(task, seed, arm))
            told = ", ".join(f"{key} {value:.5g}" for key, value in rows[arm][-1].items())
            say(f"{name} seed {seed} {arm}: {told}; {time.monotonic() - began:.0f} s")
    items = task.ids[1]
    popular = [
        ranked(task, items, by_counts(task, items, since)) for since in {0, task.cut - 28 * DAY if task.timed else 0}
    ]
    best = {metric: round(max(found[metric] for found in popular), 5) for metric in popular[0]}
    learned = all(found["recall@100"] > best["recall@100"] for found in rows[OWN])
    bench.parts[name] = {
        "metric": "NDCG@10, by arm", "ours": round(float(np.mean([f["ndcg@10"] for f in rows[OWN]])), 5),
        "goal": None, "met": None, "popular": best, "learned": learned,
        "arms": {
            arm: {key: round(float(np.mean([f[key] for f in found])), 5) for key in found[0]}
            | {"spread": round(float(np.std([f["ndcg@10"] for f in found])), 5)}
            for arm, found in rows.items()
        },
        "seeds": arguments.seeds, "users": len(task.ids[0]), "items": len(items), "learned_positives": len(task.train),
        "asked": len(task.test), "epochs": task.epochs,
    }  # fmt: skip
    for ours, theirs, beaten in PAIRS:
        found = compared(rows, ours, theirs, beaten)
        if not learned:
            found["met"] = False
        bench.parts[f"{name}: {ours} / {theirs}"] = found
        say(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="*", default=["completejourney", "ml-1m"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--users", type=float, default=0.2, help="share of the users")
    parser.add_argument("--epochs", type=int, default=2, help="passes where there are no times")
    parser.add_argument(
        "--days", type=float, default=28, help="at the end, asked and not learned, where there are times"
    )
    arguments = parser.parse_args()
    with (
        Bench("q5_collisions", metric="NDCG@10 of the towers", goal=1.0, goal_is_ratio=True) as bench,
        torch_threads(1),
    ):
        kept = RESULTS / "q5_collisions.json"
        before = json.loads(kept.read_text())["parts"] if kept.exists() else {}
        bench.parts |= {name: part for name, part in before.items() if name.partition(":")[0] not in arguments.dataset}
        for name in arguments.dataset:
            data_set(bench, name, arguments)
        first = next(part for name, part in sorted(bench.parts.items()) if "arms" in part)["arms"]
        bench.report(
            ours=first[OWN]["ndcg@10"], peer=first["tenth"]["ndcg@10"],
            peer_name="the same towers hashed into a tenth of the rows", keep=arguments.seeds >= 3,
        )  # fmt: skip


if __name__ == "__main__":
    main()
