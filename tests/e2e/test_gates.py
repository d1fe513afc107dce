"""What people agree to is all that is done: policies are rows, limits are kept, saved plans are what was reviewed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Scplan
from tests.containers.container import Container
from tests.e2e.scene import Config, address, nothing_changed, of, refused

pytestmark = pytest.mark.needs("cgroup1")


def addressed(container: Container, last: int) -> Config:
    return of(container, nics=[{"name": "eth1", "addresses": [f"10.97.200.{last}/24"]}])


@pytest.mark.parametrize("policy", [{"required": False}, {"create_source": True}])
def test_policy_is_shown_asked_about_and_undone(
    process_container: Container, scplan: Scplan, tmp_path: Path, policy: dict[str, bool]
) -> None:
    entry = {"source": str(tmp_path), "target": "/srv/data"}
    scplan("apply", "--auto-approve", config=of(process_container, mounts=[entry])).ok()
    shown = address(process_container, "mount/srv/data")
    before = scplan("state", "show", shown).ok().stdout
    ran = scplan("plan", "--detailed-exitcode", config=of(process_container, mounts=[entry | policy])).ok(2)
    assert "in the records only" in ran.stdout
    assert "1 to change" in ran.stdout
    (change,) = scplan("plan", "--json").ok().json["changes"]
    assert (change["changed"], change["records_only"], change["disruption"]) == (list(policy), True, "none")
    assert scplan("drift", "--detailed-exitcode").ok(2)
    scplan("apply").ok(7)
    assert scplan("state", "show", shown).ok().stdout == before
    scplan("apply", "--auto-approve", "--max-disruption", "none").ok()
    assert scplan("state", "show", shown).ok().stdout != before
    scplan("plan", "--detailed-exitcode").ok()
    scplan("undo", "--auto-approve").ok()
    assert scplan("state", "show", shown).ok().stdout == before


def test_limit_on_what_is_interrupted(process_container: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=addressed(process_container, 5)).ok()
    scplan.write(addressed(process_container, 6))
    (change,) = scplan("plan", "--json").ok().json["changes"]
    assert change["disruption"] == "brief", "routes may use the address that goes"
    with nothing_changed(process_container):
        for command in (("plan",), ("plan", "--out", "web.plan"), ("apply", "--auto-approve")):
            ran = scplan(*command, "--max-disruption", "none")
            refused(ran, address(process_container, "nic/eth1"), "--max-disruption none", code=10)
            assert "nic eth1" in ran.stdout
        assert not (scplan.directory / "web.plan").exists()
        document = scplan("plan", "--json", "--max-disruption", "none").ok(10).json
        assert [one["severity"] for one in document["diagnostics"]] == ["error"]
        events = scplan("apply", "--json", "--auto-approve", "--max-disruption", "none").ok(10).stdout.splitlines()
        assert json.loads(events[-1])["result"] == "refused"
    refused(scplan("plan", "--max-disruption", "some"), "'some' is none of none, brief", code=64)
    scplan("plan", "--max-disruption", "brief", "--out", "web.plan").ok()
    with nothing_changed(process_container):
        scplan("apply", "web.plan", "--max-disruption", "none").ok(10)
    scplan("apply", "web.plan", "--max-disruption", "brief").ok()


@pytest.mark.parametrize("what", ["modules", "probes", "targets", "required", "order"])
def test_saved_plan_that_was_edited_is_refused(
    process_container: Container, scplan: Scplan, tmp_path: Path, what: str
) -> None:
    asked = of(process_container, mounts=[{"source": str(tmp_path), "target": "/srv/data"}], cgroup={"pids.max": 99})
    scplan("plan", "--out", "web.plan", config=asked).ok()
    path = scplan.directory / "web.plan"
    document = json.loads(path.read_text())
    container = document["origin"]["configuration"]["containers"][process_container.name]
    match what:
        case "modules":
            container["modules"] = ["scplan_absent"]
        case "probes":
            document["probes"] = [{"command": "true", "timeout_s": 1.0}]
        case "targets":
            document["origin"]["targets"] = ["*"]
        case "required":
            container["mounts"][0]["required"] = False
        case _:
            document["changes"].reverse()
    path.write_text(json.dumps(document))
    with nothing_changed(process_container):
        refused(scplan("apply", "web.plan"), "web.plan is stale", "make a new plan", code=5)
        assert "is not as it was saved" in scplan("show", "web.plan").ok().stderr


def test_who_presses_ctrl_c_is_answered_at_once(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, cgroup={"pids.max": 99}, nics=[{"name": "eth1"}])
    asked["probes"] = [{"command": "sleep 60", "timeout": "90s"}]
    scplan.write(asked)
    running = scplan.start("apply", "--auto-approve")
    deadline = time.monotonic() + 20
    while process_container.cgroup_file("pids.max").strip() != "99" or len(process_container.ip("link")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 3, said
    lines = said.splitlines()
    turned = next(number for number, line in enumerate(lines) if "interrupted: undoing 2 operations" in line)
    assert turned < next(number for number, line in enumerate(lines) if "↶" in line)
