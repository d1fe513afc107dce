"""Where on the host the mounts of a container come from, and which of them are its runtime's own. mountinfo(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator

from scplan.linux.host import Host, file_identity
from scplan.linux.mounts.mountinfo import REMOVED, Mount
from scplan.linux.syscalls import FileStatus

_TREES = ("/proc", "/sys", "/run/host")
_OF_RUNTIMES = ("/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/dev/console", "/run/secrets", "/run/.containerenv")
_OF_INCUS = ("/dev/incus", "/dev/.incus-mounts", "/dev/lxd", "/dev/.lxd-mounts")
_FILES_OF_ENGINES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def is_of_runtime(point: str) -> bool:
    """Whether runtimes and engines mount something there in every container."""
    is_in_tree = any(point == top or point.startswith(f"{top}/") for top in _TREES)
    return is_in_tree or point in (*_OF_RUNTIMES, *_OF_INCUS, *_FILES_OF_ENGINES)


class BindSources:
    """The host's mounts, by what is mounted: the same file system, seen from the other side."""

    def __init__(self, host: Host) -> None:
        self._by_device: dict[str, list[Mount]] = {}
        for mount in host.mounts():
            self._by_device.setdefault(mount.device, []).append(mount)

    def of(self, mount: Mount, there: FileStatus) -> str | None:
        """The shortest path of the host to the file or directory that is mounted; None where it shows nowhere."""
        identity = file_identity(there)
        return next((path for path in sorted(self._candidates(mount), key=len) if _identity(path) == identity), None)

    def had(self, mount: Mount, path: str) -> bool:
        """Whether the file or directory that is mounted was at a path of the host, and was removed there."""
        root = mount.root.removesuffix(REMOVED)
        return root != mount.root and path in self._candidates(mount._replace(root=root))

    def _candidates(self, mount: Mount) -> Iterator[str]:
        for own in self._by_device.get(mount.device, ()):
            top = own.root.rstrip("/")
            if mount.root == own.root or mount.root.startswith(f"{top}/"):
                yield (own.point.rstrip("/") + mount.root[len(top) :]).rstrip("/") or "/"


def _identity(path: str) -> str | None:
    # A path of the host that is gone, or may not be looked at, is not the source.
    try:
        return file_identity(os.stat(path))
    except OSError:
        return None
