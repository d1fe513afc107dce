"""Applies that are undone unless they are confirmed: the watchdog, the confirmation, and what every command says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scplan.errors import Diagnostic, KernelError, Severity
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.store.state import State
from scplan.workflow.scene import Request

if TYPE_CHECKING:
    from collections.abc import Callable


def notices(state: State) -> list[Diagnostic]:
    """Warnings about what a crash left half done, and about what awaits confirmation.

    Where its watchdog is gone, another one is started: so any command brings an undo about that is due.
    """
    if not state.has_open_journals():
        return []
    from scplan.applying.watchdog import is_watched
    from scplan.store import confirmation

    with Host() as host:
        left = confirmation.all_left_behind(state.directory, KINDS, host.boot_id)
    if any(one.left_s or one.is_overdue for one in left) and not is_watched(state.directory):
        _start_watchdog(state, left[0].apply_id)
    return confirmation.warnings(left)


def state_notices(request: Request) -> list[Diagnostic]:
    """The same for a command that has nothing else to do with applies."""
    return notices(State(request.state_dir, KINDS))


def arm_watchdog(state: State, apply_id: str) -> None:
    """Returns when something is there that undoes the apply, whatever becomes of this process."""
    from scplan.applying.watchdog import arm

    arm(state.directory, apply_id, lambda: _start_watchdog(state, apply_id))


def _start_watchdog(state: State, apply_id: str) -> None:
    from scplan.linux.processes.programs import scplan_command, start_detached, start_service

    if not os.access(state.directory, os.W_OK):
        return
    command = scplan_command(["--state-dir", os.path.abspath(state.directory), "recover", "--wait"])
    if not start_service(f"scplan-confirm-{apply_id}", command):
        start_detached(command)


def undo_overdue(state: State, host: Host, timeout_s: float) -> list[Diagnostic]:
    """Undo what nobody confirmed in time, before anything else is changed; a warning about each apply.

    One that could not be undone goes on blocking what it touches, and nothing else.
    """
    if not state.has_open_journals():
        return []
    from scplan.applying import recovery

    lines, failures = recovery.undo_overdue(recovery.Recovery(state, KINDS, host, timeout_s, lambda _: None))
    said = [Diagnostic(summary=line) for line in lines] + [one for error in failures for one in error.diagnostics]
    return [one._replace(severity=Severity.WARNING) for one in said]


def confirm(request: Request, wanted: str | None = None) -> str:
    """Keep what an apply that awaits confirmation did; returns its ID. `wanted` is its ID, or one of its containers.

    Raises ScplanError when it is too late.
    """
    from scplan.store import confirmation

    state = State(request.state_dir, KINDS)
    notices(state)
    with Host() as host:
        return confirmation.confirm(state.directory, KINDS, host.boot_id, wanted)


def wait_for_confirmation(request: Request, tell: Callable[[str], None]) -> None:
    """Undoes what is not confirmed in time; what is done is told, and written to the system's log."""
    import syslog

    from scplan.applying import recovery, watchdog

    def told(line: str) -> None:
        syslog.syslog(syslog.LOG_NOTICE, line)
        tell(line)

    syslog.openlog("scplan", syslog.LOG_PID, syslog.LOG_DAEMON)
    state = State(request.state_dir, KINDS)
    with Host() as host:
        asked = recovery.Recovery(state, KINDS, host, request.lock_timeout_s, lambda _: None)
        try:
            watchdog.watch(asked, told)
        except KernelError as error:
            told(str(error))
            raise
