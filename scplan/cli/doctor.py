"""`scplan doctor`."""

from __future__ import annotations

from scplan.cli.options import Json
from scplan.cli.output import raw, results
from scplan.errors import ExitCode


def doctor(as_json: Json = False) -> ExitCode:
    """Tell what this host supports.

    Kernel interfaces, cgroup version, runtimes, privileges; and what does not work without them.

    Examples:
      scplan doctor
      scplan doctor --json
    """
    from scplan import workflow

    findings = workflow.doctor()
    if as_json:
        from scplan.render.machine import doctor_document, to_text

        raw(to_text(doctor_document(findings)))
    else:
        from scplan.render.documents import doctor_lines

        results(doctor_lines(findings))
    return ExitCode.OK
