"""The linters, as tests: one command says all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.containers.session import CHECKOUT

LINTERS = {
    "ruff check": ["ruff", "check", "--no-fix", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy", "--strict"],
}


@pytest.mark.parametrize("linter", LINTERS)
def test_linter_finds_nothing(linter: str) -> None:
    command = [sys.executable, "-m", *LINTERS[linter]]
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, f"{' '.join(LINTERS[linter])}:\n{ended.stdout}{ended.stderr}"
