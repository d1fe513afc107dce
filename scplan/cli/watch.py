"""`scplan watch`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from scplan.cli.options import parse_duration, request
from scplan.cli.output import raw, silence
from scplan.cli.parameters import Option, Settings
from scplan.errors import ExitCode

if TYPE_CHECKING:
    from scplan.model.report import Notice, Tally

_SHORTEST_CHECK_S, _LONGEST_CHECK_S = 1.0, 24 * 3600.0
_LOCK_TIMEOUT_S = 1.0


def parse_check(text: str) -> float:
    """Seconds between two checks of a container, from 1 s to 24 h. Raises ValueError."""
    seconds = parse_duration(text)
    if not _SHORTEST_CHECK_S <= seconds <= _LONGEST_CHECK_S:
        raise ValueError(f"{text} is not between 1s and 24h")
    return seconds


def watch(
    settings: Settings,
    heal: Annotated[bool, Option(("--heal",), help="Also mend what drifted.")] = False,
    once: Annotated[bool, Option(("--once",), help="Attend to each container one time, then end.")] = False,
    every: Annotated[
        float,
        Option(
            parser=parse_check,
            metavar="DURATION",
            help="How often to look for what nothing tells about. Default: 60s.",
        ),
    ] = 60.0,
    metrics: Annotated[
        str | None,
        Option(metavar="FILE", help="Keep Prometheus metrics there, for the textfile collector."),
    ] = None,
    syslog: Annotated[bool, Option(("--syslog",), help="Write to the system's log, not to standard error.")] = False,
    as_json: Annotated[bool, Option(("--json",), help="A JSON object a line on standard output.")] = False,
) -> ExitCode:
    """Plug in what starting containers had; tell drift as it happens.

    For containers whose runtime has no hook of scplan, and to hear at once when somebody changes one by hand.
    It acts on what the records say and only there; what others own is not even looked at. Physical NICs of a
    container that ended are brought home. SIGTERM ends it, SIGHUP has it read everything again.

    Examples:
      scplan watch
      scplan watch --heal --metrics /var/lib/node_exporter/scplan-watch.prom
      scplan watch --once
    """
    from scplan.watch import supervision

    tell = _as_json if as_json else _to_syslog if syslog else _to_stderr()
    asked = request(settings, lock_timeout_s=_LOCK_TIMEOUT_S)
    how = supervision.Settings(heal=heal, check_s=every)
    if once:
        went_well = supervision.once(asked, how, _unfailing(tell), _counter(metrics, tell))
        return ExitCode.OK if went_well else ExitCode.ERROR
    supervision.supervise(asked, how, _unfailing(tell), _counter(metrics, tell))
    return ExitCode.OK


def _as_json(notice: Notice) -> None:
    from scplan.render.machine import to_line
    from scplan.render.notices import notice_to_json

    raw(to_line(notice_to_json(notice, time.time())))


def _to_syslog(notice: Notice) -> None:
    import syslog

    from scplan.render.notices import notice_lines, priority

    syslog.openlog("scplan", syslog.LOG_PID, syslog.LOG_DAEMON)
    for text in notice_lines(notice):
        syslog.syslog(priority(notice), text)


def _to_stderr() -> Callable[[Notice], None]:
    from scplan.watch.supervision import writes_to_journal

    has_priorities = writes_to_journal(sys.stderr.fileno())

    def tell(notice: Notice) -> None:
        from scplan.render.notices import notice_lines, priority

        # systemd's journal takes the priority from a prefix such as <4>. sd-daemon(3).
        prefix = f"<{priority(notice)}>" if has_priorities else ""
        sys.stderr.write("".join(f"{prefix}{text}\n" for text in notice_lines(notice)))
        sys.stderr.flush()

    return tell


def _unfailing(tell: Callable[[Notice], None]) -> Callable[[Notice], None]:
    """`tell`, which stops printing when its reader has gone, so that supervision continues."""

    def told(notice: Notice) -> None:
        try:
            tell(notice)
        except BrokenPipeError:
            silence()

    return told


def _counter(path: str | None, tell: Callable[[Notice], None]) -> Callable[[Tally], None]:
    """A function that writes the metrics to `path`. A failure is reported once, until writing works again."""
    failed: list[str] = []

    def count(tally: Tally) -> None:
        if path is None:
            return
        from scplan.errors import ScplanError
        from scplan.model.report import Notice, Occasion
        from scplan.render.metrics import watch_metrics
        from scplan.store import durable

        text = watch_metrics(tally, time.time())
        try:
            # Readable for the node exporter, which runs as another user; counts are not secret.
            durable.write_document(path, text.encode(errors="surrogateescape"), mode=0o644)
            failed.clear()
        except ScplanError as error:
            if not failed:
                tell(Notice(Occasion.PROBLEM, diagnostics=error.diagnostics))
            failed[:] = [str(error)]

    return count
