"""The same features in Ibis over the Parquet history, for parity checks and for analysts.

Every function takes the history as an Ibis table (columns `offset, tag, time, user, entity_type, entity, kind,
value, session` at least) and gives an expression that any Ibis backend runs, one row per key, as of `time` in
ms: events strictly before it. They say what the online features keep while their bounds are not reached, for
one tenant and without aliases and erasures. Not expressible here and so not offered: what depends on the
order of forgetting (evicted rows), sessions (counted on change), attribute values (they live in the catalogue).
"""

from __future__ import annotations

from typing import Any

import ibis

from mainstem.schema.config import Config
from mainstem.schema.time import DAY, parse_duration

__all__ = ["cooccurrence", "events_before", "history", "popularity", "user_item"]

Table = Any  # ibis.Table; ibis ships no usable annotations for it under strict checking
_KEY = ("entity_type", "entity")


def events_before(log: Table, config: Config, time: int) -> Table:
    """Events of interest strictly before `time`, with `weight`, `owned` and `fresh` (the user's first of it)."""
    interest, owned = config.interest(), config.owned_kinds()
    events = log.filter(
        (log.tag == "event") & (log.time < time) & log.kind.isin(list(interest) or [""]) & log.entity.notnull()
    )
    weight = ibis.cases(*((events.kind == kind, float(value)) for kind, value in interest.items()), else_=0.0)
    first = ibis.window(group_by=["user", *_KEY], order_by=["time", "offset"])
    return events.mutate(
        weight=weight, owned=events.kind.isin(list(owned) or [""]), fresh=ibis.row_number().over(first) == 0
    )


def _decayed(events: Table, time: int, half_life: float) -> Any:
    age = (time - events.time).cast("float64") / half_life
    return (events.weight * (ibis.literal(2.0) ** (-age))).sum()


def user_item(log: Table, config: Config, time: int) -> Table:
    """user, entity_type, entity -> count, first, last, owned, decayed_LIFE per half-life (as of `time`)."""
    events = events_before(log, config, time)
    decayed = {f"decayed_{life}": _decayed(events, time, parse_duration(life)) for life in config.features.half_lives}
    return events.group_by(["user", *_KEY]).aggregate(
        count=events.count(), first=events.time.min(), last=events.time.max(), owned=events.owned.any(), **decayed
    )


def popularity(log: Table, config: Config, time: int) -> Table:
    """entity_type, entity -> count, fresh, first, last, window_NAME and fresh_NAME per popularity window."""
    events = events_before(log, config, time)
    back = time // DAY - (events.time / DAY).floor().cast("int64")
    edge = 1 - time % DAY / DAY
    sums: dict[str, Any] = {}
    for name in config.features.popularity_windows:
        days = parse_duration(name) // DAY
        share = ibis.cases((back < days, 1.0), (back == days, edge), else_=0.0)
        sums[f"window_{name}"] = (events.weight * share).sum()
        sums[f"fresh_{name}"] = (events.weight * share * events.fresh.cast("float64")).sum()
    return events.group_by(list(_KEY)).aggregate(
        count=events.count(), fresh=events.fresh.sum(), first=events.time.min(), last=events.time.max(), **sums
    )


def history(log: Table, config: Config, time: int) -> Table:
    """user, place (0 is the newest), entity_type, entity, kind, value, time: the latest events of each user."""
    events = events_before(log, config, time)
    newest = ibis.window(group_by="user", order_by=[ibis.desc("time"), ibis.desc("offset")])
    ranked = events.mutate(place=ibis.row_number().over(newest))
    return ranked.filter(ranked.place < config.features.history).select("user", "place", *_KEY, "kind", "value", "time")


def cooccurrence(log: Table, config: Config, time: int) -> Table:
    """entity_type, entity, other_type, other -> count: how often the two met, in both directions."""
    order = ibis.window(group_by="user", order_by=["time", "offset"])
    events = events_before(log, config, time)
    events = events.mutate(n=ibis.row_number().over(order))
    events = events.select("user", "session", *_KEY, "weight", "n")
    before = events.rename(
        other_user="user", other_session="session", other_type="entity_type", other="entity",
        other_weight="weight", other_n="n",
    )  # fmt: skip
    met = events.join(
        before,
        [
            events.user == before.other_user,
            before.other_n < events.n,
            before.other_n >= events.n - config.features.history,
            (events.entity != before.other) | (events.entity_type != before.other_type),
            events.session.isnull() | (events.session == before.other_session),
        ],
    )
    each = met.group_by(["user", "n", *_KEY, "weight", "other_type", "other"]).aggregate(
        latest=met.other_n.max(), other_weight=met.other_weight.argmax(met.other_n)
    )
    nearest = ibis.window(group_by=["user", "n"], order_by=ibis.desc("latest"))
    each = each.mutate(rank=ibis.row_number().over(nearest))
    each = each.filter(each["rank"] < config.features.cooccurrence_span)
    pairs = each.mutate(count=ibis.least(each.weight, each.other_weight))
    forth = pairs.select(*_KEY, "other_type", "other", "count")
    names = {"entity_type": "other_type", "entity": "other", "other_type": "entity_type", "other": "entity"}
    both = forth.union(forth.rename(names).select(*_KEY, "other_type", "other", "count"))
    return both.group_by([*_KEY, "other_type", "other"]).aggregate(count=both["count"].sum())
