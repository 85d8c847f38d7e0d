"""Containers, references and values with attributes."""

from staleness.holder import Holder

__all__ = ["CONTAINERS"]

CONTAINERS = [
    Holder(
        "list",
        "N = [V]",
        ("H[0]", "H[-1]", "next(iter(H))", "[v for v in H][0]", "H[INDEX]", "list(reversed(H))[0]"),
        ("H[0] = W", "H[-1] = W", "H.clear(); H.append(W)", "H.pop(); H.append(W)", "H[:] = [W]", "H.insert(0, W)"),
    ),
    Holder(
        "long list",
        "N = [0.5] * 5000 + [V]",
        ("H[-1]",),
        ("H[-1] = W", "H.append(W)"),
    ),
    Holder(
        "tuple",
        "N = (V,)",
        ("H[0]", "H[-1]", "next(iter(H))", "[v for v in H][0]", "H[INDEX]", "list(reversed(H))[0]"),
        (),
    ),
    Holder(
        "deque",
        "N = collections.deque([V])",
        ("H[0]", "H[-1]", "next(iter(H))", "[v for v in H][0]", "H[INDEX]", "list(reversed(H))[0]"),
        ("H[0] = W", "H[-1] = W", "H.clear(); H.append(W)", "H.pop(); H.append(W)"),
    ),
    Holder(
        "UserList",
        "N = collections.UserList([V])",
        ("H[0]", "H.data[0]"),
        ("H[0] = W", "H.data[0] = W"),
    ),
    Holder(
        "dict",
        "N = {'k': V}",
        (
            "H['k']",
            "H.get('k')",
            "list(H.values())[0]",
            "[v for _, v in H.items()][0]",
            "operator.itemgetter('k')(H)",
            "H.setdefault('k')",
        ),
        ("H['k'] = W", "H.update({'k': W})", "H.pop('k'); H['k'] = W", "H.clear(); H['k'] = W", "H.update( {'k': W})"),
    ),
    Holder(
        "OrderedDict",
        "N = collections.OrderedDict(k=V)",
        ("H['k']", "H.get('k')", "list(H.values())[0]", "[v for _, v in H.items()][0]", "operator.itemgetter('k')(H)"),
        ("H['k'] = W", "H.update({'k': W})", "H.pop('k'); H['k'] = W", "H.clear(); H['k'] = W"),
    ),
    Holder(
        "defaultdict",
        "N = collections.defaultdict(int, k=V)",
        ("H['k']", "H.get('k')", "list(H.values())[0]", "[v for _, v in H.items()][0]", "operator.itemgetter('k')(H)"),
        ("H['k'] = W", "H.update({'k': W})", "H.pop('k'); H['k'] = W", "H.clear(); H['k'] = W"),
    ),
    Holder(
        "UserDict",
        "N = collections.UserDict(k=V)",
        ("H['k']", "H.data['k']"),
        ("H['k'] = W",),
    ),
    Holder(
        "ChainMap",
        "N = collections.ChainMap({}, {'k': V})",
        ("H['k']",),
        ("H['k'] = W", "H.maps[1]['k'] = W"),
    ),
    Holder(
        "proxy",
        """
        N_d = {'k': V}
        N = types.MappingProxyType(N_d)
        """,
        ("H['k']",),
        ("N_d['k'] = W",),
    ),
    Holder(
        "namedtuple",
        "N = collections.namedtuple('P', 'a')(V)",
        ("H.a", "H[0]"),
        (),
    ),
    Holder(
        "enum member",
        """
        class N_E(enum.Enum):
            A = 1
        N = N_E.A
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "enum class",
        """
        class N(enum.Enum):
            A = 1
        N.A.a = V
        """,
        ("H.A.a", "H['A'].a", "list(H)[0].a"),
        ("H.A.a = W",),
    ),
    Holder(
        "enum value",
        """
        class N(enum.Enum):
            A = [V]
        """,
        ("H.A.value[0]",),
        ("H.A.value[0] = W",),
    ),
    Holder(
        "int",
        """
        class N_I(int):
            pass
        N = N_I(3)
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "str",
        """
        class N_S(str):
            pass
        N = N_S('s')
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "list subclass",
        """
        class N_L(list):
            pass
        N = N_L()
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "dict subclass",
        """
        class N_L(dict):
            def __missing__(self, key):
                return self.a
        N = N_L()
        N.a = V
        """,
        ("H['k']",),
        ("H.a = W", "H['k'] = W"),
    ),
    Holder(
        "weakref",
        """
        class N_C:
            pass
        N_k = N_C()
        N_k.a = V
        N = weakref.ref(N_k)
        """,
        ("H().a", "getattr(H(), 'a')"),
        ("N_k.a = W", "H().a = W"),
    ),
    Holder(
        "weak proxy",
        """
        class N_C:
            pass
        N_k = N_C()
        N_k.a = V
        N = weakref.proxy(N_k)
        """,
        ("H.a",),
        ("N_k.a = W", "H.a = W"),
    ),
    Holder(
        "WeakKeyDictionary",
        """
        class N_C:
            pass
        N_k = N_C()
        N = weakref.WeakKeyDictionary()
        N[N_k] = V
        """,
        ("H[N_k]", "list(H.values())[0]"),
        ("H[N_k] = W",),
    ),
    Holder(
        "WeakValueDictionary",
        """
        class N_C:
            pass
        N_k = N_C()
        N_k.a = V
        N = weakref.WeakValueDictionary(k=N_k)
        """,
        ("H['k'].a",),
        ("N_k.a = W",),
    ),
    Holder(
        "WeakSet",
        """
        class N_C:
            pass
        N_k = N_C()
        N_k.a = V
        N = weakref.WeakSet([N_k])
        """,
        ("next(iter(H)).a",),
        ("N_k.a = W",),
    ),
    Holder(
        "ContextVar",
        "N = contextvars.ContextVar('N', default=V)",
        ("H.get()",),
        ("H.set(W)",),
    ),
    Holder(
        "ContextVar unset",
        """
        N = contextvars.ContextVar('N')
        N_d = V
        """,
        ("H.get(N_d)",),
        ("H.set(W)", "globals()['N_d'] = W"),
    ),
    Holder(
        "thread local",
        """
        N = threading.local()
        N.a = V
        """,
        ("H.a", "getattr(H, 'a')", "operator.attrgetter('a')(H)", "get_attribute(H, NAME)", "getattr(H, 'a', None)"),
        ("H.a = W", "setattr(H, 'a', W)"),
    ),
    Holder(
        "object array",
        """
        N = np.empty(2, object)
        N[1] = V
        """,
        ("H[1]", "H[-1]", "H.tolist()[1]"),
        ("H[1] = W",),
    ),
    Holder(
        "cell",
        "N = types.CellType(V)",
        ("H.cell_contents",),
        ("H.cell_contents = W",),
    ),
]
