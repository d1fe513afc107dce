"""Symlinks of a container, followed inside its root without waiting for a file system. path_resolution(7)."""

from __future__ import annotations

import errno
import os
import stat

from scplan.errors import KernelError
from scplan.linux.container import Container
from scplan.linux.paths.rooted_path import opened
from scplan.linux.syscalls import statx

_MAX_SYMLINKS = 40
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def real_path(container: Container, path: str) -> str:
    """Path with the symlinks on its way followed; a final symlink and missing parts stay as they are."""
    left = path.strip("/").split("/")
    real, followed = "", 0
    while left:
        name = left.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            real = os.path.dirname(real).rstrip("/")
            continue
        target = _symlink(container, f"{real}/{name}") if left else None
        if target is None or followed >= _MAX_SYMLINKS:
            real = f"{real}/{name}"
            continue
        followed += 1
        real = "" if target.startswith("/") else real
        left = [*target.split("/"), *left]
    return real or "/"


def _symlink(container: Container, path: str) -> str | None:
    """Target of a symlink; None for other files."""
    try:
        with opened(container.host.lookup.open(container.root_fd, path, container=container.name)) as fd:
            # Some symlinks in /proc lead nowhere for processes of other PID namespaces: /proc/self.
            return os.readlink("", dir_fd=fd) if stat.S_ISLNK(statx(fd).st_mode) else None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KernelError.from_os(f"openat2({path}) in container {container.name}", error) from None
