"""Containers that do not run: planned for and recorded, and started with it; what has become of them meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scplan.kinds import KINDS
from tests.conftest import Ran, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.session import CHECKOUT, Session
from tests.e2e.scene import address, config, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("runc", "loop", "bridge", "veth")


@pytest.fixture
def web(session: Session, scplan: Scplan) -> Iterator[Container]:
    """A container whose bundle has scplan's hook."""
    with session.container("runc", hooks=hooks(scplan)) as container:
        yield container


def hooks(scplan: Scplan) -> dict[str, object]:
    command = [sys.executable, "-m", "scplan", "--state-dir", str(scplan.state_dir), "hook"]
    return {
        stage: [{"path": sys.executable, "args": [*command, stage], "env": [f"PYTHONPATH={CHECKOUT}"]}]
        for stage in ("createRuntime", "poststop")
    }


def kill(container: Container) -> None:
    """Ends the container as a crash of its process would; its runtime knows it still."""
    os.kill(container.pid, signal.SIGKILL)
    subprocess.run(["tail", "--pid", str(container.pid), "-f", "/dev/null"], timeout=10)


def start_again(container: Container) -> None:
    container.stop()
    container.start()


def parts(disk: LoopDisk, bridge: str, directory: Path) -> dict[str, Any]:
    return {
        "devices": [{"source": disk.path, "target": "/dev/data", "io": {"read_bps": "10m"}}],
        "nics": [{"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"]}],
        "routes": [{"to": "default", "via": "10.97.0.1"}],
        "mounts": [f"{directory}:/srv/data:ro"],
        "cgroup": {"pids.max": 100},
    }


def at_next_start(ran: Ran) -> dict[str, bool]:
    return {change["address"].partition("/")[2]: change["at_next_start"] for change in ran.json["changes"]}


def record_path(scplan: Scplan, container: Container) -> Path:
    return scplan.state_dir / "containers" / container.runtime / f"{container.name}.json"


def rewrite_record(scplan: Scplan, container: Container, **changes: object) -> None:
    """The record as of another life, or of another container of the name."""
    from scplan.records import decode_line, encode_line

    path = record_path(scplan, container)
    document = decode_line(path.read_bytes(), str(path))
    document["container"].update(changes)
    path.write_bytes(encode_line(document))


def inside(container: Container) -> list[str]:
    """What of `parts` is in a running container."""
    links = {link["ifname"] for link in container.ip("link")}
    return [
        name
        for name, there in {
            "device": container.stat("/dev/data") is not None,
            "nic": "eth1" in links,
            "route": any(route["dst"] == "default" for route in container.ip("route")),
            "mount": "/srv/data" in container.mount_points(),
            "cgroup": container.cgroup_file("pids.max").strip() == "100",
        }.items()
        if there
    ]


ALL = ["device", "nic", "route", "mount", "cgroup"]


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


def test_container_that_its_runtime_forgot_is_planned_for_by_its_record(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    """Runc forgets a container that `runc run` waited for; it is made again under its name to start it."""
    asked = parts(loop_disk, bridge, host_directory)
    scplan("apply", "--auto-approve", config=of(web, **asked)).ok()
    web.stop()
    assert "No changes." in scplan("plan").ok().stdout
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
        (runc_container, {"cgroup": {"pids.max": 300}, "routes": [{"to": "10.9.0.0/16", "via": "10.254.0.1"}]}),
    )
    scplan("apply", "--auto-approve", config=failing).ok(3)
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
    from scplan.model.live import ContainerFacts, Status
    from scplan.state import State

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
    import time

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        if any(path.endswith(".lock") for path in held):
            return
        time.sleep(0.02)
    raise AssertionError("it does not wait for a lock")


def test_container_that_is_started_while_its_plan_is_looked_at(web: Container, scplan: Scplan) -> None:
    """Its hook waits for the apply; a container without hook is told of."""
    from scplan.errors import ScplanError
    from scplan.workflow import Request, open_apply

    kill(web)
    path = scplan.write(of(web, cgroup={"pids.max": 100}))
    request = Request(state_dir=str(scplan.state_dir), files=(str(path),))
    bundle = web.bundle / "config.json" if web.bundle else Path()
    document = json.loads(bundle.read_text())
    bundle.write_text(json.dumps({key: value for key, value in document.items() if key != "hooks"}))
    with open_apply(request) as run:
        start_again(web)
        with pytest.raises(ScplanError, match="was started meanwhile"):
            run.execute(lambda _: None)
    assert not record_path(scplan, web).exists()


