"""What of a user's history speaks for a candidate: candidates [n, dim] against jagged histories -> [n, dim].

| variant | a candidate's interest is |
|---|---|
| `TargetAttention` (DIN) | a sum of events, each weighted by how it goes with the candidate |
| `BehaviorTransformer` (BST) | the candidate after it has attended to the events, their ages as positions |

Candidates of several requests come in one call; each meets the history of its own request, which is held once.
`InterestBlock` is either of them as the ranking network has it: [n, dim] brought down to a few columns.
"""

from mainstem.models.interest.behavior_transformer import BehaviorTransformer, BehaviorTransformerConfig
from mainstem.models.interest.block import InterestBlock, InterestConfig, Meeting
from mainstem.models.interest.target_attention import TargetAttention, TargetAttentionConfig

__all__ = [
    "BehaviorTransformer",
    "BehaviorTransformerConfig",
    "InterestBlock",
    "InterestConfig",
    "Meeting",
    "TargetAttention",
    "TargetAttentionConfig",
]
