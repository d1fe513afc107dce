"""Names of everything that a test session makes: they tell whose it is, so that leftovers can be found and removed.

`sct-OWNER-RANDOM`, OWNER being the session's PID in base 36: at most 15 bytes, so that it can name a network interface.
"""

from __future__ import annotations

import os
import random
import string
from pathlib import Path

PREFIX = "sct-"
_DIGITS = string.digits + string.ascii_lowercase


def owner_prefix(pid: int) -> str:
    """`sct-1a2-`: what the names of all things of the session with this PID begin with."""
    return f"{PREFIX}{_base36(pid)}-"


def owner_of(name: str) -> int | None:
    """The PID in a name of ours; None for foreign names."""
    parts = name.split("-")
    if len(parts) < 3 or parts[0] + "-" != PREFIX:
        return None
    try:
        return int(parts[1], 36)
    except ValueError:
        return None


def new_name(pid: int) -> str:
    """A name that nothing of this session has yet; 15 bytes at most."""
    # Not the shared generator: tests that seed it would get the same names again.
    return owner_prefix(pid) + "".join(random.SystemRandom().choices(_DIGITS, k=5))


def directory_of(pid: int) -> Path:
    """Where the session with this PID keeps its files. Not below TMPDIR: a later session has to find it."""
    return Path("/tmp", owner_prefix(pid) + "files")


def claim(directory: Path) -> None:
    """Makes the session's directory and notes its owner's start time, which tells a reused PID from the owner."""
    directory.mkdir(mode=0o755)
    (directory / "owner").write_text(start_time(os.getpid()))


def is_alive(pid: int) -> bool:
    """Whether the session with this PID still runs."""
    try:
        now = start_time(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    note = directory_of(pid) / "owner"
    return not note.exists() or note.read_text() in ("", now)


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat; the command name before it may hold spaces and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text or "0"
