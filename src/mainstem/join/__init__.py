"""Served slates + later events -> labelled examples.

sessions.py     requests that nobody recorded, made from the sessions of events (data without impressions)
replay.py       goes through the log once more, in order, on private state: features as of each request
canvases.py     which request on a canvas such a session can stand for
attribution.py  slates on record and what followed: windows, late events, what was seen
recorded.py     attribution over a whole log
pools.py        recorded candidate pools and what their users took, told as it becomes known
"""

from mainstem.join.attribution import Attribution, JoinCounts
from mainstem.join.canvases import CanvasRequests
from mainstem.join.pools import PoolJoin
from mainstem.join.recorded import joined_examples
from mainstem.join.replay import Replay, StoredRequest
from mainstem.join.sessions import Visit, visits
from mainstem.schema.examples import Examples

__all__ = [
    "Attribution",
    "CanvasRequests",
    "Examples",
    "JoinCounts",
    "PoolJoin",
    "Replay",
    "StoredRequest",
    "Visit",
    "joined_examples",
    "visits",
]
