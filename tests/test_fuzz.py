"""A fixed part of the random programs of ``fuzz``, which ``python tests/fuzz`` runs by the thousand.

A seed that fails here prints its program: ``python tests/fuzz --seeds 17 --backend eager --shrink`` makes it smaller.
"""

import pytest

from fuzz.checking import MODES, failure_of
from fuzz.generator import PREAMBLE, Program, generate, is_fair
from fuzz.shrinking import shrunk

QUICK = [mode for mode in MODES if mode != "inductor"]


def assert_right(seeds, mode):
    """A program that plain eager refuses too is one that torch itself does not allow, as some writes under vmap."""
    programs = [generate(seed) for seed in seeds]
    failure = failure_of(programs, mode)
    assert failure is None or failure.is_refused, "\n\n".join([str(failure), *map(str, programs)])


def _programs():
    """AOTAutograd takes most of the time: every second program of it is slow, with Dynamo all but every fourth."""
    modes = [QUICK[seed % len(QUICK)] for seed in range(60)]
    period = {"aot_eager": 2, "dynamo": 4}
    is_slow = lambda seed: bool(seed // len(QUICK) % period.get(modes[seed], 1))
    return [
        pytest.param(seed, mode, id=str(seed), marks=pytest.mark.slow if is_slow(seed) else ())
        for seed, mode in enumerate(modes)
    ]


@pytest.mark.parametrize(("seed", "mode"), _programs())
def test_program(seed, mode):
    assert_right([seed], mode)


@pytest.mark.slow
@pytest.mark.parametrize("first", [100, 104, 108])
def test_programs_compiled_as_one(first):
    assert_right(range(first, first + 4), "inductor")


def test_the_same_seed_gives_the_same_program():
    assert generate(7) == generate(7)


WRITES = """
def inputs(seed=0):
    return (torch.arange(6.0).reshape(2, 3) + seed,)


def program(ns, x):
    y = ns.checkpoint(lambda: (x * 1.0){turned})()
    y.reshape(-1)[:1].zero_()
    return y
"""


@pytest.mark.parametrize(("turned", "expected"), [("", True), (".mT", False)])
def test_what_a_write_means_is_not_for_the_layout_of_a_result_to_say(turned, expected):
    assert is_fair(Program(0, PREAMBLE + WRITES.format(turned=turned), "value")) is expected


def test_a_program_is_shrunk_while_it_fails():
    """What is left of it when the failure is that it scans."""
    program = next(p for p in map(generate, range(20)) if "ns.scan(" in p.source and p.context == "value")
    small = shrunk(program, lambda candidate: "ns.scan(" in candidate.source, seconds=10.0)
    lines = small.source.split("def f(")[1].split("def program(")[0].strip().splitlines()
    assert "ns.scan(" in small.source
    assert len(lines) <= 12
