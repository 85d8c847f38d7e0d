"""``jit`` of a module: the same module, whose call is compiled.

NOTE [A jitted module is a view] The class of ``jit(module)`` is derived from that of the module, and both objects have
one ``__dict__``. So parameters, submodules, buffers, the mode, ``state_dict``, methods, and what is set on either are
the same under the same names, and no container, optimizer or checkpoint tells the two apart. What differs is the call:
it is compiled, and has hooks of its own, which run around the compiled code. (Those of the module are in its graph.)
They lie in slots, which Python finds before ``__dict__``, as it finds the property ``forward``.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from functorch_hops.calls.leaf import left_to_python
from functorch_hops.calls.leaving import leaving
from functorch_hops.trace.hooks import handlers, is_symbolic

__all__ = ["JittedModule", "jitted_inside", "module_of"]

_OF_A_CALL = (
    "_compiled_call_impl",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


class JittedModule(nn.Module):
    """What ``jit`` makes of a module; see :func:`jit`. Only ``jit`` makes such modules."""

    __slots__ = ("_jitted_alone", "_hooks", *_OF_A_CALL)
    # What another jitted function reads of this one: the module and the hooks, not the cache.
    __environment__ = ("__wrapped__", *_OF_A_CALL)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Not what the module's own class may have made of it: the compiled code calls that."""
        if torch.compiler.is_dynamo_compiling():  # it looks for the hooks in __dict__, where those of the module are
            has_hooks = any(len(hooks) > 0 for hooks in self._hooks)
            return _call_with_hooks(self, args, kwargs) if has_hooks else self._jitted(*args, **kwargs)
        if is_symbolic():
            return handlers.symbolic.module(self, args, kwargs)
        return _call_as_python(self, args, kwargs)

    @property
    def _jitted(self) -> Any:
        """In a tuple: what has ``__get__``, as a function does, Dynamo (torch 2.11) takes for a descriptor."""
        return self._jitted_alone[0]

    @property
    def __wrapped__(self) -> Any:
        return self._jitted.__wrapped__

    @property
    def forward(self) -> Any:
        return self._jitted

    @forward.setter
    def forward(self, function: Any) -> None:
        self.__wrapped__.forward = function

    def __get__(self, instance: Any, owner: type | None = None) -> JittedModule:
        return self

    @property  # what torch does to the class of a module (a parametrization is a property there) is done to the module
    def __class__(self) -> Any:
        return type(self.__wrapped__)

    @__class__.setter
    def __class__(self, cls: type) -> None:
        self.__wrapped__.__class__ = cls

    def __getattr__(self, name: str) -> Any:
        if name == "_jitted" or name in JittedModule.__slots__:
            raise AttributeError(name)
        found = getattr(self.__wrapped__, name)
        # Of a class that the module has got since, as ``fully_shard`` gives it one: the state is that of this object.
        is_method = isinstance(found, MethodType) and found.__self__ is self.__wrapped__
        return MethodType(found.__func__, self) if is_method else found

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """The captured graph for these arguments, before compilation."""
        return self._jitted.lower(*args, **kwargs)

    def cache_info(self) -> Any:
        """``(hits, misses, maxsize, currsize)``; a miss is a capture."""
        return self._jitted.cache_info()

    def clear_cache(self) -> None:
        """Forget every trace."""
        self._jitted.clear_cache()

    def __repr__(self) -> str:
        return f"jit({self.__wrapped__!r})"

    def __reduce__(self) -> Any:
        return module_of, (self._jitted, {name: getattr(self, name) for name in _OF_A_CALL})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def __copy__(self) -> JittedModule:
        return module_of(self._jitted.around(copy.copy(self.__wrapped__)), self.__reduce__()[1][1])

    def __deepcopy__(self, memo: dict[int, Any]) -> JittedModule:
        return module_of(*copy.deepcopy(self.__reduce__()[1], memo))


@leaving
def _call_as_python(module: JittedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return nn.Module.__call__(module, *args, **kwargs)


@left_to_python
def _call_with_hooks(module: JittedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return nn.Module.__call__(module, *args, **kwargs)


def module_of(jitted: Any, of_calls: dict[str, Any] | None = None) -> JittedModule:
    """A jitted function whose function is a module, as a module."""
    module = jitted.__wrapped__
    view = object.__new__(_derived(JittedModule, type(module)))
    object.__setattr__(view, "__dict__", module.__dict__)
    for name, value in (of_calls or {**dict.fromkeys(_OF_A_CALL), **nn.Module().__dict__}).items():
        if name in _OF_A_CALL:
            object.__setattr__(view, name, value)
    object.__setattr__(view, "_jitted_alone", (jitted,))
    hooks = tuple(getattr(view, name) for name in _OF_A_CALL if isinstance(getattr(view, name), dict))
    object.__setattr__(view, "_hooks", hooks)
    return view


class _JittedInside(nn.Module):
    """A module that runs as Python around one that is compiled."""

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.lower(*args, **kwargs)  # type: ignore[operator, union-attr]

    def cache_info(self) -> Any:
        return self.module.cache_info()  # type: ignore[operator, union-attr]

    def clear_cache(self) -> None:
        self.module.clear_cache()  # type: ignore[operator, union-attr]


def jitted_inside(parallel: DistributedDataParallel, module: nn.Module) -> Any:
    """What ``DistributedDataParallel`` would be around the jitted module: it communicates, so it is in no graph."""
    view = object.__new__(_derived(_JittedInside, type(parallel)))
    modules = {**parallel._modules, "module": module}
    object.__setattr__(view, "__dict__", {**parallel.__dict__, "_modules": modules})
    return view


def _derived(mixin: Any, cls: type) -> Any:
    """The class with both bases, made once."""
    if issubclass(cls, mixin):
        return cls
    name = f"Jitted{cls.__name__}"
    known: Any
    for known in cls.__subclasses__():
        if known.__bases__ == (mixin, cls):
            return known
    return type(name, (mixin, cls), {"__module__": cls.__module__, "__slots__": ()})
