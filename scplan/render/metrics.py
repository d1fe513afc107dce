"""Drift checks and counts of `watch` as Prometheus metrics, for the textfile collector of the node exporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from scplan.model.report import DriftReport, Tally

_PROBLEMS = "Records, containers and entries that could not be read, located or planned."


def watch_metrics(tally: Tally, written_at_s: float) -> str:
    """Metrics of `watch`: drift and problems of each container now, and counts of its actions since it began.

    `written_at_s` is the current time in seconds since the epoch.
    """
    return "".join(
        [
            _head("scplan_watch_drift_resources", "Owned resources that are not as scplan left them."),
            *_watched("scplan_watch_drift_resources", tally.drifted),
            _head("scplan_watch_problems", "Reasons why a container could not be looked at or plugged in again."),
            *_watched("scplan_watch_problems", tally.problems),
            _single("scplan_watch_owned_resources", "Owned resources that are watched.", str(tally.owned)),
            _single("scplan_watch_starts_total", "Starts that were seen to.", str(tally.starts), "counter"),
            _single("scplan_watch_heals_total", "Times that drift was mended.", str(tally.heals), "counter"),
            _single("scplan_watch_timestamp_seconds", "When this was written (Unix time).", f"{written_at_s:.3f}"),
        ]
    )


def _watched(name: str, samples: Mapping[tuple[str, str], int]) -> list[str]:
    return [
        f'{name}{{runtime="{_escaped(runtime)}",container="{_escaped(container)}"}} {value}\n'
        for (runtime, container), value in sorted(samples.items())
    ]


def drift_metrics(report: DriftReport, checked_at_s: float) -> str:
    """Metrics of a drift check, in the text exposition format 0.0.4.

    `checked_at_s` is the time of the check in seconds since the epoch. Every container of the report has a sample, so
    that an alert sees 0 and not an absent series.
    """
    drifted = Counter(drifted.address.container for drifted in report.drifted)
    pending = Counter(change.address.container for change in report.pending.changes)
    waiting = Counter(address.container for address in report.waiting)
    names = sorted({*report.containers, *drifted, *pending})
    return "".join(
        [
            _family(
                "scplan_drift_resources",
                "Owned resources that are not as scplan left them.",
                {name: drifted[name] for name in names},
            ),
            _family(
                "scplan_pending_changes",
                "Changes that the configuration asks for and that are not applied.",
                {name: pending[name] for name in names},
            ),
            _family(
                "scplan_waiting_resources",
                "Owned resources that wait for the next start of their container.",
                {name: waiting[name] for name in names},
            ),
            _single("scplan_owned_resources", "Owned resources that were checked.", str(report.checked)),
            _single("scplan_check_problems", _PROBLEMS, str(report.problems)),
            _single(
                "scplan_last_check_timestamp_seconds", "When the check was made (Unix time).", f"{checked_at_s:.3f}"
            ),
        ]
    )


def failure_metrics(problems: int, checked_at_s: float) -> str:
    """Metrics of a drift check that failed as a whole. `checked_at_s` is its time in seconds since the epoch."""
    return _single("scplan_check_problems", _PROBLEMS, str(problems)) + _single(
        "scplan_last_check_timestamp_seconds", "When the check was made (Unix time).", f"{checked_at_s:.3f}"
    )


def _family(name: str, text: str, samples: Mapping[str, int]) -> str:
    lines = [f'{name}{{container="{_escaped(container)}"}} {value}\n' for container, value in samples.items()]
    return _head(name, text) + "".join(lines)


def _single(name: str, text: str, value: str, kind: str = "gauge") -> str:
    return f"{_head(name, text, kind)}{name} {value}\n"


def _head(name: str, text: str, kind: str = "gauge") -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _escaped(label: str) -> str:
    # The three escapes of label values in the text exposition format; the backslash comes first.
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
