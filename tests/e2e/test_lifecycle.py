"""Containers that restart: what scplan owns in them is there before their own process runs, by runc and crun."""

from __future__ import annotations

import collections
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.oci import RUNTIMES
from tests.containers.session import Session
from tests.e2e.scene import Config, of

RESTARTS = int(os.environ.get("SCPLAN_RESTARTS", "3"))


def hooks(scplan: Scplan, runtime: str) -> dict[str, object]:
    """What `hook spec` says is to be in the bundle."""
    found: dict[str, object] = scplan("hook", "spec", "--runtime", runtime).ok().json["hooks"]
    return found


@pytest.fixture(params=["runc", "crun", "runc-userns", "crun-userns"])
def web(request: pytest.FixtureRequest, scplan: Scplan, make_container: MakeContainer) -> Container:
    """A container with the hook; it ends before its records go, so that the hook finds them."""
    runtime, _, userns = request.param.partition("-")
    return make_container(runtime, userns=bool(userns), hooks=hooks(scplan, runtime))


@pytest.fixture(params=["runc", "crun"])
def oci_web(request: pytest.FixtureRequest, scplan: Scplan, make_container: MakeContainer) -> Container:
    return make_container(request.param, hooks=hooks(scplan, request.param))


@pytest.fixture
def runc_web(scplan: Scplan, make_container: MakeContainer) -> Container:
    return make_container("runc", hooks=hooks(scplan, "runc"))


def everything(web: Container, disk: LoopDisk, bridge: str, nic: Nic, directory: Path) -> Config:
    return of(
        web,
        devices=[{"source": disk.path, "target": "/dev/data", "permissions": "r", "io": {"read_bps": "10m"}}],
        nics=[
            {"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"], "mtu": 1400},
            {"name": "lan", "type": "physical", "host_name": nic.name, "addresses": ["10.96.0.5/24"]},
        ],
        routes=[{"to": "default", "via": "10.97.0.1"}, {"to": "10.98.0.0/16", "dev": "lan"}],
        mounts=[f"{directory}:/srv/data:ro"],
        cgroup={"memory.max": "64MiB"},
    )


def restart(web: Container) -> None:
    web.stop()
    web.start()


def plan_is_empty(scplan: Scplan) -> None:
    assert scplan("plan", "--json").ok().json["changes"] == []


def test_restarted_container_has_what_it_had_and_the_host_gets_its_nic_between(
    web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, veth_pair: Nic, host_directory: Path
) -> None:
    before = fingerprint([web])
    config = everything(web, loop_disk, bridge, veth_pair, host_directory)
    body = config["containers"][web.name]
    body["nics"][0]["host_name"] = "sctveth"
    if keeps_no_nic(web):
        del body["nics"][1], body["routes"][1]
    scplan("apply", "--auto-approve", config=config).ok()
    lent = [nic["host_name"] for nic in body["nics"][1:]]
    for _ in range(2):
        web.stop()
        assert [name for name in lent if not _has_link(name)] == [], "the host has its NIC meanwhile"
        assert not _has_link("sctveth"), "the host end went with the container"
        web.start()
        assert [name for name in lent if _has_link(name)] == []
        plan_is_empty(scplan)
        assert scplan("drift", "--detailed-exitcode").ok().stdout.startswith("No drift")
    scplan("destroy", web.name, "--auto-approve").ok()
    assert lasting(difference(before, fingerprint([web]))) == []


def keeps_no_nic(web: Container) -> bool:
    """True for crun where each of its commands has a mount namespace of its own.

    The network namespace that the hook keeps for a NIC is mounted there, and ends with it: a NIC of hardware returns to
    the host by itself, but a veth ends.
    """
    return web.runtime == "crun" and len(RUNTIMES["crun"].command()) > 1


def lasting(changes: list[str]) -> list[str]:
    """Without what every restart changes: a container's own file systems are others, under other device numbers."""
    found = [re.sub(r"\b0:\d+\b", "0:N", change) for change in changes]
    gone = collections.Counter(change.replace(": gone: ", ": ", 1) for change in found if ": gone: " in change)
    new = collections.Counter(change.replace(": new: ", ": ", 1) for change in found if ": new: " in change)
    others = [change for change in found if ": gone: " not in change and ": new: " not in change]
    return [*others, *(gone - new), *(new - gone)]


def _has_link(name: str) -> bool:
    return name in (linked for _, linked in socket.if_nameindex())


