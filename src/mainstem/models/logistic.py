"""Logistic regression: the small baseline that every larger model has to beat."""

from __future__ import annotations

from torch import nn

from mainstem.models.ranker import Head, Ranker, RankerConfig
from mainstem.schema.ranking_config import OrderLoss

__all__ = ["logistic"]


def logistic(
    features: int, heads: tuple[Head, ...] = (Head("purchase"),), *, loss: OrderLoss = "listwise", crossed: bool = False
) -> Ranker:
    """A `Ranker` of its linear skip alone: P(label = 1) = sigmoid(w . z + b), z the standardised features.

    Being a ranker it is trained, calibrated and served (`NumpyScorer`) as one. It starts at 0; with `losses.binary` and
    an L2 penalty (weight decay) the loss is convex, and there is one answer to find. loss, crossed: of `RankerConfig`;
    with crosses it is the sparse regression of McMahan et al. 2013 ("Ad Click Prediction") beside dense features.
    """
    model = Ranker(RankerConfig(features, heads, hidden=(), cross_layers=0, loss=loss, crossed=crossed))
    nn.init.zeros_(model.wide.weight)
    nn.init.zeros_(model.wide.bias)
    return model
