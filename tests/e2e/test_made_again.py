"""Containers made again, ended without a hook, or started after a reboot: whose records, whose NICs, which disks."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Scplan
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.session import Session
from tests.e2e.restarts import (
    ALL,
    hooks,
    inside,
    kill,
    parts,
    record_path,
    rewrite_record,
    start_again,
    take_hook_out,
)
from tests.e2e.scene import address, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("runc", "loop", "bridge", "veth")
ANOTHER_BOOT = "4b0075b0-07ed-0000-0000-000000000000"


@pytest.fixture
def web(session: Session, scplan: Scplan) -> Iterator[Container]:
    """A container whose bundle has scplan's hook."""
    with session.container("runc", hooks=hooks(scplan)) as container:
        yield container


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
    start_again(web)
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
    rewrite_record(scplan, container, boot_id=ANOTHER_BOOT)


def test_after_a_reboot_nothing_is_given_back(web: Container, scplan: Scplan, veth_pair: Nic) -> None:
    """What has the NIC's name then is the NIC: it is not made as it was at another boot."""
    lend(web, scplan, veth_pair)
    kill(web)
    rewrite_record(scplan, web, boot_id=ANOTHER_BOOT)
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
    assert scplan("drift", "--json", "--detailed-exitcode").ok().json["drifted"] == []
    if by == "hook":
        web.start()
    else:
        take_hook_out(web)
        web.start()
        assert len(planned(scplan("plan", "--json").ok())) == 5
        scplan("apply", "--auto-approve").ok()
    assert inside(web) == ALL
    assert "No changes." in scplan("plan").ok().stdout


@pytest.mark.parametrize("by", ["hook", "apply"])
def test_disk_with_another_number_after_a_reboot(
    web: Container, scplan: Scplan, session: Session, loop_disk: LoopDisk, by: str
) -> None:
    """The name is looked up again; what has the old number by now is somebody else's disk."""
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
            take_hook_out(web)
            web.start()
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
