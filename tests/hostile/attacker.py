"""The root of a container, who works against scplan: runs in all of its namespaces, with its ids and its root.

    with Attack(container, step) as attack:
        …                      # step() is called over and over inside, as fast as it goes
    attack.rounds              # how often that was

Forks of this process: a container has no interpreter. A step may fail with OSError, which is the lot of racers.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from tests.containers.container import Container

RENAME_EXCHANGE = 2
MS_BIND, MS_REC, MS_REMOUNT, MS_RDONLY, MS_PRIVATE, MS_MOVE = 4096, 16384, 32, 1, 1 << 18, 8192
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
AT_FDCWD = -100
_NAMESPACES = {"user": 0x10000000, "net": 0x40000000, "pid": 0x20000000, "mnt": 0x20000}
_COUNTER = struct.Struct("Q")

_libc = ctypes.CDLL(None, use_errno=True)

Step = Callable[[], None]


def check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def exchange(one: str, other: str) -> None:
    """Swaps two paths in one moment. renameat2(2) with RENAME_EXCHANGE."""
    check(_libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)"""
    texts = [os.fsencode(text) or None for text in (source, target, kind, options)]
    check(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]))


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)"""
    check(_libc.umount2(os.fsencode(target), flags))


def enter(container: Container, between: Callable[[], object] = lambda: None) -> None:
    """Makes this process the container's root: its namespaces, its ids, its root directory.

    `between` is called when it has the rights of the container's root, and still sees the host's files.
    """
    directory = os.open(f"/proc/{container.pid}", os.O_PATH | os.O_DIRECTORY)
    kinds = [kind for kind in _NAMESPACES if kind != "user" or container.userns]
    fds = {kind: os.open(f"ns/{kind}", os.O_RDONLY, dir_fd=directory) for kind in kinds}
    root = os.open("root", os.O_PATH | os.O_DIRECTORY, dir_fd=directory)
    for kind, fd in fds.items():
        check(_libc.setns(fd, _NAMESPACES[kind]))
        os.close(fd)
        if kind == kinds[0]:
            between()
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
    os.close(directory)
    if container.userns:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


class Attack:
    """Repeats a step inside until the block ends."""

    def __init__(self, container: Container, step: Step, *, pause_s: float = 0.0) -> None:
        self._container = container
        self._step = step
        self._pause_s = pause_s
        self._counter = mmap.mmap(-1, _COUNTER.size)

    @property
    def rounds(self) -> int:
        """How often the step succeeded."""
        count: int = _COUNTER.unpack(self._counter[: _COUNTER.size])[0]
        return count

    def __enter__(self) -> Self:
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                check(_libc.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG
                os.nice(5)
                enter(self._container)
                if os.getppid() in (0, parent):
                    self._run()
            finally:
                os._exit(1)
        deadline = time.monotonic() + 10
        while not self.rounds:
            if os.waitpid(self._pid, os.WNOHANG)[0] or time.monotonic() > deadline:
                raise RuntimeError("the attacker did not get to work")
            time.sleep(0.001)
        return self

    def _run(self) -> None:
        done = 0
        while True:
            with contextlib.suppress(OSError):
                self._step()
                done += 1
                self._counter[: _COUNTER.size] = _COUNTER.pack(done)
            if self._pause_s:
                time.sleep(self._pause_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def once(container: Container, work: Callable[[], object]) -> None:
    """Does something inside; raises RuntimeError when it fails there."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            enter(container)
            work()
            os._exit(0)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    os.waitpid(pid, 0)
    if text:
        raise RuntimeError(text)


def succeeds(container: Container, work: Callable[[], object]) -> bool:
    """Whether the container's root can do something."""
    try:
        once(container, work)
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing until the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
