"""A function of trees as torch.func wants it: from tensors to a tuple of tensors.

``torch.func`` flattens with torch's registry and refuses what is no tensor. Here optree takes the arguments
apart, ``torch.func`` sees the tensors alone, and the trees and the other leaves travel beside it.

NOTE [Transforms under torch's tracers] ``torch.export`` and ``make_fx`` record operators below functorch, where those
of a loop have no rules, and lose what autograd does between levels. So the outermost transform in a traced function is
captured as a whole, by this library; what the tracer sees is the resulting graph, in which no transform is left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functorch_hops import _torch, pytree
from functorch_hops.calls.arguments import Arguments, Function, one_or_several
from functorch_hops.calls.leaf import traced_through
from functorch_hops.calls.leaving import prepare
from functorch_hops.calls.numbers import as_number, number_as_tensor
from functorch_hops.calls.traced_call import trace_call
from functorch_hops.calls.validate import as_int, check_callable, kind_of
from functorch_hops.errors import ArgumentTypeError, ArgumentValueError, CaptureError, TreeMismatchError, message
from functorch_hops.trace.capture import current_capture
from functorch_hops.trace.hooks import handlers, is_symbolic


class Recipe(NamedTuple):
    """What a function was made of: ``transform(func, **options)``."""

    transform: Function
    func: Function
    options: dict[str, Any]


def transformed(recipe: Recipe) -> Callable[[Function], Callable[..., Any]]:
    """What a transform makes of a function: with its name and documentation, but not the attributes of a module."""

    def decorate(run: Function) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_dynamo_compiling():
                handlers.register_leaf()
                return handlers.leaf(_made_anew, (*recipe, args, kwargs), {})
            if is_symbolic():
                return handlers.symbolic.transformed(*recipe, args, kwargs)
            try:
                return _as_python(recipe, run, args, kwargs)
            except Exception as error:
                prepare(error)
                raise

        if torch.compiler.is_dynamo_compiling():
            return call  # to read the annotations of a function is, for Dynamo (torch 2.13), to write to it
        return _torch.with_own_code(functools.wraps(recipe.func, updated=())(call), recipe.func)

    return decorate


@traced_through
def _as_python(recipe: Recipe, run: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if under_torchs_tracer():
        return traced_as_one_graph(recipe.transform.__name__, run, args, kwargs)
    return run(*args, **kwargs)


@traced_through
def _made_anew(
    transform: Function, func: Function, options: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A call of a transformed function under Dynamo: of what the transform makes of the function that Dynamo traces.
    Dynamo leaves numbers open that come from outside; a dimension or place is what it is now.
    """
    options = pytree.map(lambda x: int(x) if isinstance(x, torch.SymInt) else x, options)
    return transform(func, **options)(*args, **kwargs)


def under_torchs_tracer() -> bool:
    """Whether torch records operators here, and no capture of this library does."""
    return current_capture() is None and _torch.foreign_tracer_active()


