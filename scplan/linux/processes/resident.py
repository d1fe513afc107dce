"""Processes beside scplan for work that may hang: forked, asked over a socket, ended with scplan.

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
    """Forked process that serves until its socket is closed; `socket` is this side's end of the socket."""

    def __init__(self, serve: Callable[[socket.socket], None], kind: socket.SocketKind) -> None:
        """Start the process. `serve` gets its end of a socket pair of this kind, and returns when the other is closed.

        The process inherits everything else that is open, and closes what it must not hold (close_all_but).
        """
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, kind)
        parent = os.getpid()
        # They stay blocked in the child: requests to stop are for the parent, which then ends the child.
        with stop_requests_wait():
            self._pid = os.fork()
            if self._pid == 0:
                _live(serve, theirs, parent)
            theirs.close()

    @property
    def pid(self) -> int:
        return self._pid

    def close(self) -> None:
        """End an idle process: it leaves by itself, within a millisecond."""
        self.socket.close()
        end_child(self._pid, time.monotonic() + _LEAVE_S)

    def kill(self) -> None:
        """Kill the process, even if busy. A process that is stuck in the kernel is left to init after a second."""
        self.socket.close()
        end_child(self._pid, time.monotonic())


def _live(serve: Callable[[socket.socket], None], requests: socket.socket, parent: int) -> NoReturn:
    try:
        die_with_parent(parent)
        # Collected here, the parent's garbage would close fds by numbers that belong to other files by then.
        gc.freeze()
        close_stdio()
        serve(requests)
    finally:
        os._exit(0)


def close_all_but(kept: Collection[int]) -> None:
    """Close all fds above stdio, except those of `kept`."""
    first = _FIRST_FD
    for fd in sorted(kept):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first)
