"""torch's own trees, in which its operators take lists of tensors."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "TREES_OF_TORCH",
    "count_of_nodes",
    "pytree_node",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]

TREES_OF_TORCH = torch.utils._pytree.__name__


def pytree_node(cls: type) -> torch.utils._pytree.NodeDef | None:
    """How ``torch.utils._pytree`` takes instances of one type apart, if it knows that type."""
    return torch.utils._pytree.SUPPORTED_NODES.get(cls)


def count_of_nodes() -> int:
    """How many types ``torch.utils._pytree`` knows; no type is ever forgotten."""
    return len(torch.utils._pytree.SUPPORTED_NODES)
