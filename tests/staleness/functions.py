"""Functions, what stands for one, and modules."""

from staleness.holder import Holder

__all__ = ["FUNCTIONS"]

FUNCTIONS = [
    Holder(
        "function",
        """
        def N():
            return N_g
        N_g = V
        """,
        ("H()", "(lambda g: g())(H)"),
        ("globals()['N_g'] = W",),
    ),
    Holder(
        "closure",
        """
        def N_m(v):
            def get():
                return v
            return get
        N = N_m(V)
        """,
        ("H()",),
        ("H.__closure__[0].cell_contents = W",),
    ),
    Holder(
        "closures",
        """
        def N_m(v):
            def outer():
                def inner():
                    return v
                return inner
            return outer
        N = N_m(V)
        """,
        ("H()()",),
        ("H.__closure__[0].cell_contents = W",),
    ),
    Holder(
        "default",
        """
        def N(v=V):
            return v
        """,
        ("H()",),
        ("H.__defaults__ = (W,)",),
    ),
    Holder(
        "keyword default",
        """
        def N(*, v=V):
            return v
        """,
        ("H()",),
        ("H.__kwdefaults__ = {'v': W}", "H.__kwdefaults__['v'] = W"),
    ),
    Holder(
        "function attribute",
        """
        def N():
            pass
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "code",
        """
        N_g = V
        def N():
            return N_g
        """,
        ("H()",),
        ("globals()['N_h'] = W; H.__code__ = (lambda: N_h).__code__",),
    ),
    Holder(
        "wrapped",
        """
        def N_f():
            return N_g
        N_g = V
        N = functools.wraps(N_f)(lambda: N_f())
        """,
        ("H()", "H.__wrapped__()"),
        ("globals()['N_g'] = W",),
    ),
    Holder(
        "partial",
        """
        N_l = [V]
        N = functools.partial(lambda l: l[0], N_l)
        """,
        ("H()", "H.args[0][0]"),
        ("N_l[0] = W",),
    ),
    Holder(
        "partial keyword",
        "N = functools.partial(lambda v: v, v=V)",
        ("H()", "H.keywords['v']"),
        ("H.keywords['v'] = W",),
    ),
    Holder(
        "method",
        """
        class N_C:
            def get(self):
                return self.a
        N_o = N_C()
        N_o.a = V
        N = N_o.get
        """,
        ("H()", "H.__self__.a"),
        ("N_o.a = W",),
    ),
    Holder(
        "static method",
        """
        class N:
            @staticmethod
            def get():
                return N.a
            a = V
        """,
        ("H.get()",),
        ("H.a = W", "H.get = staticmethod(lambda: W)"),
    ),
    Holder(
        "class method",
        """
        class N:
            @classmethod
            def get(cls):
                return cls.a
            a = V
        """,
        ("H.get()", "H().get()"),
        ("H.a = W",),
    ),
    Holder(
        "super",
        """
        class N_B:
            def get(self):
                return self.a
        class N_C(N_B):
            def get(self):
                return super().get()
        N = N_C()
        N.a = V
        """,
        ("H.get()",),
        ("H.a = W", "N_B.get = lambda self: W"),
    ),
    Holder(
        "constructor",
        """
        class N:
            def __init__(self):
                self.v = N_g
        N_g = V
        """,
        ("H().v",),
        ("globals()['N_g'] = W",),
    ),
    Holder(
        "factory",
        """
        N_l = [V]
        @dataclasses.dataclass
        class N:
            a: object = dataclasses.field(default_factory=lambda: N_l[0])
        """,
        ("H().a",),
        ("N_l[0] = W",),
    ),
    Holder(
        "module",
        """
        N = types.ModuleType('N')
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "vars(H)['a']"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "module getattr",
        """
        N = types.ModuleType('N')
        N_d = {'a': V}
        N.__getattr__ = lambda name: N_d[name]
        """,
        ("H.a",),
        ("N_d['a'] = W", "H.a = W"),
    ),
    Holder(
        "nn.Module",
        """
        N = nn.Identity()
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "user's nn.Module",
        """
        class N_C(nn.Module):
            def forward(self, x):
                return self.a
        N = N_C()
        N.a = V
        """,
        ("H.a", "H(0)", "H.forward(0)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "ModuleList",
        """
        N = nn.ModuleList([nn.Identity()])
        N[0].a = V
        """,
        ("H[0].a", "[m.a for m in H][0]", "list(H.children())[0].a"),
        ("H[0].a = W",),
    ),
    Holder(
        "singledispatch",
        """
        @functools.singledispatch
        def N(x):
            return N_g
        N_g = V
        """,
        ("H(1.0)",),
        ("globals()['N_g'] = W", "N_w = W; H.register(float)(lambda x: N_w)"),
    ),
]
