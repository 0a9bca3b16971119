"""Nearest neighbours by inner product, of entities that change one by one while they are searched.

    exact.py      one contiguous matrix, scanned: the oracle, and the default below a size
    hnsw.py       a graph (faiss HNSW) with tombstones: approximate, for more vectors than a scan can bear
    switching.py  builds the next index beside the one that answers, then switches

An index is a view of the weights (law 8): it is kept in memory only and rebuilt from them at start.

    neighbourhood.py  weighted neighbours of entities, as a training computed them: what is near to several together
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from mainstem.index.exact import ExactIndex
from mainstem.index.neighbourhood import Neighbourhood
from mainstem.schema.errors import ConfigError
from mainstem.schema.protocols import VectorIndex

__all__ = ["ExactIndex", "Neighbourhood", "open"]

URLS = ("exact://", "hnsw://", "auto://")
GRAPH_SETTINGS = ("links", "construction", "breadth")


def open(url: str, dim: int, *, version: str, exact_below: int = 200_000) -> VectorIndex:
    """An empty index of vectors [dim] made by dense version `version`.

    `exact://` scans. `hnsw://` walks a graph; `?links=32&construction=40&breadth=2.5` are its settings (see
    `HnswIndex`), these the defaults. `auto://`, which takes the same settings, scans up to `exact_below`
    entities and builds the graph beside the scan once there are more; below half of that it goes back.
    Raises ConfigError on any other url.
    """
    parts = urlsplit(url)
    scheme = f"{parts.scheme}://"
    if scheme not in URLS or parts.netloc or parts.path.strip("/"):
        raise ConfigError(f"index url {url!r}: one of {', '.join(URLS)} is allowed")
    settings = _graph_settings(url, parts.query, scheme != "exact://")
    if scheme == "exact://":
        return ExactIndex(dim, version=version)
    from mainstem.index import hnsw, switching  # loads faiss's graph only where it is asked for

    def graph() -> hnsw.HnswIndex:
        return hnsw.HnswIndex(dim, version=version, **settings)

    if scheme == "hnsw://":
        return switching.SwitchingIndex(graph(), switching.compacting(graph))

    def exact() -> ExactIndex:
        return ExactIndex(dim, version=version)

    return switching.SwitchingIndex(exact(), switching.by_size(exact, graph, exact_below))


def _graph_settings(url: str, query: str, graph: bool) -> dict[str, float]:
    settings: dict[str, float] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if not graph or name not in GRAPH_SETTINGS:
            allowed = f"allowed are {', '.join(GRAPH_SETTINGS)}" if graph else "it takes no settings"
            raise ConfigError(f"index url {url!r}: unknown setting {name!r}; {allowed}")
        try:
            settings[name] = float(value)
        except ValueError:
            raise ConfigError(f"index url {url!r}: {name} must be a number, not {value!r}") from None
    return settings