# who applies it


def test_container_without_hook_is_told_of_once(
    runc_container: Container, web: Container, make_container: Any, scplan: Scplan
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


# made again


def test_container_made_again_gets_nothing_unasked(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    asked = of(web, **parts(loop_disk, bridge, host_directory))
    scplan("apply", "--auto-approve", config=asked).ok()
    start_again(web)
    assert inside(web) == ALL
    rewrite_record(scplan, web, id="f00d" * 16)
    start_again(web)
    assert inside(web) == []
    said = "was made again", f"scplan state mv {web.name} {web.name}", f"scplan state rm {web.name}", "f00df00df00d"
    with nothing_changed(web):
        for command in (("plan",), ("apply", "--auto-approve"), ("destroy", "-f", "scplan.yaml", "--auto-approve")):
            refused(scplan(*command), *said)
        drift = scplan("drift", "--detailed-exitcode", "--json").ok(2).json
        assert len(drift["drifted"]) == 5
        assert "was made again" in drift["diagnostics"][0]["summary"]
        (scplan.directory / "scplan.yaml").rename(scplan.directory / "kept")
        assert len(scplan("drift", "--json").ok().json["drifted"]) == 5
        assert "was made again" in scplan("show").ok().stderr
        assert "was made again" in scplan("state", "list").ok().stderr
        (scplan.directory / "kept").rename(scplan.directory / "scplan.yaml")
        (scplan.directory / "live.json").write_text(scplan("snapshot").ok().stdout)
        refused(scplan("plan", "--live", "live.json"), *said)
    moved = scplan("state", "mv", web.name, web.name, "--json").ok().json
    assert moved["from"] == {"runtime": "runc", "name": web.name, "id": "f00d" * 16}
    assert moved["to"]["id"] == web.name
    assert len(moved["resources"]) == 5
    assert len(planned(scplan("plan", "--json").ok())) == 5
    scplan("apply", "--auto-approve").ok()
    assert inside(web) == ALL
    refused(scplan("state", "mv", web.name, web.name), "already", code=64)


def test_records_of_one_that_was_made_again_can_be_forgotten(web: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 100})).ok()
    rewrite_record(scplan, web, id="f00d" * 16)
    scplan("state", "rm", web.name).ok()
    assert planned(scplan("plan", "--json").ok()) == {"cgroup/pids.max": "adopt"}
    scplan("apply", "--auto-approve").ok()
    rewrite_record(scplan, web, id="f00d" * 16)
    with nothing_changed(web):
        scplan("destroy", web.name, "--auto-approve").ok()
    assert scplan("state", "list").ok().stdout == ""


def test_records_move_between_runtimes(
    web: Container, crun_container: Container, scplan: Scplan, host_directory: Path, bridge: str
) -> None:
    asked = {"cgroup": {"pids.max": 100}, "nics": [{"name": "eth1", "bridge": bridge}]}
    scplan("apply", "--auto-approve", config=of(web, **asked)).ok()
    refused(scplan("state", "mv", web.name, crun_container.name), f"container {web.name} runs")
    web.stop()
    ran = scplan("state", "mv", f"runc/{web.name}", f"crun/{crun_container.name}").ok()
    assert f"Moved: 2 resources of runc/{web.name} ({web.name}) to {crun_container.name} (crun, " in ran.stdout
    assert not record_path(scplan, web).exists()
    assert len(planned(scplan("plan", "--json", config=of(crun_container, **asked)).ok())) == 2
    scplan("apply", "--auto-approve").ok()
    web.start()
    other = of(web, mounts=[f"{host_directory}:/srv/data"])
    scplan("apply", "--auto-approve", config=other).ok()
    web.stop()
    refused(scplan("state", "mv", web.name, crun_container.name), "has records already")
    one = address(web, "mount/srv/data")
    refused(scplan("state", "mv", one, address(crun_container, "mount/srv/else")), "can't be moved", code=64)
    refused(scplan("state", "mv", one, crun_container.name), "an address is moved to an address", code=64)
    refused(scplan("state", "mv", f"nope/{web.name}", crun_container.name), "no runtime nope", code=64)
    refused(scplan("state", "mv", "absent0", crun_container.name), "owns nothing")
    scplan("state", "mv", one, address(crun_container, "mount/srv/data")).ok()
    assert scplan("state", "list").ok().stdout.splitlines() == [
        address(crun_container, rest) for rest in ("nic/eth1", "cgroup/pids.max", "mount/srv/data")
    ]


