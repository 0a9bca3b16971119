"""MovieTweetings: ratings posted to Twitter from IMDb apps, freely licensed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mainstem.datasets.dataset import Counts, Dataset, Download, Records
from mainstem.datasets.ratings import config, lines, records, table, timed

__all__ = ["MOVIETWEETINGS"]

_COLUMNS = ["user_id", "movie_id", "rating", "timestamp"]


def _films(columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, title, genres in zip(*(column.to_pylist() for column in columns.values()), strict=True):
        yield {"id": name, "title": title, "genres": genres}


def _parquet(folder: Path) -> Records:
    return records(
        "movietweetings",
        lambda: timed(table(folder / "ratings.parquet", _COLUMNS)),
        lambda: _films(table(folder / "movies.parquet", ["movie_id", "title", "genres"])),
    )


def _raw(folder: Path) -> Records:
    return records(
        "movietweetings",
        lambda: timed(lines(folder / "ratings.dat", _COLUMNS, "::", "utf-8")),
        lambda: _films(lines(folder / "movies.dat", ["id", "title", "genres"], "::", "utf-8")),
    )


_LATEST = "https://raw.githubusercontent.com/sidooms/MovieTweetings/master/latest"

MOVIETWEETINGS = Dataset(
    name="movietweetings",
    title="MovieTweetings: ratings 0-10 from Twitter, state of 2013-11-06 (the download: the newest state)",
    home="https://github.com/sidooms/MovieTweetings",
    licence=(
        "MIT. Please cite Simon Dooms, Toon De Pessemier and Luc Martens (2013), MovieTweetings: a movie rating "
        "dataset collected from Twitter, CrowdRec at RecSys 2013. The download is the newest state, which is larger."
    ),
    counts=Counts(events=141_695, users=21_081, entities=12_611),
    forms=(
        {
            "movies.parquet": "57218f4702c65179fd1f94fe95d67d0cd214310aee04bda8bb36710615fbb272",
            "ratings.parquet": "df3fa1f5520df95a6bdf747a13f6e0d636293ece897a5d1b86d2183c4671fc9f",
        },
        {"movies.dat": "", "ratings.dat": ""},
    ),
    readers=(_parquet, _raw),
    config=config("movietweetings"),
    folder="movietweetings-142k",
    downloads=(Download(f"{_LATEST}/ratings.dat"), Download(f"{_LATEST}/movies.dat")),
)
