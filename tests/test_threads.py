"""Threads take turns where torch has one state for all of them, and never wait for one another in a circle.

What could hang runs in a process of its own, with little time between switches of threads.
"""

import textwrap
import threading

import pytest
import torch

import functorch_hops as fh
import processes
from functorch_hops.lowering.loops.throwing import thrown
from modes import while_capturing

PRELUDE = """
import sys, threading, time, warnings
import torch
import functorch_hops as fh
torch.set_num_threads(1)
sys.setswitchinterval(1e-5)

def on_threads(*functions):
    results = [None] * len(functions)
    def run(i, function):
        try:
            results[i] = function()
        except BaseException as error:
            results[i] = error
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    hung = sum(thread.is_alive() for thread in threads)
    assert not hung, f"{hung} threads hang"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
"""


def in_a_process(program: str, seconds: int = 60) -> None:
    processes.in_a_process(PRELUDE.replace("SECONDS", str(seconds)) + textwrap.dedent(program), 2 * seconds)


def test_jitted_functions_that_call_each_other() -> None:
    in_a_process("""
    a = fh.jit(lambda x: b(x[1:]) * 2 if x.shape[0] > 2 else x, backend="eager")
    b = fh.jit(lambda x: a(x[1:]) * 3 if x.shape[0] > 2 else x, backend="eager")
    calls = [(f, n) for n in (5, 6, 7) for f in (a, b)]
    results = on_threads(*(lambda f=f, n=n: f(torch.ones(n)) for f, n in calls))
    factors = [(2, 3) if f is a else (3, 2) for f, n in calls]
    for (f, n), (own, other), result in zip(calls, factors, results):
        expected = torch.full((2,), float(own ** ((n - 1) // 2) * other ** ((n - 2) // 2)))
        torch.testing.assert_close(result, expected)
    """)


@pytest.mark.parametrize("how", ["plain", "captured", "jit", "torch"])
def test_forward_mode_on_threads(how: str) -> None:
    """Torch has one dual level, and counts without a lock who is in it."""
    in_a_process(f"""
    how = {how!r}
    def loop(x):
        return fh.scan(lambda c, a: (torch.tanh(c * a), c * a), x[0], x)[1]
    def oracle(x):
        c, ys = x[0], []
        for a in x:
            ys.append(c * a)
            c = torch.tanh(c * a)
        return torch.stack(ys)
    def jacobian():
        x = torch.linspace(0.1, 1, 4, dtype=torch.float64)
        results = []
        for n in range(4):
            if how == "plain":
                results.append(fh.jacfwd(loop)(x))
            elif how == "captured":
                with fh.eager_capture():
                    results.append(fh.jacfwd(loop)(x))
            elif how == "jit":
                results.append(fh.jacfwd(fh.jit(lambda x: loop(x) * (n + 1), backend="eager"))(x) / (n + 1))
            else:
                results.append(fh.jit(lambda x: torch.func.jacfwd(loop)(x) * (n + 1), backend="eager")(x) / (n + 1))
        return results
    expected = torch.autograd.functional.jacobian(oracle, torch.linspace(0.1, 1, 4, dtype=torch.float64))
    for results in on_threads(*[jacobian] * 4):
        for result in results:
            torch.testing.assert_close(result, expected)
    assert torch.autograd.forward_ad._current_level == -1
    assert torch._functorch.eager_transforms.JVP_NESTING == 0
    """)


def test_validation_of_distributions_is_as_before() -> None:
    in_a_process("""
    from torch.distributions import Distribution, Normal
    def sample(x):
        return Normal(x, 1.0).log_prob(x + 1)
    def capture():
        for n in range(6):
            fh.make_graph(sample)(torch.ones(n + 1))
    on_threads(*[capture] * 4)
    assert Distribution._validate_args is __debug__
    """)


def test_a_function_is_compiled_once_for_all_threads() -> None:
    in_a_process("""
    compiled = []
    def backend(module, inputs):
        compiled.append(module)
        time.sleep(0.2)
        return module
    f = fh.jit(lambda x: x * 2 + 1, backend=backend)
    for result in on_threads(*[lambda: f(torch.ones(3))] * 4):
        torch.testing.assert_close(result, torch.full((3,), 3.0))
    assert len(compiled) == 1 and f.cache_info().misses == 1
    """)


def test_a_compilation_that_fails_is_tried_by_the_next_thread() -> None:
    in_a_process("""
    attempts = []
    def backend(module, inputs):
        attempts.append(module)
        time.sleep(0.1)
        if len(attempts) < 3:
            raise OverflowError("not now")
        return module
    f = fh.jit(lambda x: x * 2 + 1, backend=backend)
    def call():
        try:
            return f(torch.ones(3))
        except Exception as error:
            return str(error)
    results = on_threads(*[call] * 4)
    assert len([r for r in results if isinstance(r, str)]) == 2 and len(attempts) == 3
    """)


