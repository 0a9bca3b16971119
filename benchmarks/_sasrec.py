"""What next_item.py and p4_sequence_training.py tell the SASRec of others of a data set."""

from __future__ import annotations

LENGTH = {"amazon-beauty": 50}


def padded_length(dataset: str) -> int:
    """Of the histories that they pad, in events: what published runs on the set have, which ours, packed, need not."""
    return LENGTH.get(dataset, 200)
