"""Device nodes for containers with a user namespace, where none can be made: mknod(2), fsopen(2), user_namespaces(7).

The node lives alone on a tmpfs that the host's user namespace owns: on one of the container's it could not be opened.
Nothing of it can be seen on the host, and it goes with the last mount of it.
"""

from __future__ import annotations

import os

from scplan.errors import KernelError
from scplan.linux.mounts.mountinfo import Mount
from scplan.linux.paths.rooted_path import opened
from scplan.linux.syscalls import (
    CLONE_NEWNS,
    MountAttr,
    make_rprivate,
    move_mount,
    new_mount,
    open_tree_fd,
    unshare,
)

_SOURCE = "scplan"


def make_loose_node(name: str, mode: int, device: int, uid: int, gid: int) -> int:
    """A detached mount of a new device node. `mode` has the type, `device` is as of os.makedev, ids are the host's.

    For a step: it leaves this process in a mount namespace of its own, since until Linux 6.15 only a tree that is
    attached somewhere can be cloned.
    """
    unshare(CLONE_NEWNS, name="the mount namespace")
    make_rprivate("/")
    with (
        opened(new_mount("tmpfs", _SOURCE, MountAttr.NOSUID | MountAttr.NOEXEC)) as tmpfs,
        opened(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root,
    ):
        move_mount(tmpfs, root, name="/")
        try:
            os.mknod(name, mode, device, dir_fd=tmpfs)
            os.chown(name, uid, gid, dir_fd=tmpfs, follow_symlinks=False)
            # The umask has had its way with mknod.
            os.chmod(name, mode & 0o7777, dir_fd=tmpfs)
        except OSError as error:
            hint = "device nodes take CAP_MKNOD in the host's user namespace"
            raise KernelError.from_os(f"mknodat({name})", error, hint=hint) from None
        with opened(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tmpfs)) as node:
            return open_tree_fd(node, recursive=False, name=name)


def is_loose_node(mount: Mount) -> bool:
    """Whether a mount is one of these. A container can mount a tmpfs of that name, but have no device node on it."""
    return (mount.filesystem, mount.source) == ("tmpfs", _SOURCE)
