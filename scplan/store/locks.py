"""Locks on scplan's own files, each held by one process until it releases them or dies. flock(2).

A lock is that of the opened file: who has a copy of its fd holds it, too. So it is released by name, and not by closing
alone: the stepper has copies of the fds, and may hang in a container's file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable

from scplan.errors import KernelError, Locked
from scplan.linux.processes.process import start_of

_POLL_S = 0.02
_KILLED_S = 1.0
"""How long a lock may outlive its holder: what that had started ends a little later."""


def open_locked(path: str, mode: int) -> int:
    """An fd of a new file, which is locked as long as it is open. Raises KernelError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    try:
        while True:
            fd = os.open(path, flags, mode)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
            # Removed by another process before it was locked.
            os.close(fd)
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None


def take(fd: int) -> bool:
    """Takes the exclusive lock of an opened file; False if somebody else holds it. Raises KernelError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise KernelError.from_os("flock", error) from None
        return False
    return True


def release(fd: int) -> None:
    """Releases the lock of an opened file, and closes it."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def is_held(path: str) -> bool:
    """True if a process holds the exclusive lock of a file; False, too, where there is none. Raises KernelError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def comes_true(is_so: Callable[[], bool], deadline: float) -> bool:
    """True as soon as `is_so` returns True; False if it has not by `deadline`, on the monotonic clock."""
    while not is_so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def wait_for(fd: int, deadline: float, path: str) -> None:
    """Takes the lock of an opened file, whose first line is the PID of its holder, and notes this process there.

    Raises Locked, naming the holder, if it is not free by `deadline`; a holder that was killed is waited for longer.
    """
    end_of_killed = time.monotonic() + _KILLED_S
    if not comes_true(lambda: take(fd), deadline):
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        is_dead = holder.isdecimal() and not start_of(int(holder))
        if not is_dead or not comes_true(lambda: take(fd), end_of_killed):
            raise Locked(
                f"{os.path.basename(path).removesuffix('.lock')} is locked by another apply"
                + (f" (process {holder})" if holder else ""),
                hint="wait for it, or give --lock-timeout more time",
            )
    _note_holder(fd)


def _note_holder(fd: int) -> None:
    """Writes who holds the lock. On a full disk nobody can read it then: a recovery must go on there."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
