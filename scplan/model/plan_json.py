"""The JSON form of a plan, printed by `plan --json` and kept in plan files. docs/reference describes its keys."""

from __future__ import annotations

from typing import Any

from scplan import __version__
from scplan.errors import Diagnostic
from scplan.model.change import Change, Plan
from scplan.model.codec import facts_to_json, to_json

FORMAT_VERSION = "1.0"
"""Within a major version keys are only added."""


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as a JSON object, without operations and records, which are not part of the public form."""
    return {
        "format_version": FORMAT_VERSION,
        "scplan_version": __version__,
        "containers": {name: facts_to_json(facts) for name, facts in plan.containers.items()},
        "changes": [change_to_json(change) for change in plan.changes],
        "modules": {name: list(modules) for name, modules in plan.modules.items()},
        "new_modules": {name: list(modules) for name, modules in plan.new_modules.items()},
        "probes": [{"command": probe.command, "timeout_s": probe.timeout_s} for probe in plan.probes],
        "summary": {str(action): count for action, count in plan.summary().items()},
        "diagnostics": [diagnostic_to_json(diagnostic) for diagnostic in plan.diagnostics],
    }


def change_to_json(change: Change) -> dict[str, Any]:
    """A change as a JSON object. `before` and `after` are null if there is no resource."""
    return {
        "order": change.order,
        "address": str(change.address),
        "container": change.address.container,
        "kind": change.address.kind,
        "action": str(change.action),
        "reason": change.reason,
        "disruption": str(change.disruption),
        "requires": [str(address) for address in change.requires],
        "before": None if change.before is None else to_json(change.before),
        "after": None if change.after is None else to_json(change.after),
        "changed": list(change.changed),
        "effect": change.effect,
        "managed": None if change.managed is None else to_json(change.managed),
        "at_next_start": change.waits,
        "put_back": list(change.put_back),
        "taken_along": list(change.taken_along),
        "lost": list(change.lost),
        "records_only": change.records_only,
    }


def diagnostic_to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as a JSON object. `source` is its file, line and column (from 1); null if it is not about a file."""
    source = diagnostic.source
    return {
        "severity": str(diagnostic.severity),
        "summary": diagnostic.summary,
        "detail": diagnostic.detail,
        "hint": diagnostic.hint,
        "source": source and {"file": source.file, "line": source.line, "column": source.column},
    }
