"""Those that hold a number, or of which one is read."""

from staleness.holder import Holder

__all__ = ["LEAVES"]

LEAVES = [
    Holder(
        "array",
        "N = array.array('d', [V])",
        ("H[0]", "H.tolist()[0]", "sum(H)"),
        ("H[0] = W", "H.append(W)"),
    ),
    Holder(
        "ndarray",
        "N = np.array([V, 1.0])",
        ("float(H[0])", "float(H.sum())", "H.tolist()[0]"),
        ("H[0] = W", "H.fill(W)"),
    ),
    Holder(
        "large ndarray",
        """
        N = np.ones(2**18)
        N[7] = V
        """,
        ("float(H[7])", "float(H.max())"),
        ("H[7] = W",),
    ),
    Holder(
        "strided ndarray",
        "N = np.full((4, 4), V)[::2, 1::2]",
        ("float(H[1, 1])",),
        ("H[1, 1] = W", "H.base[2, 3] = W"),
    ),
    Holder(
        "ndarray as tensor",
        "N = np.full(2, V)",
        ("torch.as_tensor(H)", "torch.tensor(H)"),
        ("H[:] = W",),
    ),
    Holder(
        "bytearray",
        "N = bytearray([int(V)])",
        ("H[0]",),
        ("H[0] = int(W)",),
    ),
    Holder(
        "memoryview",
        """
        N_b = bytearray([int(V)])
        N = memoryview(N_b)
        """,
        ("H[0]",),
        ("H[0] = int(W)", "N_b[0] = int(W)"),
    ),
    Holder(
        "ctypes",
        "N = ctypes.c_double(V)",
        ("H.value",),
        ("H.value = W",),
    ),
    Holder(
        "ctypes array",
        "N = (ctypes.c_double * 2)(V)",
        ("H[0]",),
        ("H[0] = W",),
    ),
    Holder(
        "structure",
        """
        class N_S(ctypes.Structure):
            _fields_ = [('a', ctypes.c_double)]
        N = N_S(V)
        """,
        ("H.a",),
        ("H.a = W",),
    ),
    Holder(
        "set",
        "N = {V}",
        ("max(H)", "(2 if W in H else 3)", "len(H)"),
        ("H.add(W)", "H.clear(); H.add(W)"),
    ),
    Holder(
        "environ",
        """
        os.environ['FH_KEY'] = str(V)
        N = os.environ
        """,
        (
            "float(H['FH_KEY'])",
            "float(H.get('FH_KEY'))",
            "float(os.getenv('FH_KEY'))",
            "float(os.environ['FH_' + 'KEY'])",
        ),
        ("H['FH_KEY'] = str(W)", "os.putenv; os.environ.update(FH_KEY=str(W))"),
    ),
    Holder(
        "tensor",
        "N = torch.tensor(V)",
        ("H", "(H + 0)"),
        ("H.fill_(W)", "H.data = torch.tensor(W)"),
    ),
    Holder(
        "size of a tensor",
        "N = [torch.ones(int(V))]",
        ("H[0].shape[0]", "len(H[0])", "H[0].numel()"),
        ("H[0] = torch.ones(int(W))", "H[0].resize_(int(W))"),
    ),
    Holder(
        "dtype of a tensor",
        "N = [torch.tensor(V)]",
        ("(2 if H[0].dtype == torch.float32 else 3)",),
        ("H[0] = torch.tensor(W, dtype=torch.float64)",),
    ),
    Holder(
        "parameter",
        """
        N = nn.Linear(1, 1, bias=False)
        nn.init.constant_(N.weight, V)
        """,
        ("H.weight[0]", "next(H.parameters())[0]", "H.state_dict()['weight'][0]"),
        ("nn.init.constant_(H.weight, W)", "H.weight = nn.Parameter(torch.tensor([[W]]))"),
    ),
    Holder(
        "ParameterList",
        "N = nn.ParameterList([torch.tensor(V)])",
        ("H[0]", "[p for p in H][0]"),
        ("H[0] = torch.tensor(W)", "H[0].data.fill_(W)"),
    ),
    Holder(
        "instance check",
        """
        class N(abc.ABC):
            pass
        class N_C:
            pass
        N_o = N_C()
        """,
        ("(2 if isinstance(N_o, H) else 3)", "(2 if issubclass(N_C, H) else 3)"),
        ("H.register(N_C)",),
    ),
    Holder(
        "repr",
        """
        class N_C:
            def __repr__(self):
                return str(self.a)
        N = N_C()
        N.a = V
        """,
        ("float(repr(H))", "float('{}'.format(H))", "float('%s' % H)", "float(str(H))", "float(format(H))"),
        ("H.a = W",),
    ),
    Holder(
        "conversion",
        """
        class N_C:
            def __float__(self):
                return self.a
            def __bool__(self):
                return self.a > 2
            def __len__(self):
                return int(self.a)
        N = N_C()
        N.a = V
        """,
        ("float(H)", "(2 if H else 3)", "len(H)"),
        ("H.a = W",),
    ),
    Holder(
        "operator",
        """
        class N_C:
            def __rmul__(self, x):
                return x * self.a
            def __gt__(self, x):
                return self.a > x
        N = N_C()
        N.a = V
        """,
        ("(1.0 * H)", "(2 if H > 2 else 3)"),
        ("H.a = W",),
    ),
    Holder(
        "patched",
        """
        N = math
        N_s = math.sqrt
        """,
        ("math.sqrt(4.0)", "H.sqrt(4.0)"),
        ("math.sqrt = lambda v: W",),
    ),
    Holder(
        "patched torch",
        "N = torch",
        ("torch.ones(2)", "H.ones(2)"),
        ("torch.ones = lambda *a: torch.full((2,), W)",),
    ),
    Holder(
        "installed",
        """
        N = types.ModuleType('N')
        N.__file__ = INSTALLED
        N.a = V
        N.d = {'k': V}
        """,
        ("H.a", "H.d['k']"),
        ("H.a = W; H.d['k'] = W",),
    ),
    Holder(
        "eval",
        "N = V",
        ("eval('N')",),
        ("globals()['N'] = W",),
    ),
    Holder(
        "iterator",
        "N = iter([V, W, 7.0])",
        ("next(H)",),
        ("next(H)",),
    ),
    Holder(
        "generator",
        """
        def N_f():
            yield V
            yield W
            yield 7.0
        N = N_f()
        """,
        ("next(H)",),
        ("next(H)",),
    ),
]
