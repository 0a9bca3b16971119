"""MovieLens: 100K and latest-small with their times, 1M with true times only in its publisher's form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mainstem.datasets.dataset import Counts, Dataset, Download, Records
from mainstem.datasets.ratings import Columns, config, lines, records, table, timed, untimed

__all__ = ["ML_1M", "ML_100K", "ML_LATEST_SMALL"]

_CITE = (
    "Please cite F. Maxwell Harper and Joseph A. Konstan (2015), The MovieLens Datasets: History and Context, "
    "ACM TiiS 5(4), doi:10.1145/2827872."
)
_RESEARCH_ONLY = (
    "GroupLens usage licence: research use with acknowledgement; no redistribution without separate permission; "
    f"no commercial use without permission. {_CITE}"
)
_ZIP = "https://files.grouplens.org/datasets/movielens"

Films = Iterator[dict[str, Any]]


def _films(found: Columns) -> Films:
    """Columns (id, title, genres) as rows."""
    for name, title, genres in zip(*(column.to_pylist() for column in found.values()), strict=True):
        yield {"id": name, "title": title, "genres": genres}


def _latest_small(suffix: str) -> Any:
    def read(folder: Path) -> Records:
        return records(
            "ml-latest-small",
            lambda: timed(table(folder / f"ratings{suffix}", ["userId", "movieId", "rating", "timestamp"])),
            lambda: _films(table(folder / f"movies{suffix}", ["movieId", "title", "genres"])),
        )

    return read


ML_LATEST_SMALL = Dataset(
    name="ml-latest-small",
    title="MovieLens latest-small (9/2018): 100,836 ratings",
    home="https://grouplens.org/datasets/movielens/latest/",
    licence=(
        "GroupLens usage licence: redistribution only under the same conditions; no commercial use without "
        f"permission; acknowledgement asked. {_CITE}"
    ),
    counts=Counts(events=100_836, users=610, entities=9_742),
    forms=(
        {
            "movies.parquet": "de7ac83ddf101ed8e9309b3eec64dcc42e61d44bc7b7a57c1c67d1c48c7cc083",
            "ratings.parquet": "c32d209d5eb66cc8688ea0d62de440f89cec80128045ed01f62b0e1a6c3fd8fc",
        },
        {"movies.csv": "", "ratings.csv": ""},
    ),
    readers=(_latest_small(".parquet"), _latest_small(".csv")),
    config=config("ml-latest-small"),
    downloads=(
        Download(
            f"{_ZIP}/ml-latest-small.zip",
            "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
            ("movies.csv", "ratings.csv", "README.txt"),
        ),
    ),
)


def _ml_100k(folder: Path) -> Records:
    return records(
        "ml-100k",
        lambda: timed(table(folder / "ratings.parquet", ["user_id", "movie_id", "rating", "timestamp"])),
        lambda: _films(table(folder / "movies.parquet", ["movie_id", "title", "genres"])),
    )


def _ml_100k_raw(folder: Path) -> Records:
    names = [f"genre{i}" for i in range(19)]

    def films() -> Films:
        genres = lines(folder / "u.genre", ["name", "place"], "|")
        by_place = dict(zip(genres["place"].to_pylist(), genres["name"].to_pylist(), strict=True))
        found = lines(folder / "u.item", ["id", "title", "date", "video", "url", *names], "|")
        for row in zip(*(column.to_pylist() for column in found.values()), strict=True):
            flags = [by_place.get(str(i), "") for i, flag in enumerate(row[5:]) if flag == "1"]
            yield {"id": row[0], "title": row[1], "genres": "|".join(name for name in flags if name != "unknown")}

    return records("ml-100k", lambda: timed(lines(folder / "u.data", ["user", "entity", "value", "time"], "\t")), films)


ML_100K = Dataset(
    name="ml-100k",
    title="MovieLens 100K: 100,000 ratings of 1997-98",
    home="https://grouplens.org/datasets/movielens/100k/",
    licence=_RESEARCH_ONLY,
    counts=Counts(events=100_000, users=943, entities=1_682),
    forms=(
        {
            "movies.parquet": "aaf7977fa1475fb4305db8ba8a0e0cca293e379d06013f915afe615e3cd1d0b9",
            "ratings.parquet": "865ba4d842c2406791730393385343c7695ffb1aa1561cdeb153cc721e74e8e9",
        },
        {"u.data": "", "u.item": "", "u.genre": ""},
    ),
    readers=(_ml_100k, _ml_100k_raw),
    config=config("ml-100k"),
    downloads=(
        Download(
            f"{_ZIP}/ml-100k.zip",
            "md5:0e33842e24a9c977be4e0107933c0723",
            ("u.data", "u.item", "u.genre", "README"),
        ),
    ),
)


def _ml_1m(folder: Path) -> Records:
    """Times made from each user's order and true newest time; ratings without a place in the order come first."""

    def events() -> Columns:
        found = table(folder / "ratings.parquet", ["user_id", "movie_id", "rating", "time_rank", "file_row"])
        users = table(folder / "users.parquet", ["user_id", "last_timestamp"])
        last = dict(zip(users["user_id"].to_pylist(), users["last_timestamp"].to_pylist(), strict=True))
        rank = found["time_rank"].cast("double").to_numpy()
        rank = np.where(np.isnan(rank), found["file_row"].to_numpy() - 1e9, rank)
        user, value = found["user_id"].to_numpy(), found["rating"].to_numpy()
        return untimed(user, found["movie_id"].to_numpy(), value, rank, lambda users: [last[u] for u in users.tolist()])

    return records("ml-1m", events, lambda: _films(table(folder / "movies.parquet", ["movie_id", "title", "genres"])))


def _ml_1m_raw(folder: Path) -> Records:
    return records(
        "ml-1m",
        lambda: timed(lines(folder / "ratings.dat", ["user", "entity", "value", "time"], "::")),
        lambda: _films(lines(folder / "movies.dat", ["id", "title", "genres"], "::")),
    )


ML_1M = Dataset(
    name="ml-1m",
    title="MovieLens 1M: 1,000,209 ratings of 2000-03",
    home="https://grouplens.org/datasets/movielens/1m/",
    licence=(
        f"{_RESEARCH_ONLY} NOTE: the Parquet form has no time per rating. There, times are made up: each user's "
        "newest rating has its true time, the others lie one minute apart before it in their true order; 598 "
        "ratings of films with fewer than 5 ratings have no place in that order and come before it."
    ),
    counts=Counts(events=1_000_209, users=6_040, entities=3_883),
    forms=(
        {
            "movies.parquet": "53cf2f7a737b0b6c1f16a3017ba40f157519f5afa219037c7c8ce7e50e9c5fc7",
            "ratings.parquet": "8f6229e45e01ea12ecaf91d9235add0ceb1fa10786a8f18e0f79b8a4d705fc63",
            "users.parquet": "004ddf9e68dd760e204ff7a1f36a6808e46742908e618ae89e0931134fb36869",
        },
        {"movies.dat": "", "ratings.dat": ""},
    ),
    readers=(_ml_1m, _ml_1m_raw),
    config=config("ml-1m"),
    downloads=(
        Download(
            f"{_ZIP}/ml-1m.zip",
            "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            ("movies.dat", "ratings.dat", "README"),
        ),
    ),
)
