"""The table of engines and cases names tests that exist, and has an outcome or a reason in each cell."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from docs import engines
from docs.generate import CHECKOUT


@cache
def _functions(file: str) -> frozenset[str]:
    tree = ast.parse((CHECKOUT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("test", engines.tests())
def test_test_of_the_table_exists_and_has_passed(test: str) -> None:
    file, _, name = test.partition("::")
    assert name.partition("[")[0] in _functions(file)
    assert engines.results()[test] == "passed", "run `python -m docs.engines`, then `python -m docs.generate`"


def test_outcomes_are_of_tests_of_the_table() -> None:
    assert set(engines.results()) == set(engines.tests())


@pytest.mark.parametrize("case", engines.CASES)
def test_each_engine_has_a_cell(case: str) -> None:
    assert set(engines.CASES[case]) | set(engines.EMPTY.get(case, {})) <= set(engines.ENGINES)
    assert not set(engines.CASES[case]) & set(engines.EMPTY.get(case, {})), "tried, or a reason why not"
