"""Request -> candidates -> scores -> slate, in four stages; read-only; says what it did and why.

question.py  the request, resolved: keys, time, canvas contract, deadline, what may be shown
sources.py   where candidates come from, one class each
categories.py  popular in the category that is asked for, or in the user's favourite ones
retrieve.py  asks the sources within their share of the deadline and merges what they bring
filter.py    availability, attributes, excludes, hidden, owned
score.py     the model in use (`ModelVersion`), or reciprocal rank fusion where there is none yet
order.py     head weights, one per variant group, diversity caps
pipeline.py  the four stages in a row, timings, fallbacks
"""

from mainstem.rank.pipeline import Answer, Pipeline
from mainstem.rank.retrieve import Candidates, retrieve
from mainstem.rank.score import ModelVersion

__all__ = ["Answer", "Candidates", "ModelVersion", "Pipeline", "retrieve"]
