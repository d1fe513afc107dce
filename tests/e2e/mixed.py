"""A large mixed plan: two containers, every kind, and of each what is made, changed, replaced, removed, adopted."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.session import Session
from tests.e2e.scene import Config, config

_LOOP_CTL_ADD, _LOOP_CTL_REMOVE = 0x4C80, 0x4C81
# Every place of the plan is struck when this is set, and else an even sample where striking takes long.
STRIDE = 1 if os.environ.get("SCPLAN_ALL_PLACES") else 5
ADOPTED = ("10.77.0.0/16", "dev", "eth1", "proto", "static")


@dataclass(frozen=True)
class Parts:
    """Things of the host that the containers get. `spare` are those that only the second configuration uses."""

    disk: LoopDisk
    spare_disk: LoopDisk
    bridge: str
    spare_bridge: str
    nic: Nic
    one: Path
    two: Path


@contextmanager
def parts(session: Session) -> Iterator[Parts]:
    with ExitStack() as stack:
        enter = stack.enter_context
        made = Parts(
            disk=enter(host_parts.loop_disk(session)),
            spare_disk=enter(host_parts.loop_disk(session)),
            bridge=enter(host_parts.bridge(session)),
            spare_bridge=enter(host_parts.bridge(session)),
            nic=enter(host_parts.nic(session)),
            one=enter(host_parts.scratch_directory(session)),
            two=enter(host_parts.scratch_directory(session)),
        )
        # So that it can be made again just as it was.
        ip("link", "set", made.nic.name, "address", "02:5c:95:00:00:01")
        ip("link", "set", made.nic.peer, "address", "02:5c:95:00:00:02")
        yield made


def before(web: Container, db: Container, made: Parts) -> Config:
    """What is applied first."""
    web_has = {
        "devices": [
            {"source": made.disk.path, "target": "/dev/data", "permissions": "r", "io": {"read_bps": "10m"}},
            "/dev/null:/dev/swap",
            "/dev/null:/dev/old",
        ],
        "nics": [
            {"name": "eth1", "bridge": made.bridge, "addresses": ["10.97.0.5/24"], "mac": "02:5c:97:00:00:05"},
            {"name": "eth2", "addresses": ["10.96.0.5/24"]},
            {"name": "eth3"},
        ],
        "routes": [{"to": "default", "via": "10.97.0.1"}, {"to": "10.98.0.0/16", "dev": "eth2"}],
        "mounts": [f"{made.one}:/srv/data:ro", f"{made.one}:/srv/old", f"{made.one}:/srv/swap"],
        "cgroup": {"pids.max": 100, "memory.max": "64MiB", "cpu.weight": 50},
    }
    db_has = {
        "nics": [{"name": "eth1", "addresses": ["10.76.0.5/24"]}],
        "mounts": [f"{made.two}:/srv/a"],
        "cgroup": {"pids.max": 300},
    }
    return config((web, web_has), (db, db_has))


def after(web: Container, db: Container, made: Parts) -> Config:
    """What is applied next: every action on every kind that has it."""
    web_has = {
        "devices": [
            {
                "source": made.disk.path,
                "target": "/dev/data",
                "permissions": "rw",
                "mode": "0600",
                "io": {"read_bps": "1m"},
            },
            "/dev/zero:/dev/swap",
            {"source": made.spare_disk.path, "target": "/dev/new", "io": {"write_iops": 100}},
        ],
        "nics": [
            {
                "name": "eth1",
                "bridge": made.bridge,
                "addresses": ["10.97.0.5/24", "10.97.0.6/24"],
                "mac": "02:5c:97:00:00:05",
                "mtu": 1400,
            },
            {"name": "eth3", "type": "physical", "host_name": made.nic.name},
            {"name": "eth4", "bridge": made.spare_bridge, "addresses": ["10.95.0.5/24"]},
        ],
        "routes": [{"to": "default", "via": "10.97.0.2"}, {"to": "10.94.0.0/16", "via": "10.95.0.1"}],
        "mounts": [f"{made.one}:/srv/data", f"{made.two}:/srv/swap", f"{made.two}:/srv/new"],
        "cgroup": {"pids.max": 200, "memory.max": "32MiB", "cpu.max": "50000 100000"},
    }
    db_has = {
        "devices": [f"{made.spare_disk.path}:/dev/n"],
        "nics": [{"name": "eth1", "addresses": ["10.76.0.5/24"]}],
        "routes": [{"to": ADOPTED[0], "dev": ADOPTED[2]}],
        "mounts": [f"{made.one}:/srv/b"],
        "cgroup": {"pids.max": 300, "memory.max": "128MiB"},
    }
    return config((web, web_has), (db, db_has))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def ip_inside(container: Container, *arguments: str) -> None:
    command = ["nsenter", "--target", str(container.pid), "--net", "ip", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@contextmanager
def without_disk(disk: LoopDisk) -> Iterator[None]:
    """The disk is gone, node and all; it comes back with the same numbers."""
    sysfs = Path("/sys/block", Path(disk.path).name, "loop/backing_file")
    file = sysfs.read_text().strip()
    subprocess.run(["losetup", "--detach", disk.path], check=True)
    _loop_control(_LOOP_CTL_REMOVE, disk.minor)
    try:
        yield
    finally:
        _loop_control(_LOOP_CTL_ADD, disk.minor)
        subprocess.run(["losetup", disk.path, file], check=True)


def _loop_control(request: int, number: int) -> None:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, request, number)
    finally:
        os.close(control)


@contextmanager
def process_in(container: Container, directory: str) -> Iterator[None]:
    """A process of the container works in a directory there."""
    with shell_inside(container, f"cd {directory}"):
        yield


@contextmanager
def shell_inside(container: Container, begun: str) -> Iterator[None]:
    """A process of the container that has run a shell command, and waits; it is gone at the end of the block."""
    command = container.exec_command(["sh", "-c", f"{begun} && echo in && exec cat"])
    inside = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert inside.stdin is not None
    assert inside.stdout is not None
    assert inside.stdout.readline() == b"in\n"
    try:
        yield
    finally:
        inside.stdin.close()
        inside.wait(timeout=30)
        inside.stdout.close()