def test_others_capture_while_one_compiles() -> None:
    in_a_process("""
    done = threading.Event()
    def backend(module, inputs):
        assert done.wait(30), "nobody could capture meanwhile"
        return module
    f = fh.jit(lambda x: x * 2 + 1, backend=backend)
    def capture():
        time.sleep(0.2)
        fh.grad(fh.jit(lambda x: (x * 3).sum(), backend="eager"))(torch.ones(3))
        done.set()
    on_threads(lambda: f(torch.ones(3)), capture)
    """)


def test_others_capture_while_one_differentiates_and_compiles() -> None:
    """The dual level remains until the last one has left it."""
    in_a_process("""
    first, second = threading.Event(), threading.Event()
    def backend(module, inputs):
        first.set()
        assert second.wait(30)
        return module
    slow = fh.jit(lambda x: x * 2 + 1, backend=backend)
    def other():
        assert first.wait(30)
        def f(x):
            y = x * x
            second.set()
            time.sleep(0.3)
            return y * x
        return fh.jvp(f, (torch.full((), 2.0),), (torch.ones(()),))[1]
    pair = lambda f: fh.jvp(f, (torch.full((), 2.0),), (torch.ones(()),))[1]
    results = on_threads(lambda: pair(slow), other)
    torch.testing.assert_close(torch.stack(results), torch.tensor([2.0, 12.0]))
    assert torch.autograd.forward_ad._current_level == -1
    """)


def test_compilers_that_need_each_other() -> None:
    """Two backends that call the function which the other thread compiles."""
    in_a_process("""
    both = threading.Barrier(2)
    functions = {}
    def backend_of(other):
        def backend(module, inputs):
            if threading.current_thread() not in seen:
                seen.add(threading.current_thread())
                functions[other](torch.ones(2))
            return module
        return backend
    seen = set()
    functions["a"] = fh.jit(lambda x: x + 1, backend=backend_of("b"))
    functions["b"] = fh.jit(lambda x: x + 2, backend=backend_of("a"))
    def call(name):
        both.wait()
        return functions[name](torch.ones(2))
    a, b = on_threads(lambda: call("a"), lambda: call("b"))
    torch.testing.assert_close((a, b), (torch.full((2,), 2.0), torch.full((2,), 3.0)))
    """)


def test_a_compiler_runs_without_the_lock_even_if_its_thread_has_it() -> None:
    in_a_process("""
    from functorch_hops import _torch
    done = threading.Event()
    def backend(module, inputs):
        assert done.wait(30), "nobody could capture meanwhile"
        return module
    f = fh.jit(lambda x: x * 2, backend=backend)
    def call():
        with _torch.one_at_a_time, _torch.one_at_a_time:
            f(torch.ones(3))
    def capture():
        time.sleep(0.2)
        fh.make_graph(lambda x: x * 3)(torch.ones(3))
        done.set()
    on_threads(call, capture)
    on_threads(capture)  # and it is free in the end
    """)


def test_a_call_that_finds_its_trace_takes_no_lock() -> None:
    in_a_process(
        """
    from functorch_hops import _torch
    def f(x):
        return fh.scan(lambda c, a: (torch.tanh(c * a), c * a), x[0], x)[1].sum()
    jitted = fh.jit(f, backend="eager")
    x = torch.ones(3)
    def warm():
        with fh.eager_capture():
            return jitted(x), fh.grad(jitted)(x), fh.vmap(jitted)(torch.ones(2, 3)), f(x)
    for _ in range(3):
        warm()
    with _torch.one_at_a_time:
        on_threads(warm)
    """,
        20,
    )


def test_the_lock_is_free_in_a_forked_process() -> None:
    in_a_process("""
    import os
    from functorch_hops import _torch
    held, done = threading.Event(), threading.Event()
    def hold():
        with _torch.one_at_a_time:
            held.set()
            done.wait(60)
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    child = os.fork()
    if child == 0:
        fh.make_graph(lambda x: x + 1)(torch.ones(2))
        os._exit(7)
    for _ in range(200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
    done.set()
    assert pid and os.waitstatus_to_exitcode(status) == 7
    """)


def test_backward_passes_of_a_capture_stay_on_its_thread() -> None:
    """Autograd would hand on what is on a GPU to a thread of its own, which knows nothing of the capture."""
    seen = []

    def f(x):
        seen.append(torch._C._is_multithreading_enabled())
        return x.sum()

    with pytest.warns(RuntimeWarning, match="changes closure 'seen'"):
        fh.make_graph(fh.grad(f))(torch.ones(2))
    assert seen == [False]
    assert torch._C._is_multithreading_enabled()


@pytest.mark.slow
def test_inductor_on_threads() -> None:
    """What is patched during a compilation is for that one alone."""
    in_a_process(
        """
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings
    from torch.fx.node import _side_effectful_functions
    fh.jit(lambda x: x + 1)(torch.ones(2))  # what is registered once
    before = lowerings[torch.ops.higher_order.cond], set(_side_effectful_functions)
    def f(k):
        def run(x):
            y = fh.cond(x.sum() > 0, lambda v: v.sin() * k, lambda v: v.cos() * k, x)
            torch.ops.aten._assert_async.msg(y.sum() < 1e9, "large")
            return fh.scan(lambda c, a: (c * a, c + a), y[0], y)[1]
        return run
    x = torch.ones(4)
    results = on_threads(*(lambda k=k: fh.jit(f(k))(x) for k in (1.0, 2.0, 3.0)))
    for k, result in zip((1.0, 2.0, 3.0), results):
        torch.testing.assert_close(result, f(k)(x))
    assert before == (lowerings[torch.ops.higher_order.cond], set(_side_effectful_functions))
    assert "has_side_effects" not in vars(ir.Switch if torch.__version__ >= (2, 14) else ir.Conditional)
    """,
        300,
    )


