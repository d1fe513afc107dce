"""Partitions that come and go while their disk is plugged in, told of by udev; and what is left without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Ran, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk
from tests.containers.session import Session
from tests.e2e.scene import nothing_changed, of, planned

pytestmark = pytest.mark.needs("cgroup1", "partx")

RULES = Path("/run/udev/rules.d")
UDEVD = Path("/lib/systemd/systemd-udevd")
_WAIT_S = 20.0


@pytest.fixture(params=["runc", "process"])
def web(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    return make_container(request.param)


@pytest.fixture
def run_udev() -> Iterator[Path]:
    """A /run/udev of this test's own, which nobody listens at yet."""
    made = not Path("/run/udev").exists()
    Path("/run/udev").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/udev"], check=True)
    try:
        yield Path("/run/udev")
    finally:
        subprocess.run(["umount", "--lazy", "/run/udev"], check=True)
        if made:
            Path("/run/udev").rmdir()


@pytest.fixture
def listener(run_udev: Path) -> Iterator[None]:
    """Somebody who listens where udevd does, and does nothing: rules are written, and tests do what udevd would."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(run_udev / "control"))
        listening.listen(64)
        yield


def asked_for(web: Container, disk: LoopDisk, **more: Any) -> dict[str, Any]:
    return of(web, devices=[{"source": disk.path, "target": "/dev/disk", "partitions": True, **more}])


def add_partition(disk: LoopDisk, number: int) -> None:
    """4 MiB of the disk, as `partx` makes it: the kernel may have no parser of its own."""
    subprocess.run(["addpart", disk.path, str(number), str(2048 * number), "2048"], check=True)


def remove_partition(disk: LoopDisk, number: int) -> None:
    subprocess.run(["delpart", disk.path, str(number)], check=True)


@pytest.fixture
def disk(loop_disk: LoopDisk) -> Iterator[LoopDisk]:
    """A disk without partitions; those that a test makes are removed after it."""
    yield loop_disk
    for number in range(1, 15):
        if Path(f"/sys/class/block/{Path(loop_disk.path).name}p{number}").exists():
            remove_partition(loop_disk, number)


def rules() -> list[Path]:
    return sorted(RULES.glob("*-scplan-*")) if RULES.exists() else []


def told(web: Container, scplan: Scplan, *options: str) -> Ran:
    """What udev runs when a partition comes or goes."""
    return scplan("hook", "udev", "--runtime", web.runtime, *options, web.name)


def is_there(web: Container, number: int) -> bool:
    return web.stat(f"/dev/disk{number}") is not None


# without udevd: what its rules would do


@pytest.mark.usefixtures("listener")
def test_partitions_follow_their_disk(web: Container, scplan: Scplan, disk: LoopDisk) -> None:
    with nothing_changed(web):
        add_partition(disk, 1)
        scplan("apply", "--auto-approve", config=asked_for(web, disk)).ok()
        assert is_there(web, 1)
        add_partition(disk, 3)
        remove_partition(disk, 1)
        told(web, scplan).ok()
        assert [is_there(web, number) for number in (1, 2, 3)] == [False, False, True]
        assert web.exec(["dd", "if=/dev/disk3", "of=/dev/null", "count=1"]).returncode == 0
        listed = scplan("state", "list").ok().stdout.split()
        assert listed == [f"{web.name}/device/dev/disk", f"{web.name}/device/dev/disk3"]
        scplan("plan", "--detailed-exitcode").ok()
        assert told(web, scplan).ok().stderr == "", "nothing came or went since"
        remove_partition(disk, 3)
        told(web, scplan).ok()
        assert not is_there(web, 3)
        scplan("destroy", web.name, "--auto-approve").ok()


@pytest.mark.usefixtures("listener")
def test_numbers_of_partitions_are_names_of_their_own(
    make_container: MakeContainer, scplan: Scplan, disk: LoopDisk
) -> None:
    web = make_container("process")
    asked = of(web, devices=[{"source": disk.path, "target": "/dev/data1", "partitions": True}])
    scplan("apply", "--auto-approve", config=asked).ok()
    for number in (1, 2, 12):
        add_partition(disk, number) if number < 12 else subprocess.run(
            ["addpart", disk.path, "12", "8192", "2048"], check=True
        )
    told(web, scplan).ok()
    for number in (1, 2, 12):
        node, status = web.stat(f"/dev/data1p{number}"), os.stat(f"{disk.path}p{number}")
        assert node
        assert node["rdev"] == f"{os.major(status.st_rdev):x}:{os.minor(status.st_rdev):x}"


@pytest.mark.usefixtures("listener")
def test_rule_is_there_as_long_as_the_entry_asks_for_it(
    make_container: MakeContainer, scplan: Scplan, disk: LoopDisk
) -> None:
    web = make_container("process")
    scplan("apply", "--auto-approve", config=asked_for(web, disk, partitions=False)).ok()
    assert rules() == []
    made = scplan("plan", "--json", config=asked_for(web, disk)).ok().json["changes"]
    assert [(change["action"], change["changed"]) for change in made] == [("update", ["partitions"])]
    scplan("apply", "--auto-approve").ok()
    (rule,) = rules()
    name = Path(disk.path).name
    assert f'DEVPATH=="*/{name}/*"' in rule.read_text()
    assert f"hook udev --runtime process {web.name}" in rule.read_text()
    rule.unlink()
    assert planned(scplan("plan", "--json").ok()) == {"device/dev/disk": "update"}, "somebody took the rule away"
    scplan("apply", "--auto-approve").ok()
    assert rules() == [rule]
    scplan("apply", "--auto-approve", config=asked_for(web, disk, partitions=False)).ok()
    assert rules() == []
    scplan("undo", "--auto-approve").ok()
    assert rules() == [rule]
    scplan("destroy", web.name, "--auto-approve").ok()
    assert rules() == []


@pytest.mark.usefixtures("listener")
def test_rule_goes_with_an_apply_that_is_undone(make_container: MakeContainer, scplan: Scplan, disk: LoopDisk) -> None:
    web = make_container("process")
    asked = asked_for(web, disk)
    asked["containers"][web.name]["cgroup"] = {"memory.max": "96k"}
    with nothing_changed(web):
        scplan("apply", "--auto-approve", config=asked).ok(3)
    assert rules() == []


@pytest.mark.usefixtures("listener")
def test_partitions_are_no_change_that_undo_takes_back(
    make_container: MakeContainer, scplan: Scplan, disk: LoopDisk
) -> None:
    web = make_container("process")
    scplan("apply", "--auto-approve", config=asked_for(web, disk)).ok()
    before = scplan("state", "history", "--json").ok().json["applies"]
    add_partition(disk, 1)
    told(web, scplan).ok()
    assert is_there(web, 1)
    assert scplan("state", "history", "--json").ok().json["applies"] == before
    with_partition = scplan("undo", "--auto-approve")
    with_partition.ok()
    assert not is_there(web, 1), "it goes with its disk"


@pytest.mark.usefixtures("listener")
def test_entry_of_its_own_wins_over_the_disk_s(make_container: MakeContainer, scplan: Scplan, disk: LoopDisk) -> None:
    web = make_container("process")
    add_partition(disk, 1)
    asked = asked_for(web, disk)
    asked["containers"][web.name]["devices"].append({"source": "/dev/zero", "target": "/dev/disk1"})
    scplan("apply", "--auto-approve", config=asked).ok()
    told(web, scplan).ok()
    node = web.stat("/dev/disk1")
    assert node
    assert node["rdev"] == "1:5"
    remove_partition(disk, 1)
    told(web, scplan).ok()
    assert is_there(web, 1)


@pytest.mark.usefixtures("listener")
def test_another_disk_of_that_name_is_not_followed(
    make_container: MakeContainer, scplan: Scplan, session: Session, disk: LoopDisk, partitioned_disk: LoopDisk
) -> None:
    web = make_container("process")
    link = session.directory / session.name()
    link.symlink_to(disk.path)
    try:
        asked = of(web, devices=[{"source": str(link), "target": "/dev/disk", "partitions": True}])
        scplan("apply", "--auto-approve", config=asked).ok()
        link.unlink()
        link.symlink_to(partitioned_disk.path)
        told(web, scplan).ok()
        assert not is_there(web, 1)
    finally:
        link.unlink()


@pytest.mark.usefixtures("listener")
def test_who_waits_for_another_apply_does_so_by_himself(
    make_container: MakeContainer, scplan: Scplan, disk: LoopDisk
) -> None:
    """udev kills what it started after a while: the hook must be back at once, and the partition come all the same."""
    web = make_container("process")
    scplan("apply", "--auto-approve", config=asked_for(web, disk)).ok()
    asked = asked_for(web, disk)
    asked["containers"][web.name]["cgroup"] = {"pids.max": 100}
    scplan("apply", "--auto-approve", "--confirm-within", "5m", config=asked).ok()
    add_partition(disk, 1)
    begun = time.monotonic()
    told(web, scplan).ok()
    assert time.monotonic() - begun < 10
    assert not is_there(web, 1)
    # The one that waits looks now and then, and holds the lock for that moment.
    eventually(lambda: told(web, scplan, "--lock-timeout", "0s").code == 8)
    scplan("confirm").ok()
    eventually(lambda: is_there(web, 1))
    eventually(lambda: not waiting_for(web))


@pytest.mark.usefixtures("listener")
def test_container_that_ended_is_not_followed_any_more(
    make_container: MakeContainer, scplan: Scplan, disk: LoopDisk
) -> None:
    web = make_container("runc")
    scplan("apply", "--auto-approve", config=asked_for(web, disk)).ok()
    assert len(rules()) == 1
    web.stop()
    assert "has ended" in told(web, scplan).ok().stderr
    assert rules() == []


@pytest.mark.usefixtures("listener")
def test_container_that_starts_asks_for_the_partitions_of_that_moment(
    make_container: MakeContainer, scplan: Scplan, disk: LoopDisk
) -> None:
    command = ["/usr/bin/env", f"PYTHONPATH={scplan.environment['PYTHONPATH']}", *scplan.command()]
    called = [*command, "--state-dir", str(scplan.state_dir), "hook"]
    stages = {name: [{"path": called[0], "args": [*called, name]}] for name in ("createRuntime", "poststop")}
    web = make_container("runc", hooks=stages)
    add_partition(disk, 1)
    add_partition(disk, 2)
    scplan("apply", "--auto-approve", config=asked_for(web, disk)).ok()
    web.stop()
    assert rules() == [], "the host has its things back"
    remove_partition(disk, 1)
    add_partition(disk, 3)
    web.start()
    assert [is_there(web, number) for number in (1, 2, 3)] == [False, True, True]
    assert len(rules()) == 1
    scplan("plan", "--detailed-exitcode").ok()


def test_plan_says_that_nobody_tells_of_later_partitions(web: Container, scplan: Scplan, disk: LoopDisk) -> None:
    if Path("/run/udev/control").exists():
        pytest.skip("udevd runs on this machine")
    add_partition(disk, 1)
    made = scplan("plan", config=asked_for(web, disk)).ok()
    assert "later partitions" in made.stderr
    assert "udevd does not run" in made.stderr
    scplan("apply", "--auto-approve").ok()
    assert is_there(web, 1)
    assert rules() == []
    scplan("plan", "--detailed-exitcode").ok()


# with udevd


@pytest.fixture
def udevd(run_udev: Path, session: Session) -> Iterator[subprocess.Popen[bytes]]:
    """A udevd with no rules but scplan's. It hears of the devices of its network namespace: of the tests' alone."""
    assert run_udev.is_mount()
    empty = session.directory / session.name()
    empty.mkdir()
    hidden = [path for path in ("/etc/udev/rules.d", "/usr/lib/udev/rules.d") if Path(path).is_dir()]
    for path in hidden:
        subprocess.run(["mount", "--bind", str(empty), path], check=True)
    daemon = subprocess.Popen([str(UDEVD), "--children-max=2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: subprocess.run(["udevadm", "control", "--ping"], capture_output=True).returncode == 0)
        yield daemon
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
        for path in hidden:
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(empty)


@pytest.mark.needs("udevadm")
def test_udevd_has_partitions_plugged_in_and_out(
    web: Container, scplan: Scplan, disk: LoopDisk, udevd: subprocess.Popen[bytes]
) -> None:
    scplan("apply", "--auto-approve", config=asked_for(web, disk)).ok()
    add_partition(disk, 1)
    eventually(lambda: is_there(web, 1))
    add_partition(disk, 2)
    eventually(lambda: is_there(web, 2))
    remove_partition(disk, 1)
    eventually(lambda: not is_there(web, 1))
    assert is_there(web, 2)
    eventually(lambda: scplan("plan", "--detailed-exitcode").code == 0)
    scplan("destroy", web.name, "--auto-approve").ok()
    assert rules() == []
    assert udevd.poll() is None


def waiting_for(web: Container) -> list[str]:
    """Processes of scplan that wait to follow the container's disks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"udev" in words and web.name.encode() in words:
            found.append(path.parent.name)
    return found


def eventually(holds: Callable[[], bool]) -> None:
    """Waits until it holds; fails the test when it does not in time."""
    deadline = time.monotonic() + _WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
