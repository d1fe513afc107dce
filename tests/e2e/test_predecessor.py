"""Where the system that scplan succeeds failed its users, on real containers: scplan gets each case right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from scplan.errors import KernelError
from scplan.linux.processes.namespaces import Child
from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.session import Session
from tests.e2e.scene import Config, address, config, everything, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("cgroup1", "runc")

TOO_MUCH = {"cpu.max": "6553600000 100000"}
"""More than the kernel's bandwidth: a step that is refused, and that comes late."""


def ip_json(*arguments: str) -> Any:
    command = ["ip", "-json", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout or "[]")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


# a failure in the middle


def test_everything_is_undone_when_a_later_step_fails(
    runc_container: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    asked = everything(runc_container, loop_disk, bridge, host_directory)
    with nothing_changed(runc_container):
        failing = {**asked, "probes": ["false"]}
        refused(scplan("apply", "--auto-approve", config=failing), "everything is as before", code=3)
    assert scplan("state", "list").ok().stdout == ""
    assert planned(scplan("plan", "--json").ok())["device/dev/data"] == "create"


def test_failing_change_of_one_kind_brings_back_the_changes_of_others(
    runc_container: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    asked = everything(runc_container, loop_disk, bridge, host_directory)
    scplan("apply", "--auto-approve", config=asked).ok()
    sections = asked["containers"][runc_container.name]
    sections["devices"] = []
    sections["mounts"] = []
    sections["nics"][0]["mtu"] = 1300
    sections["cgroup"]["memory.max"] = "70MiB"
    sections["routes"] = [sections["routes"][1], {"to": "10.99.0.0/16", "via": "10.97.0.7"}]
    with nothing_changed(runc_container):
        refused(scplan("apply", "--auto-approve", config={**asked, "probes": ["false"]}), "as before", code=3)


# NICs


def test_changing_the_mtu_keeps_the_routes(runc_container: Container, scplan: Scplan, bridge: str) -> None:
    nic = {"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24", "fd97::5/64"]}
    routes = [{"via": "10.97.0.1"}, {"to": "10.98.0.0/16", "dev": "eth1"}, {"to": "::/0", "via": "fd97::1"}]
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic], routes=routes)).ok()
    before = routes_inside(runc_container)
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[{**nic, "mtu": 1400}], routes=routes)).ok()
    assert routes_inside(runc_container) == before
    assert next(link for link in runc_container.ip("link") if link["ifname"] == "eth1")["mtu"] == 1400
    scplan("plan", "--detailed-exitcode").ok()


def routes_inside(container: Container) -> list[tuple[str, str]]:
    """Destination and gateway of the routes that somebody made."""
    rows = [*container.ip("-4", "route"), *container.ip("-6", "route")]
    return sorted((row["dst"], row.get("gateway", "")) for row in rows if row.get("protocol") not in ("kernel", "ra"))


def test_nic_whose_new_bridge_is_gone_stays_as_it_is(runc_container: Container, scplan: Scplan, bridge: str) -> None:
    nic = {"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"]}
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic])).ok()
    with nothing_changed(runc_container):
        changed = of(runc_container, nics=[{**nic, "bridge": "absent0", "mtu": 1400}])
        ran = scplan("apply", "--auto-approve", config=changed)
        refused(ran, "the host has no bridge absent0", "scplan.yaml:")
        assert ran.stdout == ""


def test_nic_whose_mtu_is_too_large_for_its_link_stays_as_it_is(
    runc_container: Container, scplan: Scplan, session: Session
) -> None:
    host_nic = session.name()
    ip("tuntap", "add", host_nic, "mode", "tap")  # takes 65521 bytes at most
    nic = {"name": "eth1", "type": "physical", "host_name": host_nic, "addresses": ["10.97.0.5/24"], "mtu": 1400}
    try:
        scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic], routes=[{"via": "10.97.0.1"}])).ok()
        with nothing_changed(runc_container):
            changed = of(runc_container, nics=[{**nic, "mtu": 65535}], routes=[{"via": "10.97.0.1"}])
            ran = scplan("apply", "--auto-approve", config=changed)
            refused(ran, "mtu 65535", code=3)
            assert "done" not in ran.stdout
        scplan("destroy", runc_container.name, "--auto-approve").ok()
    finally:
        ip("link", "delete", host_nic)


def test_nics_of_the_same_name_in_two_containers_are_two(scplan: Scplan, make_container: MakeContainer) -> None:
    one, other = make_container("runc"), make_container("process")
    nic = {"nics": [{"name": "eth1"}]}
    scplan("apply", "--auto-approve", config=of(other, **nic)).ok()
    with nothing_changed(one, other):
        scplan("apply", "--auto-approve", config=config((one, nic), (other, nic))).ok()
        scplan("destroy", one.name, "--auto-approve").ok()
    assert scplan("state", "list").ok().stdout.split() == [address(other, "nic/eth1")]


def test_physical_nic_comes_back_as_it_went(runc_container: Container, scplan: Scplan, veth_pair: Nic) -> None:
    ip("link", "set", veth_pair.name, "address", "02:5c:00:00:00:77", "mtu", "1380", "txqueuelen", "555", "up")
    ip("address", "add", "10.96.0.9/24", "dev", veth_pair.name)
    ip("route", "add", "10.95.0.0/16", "via", "10.96.0.1")
    nic = {
        "name": "eth1",
        "type": "eth",
        "host_name": veth_pair.name,
        "mac": "02:5c:00:00:00:99",
        "mtu": 1400,
        "qlen": 100,
        "addresses": ["10.97.0.5/24"],
    }
    with nothing_changed(runc_container):
        scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic])).ok()
        assert veth_pair.name not in {link["ifname"] for link in ip_json("link")}
        inside = next(link for link in runc_container.ip("address") if link["ifname"] == "eth1")
        assert (inside["address"], inside["mtu"], inside["txqlen"]) == ("02:5c:00:00:00:99", 1400, 100)
        assert "10.96.0.9" not in {info["local"] for info in inside["addr_info"]}
        scplan("plan", "--detailed-exitcode").ok()
        scplan("apply", "--auto-approve", config=of(runc_container)).ok()


def test_physical_nic_whose_name_is_taken_meanwhile_is_not_lost(
    runc_container: Container, scplan: Scplan, veth_pair: Nic
) -> None:
    nic = {"name": "eth1", "type": "physical", "host_name": veth_pair.name, "addresses": ["10.97.0.5/24"]}
    with nothing_changed(runc_container):
        scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic], routes=[{"via": "10.97.0.1"}])).ok()
        ip("link", "add", veth_pair.name, "type", "ifb")
        try:
            with nothing_changed(runc_container):
                ran = scplan("destroy", runc_container.name, "--auto-approve")
                refused(ran, veth_pair.name, code=3)
            assert address(runc_container, "nic/eth1") in scplan("state", "list").ok().stdout.split()
        finally:
            ip("link", "delete", veth_pair.name)
        scplan("destroy", runc_container.name, "--auto-approve").ok()


def test_physical_nic_is_given_back_when_a_later_step_fails(
    runc_container: Container, scplan: Scplan, veth_pair: Nic
) -> None:
    ip("link", "set", veth_pair.name, "up")
    ip("address", "add", "10.96.0.9/24", "dev", veth_pair.name)
    nic = {"name": "eth1", "type": "physical", "host_name": veth_pair.name}
    with nothing_changed(runc_container):
        asked = {**of(runc_container, nics=[nic], routes=[{"dev": "eth1"}]), "probes": ["false"]}
        refused(scplan("apply", "--auto-approve", config=asked), "as before", code=3)


def test_ipv6_and_several_addresses_are_set_and_others_left_alone(runc_container: Container, scplan: Scplan) -> None:
    nic = {"name": "eth1", "addresses": ["10.97.0.5/24", "10.97.0.6/24", "fd97::5/64", "fd97::6/64"]}
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic])).ok()
    inside = ["nsenter", "--target", str(runc_container.pid), "--net", "ip", "address", "add"]
    subprocess.run([*inside, "10.50.0.1/24", "dev", "eth1"], check=True)
    scplan("plan", "--detailed-exitcode").ok()
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[{**nic, "mtu": 1400}])).ok()
    found = next(link for link in runc_container.ip("address") if link["ifname"] == "eth1")["addr_info"]
    assert {one["local"] for one in found} >= {"10.97.0.5", "10.97.0.6", "fd97::5", "fd97::6", "10.50.0.1"}


def test_nine_physical_nics_are_refused(runc_container: Container, scplan: Scplan) -> None:
    nics = [{"name": f"eth{number}", "type": "physical", "host_name": f"absent{number}"} for number in range(9)]
    refused(scplan("plan", config=of(runc_container, nics=nics)), "scplan.yaml:", "at most 8 physical NICs")


# routes


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ({"to": "default", "via": "10.97.0.1", "gw": "10.97.0.2"}, 'no attribute "gw"'),
        ({"to": "default", "via": "10.97.0.256"}, "10.97.0.256"),
        ({"to": "10.97.0.0/33", "dev": "eth1"}, "10.97.0.0/33"),
        ({"to": "default"}, "a route needs via, dev or src"),
    ],
)
def test_wrong_route_is_refused_with_its_place(
    process_container: Container, scplan: Scplan, route: dict[str, str], said: str
) -> None:
    refused(scplan("apply", "--auto-approve", config=of(process_container, routes=[route])), "scplan.yaml:", said)


def test_removing_one_of_several_routes_via_a_gateway_leaves_the_others(
    runc_container: Container, scplan: Scplan
) -> None:
    nic = {"name": "eth1", "addresses": ["10.97.0.5/24"]}
    routes = [{"to": to, "via": "10.97.0.1"} for to in ("default", "10.98.0.0/16", "10.99.0.0/16")]
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic], routes=routes)).ok()
    inside = ["nsenter", "--target", str(runc_container.pid), "--net", "ip", "route", "add"]
    subprocess.run([*inside, "10.60.0.0/16", "via", "10.97.0.1"], check=True)
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic], routes=routes[1:2])).ok()
    assert routes_inside(runc_container) == [("10.60.0.0/16", "10.97.0.1"), ("10.98.0.0/16", "10.97.0.1")]


# devices


