"""`scplan doctor`."""

from __future__ import annotations

from scplan.cli.options import Json, request
from scplan.cli.output import complain, raw, results
from scplan.cli.parameters import Settings
from scplan.errors import ExitCode


def doctor(settings: Settings, as_json: Json = False) -> ExitCode:
    """Tell what this host supports.

    Kernel interfaces, cgroup version, runtimes, privileges; and what does not work without them. Also what
    containers that have ended left of the host.

    Examples:
      scplan doctor
      scplan doctor --json
    """
    from scplan.workflow import reporting

    findings, notices = reporting.doctor(), reporting.record_notices(request(settings))
    complain(notices)
    if as_json:
        from scplan.render.machine import doctor_document, to_text

        raw(to_text(doctor_document(findings, notices)))
    else:
        from scplan.render.documents import doctor_lines

        results(doctor_lines(findings))
    return ExitCode.OK
