"""Sources of candidates: recall@100 of each alone, weights between items among them, on a year of real purchases.

The Complete Journey without its last 28 days, which nothing is chosen on; of the rest the last 28 days are validation.
A model with its weights between items is trained on what lies before, and visits of the validation are asked, features
live. Each source gives its first 100 for what the household takes, and once more, of what the household never had, for
what is new to it. Recall is the part of a visit's products that is among them, the mean over visits; `only it` the part
that no other source of the list brings.

`together` holds what the sources of today bring in their first 100 each, and with the new ones added; `deeper` the same
number of candidates from today's sources alone.

`--quick` takes a tenth of the households, as the demo does. `--tune` asks with other settings of the weights too.

    python benchmarks/neighbourhood_sources.py [--quick] [--visits 1000] [--tune]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench import Bench, say
from mainstem import datasets, eventlog, features, weights
from mainstem.assemble import sources_of
from mainstem.curriculum import Curriculum
from mainstem.demo.baskets import LIVE, Baskets
from mainstem.index import Neighbourhood
from mainstem.join import Visit, visits
from mainstem.live import model_of
from mainstem.rank import ModelVersion
from mainstem.rank.question import Question, resolve
from mainstem.rank.sources import Source
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, FeatureStore, FeatureView, Log
from mainstem.schema.records import Context, Show, SlateRequest
from mainstem.train import Trainer, neighbourhoods, restore

AT = 100
TODAY = ("two_tower", "cooccurrence", "popular", "owned")
NEW = ("item_knn", "ease")
LOADED = 20_000
# Tried by --tune, one after the other: settings of `train.neighbourhoods`, by source.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "item_knn": [{"shrink": shrink, "neighbours": n} for shrink, n in itertools.product((0, 20, 100), (100, 300))],
    "ease": [{"l2": l2, "neighbours": n} for l2, n in itertools.product((100, 300, 1000), (100, 300))],
}
Brought = dict[str, Keys]


def configure() -> Config:
    config = Config.model_validate(dict(datasets.get("completejourney").config))
    sources = {name: {"limit": AT} for name in (*TODAY, *NEW)}
    home = config.canvases["home"].model_validate({"sources": sources})
    # the ranking network is not looked at
    train = config.train.model_copy(update={"ranking_slates": 100, "ranking_epochs": 1})
    return config.model_copy(update={"train": train, "canvases": {**config.canvases, "home": home}})


def log_of(config: Config, quick: bool) -> Log:
    """The data set without its last 28 days."""
    baskets = Baskets(datasets.get("completejourney"), quick)
    log = eventlog.open("memory://", history="file:///nowhere", config=config.log)
    log.append(list(baskets.entities()))
    events = list(baskets.events())  # in time order
    past = [event for event in events if event.time < events[-1].time - LIVE]
    for start in range(0, len(past), LOADED):
        log.append(past[start : start + LOADED])
    return log


class Asking:
    """The visits of the validation, each asked of every source with the state as of then."""

    def __init__(self, source: Curriculum, store: FeatureStore, model: ModelVersion, most: int, cut: int) -> None:
        self.source, self.store, self.model = source, store, model
        self.sources = sources_of(source.config, lambda: model, None, None)
        events = source.events
        self.fold = source.replay(store, model).fold_until
        self.taken = events.take((events.time >= cut) & events.where(["purchase"]))
        found = visits(self.taken)
        self.visits = [found[i] for i in np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)]

    def run(self, ask: Callable[[Question, FeatureView, Keys, bool], None]) -> None:
        """ask(question, view, wanted, new) for each visit, in order of time; twice where something new is wanted."""
        for number, visit in enumerate(self.visits):
            self.fold(visit.time)
            wanted = self._known(visit)
            for new in (False, True):
                question = self._question(visit, new)
                with self.store.view(question.context) as view:
                    some = np.setdiff1d(wanted, view.counts().keys) if new else wanted
                    if len(some):
                        ask(question, view, some, new)
            if number % 100 == 99:
                say(f"  {number + 1} of {len(self.visits)} visits")

    def _known(self, visit: Visit) -> Keys:
        keys = np.unique(self.taken.entity[visit.rows])
        return keys[self.source.catalog.rows(keys) >= 0]

    def _question(self, visit: Visit, new: bool) -> Question:
        context = Context(canvas="home", user=self.source.users[visit.user], time=visit.time)
        request = SlateRequest(context=context, show=Show(new_only=new), deadline_ms=60_000)
        return resolve(request, self.source.config, self.model, replay=True)


def first(source: Source, question: Question, view: FeatureView, limit: int, catalog: Catalog) -> Keys:
    """What a source brings first, of what may be shown."""
    forbidden = question.forbidden(view)
    return source.prepare(question, view, limit, lambda keys: question.allowed(catalog, forbidden, keys))().keys


def each(asking: Asking) -> dict[str, dict[str, float]]:
    """Recalls by name, of all and of new."""
    hits: dict[str, dict[bool, list[float]]] = {}

    def note(name: str, new: bool, wanted: Keys, brought: Keys) -> None:
        hits.setdefault(name, {False: [], True: []})[new].append(float(np.isin(wanted, brought).mean()))

    def ask(question: Question, view: FeatureView, wanted: Keys, new: bool) -> None:
        deep = {
            source.name: first(source, question, view, 2 * AT, asking.source.catalog)
            for source in asking.sources
            if source.name in (*TODAY, *NEW)
        }
        brought = {name: keys[:AT] for name, keys in deep.items()}
        for name, keys in brought.items():
            others = np.concatenate([other for another, other in brought.items() if another != name])
            note(name, new, wanted, keys)
            note(f"{name}, only it", new, wanted, np.setdiff1d(keys, others))
        today = np.concatenate([brought[name] for name in TODAY])
        note("together", new, wanted, today)
        for name in NEW:
            more = np.concatenate([today, brought[name]])
            note(f"together and {name}", new, wanted, more)
            note(f"together, deeper than with {name}", new, wanted, deeper(deep, len(np.unique(more))))
        more = np.concatenate([today, *(brought[name] for name in NEW)])
        note("together and both", new, wanted, more)
        note("together, deeper than with both", new, wanted, deeper(deep, len(np.unique(more))))

    asking.run(ask)
    return {
        name: {"all": float(np.mean(by[False])), "new": float(np.mean(by[True]))} for name, by in sorted(hits.items())
    }


def deeper(deep: Brought, most: int) -> Keys:
    """The first `most` different ones of today's sources, taken in turn."""
    longest = max(len(deep[name]) for name in TODAY)
    turns = [int(deep[name][at]) for at in range(longest) for name in TODAY if at < len(deep[name])]
    return np.array(list(dict.fromkeys(turns))[:most], np.uint64)