def test_container_gone_for_good_is_told_of(web: Container, scplan: Scplan) -> None:
    """One with an ID of its own, which nobody can make again."""
    scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 100})).ok()
    rewrite_record(scplan, web, id="f00d" * 16)
    web.stop()
    refused(scplan("plan"), f"container {web.name} is gone from runc", "scplan state rm")
    assert f"container {web.name} is gone from runc" in scplan("state", "list").ok().stderr
    assert "gone from runc" in scplan("show").ok().stdout
    scplan("destroy", web.name, "--auto-approve").ok()
    assert scplan("state", "list").ok().stdout == ""


# NICs that did not come home


def test_nic_that_a_dead_container_left_is_named_and_comes_home(web: Container, scplan: Scplan, veth_pair: Nic) -> None:
    with nothing_changed():
        lend(web, scplan, veth_pair)
        kill(web)
        assert not is_on_host(veth_pair.name)
        for command in (("plan",), ("show",), ("doctor",), ("state", "list")):
            said = scplan(*command).ok().stderr
            assert f"NIC {veth_pair.name} comes home" in said, command
            assert f"container {web.name}, which has ended, left it as eth1 in its network namespace" in said
        assert "No changes." in scplan("plan").ok().stdout
        assert f"NIC {veth_pair.name} came home" in scplan("recover").ok().stdout
        assert scplan("recover").ok().stdout == "Nothing to recover.\n"
        assert scplan("plan").ok().stderr == ""
        scplan("destroy", web.name, "--auto-approve").ok()
        web.stop()


@pytest.mark.parametrize("way", [("apply", "--auto-approve"), ("destroy", "--auto-approve"), ("state", "rm")])
def test_nic_comes_home_by_whatever_is_done_for_its_container(
    web: Container, scplan: Scplan, veth_pair: Nic, way: tuple[str, ...]
) -> None:
    with nothing_changed():
        lend(web, scplan, veth_pair)
        kill(web)
        ran = scplan(*way) if way[0] == "apply" else scplan(*way, web.name)
        assert f"NIC {veth_pair.name} came home" in ran.ok().stderr
        assert is_on_host(veth_pair.name)
        scplan("state", "rm", web.name)
        web.stop()


def test_nic_on_the_host_under_the_name_that_it_had_inside(
    web: Container, scplan: Scplan, veth_pair: Nic, session: Session
) -> None:
    """As the kernel gives hardware back; a stand-in is moved by hand, since it would go with its namespace."""
    name = session.name()
    with nothing_changed():
        lend(web, scplan, veth_pair, name=name)
        subprocess.run(
            ["nsenter", "--target", str(web.pid), "--net", "ip", "link", "set", name, "netns", str(os.getpid())],
            check=True,
        )
        (pinned,) = (path for path in Path("/run/scplan/netns").iterdir() if path.name.endswith(f".{name}"))
        subprocess.run(["umount", str(pinned)], check=True)
        pinned.unlink()
        kill(web)
        said = scplan("plan").ok().stderr
        assert f"NIC {veth_pair.name} comes home" in said
        assert f"left it on the host as {name}" in said
        assert f"NIC {veth_pair.name} came home" in scplan("recover").ok().stdout
        scplan("destroy", web.name, "--auto-approve").ok()
        web.stop()


def test_what_the_old_one_has_of_the_host_comes_home_before_records_are_moved(
    web: Container, crun_container: Container, scplan: Scplan, veth_pair: Nic
) -> None:
    lend(web, scplan, veth_pair)
    kill(web)
    moved = scplan("state", "mv", web.name, crun_container.name).ok()
    assert f"NIC {veth_pair.name} came home" in moved.stderr
    assert is_on_host(veth_pair.name)
    asked = of(crun_container, nics=[{"name": "eth1", "type": "physical", "host_name": veth_pair.name}])
    scplan("apply", "--auto-approve", config=asked).ok()
    assert not is_on_host(veth_pair.name)
    scplan("destroy", crun_container.name, "--auto-approve").ok()
    assert is_on_host(veth_pair.name)


def lend(container: Container, scplan: Scplan, pair: Nic, name: str = "eth1") -> None:
    nic = {"name": name, "type": "physical", "host_name": pair.name, "mtu": 1400}
    scplan("apply", "--auto-approve", config=of(container, nics=[nic])).ok()


