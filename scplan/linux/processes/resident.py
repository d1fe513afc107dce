"""Processes that live beside scplan and do for it what may hang: forked, asked over a socket, gone with it.

Sources: socketpair(2), PR_SET_PDEATHSIG of prctl(2), close_range(2).
"""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Collection
from typing import NoReturn

from scplan.linux.closing import Closing
from scplan.linux.processes.namespaces import close_stdio, end_child
from scplan.linux.processes.signals import stop_requests_wait
from scplan.linux.syscalls import close_range, die_with_parent

_LEAVE_S = 1.0
_FIRST_FD = 3


class Resident(Closing):
    """A forked process that serves until its socket is closed; `socket` is this side of it."""

    def __init__(self, serve: Callable[[socket.socket], None], kind: socket.SocketKind) -> None:
        """Starts it. `serve` gets its side of a socket pair of this kind, and returns when nobody asks any more.

        Everything else that was opened before it inherits: it closes what it is not to hold (close_all_but).
        """
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, kind)
        parent = os.getpid()
        # Requests to stop are for the parent, which then ends this process: here they stay blocked.
        with stop_requests_wait():
            self._pid = os.fork()
            if self._pid == 0:
                _live(serve, theirs, parent)
            theirs.close()

    @property
    def pid(self) -> int:
        return self._pid

    def close(self) -> None:
        """Ends it when it is idle: it leaves by itself, in a millisecond."""
        self.socket.close()
        end_child(self._pid, time.monotonic() + _LEAVE_S)

    def kill(self) -> None:
        """Ends it whatever it does. One that is stuck in the kernel is left to init after a second."""
        self.socket.close()
        end_child(self._pid, time.monotonic())


def _live(serve: Callable[[socket.socket], None], requests: socket.socket, parent: int) -> NoReturn:
    try:
        die_with_parent(parent)
        # What is garbage of the parent's would close fds by their numbers, which are others' by then.
        gc.freeze()
        close_stdio()
        serve(requests)
    finally:
        os._exit(0)


def close_all_but(kept: Collection[int]) -> None:
    """Closes every fd above those of stdio that is not to be kept."""
    first = _FIRST_FD
    for fd in sorted(kept):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first)
