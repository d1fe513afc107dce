"""Results as JSON: one document, or one line for each event of an apply. docs/reference/json.md lists the keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scplan import __version__
from scplan.errors import Diagnostic, ExitCode, Severity
from scplan.model.address import Address
from scplan.model.change import Plan
from scplan.model.codec import facts_to_json, to_json
from scplan.model.comparison import differences
from scplan.model.plan_json import (
    FORMAT_VERSION,
    change_to_json,
    diagnostic_to_json,
    plan_to_json,
)
from scplan.model.report import Drifted, DriftReport, Event, Finding, GoingBack, Moved, Outcome, Owned, Past, Probed

plan_document = plan_to_json


def to_text(document: Mapping[str, Any]) -> str:
    """The document as indented JSON, with a newline at the end."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def to_line(document: Mapping[str, Any]) -> str:
    """The document as one line of JSON, with its newline."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def _document(**keys: Any) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, "scplan_version": __version__, **keys}


def plan_event(plan: Plan) -> dict[str, Any]:
    """First line of `apply --json`: the plan that is going to be applied."""
    return {"type": "plan", "plan": plan_to_json(plan)}


def event_document(event: Event | Probed | GoingBack) -> dict[str, Any]:
    """A step of an apply or of its rollback, a probe, or the beginning of a rollback after an interruption.

    `seconds` is the duration of a step that has ended, else 0.
    """
    if isinstance(event, GoingBack):
        return {"type": "going_back", "reason": event.reason, "operations": event.operations}
    if isinstance(event, Probed):
        return _probe_document(event)
    return {
        "type": "step",
        "step": str(event.step),
        "number": event.number,
        "total": event.total,
        "order": event.operation.order,
        "address": str(event.operation.address),
        "action": str(event.operation.action),
        "seconds": round(event.seconds, 6),
        "error": event.error,
        "at_next_start": event.operation.at_next_start and not event.operation.at_once,
    }


def _probe_document(event: Probed) -> dict[str, Any]:
    return {
        "type": "probe",
        "step": str(event.step),
        "number": event.number,
        "total": event.total,
        "command": event.probe.command,
        "seconds": round(event.seconds, 6),
        "error": event.error,
        "output": event.output,
    }


def awaiting_event(outcome: Outcome) -> dict[str, Any]:
    """Line of an apply that is undone unless it is confirmed within `confirm_within_s` seconds."""
    return {
        "type": "awaiting_confirmation",
        "apply_id": outcome.apply_id,
        "confirm_within_s": outcome.confirm_within_s,
        "hint": "`scplan confirm` keeps it, `scplan undo` undoes it at once",
    }


def given_up_event(apply_id: str) -> dict[str, Any]:
    """Last line of an undo of an apply that awaited confirmation."""
    return {
        "type": "summary",
        "result": "given_up",
        "exit_code": int(ExitCode.OK),
        "apply_id": apply_id,
        "diagnostics": [],
    }


def confirmed_document(apply_id: str) -> dict[str, Any]:
    """ID of the apply that was confirmed."""
    return _document(confirmed=apply_id)


def outcome_event(outcome: Outcome, plan: Plan) -> dict[str, Any]:
    """Last line of an apply that succeeded, with the errors about containers that its plan omits."""
    errors = _errors(plan)
    return {
        "type": "summary",
        "result": "applied",
        "exit_code": int(ExitCode.ERROR if errors else ExitCode.OK),
        "apply_id": outcome.apply_id,
        "summary": {str(action): count for action, count in outcome.summary.items()},
        "at_next_start": outcome.at_next_start,
        "seconds": round(outcome.seconds, 6),
        "diagnostics": [diagnostic_to_json(one) for one in errors],
    }


def _errors(plan: Plan) -> list[Diagnostic]:
    return [one for one in plan.diagnostics if one.severity is Severity.ERROR]


def unchanged_event(plan: Plan) -> dict[str, Any]:
    """Last line of an apply without changes; a failure if the plan has errors about containers that it omits."""
    if errors := _errors(plan):
        return failure_event(ExitCode.ERROR, errors)
    return {
        "type": "summary",
        "result": "no_changes",
        "exit_code": int(ExitCode.OK),
        "summary": {str(action): count for action, count in plan.summary().items()},
        "diagnostics": [],
    }


def failure_event(exit_code: ExitCode, diagnostics: Iterable[Diagnostic]) -> dict[str, Any]:
    """Last line of an apply that failed. `result` is the name of the exit code: rolled_back, locked, …"""
    return {
        "type": "summary",
        "result": exit_code.name.lower(),
        "exit_code": int(exit_code),
        "diagnostics": [diagnostic_to_json(diagnostic) for diagnostic in diagnostics],
    }


def drift_document(report: DriftReport) -> dict[str, Any]:
    """A drift report.

    `drifted` are owned resources that differ from live state, `pending` the changes that the configuration asks for.
    `waiting` are addresses of owned resources in containers that do not run.
    """
    return _document(
        containers={name: facts_to_json(facts) for name, facts in report.containers.items()},
        checked=report.checked,
        drifted=[drifted_to_json(drifted) for drifted in report.drifted],
        waiting=[str(address) for address in report.waiting],
        pending=[change_to_json(change) for change in report.pending.changes],
        diagnostics=[diagnostic_to_json(diagnostic) for diagnostic in report.diagnostics],
    )


def drifted_to_json(drifted: Drifted) -> dict[str, Any]:
    """An owned resource that differs from its record. `live` is null if the resource is gone."""
    return {
        **_address(drifted.address),
        "changed": list(drifted.changed),
        "recorded": to_json(drifted.recorded),
        "live": drifted.live and to_json(drifted.live),
    }


def owned_document(
    owned: Iterable[Owned], *, with_live: bool, diagnostics: Iterable[Diagnostic] = ()
) -> dict[str, Any]:
    """Owned resources. `with_live` adds the live resource, the differing attributes, and the reason of a read error."""
    return _document(resources=[_owned(one, with_live) for one in owned], diagnostics=_diagnostics(diagnostics))


def record_document(owned: Owned, diagnostics: Iterable[Diagnostic] = ()) -> dict[str, Any]:
    """The record of one owned resource."""
    return _document(resource=_owned(owned, with_live=False), diagnostics=_diagnostics(diagnostics))


def moved_document(moved: Moved) -> dict[str, Any]:
    """Addresses of records that were moved, old and new, and the two containers: `from` and `to`."""
    runtime, _, name = moved.source.partition("/")
    return _document(
        **{"from": {"runtime": runtime, "name": name, "id": moved.source_id}},
        to={"name": moved.target.name, **facts_to_json(moved.target)},
        resources=[{"from": str(old), "to": str(new)} for old, new in moved.addresses],
        diagnostics=_diagnostics(moved.returned),
    )


def history_document(history: Iterable[Past], diagnostics: Iterable[Diagnostic] = ()) -> dict[str, Any]:
    """Applies, newest first. Times are in seconds since the epoch."""
    return _document(applies=[_past(past) for past in history], diagnostics=_diagnostics(diagnostics))


def _past(past: Past) -> dict[str, Any]:
    return {
        "apply_id": past.apply_id,
        "outcome": str(past.outcome),
        "begun": past.begun,
        "ended": past.ended,
        "user": past.user,
        "uid": past.uid,
        "command": list(past.command),
        "files": list(past.files),
        "configuration": past.configuration,
        "containers": list(past.containers),
        "operations": {str(action): count for action, count in past.counts.items()},
        "undoes": past.undoes,
        "reason": past.reason,
        "seconds_left": round(past.left_s, 3),
        "problem": past.problem,
    }


def _diagnostics(diagnostics: Iterable[Diagnostic]) -> list[dict[str, Any]]:
    return [diagnostic_to_json(diagnostic) for diagnostic in diagnostics]


def _owned(owned: Owned, with_live: bool) -> dict[str, Any]:
    document = {
        **_address(owned.address),
        "runtime": owned.runtime,
        "container_id": owned.container_id,
        "recorded": to_json(owned.recorded),
    }
    if with_live:
        document["live"] = owned.live and to_json(owned.live)
        document["changed"] = list(differences(owned.recorded, owned.live)) if owned.live else []
        document["problem"] = owned.problem
        document["at_next_start"] = owned.at_next_start
    return document


def _address(address: Address) -> dict[str, Any]:
    return {"address": str(address), "container": address.container, "kind": address.kind}


def validation_document(
    containers: Mapping[str, Iterable[Address]], diagnostics: Sequence[Diagnostic], *, valid: bool
) -> dict[str, Any]:
    """Result of a validation: `valid`, the declared addresses by container, and all errors and warnings."""
    return _document(
        valid=valid,
        containers={name: [str(address) for address in addresses] for name, addresses in containers.items()},
        diagnostics=[diagnostic_to_json(diagnostic) for diagnostic in diagnostics],
    )


def doctor_document(findings: Iterable[Finding], diagnostics: Iterable[Diagnostic] = ()) -> dict[str, Any]:
    """Findings about the host. `support` is yes, no or unknown."""
    return _document(
        diagnostics=_diagnostics(diagnostics),
        findings=[
            {
                "topic": finding.topic,
                "subject": finding.subject,
                "support": str(finding.support),
                "detail": finding.detail,
                "needed_for": finding.needed_for,
            }
            for finding in findings
        ],
    )
