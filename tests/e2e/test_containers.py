"""The tests' own containers: real ones, isolated, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeContainer
from tests.containers import cgroups, naming, sweep
from tests.containers.container import Container
from tests.containers.fingerprint import container_fingerprint, difference
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.oci import RUNTIMES
from tests.containers.session import CHECKOUT, Session


def test_commands_run_inside(any_container: Container) -> None:
    assert any_container.exec(["hostname"], check=True).stdout.strip() == any_container.name
    assert any_container.exec(["id", "-u"], check=True).stdout.strip() == "0"
    assert any_container.exec(["sh", "-c", "exit 7"]).returncode == 7


def test_namespaces_are_its_own(any_container: Container) -> None:
    for namespace in ("mnt", "net", "pid", "uts", "ipc"):
        inside, outside = (os.stat(f"/proc/{pid}/ns/{namespace}").st_ino for pid in (any_container.pid, "self"))
        assert inside != outside, namespace


def test_root_file_system_is_its_own(any_container: Container) -> None:
    assert any_container.exec(["test", "-e", str(CHECKOUT)]).returncode == 1
    assert any_container.mount_points()[0] == "/"
    assert any_container.exec(["touch", "/root/file"]).returncode == 0


def test_network_has_a_loopback_that_is_up(any_container: Container) -> None:
    (loopback,) = any_container.ip("address")
    assert loopback["ifname"] == "lo"
    assert "UP" in loopback["flags"]


def test_stat_tells_devices_from_absent_files(any_container: Container) -> None:
    null = any_container.stat("/dev/null")
    assert null
    assert (null["type"], null["rdev"], null["mode"]) == ("character special file", "1:3", "666")
    assert any_container.stat("/dev/absent") is None


@pytest.mark.needs("cgroup1", "loop", "runc", "crun")
@pytest.mark.parametrize("runtime", ["runc", "crun", "process"])
def test_device_is_denied_by_the_cgroup(runtime: str, make_container: MakeContainer, loop_disk: LoopDisk) -> None:
    container = make_container(runtime)
    container.exec(["mknod", "/root/disk", "b", str(loop_disk.major), str(loop_disk.minor)], check=True)
    read = ["dd", "if=/root/disk", "of=/dev/null", "count=1"]
    assert "Operation not permitted" in container.exec(read).stderr
    (container.cgroups["devices"] / "devices.allow").write_text(f"b {loop_disk.numbers} r")
    assert container.exec(read).returncode == 0


@pytest.mark.needs("cgroup1")
def test_cgroups_are_its_own(any_container: Container) -> None:
    assert set(any_container.cgroups) == set(cgroups.CONTROLLERS)
    for path in any_container.cgroups.values():
        assert path.name == any_container.name
    assert int(any_container.cgroup_file("memory.limit_in_bytes")) > 1 << 40


def test_user_namespace_maps_root(userns_container: Container) -> None:
    assert Path(f"/proc/{userns_container.pid}/uid_map").read_text().split() == ["0", "100000", "65536"]
    assert os.stat(f"/proc/{userns_container.pid}").st_uid == 100000


def test_stopped_bundle_starts_again(runc_container: Container) -> None:
    before = runc_container.pid
    runc_container.stop()
    assert not (RUNTIMES["runc"].state_directory / runc_container.name).exists()
    runc_container.start()
    assert runc_container.pid not in (0, before)


@pytest.mark.parametrize("runtime", ["runc", "crun", "process"])
def test_nothing_is_left_behind(runtime: str, session: Session) -> None:
    before = sweep.traces(session.pid)
    with session.container(runtime) as container:
        name, pid = container.name, container.pid
    assert _traces(name) == []
    _until(lambda: not _runs(pid))
    assert sweep.traces(session.pid) == before


def test_container_that_died_is_no_trouble(session: Session) -> None:
    for runtime in ("runc", "process"):
        with session.container(runtime) as container:
            os.kill(container.pid, signal.SIGKILL)
        assert _traces(container.name) == []


def test_parts_of_the_host_are_real(partitioned_disk: LoopDisk, bridge: str, veth_pair: Nic, small_disk: Path) -> None:
    assert len(partitioned_disk.partitions) == 2
    assert all(Path(node).is_block_device() for node in partitioned_disk.partitions)
    # Not in /sys, which may be that of another network namespace.
    assert subprocess.run(["ip", "link", "show", "type", "bridge", "dev", bridge], capture_output=True).stdout
    assert subprocess.run(["ip", "link", "show", "type", "veth", "dev", veth_pair.name], capture_output=True).stdout
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "file").write_bytes(bytes(1 << 20))


_VICTIM = """
import sys, time
from contextlib import ExitStack
from tests.containers import host_parts
from tests.containers.session import Session
session = Session()
with ExitStack() as stack:
    names = [stack.enter_context(session.container(runtime)).name for runtime in ("runc", "crun", "process")]
    disk = stack.enter_context(host_parts.loop_disk(session))
    bridge = stack.enter_context(host_parts.bridge(session))
    small = stack.enter_context(host_parts.small_disk(session))
    print(session._keeper.pid, disk.path, bridge, *names, flush=True)
    time.sleep(60)