def test_own_process_of_the_container_finds_it_all_there(
    session: Session, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> None:
    """At its very first instruction: it writes down what it sees, and ends."""
    (host_directory / "hello").write_text("hello\n")
    with session.container("runc", hooks=hooks(scplan, "runc")) as web:
        config = of(
            web,
            devices=[{"source": loop_disk.path, "target": "/dev/data", "permissions": "r"}],
            nics=[{"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"]}],
            routes=[{"to": "default", "via": "10.97.0.1"}],
            mounts=[f"{host_directory}:/srv/data"],
        )
        scplan("apply", "--auto-approve", config=config).ok()
        web.stop()
        assert web.bundle
        look = "cat /srv/data/hello; ip route; dd if=/dev/data of=/dev/null count=1 && echo readable"
        bundle = json.loads((web.bundle / "config.json").read_text())
        bundle["process"]["args"] = ["/bin/sh", "-c", f"({look}) >/srv/data/seen 2>&1; exec sleep 2000000000"]
        (web.bundle / "config.json").write_text(json.dumps(bundle))
        web.start()
        seen = host_directory / "seen"
        deadline = time.monotonic() + 10
        while not (seen.exists() and "readable" in seen.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for expected in ("hello", "default via 10.97.0.1 dev eth1", "readable"):
            assert expected in seen.read_text()


def test_container_whose_init_was_killed_starts_with_it_again(
    oci_web: Container, scplan: Scplan, bridge: str, veth_pair: Nic, host_directory: Path
) -> None:
    config = of(
        oci_web,
        nics=[
            {"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"]},
            {"name": "lan", "type": "physical", "host_name": veth_pair.name},
        ],
        mounts=[f"{host_directory}:/srv/data"],
    )
    if keeps_no_nic(oci_web):
        del config["containers"][oci_web.name]["nics"][1]
    scplan("apply", "--auto-approve", config=config).ok()
    os.kill(oci_web.pid, signal.SIGKILL)
    restart(oci_web)
    plan_is_empty(scplan)


def test_container_is_planned_for_as_it_is_in_each_status(oci_web: Container, scplan: Scplan, bridge: str) -> None:
    def small(limit: int) -> Config:
        return of(oci_web, nics=[{"name": "eth1", "bridge": bridge}], cgroup={"pids.max": limit})

    def has_it_all(limit: int, status: str = "running") -> None:
        plan = scplan("plan", "--json").ok().json
        assert plan["containers"][oci_web.name].items() >= {"status": status, "pid": oci_web.pid}.items()
        assert plan["changes"] == []
        assert oci_web.cgroup_file("pids.max").strip() == str(limit)

    command = RUNTIMES[oci_web.runtime].command

    def run(*arguments: str) -> None:
        subprocess.run(command(*arguments), check=True, timeout=30, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    os.kill(oci_web.pid, signal.SIGKILL)
    subprocess.run(["tail", "--pid", str(oci_web.pid), "-f", "/dev/null"], timeout=10, check=True)
    plan = scplan("plan", "--json", config=small(100)).ok().json
    assert plan["containers"][oci_web.name]["status"] == "stopped"
    assert {change["at_next_start"] for change in plan["changes"]} == {True}
    scplan("apply", "--auto-approve").ok()
    oci_web.stop()
    pid_file = Path(str(oci_web.bundle), "pid")
    run("create", "--bundle", str(oci_web.bundle), "--pid-file", str(pid_file), oci_web.name)
    oci_web.pid = int(pid_file.read_text())
    # Created: its first process waits, with everything in place.
    has_it_all(100)
    scplan("apply", "--auto-approve", config=small(101)).ok()
    run("start", oci_web.name)
    has_it_all(101)
    run("pause", oci_web.name)
    has_it_all(101, "paused")
    scplan("apply", "--auto-approve", config=small(102)).ok()
    run("resume", oci_web.name)
    has_it_all(102)


def test_restart_loop_leaves_nothing_behind(
    runc_web: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, veth_pair: Nic, host_directory: Path
) -> None:
    """SCPLAN_RESTARTS=50 for more of them: `make restarts`."""
    config = everything(runc_web, loop_disk, bridge, veth_pair, host_directory)
    before = fingerprint([runc_web])
    scplan("apply", "--auto-approve", config=config).ok()
    for number in range(RESTARTS):
        if number % 3 == 2:
            os.kill(runc_web.pid, signal.SIGKILL)
        restart(runc_web)
    plan_is_empty(scplan)
    assert not list((scplan.state_dir / "journal").glob("*.jsonl"))
    assert len(scplan("state", "history", "--json").ok().json["applies"]) == 1, "starts are no applies"
    scplan("destroy", runc_web.name, "--auto-approve").ok()
    assert lasting(difference(before, fingerprint([runc_web]))) == []


def test_start_after_a_boot_plugs_in_again(runc_web: Container, scplan: Scplan, host_directory: Path) -> None:
    """A record of another boot: nothing that it says of that container's life is true of this one."""
    scplan("apply", "--auto-approve", config=of(runc_web, mounts=[f"{host_directory}:/srv/data"])).ok()
    from scplan.kinds import KINDS
    from scplan.store.state import State

    state = State(str(scplan.state_dir), KINDS)
    record = state.read("runc", runc_web.name)
    assert record is not None
    runc_web.stop()
    state.write([record._replace(boot_id="00000000-0000-0000-0000-000000000000")])
    runc_web.start()
    plan_is_empty(scplan)


def test_disk_that_has_another_number_now_is_found_by_its_lasting_name(
    runc_web: Container, scplan: Scplan, session: Session, tmp_path: Path
) -> None:
    """Its old number is another disk's by then."""
    with host_parts.loop_disk(session) as first, host_parts.loop_disk(session) as second:
        by_id = tmp_path / "by-id"
        by_id.symlink_to(first.path)
        Path(first.path).write_bytes(b"right" * 200)
        Path(second.path).write_bytes(b"wrong" * 200)
        entry = {"source": str(by_id), "target": "/dev/data", "permissions": "r", "io": {"read_bps": "10m"}}
        scplan("apply", "--auto-approve", config=of(runc_web, devices=[entry])).ok()
        runc_web.stop()
        files = [_run("losetup", "--noheadings", "--output", "BACK-FILE", one.path).strip() for one in (first, second)]
        for disk in (first, second):
            _run("losetup", "--detach", disk.path)
        for disk, file in zip((second, first), files, strict=True):
            _run("losetup", disk.path, file)
        by_id.unlink()
        by_id.symlink_to(second.path)
        runc_web.start()
        assert runc_web.exec(["head", "-c", "5", "/dev/data"]).stdout == "right"
        throttled = runc_web.cgroup_file("blkio.throttle.read_bps_device").split()
        assert throttled == [second.numbers, "10485760"]
        plan_is_empty(scplan)
        runc_web.stop()


# what may be missing


ABSENT: dict[str, dict[str, Any]] = {
    "device": {"devices": [{"source": "DISK", "target": "/dev/data"}]},
    "bridge": {"nics": [{"name": "eth1", "bridge": "BRIDGE"}]},
    "host NIC": {"nics": [{"name": "lan", "type": "physical", "host_name": "NIC"}]},
    "mount": {"mounts": [{"source": "DIRECTORY", "target": "/srv/data"}]},
}


class Absent:
    """Something of the host that an entry needs, and that goes away."""

    def __init__(self, session: Session, what: str) -> None:
        self.session = session
        self.what = what
        self.name = session.name()

    @property
    def is_there(self) -> bool:
        return os.path.lexists(self.name) if self.name.startswith("/") else _has_link(self.name)

    def make(self) -> str:
        match self.what:
            case "device":
                self.name = str(self.session.directory / self.name.rpartition("/")[2])
                os.mknod(self.name, stat.S_IFBLK | 0o600, os.makedev(7, 0))
            case "bridge":
                _run("ip", "link", "add", self.name, "type", "bridge")
            case "host NIC":
                _run("ip", "link", "add", self.name, "type", "veth", "peer", "name", f"{self.name[:-1]}_")
            case _:
                self.name = str(self.session.directory / self.name.rpartition("/")[2])
                Path(self.name).mkdir(mode=0o755)
        return self.name

    def remove(self) -> None:
        match self.what:
            case "device":
                Path(self.name).unlink()
            case "mount":
                Path(self.name).rmdir()
            case _:
                _run("ip", "link", "delete", self.name)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=ABSENT)
