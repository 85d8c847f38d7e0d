"""Whole graphs that an earlier process compiled.

NOTE [Kept libraries] The library of a whole graph (NOTE [Whole graphs]) stays on disk beside Inductor's caches, and a
process that captures the same graph loads it: Inductor generates no code and is not imported for that. A stale library
is a wrong result, so its name is a hash of all that it was made from: the graph, every file of this library, torch, the
settings, the processor and the compiler. What has no description by content in a graph - a Python object, a large
constant, an operator of the user's - leaves it without a name, and it is compiled in each process.

A library is named by its content, which is compared before it is loaded, and a small record leads to it. Both appear
under their names at once and complete, so processes may write them at the same time, and what is damaged is made anew.
Where Inductor is told to keep no caches (``fx_graph_cache``, ``force_disable_caches``), this keeps nothing either.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ... import _torch
from ...ir import nodes
from ...ir.meta import TensorMeta
from ...ir.subgraph import Params, Subgraph
from . import watching as _watching  # noqa: F401 - kernels look for it
from .libraries import Kernel
from .tape_values import empty_tape, free_tape, owner_of, tapes_made

__all__ = ["Library", "found", "is_noted", "keep", "name_of", "note"]

_imported_at = time.time()


class Library(NamedTuple):
    """What was loaded: a function, the bytes of its workspace, those of its source, and whether its last operand is the
    seed of a call (NOTE [Numbers by count]).
    """

    kernel: Kernel
    workspace: int
    source_bytes: int
    is_seeded: bool

    def run_of(self, body: Subgraph) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """The graph as the function computes it, of contiguous operands."""
        kernel, workspace, empty = self.kernel, self.workspace, _torch.empty_strided_cpu
        layouts = [(meta.shape, _dense_strides(meta.shape), meta.dtype) for meta in body.outputs]

        def run(operands: Sequence[Tensor]) -> list[Tensor]:
            outputs = [empty(*layout) for layout in layouts]
            kernel(*operands, *outputs, workspace)
            return outputs

        tapes = tapes_made(body)

        def run_with_tapes(operands: Sequence[Tensor]) -> list[Tensor]:
            outputs = [empty_tape() if i in tapes else empty(*layout) for i, layout in enumerate(layouts)]
            try:
                kernel(*operands, *outputs, workspace)
            except BaseException:
                for i in tapes:
                    free_tape(outputs[i])
                raise
            return [owner_of(out) if i in tapes else out for i, out in enumerate(outputs)]

        made = run_with_tapes if tapes else run
        return (lambda operands: made([*operands, empty((), (), torch.int64).random_()])) if self.is_seeded else made


def _dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class _NotByContent(Exception):
    """Something has no description that is the same in every process."""


def name_of(body: Subgraph, options: Mapping[str, Any]) -> str | None:
    """The name of the library of ``body``, None if it has none or nothing is to be kept."""
    if body.shape_env is not None or not _torch.inductor_keeps(options):
        return None
    try:
        made_of = _digest(body), _content(options), _settings(), _surroundings(), _compiler()
    except (_NotByContent, OSError):
        return None
    return _hash(repr(made_of).encode())


def found(name: str) -> Library | None:
    """The library of this name, if there is one and it is whole."""
    try:
        check, _, text = (_folder() / f"{name}.json").read_text().partition("\n")
        if check != _hash(text.encode()):
            return None
        record = json.loads(text)
        library = _folder() / f"{record['library']}.so"
        if _hash(library.read_bytes()) != record["library"]:
            return None
        return Library(_loaded(library), record["workspace"], record["source_bytes"], record["is_seeded"])
    except (OSError, UnicodeDecodeError, ImportError):
        return None


def keep(name: str, made: Library) -> None:
    """Keep a library that Inductor's loader has built, under this name."""
    file = getattr(getattr(made.kernel, "__self__", None), "__file__", None)
    if file is None:
        return
    with contextlib.suppress(OSError):  # a folder that can't be written to
        library = Path(file).read_bytes()
        content = _hash(library)
        _write(f"{content}.so", library)
        known = {"workspace": made.workspace, "source_bytes": made.source_bytes, "is_seeded": made.is_seeded}
        text = json.dumps({"library": content, **known})
        _write(f"{name}.json", f"{_hash(text.encode())}\n{text}".encode())


def is_noted(library: bytes) -> bool:
    """Whether it was noted before that this library loads."""
    name = _note_name(library)
    return name is not None and (_folder() / name).is_file()


def note(library: bytes) -> None:
    """Note that this library loads."""
    name = _note_name(library)
    if name is not None:
        with contextlib.suppress(OSError):
            _write(name, b"")


def _note_name(library: bytes) -> str | None:
    if not _torch.inductor_keeps({}):
        return None
    try:
        return f"{_hash(repr((_hash(library), _surroundings())).encode())}.loads"
    except (_NotByContent, OSError):
        return None


def _loaded(library: Path) -> Kernel:
    """The function of a library that Inductor's loader built, as that loads it."""
    address = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(address)
    spec = importlib.util.spec_from_file_location(f"functorch_hops_{library.stem}.kernel", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel: Kernel = module.kernel_0
    return kernel


def _write(name: str, content: bytes) -> None:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, folder / name)
    except BaseException:
        os.unlink(temporary)
        raise


