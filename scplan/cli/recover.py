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
    accept_live: Annotated[
        bool,
        Option(("--accept-live",), help="The last way out: change only the records, which follow live state."),
    ] = False,
    wait: Annotated[
        bool, Option(("--wait",), help="Wait for a confirmation that is due, and undo when it does not come.")
    ] = False,
    lock_timeout: LockTimeout = 30.0,
) -> ExitCode:
    """Finish or undo what a crash left half done.

    Without an option the journal decides which of the two. Until then every other command refuses to change the
    containers of that apply. What was to be confirmed and was not, is undone; what can still be confirmed is left
    alone.
    An apply that can't be recovered does not keep the others from it.

    With --accept-live nothing is changed but the records: what is there and was recorded or planned is owned as it is,
    what is gone is forgotten, and each difference is printed.

    Examples:
      scplan recover
      scplan recover --back
      scplan recover --accept-live
    """
    at_most_one(forward=forward, back=back, accept_live=accept_live, wait=wait)
    from scplan.workflow import applying, confirming

    asked = request(settings, lock_timeout_s=lock_timeout)
    if wait:
        confirming.wait_for_confirmation(asked, message)
        return ExitCode.OK
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        results([line(visible(text))])

    if accept_live:
        applying.accept_live(asked, tell)
    else:
        direction: Literal["auto", "forward", "back"] = "forward" if forward else "back" if back else "auto"
        with Progress(sys.stderr) as progress:
            applying.recover(asked, direction, unfailing(progress.show), tell)
    if not told:
        results([line("Nothing to recover.")])
    return ExitCode.OK
