"""Sources on the host of a container's mounts, and mount points that belong to its runtime. mountinfo(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator

from scplan.linux.host import Host, file_identity
from scplan.linux.mounts.mountinfo import REMOVED, Mount
from scplan.linux.syscalls import FileStatus

# /run/host is systemd-nspawn's; /run/secrets and /run/.containerenv are Podman's. systemd-nspawn(1), podman-run(1)
_TREES = ("/proc", "/sys", "/run/host")
_OF_RUNTIMES = ("/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/dev/console", "/run/secrets", "/run/.containerenv")
_OF_INCUS = ("/dev/incus", "/dev/.incus-mounts", "/dev/lxd", "/dev/.lxd-mounts")
_FILES_OF_ENGINES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def is_of_runtime(point: str) -> bool:
    """True if runtimes and engines mount something at this point in every container."""
    is_in_tree = any(point == top or point.startswith(f"{top}/") for top in _TREES)
    return is_in_tree or point in (*_OF_RUNTIMES, *_OF_INCUS, *_FILES_OF_ENGINES)


class BindSources:
    """The host's mounts by device (st_dev): a container's bind mount is of the same file system as its source."""

    def __init__(self, host: Host) -> None:
        self._by_device: dict[str, list[Mount]] = {}
        for mount in host.mounts():
            self._by_device.setdefault(mount.device, []).append(mount)

    def of(self, mount: Mount, there: FileStatus) -> str | None:
        """Shortest path on the host of the mounted file or directory; None if the host shows it nowhere."""
        identity = file_identity(there)
        return next((path for path in sorted(self._candidates(mount), key=len) if _identity(path) == identity), None)

    def had(self, mount: Mount, path: str) -> bool:
        """True if the mounted file or directory was at this path of the host, and was removed there."""
        # mountinfo shows the root of a mount whose file was removed as "/path//deleted".
        root = mount.root.removesuffix(REMOVED)
        return root != mount.root and path in self._candidates(mount._replace(root=root))

    def _candidates(self, mount: Mount) -> Iterator[str]:
        """Paths of the host at which the root of the mount shows, if nothing hides it there."""
        for own in self._by_device.get(mount.device, ()):
            top = own.root.rstrip("/")
            if mount.root == own.root or mount.root.startswith(f"{top}/"):
                yield (own.point.rstrip("/") + mount.root[len(top) :]).rstrip("/") or "/"


def _identity(path: str) -> str | None:
    # A path of the host that is gone, or that this user may not read, is not the source.
    try:
        return file_identity(os.stat(path))
    except OSError:
        return None
