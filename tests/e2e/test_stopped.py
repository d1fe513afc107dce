"""Containers that do not run: planned for and recorded, and started with it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scplan.kinds import KINDS
from scplan.model.live import ContainerFacts, Status
from scplan.store.state import State
from scplan.workflow.applying import open_apply
from scplan.workflow.scene import Request
from tests.conftest import MakeContainer, Ran, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk
from tests.containers.session import Session
from tests.e2e.restarts import ALL, hooks, inside, kill, parts, record_path, start_again, take_hook_out
from tests.e2e.scene import address, config, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("runc", "loop", "bridge", "veth")


@pytest.fixture
def web(session: Session, scplan: Scplan) -> Iterator[Container]:
    """A container whose bundle has scplan's hook."""
    with session.container("runc", hooks=hooks(scplan)) as container:
        yield container


def at_next_start(ran: Ran) -> dict[str, bool]:
    return {change["address"].partition("/")[2]: change["at_next_start"] for change in ran.json["changes"]}


# recorded, and there at the next start


def test_what_is_recorded_is_there_at_the_next_start(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    kill(web)
    asked = of(web, **parts(loop_disk, bridge, host_directory))
    plan = scplan("plan", "--json", config=asked).ok()
    assert set(planned(plan).values()) == {"create"}
    assert set(at_next_start(plan).values()) == {True}
    assert plan.json["diagnostics"] == []
    text = scplan("plan").ok().stdout
    assert text.startswith(f"{web.name}  (runc, stopped)\n")
    assert text.count("at next start") == 5
    assert scplan("plan", "--markdown").ok().stdout.count("at next start") == 5
    done = scplan("apply", "--auto-approve").ok()
    assert "5 of them at next start" in done.stdout
    assert not (scplan.state_dir / "journal").exists() or not list((scplan.state_dir / "journal").iterdir())
    assert "No changes." in scplan("plan").ok().stdout
    start_again(web)
    assert inside(web) == ALL
    assert "No changes." in scplan("plan").ok().stdout
    assert "No drift. 5 owned resources checked." in scplan("drift", "--detailed-exitcode").ok().stdout


def test_a_change_of_what_waits_is_recorded_and_undone(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    first = parts(loop_disk, bridge, host_directory)
    scplan("apply", "--auto-approve", config=of(web, **first)).ok()
    kill(web)
    assert "No changes." in scplan("plan").ok().stdout
    second = {**first, "cgroup": {"pids.max": 200}, "routes": [], "mounts": [f"{host_directory}:/srv/data"]}
    second["nics"] = [{**first["nics"][0], "mtu": 1400}]
    second["devices"] = [{"source": loop_disk.path, "target": "/dev/data"}, "/dev/null:/dev/more"]
    plan = scplan("plan", "--json", config=of(web, **second)).ok()
    assert planned(plan) == {
        "device/dev/data": "update",
        "device/dev/more": "create",
        "nic/eth1": "update",
        "mount/srv/data": "update",
        "cgroup/pids.max": "update",
        "route/default": "delete",
    }
    text = scplan("plan").ok().stdout
    assert "read_only yes → no" in text
    assert "mtu unset → 1400" in text
    assert "read_bps 10 MiB/s → unset" in text
    with nothing_changed():
        scplan("apply", "--auto-approve").ok()
        assert "No changes." in scplan("plan").ok().stdout
        undo = scplan("undo", "--auto-approve").ok()
        assert "6 of them at next start" in undo.stdout
        assert "No changes." in scplan("plan", config=of(web, **first)).ok().stdout
        history = scplan("state", "history", "--json").ok().json["applies"]
        assert [past["outcome"] for past in history] == ["committed", "undone", "committed"]
        scplan("undo", "--auto-approve").ok()
    start_again(web)
    assert inside(web) == ["device", "nic", "mount"]
    assert web.cgroup_file("pids.max").strip() == "200"
    assert web.ip("link", "show", "dev", "eth1")[0]["mtu"] == 1400
    assert "No changes." in scplan("plan", config=of(web, **second)).ok().stdout
    # An apply of a container that did not run is undone in one that does.
    scplan("undo", "--auto-approve").ok()
    assert inside(web) == ALL
    assert "No changes." in scplan("plan", config=of(web, **first)).ok().stdout


def test_destroy_of_a_stopped_container_forgets_it(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    asked = of(web, **parts(loop_disk, bridge, host_directory))
    scplan("apply", "--auto-approve", config=asked).ok()
    kill(web)
    scplan("destroy", web.name, "--auto-approve").ok()
    assert not record_path(scplan, web).exists()
    start_again(web)
    assert inside(web) == []
    scplan("undo", "--auto-approve").ok()
    assert inside(web) == ALL


def test_limits_of_the_runtime_that_stand_against_a_setting_are_in_the_plan_before_the_start(
    web: Container, scplan: Scplan
) -> None:
    scplan("apply", "--auto-approve", config=of(web, cgroup={"memory.max": "128MiB"})).ok()
    kill(web)
    give(web, memory={"limit": 32 << 20, "swap": 64 << 20})
    # What is recorded already: the start goes on without it.
    for command in (("plan",), ("apply", "--auto-approve")):
        ran = scplan(*command).ok()
        assert re.search(r"scplan\.yaml:\d+:\d+: warning: memory.max 128 MiB is above the limit of", ran.stderr)
        assert "memory+swap that its runtime gives the container, 64 MiB" in ran.stderr
    start_again(web)
    kill(web)
    swap = of(web, cgroup={"memory.max": "128MiB", "memory.swap.max": 0})
    assert "above the limit" not in scplan("plan", config=swap).ok().stderr
    for setting, value, why in (
        ("memory.max", "129MiB", "above the limit of memory+swap"),
        ("cpuset.cpus", "0,4711", "can't have CPUs 4711"),
    ):
        ran = scplan("plan", config=of(web, cgroup={setting: value})).ok(1)
        assert re.search(rf"scplan\.yaml:\d+:\d+: .*{re.escape(why)}", ran.stderr), ran.stderr
        optional = of(web, cgroup={setting: {"value": value, "required": False}})
        assert why in scplan("plan", config=optional).ok().stderr
    give(web, memory={"limit": -1})
    ran = scplan("plan", config=of(web, cgroup={"memory.swap.max": "1MiB"})).ok(1)
    assert "a limit of swap takes one of memory" in ran.stderr


def give(web: Container, **resources: Any) -> None:
    """Has the runtime limit the container from its next start on."""
    assert web.bundle
    path = web.bundle / "config.json"
    document = json.loads(path.read_text())
    document["linux"].setdefault("resources", {}).update(resources)
    path.write_text(json.dumps(document))


def test_container_that_its_runtime_forgot_is_planned_for_by_its_record(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    """Runc forgets a container that `runc run` waited for; it is made again under its name to start it."""
    asked = parts(loop_disk, bridge, host_directory)
    scplan("apply", "--auto-approve", config=of(web, **asked)).ok()
    web.stop()
    plan = scplan("plan").ok()
    assert "No changes." in plan.stdout
    assert f"container {web.name} is gone from runc" in plan.stderr
    assert "5 of them at next start" in scplan("drift", "--detailed-exitcode").ok().stdout
    scplan("apply", "--auto-approve", config=of(web, **{**asked, "cgroup": {"pids.max": 300}})).ok()
    web.start()
    assert inside(web) == ["device", "nic", "route", "mount"]
    assert web.cgroup_file("pids.max").strip() == "300"
    web.stop()
    scplan("destroy", web.name, "--auto-approve").ok()
    refused(scplan("plan"), f"no container '{web.name}'")


def test_host_checks_stay(web: Container, scplan: Scplan, bridge: str) -> None:
    kill(web)
    lacking: dict[str, Any] = {
        "devices": ["/dev/absent"],
        "nics": [{"name": "eth1", "bridge": "nobridge0"}, {"name": "e2", "type": "physical", "host_name": "nonic0"}],
        "mounts": ["/absent:/srv/absent"],
    }
    with nothing_changed():
        ran = scplan("apply", "--auto-approve", config=of(web, **lacking))
        refused(ran, "no /dev/absent", "no bridge nobridge0", "no NIC nonic0", "no /absent")
    optional = {
        "devices": [{"source": "/dev/absent", "required": False}],
        "nics": [{**one, "required": False} for one in lacking["nics"]],
        "mounts": [{"source": "/absent", "target": "/srv/absent", "required": False}],
    }
    ran = scplan("apply", "--auto-approve", config=of(web, **optional)).ok()
    assert ran.stderr.count("warning:") == 4
    assert "No changes." in ran.stdout
    taken = {"nics": [{"name": "eth1", "host_name": bridge}]}
    refused(scplan("plan", config=of(web, **taken)), f"a link {bridge} already")


# mixed plans, saved plans, snapshots


def test_mixed_plan_has_both_and_is_undone_as_one(
    web: Container, runc_container: Container, scplan: Scplan, bridge: str, host_directory: Path
) -> None:
    kill(web)
    both = config(
        (web, {"cgroup": {"pids.max": 100}, "mounts": [f"{host_directory}:/srv/data"]}),
        (runc_container, {"cgroup": {"pids.max": 300}, "nics": [{"name": "eth1", "bridge": bridge}]}),
    )
    plan = scplan("plan", "--json", config=both).ok()
    marked = {change["address"] for change in plan.json["changes"] if change["at_next_start"]}
    assert marked == {address(web, "cgroup/pids.max"), address(web, "mount/srv/data")}
    steps = scplan("apply", "--auto-approve", "--json").ok().events
    assert {step["at_next_start"] for step in steps if step["type"] == "step"} == {True, False}
    assert steps[-1]["at_next_start"] == 2
    assert runc_container.cgroup_file("pids.max").strip() == "300"
    listed = scplan("show").ok().stdout
    assert listed.count("at next start") == 2
    assert listed.count("as recorded") == 2
    failing = config(
        (web, {"cgroup": {"pids.max": 111}}),
        (runc_container, {"cgroup": {"pids.max": 333}}),
    )
    scplan("apply", "--auto-approve", config={**failing, "probes": ["false"]}).ok(3)
    assert "No changes." in scplan("plan", config=both).ok().stdout
    scplan("undo", "--auto-approve").ok()
    assert scplan("state", "list").ok().stdout == ""


def test_target_and_saved_plan(web: Container, scplan: Scplan, host_directory: Path) -> None:
    asked = of(web, cgroup={"pids.max": 100}, mounts=[f"{host_directory}:/srv/data"])
    scplan.write(asked)
    scplan("plan", "--out", "running.plan").ok()
    kill(web)
    refused(scplan("apply", "running.plan"), "stopped", code=5)
    scplan("plan", "--out", "stopped.plan", "--target", f"{web.name}/mount/*").ok()
    assert "at next start" in scplan("show", "stopped.plan").ok().stdout
    start_again(web)
    refused(scplan("apply", "stopped.plan"), "was stopped", code=5)
    kill(web)
    assert "1 of them at next start" in scplan("apply", "stopped.plan").ok().stdout
    assert planned(scplan("plan", "--json").ok()) == {"cgroup/pids.max": "create"}


def test_snapshot_knows_it(web: Container, scplan: Scplan, host_directory: Path) -> None:
    asked = of(web, cgroup={"pids.max": 100}, mounts=[f"{host_directory}:/srv/data"])
    scplan("apply", "--auto-approve", config=asked).ok()
    kill(web)
    (scplan.directory / "live.json").write_text(scplan("snapshot").ok().stdout)
    assert "No changes." in scplan("plan", "--live", "live.json").ok().stdout
    more = of(web, cgroup={"pids.max": 200}, mounts=[f"{host_directory}:/srv/data"])
    plan = scplan("plan", "--live", "live.json", "--json", config=more).ok()
    assert (planned(plan), at_next_start(plan)) == ({"cgroup/pids.max": "update"}, {"cgroup/pids.max": True})


def test_container_that_ends_while_its_apply_waits_for_the_lock(web: Container, scplan: Scplan) -> None:
    facts = ContainerFacts(web.name, "runc", web.name, Status.RUNNING)
    scplan.write(of(web, cgroup={"pids.max": 100}))
    scplan("state", "list").ok()
    with State(str(scplan.state_dir), KINDS).locked([facts], host=True, timeout_s=5):
        running = scplan.start("apply", "--auto-approve")
        waits_for_lock(running.pid)
        kill(web)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    assert "1 of them at next start" in out
    start_again(web)
    assert web.cgroup_file("pids.max").strip() == "100"


def waits_for_lock(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        if any(path.endswith(".lock") for path in held):
            return
        time.sleep(0.02)
    raise AssertionError("it does not wait for a lock")


def test_container_that_is_started_while_its_plan_is_looked_at(web: Container, scplan: Scplan) -> None:
    """Its hook waits for the apply; into a container without hook it is plugged in once the locks are released."""
    kill(web)
    path = scplan.write(of(web, cgroup={"pids.max": 100}))
    request = Request(state_dir=str(scplan.state_dir), files=(str(path),))
    take_hook_out(web)
    with open_apply(request) as run:
        start_again(web)
        assert run.execute(lambda _: None).at_next_start == 1
    assert [one.summary for one in run.afterwards] == [
        f"container {web.name} was started meanwhile: 1 resources plugged in"
    ]
    assert web.cgroup_file("pids.max").strip() == "100"
    assert "No changes." in scplan("plan").ok().stdout


# who applies it


def test_container_without_hook_is_told_of_once(
    runc_container: Container, web: Container, make_container: MakeContainer, scplan: Scplan
) -> None:
    third = make_container("runc")
    for one in (runc_container, web, third):
        kill(one)
    asked = config(*((one, {"cgroup": {"pids.max": 100}}) for one in (runc_container, web, third)))
    ran = scplan("plan", config=asked).ok()
    assert ran.stderr.count("warning:") == 1
    assert f"containers {runc_container.name}, {third.name} are started without scplan's hook" in ran.stderr
    scplan("apply", "--auto-approve").ok()
    start_again(third)
    assert third.cgroup_file("pids.max").strip() != "100"
    drifted = scplan("drift", "--json", "--detailed-exitcode").ok(2).json
    assert [one["address"] for one in drifted["drifted"]] == [address(third, "cgroup/pids.max")]
    scplan("apply", "--auto-approve").ok()
    assert third.cgroup_file("pids.max").strip() == "100"


def test_running_containers_without_hook_are_told_of_once(
    runc_container: Container, web: Container, make_container: MakeContainer, scplan: Scplan
) -> None:
    third = make_container("runc")
    elsewhere = scplan("--state-dir", "/srv/other", "hook", "spec", "--runtime", "runc").ok().json["hooks"]
    fourth = make_container("runc", hooks=elsewhere)
    containers = (runc_container, web, third, fourth)
    ran = scplan("plan", config=config(*((one, {"cgroup": {"pids.max": 100}}) for one in containers))).ok()
    assert ran.stderr.count("warning:") == 2
    assert f"containers {runc_container.name}, {third.name} are started without scplan's hook" in ran.stderr
    assert f"container {fourth.name} is started with a hook for another state directory: /srv/other" in ran.stderr
    scplan("apply", "--auto-approve").ok()
    assert scplan("plan").ok().stderr == "", "nothing changes, so that nothing is missing at the next start"


def test_reports_agree_on_what_waits(web: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 100})).ok()
    kill(web)
    drift = scplan("drift", "--json", "--metrics", "metrics", "--detailed-exitcode").ok().json
    assert (drift["drifted"], drift["pending"], drift["waiting"]) == ([], [], [address(web, "cgroup/pids.max")])
    metrics = (scplan.directory / "metrics").read_text()
    assert f'scplan_waiting_resources{{container="{web.name}"}} 1' in metrics
    assert f'scplan_drift_resources{{container="{web.name}"}} 0' in metrics
    (owned,) = scplan("show", "--json").ok().json["resources"]
    assert (owned["at_next_start"], owned["live"], owned["problem"]) == (True, None, "")
    asked = of(web, cgroup={"pids.max": 200})
    assert scplan("drift", "--json", "--detailed-exitcode", config=asked).ok(2).json["pending"][0]["at_next_start"]
