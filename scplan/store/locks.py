"""Locks on scplan's own files: each is held by one process until that process releases it or dies. flock(2).

The lock belongs to the open file description, which forked processes share with their copies of the fd; closing one
copy does not release it. The stepper has copies, and may hang in a container's file system. So `release` calls LOCK_UN,
which releases the lock whatever copies there are.
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
"""Seconds that a lock may outlive its killed holder: children of the holder end a little later."""


def open_locked(path: str, mode: int) -> int:
    """File descriptor of a new file, with its lock held. Raises KernelError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    try:
        while True:
            fd = os.open(path, flags, mode)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
            # Another process removed the file between open() and flock(): its lock excludes nobody.
            os.close(fd)
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None


def take(fd: int) -> bool:
    """Take the exclusive lock of an opened file; False if another process holds it. Raises KernelError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # EWOULDBLOCK is EAGAIN. EACCES is from fcntl(2) locks, with which NFS emulates flock(2).
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise KernelError.from_os("flock", error) from None
        return False
    return True


def release(fd: int) -> None:
    """Release the lock of an opened file, and close the fd."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def is_held(path: str) -> bool:
    """True if a process holds the exclusive lock of a file; False if the file does not exist. Raises KernelError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    try:
        # A shared lock, so that two processes which test at the same time don't take each other for a holder.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def comes_true(is_so: Callable[[], bool], deadline: float) -> bool:
    """Poll `is_so` until it returns True; False if it has not by `deadline`, in seconds of the monotonic clock."""
    # Polled, because a blocking flock(2) has no timeout.
    while not is_so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def wait_for(fd: int, deadline: float, path: str) -> None:
    """Take the lock of an opened file, and write this process's PID into the file.

    Raises Locked, with the holder's PID, if the lock is not free by `deadline`. If the holder is dead, waits for up to
    1 s more: children of a killed process may hold the lock a moment longer.
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
    """Write this process's PID into the lock file. Omitted on a full disk, where a recovery must work all the same."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
