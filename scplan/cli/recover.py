"""`scplan recover`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from scplan.cli.options import LockTimeout, at_most_one, request
from scplan.cli.output import message, results, unfailing
from scplan.cli.parameters import Option, Settings
from scplan.errors import ExitCode
from scplan.render.lines import line, visible
from scplan.render.text import Progress


def recover(
    settings: Settings,
    forward: Annotated[bool, Option(("--forward",), help="Finish all that was planned.")] = False,
    back: Annotated[bool, Option(("--back",), help="Undo what was begun.")] = False,
    wait: Annotated[
        bool, Option(("--wait",), help="Wait for a confirmation that is due, and undo when it does not come.")
    ] = False,
    lock_timeout: LockTimeout = 30.0,
) -> ExitCode:
    """Finish or undo what a crash left half done.

    Without an option the journal decides which of the two. Every other command that writes refuses until then.
    What was to be confirmed and was not, is undone; what can still be confirmed is left alone.

    Examples:
      scplan recover
      scplan recover --back
    """
    at_most_one(forward=forward, back=back, wait=wait)
    from scplan import workflow

    if wait:
        workflow.wait_for_confirmation(request(settings, lock_timeout_s=lock_timeout), message)
        return ExitCode.OK
    direction: Literal["auto", "forward", "back"] = "forward" if forward else "back" if back else "auto"
    with Progress(sys.stderr) as progress:
        recovered = workflow.recover(
            request(settings, lock_timeout_s=lock_timeout), direction, unfailing(progress.show)
        )
    results([line(visible(text)) for text in recovered or ["Nothing to recover."]])
    return ExitCode.OK