def test_removing_one_node_of_a_disk_leaves_the_other_its_access(
    runc_container: Container, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    two = [f"{loop_disk.path}:/dev/one:rw", f"{loop_disk.path}:/dev/two:r"]
    scplan("apply", "--auto-approve", config=of(runc_container, devices=two)).ok()
    scplan("apply", "--auto-approve", config=of(runc_container, devices=two[1:])).ok()
    assert runc_container.exec(["dd", "if=/dev/two", "of=/dev/null", "count=1"]).returncode == 0
    assert runc_container.stat("/dev/one") is None
    rules = [row for row in runc_container.cgroup_file("devices.list").splitlines() if loop_disk.numbers in row]
    assert rules == [f"b {loop_disk.numbers} r"]
    scplan("plan", "--detailed-exitcode").ok()


def test_dev_null_under_another_name_leaves_the_runtimes_rule(runc_container: Container, scplan: Scplan) -> None:
    with nothing_changed(runc_container):
        scplan("apply", "--auto-approve", config=of(runc_container, devices=["/dev/null:/dev/nothing:rw"])).ok()
        scplan("apply", "--auto-approve", config=of(runc_container)).ok()
        assert runc_container.exec(["sh", "-c", "echo > /dev/null && cat /dev/null"]).returncode == 0


@pytest.mark.parametrize("value", ["99999999999", "4294967296", "-1", "1.5", "many"])
def test_iops_that_would_wrap_are_refused_with_their_place(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk, value: str
) -> None:
    asked = of(process_container, devices=[{"source": loop_disk.path, "io": {"read_iops": value}}])
    with nothing_changed(process_container):
        refused(scplan("apply", "--auto-approve", config=asked), "scplan.yaml:", value, "read_iops")


@pytest.mark.needs("userns")
@pytest.mark.parametrize("runtime", ["runc", "process"])
def test_device_works_in_a_user_namespace_for_what_is_granted(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk, runtime: str
) -> None:
    container = make_container(runtime, userns=True)
    with nothing_changed(container):
        scplan("apply", "--auto-approve", config=of(container, devices=[f"{loop_disk.path}:/dev/data:r"])).ok()
        assert container.exec(["dd", "if=/dev/data", "of=/dev/null", "count=1"]).returncode == 0
        assert "not permitted" in container.exec(["dd", "if=/dev/zero", "of=/dev/data", "count=1"]).stderr
        scplan("plan", "--detailed-exitcode").ok()
        scplan("destroy", container.name, "--auto-approve").ok()


@pytest.mark.needs("userns")
@pytest.mark.parametrize("runtime", ["runc", "process"])
def test_everything_works_in_a_user_namespace(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path, runtime: str
) -> None:
    container = make_container(runtime, userns=True)
    asked = everything(container, loop_disk, bridge, host_directory)
    with nothing_changed(container):
        scplan("apply", "--auto-approve", config=asked).ok()
        scplan("plan", "--detailed-exitcode").ok()
        assert container.exec(["dd", "if=/dev/data", "of=/dev/null", "count=1"]).returncode == 0
        assert "Read-only file system" in container.exec(["touch", "/srv/data/new"]).stderr
        scplan("destroy", container.name, "--auto-approve").ok()


# mounts


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/sys", "/sys", "//", "/srv/../"])
def test_targets_that_would_break_the_container_are_refused(
    runc_container: Container, scplan: Scplan, host_directory: Path, target: str
) -> None:
    asked = of(runc_container, mounts=[f"{host_directory}:{target}"])
    with nothing_changed(runc_container):
        refused(scplan("apply", "--auto-approve", config=asked), "scplan.yaml:", "target")


def test_symlink_as_target_is_refused(runc_container: Container, scplan: Scplan, host_directory: Path) -> None:
    runc_container.exec(["ln", "-s", "/etc", "/srv/link"], check=True)
    with nothing_changed(runc_container):
        ran = scplan("apply", "--auto-approve", config=of(runc_container, mounts=[f"{host_directory}:/srv/link"]))
        refused(ran, "scplan.yaml:", "/srv/link is a symlink in the container", "name the path that it leads to")


def test_symlink_on_the_way_can_not_lead_out_of_the_container(
    runc_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    victim = host_directory / "victim"
    victim.mkdir()
    runc_container.exec(["ln", "-s", f"../../../../../../../..{victim}", "/srv/out"], check=True)
    asked = of(runc_container, mounts=[f"{host_directory}:/srv/out/in"], devices=["/dev/null:/srv/out/null"])
    scplan("apply", "--auto-approve", config=asked)
    assert list(victim.iterdir()) == []


def test_existing_target_keeps_its_owner(runc_container: Container, scplan: Scplan, host_directory: Path) -> None:
    runc_container.exec(["sh", "-c", "mkdir /srv/mine && chown 1234:1234 /srv/mine && chmod 0711 /srv/mine"])
    before = runc_container.stat("/srv/mine")
    scplan("apply", "--auto-approve", config=of(runc_container, mounts=[f"{host_directory}:/srv/mine"])).ok()
    assert runc_container.stat("/srv/mine") != before
    scplan("apply", "--auto-approve", config=of(runc_container)).ok()
    assert runc_container.stat("/srv/mine") == before


def test_mount_that_the_user_unmounted_inside_can_be_removed(
    runc_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    scplan("apply", "--auto-approve", config=of(runc_container, mounts=[f"{host_directory}:/srv/data"])).ok()
    runc_container.exec(["umount", "/srv/data"], check=True)
    scplan("apply", "--auto-approve", config=of(runc_container)).ok()
    assert scplan("state", "list").ok().stdout == ""
    assert runc_container.stat("/srv/data") is None


def test_129_mounts_are_refused(runc_container: Container, scplan: Scplan, host_directory: Path) -> None:
    mounts = [f"{host_directory}:/srv/{number}" for number in range(129)]
    with nothing_changed(runc_container):
        ran = scplan("apply", "--auto-approve", config=of(runc_container, mounts=mounts))
        refused(ran, "scplan.yaml:", "at most 128 mounts")
    made = scplan("plan", "--json", config=of(runc_container, mounts=mounts[:128])).ok()
    assert len(planned(made)) == 128


# kill -9


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    "point",
    [
        ("fdatasync", 1),
        ("fdatasync", 2),
        ("fdatasync", 3),
        ("fdatasync", 5),
        ("fdatasync", 7),
        ("fdatasync", 9),
        ("mknodat", 1),
        ("sendto", 6),
        ("sendto", 10),
        ("move_mount", 1),
        ("rename", 1),
        ("rename", 2),
    ],
    ids=lambda point: f"{point[0]}-{point[1]}",
)
def test_killed_in_the_middle_and_recovered(
    point: tuple[str, int],
    runc_container: Container,
    scplan: Scplan,
    loop_disk: LoopDisk,
    bridge: str,
    host_directory: Path,
) -> None:
    asked = everything(runc_container, loop_disk, bridge, host_directory)
    with nothing_changed(runc_container):
        died = killed_at(scplan, asked, *point)
        left = list((scplan.state_dir / "journal").glob("*.jsonl"))
        if died and left:
            refused(scplan("apply", "--auto-approve"), "scplan recover", code=8)
            scplan("recover").ok()
        assert list((scplan.state_dir / "journal").glob("*.jsonl")) == []
        if scplan("state", "list").ok().stdout:
            # The kill came after the last operation: it was finished, and is whole.
            scplan("plan", "--detailed-exitcode").ok()
            scplan("destroy", runc_container.name, "--auto-approve").ok()
    scplan("apply", "--auto-approve").ok()


def killed_at(scplan: Scplan, asked: Config, call: str, number: int) -> bool:
    """Applies, and is killed when the process or its children make their `number`th call of this name."""
    scplan.write(asked)
    trap = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *trap, *scplan.command("apply", "--auto-approve")]
    ended = subprocess.run(command, capture_output=True, timeout=60, cwd=scplan.directory, env=scplan.environment)
    return ended.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


@pytest.mark.needs("strace")
def test_records_survive_a_kill_while_they_are_written(runc_container: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(runc_container, cgroup={"pids.max": 100})).ok()
    for call in ("fsync", "rename"):
        for number in (1, 2):
            killed_at(scplan, of(runc_container, cgroup={"pids.max": 100 + number, "cpu.weight": 200}), call, number)
            scplan("recover").ok()
            owned = scplan("state", "list").ok().stdout.split()
            assert address(runc_container, "cgroup/pids.max") in owned
            scplan("apply", "--auto-approve", config=of(runc_container, cgroup={"pids.max": 100})).ok()


# a full disk


def test_full_disk_changes_nothing_and_forgets_nothing(
    runc_container: Container, scplan: Scplan, small_disk: Path, bridge: str
) -> None:
    scplan.environment["SCPLAN_STATE_DIR"] = str(small_disk / "state")
    scplan("apply", "--auto-approve", config=of(runc_container, cgroup={"pids.max": 100})).ok()
    owned = scplan("state", "list").ok().stdout
    more = of(runc_container, cgroup={"pids.max": 200}, nics=[{"name": "eth1", "bridge": bridge}])
    codes = set()
    filler = small_disk / "filler"
    free = 16 << 10
    with nothing_changed(runc_container):
        for size in range(0, free, 4 << 10):
            filler.write_bytes(b"")
            fill(filler, leave_bytes=size)
            ran = scplan("apply", "--auto-approve", config=more)
            codes.add(ran.code)
            if ran.code == 0:
                filler.unlink()
                scplan("apply", "--auto-approve", config=of(runc_container, cgroup={"pids.max": 100})).ok()
                break
            refused(ran, "ENOSPC", str(small_disk), code=ran.code)
            filler.unlink()
            assert scplan("state", "list").ok().stdout == owned
            scplan("recover").ok()
    assert codes <= {0, 1, 3}
    assert codes & {1, 3}


def fill(path: Path, *, leave_bytes: int) -> None:
    """Writes to the file until its file system is full, but for some bytes."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass
        size = file.tell() // 4096 * 4096
        file.truncate(max(0, size - leave_bytes))


# a step inside the container that dies or hangs


@pytest.mark.needs("strace")
def test_step_inside_that_dies_fails_the_apply_and_nothing_hangs(
    runc_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    asked = of(runc_container, cgroup={"pids.max": 77}, mounts=[f"{host_directory}:/srv/data"])
    with nothing_changed(runc_container):
        scplan.write(asked)
        # Made by the child alone that has entered the container.
        trap = ["-e", "trace=move_mount", "-e", "inject=move_mount:signal=SIGKILL:when=1"]
        command = ["strace", "-f", "-qq", "-o", "/dev/null", *trap, *scplan.command("apply", "--auto-approve")]
        begun = time.monotonic()
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=scplan.directory, env=scplan.environment
        )
        assert ended.returncode == 3, ended.stderr
        assert "died" in ended.stderr
        assert time.monotonic() - begun < 10
    scplan("apply", "--auto-approve", "--lock-timeout", "200ms").ok()


def test_step_inside_that_hangs_is_ended_in_time() -> None:
    begun = time.monotonic()
    with pytest.raises(KernelError, match="a step: ETIMEDOUT"):
        Child(lambda: time.sleep(60), what="a step", timeout_s=0.3).result()
    assert time.monotonic() - begun < 5


def test_container_that_ended_is_told_and_what_it_should_have_is_kept(
    make_container: MakeContainer, scplan: Scplan
) -> None:
    container = make_container("runc")
    scplan("apply", "--auto-approve", config=of(container, cgroup={"pids.max": 77}, nics=[{"name": "eth1"}])).ok()
    os.kill(container.pid, signal.SIGKILL)
    scplan.write(of(container, cgroup={"pids.max": 78}, nics=[{"name": "eth1"}]))
    deadline = time.monotonic() + 5
    while "at next start" not in (ran := scplan("plan")).ok().stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "stopped" in ran.stdout
    scplan("apply", "--auto-approve").ok()
    assert {
        resource["address"].partition("/")[2] for resource in scplan("state", "list", "--json").ok().json["resources"]
    } == {
        "cgroup/pids.max",
        "nic/eth1",
    }
