"""Objects and classes, and the ways in which they compute attributes."""

from staleness.holder import Holder

__all__ = ["OBJECTS"]

OBJECTS = [
    Holder(
        "namespace",
        "N = types.SimpleNamespace(a=V)",
        (
            "H.a",
            "getattr(H, 'a')",
            "operator.attrgetter('a')(H)",
            "get_attribute(H, NAME)",
            "getattr(H, 'a', None)",
            "vars(H)['a']",
        ),
        ("H.a = W", "setattr(H, 'a', W)", "vars(H)['a'] = W"),
    ),
    Holder(
        "object",
        """
        class N_C:
            pass
        N = N_C()
        N.a = V
        """,
        (
            "H.a",
            "getattr(H, 'a')",
            "operator.attrgetter('a')(H)",
            "get_attribute(H, NAME)",
            "getattr(H, 'a', None)",
            "H.__dict__['a']",
        ),
        ("H.a = W", "setattr(H, 'a', W)", "H.__dict__ = {'a': W}"),
    ),
    Holder(
        "slots",
        """
        class N_C:
            __slots__ = ('a',)
        N = N_C()
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)", "del H.a; H.a = W"),
    ),
    Holder(
        "dataclass",
        """
        @dataclasses.dataclass
        class N_C:
            a: object
        N = N_C(V)
        """,
        (
            "H.a",
            "getattr(H, 'a')",
            "operator.attrgetter('a')(H)",
            "get_attribute(H, NAME)",
            "getattr(H, 'a', None)",
            "vars(H)['a']",
        ),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "frozen",
        """
        @dataclasses.dataclass(frozen=True)
        class N_C:
            a: object
        N = N_C(V)
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("object.__setattr__(H, 'a', W)",),
    ),
    Holder(
        "class",
        """
        class N:
            a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "base class",
        """
        class N_B:
            a = V
        class N(N_B):
            pass
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)", "N_B.a = W"),
    ),
    Holder(
        "other base",
        """
        class N_B:
            a = V
        class N_A:
            pass
        class N(N_B):
            pass
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("N_A.a = W; H.__bases__ = (N_A,)",),
    ),
    Holder(
        "instance",
        """
        class N_C:
            a = V
        N = N_C()
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)", "N_C.a = W", "type(H).a = W"),
    ),
    Holder(
        "other class",
        """
        class N_C:
            a = V
        class N_D:
            pass
        N = N_C()
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("N_D.a = W; H.__class__ = N_D",),
    ),
    Holder(
        "metaclass",
        """
        class N_M(type):
            a = V
        class N(metaclass=N_M):
            pass
        """,
        ("H.a", "getattr(H, 'a')"),
        ("N_M.a = W", "H.a = W"),
    ),
    Holder(
        "type()",
        """
        class N_M(type):
            a = V
        class N_C(metaclass=N_M):
            pass
        N = N_C()
        """,
        ("type(H).a", "H.__class__.a"),
        ("N_M.a = W",),
    ),
    Holder(
        "metaclass getattr",
        """
        N_d = {'a': V}
        class N_M(type):
            def __getattr__(cls, name):
                return N_d[name]
        class N(metaclass=N_M):
            pass
        """,
        ("H.a",),
        ("N_d['a'] = W", "H.a = W"),
    ),
    Holder(
        "getattr",
        """
        class N_C:
            def __getattr__(self, name):
                return self.__dict__['d'][name]
        N = N_C()
        N.d = {'a': V}
        """,
        ("H.a",),
        ("H.d['a'] = W", "H.a = W"),
    ),
    Holder(
        "getattribute",
        """
        class N_C:
            def __getattribute__(self, name):
                return object.__getattribute__(self, '_' + name)
        N = N_C()
        N._a = V
        """,
        ("H.a",),
        ("H._a = W",),
    ),
    Holder(
        "property",
        """
        class N_C:
            @property
            def a(self):
                return self._a
        N = N_C()
        N._a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H._a = W", "N_C.a = property(lambda self: W)"),
    ),
    Holder(
        "descriptor",
        """
        class N_D:
            def __get__(self, owner, cls):
                return self.v
        class N_C:
            a = N_D()
        N_C.__dict__['a'].v = V
        N = N_C()
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("N_C.__dict__['a'].v = W", "N_D.__get__ = lambda self, owner, cls: W"),
    ),
    Holder(
        "getitem",
        """
        class N_C:
            def __getitem__(self, i):
                return self.a
        N = N_C()
        N.a = V
        """,
        ("H[0]",),
        ("H.a = W", "N_C.__getitem__ = lambda self, i: W"),
    ),
    Holder(
        "iter",
        """
        class N_C:
            def __iter__(self):
                yield self.a
        N = N_C()
        N.a = V
        """,
        ("next(iter(H))", "[*H][0]", "[v for v in H][0]"),
        ("H.a = W",),
    ),
    Holder(
        "call",
        """
        class N_C:
            def __call__(self):
                return self.a
        N = N_C()
        N.a = V
        """,
        ("H()", "(lambda g: g())(H)"),
        ("H.a = W", "N_C.__call__ = lambda self: W"),
    ),
]
