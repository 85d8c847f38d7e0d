"""Trees at the edge of the library: flatten, unflatten, and the words for a place in a tree.

A tree is made of what optree's global registry knows (tuple, list, dict, OrderedDict, defaultdict, deque,
namedtuple, and ``None``, the tree without leaves), of types registered with ``torch.utils._pytree``, and of
dataclasses that nobody registered, each field of which is a child, and what `__post_init__` computes besides.
Everything else is a leaf. A class with the attribute ``__fh_leaf__ = True`` stays a leaf whatever else it is.

NOTE [learning types] optree has to be told about the last two kinds. Asking about every leaf would cost more
than the flattening does, so the types that are known to be leaves are remembered, and only a leaf of another
type is looked at: either its type joins them, or it is registered in this library's own namespace and the
tree is flattened again. Whoever registers a type with torch later, changes the size of torch's registry: then what
was learned of leaves and dataclasses is learned anew.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import operator
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import optree
import torch

from functorch_hops import _torch
from functorch_hops.errors import ArgumentValueError, TreeMismatchError, message

__all__ = [
    "NAMESPACE",
    "Leaves",
    "Spec",
    "Tree",
    "broadcast_prefix",
    "describe",
    "difference",
    "flatten",
    "is_node",
    "leaf_paths",
    "map",
    "mapping_keys",
    "unflatten",
]

Tree: TypeAlias = Any
Leaves: TypeAlias = list[Any]
Spec: TypeAlias = optree.PyTreeSpec

NAMESPACE = "functorch_hops"
"""optree's namespace for the types that this library registers by itself."""

_node_types: set[type] = set()
_dataclasses: weakref.WeakSet[type] = weakref.WeakSet()
"""Nodes that nobody else registered."""
_PLAIN_LEAVES = frozenset({torch.Tensor, torch.nn.Parameter, bool, int, float, complex, str})
_leaf_types: weakref.WeakSet[type] = weakref.WeakSet()
"""Learned besides these."""
_count_of_nodes = _torch.count_of_nodes()
"""The size of torch's registry when the types were learned."""


def flatten(tree: Tree) -> tuple[Leaves, Spec]:
    """The leaves of a tree, and its structure.

    >>> leaves, spec = flatten({"b": 2, "a": (1, None)})
    >>> leaves, describe(spec)
    ([1, 2], "{'a': (*, None), 'b': *}")
    """
    if _torch.count_of_nodes() != _count_of_nodes:
        _learn_anew()
    leaves, spec = optree.tree_flatten(tree, namespace=NAMESPACE)
    if _PLAIN_LEAVES.issuperset(builtins.map(type, leaves)):
        return leaves, spec
    while _learn(builtins.map(type, leaves)):
        leaves, spec = optree.tree_flatten(tree, namespace=NAMESPACE)
    return leaves, spec


def is_node(cls: type) -> bool:
    """Whether objects of a type are nodes of trees.

    >>> is_node(dict), is_node(int)
    (True, False)
    """
    if cls not in _leaf_types and optree.register_pytree_node.get(cls, namespace=NAMESPACE) is None:
        _learn([cls])
    return cls not in _leaf_types and optree.register_pytree_node.get(cls, namespace=NAMESPACE) is not None


def mapping_keys(tree: Tree) -> tuple[Any, ...]:
    """The keys of all mappings in a tree, in their order and with their types, neither of which a structure tells.

    >>> flatten({True: 1})[1] == flatten({1: 1})[1], mapping_keys({True: 1}) == mapping_keys({1: 1})
    (True, False)
    """
    found: list[Any] = []
    nodes = [tree]
    for node in nodes:
        kind = type(node)
        if kind in _PLAIN_LEAVES or kind in _leaf_types:
            continue
        if isinstance(node, dict):
            found.append((*node, *builtins.map(type, node)))
            nodes.extend(node.values())
        elif kind is tuple or kind is list:
            nodes.extend(node)
        else:
            is_child = functools.partial(operator.is_not, node)
            nodes.extend(optree.tree_leaves(node, is_leaf=is_child, namespace=NAMESPACE))
    return tuple(found)


