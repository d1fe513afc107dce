"""Says at the end how many points were tried, by command and system call, and what became of them."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.crash.points import SEED, TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TALLY.counts:
        return
    chosen = "all" if os.environ.get("CRASH_POINTS") == "all" else f"a sample, seed {SEED}; CRASH_POINTS=all tries all"
    terminalreporter.section(f"crash points: {chosen}")
    total: Counter[str] = Counter()
    for job in sorted({job for job, _ in TALLY.counts}):
        rows = {call: count for (of, call), count in TALLY.counts.items() if of == job}
        terminalreporter.write_line(_row(job, sum(rows.values(), Counter())))
        for call, count in sorted(rows.items()):
            terminalreporter.write_line(_row(f"  {call}", count))
        total += sum(rows.values(), Counter())
    terminalreporter.write_line(_row("all", total))


def _row(name: str, count: Counter[str]) -> str:
    tried = count["survived"] + count["failed"]
    missed = f"  not reached {count['not reached']}" if count["not reached"] else ""
    return f"{name:44} tried {tried:5}  survived {count['survived']:5}  failed {count['failed']:4}{missed}"
