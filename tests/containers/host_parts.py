"""Things of the host that tests plug into containers: disks, bridges, stand-ins for NICs, small file systems."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.containers.session import Session
from tests.containers.sweep import has_link


@dataclass(frozen=True)
class LoopDisk:
    """A loop device over a file. `partitions` are the nodes of its partitions, by number."""

    path: str
    major: int
    minor: int
    partitions: tuple[str, ...] = ()

    @property
    def numbers(self) -> str:
        """`7:3`"""
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True)
class Nic:
    """A veth pair as a stand-in for a physical NIC: `name` is the NIC, `peer` the switch port at its other end."""

    name: str
    peer: str


@contextmanager
def loop_disk(session: Session, *, size_bytes: int = 8 << 20, partitions: int = 0) -> Iterator[LoopDisk]:
    """A disk of the given size, filled with zeros; optionally in up to four equal parts."""
    file = session.directory / f"{session.name()}.img"
    with file.open("wb") as image:
        if partitions:
            image.write(_partition_table(size_bytes, partitions))
        image.truncate(size_bytes)
    path = _run("losetup", "--find", "--show", str(file)).strip()
    try:
        # The kernel may have been built without a partition parser; partx tells it what the table says.
        if partitions:
            _run("partx", "--update", path)
        major, minor = (int(part) for part in Path("/sys/class/block", Path(path).name, "dev").read_text().split(":"))
        nodes = tuple(f"{path}p{number + 1}" for number in range(partitions))
        yield LoopDisk(path, major, minor, nodes)
    finally:
        if partitions:
            _run("partx", "--delete", path)
        _run("losetup", "--detach", path)
        file.unlink()


@contextmanager
def bridge(session: Session) -> Iterator[str]:
    """The name of a Linux bridge that is up.

    It has a MAC address of its own and no IPv6 address: both would otherwise change with its ports.
    """
    name = session.name()
    _run("ip", "link", "add", name, "address", "02:5c:00:00:00:01", "type", "bridge")
    ipv6 = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if ipv6.exists():
        ipv6.write_text("1")
    _run("ip", "link", "set", name, "up")
    try:
        yield name
    finally:
        _run("ip", "link", "delete", name)


@contextmanager
def nic(session: Session) -> Iterator[Nic]:
    """A stand-in for a physical NIC, down; its peer is up. The peer's end brings it back from wherever it went."""
    pair = Nic(session.name(), session.name())
    _run("ip", "link", "add", pair.name, "type", "veth", "peer", "name", pair.peer)
    _run("ip", "link", "set", pair.peer, "up")
    try:
        yield pair
    finally:
        # The other end goes with it, in whatever namespace it is; both are gone if that namespace has died.
        if has_link(pair.peer):
            _run("ip", "link", "delete", pair.peer)


@contextmanager
def small_disk(session: Session, *, size_kib: int = 16) -> Iterator[Path]:
    """A directory on a file system of a few KiB, for tests that fill it."""
    path = session.directory / session.name()
    path.mkdir(mode=0o700)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_kib}k,mode=700", "tmpfs", str(path))
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))
        path.rmdir()


@contextmanager
def scratch_directory(session: Session) -> Iterator[Path]:
    """An empty directory, removed with what is in it; mounts below it are taken away first."""
    path = session.directory / session.name()
    path.mkdir(mode=0o755)
    try:
        yield path
    finally:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed([point for point in points if point.startswith(f"{path}/")]):
            _run("umount", "--lazy", point)
        _run("rm", "-rf", "--one-file-system", str(path))


def _partition_table(size_bytes: int, count: int) -> bytes:
    """A master boot record with `count` primary partitions of equal size; sectors of 512 bytes, aligned to 1 MiB."""
    align = 2048
    sectors = (size_bytes // 512 // align - 1) // count * align
    entries = b"".join(
        struct.pack("<B3sB3sII", 0, b"", 0x83, b"", align + number * sectors, sectors) for number in range(count)
    )
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


def _run(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout
