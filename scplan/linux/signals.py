"""Signals that ask scplan to stop: they interrupt an apply, and wait while it is undone. signal(7)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_requests_raise() -> Iterator[None]:
    """SIGTERM (a service is stopped) and SIGHUP (a terminal is closed) raise KeyboardInterrupt, as ^C does.

    Signals that are ignored stay so: that is how nohup(1) and background jobs of a shell ask for it.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [number for number in _ASK_TO_STOP if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests_wait() -> Iterator[None]:
    """Holds them back until the block ends, and then lets them through."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _ASK_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
