"""Something on the host that must not be touched, watched by the kernel: inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hostile.attacker import check

# All but opening and reading: access, modify, attrib, close after writing, moves, create, delete, delete of itself.
_WRITES = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Canary:
    """A directory of the host with a file and a directory in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "file").write_text("of the host")
        (directory / "below").mkdir(mode=0o700)
        (directory / "null").symlink_to("/dev/null")
        self._fd = check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        for path in (directory, directory / "below"):
            check(_libc.inotify_add_watch(self._fd, os.fsencode(path), _WRITES))
        self._mounts = _mount_points()

    def close(self) -> None:
        os.close(self._fd)

    def touched(self) -> list[str]:
        """What happened to it, and mounts that came or went on the host."""
        found = [f"mount of the host: {line}" for line in sorted(self._mounts ^ _mount_points())]
        try:
            events = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return found
        while events:
            _, mask, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
            found.append(f"inotify: {mask:#x} {name!r}")
            events = events[_EVENT.size + length :]
        return found


@contextmanager
def canary(directory: Path) -> Iterator[Canary]:
    """Watches until the end of the block, and fails there if anything happened."""
    watched = Canary(directory)
    try:
        yield watched
        assert watched.touched() == []
        assert (directory / "file").read_text() == "of the host"
        assert sorted(os.listdir(directory)) == ["below", "file", "null"]
    finally:
        watched.close()


def _mount_points() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {" ".join(line.split()[3:5]) for line in lines}
