"""`scplan confirm`."""

from __future__ import annotations

from typing import Annotated

from scplan.cli.options import Json, request
from scplan.cli.output import raw, results
from scplan.cli.parameters import Argument, Settings
from scplan.errors import ExitCode
from scplan.render.lines import line, visible


def confirm(
    settings: Settings,
    wanted: Annotated[
        str | None,
        Argument(metavar="[APPLY]", help="Its ID, or one of its containers; needed where several applies await it."),
    ] = None,
    as_json: Json = False,
) -> ExitCode:
    """Keep what 'apply --confirm-within' did.

    Without it everything is undone when the time is up. To undo it at once: 'scplan undo'.

    Examples:
      scplan confirm
      scplan confirm web
      scplan confirm --json
    """
    from scplan.workflow import confirming

    apply_id = confirming.confirm(request(settings), wanted)
    if as_json:
        from scplan.render.machine import confirmed_document, to_text

        raw(to_text(confirmed_document(apply_id)))
    else:
        results([line((f"Confirmed: {visible(apply_id)} stays.", "good"))])
    return ExitCode.OK
