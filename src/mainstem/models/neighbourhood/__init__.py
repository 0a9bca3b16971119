"""Collaborative filtering without a training loop: weights between items, computed at once from who took what.

    item_knn.py   cosine of the users that two items share, the nearest of each item
    ease.py       the linear autoencoder that says each item best from the others, in closed form
    strongest.py  of dense weights the strongest of each row

The first two give weights [items, items] with a diagonal of 0; a user's scores are their row of interactions times
these weights. So a new event of a user counts at once, and only what relates items to each other waits for the next
time that the weights are computed.
"""

from mainstem.models.neighbourhood.ease import MOST_ITEMS, ease
from mainstem.models.neighbourhood.item_knn import item_knn
from mainstem.models.neighbourhood.strongest import strongest

__all__ = ["MOST_ITEMS", "ease", "item_knn", "strongest"]
