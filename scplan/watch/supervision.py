"""The supervisor's loop: receives hints, attends to containers, reports the results. READ FIRST in watch/.

The loop waits for many fds at once, for nothing else, and holds no lock of an apply meanwhile. Children (`jobs.py`) do
all work that can take time, or hang. The loop remembers only its reports: the records are its memory.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from scplan.errors import Diagnostic, KernelError, ScplanError, Severity
from scplan.kinds import KINDS
from scplan.linux import service
from scplan.linux.host import Host
from scplan.linux.processes.privileges import missing_capabilities, raise_open_files
from scplan.linux.processes.signals import Woken
from scplan.model.live import Status
from scplan.model.report import Notice, Occasion, Tally
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import State
from scplan.watch.attend import Key, Order, Seen, attend
from scplan.watch.engines import Engines
from scplan.watch.hearing import Hearing
from scplan.watch.jobs import Jobs
from scplan.watch.pace import Gaps, Schedule
from scplan.watch.poller import Poller
from scplan.watch.recordings import Recordings
from scplan.watch.rest import Rest
from scplan.watch.signs import StartEvents
from scplan.watch.watched import Inventory, Watched
from scplan.workflow.plugging import end_starts
from scplan.workflow.scene import Request

# setns(2) into a mount namespace: SYS_ADMIN and SYS_CHROOT; /proc/PID/ns of other users: SYS_PTRACE; links and routes:
# NET_ADMIN; mknod(2): MKNOD; files of other users: DAC_OVERRIDE. capabilities(7)
_NEEDED = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_SYS_CHROOT")
# Starts and ends of containers are checked soon, even if they repeat. Changes inside a container can wait longer, since
# root in the container can cause them all the time.
_OF_LIFE = Gaps(shortest_s=0.1, longest_s=1.5, settle_s=0.01)
_INSIDE = Gaps(shortest_s=0.25, longest_s=15.0, settle_s=0.05)
_AGAIN_S = 0.05
_BATCH = 20
_POLL_S, _POLLS_PER_S = 2.0, 50
_ENGINES_S, _FIRST_S = 10.0, 1.0
_BUSY_S, _BUSY_TIMES = 0.5, 10
_FIRST_PAUSE_S = 0.2
# Periodic checks are made together, in this many rounds between two checks of the same container.
_ROUNDS = 20
_LOCK_S = 2.0
# Open files of the supervisor, and of each container: a pidfd, a netlink socket and /proc/PID/mountinfo.
_FDS, _FDS_EACH = 200, 3

Tell = Callable[[Notice], None]
Count = Callable[[Tally], None]


class Settings(NamedTuple):
    """Options of supervision. Every container is checked every `check_s` seconds; `heal` repairs drift."""

    heal: bool = False
    check_s: float = 60.0


def writes_to_journal(fd: int) -> bool:
    """True if `fd` is a stream to systemd's journal, where a line may begin with its priority. sd-daemon(3)"""
    return service.writes_to_journal(fd)


def once(request: Request, settings: Settings, tell: Tell, count: Count) -> bool:
    """Attends to every container once; True if no container stayed busy or has a problem."""
    state, inventory = State(request.state_dir, KINDS), Inventory(tell, is_patient=False)
    deadline = time.monotonic() + request.lock_timeout_s
    waiting: Sequence[Key] = state.names()
    while waiting:
        is_last = time.monotonic() > deadline
        seen = attend(waiting, Order(request, settings.heal, patient=is_last, asks_engines=True))
        for one in seen:
            inventory.take(one, 0.0)
        waiting = [one.key for one in seen if one.busy]
        if is_last:
            break
        time.sleep(_BUSY_S if waiting else 0)
    count(inventory.tally())
    return not waiting and not any(one.problems for one in inventory.containers.values())


def supervise(request: Request, settings: Settings, tell: Tell, count: Count) -> None:
    """Runs until SIGTERM or SIGINT. Raises Locked if another supervisor has the same records."""
    import gc

    gc.enable()  # commands run without garbage collection, since they are short; a supervisor needs it
    state = State(request.state_dir, KINDS)
    with ExitStack() as stack:
        lock_fd = stack.enter_context(state.supervised(_LOCK_S))
        Supervisor(request, settings, state, lock_fd, stack, Inventory(tell, is_patient=True), count).run()