"""


@pytest.mark.needs("runc", "crun", "loop", "bridge")
@pytest.mark.parametrize("keeper_too", [False, True], ids=["owner", "owner and keeper"])
def test_killed_session_is_cleaned_up(keeper_too: bool) -> None:
    command = [sys.executable, "-c", _VICTIM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as victim:
        assert victim.stdout
        keeper, disk, bridge, *names = victim.stdout.readline().split()
        if keeper_too:
            os.kill(int(keeper), signal.SIGKILL)
        victim.kill()
    if keeper_too:
        # What the next session does when it begins.
        assert sweep.sweep_dead_sessions() == []
    directory = naming.directory_of(victim.pid)
    _until(lambda: not directory.exists())
    assert sweep.traces(victim.pid) == []
    assert [trace for name in (*names, bridge) for trace in _traces(name)] == []
    assert not Path("/sys/block", Path(disk).name, "loop/backing_file").exists()


def test_living_session_is_left_alone(process_container: Container) -> None:
    sweep.sweep_dead_sessions()
    assert process_container.exec(["true"]).returncode == 0


def test_fingerprint_tells_every_change(process_container: Container, loop_disk: LoopDisk) -> None:
    before = container_fingerprint(process_container)
    assert difference(before, container_fingerprint(process_container)) == []
    inside = ["nsenter", "--target", str(process_container.pid), "--net", "ip"]
    subprocess.run([*inside, "address", "add", "10.9.8.7/24", "dev", "lo"], check=True)
    subprocess.run([*inside, "route", "add", "10.66.0.0/16", "dev", "lo"], check=True)
    subprocess.run([*inside, "link", "set", "lo", "mtu", "1400"], check=True)
    process_container.exec(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
    process_container.exec(["mknod", "/dev/disk", "b", str(loop_disk.major), str(loop_disk.minor)], check=True)
    (process_container.cgroups["pids"] / "pids.max").write_text("77")
    text = "\n".join(difference(before, container_fingerprint(process_container)))
    for trace in (
        "links.lo.mtu",
        "10.9.8.7",
        "10.66.0.0/16",
        "mounts: new: /mnt",
        "devices./dev/disk",
        "cgroup.pids.max",
    ):
        assert trace in text


def _traces(name: str) -> list[str]:
    """Everything of this name that is still there."""
    places = [Path("/sys/class/net"), *cgroups.all_hierarchies()]
    places += [runtime.state_directory for runtime in RUNTIMES.values()]
    return [str(place / name) for place in places if (place / name).exists()]


def _runs(pid: int) -> bool:
    """Whether the process is there and is not a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
