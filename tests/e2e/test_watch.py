"""`scplan watch`: starting containers are plugged in again, ended ones give back, drift is told as it happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.session import CHECKOUT, Session
from tests.containers.sweep import has_link
from tests.e2e.scene import config, everything, of
from tests.e2e.watching import wait_until, watching

# Within what the promise is that a started container has what it should.
_PROMISED_S = 2.0


def names_of(told: dict[str, Any]) -> set[str]:
    """`nic/eth1` of everything that has drifted."""
    return {one["address"].partition("/")[2] for one in told["drifted"]}


def measured(what: str, seconds: float) -> None:
    print(f"{what}: {seconds * 1000:.0f} ms")


@pytest.fixture
def web(session: Session, tmp_path: Path) -> Iterator[ByPidFile]:
    """A process container that is known by its PID file."""
    made = ByPidFile(session, tmp_path / "web.pid")
    yield made
    made.stop()


class ByPidFile:
    """A process container whose supervisor writes its PID to a file."""

    def __init__(self, session: Session, pid_file: Path) -> None:
        self.session = session
        self.pid_file = pid_file
        self.name = session.name()
        self.container = self.start()

    def start(self) -> Container:
        self.container = self.session.start(self.name)
        self.pid_file.write_text(f"{self.container.pid}\n")
        return self.container

    def stop(self) -> None:
        self.session.stop(self.name)

    def of(self, **sections: Any) -> dict[str, Any]:
        """Its configuration."""
        naming = {"runtime": "process", "pid_file": str(self.pid_file)}
        return {"version": 1, "containers": {self.name: {**naming, **sections}}}


# starts and ends


@pytest.mark.needs("runc", "veth", "bridge", "loop")
def test_a_container_that_starts_again_has_everything(
    scplan: Scplan, runc_container: Container, bridge: str, loop_disk: LoopDisk, host_directory: Path
) -> None:
    scplan("apply", "--auto-approve", config=everything(runc_container, loop_disk, bridge, host_directory)).ok()
    with watching(scplan) as watch:
        for _ in range(2):
            before = len(watch.told)
            runc_container.stop()
            watch.until("stopped", after=before)
            runc_container.start()
            begun = time.monotonic()
            told = watch.until("started", after=before)
            measured("runc, 9 resources, plugged in after", time.monotonic() - begun)
            assert time.monotonic() - begun < _PROMISED_S
            assert told["resources"] >= 6
            ran = scplan("drift", "--json").ok().json
            assert (ran["drifted"], ran["pending"]) == ([], [])
        assert not [one for one in watch.told if one["type"] in ("drifted", "problem")]


@pytest.mark.needs("veth")
def test_a_process_that_a_pid_file_names_is_plugged_in_again_without_an_end_being_seen(
    scplan: Scplan, web: ByPidFile
) -> None:
    scplan("apply", "--auto-approve", config=web.of(nics=[{"name": "eth1", "addresses": ["10.96.0.2/24"]}])).ok()
    with watching(scplan) as watch:
        web.stop()
        web.start()
        begun = time.monotonic()
        watch.until("started")
        measured("process, 1 NIC, plugged in after", time.monotonic() - begun)
        assert time.monotonic() - begun < _PROMISED_S
        assert [link["ifname"] for link in web.container.ip("link")] == ["lo", "eth1"]


@pytest.mark.needs("runc", "veth")
def test_a_physical_nic_comes_home_when_the_first_process_is_killed(
    scplan: Scplan, runc_container: Container, veth_pair: Nic
) -> None:
    nic = {"name": "eth1", "type": "physical", "host_name": veth_pair.name, "mtu": 1400}
    scplan("apply", "--auto-approve", config=of(runc_container, nics=[nic])).ok()
    with watching(scplan) as watch:
        watch.until("watching")
        os.kill(runc_container.pid, signal.SIGKILL)
        begun = time.monotonic()
        assert wait_until(lambda: has_link(veth_pair.name), 5)
        measured("physical NIC home after", time.monotonic() - begun)
        watch.until("stopped")
        shown = subprocess.run(["ip", "-json", "link", "show", veth_pair.name], capture_output=True, check=True)
        assert json.loads(shown.stdout)[0]["mtu"] == 1500


@pytest.mark.needs("veth")
def test_what_started_while_nobody_watched_is_plugged_in_by_the_next_supervisor(scplan: Scplan, web: ByPidFile) -> None:
    scplan("apply", "--auto-approve", config=web.of(nics=[{"name": "eth1"}])).ok()
    with watching(scplan) as watch:
        assert wait_until(lambda: watch.files() > 12)
        time.sleep(0.3)
        watch.end(signal.SIGKILL)
    web.stop()
    web.start()
    with watching(scplan) as watch:
        watch.until("started", container=web.name)
        assert scplan("drift", "--json").ok().json["drifted"] == []


@pytest.mark.needs("veth")
def test_what_died_while_it_plugged_in_is_undone_and_done_again(scplan: Scplan, web: ByPidFile) -> None:
    nics = [{"name": f"eth{number}"} for number in range(1, 7)]
    scplan("apply", "--auto-approve", config=web.of(nics=nics)).ok()
    left, journals = 0, scplan.state_dir / "journal"
    for attempt in range(4):
        with watching(scplan) as watch:
            web.stop()
            watch.until("stopped")
            web.start()
            wait_until(lambda: any(journals.glob("*-start.jsonl")), 2)
            time.sleep(0.004 * attempt)
            for pid in children_of(watch.process.pid):
                os.kill(pid, signal.SIGKILL)
            watch.end(signal.SIGKILL)
            left += any(journals.glob("*-start.jsonl"))
        with watching(scplan) as watch:
            assert wait_until(lambda: not scplan("drift", "--json").json["drifted"], 5), watch.told
            assert not list(journals.iterdir())
    print(f"half done when they died: {left} of 4")
    assert left


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.needs("veth")
def test_a_pid_that_was_taken_again_is_not_taken_for_the_container(
    scplan: Scplan, web: ByPidFile, make_container: MakeContainer
) -> None:
    scplan("apply", "--auto-approve", config=web.of(nics=[{"name": "eth1"}])).ok()
    web.stop()
    other = make_container("process")
    # What the file would say, had the kernel given the PID to this one.
    web.pid_file.write_text(f"{other.pid}\n")
    os.utime(web.pid_file, (time.time() - 3600,) * 2)
    with watching(scplan) as watch:
        told = watch.until("problem", container=web.name)
        assert "was written before its process began" in told["diagnostics"][0]["detail"]
        assert [link["ifname"] for link in other.ip("link")] == ["lo"]
        assert scplan("watch", "--once").code == 1


def test_containers_in_which_nothing_is_owned_are_left_alone(
    scplan: Scplan, web: ByPidFile, make_container: MakeContainer
) -> None:
    other = make_container("process")
    with watching(scplan) as watch:
        subprocess.run(["nsenter", "-t", str(other.pid), "-n", "ip", "link", "set", "lo", "down"], check=True)
        web.stop()
        web.start()
        assert watch.maybe("drifted", timeout_s=1) is None
    assert [one["type"] for one in watch.told] == ["watching", "ending"]


# drift


@pytest.mark.needs("runc", "veth", "bridge", "loop")
@pytest.mark.parametrize("heal", [False, True], ids=["told", "healed"])
def test_drift_is_told_as_it_happens_and_mended_where_that_is_wanted(
    scplan: Scplan, runc_container: Container, bridge: str, loop_disk: LoopDisk, host_directory: Path, heal: bool
) -> None:
    scplan("apply", "--auto-approve", config=everything(runc_container, loop_disk, bridge, host_directory)).ok()
    changes = {
        "nic/eth1": ["ip", "link", "set", "eth1", "down"],
        "mount/srv/data": ["umount", "/srv/data"],
        "device/dev/data": ["rm", "/dev/data"],
    }
    with watching(scplan, "--every", "1s", *(["--heal"] if heal else [])) as watch:
        for address, command in changes.items():
            before = len(watch.told)
            runc_container.exec(command, check=True)
            begun = time.monotonic()
            if heal:
                watch.until("healed", after=before)
                measured(f"{address} healed after", time.monotonic() - begun)
            else:
                told = watch.until("drifted", after=before)
                measured(f"{address} told after", time.monotonic() - begun)
                assert address in names_of(told)
        if heal:
            assert scplan("drift", "--json").ok().json["drifted"] == []
            assert scplan("state", "history", "--json").ok().json["applies"][1:] == []
        else:
            scplan("apply", "--auto-approve").ok()
            watch.until("restored")
    assert not [one for one in watch.told if one["type"] == "problem"]


@pytest.mark.needs("veth", "bridge")
def test_an_address_and_the_host_end_are_heard_of_at_once(
    scplan: Scplan, process_container: Container, bridge: str
) -> None:
    nic = {"name": "eth1", "bridge": bridge, "host_name": "sct-w-end", "addresses": ["10.96.0.2/24"]}
    scplan("apply", "--auto-approve", config=of(process_container, nics=[nic])).ok()
    inside = ["nsenter", "-t", str(process_container.pid), "-n", "ip", "address", "del", "10.96.0.2/24", "dev", "eth1"]
    with watching(scplan) as watch:
        for command in (inside, ["ip", "link", "set", "sct-w-end", "nomaster"]):
            before = len(watch.told)
            subprocess.run(command, check=True)
            begun = time.monotonic()
            assert names_of(watch.until("drifted", after=before)) == {"nic/eth1"}
            measured(f"{command[-4:]} told after", time.monotonic() - begun)
        begun = time.monotonic()
        scplan("apply", "--auto-approve").ok()
        watch.until("restored")


@pytest.mark.needs("veth")
def test_what_an_apply_makes_is_never_taken_for_drift(scplan: Scplan, process_container: Container) -> None:
    def with_mtu(mtu: int) -> dict[str, Any]:
        return of(process_container, nics=[{"name": f"eth{one}", "mtu": mtu} for one in range(1, 5)])

    scplan("apply", "--auto-approve", config=with_mtu(1400)).ok()
    with watching(scplan, "--heal") as watch:
        for number in range(1, 6):
            scplan("apply", "--auto-approve", config=with_mtu(1400 + number)).ok()
        scplan("destroy", process_container.name, "--auto-approve").ok()
        time.sleep(1)
    assert [one["type"] for one in watch.told] == ["watching", "ending"]


@pytest.mark.needs("veth")
def test_what_awaits_confirmation_is_not_mended(scplan: Scplan, process_container: Container) -> None:
    def with_mtu(mtu: int) -> dict[str, Any]:
        return of(process_container, nics=[{"name": "eth1", "mtu": mtu}])

    scplan("apply", "--auto-approve", config=with_mtu(1400)).ok()
    with watching(scplan, "--heal") as watch:
        scplan("apply", "--auto-approve", "--confirm-within", "60s", config=with_mtu(1300)).ok()
        down = ["nsenter", "-t", str(process_container.pid), "-n", "ip", "link", "set", "eth1", "down"]
        subprocess.run(down, check=True)
        assert watch.maybe("healed", timeout_s=1.5) is None
        scplan("confirm").ok()
        watch.until("healed")
        assert process_container.ip("link", "show", "eth1")[0]["mtu"] == 1300


@pytest.mark.needs("veth", "bridge")
def test_what_can_not_be_mended_is_a_problem_until_it_can(
    scplan: Scplan, process_container: Container, session: Session
) -> None:
    bridge = session.name()
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    scplan("apply", "--auto-approve", config=of(process_container, nics=[{"name": "eth1", "bridge": bridge}])).ok()
    with watching(scplan, "--heal", "--every", "1s") as watch:
        subprocess.run(["ip", "link", "delete", bridge], check=True)
        told = watch.until("problem")
        assert bridge in told["diagnostics"][0]["summary"] + told["diagnostics"][0]["detail"]
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        watch.until("solved")
        assert scplan("drift", "--json").ok().json["drifted"] == []
    subprocess.run(["ip", "link", "delete", bridge], check=True)


# what it costs


@pytest.mark.needs("veth", "bridge")
@pytest.mark.parametrize("heal", [False, True], ids=["told", "healed"])
def test_a_container_that_flaps_costs_little(
    scplan: Scplan, make_container: MakeContainer, bridge: str, heal: bool
) -> None:
    hostile, other = make_container("process"), make_container("process")
    sections = {"nics": [{"name": "eth1", "bridge": bridge}]}
    scplan("apply", "--auto-approve", config=config((hostile, sections), (other, sections))).ok()
    flap = "while :; do ip link set eth1 down; ip link set eth1 up; mount -t tmpfs t /tmp; umount /tmp; done"
    with watching(scplan, *(["--heal"] if heal else [])) as watch:
        attacker = subprocess.Popen(hostile.exec_command(["sh", "-c", flap]), stderr=subprocess.DEVNULL)
        try:
            assert wait_until(lambda: "UP" not in hostile.ip("link", "show", "eth1")[0]["flags"])
            time.sleep(1.5)
            begun, before, memory = time.monotonic(), watch.cpu_s(), watch.memory_kib()
            time.sleep(2.5)
            share = (watch.cpu_s() - before) / (time.monotonic() - begun)
            print(f"a flapping container costs {share:.1%} of a CPU, and {watch.memory_kib() - memory} KiB")
            assert share < 0.15
            assert watch.memory_kib() - memory < 4096
            at = len(watch.told)
            subprocess.run(["nsenter", "-t", str(other.pid), "-n", "ip", "link", "set", "eth1", "down"], check=True)
            begun = time.monotonic()
            watch.until("healed" if heal else "drifted", container=other.name, after=at, timeout_s=3)
            measured("meanwhile another container is heard of after", time.monotonic() - begun)
        finally:
            attacker.kill()
            attacker.wait()


def test_two_hundred_containers_are_watched(scplan: Scplan, session: Session, tmp_path: Path) -> None:
    containers = [session.start(session.name(), with_cgroups=False) for _ in range(200)]
    sections = {"mounts": [f"{tmp_path}:/srv:ro"]}
    scplan("apply", "--auto-approve", config=config(*((one, sections) for one in containers))).ok()
    begun = time.monotonic()
    with watching(scplan, "--every", "2s") as watch:
        assert wait_until(lambda: watch.files() > 400, 20)
        time.sleep(1)
        measured("all are listened to after", time.monotonic() - begun)
        before, begun = watch.cpu_s(), time.monotonic()
        time.sleep(4)
        share = (watch.cpu_s() - before) / (time.monotonic() - begun)
        print(
            f"200 at rest, looked at every 2 s: {share:.1%} of a CPU, {watch.memory_kib()} KiB, {watch.files()} files"
        )
        assert share < 0.25
        at = len(watch.told)
        containers[150].exec(["umount", "/srv"], check=True)
        begun = time.monotonic()
        watch.until("drifted", container=containers[150].name, after=at)
        measured("one of them is heard of after", time.monotonic() - begun)
        files = watch.files()
        for one in containers[:20]:
            session.stop(one.name)
        for one in containers[:20]:
            watch.until("stopped", container=one.name)
        assert wait_until(lambda: watch.files() <= files - 40, 5)
        measured("ends after", watch.end())


# as a service


def test_it_ends_at_once_and_reads_again_when_it_is_told(scplan: Scplan, web: ByPidFile) -> None:
    scplan("apply", "--auto-approve", config=web.of(mounts=["/srv:/srv"])).ok()
    with watching(scplan) as watch:
        watch.send(signal.SIGHUP)
        second = scplan("watch")
        assert second.code == 6
        assert "locked" in second.stderr
        assert watch.end() < 1
    assert watch.process.returncode == 0


def test_its_manager_hears_that_it_is_ready_and_alive(scplan: Scplan, tmp_path: Path) -> None:
    import socket

    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        with watching(scplan, environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}) as watch:
            heard = [manager.recv(4096).decode() for _ in range(4)]
            watch.send(signal.SIGHUP)
            while not heard[-1].startswith("RELOADING=1\nMONOTONIC_USEC="):
                heard.append(manager.recv(4096).decode())
            watch.end()
        while not heard[-1].startswith("STOPPING=1"):
            heard.append(manager.recv(4096).decode())
    assert any(one.startswith("READY=1") for one in heard)
    assert heard.count("WATCHDOG=1") >= 2


@pytest.mark.needs("veth")
def test_once_does_what_is_to_be_done_and_ends(scplan: Scplan, web: ByPidFile, tmp_path: Path) -> None:
    scplan("apply", "--auto-approve", config=web.of(nics=[{"name": "eth1"}], mounts=[f"{tmp_path}:/srv"])).ok()
    web.stop()
    web.start()
    metrics = tmp_path / "watch.prom"
    ran = scplan("watch", "--once", "--metrics", str(metrics)).ok()
    said = ["the host has its things back", "started: 2 resources plugged in after 0.00 s"]
    assert ran.stderr.splitlines() == [f"container {web.name}: {text}" for text in said]
    assert f'scplan_watch_drift_resources{{runtime="process",container="{web.name}"}} 0\n' in metrics.read_text()
    assert "scplan_watch_starts_total 1\n" in metrics.read_text()
    web.container.exec(["umount", "/srv"], check=True)
    ran = scplan("watch", "--once", "--metrics", str(metrics)).ok()
    assert ran.stderr == f"container {web.name}: drift: mount /srv is gone\n"
    assert f'scplan_watch_drift_resources{{runtime="process",container="{web.name}"}} 1\n' in metrics.read_text()
    assert scplan("watch", "--once", "--heal").ok().stderr.endswith("healed: 1 resource as recorded again\n")
    assert scplan("watch", "--once").ok().stderr == ""


@pytest.mark.needs("runc", "veth", "bridge", "loop")
def test_the_privileges_that_its_unit_leaves_are_enough(
    scplan: Scplan, runc_container: Container, bridge: str, loop_disk: LoopDisk, host_directory: Path
) -> None:
    unit = (CHECKOUT / "examples/systemd/scplan-watch.service").read_text()
    left = [word for line in unit.splitlines() if line.startswith("Capab") for word in line.partition("=")[2].split()]
    kept = ",".join(f"+{one.removeprefix('CAP_').lower()}" for one in left)
    prefix = ["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", "--"]
    scplan("apply", "--auto-approve", config=everything(runc_container, loop_disk, bridge, host_directory)).ok()
    with watching(scplan, "--heal", prefix=prefix) as watch:
        runc_container.stop()
        watch.until("stopped")
        runc_container.start()
        watch.until("started")
        assert scplan("drift", "--json").ok().json["drifted"] == []
        runc_container.exec(["umount", "/srv/data"], check=True)
        watch.until("healed")
    assert not [one for one in watch.told if one["type"] == "problem"]
    # What else runs on this machine may use up inotify's instances, say; that is no privilege.
    degraded = " ".join(str(one) for one in watch.told if one["type"] == "degraded")
    assert not [word for word in ("CAP_", "EPERM", "EACCES", "ermission", "permitted") if word in degraded]


def test_without_privileges_it_says_what_it_lacks(scplan: Scplan) -> None:
    drop = ["setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-all", "--"]
    with watching(scplan, prefix=drop) as watch:
        told = watch.until("degraded")
    assert "CAP_SYS_ADMIN, CAP_NET_ADMIN" in told["diagnostics"][0]["summary"]