def _folder() -> Path:
    """Beside Inductor's caches."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if given is None:
        try:
            user = getpass.getuser()
        except (KeyError, ImportError, OSError):
            user = f"uid_{os.getuid()}"
        user = re.sub(r'[\\/:*?"<>|]', "_", user)
        given = os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")
    return Path(given).absolute() / "functorch_hops"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# what a graph is, by content


def _digest(body: Subgraph) -> str:
    return body.derive("digest", lambda: _hash(repr(_graph(body)).encode()))


def _graph(body: Subgraph) -> Any:
    if body.shape_env is not None:
        raise _NotByContent
    index: dict[fx.Node, int] = {}
    rows = []
    for node in body.module.graph.nodes:
        index[node] = len(index)
        target: Any = None
        if node.op == "get_attr":
            target = _attribute(getattr(body.module, str(node.target)))
        elif node.op == "call_function":
            target = _function(node.target)
        elif node.op not in ("placeholder", "output"):
            raise _NotByContent
        rows.append((node.op, target, _content(node.args, index), _content(node.kwargs, index), _dtypes(node)))
    return rows, _content(body.inputs), _content(body.outputs)


def _attribute(value: Any) -> Any:
    if isinstance(value, Params):
        return _params(value)
    if type(value) is Tensor and value.device.type == "cpu" and value.numel() <= _SMALL:
        return str(value.dtype), tuple(value.shape), repr(value.tolist())
    raise _NotByContent


_SMALL = 64


def _params(params: Params) -> Any:
    kind = type(params)
    said = params.scope.names, params.scope.loop_kernels
    content = _content(params.attributes), _content(said)
    return kind.__module__, kind.__qualname__, *content, [_digest(body) for body in params.bodies]


def _function(target: Any) -> str:
    """An operator of torch's or of this library. Those of the user may be others in the next process."""
    if isinstance(target, _torch.OpOverload) and target.namespace in ("aten", "prims", "functorch_hops"):
        return str(target)
    if isinstance(target, FunctionType | BuiltinFunctionType) and target.__module__ in _OF_FUNCTIONS:
        return f"{target.__module__}.{target.__qualname__}"
    if isinstance(target, torch._ops.HigherOrderOperator) and type(target).__module__.startswith("functorch_hops."):
        return f"{type(target).__qualname__} {target.name()}"
    raise _NotByContent


_OF_FUNCTIONS = "_operator", nodes.__name__


def _dtypes(node: fx.Node) -> list[str]:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return [str(getattr(x, "dtype", None)) for x in values]


_PLAIN = (bool, int, str, float, complex, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _content(value: Any, index: Mapping[fx.Node, int] | None = None) -> Any:
    """Of what ``repr`` is the same in every process, and differs where the values do."""
    if value is None or type(value) in _PLAIN:
        return type(value).__name__, repr(value)
    if isinstance(value, fx.Node) and index is not None:
        return "%", index[value]
    if isinstance(value, Params):
        return _params(value)
    if isinstance(value, slice):
        return "slice", *(_content(part, index) for part in (value.start, value.stop, value.step))
    if isinstance(value, tuple | list) and (type(value) is TensorMeta or type(value).__module__ in _SEQUENCES):
        return type(value).__name__, *(_content(part, index) for part in value)
    if isinstance(value, Mapping):
        return "map", *sorted((repr(name), _content(part, index)) for name, part in value.items())
    raise _NotByContent


_SEQUENCES = "builtins", "torch", "torch.fx.immutable_collections", "torch.fx.node"


# ---------------------------------------------------------------------------------------------------------------------
# what else a library depends on


def _settings() -> tuple[Any, ...]:
    return _torch.compiler_settings("inductor"), torch.get_default_dtype(), sorted(_environment().items())


def _environment() -> Mapping[str, str]:
    environment = _torch.inductor_environment()
    if environment is None:
        raise _NotByContent
    return environment


@functools.cache
def _surroundings() -> tuple[Any, ...]:
    """Of the process: this library, torch, Python, the processor."""
    python = sys.implementation.cache_tag, sys.version
    return _own_files(), torch.__version__, torch.version.git_version, python, _processor()


def _own_files() -> str:
    """Any change of this library may change what it makes of a graph."""
    root = Path(__file__).parents[2]
    files = (Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names)
    sources = sorted(path for path in files if path.suffix in (".py", ".h"))
    # Installers keep the time of modification of what they put in place.
    if not sources or max(max(state.st_mtime, state.st_ctime) for state in map(os.stat, sources)) > _imported_at:
        raise _NotByContent  # they are in an archive, or others than those that were imported
    return _hash(repr([(os.path.relpath(path, root), _hash(path.read_bytes())) for path in sources]).encode())


def _processor() -> tuple[str, ...]:
    """Code is compiled for the processor at hand."""
    with open("/proc/cpuinfo") as file:
        lines = file.read(1 << 14).partition("\n\n")[0].splitlines()
    return torch.backends.cpu.get_cpu_capability(), *(line for line in lines if line.startswith(_KIND))


_KIND = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU implementer", "CPU part")


def _compiler() -> Any:
    """The program that would compile, and whether it was replaced."""
    path = shutil.which(_environment().get("CXX", "g++"))
    if path is None:
        return None
    state = os.stat(path)
    return os.path.realpath(path), state.st_size, state.st_mtime_ns
