"""The whole loop on real data, as a stranger sees it: load, train, serve, replay, compare.

story.py    the run, resumable at every step
baskets.py  a data set's events as a past to learn from and a live stream of baskets
client.py   the replay's client: the public HTTP API
server.py   `mainstem serve` as a process of its own
"""

from mainstem.demo.story import Demo

__all__ = ["Demo"]
