"""The import table: which folder may import which. `tests/layout` enforces it and docs draw from it.

`schema <- holders <- movers <- surface`; no sibling imports a sibling; the surface imports in the order given.
"""

from __future__ import annotations

__all__ = ["HOLDERS", "LOOP", "MOVERS", "SURFACE", "allowed", "picture"]

HOLDERS = {
    "eventlog": "append, read from a position, tail; Parquet history",
    "catalog": "entities: attributes, text, availability",
    "features": "event -> state -> values, one definition",
    "text": "text encoders and tokenizers",
    "models": "torch modules and losses",
    "weights": "tables, snapshots, deltas",
    "index": "nearest neighbours",
    "slates": "kept slates",
}
MOVERS = {
    "join": "slates + later events -> examples",
    "train": "examples -> steps -> deltas",
    "refresh": "follows log and weights",
    "rank": "retrieve, filter, score, order",
    "evaluate": "metrics, baselines, replay",
}
# Each may import those before it, besides schema, holders and movers.
SURFACE = (
    "progress",
    "live",
    "assemble",
    "footprint",
    "curriculum",
    "learning",
    "serve",
    "datasets",
    "warmup",
    "loop",
    "canvas_evaluation",
    "calibration_evaluation",
    "evaluation",
    "next_item",
    "demo",
    "cli_config",
    "cli_weights",
    "cli_evaluate",
    "cli_online",
    "cli",
    "__main__",
)
UNDER_ALL = ("schema", "layout")

# (from, what flows, to): the circle closes only where things rest, in the log and the weights.
LOOP = (
    ("serve", "Event, Entity, Served", "eventlog"),
    ("eventlog", "records", "join"),
    ("join", "Example", "train"),
    ("train", "Delta, Snapshot", "weights"),
    ("eventlog", "records", "refresh"),
    ("weights", "deltas, new bases", "refresh"),
    ("refresh", "state, catalogue, index", "rank"),
    ("rank", "Slate", "serve"),
)


def allowed(folder: str) -> frozenset[str]:
    """The folders that `folder` (a direct child of the package) may import, besides itself."""
    below = set(UNDER_ALL)
    if folder in UNDER_ALL:
        return frozenset(below - {"schema", "layout"})
    if folder in HOLDERS:
        return frozenset(below)
    below |= HOLDERS.keys()
    if folder in MOVERS:
        return frozenset(below)
    below |= MOVERS.keys()
    return frozenset(below | set(SURFACE[: SURFACE.index(folder)]))


def picture() -> str:
    """The loop as a Mermaid flow chart, for the README and docs."""
    noun, verb = "([{0}])", "[{0}]"
    names = list(dict.fromkeys(name for a, _, b in LOOP for name in (a, b)))
    lines = ["flowchart LR"]
    lines += [f"  {name}{(noun if name in HOLDERS else verb).format(name)}" for name in names]
    lines += [f"  {a} -- {what} --> {b}" for a, what, b in LOOP]
    return "\n".join(lines) + "\n"
