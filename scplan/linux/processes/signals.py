"""Signals that ask scplan to stop: they interrupt an apply, and are held back while it is undone. signal(7)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_requests_raise() -> Iterator[None]:
    """In the block, SIGTERM (a service is stopped) and SIGHUP (a terminal closed) raise KeyboardInterrupt, as ^C.

    Also inside a block of stop_requests_wait, which holds them back. Signals that are ignored stay ignored, as nohup(1)
    and background jobs of a shell expect.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        # Only the first signal raises: a second one would interrupt the cleanup.
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    heard = [number for number in _ASK_TO_STOP if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, interrupt) for number in heard}
    # Blocks no further signal: returns the present mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
            yield
        finally:
            # A signal may still raise before this call; afterwards signals are held back again.
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Woken:
    """Signals of a process that waits for fds: each makes `fd` readable, and `take` returns which were received."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.fd, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._taken: set[int] = set()
        for number in numbers:
            signal.signal(number, lambda came, _: self._taken.add(came))
        # Python writes a byte into the pipe for each signal, which ends a wait for `fd`.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def take(self) -> set[int]:
        """Signals received since the last call."""
        with suppress(BlockingIOError):
            os.read(self.fd, 1 << 12)
        taken, self._taken = self._taken, set()
        return taken

    @property
    def fds(self) -> list[int]:
        return [self.fd, self._writer]


def ask_to_stop_ends() -> None:
    """For a child of a process with `Woken`: SIGTERM ends the child at once; SIGINT and SIGHUP are for the parent."""
    signal.set_wakeup_fd(-1)
    for number in _ASK_TO_STOP:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


@contextmanager
def stop_requests_wait() -> Iterator[None]:
    """Hold back requests to stop until the block ends, then deliver them."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _ASK_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def hear_stop_requests() -> None:
    """Unblock requests to stop in a program that was started while they were held back: execve(2) keeps the mask."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASK_TO_STOP)


def forget_stop_requests() -> None:
    """Discard pending requests to stop, because the stop has happened. sigtimedwait(2)."""
    while signal.sigtimedwait(_ASK_TO_STOP, 0) is not None:
        pass
