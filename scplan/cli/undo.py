"""`scplan undo`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scplan.cli.apply import JsonLines, carry_out
from scplan.cli.options import AutoApprove, LockTimeout, request
from scplan.cli.output import approve, message, raw, results, unfailing
from scplan.cli.parameters import Settings
from scplan.errors import Declined, ExitCode, ScplanError
from scplan.render.lines import line, visible
from scplan.render.text import Progress

if TYPE_CHECKING:
    from scplan.model.report import Past
    from scplan.workflow.scene import Request


def undo(
    settings: Settings,
    auto_approve: AutoApprove = False,
    as_json: JsonLines = False,
    lock_timeout: LockTimeout = 30.0,
) -> ExitCode:
    """Revert the last committed apply.

    Plans the way back against live state, shows it, asks, and makes it like any change. An undo is an apply
    too: undone, it is made again. What awaits confirmation is given up at once.

    Examples:
      scplan undo
      scplan undo --auto-approve
    """
    from scplan.workflow import undoing

    asked = request(settings, lock_timeout_s=lock_timeout)
    pending = undoing.awaiting(asked)
    if pending is None:
        return carry_out(lambda: undoing.open_undo(asked), approved=auto_approve, as_json=as_json)
    if as_json:
        return _give_up_for_machines(pending, asked, approved=auto_approve)
    message(f"apply {visible(pending.apply_id)} awaits confirmation for {pending.left_s:.0f} s more")
    if not auto_approve:
        approve("Undo it now?")
    with Progress(sys.stderr) as progress:
        told = undoing.give_up(pending, asked, unfailing(progress.show))
    results([line(visible(told))])
    return ExitCode.OK


def _give_up_for_machines(pending: Past, asked: Request, *, approved: bool) -> ExitCode:
    from scplan.render import machine
    from scplan.workflow import undoing

    try:
        if not approved:
            raise Declined("nothing was changed: --json can't ask", hint="approve it beforehand: --auto-approve")
        undoing.give_up(pending, asked, lambda event: raw(machine.to_line(machine.event_document(event))))
    except ScplanError as error:
        raw(machine.to_line(machine.failure_event(error.exit_code, error.diagnostics)))
        raise
    raw(machine.to_line(machine.given_up_event(pending.apply_id)))
    return ExitCode.OK
