"""Follows the log and the weights; keeps state, catalogue, indexes and the model in use current (law 6).

follower.py  log -> catalogue, features, content index; each store commits its own Position
models.py    weights -> the model in use, with an index that fits it (law 8)
"""

from mainstem.refresh.follower import Follower
from mainstem.refresh.models import ModelKeeper

__all__ = ["Follower", "ModelKeeper"]
