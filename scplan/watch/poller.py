"""fds that are waited for; each is mute after it was heard, until it is armed again. epoll(7)."""

from __future__ import annotations

import select
from collections.abc import Callable

from scplan.linux.closing import Closing

_MOST_AT_ONCE = 256


class Poller(Closing):
    """Calls what was registered for each fd that is ready: once, so that a flood of events costs as much as one."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._heard: dict[int, tuple[int, Callable[[], None]]] = {}

    def close(self) -> None:
        self._epoll.close()

    @property
    def fds(self) -> list[int]:
        """All that are waited for, and its own."""
        return [self._epoll.fileno(), *self._heard]

    def add(self, fd: int, heard: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """`heard` is called once when the fd is ready. Raises OSError when there are too many."""
        self._epoll.register(fd, events | select.EPOLLONESHOT)
        self._heard[fd] = (events, heard)

    def arm(self, fd: int) -> None:
        """Has the fd heard again; at once when something came in meanwhile."""
        if fd in self._heard:
            self._epoll.modify(fd, self._heard[fd][0] | select.EPOLLONESHOT)

    def remove(self, fd: int) -> None:
        """Before it is closed: a child that has a copy would keep its events coming."""
        if self._heard.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, timeout_s: float | None) -> None:
        """Waits until something is heard, for so long at most, and calls what it was registered with."""
        for fd, _ in self._epoll.poll(None if timeout_s is None else max(0.0, timeout_s), _MOST_AT_ONCE):
            # One that was heard before may have removed it.
            if fd in self._heard:
                self._heard[fd][1]()
