"""The examples of the docstrings, one test per docstring."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import torch

import functorch_hops as fh

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> Iterator[str]:
    yield "functorch_hops"
    for module in pkgutil.walk_packages(fh.__path__, "functorch_hops."):
        yield module.name


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for name in module_names():
        for test in finder.find(importlib.import_module(name), extraglobs={"fh": fh, "torch": torch}):
            if test.examples:
                found[test.name] = test
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_docstring(example: doctest.DocTest) -> None:
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report: list[str] = []
    runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)
