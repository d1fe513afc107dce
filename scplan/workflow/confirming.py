"""Applies that are undone unless they are confirmed: the watchdog, the confirmation, and the notices of commands."""

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
    """Warnings about applies that did not end, or await confirmation.

    Starts a new watchdog if an apply awaits confirmation and none runs: any command thus gets a due undo made.
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
    """`notices` for a command that does not deal with applies otherwise."""
    return notices(State(request.state_dir, KINDS))


def arm_watchdog(state: State, apply_id: str) -> None:
    """Return when a watchdog watches the apply, independent of this process. Raises ScplanError if none starts."""
    from scplan.applying.watchdog import arm

    arm(state.directory, apply_id, lambda: _start_watchdog(state, apply_id))


def _start_watchdog(state: State, apply_id: str) -> None:
    """Start a watchdog as a service of systemd, else as a detached process; only with write access to the state."""
    from scplan.linux.processes.programs import scplan_command, start_detached, start_service

    if not os.access(state.directory, os.W_OK):
        return
    command = scplan_command(["--state-dir", os.path.abspath(state.directory), "recover", "--wait"])
    # A service is restarted when killed, and outlives the login session: logind.conf(5), KillUserProcesses.
    if not start_service(f"scplan-confirm-{apply_id}", command):
        start_detached(command)


def undo_overdue(state: State, host: Host, timeout_s: float) -> list[Diagnostic]:
    """Undo applies that were not confirmed in time, before other changes are made; returns a warning per apply.

    An apply that could not be undone still blocks its own containers and things of the host, and nothing else.
    """
    if not state.has_open_journals():
        return []
    from scplan.applying import recovery

    lines, failures = recovery.undo_overdue(recovery.Recovery(state, KINDS, host, timeout_s, lambda _: None))
    said = [Diagnostic(summary=line) for line in lines] + [one for error in failures for one in error.diagnostics]
    return [one._replace(severity=Severity.WARNING) for one in said]


def confirm(request: Request, wanted: str | None = None) -> str:
    """Confirm the apply that awaits confirmation; returns its ID. `wanted` is its ID, or one of its containers.

    Raises ScplanError if it is too late.
    """
    from scplan.store import confirmation

    state = State(request.state_dir, KINDS)
    notices(state)
    with Host() as host:
        return confirmation.confirm(state.directory, KINDS, host.boot_id, wanted)


def wait_for_confirmation(request: Request, tell: Callable[[str], None]) -> None:
    """Run the watchdog: undo applies that are not confirmed in time. `tell` and syslog(3) get a line per event."""
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
