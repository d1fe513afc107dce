"""Reports of `scplan watch`: as lines for people and logs, and as JSON lines."""

from __future__ import annotations

from typing import Any

from scplan.errors import Diagnostic, Severity
from scplan.model.plan_json import diagnostic_to_json
from scplan.model.report import Drifted, Notice, Occasion
from scplan.render.lines import visible
from scplan.render.machine import drifted_to_json
from scplan.render.words import counted, difference_words, resource_name

# LOG_ERR, LOG_WARNING, LOG_NOTICE and LOG_INFO of syslog(3).
_ERR, _WARNING, _NOTICE, _INFO = 3, 4, 5, 6
_PRIORITIES = {
    Occasion.WATCHING: _INFO,
    Occasion.ENDING: _INFO,
    Occasion.DRIFTED: _WARNING,
    Occasion.DEGRADED: _WARNING,
    Occasion.PROBLEM: _ERR,
}
_WORDS = {
    Occasion.STOPPED: "the host has its things back",
    Occasion.RESTORED: "no drift any more",
    Occasion.SOLVED: "no problems any more",
}


def priority(notice: Notice) -> int:
    """Priority of the notice: a level of syslog(3), from 3 (LOG_ERR) to 6 (LOG_INFO)."""
    return _PRIORITIES.get(notice.occasion, _NOTICE)


def notice_lines(notice: Notice) -> list[str]:
    """Lines of the notice, with escapes for characters that could control a terminal or forge a line."""
    where = f"container {notice.container}: " if notice.container else ""
    return [visible(f"{where}{text}") for text in _texts(notice)]


def _texts(notice: Notice) -> list[str]:
    match notice.occasion:
        case Occasion.WATCHING:
            return [f"watching {counted(notice.resources, 'container')}"]
        case Occasion.ENDING:
            return ["no longer watching", *notice.lines]
        case Occasion.STARTED:
            done = f"started: {counted(notice.resources, 'resource')} plugged in after {notice.seconds:.2f} s"
            return [done, *notice.lines]
        case Occasion.HEALED:
            return [f"healed: {counted(notice.resources, 'resource')} as recorded again", *notice.lines]
        case Occasion.DRIFTED:
            return [_drift_text(one) for one in notice.drifted]
        case Occasion.PROBLEM | Occasion.DEGRADED:
            return [_diagnostic_text(one) for one in notice.diagnostics]
        case Occasion.SOLVED if not notice.container:
            return [" at ".join((f"{notice.runtime} can be reached again", *notice.lines))]
        case Occasion.RECOVERED:
            return list(notice.lines)
        case _:
            return [_WORDS[notice.occasion]]


def _drift_text(drifted: Drifted) -> str:
    name = resource_name(drifted.address, drifted.recorded)
    if drifted.live is None:
        return f"drift: {name} is gone"
    return f"drift: {name}: {difference_words(drifted.changed, drifted.recorded, drifted.live)}"


def _diagnostic_text(diagnostic: Diagnostic) -> str:
    parts = [part for part in (diagnostic.summary, diagnostic.detail, diagnostic.hint) if part]
    label = "warning: " if diagnostic.severity is Severity.WARNING else ""
    return label + "; ".join(" ".join(part.split()) for part in parts)


def notice_to_json(notice: Notice, now_s: float) -> dict[str, Any]:
    """A notice as a JSON object; `now_s` is the time in seconds since the epoch."""
    return {
        "type": str(notice.occasion),
        "time": round(now_s, 3),
        "container": notice.container,
        "runtime": notice.runtime,
        "resources": notice.resources,
        "seconds": round(notice.seconds, 6),
        "drifted": [drifted_to_json(one) for one in notice.drifted],
        "diagnostics": [diagnostic_to_json(one) for one in notice.diagnostics],
        "messages": list(notice.lines),
    }
