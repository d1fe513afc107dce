"""Work that is done later: sources of events are armed again after a pause, chores run at their time."""

from __future__ import annotations

from collections.abc import Callable

from scplan.watch.pace import Gaps, Schedule
from scplan.watch.poller import Poller

_OF_A_SOURCE = Gaps(shortest_s=0.02, longest_s=0.5)


class Rest:
    """Work that is done later: arms fds again after a pause, and runs named chores at their time."""

    def __init__(self, poller: Poller, clock: Callable[[], float]) -> None:
        self._poller, self._clock = poller, clock
        self._fds: Schedule[int] = Schedule()
        self._chores: Schedule[str] = Schedule()
        self._work: dict[str, Callable[[], None]] = {}

    def arm(self, fd: int) -> None:
        """Arms an fd again: soon after a quiet time, later and later while events keep coming."""
        self._fds.hint(fd, self._clock(), _OF_A_SOURCE)

    def after(self, seconds: float, name: str, work: Callable[[], None]) -> None:
        self._work[name] = work
        self._chores.at(name, self._clock() + seconds)

    def next_s(self) -> float | None:
        times = [one for one in (self._fds.next_s(), self._chores.next_s()) if one is not None]
        return min(times, default=None)

    def do(self) -> None:
        """Does all work that is due."""
        now = self._clock()
        for fd in self._fds.take(now, len(self._poller.fds)):
            self._poller.arm(fd)
        for name in self._chores.take(now, len(self._work)):
            self._work.pop(name)()
