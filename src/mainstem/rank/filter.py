"""Stage 2: what may not be shown goes.

Sources already push the same rules down (`Question.allowed`), so that they can widen their search until they
have enough; this stage is the one that is trusted.
"""

from __future__ import annotations

import numpy as np

from mainstem.rank.question import Question
from mainstem.rank.retrieve import Candidates
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog

__all__ = ["keep_allowed"]


def keep_allowed(question: Question, catalog: Catalog, forbidden: Keys, candidates: Candidates) -> Candidates:
    """The candidates that may be shown, order kept."""
    mask = question.allowed(catalog, forbidden, candidates.keys)
    return candidates if mask.all() else candidates.take(np.flatnonzero(mask))