def unflatten(spec: Spec, leaves: Iterable[Any]) -> Tree:
    """The tree of this structure with these leaves.

    >>> unflatten(flatten([0, (0, 0)])[1], "xyz")
    ['x', ('y', 'z')]
    """
    return spec.unflatten(leaves)


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn` to each leaf of a tree, and to the leaves of further trees of the same structure.

    >>> map(lambda x, y: x + y, {"a": 1, "b": None}, {"a": 2, "b": None})
    {'a': 3, 'b': None}
    """
    leaves, spec = flatten(tree)
    columns = [leaves]
    for other in rest:
        other_leaves, other_spec = flatten(other)
        found = difference(spec, other_spec, root="tree")
        if found is not None:
            path, expected, got = found
            remedy = "pass trees of one structure"
            text = message("pytree.map", "the trees differ", path=path, expected=expected, got=got, remedy=remedy)
            raise TreeMismatchError(text)
        columns.append(other_leaves)
    return spec.unflatten([fn(*row) for row in zip(*columns, strict=True)])


def leaf_paths(spec: Spec, root: str = "carry") -> list[str]:
    """One Python expression per leaf, that reads this leaf from the variable `root`.

    >>> leaf_paths(flatten({"h": [0, (0, 0)]})[1])
    ["carry['h'][0]", "carry['h'][1][0]", "carry['h'][1][1]"]
    """
    return [accessor.codify(root) for accessor in spec.accessors()]


def describe(spec: Spec) -> str:
    """The structure in short, with ``*`` for a leaf."""
    if spec.is_leaf():
        return "*"
    if spec.kind == optree.PyTreeKind.NONE:
        return "None"
    children = [describe(child) for child in spec.children()]
    kind = spec.kind
    if kind == optree.PyTreeKind.TUPLE:
        return f"({children[0]},)" if len(children) == 1 else f"({', '.join(children)})"
    if kind == optree.PyTreeKind.LIST:
        return f"[{', '.join(children)}]"
    if spec.type is not None and issubclass(spec.type, dict) and kind != optree.PyTreeKind.CUSTOM:
        items = ", ".join(f"{key!r}: {child}" for key, child in zip(spec.entries(), children, strict=True))
        return f"{{{items}}}" if spec.type is dict else f"{spec.type.__name__}({{{items}}})"
    attributes = [path if path.startswith(".") else "" for path in _child_paths(spec, "")]
    named = [f"{path[1:]}={child}" if path else child for path, child in zip(attributes, children, strict=True)]
    return f"{getattr(spec.type, '__name__', spec.type)}({', '.join(named)})"


def difference(expected: Spec, got: Spec, root: str = "carry") -> tuple[str, str, str] | None:
    """The first place where two structures differ: its path and both sides in short. None if they agree.

    >>> difference(flatten({"h": 0, "c": (0, 0)})[1], flatten({"h": 0, "c": [0, 0]})[1])
    ("carry['c']", '(*, *)', '[*, *]')
    """
    if expected == got:
        return None
    if not _same_node(expected, got):
        return root, describe(expected), describe(got)
    paths = _child_paths(expected, root)
    for path, left, right in zip(paths, expected.children(), got.children(), strict=True):
        found = difference(left, right, path)
        if found is not None:
            return found
    return root, describe(expected), describe(got)


def broadcast_prefix(
    prefix: Tree, spec_or_tree: Spec | Tree, what: str, *, operation: str = "vmap", root: str = "args"
) -> list[int | None]:
    """One entry per leaf of a tree, from a prefix of that tree whose leaves are integers or None.

    Arguments:
        prefix: an integer or None for a whole subtree, or the tree's own node with a prefix for each child.
        spec_or_tree: the tree, or its structure.
        what: the user's name of the prefix, such as ``"in_dims"``.
        operation: name of the public function, for the message.
        root: the user's name of the tree, for the message.

    Raises:
        ArgumentValueError: `prefix` is no such prefix.

    >>> broadcast_prefix((0, {"a": None, "b": 1}), ([0, 0], {"a": (0, 0), "b": 0}), "in_dims")
    [0, 0, None, None, 1]
    """
    spec = spec_or_tree if hasattr(spec_or_tree, "num_leaves") else flatten(spec_or_tree)[1]
    if prefix is None or type(prefix) is int:
        return [prefix] * spec.num_leaves
    dims: list[int | None] = []
    found = _spread(prefix, spec, (), dims)
    if found is not None:
        raise ArgumentValueError(_misfit(spec, *found, what, operation, root))
    return dims


def _spread(
    prefix: Tree, spec: Spec, trail: tuple[int, ...], dims: list[int | None]
) -> tuple[Tree, tuple[int, ...]] | None:
    """Repeat each entry of a prefix for the leaves of its subtree; what does not fit, and the way to it."""
    if prefix is None or (isinstance(prefix, int) and not isinstance(prefix, bool)):
        dims.extend([prefix] * spec.num_leaves)
        return None
    children = _prefix_children(prefix, spec)
    if children is None:
        return prefix, trail
    for index, (child, below) in enumerate(zip(children, spec.children(), strict=True)):
        found = _spread(child, below, (*trail, index), dims)
        if found is not None:
            return found
    return None


def _prefix_children(prefix: Any, spec: Spec) -> list[Tree] | None:
    """The children of a prefix in the order of the structure's children, if both are the same node."""
    cls: type = type(prefix)
    if cls is not spec.type:
        return None
    if cls in (dict, OrderedDict, defaultdict):
        keys = spec.entries()
        return [prefix[key] for key in keys] if prefix.keys() == set(keys) else None
    if cls in (tuple, list, deque):
        children = list(prefix)
    else:
        flatten(prefix)  # so that optree knows its type: NOTE [learning types]
        children = list(optree.tree_flatten_one_level(prefix, none_is_leaf=True, namespace=NAMESPACE)[0])
    return children if len(children) == spec.num_children else None


def _misfit(spec: Spec, part: Tree, trail: tuple[int, ...], what: str, operation: str, root: str) -> str:
    """The message about a part of a prefix that does not fit the subtree at the end of `trail`."""
    prefix_path = what
    for index in trail:
        prefix_path, root = (_child_paths(spec, path)[index] for path in (prefix_path, root))
        spec = spec.children()[index]
    part_spec = flatten(part)[1]
    if part_spec.is_leaf():
        problem, expected, got = "holds something else than dimensions", "an int or None", repr(part)
        remedy = "name a dimension by its number; None is for what is not mapped over"
    else:
        problem, got = "does not match the tree", describe(part_spec)
        expected = f"an int, None, or a tree that starts like {describe(spec)}"
        remedy = "write one int or None for all of it, or one for each part"
    where = f"{prefix_path} for {root}"
    return message(operation, f"{what} {problem}", path=where, expected=expected, got=got, remedy=remedy)


def _same_node(left: Spec, right: Spec) -> bool:
    """Whether the roots of two structures are the same node, whatever is below."""
    return left.type is right.type and left.entries() == right.entries() and left.kind == right.kind


def _child_paths(spec: Spec, root: str) -> list[str]:
    one_level = spec.one_level()
    return [] if one_level is None else leaf_paths(one_level, root)


def _learn(types: Iterable[type]) -> bool:
    """Look at leaves of unknown types; whether one of them has become a node: NOTE [learning types]."""
    unknown = {cls for cls in types if cls not in _PLAIN_LEAVES and cls not in _leaf_types}
    if not unknown:
        return False
    found_node = False
    with _torch.one_at_a_time:
        for cls in unknown:
            if cls in _node_types or _register(cls):
                _node_types.add(cls)
                found_node = True
            else:
                _leaf_types.add(cls)
    return found_node


def _learn_anew() -> None:
    """Forget what may have been registered with torch since it was learned."""
    global _count_of_nodes
    with _torch.one_at_a_time:
        _count_of_nodes = _torch.count_of_nodes()
        _leaf_types.clear()
        for cls in list(_dataclasses):
            if _torch.pytree_node(cls) is not None:
                optree.unregister_pytree_node(cls, namespace=NAMESPACE)
                _dataclasses.discard(cls)
                _node_types.discard(cls)


def _register(cls: type) -> bool:
    """Register a type in our namespace, if it is a node at all."""
    if getattr(cls, "__fh_leaf__", False) is True:
        return False
    node = _torch.pytree_node(cls)
    if node is not None:
        optree.register_pytree_node(
            cls,
            _torch_flattener(node),
            _torch_unflattener(node),
            path_entry_type=_TorchEntry,
            namespace=NAMESPACE,
        )
        return True
    # `object.__new__` can't make instances of these; tensors and modules hold more than their fields.
    unfit = (dict, list, tuple, set, frozenset, int, float, complex, str, bytes, BaseException)
    if dataclasses.is_dataclass(cls) and not issubclass(cls, (*unfit, torch.Tensor, torch.nn.Module)):
        _register_dataclass(cls)
        _dataclasses.add(cls)
        return True
    return False


def _register_dataclass(cls: type) -> None:
    fields = tuple(field.name for field in dataclasses.fields(cls))
    has_more = hasattr(cls, "__post_init__")

    def flatten_fields(instance: Any) -> tuple[list[Any], tuple[str, ...], tuple[str, ...]]:
        names = (*fields, *_computed(instance, fields)) if has_more else fields
        return [getattr(instance, name) for name in names], names, names

    def unflatten_fields(names: Any, children: Iterable[Any]) -> Any:
        # Neither __init__ nor __post_init__ runs: they may validate or convert, and a leaf can be anything.
        instance: Any = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(instance, name, child)
        return instance

    optree.register_pytree_node(
        cls, flatten_fields, unflatten_fields, path_entry_type=optree.GetAttrEntry, namespace=NAMESPACE
    )


def _computed(instance: Any, fields: tuple[str, ...]) -> list[str]:
    """The attributes that ``__post_init__`` computed; a cached property is computed again."""
    cached = (name for c in type(instance).__mro__ for name, v in vars(c).items() if isinstance(v, cached_property))
    return sorted(set(getattr(instance, "__dict__", ())).difference(fields, cached))


class _TorchContext(NamedTuple):
    """The context of a node of torch's registry, hashable as structures must be: torch allows lists here. A named
    tuple, which Dynamo can make.
    """

    value: Any

    def __hash__(self) -> int:
        try:
            return hash(self.value)
        except TypeError:
            return hash(type(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


class _TorchEntry(optree.PyTreeEntry):
    """The way to a child of a node of torch's registry: torch's key if the type has keys, else a number."""

    def codify(self, node: str = "") -> str:
        return f"{node}{f'[{self.entry}]' if isinstance(self.entry, int) else self.entry}"


def _torch_flattener(node: Any) -> Callable[[Any], tuple[list[Any], _TorchContext, tuple[Any, ...] | None]]:
    """optree's flatten function for a type of torch's registry."""
    flatten_with_keys = node.flatten_with_keys_fn

    def flatten_node(instance: Any) -> tuple[list[Any], _TorchContext, tuple[Any, ...] | None]:
        # With keys torch ignores the context, which for its own dataclasses (2.13) is a wrong one.
        children, context = node.flatten_fn(instance)
        keys = None if flatten_with_keys is None else tuple(key for key, _ in flatten_with_keys(instance)[0])
        return list(children), _TorchContext(context), keys

    return flatten_node


def _torch_unflattener(node: Any) -> Callable[[Any, Iterable[Any]], Any]:
    """optree's unflatten function for a type of torch's registry."""
    return lambda context, children: node.unflatten_fn(list(children), context.value)
