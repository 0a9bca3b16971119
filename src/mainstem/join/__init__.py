"""Served slates + later events -> labelled examples.

sessions.py     requests that nobody recorded, made from the sessions of events (data without impressions)
replay.py       goes through the log once more, in order, on private state: features as of each request
attribution.py  slates on record and what followed: windows, late events, what was seen
"""

from mainstem.join.attribution import Attribution, Joined
from mainstem.join.replay import Replay, StoredRequest
from mainstem.join.sessions import Visit, visits
from mainstem.schema.examples import Examples

__all__ = ["Attribution", "Examples", "Joined", "Replay", "StoredRequest", "Visit", "visits"]