def settings_of(config: Config, source: str, settings: dict[str, float]) -> Config:
    between = config.train.neighbourhoods
    changed = getattr(between, source).model_copy(update=settings)
    train = config.train.model_copy(update={"neighbourhoods": between.model_copy(update={source: changed})})
    return config.model_copy(update={"train": train})


def tried(source: Curriculum, past: Curriculum, model: ModelVersion, most: int, cut: int) -> Iterator[tuple[str, Any]]:
    """The recalls of the two sources with other settings of their weights, each on a state of its own."""
    config = source.config
    for name, choices in SETTINGS.items():
        for settings in choices:
            began = time.monotonic()
            changed = settings_of(config, name, settings)
            found: dict[str, Neighbourhood] = neighbourhoods.neighbourhoods(changed, past.events, source.catalog)
            took = time.monotonic() - began
            with closing(features.open("memory://", config, source.catalog)) as store:
                asking = Asking(source, store, replace(model, neighbourhoods=found), most, cut)
                recalls = each(asking)[name]
            say(f"  {name} {settings}: {recalls} ({took:.1f} s)")
            yield f"{name} {settings}", recalls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--visits", type=int, default=1_000)
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    config = configure()
    log = log_of(config, given.quick)
    with (
        Bench("neighbourhood_sources", metric="recall@100 of the next visit's products, EASE", goal=None) as bench,
        closing(Curriculum(config, log, lambda stage, done, total: None)) as source,
        TemporaryDirectory() as folder,
    ):
        cut = int(source.events.time[-1]) + 1 - LIVE
        past = source.before(cut)
        say(f"{len(past.events):,} events before the validation, {len(source.events) - len(past.events):,} in it")
        kept = weights.open(f"file://{folder}")
        trained = Trainer(config, source.catalog, kept).run(past)
        say(f"trained: {trained.seconds}")
        snapshot = kept.load("main", trained.version)
        towers, _, _ = restore(snapshot, config, source.catalog)
        model = model_of(towers, config, source.kinds, source.inputs, trained.version, source.catalog)
        model = replace(model, neighbourhoods=neighbourhoods.load(kept.neighbours, snapshot.manifest, config))
        with closing(features.open("memory://", config, source.catalog)) as store:
            asking = Asking(source, store, model, given.visits, cut)
            found = each(asking)
        settings = dict(tried(source, past, model, given.visits, cut)) if given.tune else {}
        for name, recalls in found.items():
            for which, recall in recalls.items():
                bench.part(f"{name}, {which}", metric="recall@100", ours=recall)
        peer = max(("two_tower", "cooccurrence", "popular"), key=lambda name: found[name]["all"])
        bench.report(
            ours=found["ease"]["all"],
            peer=found[peer]["all"],
            peer_name=peer,
            keep=not given.quick,
            visits=len(asking.visits),
            recalls={name: {which: round(value, 4) for which, value in by.items()} for name, by in found.items()},
            settings=settings,
            training_seconds=trained.seconds,
            bytes={
                name: sum(array.nbytes for array in one.arrays().values())
                for name, one in model.neighbourhoods.items()
                if isinstance(one, Neighbourhood)
            },
        )


if __name__ == "__main__":
    main()
