"""Amazon Beauty, 5-core: reviews of beauty products, the order of each user's actions without times."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mainstem.datasets.dataset import Counts, Dataset, Records
from mainstem.datasets.ratings import Columns, config, records, table, untimed
from mainstem.schema.errors import DatasetError

__all__ = ["AMAZON_BEAUTY", "LAST"]

LAST = 1_406_073_600
"""2014-07-23T00:00:00Z, the last day of the crawl: when every user's last action is said to be, in the Parquet form."""


_LEVELS = ("category", "subcategory")


def _products(folder: Path) -> Iterator[dict[str, Any]]:
    found = table(folder / "items.parquet", ["item_id", "title", "categories"])
    for name, title, paths in zip(*(column.to_pylist() for column in found.values()), strict=True):
        # Paths run from coarse to fine and all begin with Beauty.
        steps = [step for path in json.loads(paths or "[]") for step in path[1:]]
        attributes = {"categories": list(dict.fromkeys(steps)), **dict(zip(_LEVELS, steps, strict=False))}
        yield {"id": name, "title": title, "attributes": attributes}


def _parquet(folder: Path) -> Records:
    def events() -> Columns:
        found = table(folder / "interactions.parquet", ["user_id", "pos", "item_id"])
        user, pos, item = (column.to_numpy() for column in found.values())
        return untimed(user, item, np.ones(len(user)), pos, lambda users: np.full(len(users), LAST))

    return records("amazon-beauty", events, lambda: _products(folder))


def _reviews(folder: Path) -> Records:
    """`reviews_Beauty_5.json.gz`: real times and stars, ids as Amazon gives them; products have no text there."""
    path = folder / "reviews_Beauty_5.json.gz"

    def read() -> list[dict[str, Any]]:
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return [json.loads(line) for line in file if line.strip()]
        except (OSError, EOFError, ValueError) as error:
            raise DatasetError(f"{path} cannot be read: {error}; delete it and get the set again") from error

    def events() -> Columns:
        rows = read()
        return {
            "user": [row["reviewerID"] for row in rows],
            "entity": [row["asin"] for row in rows],
            "value": np.array([row.get("overall", 1.0) for row in rows], np.float64),
            "time": np.array([row["unixReviewTime"] for row in rows], np.int64),
        }

    def products() -> Iterator[dict[str, Any]]:
        yield from ({"id": asin, "title": ""} for asin in sorted({row["asin"] for row in read()}))

    return records("amazon-beauty", events, products)


_ITEM = {
    "attributes": {"categories": "tags", "category": "category", "subcategory": "category"},
    "text": ["categories"],
}

AMAZON_BEAUTY = Dataset(
    name="amazon-beauty",
    title="Amazon Beauty 5-core (2014): 198,502 reviews, in order",
    home="https://jmcauley.ucsd.edu/data/amazon/",
    licence=(
        "No licence is stated. McAuley's Amazon product data, published for research; please cite He & McAuley "
        "(2016) and McAuley et al. (2015); do not redistribute. NOTE: the Parquet form has no times. There, times "
        "are made up: every user's last action is at 2014-07-23T00:00:00Z, the others lie one minute apart before "
        "it in their true order, and stars are not known (value 1)."
    ),
    counts=Counts(events=198_502, users=22_363, entities=12_101),
    forms=(
        {
            "interactions.parquet": "81b0c3c1758e96e008691acb22a43ef739f45b403cd21ceadf6c07e50851c6ad",
            "items.parquet": "9bf33b08edd36480b8c778b46c9b2b733fa8ff09c4dd0983c187a2f0c63acd10",
        },
        {"reviews_Beauty_5.json.gz": ""},
    ),
    readers=(_parquet, _reviews),
    config={
        **config("amazon-beauty"),
        "entities": {"item": _ITEM},
        "features": {"by": ["category", "subcategory"]},
    },
)
