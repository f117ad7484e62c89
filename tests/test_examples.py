"""The examples in docstrings run."""

import doctest
import importlib

import pytest

MODULES = ("benchmarks.comparison", "training.coherence", "training.metrics", "training.suite")


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried and not failed
