"""Docstrings state what is returned or done, in the words of docs/glossary.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "scplan"
# Beginnings that leave the reader to find the subject of the sentence.
_INDIRECT = re.compile(r"(What|Whether|How|Those|That|Which|Where)\b")


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Of modules, classes and functions, and of the attributes and constants in them, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield f"line {node.lineno}", node.value.value


@pytest.mark.parametrize("room", sorted({path.parent for path in PACKAGE.rglob("*.py")}), ids=lambda room: room.name)
def test_docstrings_name_their_subject(room: Path) -> None:
    indirect = [
        f"{path.name}, {name}: {text.splitlines()[0]}"
        for path in sorted(room.glob("*.py"))
        for name, text in _docstrings(path)
        if _INDIRECT.match(text)
    ]
    assert indirect == []
