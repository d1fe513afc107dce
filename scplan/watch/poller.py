"""Waits for fds. An fd is disabled after each event, until it is armed again. epoll(7)."""

from __future__ import annotations

import select
from collections.abc import Callable

from scplan.linux.closing import Closing

_MOST_AT_ONCE = 256


class Poller(Closing):
    """Calls the callback of each fd that is ready, once, so that a flood of events costs no more than one event."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._heard: dict[int, tuple[int, Callable[[], None]]] = {}

    def close(self) -> None:
        self._epoll.close()

    @property
    def fds(self) -> list[int]:
        """All registered fds, and the fd of the epoll instance itself."""
        return [self._epoll.fileno(), *self._heard]

    def add(self, fd: int, heard: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Registers an fd; `heard` is called once when it is ready. Raises OSError if too many fds are registered."""
        # EPOLLONESHOT: after one event the kernel disables the fd, until it is modified. epoll_ctl(2)
        self._epoll.register(fd, events | select.EPOLLONESHOT)
        self._heard[fd] = (events, heard)

    def arm(self, fd: int) -> None:
        """Enables an fd again; an event since it was disabled counts at once."""
        if fd in self._heard:
            self._epoll.modify(fd, self._heard[fd][0] | select.EPOLLONESHOT)

    def remove(self, fd: int) -> None:
        """Unregisters an fd. Call it before close(2): a copy of the fd in a child would keep the events coming."""
        if self._heard.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, timeout_s: float | None) -> None:
        """Waits for events, at most `timeout_s` seconds (None: for ever), and calls the callbacks of their fds."""
        for fd, _ in self._epoll.poll(None if timeout_s is None else max(0.0, timeout_s), _MOST_AT_ONCE):
            # The callback of an earlier event may have removed the fd.
            if fd in self._heard:
                self._heard[fd][1]()
