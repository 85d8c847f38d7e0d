"""Changes of what a jitted function reads, of which no name in its code says anything."""

from __future__ import annotations

import textwrap

import pytest
import torch
import torch._dynamo.config
from staleness.checking import failure_of
from staleness.generator import HEADER, Program

import functorch_hops as fh

# How the environment is made, what the function multiplies by, the change, and how to undo what outlives it.
PROGRAMS = {
    # Special methods, which a class may get later, and not only as functions.
    "__bool__": """
        class A:
            pass
        a = A()
        ---
        2 if a else 3
        ---
        A.__bool__ = lambda self: False
    """,
    "__radd__": """
        class A:
            pass
        class B(A):
            def __radd__(s, o):
                return 2
        b = B()
        class I(int):
            pass
        i = I()
        ---
        i + b
        ---
        I.__add__ = lambda s, o: 3
    """,
    "__eq__": """
        class A:
            pass
        a, b = (A(), A())
        ---
        2 if a == b else 3
        ---
        A.__eq__ = lambda s, o: True
    """,
    "callable": """
        class A:
            pass
        a = A()
        ---
        2 if callable(a) else 3
        ---
        A.__call__ = lambda s: 1
    """,
    "protocol": """
        import typing
        @typing.runtime_checkable
        class P(typing.Protocol):
            def m(self):
                ...
        class A:
            pass
        a = A()
        ---
        2 if isinstance(a, P) else 3
        ---
        a.m = len
    """,
    "partial method": """
        class A:
            def go(s, k):
                return k * s.v
            __call__ = functools.partialmethod(go, 2.0)
        a = A()
        a.v = 1.0
        ---
        a()
        ---
        a.v = 3.0
    """,
    "call of a module": """
        class M(nn.Module):
            def forward(self, x):
                return x * 2
        m = M()
        ---
        m(torch.ones(()))
        ---
        M.__call__ = lambda self, x: x * 3
    """,
    "call of all modules": """
        m = nn.Identity()
        call = nn.Module.__call__
        ---
        m(torch.ones(()))
        ---
        nn.Module.__call__ = lambda self, x: x * 3
        ---
        from torch import nn
        nn.Module.__call__ = nn.Module._wrapped_call_impl
    """,
    "subclasses": """
        class A:
            pass
        class B(A):
            v = 2.0
        ---
        sum((c.v for c in A.__subclasses__()))
        ---
        global C
        C = type('C', (A,), {'v': 3.0})
    """,
    "class of slots": """
        class A:
            __slots__ = ()
            def v(self):
                return 2
        class B:
            __slots__ = ()
            def v(self):
                return 3
        a = A()
        ---
        a.v()
        ---
        a.__class__ = B
    """,
    # Attributes that the standard library reads, or keeps.
    "event": """
        e = threading.Event()
        ---
        2 if e.is_set() else 3
        ---
        e.set()
    """,
    "UserDict": """
        class D(collections.UserDict):
            pass
        d = D(a=2.0)
        ---
        d['a']
        ---
        d['a'] = 3.0
    """,
    "partial": """
        g = functools.partial(len)
        g.v = 2
        ---
        g.v
        ---
        g.v = 3
    """,
    "__wrapped__": """
        import inspect
        def a():
            return 2
        def b():
            return 3
        def g():
            pass
        g.__wrapped__ = a
        ---
        inspect.unwrap(g)()
        ---
        g.__wrapped__ = b
    """,
    "method by weakref": """
        class A:
            def m(self):
                return self.v
        a = A()
        a.v = 2
        w = weakref.WeakMethod(a.m)
        ---
        w()()
        ---
        a.v = 3
    """,
    "view of a dict": """
        d = {'a': 2}
        v = d.values()
        ---
        sum(v)
        ---
        d['a'] = 3
    """,
    "length of a deque": """
        d = [collections.deque([1], maxlen=2)]
        ---
        d[0].maxlen
        ---
        d[0] = collections.deque([1], maxlen=3)
    """,
    "list[A]": """
        class A:
            v = 2
        a = list[A]
        ---
        a.__args__[0].v
        ---
        A.v = 3
    """,
    "A | int": """
        class A:
            v = 2
        a = A | int
        ---
        a.__args__[0].v
        ---
        A.v = 3
    """,
    # Arrays and tensors with attributes.
    "mask": """
        a = np.ma.array([2.0, 3.0], mask=[0, 0])
        ---
        float(a.sum())
        ---
        a.mask = [1, 0]
    """,
    "array's attribute": """
        class A(np.ndarray):
            pass
        a = np.ones(1).view(A)
        a.k = 2
        ---
        a.k
        ---
        a.k = 3
    """,
    "attribute of a tensor": """
        t = torch.ones(())
        ---
        3 if hasattr(t, 'tag') else t
        ---
        t.tag = 1
    """,
    "another tensor": """
        m = nn.Linear(1, 1)
        m.weight.tag = 2
        ---
        getattr(m.weight, 'tag', 1)
        ---
        m.weight = nn.Parameter(torch.ones(1, 1))
    """,
    # Namespaces.
    "name in builtins": """
        import builtins
        def g():
            try:
                return named_later
            except NameError:
                return 2
        ---
        g()
        ---
        builtins.named_later = 3
        ---
        import builtins
        vars(builtins).pop('named_later', None)
    """,
    "import": """
        def g():
            try:
                import loaded_later
                return 2
            except ImportError:
                return 3
        ---
        g()
        ---
        sys.modules['loaded_later'] = np
        ---
        import sys
        sys.modules.pop('loaded_later', None)
    """,
    "sys.modules": """
        ---
        2 if 'loaded_later' in sys.modules else 3
        ---
        sys.modules['loaded_later'] = np
        ---
        import sys
        sys.modules.pop('loaded_later', None)
    """,
    "module's __dict__": """
        m = types.ModuleType('m')
        m.k = 2
        ---
        m.__dict__['k']
        ---
        m.k = 3
    """,
    "function's __globals__": """
        k = 2
        def g():
            pass
        ---
        g.__globals__['k']
        ---
        global k
        k = 3
    """,
    "class of a module": """
        class M(types.ModuleType):
            @property
            def k(self):
                return j
        j = 2
        m = M('m')
        ---
        m.k
        ---
        global j
        j = 3
    """,
    # Settings.
    "torch.backends": """
        ---
        2 if torch.backends.cudnn.benchmark else 3
        ---
        torch.backends.cudnn.benchmark = True
        ---
        import torch
        torch.backends.cudnn.benchmark = False
    """,
    "object of a module": """
        import logging
        ---
        logging.root.level
        ---
        logging.root.setLevel(7)
        ---
        import logging
        logging.root.setLevel(30)
    """,
    "member of an object of a module": """
        import decimal
        ---
        decimal.DefaultContext.prec
        ---
        decimal.DefaultContext.prec = 7
        ---
        import decimal
        decimal.DefaultContext.prec = 28
    """,
    "object of a module of torch": """
        ---
        torch._tensor_str.PRINT_OPTS.precision
        ---
        torch.set_printoptions(precision=7)
        ---
        import torch
        torch.set_printoptions(precision=4)
    """,
    "configuration of a compiler": """
        import torch._functorch.config
        ---
        2 if torch._functorch.config.functionalize_rng_ops else 3
        ---
        torch._functorch.config.functionalize_rng_ops = True
        ---
        import torch
        torch._functorch.config.functionalize_rng_ops = False
    """,
    "decimal module": """
        import decimal
        ---
        float(decimal.Decimal(1) / 3)
        ---
        decimal.getcontext().prec = 3
        ---
        import decimal
        decimal.getcontext().prec = 28
    """,
    "Decimal": """
        import decimal
        from decimal import Decimal
        ---
        float(Decimal(1) / 3)
        ---
        decimal.getcontext().prec = 3
        ---
        import decimal
        decimal.getcontext().prec = 28
    """,
    "a decimal number": """
        import decimal
        a = [decimal.Decimal(1)]
        ---
        float(a[0] / 3)
        ---
        decimal.getcontext().prec = 3
        ---
        import decimal
        decimal.getcontext().prec = 28
    """,
    "state of a generator": """
        g = np.random.default_rng(0)
        ---
        g.bit_generator.state['state']['state'] % 97 + 1
        ---
        g.random()
    """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_change_is_noticed(name: str) -> None:
    made, read, change, *undo = textwrap.dedent(PROGRAMS[name]).split("---\n")
    changed = textwrap.indent(change, "    ")
    text = f"{HEADER}{made}\ndef f(x):\n    return x * ({read.strip()})\ndef change():\n{changed}"
    try:
        assert failure_of(Program(0, name, text, may_warn=False)) is None
    finally:
        exec("".join(undo))


def _in_a_configuration(x):
    with torch._dynamo.config.patch("verbose", False):
        return 2 * x


COMPUTED_ANEW = {
    "a view of a tensor": lambda x: x @ torch._table_of_test.T,
    "its data": lambda x: x @ torch._table_of_test.data,
    "a method of a configuration": _in_a_configuration,
}


@pytest.mark.parametrize("name", COMPUTED_ANEW)
def test_another_object_for_each_that_asks_is_no_change(name: str, monkeypatch) -> None:
    monkeypatch.setattr(torch, "_table_of_test", torch.eye(2), raising=False)
    run = fh.jit(COMPUTED_ANEW[name], backend="eager")
    for _ in range(3):
        run(torch.ones(2))
    assert run.cache_info().misses == 1
