"""Signals that ask scplan to stop: they interrupt an apply, and wait while it is undone. signal(7)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_requests_raise() -> Iterator[None]:
    """SIGTERM (a service is stopped) and SIGHUP (a terminal is closed) raise KeyboardInterrupt, as ^C does.

    Also inside a block in which they wait (stop_requests_wait): in this one they don't. Signals that are ignored stay
    so: that is how nohup(1) and background jobs of a shell ask for it.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        # One is enough: what comes on the way out would end that before its time.
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    heard = [number for number in _ASK_TO_STOP if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, interrupt) for number in heard}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
            yield
        finally:
            # One may still raise here; from then on they wait again.
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Woken:
    """Signals of a process that waits for fds: `fd` becomes readable with each, and `take` tells which they were."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.fd, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._taken: set[int] = set()
        for number in numbers:
            signal.signal(number, lambda came, _: self._taken.add(came))
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def take(self) -> set[int]:
        """Those that came since the last time."""
        with suppress(BlockingIOError):
            os.read(self.fd, 1 << 12)
        taken, self._taken = self._taken, set()
        return taken

    @property
    def fds(self) -> list[int]:
        return [self.fd, self._writer]


def ask_to_stop_ends() -> None:
    """For a child of a process that is woken: SIGTERM ends it at once, other requests are for the parent."""
    signal.set_wakeup_fd(-1)
    for number in _ASK_TO_STOP:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


@contextmanager
def stop_requests_wait() -> Iterator[None]:
    """Holds them back until the block ends, and then lets them through."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _ASK_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def hear_stop_requests() -> None:
    """For a program that is started while they wait: it must not begin deaf."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASK_TO_STOP)


def forget_stop_requests() -> None:
    """Those that wait are not heard: what they ask for has happened. sigtimedwait(2)."""
    while signal.sigtimedwait(_ASK_TO_STOP, 0) is not None:
        pass
