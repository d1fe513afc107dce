"""What programs read: the keys are a contract."""

from __future__ import annotations

import json

from scplan import __version__
from scplan.errors import Diagnostic, ExitCode
from scplan.model.address import Address
from scplan.model.change import Action
from scplan.model.report import Drifted, DriftReport, Event, Finding, Outcome, Owned, Step, Support
from scplan.render import machine
from tests.unit.render_samples import ADD, CHANGE, NIC, PLAN, REPLACE, ROUTE, WARNING, WEB, operation, plan

OWNED = Owned(address=CHANGE.address, runtime="runc", container_id="4f6c", recorded=NIC, live=NIC.replace(mtu=9000))


def test_plan_document_has_the_documented_keys() -> None:
    assert machine.plan_document(plan(ADD, warned=True)) == {
        "format_version": "1.0",
        "scplan_version": __version__,
        "containers": {"web": {"runtime": "runc", "id": "4f6c", "status": "running", "pid": 4242, "start_time": 0}},
        "changes": [
            {
                "order": 1,
                "address": "web/device/dev/sdb123",
                "container": "web",
                "kind": "device",
                "action": "create",
                "reason": "as the configuration says",
                "disruption": "none",
                "requires": [],
                "before": None,
                "after": {
                    "target": "/dev/sdb123",
                    "source": "/dev/sdb",
                    "permissions": "rwm",
                    "io": {"read_bps": 10485760},
                },
                "changed": [],
                "effect": "",
                "managed": {
                    "target": "/dev/sdb123",
                    "source": "/dev/sdb",
                    "permissions": "rwm",
                    "io": {"read_bps": 10485760},
                },
                "at_next_start": False,
                "put_back": [],
                "taken_along": [],
                "lost": [],
                "records_only": False,
            }
        ],
        "modules": {},
        "new_modules": {},
        "probes": [],
        "summary": {"create": 1, "update": 0, "replace": 0, "delete": 0, "adopt": 0},
        "diagnostics": [
            {
                "severity": "warning",
                "summary": "/dev/sdc is not there",
                "detail": "device /dev/data of web",
                "hint": "it is left out, since it is not required",
                "source": {"file": "web.yaml", "line": 12, "column": 5},
            }
        ],
    }


def test_requirements_and_changed_attributes_are_strings() -> None:
    changes = machine.plan_document(plan(CHANGE, REPLACE))["changes"]
    assert changes[0]["changed"] == ["mtu"]
    assert changes[1]["requires"] == ["web/nic/eth1"]
    assert [change["disruption"] for change in changes] == ["brief", "recreate"]


def test_document_survives_json_whatever_is_in_it() -> None:
    odd = ADD._replace(reason="\x1b[31m\udc80 ünïcode\u2028")
    document = machine.plan_document(plan(odd))
    assert json.loads(machine.to_text(document)) == document
    assert json.loads(machine.to_line(document)) == document
    assert machine.to_line(document).count("\n") == 1


def test_step_document() -> None:
    event = Event(step=Step.FAILED, operation=operation(CHANGE), number=2, total=4, seconds=0.5, error="EBUSY")
    assert machine.event_document(event) == {
        "type": "step",
        "step": "failed",
        "number": 2,
        "total": 4,
        "order": 2,
        "address": "web/nic/eth1",
        "action": "update",
        "seconds": 0.5,
        "error": "EBUSY",
        "at_next_start": False,
    }


def test_apply_begins_with_its_plan() -> None:
    assert machine.plan_event(PLAN) == {"type": "plan", "plan": machine.plan_document(PLAN)}


def test_apply_ends_with_a_summary() -> None:
    outcome = Outcome(apply_id="7", summary={Action.CREATE: 1}, seconds=0.1)
    assert machine.outcome_event(outcome, PLAN) == {
        "type": "summary",
        "result": "applied",
        "exit_code": 0,
        "apply_id": "7",
        "summary": {"create": 1},
        "at_next_start": 0,
        "seconds": 0.1,
        "diagnostics": [],
    }


def test_apply_that_has_nothing_to_do_says_so() -> None:
    unchanged = machine.unchanged_event(plan())
    assert (unchanged["result"], unchanged["exit_code"]) == ("no_changes", 0)


def test_apply_that_left_containers_out_ends_with_their_error() -> None:
    left_out = Diagnostic("docker can't be reached")
    nothing = machine.unchanged_event(plan()._replace(diagnostics=(left_out,)))
    assert (nothing["result"], nothing["exit_code"], len(nothing["diagnostics"])) == ("error", 1, 1)
    outcome = Outcome(apply_id="7", summary={Action.CREATE: 1}, seconds=0.1)
    rest = machine.outcome_event(outcome, PLAN._replace(diagnostics=(left_out,)))
    assert (rest["result"], rest["exit_code"], len(rest["diagnostics"])) == ("applied", 1, 1)


def test_failed_apply_ends_with_its_exit_code_and_the_reasons() -> None:
    failed = machine.failure_event(ExitCode.ROLLED_BACK, [Diagnostic(summary="no")])
    assert (failed["type"], failed["result"], failed["exit_code"]) == ("summary", "rolled_back", 3)
    assert [diagnostic["summary"] for diagnostic in failed["diagnostics"]] == ["no"]


def test_drift_document_tells_drift_from_pending() -> None:
    report = DriftReport(
        containers={"web": WEB},
        checked=2,
        drifted=(
            Drifted(address=CHANGE.address, changed=("mtu",), recorded=NIC, live=NIC.replace(mtu=9000)),
            Drifted(address=REPLACE.address, changed=(), recorded=ROUTE, live=None),
        ),
        pending=plan(ADD),
        diagnostics=(WARNING,),
    )
    document = machine.drift_document(report)
    assert document["checked"] == 2
    assert document["drifted"] == [
        {
            "address": "web/nic/eth1",
            "container": "web",
            "kind": "nic",
            "changed": ["mtu"],
            "recorded": {"name": "eth1", "mtu": 1400},
            "live": {"name": "eth1", "mtu": 9000},
        },
        {
            "address": "web/route/default",
            "container": "web",
            "kind": "route",
            "changed": [],
            "recorded": {"to": "default", "via": "10.0.0.1"},
            "live": None,
        },
    ]
    assert [change["address"] for change in document["pending"]] == ["web/device/dev/sdb123"]
    assert len(document["diagnostics"]) == 1


def test_owned_document_has_both_sides() -> None:
    (resource,) = machine.owned_document([OWNED], with_live=True)["resources"]
    assert resource == {
        "address": "web/nic/eth1",
        "container": "web",
        "kind": "nic",
        "runtime": "runc",
        "container_id": "4f6c",
        "recorded": {"name": "eth1", "mtu": 1400},
        "live": {"name": "eth1", "mtu": 9000},
        "changed": ["mtu"],
        "problem": "",
        "at_next_start": False,
    }


def test_record_document_has_no_live_side() -> None:
    assert "live" not in machine.record_document(OWNED)["resource"]


def test_validation_document_lists_what_the_files_declare() -> None:
    document = machine.validation_document({"web": [Address("web", "nic", "eth1")]}, [], valid=True)
    assert (document["valid"], document["containers"]) == (True, {"web": ["web/nic/eth1"]})


def test_doctor_document() -> None:
    finding = Finding(topic="kernel", subject="open_tree", support=Support.NO, needed_for="mounts")
    assert machine.doctor_document([finding])["findings"] == [
        {"topic": "kernel", "subject": "open_tree", "support": "no", "detail": "", "needed_for": "mounts"}
    ]
