"""The main job on real containers: plan, apply, look inside, drift, heal, change, destroy, and all is as before."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk, Nic
from tests.e2e.scene import Config, address, config, everything, naming, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("cgroup1")


@pytest.fixture(params=["runc", "crun", "process"])
def web(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    """A container of each way of making one; the test runs once for each."""
    return make_container(request.param)


@pytest.fixture
def applied(web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path) -> Config:
    """A configuration with every kind of resource, applied to `web`."""
    (host_directory / "file").write_text("from the host\n")
    asked = everything(web, loop_disk, bridge, host_directory)
    scplan("apply", "--auto-approve", config=asked).ok()
    return asked


def sections(asked: Config) -> dict[str, Any]:
    """The sections of the only container, to be changed."""
    (found,) = asked["containers"].values()
    assert isinstance(found, dict)
    return found


# what apply makes


@pytest.mark.usefixtures("applied")
def test_device_is_a_node_that_can_be_used_as_asked_for(web: Container, loop_disk: LoopDisk) -> None:
    node = web.stat("/dev/data")
    assert node
    numbers = f"{loop_disk.major:x}:{loop_disk.minor:x}"
    assert (node["type"], node["rdev"]) == ("block special file", numbers)
    assert (node["mode"], node["uid"], node["gid"]) == ("640", "0", "6")
    assert web.exec(["dd", "if=/dev/data", "of=/dev/null", "count=1"]).returncode == 0
    writing = web.exec(["dd", "if=/dev/zero", "of=/dev/data", "count=1", "conv=notrunc"])
    assert "Operation not permitted" in writing.stderr


@pytest.mark.parametrize(("permissions", "may"), [("r", "r"), ("w", "w"), ("rw", "rw"), ("rwm", "rw")])
def test_permissions_are_exactly_those_asked_for(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk, permissions: str, may: str
) -> None:
    asked = of(process_container, devices=[f"{loop_disk.path}:/dev/data:{permissions}"])
    scplan("apply", "--auto-approve", config=asked).ok()
    attempts = {"r": "exec 3</dev/data", "w": "exec 3>/dev/data", "rw": "exec 3<>/dev/data"}
    done = {name: process_container.exec(["sh", "-c", script]).returncode == 0 for name, script in attempts.items()}
    assert done == {"r": "r" in may, "w": "w" in may, "rw": may == "rw"}
    rules = process_container.cgroup_file("devices.list").splitlines()
    assert [rule for rule in rules if f" {loop_disk.numbers} " in rule] == [f"b {loop_disk.numbers} {permissions}"]


@pytest.mark.usefixtures("applied")
def test_limits_are_in_the_cgroups_files(web: Container, loop_disk: LoopDisk) -> None:
    assert web.cgroup_file("blkio.throttle.read_bps_device").strip() == f"{loop_disk.numbers} {10 << 20}"
    assert web.cgroup_file("blkio.throttle.write_iops_device").strip() == f"{loop_disk.numbers} 500"
    assert web.cgroup_file("memory.limit_in_bytes").strip() == str(64 << 20)
    assert web.cgroup_file("cpu.cfs_quota_us").strip() == "50000"
    assert web.cgroup_file("cpu.cfs_period_us").strip() == "100000"
    assert web.cgroup_file("pids.max").strip() == "100"


@pytest.mark.usefixtures("applied")
def test_nic_is_up_on_both_sides(web: Container, bridge: str) -> None:
    nic = next(link for link in web.ip("-d", "address") if link["ifname"] == "eth1")
    assert {f"{info['local']}/{info['prefixlen']}" for info in nic["addr_info"]} >= {"10.97.0.5/24", "fd97::5/64"}
    assert (nic["address"], nic["mtu"], nic["txqlen"]) == ("02:5c:97:00:00:05", 1400, 1000)
    assert {"UP", "LOWER_UP"} <= set(nic["flags"])
    command = ["ip", "-json", "link", "show", "master", bridge]
    (outer,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # The bridge's, whatever the NIC's: a port with less would lower the bridge's own.
    assert (outer["mtu"], outer["operstate"]) == (1500, "UP")
    (whole,) = json.loads(subprocess.run([*command[:4], bridge], check=True, capture_output=True, text=True).stdout)
    assert whole["mtu"] == 1500


@pytest.mark.usefixtures("applied")
def test_routes_lead_over_the_nic(web: Container) -> None:
    (default,) = web.ip("route", "show", "default")
    assert (default["gateway"], default["dev"]) == ("10.97.0.1", "eth1")
    (other,) = web.ip("route", "show", "10.98.0.0/16")
    assert (other["dev"], other["metric"]) == ("eth1", 50)


@pytest.mark.usefixtures("applied")
def test_mount_shows_the_hosts_directory_read_only(web: Container, host_directory: Path) -> None:
    assert web.exec(["cat", "/srv/data/file"]).stdout == "from the host\n"
    assert "Read-only file system" in web.exec(["touch", "/srv/data/new"]).stderr
    (host_directory / "later").touch()
    assert web.exec(["test", "-e", "/srv/data/later"]).returncode == 0


# the second plan, drift, healing


@pytest.mark.usefixtures("applied")
def test_second_plan_is_empty(scplan: Scplan) -> None:
    again = scplan("plan", "--detailed-exitcode").ok()
    assert "No changes." in again.stdout
    assert scplan("drift", "--detailed-exitcode").ok().stderr == ""
    assert "No changes." in scplan("apply").ok().stdout


@pytest.mark.usefixtures("applied")
def test_tampering_is_drift_and_apply_heals_it(web: Container, scplan: Scplan, loop_disk: LoopDisk) -> None:
    healthy = fingerprint([web])
    inside = ["nsenter", "--target", str(web.pid), "--net", "ip"]
    subprocess.run([*inside, "link", "set", "eth1", "mtu", "1300"], check=True)
    subprocess.run([*inside, "route", "del", "default"], check=True)
    subprocess.run([*inside, "address", "del", "10.97.0.5/24", "dev", "eth1"], check=True)
    web.exec(["umount", "/srv/data"], check=True)
    web.exec(["rm", "/dev/data"], check=True)
    (web.cgroups["pids"] / "pids.max").write_text("7777")
    limit = web.cgroups["blkio"] / "blkio.throttle.read_bps_device"
    limit.write_text(f"{loop_disk.numbers} 4096")

    report = scplan("drift", "--json", "--detailed-exitcode").ok(2).json
    drifted = {one["address"].partition("/")[2]: one for one in report["drifted"]}
    assert set(drifted) == {
        "device/dev/data",
        "nic/eth1",
        "route/default",
        "route/10.98.0.0/16@metric=50",
        "mount/srv/data",
        "cgroup/pids.max",
    } - ({"route/10.98.0.0/16@metric=50"} if web.ip("route", "show", "10.98.0.0/16") else set())
    assert drifted["mount/srv/data"]["live"] is None
    assert drifted["cgroup/pids.max"]["changed"] == ["value"]
    assert drifted["cgroup/pids.max"]["live"]["value"] == "7777"
    assert set(drifted["nic/eth1"]["changed"]) == {"mtu", "addresses"}
    assert report["pending"] == []

    scplan("plan", "--detailed-exitcode").ok(2)
    scplan("apply", "--auto-approve").ok()
    scplan("drift", "--detailed-exitcode").ok()
    assert difference(healthy, fingerprint([web])) == []


def test_what_the_files_ask_for_and_was_not_applied_is_pending_and_no_drift(
    process_container: Container, scplan: Scplan
) -> None:
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100})).ok()
    report = scplan("drift", "--json", config=of(process_container, cgroup={"pids.max": 200})).ok().json
    assert report["drifted"] == []
    assert [change["address"] for change in report["pending"]] == [address(process_container, "cgroup/pids.max")]


# changes


def test_each_kind_is_changed(web: Container, applied: Config, scplan: Scplan, loop_disk: LoopDisk) -> None:
    asked = sections(applied)
    asked["devices"][0] |= {"permissions": "rw", "mode": "0600", "io": {"read_bps": "1m"}}
    asked["nics"][0] |= {"mtu": 1450, "addresses": ["10.97.0.5/24", "fd97::5/64", "10.97.0.6/24"]}
    asked["routes"][0]["via"] = "10.97.0.2"
    asked["mounts"][0] = asked["mounts"][0].removesuffix(":ro")
    asked["cgroup"]["memory.max"] = "80MiB"
    made = scplan("plan", "--json", config=applied).ok()
    assert planned(made) == {
        "device/dev/data": "update",
        "nic/eth1": "update",
        "route/default": "update",
        "mount/srv/data": "update",
        "cgroup/memory.max": "update",
    }
    scplan("apply", "--auto-approve").ok()
    scplan("plan", "--detailed-exitcode").ok()
    node = web.stat("/dev/data")
    assert node
    assert node["mode"] == "600"
    assert f"b {loop_disk.numbers} rw" in web.cgroup_file("devices.list").splitlines()
    assert web.cgroup_file("blkio.throttle.read_bps_device").strip() == f"{loop_disk.numbers} {1 << 20}"
    assert web.cgroup_file("blkio.throttle.write_iops_device").strip() == ""
    nic = next(link for link in web.ip("address") if link["ifname"] == "eth1")
    assert nic["mtu"] == 1450
    assert {info["local"] for info in nic["addr_info"]} >= {"10.97.0.5", "fd97::5", "10.97.0.6"}
    assert web.ip("route", "show", "default")[0]["gateway"] == "10.97.0.2"
    assert web.exec(["touch", "/srv/data/new"]).returncode == 0
    assert web.cgroup_file("memory.limit_in_bytes").strip() == str(80 << 20)


def test_what_can_not_change_in_place_is_replaced_with_all_that_stands_on_it(
    web: Container, applied: Config, scplan: Scplan, veth_pair: Nic, tmp_path: Path
) -> None:
    asked = sections(applied)
    asked["nics"][0] = {
        "name": "eth1",
        "type": "physical",
        "host_name": veth_pair.name,
        "addresses": ["10.97.0.5/24"],
    }
    (tmp_path / "other").mkdir()
    asked["mounts"][0] = f"{tmp_path}/other:/srv/data"
    made = scplan("plan", "--json", config=applied).ok()
    assert planned(made) == {
        "nic/eth1": "replace",
        "route/default": "replace",
        "route/10.98.0.0/16@metric=50": "replace",
        "mount/srv/data": "replace",
    }
    scplan("apply", "--auto-approve").ok()
    scplan("plan", "--detailed-exitcode").ok()
    assert web.ip("route", "show", "default")[0]["gateway"] == "10.97.0.1"
    assert web.exec(["test", "-e", "/srv/data/file"]).returncode == 1


def test_destroy_leaves_nothing_behind(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    with nothing_changed(web):
        scplan("apply", "--auto-approve", config=everything(web, loop_disk, bridge, host_directory)).ok()
        scplan("destroy", web.name, "--auto-approve").ok()
    assert scplan("state", "list").ok().stdout == ""
    assert list((scplan.state_dir / "journal").iterdir()) == []


def test_entries_taken_out_of_the_files_are_removed(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    with nothing_changed(web):
        scplan("apply", "--auto-approve", config=everything(web, loop_disk, bridge, host_directory)).ok()
        made = scplan("plan", "--json", config=of(web)).ok()
        assert set(planned(made).values()) == {"delete"}
        order = [change["address"] for change in made.json["changes"]]
        assert order.index(address(web, "route/default")) < order.index(address(web, "nic/eth1"))
        scplan("apply", "--auto-approve").ok()


# the plan as JSON


def test_plan_as_json_is_as_the_contract_says(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    ran = scplan("plan", "--json", config=everything(web, loop_disk, bridge, host_directory)).ok()
    document = ran.json
    assert ran.stderr == ""
    assert document["format_version"] == "1.0"
    assert document["summary"] == {"create": 8, "update": 0, "replace": 0, "delete": 0, "adopt": 0}
    (facts,) = document["containers"].values()
    assert (facts["runtime"], facts["status"], facts["pid"]) == (web.runtime, "running", web.pid)
    assert [change["order"] for change in document["changes"]] == list(range(1, 9))
    by_address = {change["address"]: change for change in document["changes"]}
    device = by_address[address(web, "device/dev/data")]
    assert (device["container"], device["kind"], device["action"]) == (web.name, "device", "create")
    assert (device["before"], device["changed"], device["disruption"]) == (None, [], "none")
    assert device["after"]["source"] == loop_disk.path
    assert device["after"]["io"]["read_bps"] == 10 << 20
    assert device["reason"] == "in the configuration, not in the container"
    route = by_address[address(web, "route/default")]
    assert route["requires"] == [address(web, "nic/eth1")]
    assert by_address[route["requires"][0]]["order"] < route["order"]


def test_planning_changes_nothing(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    with nothing_changed(web):
        scplan("plan", config=everything(web, loop_disk, bridge, host_directory)).ok()
    assert not scplan.state_dir.exists()


def test_events_of_an_apply_are_json_lines(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, cgroup={"pids.max": 100}, nics=[{"name": "eth1"}])
    events = scplan("apply", "--auto-approve", "--json", config=asked).ok().events
    assert [event["type"] for event in events] == ["plan", "step", "step", "step", "step", "summary"]
    assert [event["step"] for event in events if event["type"] == "step"] == ["started", "done"] * 2
    assert (events[-1]["result"], events[-1]["exit_code"]) == ("applied", 0)


# selection


def test_target_applies_what_was_chosen_and_what_it_stands_on(
    process_container: Container, scplan: Scplan, bridge: str
) -> None:
    asked = of(
        process_container,
        nics=[{"name": "eth1", "addresses": ["10.97.0.5/24"], "bridge": bridge}, {"name": "eth2"}],
        routes=[{"via": "10.97.0.1"}],
        cgroup={"pids.max": 50},
    )
    scplan("apply", "--auto-approve", "--target", f"{process_container.name}/route/*", config=asked).ok()
    owned = scplan("state", "list").ok().stdout.split()
    assert owned == [address(process_container, "nic/eth1"), address(process_container, "route/default")]
    left = scplan("plan", "--json").ok()
    assert planned(left) == {"nic/eth2": "create", "cgroup/pids.max": "create"}


def test_target_that_matches_nothing_is_a_warning(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, cgroup={"pids.max": 77})
    ran = scplan("plan", "--detailed-exitcode", "--target", "wbe/nic/*", config=asked).ok()
    assert "No changes." in ran.stdout
    assert "warning: --target 'wbe/nic/*' matches nothing" in ran.stderr


def test_exclude_leaves_out_what_was_chosen(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, nics=[{"name": "eth1"}], cgroup={"pids.max": 50})
    made = scplan("plan", "--json", "--exclude", f"{process_container.name}/nic/*", config=asked).ok()
    assert planned(made) == {"cgroup/pids.max": "create"}


# partitions, profiles, several files and containers


def test_partitions_come_with_their_disk(web: Container, scplan: Scplan, partitioned_disk: LoopDisk) -> None:
    asked = of(web, devices=[{"source": partitioned_disk.path, "target": "/dev/disk", "partitions": True}])
    with nothing_changed(web):
        scplan("apply", "--auto-approve", config=asked).ok()
        for number, source in enumerate(partitioned_disk.partitions, 1):
            node, status = web.stat(f"/dev/disk{number}"), os.stat(source)
            assert node
            assert node["rdev"] == f"{os.major(status.st_rdev):x}:{os.minor(status.st_rdev):x}"
            assert web.exec(["dd", f"if=/dev/disk{number}", "of=/dev/null", "count=1"]).returncode == 0
        scplan("plan", "--detailed-exitcode").ok()
        scplan("destroy", web.name, "--auto-approve").ok()


def test_profiles_and_several_files_are_merged(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    (scplan.directory / "scplan.d").mkdir()
    shared = {"mounts": [f"{host_directory}:/srv/shared:ro"], "cgroup": {"pids.max": 100}}
    scplan.write({"version": 1, "profiles": {"logging": shared}}, "scplan.d/10-profiles.yaml")
    own = {**naming(process_container), "profiles": ["logging"], "cgroup": {"pids.max": 200}}
    scplan.write({"version": 1, "containers": {process_container.name: own}}, "scplan.d/20-web.yaml")
    more = {"nics": [{"name": "eth1"}]}
    scplan.write({"version": 1, "containers": {process_container.name: more}}, "scplan.d/30-net.yaml")
    made = scplan("plan", "--json").ok()
    assert planned(made) == {"mount/srv/shared": "create", "cgroup/pids.max": "create", "nic/eth1": "create"}
    value = next(change["after"] for change in made.json["changes"] if change["kind"] == "cgroup")["value"]
    assert value == "200"


def test_one_apply_is_about_several_containers(scplan: Scplan, make_container: MakeContainer) -> None:
    one, other = make_container("runc"), make_container("process")
    asked = config((one, {"cgroup": {"pids.max": 50}}), (other, {"cgroup": {"pids.max": 60}}))
    scplan("apply", "--auto-approve", config=asked).ok()
    assert (one.cgroup_file("pids.max").strip(), other.cgroup_file("pids.max").strip()) == ("50", "60")


# looking


def test_show_and_state_tell_what_is_owned(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, nics=[{"name": "eth1", "mtu": 1400}], cgroup={"pids.max": 100})
    scplan("apply", "--auto-approve", config=asked).ok()
    (process_container.cgroups["pids"] / "pids.max").write_text("5000")
    listed = [address(process_container, "nic/eth1"), address(process_container, "cgroup/pids.max")]
    assert sorted(scplan("state", "list").ok().stdout.split()) == sorted(listed)
    shown = scplan("state", "show", listed[0], "--json").ok().json["resource"]
    assert (shown["address"], shown["recorded"]["mtu"]) == (listed[0], 1400)
    by_address = {one["address"]: one for one in scplan("show", "--json").ok().json["resources"]}
    assert set(by_address) == set(listed)
    assert by_address[listed[1]]["changed"] == ["value"]
    assert by_address[listed[1]]["live"]["value"] == "5000"
    assert "5000" in scplan("show").ok().stdout


def test_forgotten_resource_stays_and_can_be_adopted_again(process_container: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(process_container, nics=[{"name": "eth1", "mtu": 1400}])).ok()
    with nothing_changed(process_container):
        scplan("state", "rm", address(process_container, "nic/eth1")).ok()
        assert scplan("state", "list").ok().stdout == ""
        assert planned(scplan("plan", "--json").ok()) == {"nic/eth1": "adopt"}
        scplan("apply", "--auto-approve").ok()
    assert scplan("state", "list").ok().stdout.split() == [address(process_container, "nic/eth1")]
    scplan("plan", "--detailed-exitcode").ok()


def test_plan_can_be_made_from_a_snapshot_without_root(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path, tmp_path: Path
) -> None:
    scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 100})).ok()
    asked = everything(web, loop_disk, bridge, host_directory)
    scplan("snapshot", "--out", str(tmp_path / "host.snapshot"), config=asked).ok()
    here = planned(scplan("plan", "--json").ok())
    (host_directory / "host.snapshot").write_bytes((tmp_path / "host.snapshot").read_bytes())
    (host_directory / "scplan.yaml").write_text(json.dumps(asked))
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    command += scplan.command("plan", "--live", "host.snapshot", "--json")
    environment = {**scplan.environment, "SCPLAN_STATE_DIR": str(host_directory / "absent")}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=host_directory, env=environment)
    assert ended.returncode == 0, ended.stderr
    there = {change["address"].partition("/")[2]: change["action"] for change in json.loads(ended.stdout)["changes"]}
    assert there == here
    assert len(here) == 7


def test_doctor_tells_what_this_host_supports(scplan: Scplan) -> None:
    findings = scplan("doctor", "--json").ok().json["findings"]
    assert {finding["support"] for finding in findings} <= {"yes", "no", "unknown"}
    assert "runc" in {finding["subject"] for finding in findings}


def test_schema_accepts_the_examples() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    from scplan.workflow import planning

    validator = jsonschema.Draft202012Validator(planning.schema())
    validator.check_schema(planning.schema())
    examples = Path(__file__).parents[2] / "examples"
    for path in sorted([*examples.glob("*.yaml"), *examples.glob("*.d/*.yaml")]):
        document = yaml.safe_load(path.read_text())
        assert [f"{path}: {error.message}" for error in validator.iter_errors(document)] == []


# exit codes


def test_declined_apply_changes_nothing(process_container: Container, scplan: Scplan) -> None:
    scplan.write(of(process_container, cgroup={"pids.max": 100}))
    with nothing_changed(process_container):
        assert on_a_terminal(scplan, "no\n", "apply") == 7
    assert on_a_terminal(scplan, "yes\n", "apply") == 0
    assert process_container.cgroup_file("pids.max").strip() == "100"


def test_apply_without_a_terminal_needs_approval(process_container: Container, scplan: Scplan) -> None:
    with nothing_changed(process_container):
        ran = scplan("apply", config=of(process_container, cgroup={"pids.max": 100}), stdin="yes\n")
        refused(ran, "--auto-approve", code=7)
        ran = scplan("apply", "--json")
        refused(ran, "--auto-approve", code=7)
        assert ran.events[-1]["result"] == "declined"


def test_second_apply_waits_for_the_lock_and_gives_up_in_time(process_container: Container, scplan: Scplan) -> None:
    scplan.write(of(process_container, cgroup={"pids.max": 100}))
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        scplan.command("apply"),
        stdin=secondary,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=scplan.directory,
        env=scplan.environment,
    ) as holder:
        assert holder.stderr
        asked = b""
        while b"[y/N]" not in asked:
            asked += (byte := holder.stderr.read(1))
            assert byte, f"it ended without asking: {asked!r}"
        refused(
            scplan("apply", "--auto-approve", "--lock-timeout", "200ms"),
            "locked by another apply",
            str(holder.pid),
            "--lock-timeout",
            code=6,
        )
        os.write(primary, b"y\n")
        assert holder.wait(20) == 0
    os.close(primary)
    os.close(secondary)
    scplan("apply", "--auto-approve", "--lock-timeout", "200ms").ok()


def on_a_terminal(scplan: Scplan, answer: str, *arguments: str) -> int:
    """The exit code of a run that asks on a terminal and gets this answer."""
    primary, secondary = pty.openpty()
    os.write(primary, answer.encode())
    ended = subprocess.run(
        scplan.command(*arguments),
        stdin=secondary,
        capture_output=True,
        timeout=60,
        cwd=scplan.directory,
        env=scplan.environment,
    )
    os.close(primary)
    os.close(secondary)
    return ended.returncode
