"""Containers being attended to, each batch by a child of its own: one that hangs keeps nobody else waiting."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Sequence

from scplan.errors import Diagnostic, KernelError, ScplanError
from scplan.linux.processes.namespaces import Child
from scplan.linux.processes.signals import ask_to_stop_ends
from scplan.startup.named_tuple import NamedTuple
from scplan.watch.attend import Key, Order, Seen, attend

_TIME_S = 120.0
"""For a batch, an apply in each container included."""
_STOP_AFTER_S, _LEAVE_AFTER_S = 3.0, 10.0


class Job(NamedTuple):
    """A child and the containers that it attends to."""

    keys: tuple[Key, ...]
    child: Child[list[Seen]]


class Jobs:
    """What is being attended to just now."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: dict[int, Job] = {}
        self.busy: set[Key] = set()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def is_full(self) -> bool:
        return len(self._running) >= self._most

    @property
    def deadline_s(self) -> float | None:
        """When the time of the first of them is up."""
        return min((job.child.deadline_s for job in self._running.values()), default=None)

    def start(self, keys: Sequence[Key], order: Order, held: Collection[int]) -> int:
        """Attends to containers; returns an fd that is readable at the end. `held` are fds that are not for it."""

        def work() -> list[Seen]:
            ask_to_stop_ends()
            # They keep namespaces of containers, which may end while the child is at work or stuck.
            for fd in held:
                os.close(fd)
            return attend(keys, order)

        child = Child(work, what=f"attend to {keys[0][1]}", timeout_s=_TIME_S)
        self._running[child.fd] = Job(tuple(keys), child)
        self.busy.update(keys)
        return child.fd

    def finish(self, fd: int) -> list[Seen]:
        """What came of it; a problem of each of its containers when the child died, or its time was up."""
        job = self._running.pop(fd)
        self.busy.difference_update(job.keys)
        try:
            return job.child.result()
        except (ScplanError, OSError) as error:
            said = error.diagnostics if isinstance(error, ScplanError) else (Diagnostic(summary=str(error)),)
            return [Seen(key, problems=said, failed=True) for key in job.keys]

    def overdue(self, now: float) -> list[int]:
        """fds of those whose time is up; `finish` ends them."""
        return [fd for fd, job in self._running.items() if job.child.deadline_s <= now]

    def end(self) -> bool:
        """Lets them come to an end, then asks them to stop, which undoes what is half done; whether all have ended."""
        begun = time.monotonic()
        asked = False
        while self._running and time.monotonic() - begun < _LEAVE_AFTER_S:
            if not asked and time.monotonic() - begun > _STOP_AFTER_S:
                asked = True
                for job in self._running.values():
                    os.kill(job.child.pid, signal.SIGTERM)
            self._reap()
            time.sleep(0.01)
        return not self._running

    def _reap(self) -> None:
        from scplan.linux.processes.namespaces import is_ready

        for fd in [fd for fd in self._running if is_ready(fd, 0)]:
            try:
                self._running.pop(fd).child.result()
            except (KernelError, ScplanError, OSError):
                continue  # stopped half way: what it left is recovered by the next one
