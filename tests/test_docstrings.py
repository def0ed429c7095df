"""The examples in docstrings are tests, too."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import dynalab

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(dynalab.__path__, "dynalab.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples > 50
