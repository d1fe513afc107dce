"""`scplan drift`."""

from __future__ import annotations

import time
from typing import Annotated

from scplan.cli.options import DetailedExitCode, Files, Json, Paths, request
from scplan.cli.output import complain, raw, results
from scplan.cli.parameters import Option, Settings
from scplan.errors import ExitCode, ScplanError


def drift(
    settings: Settings,
    paths: Paths = None,
    files: Files = None,
    as_json: Json = False,
    metrics: Annotated[
        str | None,
        Option(metavar="FILE", help="Also write Prometheus metrics, for the node exporter's textfile collector."),
    ] = None,
    detailed_exitcode: DetailedExitCode = False,
) -> ExitCode:
    """Report what is no longer as scplan left it, and what is pending.

    Compares owned resources with live ones, and the files with what was applied. Read-only. What can't be read,
    located or planned is reported with the rest: the exit code is 1 then.

    Examples:
      scplan drift
      scplan drift --detailed-exitcode
      scplan drift --metrics /var/lib/node_exporter/scplan.prom
    """
    from scplan.workflow import reporting

    try:
        report = reporting.drift(request(settings, files=[*(files or ()), *(paths or ())]))
    except ScplanError as error:
        if metrics is not None:
            from scplan.render.metrics import failure_metrics

            _write(metrics, failure_metrics(len(error.diagnostics), time.time()))
        raise
    if metrics is not None:
        from scplan.render.metrics import drift_metrics

        _write(metrics, drift_metrics(report, time.time()))
    if as_json:
        from scplan.render.machine import drift_document, to_text

        raw(to_text(drift_document(report)))
    else:
        from scplan.render.documents import drift_lines

        results(drift_lines(report))
        complain((*report.diagnostics, *report.pending.diagnostics))
    if report.problems:
        return ExitCode.ERROR
    differs = bool(report.drifted or report.pending.has_changes)
    return ExitCode.CHANGES if detailed_exitcode and differs else ExitCode.OK


def _write(path: str, text: str) -> None:
    from scplan.store import durable

    # Readable for the node exporter, which runs as another user; counts are not secret.
    durable.write_document(path, text.encode(errors="surrogateescape"), mode=0o644)
