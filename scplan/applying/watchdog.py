"""The watchdog: a process that undoes applies which are not confirmed in time.

It outlives the apply, its terminal and its connection. It holds the lock of `locks/watchdog.lock`, and writes its PID
and the IDs of the applies that it watches into this file.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scplan.applying.recovery import Recovery, recover_one
from scplan.errors import KernelError, Locked, RecordDamaged, RollbackIncomplete, ScplanError
from scplan.store import locks
from scplan.store.confirmation import seconds_left
from scplan.store.durable import FILE_MODE, make_directory
from scplan.store.journal import open_again, open_paths, read_journal

_POLL_S = 0.25
_ARMED_WITHIN_S = 30.0
_STARTED_WITHIN_S = 5.0
_ARM_POLL_S = 0.02
_TRIES = 8
_LONGEST_PAUSE_S = 60.0
_MAX_NOTED_BYTES = 4096


def arm(directory: str, apply_id: str, start: Callable[[], None]) -> None:
    """Return when a watchdog watches the apply; `start` starts a watchdog. Raises ScplanError after _ARMED_WITHIN_S."""
    deadline = time.monotonic() + _ARMED_WITHIN_S
    next_start = 0.0
    while time.monotonic() < deadline:
        if apply_id in _noted(directory):
            return
        # A watchdog may die before it takes the lock: start another after a while.
        if not is_watched(directory) and time.monotonic() >= next_start:
            start()
            next_start = time.monotonic() + _STARTED_WITHIN_S
        time.sleep(_ARM_POLL_S)
    raise ScplanError(
        "the watchdog, which would undo this unless it is confirmed, does not start",
        hint="without --confirm-within it is not needed",
    )


def is_watched(directory: str) -> bool:
    """True if a watchdog runs for the state directory."""
    return locks.is_held(_lock_path(directory))


def watch(recovery: Recovery, tell: Callable[[str], None]) -> None:
    """Undo applies whose time is up, until no apply has to be confirmed any more.

    Returns at once if another watchdog runs. Raises RollbackIncomplete if an undo keeps failing.
    """
    # SIGHUP: the controlling terminal hung up, which may be the reason why no user confirms. signal(7).
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _only_watchdog(recovery.state.directory) as lock:
        if lock is None:
            return
        watched: dict[str, float | None] = {}
        while True:
            paths = open_paths(recovery.state.directory)
            # Also journals that an apply still holds: the apply waits until its ID is noted here.
            found = [path for path in paths if path in watched or _is_to_be_confirmed(path, recovery)]
            watched = {path: watched.get(path) for path in found}
            _note(lock, watched)
            if not watched:
                return
            # CLOCK_BOOTTIME counts suspends, and can't be set. clock_gettime(2).
            for path, due in watched.items():
                if due is None or due <= time.clock_gettime(time.CLOCK_BOOTTIME):
                    watched[path] = _look_after(path, recovery, tell)
            time.sleep(_POLL_S)


def _look_after(path: str, recovery: Recovery, tell: Callable[[str], None]) -> float | None:
    """Time by CLOCK_BOOTTIME at which the apply is to be undone; None if not known yet, or just undone."""
    journal = open_again(path) if os.path.exists(path) else None
    if journal is None:
        return None  # still held by its apply, or ended
    with journal:
        entries = read_journal(path, recovery.kinds)
        if seconds_left(entries, recovery.host.boot_id) and entries.awaiting:
            return entries.awaiting.boottime_s
    _undo(path, recovery, tell)
    return None


def _undo(path: str, recovery: Recovery, tell: Callable[[str], None]) -> None:
    """Undo the apply; retry with growing pauses, since the cause may pass and no user may be there to retry."""
    pause_s = 1.0
    for tries_left in reversed(range(_TRIES)):
        try:
            tell(recover_one(path, recovery, "auto"))
            return
        except (RollbackIncomplete, Locked, KernelError) as error:
            tell(f"{os.path.basename(path)}: {error}")
            if not tries_left:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if not os.path.exists(path):
            return


def _is_to_be_confirmed(path: str, recovery: Recovery) -> bool:
    """True if the journal is that of an apply that must be confirmed."""
    try:
        return read_journal(path, recovery.kinds).must_be_confirmed
    except RecordDamaged:
        # The journal is gone, or damaged: `scplan recover` reports damage to the user.
        return False


# the lock


def _lock_path(directory: str) -> str:
    return os.path.join(directory, "locks", "watchdog.lock")


@contextmanager
def _only_watchdog(directory: str) -> Iterator[int | None]:
    """The fd of the locked file, until the block ends; None if another watchdog holds the lock."""
    path = _lock_path(directory)
    make_directory(os.path.dirname(path))
    try:
        # O_NOFOLLOW: a symlink in place of the lock file fails with ELOOP. open(2).
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    try:
        yield fd if locks.take(fd) else None
    finally:
        os.close(fd)


def _note(lock: int, watched: dict[str, float | None]) -> None:
    """Write the PID of this process and the IDs of the watched applies into the lock file, if they changed."""
    # First line: the PID, as in the other lock files.
    names = "".join(f"{os.path.basename(path).removesuffix('.jsonl')}\n" for path in watched)
    text = f"{os.getpid()}\n{names}".encode()
    if os.pread(lock, _MAX_NOTED_BYTES, 0) != text:
        os.ftruncate(lock, 0)
        os.pwrite(lock, text, 0)


def _noted(directory: str) -> list[str]:
    """IDs of the applies that a running watchdog watches."""
    if not is_watched(directory):
        return []
    try:
        with open(_lock_path(directory), encoding="ascii") as file:
            return file.read(_MAX_NOTED_BYTES).splitlines()[1:]
    except FileNotFoundError:
        return []
