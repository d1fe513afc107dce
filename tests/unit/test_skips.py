"""A test that did not run says so: loudly everywhere, as a failure in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.session import CHECKOUT

_TESTS = """
import pytest

def test_runs():
    pass

@pytest.mark.needs("cgroup1")
@pytest.mark.needs("cgroup2")
def test_needs_what_no_machine_has():
    raise AssertionError
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0), ("false", 0)])
def test_skipped_test_fails_the_run_in_ci_only(ci: str, code: int, tmp_path: Path) -> None:
    ended = _run(_TESTS, ci, tmp_path)
    assert ended.returncode == code, ended.stdout
    assert "test_needs_what_no_machine_has: this machine has no cgroup" in ended.stdout
    assert "1 passed, 1 skipped" in ended.stdout.splitlines()[-1]


@pytest.mark.slow
def test_unknown_need_is_an_error(tmp_path: Path) -> None:
    ended = _run(_TESTS.replace("cgroup1", "warp drive"), "", tmp_path)
    assert ended.returncode == 1
    assert "unknown need 'warp drive'; known are" in ended.stdout


def _run(tests: str, ci: str, directory: Path) -> subprocess.CompletedProcess[str]:
    file = directory / "test_it.py"
    file.write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(directory), str(file)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)