class Supervisor:
    """The loop and its parts. Closing `stack` closes everything that it opens."""

    def __init__(
        self,
        request: Request,
        settings: Settings,
        state: State,
        lock_fd: int,
        stack: ExitStack,
        inventory: Inventory,
        count: Count,
    ) -> None:
        self._request, self._settings, self._state, self._lock_fd = request, settings, state, lock_fd
        self._inventory, self._count = inventory, count
        self._woken = Woken(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._turns: Schedule[Key] = Schedule()
        # Containers with problems have jobs of their own: if they hang, they must not delay healthy containers.
        self._jobs, self._troubled = Jobs(2), Jobs(1)
        self._parked: list[Key] = []
        self._is_ending = False
        self._complained: set[str] = set()
        host = stack.enter_context(Host())
        self._poller = stack.enter_context(Poller())
        self._rest = Rest(self._poller, time.monotonic)
        self._recordings = stack.enter_context(Recordings(state))
        self._signs = stack.enter_context(StartEvents(self._poller, self._hint_of_life, self._rest, self._complain))
        self._hearing = stack.enter_context(
            Hearing(self._poller, self._hint_of_life, self._hint_inside, self._rest, self._complain, host)
        )
        self._engines = stack.enter_context(
            Engines(self._poller, self._rest, inventory, min(settings.check_s, _ENGINES_S), self._held)
        )
        self._poller.add(self._woken.fd, self._heard_signal)
        self._poller.add(self._recordings.fd, self._heard_records)

    def run(self) -> None:
        self._begin()
        while not self._is_ending:
            self._start_jobs()
            self._poller.wait(self._patience_s())
            self._rest.do()
            self._end_overdue()
        self._end()

    # begin and end

    def _begin(self) -> None:
        lacking = missing_capabilities(_NEEDED)
        if lacking:
            self._degraded(
                f"without {', '.join(lacking)} not everything can be seen or plugged in", "run it as root, on the host"
            )
        for line in self._recovered():
            self._inventory.tell(Notice(Occasion.RECOVERED, lines=(line,)))
        self._read_all()
        alive_s = service.sign_of_life_every_s()
        if alive_s is not None:
            self._sign_of_life(alive_s)
        self._count_again()
        self._rest.after(min(self._settings.check_s, _FIRST_S), "ask engines", self._engines.ask)
        self._inventory.tell(Notice(Occasion.WATCHING, resources=len(self._inventory.containers)))
        service.notify("READY=1", f"STATUS=Watching {len(self._inventory.containers)} containers")

    def _recovered(self) -> list[str]:
        """Recovers the half-done work of a killed supervisor; returns a line about each."""
        with Host() as host:
            try:
                return end_starts(self._state, host, self._request)
            except ScplanError as error:
                self._inventory.tell(Notice(Occasion.PROBLEM, diagnostics=error.diagnostics))
                return []

    def _end(self) -> None:
        service.notify("STOPPING=1")
        ended = self._jobs.end()
        ended = self._troubled.end() and ended
        self._count(self._inventory.tally())
        lines = () if ended else ("what was being done goes on without supervision",)
        self._inventory.tell(Notice(Occasion.ENDING, lines=lines))

    def _sign_of_life(self, every_s: float) -> None:
        service.notify("WATCHDOG=1")
        self._rest.after(every_s, "sign of life", lambda: self._sign_of_life(every_s))

    def _count_again(self) -> None:
        self._count(self._inventory.tally())
        self._rest.after(self._settings.check_s, "count", self._count_again)

    # hints

    def _heard_signal(self) -> None:
        taken = self._woken.take()
        self._poller.arm(self._woken.fd)
        if taken & {signal.SIGTERM, signal.SIGINT}:
            self._is_ending = True
        elif taken:
            # SIGHUP asks for a reload, by ExecReload= of systemd.service(5).
            service.reloading()
            self._complained.clear()
            self._read_all()
            self._signs.connect_again()
            service.notify("READY=1")

    def _heard_records(self) -> None:
        for key in self._recordings.heard():
            self._watch(key)
            self._turns.at(key, time.monotonic() + _AGAIN_S)
        self._rest.arm(self._recordings.fd)

    def _read_all(self) -> None:
        self._recordings.watch_all()
        names = self._state.names()
        for key in [key for key in self._inventory.containers if key not in set(names)]:
            self._forget(key)
        for key in names:
            self._watch(key)
            self._turns.at(key, time.monotonic())

    def _watch(self, key: Key) -> None:
        self._inventory.containers.setdefault(key, Watched(key))
        wanted = _FDS + _FDS_EACH * len(self._inventory.containers)
        if raise_open_files(wanted) < wanted:
            self._degraded(
                "too few files may be open: some containers are only looked at from time to time",
                f"LimitNOFILE={wanted} of its unit allows more",
            )

    def _forget(self, key: Key) -> None:
        one = self._inventory.containers.pop(key, None)
        if one is not None:
            self._hearing.stop(one)
            self._signs.await_nothing(one)
        self._turns.forget(key)

    def _hint_of_life(self, keys: Iterable[Key]) -> None:
        """Schedules checks of containers that may have started or ended."""
        self._hint(keys, _OF_LIFE)

    def _hint_inside(self, keys: Iterable[Key]) -> None:
        """Schedules checks of containers in which something may have changed."""
        self._hint(keys, _INSIDE)

    def _hint(self, keys: Iterable[Key], gaps: Gaps) -> None:
        now = time.monotonic()
        for key in keys:
            one = self._inventory.containers.get(key)
            if one is None:
                continue
            if one.hinted_s is None:
                one.hinted_s = now
            self._turns.hint(key, now, gaps)

    # attending

    def _start_jobs(self) -> None:
        if self._jobs.is_full:
            return
        healthy: list[Key] = []
        for key in self._turns.take(time.monotonic(), _BATCH):
            one = self._inventory.containers.get(key)
            if one is None:
                continue
            if key in self._jobs.busy | self._troubled.busy or (one.problems and self._troubled.is_full):
                self._parked.append(key)
            elif one.problems:
                self._start([key], self._troubled)
            else:
                healthy.append(key)
        if healthy:
            self._start(healthy, self._jobs)

    def _start(self, keys: Sequence[Key], jobs: Jobs) -> None:
        watched = [self._inventory.containers[key] for key in keys]
        for one in watched:
            one.looked_for_s, one.hinted_s = one.hinted_s, None
            if one.life is not None:
                one.life.forget()  # the check may miss an event from now on, so that it must count
        patient = all(one.busy_times >= _BUSY_TIMES for one in watched)
        order = Order(self._request, self._settings.heal, patient)
        fd = jobs.start(keys, order, self._held())
        self._poller.add(fd, lambda: self._finish(fd, jobs))

    def _held(self) -> list[int]:
        """fds that children close."""
        # The lock would last as long as a child has a copy of its fd: flock(2). The poller has the first fd of _woken.
        return [*self._poller.fds, *self._woken.fds[1:], self._lock_fd]

    def _finish(self, fd: int, jobs: Jobs) -> None:
        self._poller.remove(fd)
        for seen in jobs.finish(fd):
            if seen.key in self._inventory.containers:
                self._take(seen)
        parked, self._parked = self._parked, []
        for key in parked:
            self._turns.at(key, time.monotonic())

    def _end_overdue(self) -> None:
        for jobs in (self._jobs, self._troubled):
            for fd in jobs.overdue(time.monotonic()):
                self._finish(fd, jobs)

    def _take(self, seen: Seen) -> None:
        """Reports the news of a container, listens for its next event, and schedules its next check."""
        now, one = time.monotonic(), self._inventory.containers[seen.key]
        before = (one.drifted, one.problems, one.owned)
        self._inventory.take(seen, now - one.looked_for_s if one.looked_for_s is not None else 0.0)
        if seen.facts is None and not seen.failed:
            self._forget(seen.key)
        elif seen.busy:
            one.busy_times, one.hinted_s = one.busy_times + 1, one.looked_for_s
            self._turns.at(seen.key, now + _BUSY_S)
        elif seen.failed:
            one.pause_s = min(max(2 * one.pause_s, _FIRST_PAUSE_S), self._settings.check_s)
            self._turns.postpone(seen.key, now + one.pause_s)
            if one.life is None:
                self._signs.await_start(one)
        else:
            one.busy_times, one.pause_s = 0, 0.0
            self._listen(one, now)
        if one.life is not None:
            self._hearing.arm(one)
        if before != (one.drifted, one.problems, one.owned) or seen.started or seen.healed:
            self._rest.after(0.1, "count", self._count_again)

    def _listen(self, one: Watched, now: float) -> None:
        """Listens for events of a running container, or for signs of a stopped container's start; schedules a check."""
        assert one.facts is not None
        one.is_unheard = False
        if one.facts.status is Status.STOPPED:
            self._hearing.stop(one)
            is_new = self._signs.await_start(one)
        else:
            self._signs.await_nothing(one)
            is_new = self._hearing.start(one)
        if is_new:
            # Events between the check and now were missed: check again soon.
            self._turns.at(one.key, now + _AGAIN_S)
        wait_s = self._settings.check_s
        if one.problems:
            wait_s = min(wait_s, _FIRST_PAUSE_S if not one.had_problems else 10 * _FIRST_PAUSE_S)
        elif one.is_unheard or (one.facts.status is Status.STOPPED and one.signs.is_polled):
            wait_s = min(wait_s, max(_POLL_S, len(self._inventory.containers) / _POLLS_PER_S))
        else:
            # The first checks are spread over the rounds, and stay there: one child checks all containers of a round.
            grain_s = wait_s / _ROUNDS
            wait_s = math.ceil((now + wait_s * random.uniform(0.9, 1.0)) / grain_s) * grain_s - now
        self._turns.at(one.key, now + wait_s)

    # telling

    def _complain(self, error: KernelError | OSError) -> None:
        """Reports that events of something cannot be received, so that it is only checked at intervals."""
        if isinstance(error, ScplanError):
            words, hint = error.diagnostics[0].summary, error.diagnostics[0].hint
        else:
            words, hint = f"{error.filename or 'system call'}: {error.strerror}", ""
        self._degraded(f"{words}: it is only looked at from time to time", hint)

    def _degraded(self, summary: str, hint: str) -> None:
        if summary in self._complained or len(self._complained) > 1000:
            return
        self._complained.add(summary)
        diagnostic = Diagnostic(summary=summary, hint=hint, severity=Severity.WARNING)
        self._inventory.tell(Notice(Occasion.DEGRADED, diagnostics=(diagnostic,)))

    def _patience_s(self) -> float | None:
        """Seconds until the next work that needs no event; None if there is none."""
        due_s = None if self._jobs.is_full else self._turns.next_s()
        times = (due_s, self._rest.next_s(), self._jobs.deadline_s, self._troubled.deadline_s)
        known = [one for one in times if one is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None
