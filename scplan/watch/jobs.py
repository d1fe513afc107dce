"""Attends to batches of containers, each in a child of its own: a child that hangs delays no other batch."""

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
    """Batches in progress, at most `most`."""

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
        """Earliest deadline of a batch, by time.monotonic(); None without batches."""
        return min((job.child.deadline_s for job in self._running.values()), default=None)

    def start(self, keys: Sequence[Key], order: Order, held: Collection[int]) -> int:
        """Starts a batch; returns an fd that becomes readable at its end. `held` are fds that the child closes."""

        def work() -> list[Seen]:
            ask_to_stop_ends()
            # Open fds keep namespaces alive, even after their container ends while the child hangs. namespaces(7)
            for fd in held:
                os.close(fd)
            return attend(keys, order)

        child = Child(work, what=f"attend to {keys[0][1]}", timeout_s=_TIME_S)
        self._running[child.fd] = Job(tuple(keys), child)
        self.busy.update(keys)
        return child.fd

    def finish(self, fd: int) -> list[Seen]:
        """Results of a batch; a problem of each of its containers if the child died or timed out."""
        job = self._running.pop(fd)
        self.busy.difference_update(job.keys)
        try:
            return job.child.result()
        except (ScplanError, OSError) as error:
            said = error.diagnostics if isinstance(error, ScplanError) else (Diagnostic(summary=str(error)),)
            return [Seen(key, problems=said, failed=True) for key in job.keys]

    def overdue(self, now: float) -> list[int]:
        """fds of batches whose time is up; `finish` ends them."""
        return [fd for fd, job in self._running.items() if job.child.deadline_s <= now]

    def end(self) -> bool:
        """Waits _STOP_AFTER_S for batches to end, then sends SIGTERM, so that they undo half-done work.

        True if all batches have ended within _LEAVE_AFTER_S.
        """
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
                continue  # stopped half-way: the next supervisor recovers the container
