"""Whether a process lives, and since when. Source: proc_pid_stat(5)."""

from __future__ import annotations

import os
from collections.abc import Sequence

# One line, which the kernel gives whole.
_STAT_BYTES = 4096
_OVER = (b"Z", b"X")
_STATE, _START_TIME = 0, 19
"""Places after the command's name, which may hold spaces and brackets; fields 3 and 22."""


def start_of(pid: int) -> int:
    """Start time of a process in clock ticks after boot; 0 when there is none, or only its exit status is left."""
    if pid <= 0:
        return 0
    try:
        # Not by open(): a plan asks it of every container, and a buffered file makes ten system calls of three.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return start_time(os.read(fd, _STAT_BYTES))
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def cgroup_of(pid: int) -> str:
    """The end that the process's cgroups have in all v1 hierarchies: `docker/4f6c`; "" when they have none."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended, as whoever acts on it finds out
    return common_end([path for number, _, path in lines if number != "0"])


def common_end(paths: Sequence[str]) -> str:
    """The last parts that all paths have in common: `b/c` of /x/b/c and /y/b/c."""
    parts = [path.strip("/").split("/") for path in paths]
    shared: list[str] = []
    for same in zip(*map(reversed, parts), strict=False):
        if len({*same}) > 1 or not same[0]:
            break
        shared.append(same[0])
    return "/".join(reversed(shared))


def start_time(stat: bytes) -> int:
    """The same by what /proc/PID/stat holds."""
    fields = stat.rpartition(b")")[2].split()
    return 0 if fields[_STATE] in _OVER else int(fields[_START_TIME])
