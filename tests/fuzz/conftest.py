"""Says at the end how many cases were tried."""

from __future__ import annotations

import pytest

from tests.fuzz.tried import TRIED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(TRIED.items()))
        terminalreporter.write_line(f"fuzzed configurations: {TRIED.total()} ({outcomes})")
