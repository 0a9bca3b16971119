"""The log's own slates as Examples: what was served, what was seen of it, and what came of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mainstem.join.attribution import Attribution, JoinCounts
from mainstem.schema.config import HeadConfig
from mainstem.schema.examples import Examples
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Log
from mainstem.schema.time import HOUR

__all__ = ["joined_examples"]


def joined_examples(
    log: Log,
    heads: Mapping[str, HeadConfig],
    inputs: Sequence[str],
    *,
    reads: Sequence[str] | None = None,
    start: Position = START,
    end: Position | None = None,
    had: str | None = None,
    served_is_seen: bool = False,
    lateness: int = HOUR,
    counts: JoinCounts | None = None,
) -> Iterator[Examples]:
    """Examples of the recorded slates in [start, end), by time, one group each; `end` None is the log's end now.

    inputs, reads: what the network eats; slates recorded with others are skipped, and counted in `counts.other_inputs`.
    Slates whose windows (and lateness) have not passed by `end` are left for the next time. The other arguments
    are those of `Attribution`; pass `counts` to learn what became of the rest.
    """
    join = Attribution(heads, inputs, reads=reads, had=had, served_is_seen=served_is_seen, lateness=lateness)
    if counts is not None:
        join.counts = counts
    seen, last = start, (log.end() if end is None else end).offset()
    while seen.offset() < last:
        batch = log.read(seen, 10_000)
        if not batch.records:
            break
        join.add(record for record, offset in zip(batch.records, batch.offsets, strict=True) if offset < last)
        yield from join.ready()
        seen = batch.next