def is_on_host(name: str) -> bool:
    return any(name == there for _, there in socket.if_nameindex())


# after a reboot


def after_a_reboot(scplan: Scplan, container: Container) -> None:
    container.stop()
    rewrite_record(scplan, container, boot_id="4b0075b0-07ed-0000-0000-000000000000")


def test_after_a_reboot_nothing_is_given_back(web: Container, scplan: Scplan, veth_pair: Nic) -> None:
    """What has the NIC's name then is the NIC: it is not made as it was at another boot."""
    lend(web, scplan, veth_pair)
    kill(web)
    rewrite_record(scplan, web, boot_id="4b0075b0-07ed-0000-0000-000000000000")
    with nothing_changed():
        assert scplan("recover").ok().stdout == "Nothing to recover.\n"
        assert "came home" not in scplan("show").ok().stderr
    rewrite_record(scplan, web, boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    scplan("destroy", web.name, "--auto-approve").ok()


@pytest.mark.parametrize("by", ["hook", "apply"])
def test_after_a_reboot_all_is_plugged_in_again(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path, by: str
) -> None:
    asked = of(web, **parts(loop_disk, bridge, host_directory))
    scplan("apply", "--auto-approve", config=asked).ok()
    after_a_reboot(scplan, web)
    assert "No changes." in scplan("plan").ok().stdout
    assert json.loads(scplan("drift", "--json", "--detailed-exitcode").ok().stdout)["drifted"] == []
    if by == "hook":
        web.start()
    else:
        start_without_hook(web)
        assert len(planned(scplan("plan", "--json").ok())) == 5
        scplan("apply", "--auto-approve").ok()
    assert inside(web) == ALL
    assert "No changes." in scplan("plan").ok().stdout


def start_without_hook(container: Container) -> None:
    assert container.bundle
    path = container.bundle / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in document.items() if key != "hooks"}))
    container.start()


@pytest.mark.parametrize("by", ["hook", "apply"])
def test_disk_with_another_number_after_a_reboot(
    web: Container, scplan: Scplan, session: Session, loop_disk: LoopDisk, by: str
) -> None:
    """The name is looked up again; what has the old number by now is somebody else's disk."""
    from tests.containers import host_parts

    name = scplan.directory / "by-id"
    name.symlink_to(loop_disk.path)
    asked = of(web, devices=[{"source": str(name), "target": "/dev/data", "io": {"read_bps": "10m"}}])
    scplan("apply", "--auto-approve", config=asked).ok()
    with host_parts.loop_disk(session) as other:
        after_a_reboot(scplan, web)
        name.unlink()
        name.symlink_to(other.path)
        assert "No changes." in scplan("plan").ok().stdout
        if by == "hook":
            web.start()
        else:
            start_without_hook(web)
            scplan("apply", "--auto-approve").ok()
        found = web.stat("/dev/data")
        assert found
        assert found["rdev"] == f"{other.major:x}:{other.minor:x}"
        allowed = web.cgroup_file("devices.list")
        assert f"b {other.numbers} " in allowed
        assert f"b {loop_disk.numbers} " not in allowed
        assert f"{loop_disk.numbers} " not in web.cgroup_file("blkio.throttle.read_bps_device")
        assert "No changes." in scplan("plan").ok().stdout
        web.stop()


def test_disk_that_is_absent_after_a_reboot(web: Container, scplan: Scplan, loop_disk: LoopDisk) -> None:
    name = scplan.directory / "by-id"
    name.symlink_to(loop_disk.path)
    device = {"source": str(name), "target": "/dev/data"}
    scplan("apply", "--auto-approve", config=of(web, devices=[device], cgroup={"pids.max": 100})).ok()
    after_a_reboot(scplan, web)
    name.unlink()
    refused(scplan("plan"), f"the host has no {name}")
    failed = web.start(check=False)
    assert failed.returncode != 0
    assert f"the host has no {name}" in failed.stdout
    name.symlink_to(loop_disk.path)
    optional = of(web, devices=[{**device, "required": False}], cgroup={"pids.max": 100})
    scplan("apply", "--auto-approve", config=optional).ok()
    name.unlink()
    assert f"warning: the host has no {name}" in scplan("plan").ok().stderr
    web.start()
    assert web.stat("/dev/data") is None
    assert web.cgroup_file("pids.max").strip() == "100"
    name.symlink_to(loop_disk.path)
    assert planned(scplan("plan", "--json").ok()) == {"device/dev/data": "create"}