def traced_as_one_graph(operation: str, run: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """See NOTE [Transforms under torch's tracers]."""
    arguments = Arguments(args, kwargs, static_floats=True, numpy=False)
    call = trace_call(run, arguments, operation, grad_enabled=True)
    return call.output.unflatten(call.body(*arguments.operands, *call.lifted))


def refuse_under_torchs_tracer(operation: str, what: str) -> None:
    """For a transform that returns a function, which can't be captured with it."""
    if not torch.compiler.is_dynamo_compiling() and under_torchs_tracer():
        raise CaptureError(
            message(
                operation,
                f"{what} can't be used where torch traces the code around them",
                parameter="func",
                remedy="put the code that calls them into a function and wrap it in fh.jit, or use fh.export",
            )
        )


def require_callable(operation: str, func: object) -> None:
    check_callable(operation, "func", func)


def require_chunk_size(operation: str, chunk_size: int | None) -> int | None:
    return None if chunk_size is None else as_int(operation, "chunk_size", chunk_size, at_least=1)


def leaf_path(spec: pytree.Spec, index: int, root: str) -> str:
    """The path of one leaf, for a message."""
    return pytree.leaf_paths(spec, root)[index]


class DifferentiableArguments:
    """The arguments of one call, split into what is differentiated, other tensors, and everything else.

    ``inputs`` are the tensors of the differentiated arguments; ``tensors`` are these, then the tensors of all
    other arguments. The latter go through ``torch.func`` as well, so that a function may update them in
    place. An argument without tensors is handed on as it is, not as a copy with the same leaves.
    """

    def __init__(
        self,
        operation: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        argnums: int | Sequence[int],
        *,
        root: str = "args",
        real: bool = False,
    ) -> None:
        self.args, self.kwargs = args, kwargs
        argnums = as_number(argnums)
        self.single = not isinstance(argnums, Iterable)
        self.numbers = _normalized(operation, argnums, len(args))
        leaves, self.spec = pytree.flatten(tuple(args[number] for number in self.numbers))
        self.inputs = tuple(
            leaf if _is_differentiable(leaf, real) else self._converted(operation, leaf, index, root, real)
            for index, leaf in enumerate(leaves)
        )
        others: dict[int | str, Any] = dict(enumerate(args))
        for number in self.numbers:
            del others[number]
        others.update(kwargs)
        self.others = {key: value for key, value in others.items() if _holds_tensors(value)}
        self.other_leaves, self.other_spec = pytree.flatten(list(self.others.values()))
        self.places = [p for p, leaf in enumerate(self.other_leaves) if _is_dense(leaf)]
        # torch.func wants something to differentiate; a tree without leaves is differentiated all the same.
        self.differentiated = self.inputs or (torch.zeros(()),)
        self.tensors = (*self.differentiated, *(self.other_leaves[place] for place in self.places))
        self.indices = tuple(range(len(self.differentiated)))

    def call(self, func: Function, tensors: Sequence[Any]) -> Any:
        """Call `func` with these tensors in the places of ``tensors``."""
        args = list(self.args)
        selected = self.spec.unflatten(tensors[: len(self.inputs)])
        for number, value in zip(self.numbers, selected, strict=True):
            args[number] = value
        if not self.others:
            return func(*args, **self.kwargs)
        kwargs = dict(self.kwargs)
        leaves = list(self.other_leaves)
        for place, tensor in zip(self.places, tensors[len(self.differentiated) :], strict=True):
            leaves[place] = tensor
        for key, value in zip(self.others, self.other_spec.unflatten(leaves), strict=True):
            if isinstance(key, int):
                args[key] = value
            else:
                kwargs[key] = value
        return func(*args, **kwargs)

    def tree(self, leaves: Sequence[Any]) -> Any:
        """One value per input as a tree: of the one differentiated argument, or a tuple of them."""
        trees = self.spec.unflatten(leaves[: len(self.inputs)])
        return trees[0] if self.single else trees

    def path(self, index: int, root: str) -> str:
        """The path of one of the inputs."""
        paths: list[str] = []
        for number, spec in zip(self.numbers, self.spec.children(), strict=True):
            paths += pytree.leaf_paths(spec, f"{root}[{number}]")
        return paths[index]

    def _converted(self, operation: str, leaf: object, index: int, root: str, real: bool) -> Tensor:
        if isinstance(leaf, float | complex) and not (real and isinstance(leaf, complex)):
            return torch.tensor(leaf)
        if isinstance(leaf, torch.SymFloat):
            return number_as_tensor(leaf)
        kind = "real" if real else "floating-point or complex"
        text = message(
            operation,
            "an argument can't be differentiated",
            path=self.path(index, root),
            expected=f"a {kind} tensor, or a float",
            got=kind_of(leaf),
            remedy=_PARAMETERS
            if isinstance(leaf, torch.nn.Module)
            else f"{'leave it out of argnums' if root == 'args' else 'close over it'}, or convert it",
        )
        raise ArgumentTypeError(text)


class Auxiliary:
    """A tree that accompanies a result: its tensors pass through torch.func, the rest of it does not."""

    def __init__(self, tree: Any) -> None:
        self.leaves, self.spec = pytree.flatten(tree)
        self.places = [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.tensors = tuple(self.leaves[place] for place in self.places)

    def tree(self, tensors: Sequence[Tensor]) -> Any:
        for place, tensor in zip(self.places, tensors, strict=True):
            self.leaves[place] = tensor
        return self.spec.unflatten(self.leaves)


class FlatFunction:
    """``func`` from the tensors of `arguments` to a tuple of outputs; with aux, to a pair of such tuples.

    It remembers the trees of its latest call: ``spec`` of the outputs, and ``aux``.
    """

    spec: pytree.Spec
    aux: Auxiliary

    def __init__(
        self,
        operation: str,
        func: Function,
        arguments: DifferentiableArguments,
        has_aux: bool,
        accepts: Callable[[object], bool],
    ) -> None:
        self.operation, self.func, self.arguments = operation, func, arguments
        self.has_aux, self.accepts = has_aux, accepts

    def __call__(self, *tensors: Any) -> tuple[Any, ...]:
        out = self.arguments.call(self.func, tensors)
        if self.has_aux:
            out, aux = split_pair(self.operation, out)
            self.aux = Auxiliary(aux)
        leaves, self.spec = pytree.flatten(out)
        if not leaves:
            text = message(
                self.operation,
                "the function returns no tensor",
                parameter="func",
                expected="a tree with a tensor in it",
                got=kind_of(out),
                remedy="return what is to be differentiated",
            )
            raise ArgumentTypeError(text)
        for index, leaf in enumerate(leaves):
            if not self.accepts(leaf):
                text = message(
                    self.operation,
                    "an output of the function can't be differentiated",
                    path=leaf_path(self.spec, index, "out"),
                    expected="a floating-point or complex tensor",
                    got=kind_of(leaf),
                    remedy="convert it, or leave it out of the output (has_aux=True returns it beside the output)",
                )
                raise ArgumentTypeError(text)
        outputs = tuple(leaves)
        return (outputs, self.aux.tensors) if self.has_aux else outputs


def split_pair(operation: str, out: Any) -> tuple[Any, Any]:
    """The value and the auxiliary output of a function with ``has_aux=True``."""
    if isinstance(out, tuple) and len(out) == 2:
        return out
    text = message(
        operation,
        "with has_aux=True the function must return a pair",
        parameter="func",
        expected="(output, aux)",
        got=kind_of(out),
        remedy="return a tuple of both, or leave has_aux out",
    )
    raise TreeMismatchError(text)


_PARAMETERS = "pass dict(module.named_parameters()), and call torch.func.functional_call(module, parameters, args)"


def is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def _is_dense(leaf: object) -> bool:
    """Whether a leaf can pass through torch.func; a sparse matrix is handed on as it is."""
    return isinstance(leaf, Tensor) and _torch.is_dense(leaf)


def is_inexact(leaf: object) -> bool:
    """Whether a leaf is a tensor with derivatives, real or complex."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def is_real(leaf: object) -> bool:
    """Whether a leaf is a real tensor with derivatives."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _is_differentiable(leaf: object, real: bool) -> bool:
    return is_real(leaf) if real else is_inexact(leaf)


def _holds_tensors(tree: Any) -> bool:
    return isinstance(tree, Tensor) or any(isinstance(leaf, Tensor) for leaf in pytree.flatten(tree)[0])


def require_argnums(operation: str, argnums: int | Sequence[int]) -> None:
    """Refuse now what no call could use: most often the arguments of the function."""
    if torch.compiler.is_dynamo_compiling():
        return
    for number in one_or_several(as_number(argnums)):
        if isinstance(number, Tensor):
            remedy = f"write {operation}(func)(*args): its arguments are passed to what it returns"
            got = kind_of(number)
            text = message(operation, "not an int", parameter="argnums", expected="an int", got=got, remedy=remedy)
            raise ArgumentTypeError(text)
        as_int(operation, "argnums", number)


def _normalized(operation: str, argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """The positions that `argnums` means, counted from the left."""
    numbers = [as_int(operation, "argnums", number) for number in one_or_several(argnums)]
    positions = tuple(number + count if number < 0 else number for number in numbers)
    if any(not 0 <= position < count for position in positions):
        raise ArgumentValueError(
            message(
                operation,
                "there is no such positional argument",
                parameter="argnums",
                expected=f"integers from {-count} to {count - 1}" if count else "arguments by position",
                got=argnums,
                remedy="pass the arguments that are differentiated by position",
            )
        )
    if len(set(positions)) < len(positions):
        text = message(
            operation,
            "an argument is named twice",
            parameter="argnums",
            expected="each argument once",
            got=argnums,
            remedy=f"write argnums={tuple(dict.fromkeys(positions))}",
        )
        raise ArgumentValueError(text)
    return positions
