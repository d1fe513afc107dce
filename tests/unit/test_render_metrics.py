"""Drift for Prometheus: the text exposition format, to the letter."""

from __future__ import annotations

from scplan.model.address import Address
from scplan.model.report import Drifted, DriftReport
from scplan.render.metrics import drift_metrics
from tests.unit.render_samples import ADD, CHANGE, NIC, WEB, plan


def test_metrics_of_drift_and_pending_changes() -> None:
    drifted = Drifted(address=CHANGE.address, changed=("mtu",), recorded=NIC, live=None)
    idle = WEB._replace(name="idle")
    report = DriftReport(containers={"web": WEB, "idle": idle}, checked=3, drifted=(drifted,), pending=plan(ADD))
    report = report._replace(waiting=(Address("idle", "nic", "eth1"),))
    assert drift_metrics(report, 1700000000.5) == (
        "# HELP scplan_drift_resources Owned resources that are not as scplan left them.\n"
        "# TYPE scplan_drift_resources gauge\n"
        'scplan_drift_resources{container="idle"} 0\n'
        'scplan_drift_resources{container="web"} 1\n'
        "# HELP scplan_pending_changes Changes that the configuration asks for and that are not applied.\n"
        "# TYPE scplan_pending_changes gauge\n"
        'scplan_pending_changes{container="idle"} 0\n'
        'scplan_pending_changes{container="web"} 1\n'
        "# HELP scplan_waiting_resources Owned resources that wait for the next start of their container.\n"
        "# TYPE scplan_waiting_resources gauge\n"
        'scplan_waiting_resources{container="idle"} 1\n'
        'scplan_waiting_resources{container="web"} 0\n'
        "# HELP scplan_owned_resources Owned resources that were checked.\n"
        "# TYPE scplan_owned_resources gauge\n"
        "scplan_owned_resources 3\n"
        "# HELP scplan_check_problems Records, containers and entries that could not be read, located or planned.\n"
        "# TYPE scplan_check_problems gauge\n"
        "scplan_check_problems 0\n"
        "# HELP scplan_last_check_timestamp_seconds When the check was made (Unix time).\n"
        "# TYPE scplan_last_check_timestamp_seconds gauge\n"
        "scplan_last_check_timestamp_seconds 1700000000.500\n"
    )


def test_labels_are_escaped() -> None:
    name = 'a"b\\c\nd'
    report = DriftReport(containers={name: WEB}, checked=0, drifted=(), pending=plan())
    assert 'scplan_drift_resources{container="a\\"b\\\\c\\nd"} 0\n' in drift_metrics(report, 0)
