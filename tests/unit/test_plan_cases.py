"""tests/plan_cases/NAME/{desired,live,plan}.yaml: a new case of planning is a new folder.

`desired.yaml` is a configuration. `live.yaml` is a snapshot with everything optional: `host`, `containers`,
`resources` and `owned` (true: as live). `plan.yaml` lists what must come out, in order: the rows with the attributes
that matter, or the errors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scplan.errors import ScplanError
from scplan.model.change import Plan
from scplan.model.plan_json import change_to_json
from scplan.workflow import planning, scene

CASES = Path(__file__).parent.parent / "plan_cases"
_PATH = {"numbers": "", "mode": "0644", "whole_disk": False, "partitions": []}
_LINK = {"kind": "", "mac": "02:00:00:00:00:01", "mtu": 1500, "master": ""}


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
def test_plan_case(case: str, tmp_path: Path) -> None:
    live = yaml.safe_load((CASES / case / "live.yaml").read_text()) or {}
    expected = yaml.safe_load((CASES / case / "plan.yaml").read_text())
    snapshot = tmp_path / "live.json"
    snapshot.write_text(json.dumps(_snapshot(live)))
    request = scene.Request(
        state_dir=str(tmp_path / "state"),
        files=(str(CASES / case / "desired.yaml"),),
        live=str(snapshot),
        targets=tuple(expected.get("targets", ())),
        excludes=tuple(expected.get("excludes", ())),
        destroy=expected.get("destroy", False),
    )
    if "errors" in expected:
        with pytest.raises(ScplanError) as caught:
            planning.make_plan(request)
        assert [_place_and_summary(one) for one in caught.value.diagnostics] == expected["errors"]
        return
    plan = planning.make_plan(request)
    rows = [_row(change_to_json(change), wanted) for change, wanted in _pairs(plan, expected["changes"])]
    assert rows == expected["changes"]
    assert [_operation(plan, index) for index in range(len(plan.operations))] == expected.get(
        "operations", [_operation(plan, index) for index in range(len(plan.operations))]
    )
    assert [one.summary for one in plan.diagnostics] == expected.get("warnings", [])


def _snapshot(live: dict[str, Any]) -> dict[str, Any]:
    host = live.get("host") or {}
    resources = live.get("resources") or {}
    owned = {
        address: resources[address] if value is True else value for address, value in (live.get("owned") or {}).items()
    }
    containers = live.get("containers") or {"web": {}}
    return {
        "format_version": "1.0",
        "host": {
            "paths": {path: fact and {"real": path, **_PATH, **fact} for path, fact in host.get("paths", {}).items()},
            "links": {name: {"name": name, **_LINK, **(fact or {})} for name, fact in host.get("links", {}).items()},
            "uplinks": host.get("uplinks", []),
            "ovs_bridges": host.get("ovs_bridges", []),
            "page_size": 4096,
            "boot_id": "boot",
        },
        "containers": {
            name: {"runtime": "runc", "id": name, "status": "running", "pid": 4242, "start_time": 1, **(facts or {})}
            for name, facts in containers.items()
        },
        "resources": resources,
        "owned": owned,
    }


def _pairs(plan: Plan, expected: list[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    padding = [{} for _ in range(len(plan.changes) - len(expected))]
    return list(zip(plan.changes, [*expected, *padding], strict=False))


def _row(document: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The change with the keys that the case speaks of; of `before` and `after` the attributes that it names."""
    row: dict[str, Any] = {"do": f"{document['action']} {document['address']}"}
    for key, value in wanted.items():
        if key == "do":
            continue
        there = document[key]
        if isinstance(value, dict) and isinstance(there, dict):
            there = {name: there.get(name) for name in value}
        row[key] = there
    return row


def _operation(plan: Plan, index: int) -> str:
    operation = plan.operations[index]
    return f"{operation.action} {operation.address}"


def _place_and_summary(diagnostic: Any) -> str:
    place = f"{diagnostic.source.line}:{diagnostic.source.column} " if diagnostic.source else ""
    return f"{place}{diagnostic.summary}"
