"""`scplan snapshot`."""

from __future__ import annotations

from typing import Annotated

from scplan.cli.options import Files, request
from scplan.cli.output import complain, raw
from scplan.cli.parameters import Option, Settings
from scplan.errors import ExitCode


def snapshot(
    settings: Settings,
    files: Files = None,
    out: Annotated[str | None, Option(metavar="FILE", help="Write it here, not to standard output.")] = None,
) -> ExitCode:
    """Capture live state for plan --live.

    With it a plan can be made without root, or on another machine.

    Examples:
      scplan snapshot --out host.snapshot
      scplan plan --live host.snapshot
    """
    from scplan.store import durable
    from scplan.workflow import confirming, reporting

    asked = request(settings, files=files)
    captured = reporting.snapshot(asked)
    complain(confirming.state_notices(asked))
    if out is None:
        raw(captured)
    else:
        # For the owner alone (mode 0600): it contains addresses and paths of the host.
        durable.write_document(out, captured.encode())
    return ExitCode.OK