def absent(request: pytest.FixtureRequest, session: Session) -> Iterator[Absent]:
    """It is there when the test begins."""
    made = Absent(session, request.param)
    made.make()
    yield made
    if made.is_there:
        made.remove()


def test_absent_thing_of_the_host_aborts_the_start_and_says_so(
    absent: Absent, runc_web: Container, scplan: Scplan
) -> None:
    sections = named(ABSENT[absent.what], absent.name) | {"cgroup": {"pids.max": 100}}
    scplan("apply", "--auto-approve", config=of(runc_web, **sections)).ok()
    runc_web.stop()
    absent.remove()
    before = fingerprint([])
    failed = runc_web.start(check=False)
    assert failed.returncode, "the container started without it"
    assert "scplan: " in failed.stdout, "runc shows why"
    assert absent.name in failed.stdout
    assert difference(before, fingerprint([])) == []
    assert not list((scplan.state_dir / "journal").glob("*.jsonl"))
    absent.make()
    runc_web.start()
    plan_is_empty(scplan)


def test_absent_thing_that_is_not_required_is_left_out_and_shows(
    absent: Absent, runc_web: Container, scplan: Scplan
) -> None:
    sections = named(ABSENT[absent.what], absent.name, required=False) | {"cgroup": {"pids.max": 100}}
    scplan("apply", "--auto-approve", config=of(runc_web, **sections)).ok()
    runc_web.stop()
    absent.remove()
    runc_web.start()
    assert runc_web.cgroup_file("pids.max").strip() == "100", "all the rest is plugged in"
    drift = scplan("drift", "--json", "--detailed-exitcode").ok(2)
    assert [one for one in drift.json["drifted"] if one["address"].split("/")[1] in ("device", "nic", "mount")]
    absent.make()
    restart(runc_web)
    assert scplan("drift", "--detailed-exitcode").ok()


def named(sections: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    return {
        section: [
            {key: name if str(value).isupper() else value for key, value in entry.items()} | more for entry in entries
        ]
        for section, entries in sections.items()
    }
