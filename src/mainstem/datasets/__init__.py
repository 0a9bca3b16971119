"""Public data sets as entities and events: where a person gets each, its licence, what fits it.

A set is looked for in MAINSTEM_DATA/NAME, in the cache folder, then in an installed package; `download`
fetches those that have a public address. None is part of Mainstem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import islice

from mainstem.datasets.amazon_beauty import AMAZON_BEAUTY
from mainstem.datasets.completejourney import COMPLETEJOURNEY
from mainstem.datasets.dataset import Counts, Dataset, Download, Records, cache_folder
from mainstem.datasets.movielens import ML_1M, ML_100K, ML_LATEST_SMALL
from mainstem.datasets.movietweetings import MOVIETWEETINGS
from mainstem.datasets.transfer import Progress, download
from mainstem.schema.errors import DatasetError
from mainstem.schema.records import Event, LogRecord

__all__ = [
    "Counts",
    "Dataset",
    "Download",
    "Progress",
    "Records",
    "cache_folder",
    "download",
    "get",
    "ingest",
    "names",
    "split",
]

_ALL = {
    dataset.name: dataset
    for dataset in (COMPLETEJOURNEY, ML_LATEST_SMALL, ML_100K, ML_1M, MOVIETWEETINGS, AMAZON_BEAUTY)
}


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return tuple(_ALL)


def get(name: str) -> Dataset:
    """The data set of this name. Raises DatasetError naming those there are."""
    if name not in _ALL:
        near = get_close_matches(name, _ALL, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        raise DatasetError(f"no data set {name!r};{hint} there are: {', '.join(_ALL)}")
    return _ALL[name]


def ingest(
    dataset: Dataset,
    append: Callable[[Sequence[LogRecord]], object],
    progress: Progress | None = None,
    *,
    batch: int = 10_000,
) -> int:
    """Hand all its records to `append`, entities first, `batch` at a time; how many they were.

    Ids are deterministic, so a log that knows them takes none twice. `progress` counts records.
    """
    records, done = iter(dataset.load()), 0
    expected = dataset.counts.events + dataset.counts.entities
    while chunk := list(islice(records, batch)):
        append(chunk)
        done += len(chunk)
        if progress:
            progress(done, max(done, expected))
    return done


def split(events: Iterable[Event], cut_ms: int) -> tuple[list[Event], list[Event]]:
    """Events before `cut_ms` (ms since 1970), and those at it or after; each in the order given."""
    before: list[Event] = []
    after: list[Event] = []
    for event in events:
        (before if event.time < cut_ms else after).append(event)
    return before, after
