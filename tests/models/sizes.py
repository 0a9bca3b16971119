"""How large the tensors are that a computation makes, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """As a context: `numel` is the most elements of any tensor that an operation inside it returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                # a view (an expanded one above all) takes no memory of its own
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out