@pytest.mark.slow
def test_dynamo_and_jit_at_once() -> None:
    """Dynamo holds its lock while it calls us, and we need that one to compile.

    Dynamo comes first: no compiled function may be called while another thread traces (pytorch/pytorch 168042).
    """
    in_a_process(
        """
    from torch._dynamo.backends.debugging import aot_eager
    def f(k):
        return lambda x: fh.scan(lambda c, a: (torch.tanh(c * a) * k, c * a), x[0], x)[1].sum()
    x, holds_lock = torch.ones(3), threading.Event()
    def backend(module, inputs):
        holds_lock.set()
        time.sleep(0.2)
        return aot_eager(module, inputs)
    def jitted(k):
        assert holds_lock.wait(100)
        return fh.grad(fh.jit(f(k), backend="aot_eager"))(x)
    compiled = torch.compile(f(1.0), backend=backend)
    results = on_threads(lambda: compiled(x), lambda: jitted(1.0), lambda: jitted(2.0))
    torch.testing.assert_close(results, [f(1.0)(x), fh.grad(f(1.0))(x), fh.grad(f(2.0))(x)])
    """,
        200,
    )


@pytest.mark.slow
def test_what_a_thread_of_a_kernel_throws_is_raised() -> None:
    """OpenMP ends the process if an exception leaves a parallel region."""
    in_a_process(
        """
    torch.set_num_threads(2)
    x, i = torch.rand(1000), torch.arange(1 << 17) % 1000
    f = fh.jit(lambda x, i: (x[i] * 2, 7 // (i + 1), 9 % (i + 1)))
    def check():
        for result, expected in zip(f(x, i), (x[i] * 2, 7 // (i + 1), 9 % (i + 1))):
            torch.testing.assert_close(result, expected)
    check()
    wrong = {1000: "an index from", -1: "ZeroDivisionError"}
    if torch.__version__ < (2, 13):  # where Inductor's integer division by zero ends the process
        del wrong[-1]
    for index, says in wrong.items():
        for place in (0, 70_000, i.numel() - 1):
            there = i.clone()
            there[place] = index
            try:
                f(x, there)
            except (IndexError, RuntimeError) as error:
                assert says in str(error), error
            else:
                raise AssertionError("nothing was raised")
            check()
    """,
        300,
    )


def test_each_loop_that_threads_share_catches() -> None:
    kernel = """\
extern "C" void kernel(const int64_t* in_ptr0, int64_t* out_ptr0)
{
    #pragma omp parallel num_threads(2)
    {
        #pragma omp for collapse(2)
        for(int64_t x0=0; x0<8; x0+=1)
        {
            for(int64_t x1=0; x1<8; x1+=1)
            {
                {
                    TORCH_CHECK(in_ptr0[x0] < 8, "index out of bounds");
                }
            }
        }
        #pragma omp single
        {
            TORCH_CHECK(in_ptr0[0] < 8, "index out of bounds");
        }
    }
}
"""
    lines = thrown(kernel).splitlines()
    assert [line.strip() for line in lines if "try" in line or "catch" in line or "TORCH_CHECK" in line] == [
        "try {",
        'TORCH_CHECK(in_ptr0[x0] < 8, "index out of bounds");',
        (catch := "} catch (...) { if (!has_thrown.exchange(true)) thrown = std::current_exception(); }"),
        "try {",
        'TORCH_CHECK(in_ptr0[0] < 8, "index out of bounds");',
        catch,
    ]
    assert lines[lines.index("try {") - 2].strip() == "for(int64_t x1=0; x1<8; x1+=1)"
    assert lines[-2:] == ["if (thrown) std::rethrow_exception(thrown);", "}"]
    assert thrown(kernel.replace("TORCH_CHECK", "sum")) == kernel.replace("TORCH_CHECK", "sum")


def on_a_thread(work):
    """What ``work()`` gives on another thread; what it raises ends that thread, as ``Thread`` has it."""
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found


USES = {
    "a result": lambda y: sum(on_a_thread(lambda: y * 2), y),
    "a write": lambda y: (on_a_thread(lambda: y.mul_(2)), y + 1)[1],
    "a body": lambda y: fh.map(lambda row: sum(on_a_thread(lambda: row * 2), row), y),
}


@while_capturing
@pytest.mark.parametrize("use", USES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_traced_tensor_on_another_thread_is_refused(run, use):
    """What records is the thread's: a write was lost without a word."""
    f = lambda x: fh.cond(torch.tensor(True), lambda x: USES[use](x * 1), torch.sin, x)
    with pytest.raises(fh.CaptureError, match="on another thread"):
        run(f, torch.ones(3))
