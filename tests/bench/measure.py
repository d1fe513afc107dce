"""Runs a command and says what it cost."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scplan.linux.processes.programs import hook_command
from tests.containers.session import CHECKOUT


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, seconds of CPU (user and system, children included), and peak memory in MiB."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def run(argv: list[str], *, state_dir: Path | None = None, stdin: Path | None = None) -> Cost:
    """Runs it to its end with its output thrown away; raises with its messages when it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(CHECKOUT)
    if state_dir:
        environment["SCPLAN_STATE_DIR"] = str(state_dir)
    messages = os.memfd_create("messages")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(stdin or "/dev/null"), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, messages, 2),
    ]
    try:
        start = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
        _, status, used = os.wait4(pid, 0)
        wall_s = time.perf_counter() - start
        if status:
            text = os.pread(messages, 1 << 16, 0).decode(errors="replace")
            raise RuntimeError(f"{' '.join(argv)}: status {os.waitstatus_to_exitcode(status)}\n{text}")
    finally:
        os.close(messages)
    return Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def own_peak_mib() -> float:
    """The peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def medians(times: int, *measured: Callable[[], Cost]) -> list[Cost]:
    """The median cost of each, measured in turns, so that a noisy minute meets all of them. The first turn is thrown
    away: it fills the caches."""
    turns = [[measure() for measure in measured] for _ in range(times + 1)][1:]
    return [
        Cost(*(statistics.median(getattr(cost, part) for cost in costs) for part in ("wall_s", "cpu_s", "peak_mib")))
        for costs in zip(*turns, strict=True)
    ]


def hook(stage: str, state: Path, state_dir: Path) -> Cost:
    """The hook as runtimes call it, with the container's state from a file."""
    return run(hook_command(str(state_dir), [stage]), stdin=state)


def python() -> Cost:
    """What starting Python alone costs."""
    return run([sys.executable, "-I", "-c", "pass"])


def scplan(*arguments: str, state_dir: Path) -> Cost:
    """The console script as users run it."""
    return run([str(Path(sys.executable).with_name("scplan")), *arguments], state_dir=state_dir)
