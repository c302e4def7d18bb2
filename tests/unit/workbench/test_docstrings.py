"""Every example in a docstring of the workbench and of the traffic modules runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import workbench

MODULES = [
    "workbench",
    *(module.name for module in pkgutil.walk_packages(workbench.__path__, "workbench.") if not module.name.endswith("__main__")),
    "backend.api.errors",
    "backend.simulate.traces",
    "backend.simulate.summary",
]


def examples() -> list:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name), name) if test.examples]
    return [pytest.param(test, id=test.name) for test in found]


@pytest.mark.parametrize("example", examples())
def test_the_example_runs(example, stack):
    example.globs.update(workbench=workbench, stack=stack)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


def test_there_are_examples():
    assert len(examples()) >= 12
