"""Device nodes for containers with a user namespace, in which mknod(2) refuses them. fsopen(2), user_namespaces(7).

The node lives alone on a tmpfs of the host's user namespace: on a tmpfs of the container's, opening it would fail
(SB_I_NODEV, alloc_super() of fs/super.c). The host does not see this tmpfs, which goes with its last mount.
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
    """Detached mount of a new device node. `mode` has the type, `device` is as of os.makedev, ids are the host's.

    For a step: leaves this process in a mount namespace of its own, because until Linux 6.15 a tree can be cloned only
    while it is attached.
    """
    unshare(CLONE_NEWNS, name="the mount namespace")
    # Without this, the mounts made here would propagate to the host. mount_namespaces(7)
    make_rprivate("/")
    with (
        opened(new_mount("tmpfs", _SOURCE, MountAttr.NOSUID | MountAttr.NOEXEC)) as tmpfs,
        opened(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root,
    ):
        move_mount(tmpfs, root, name="/")
        try:
            os.mknod(name, mode, device, dir_fd=tmpfs)
            os.chown(name, uid, gid, dir_fd=tmpfs, follow_symlinks=False)
            # mknod() applies the umask, chmod() does not.
            os.chmod(name, mode & 0o7777, dir_fd=tmpfs)
        except OSError as error:
            hint = "device nodes take CAP_MKNOD in the host's user namespace"
            raise KernelError.from_os(f"mknodat({name})", error, hint=hint) from None
        with opened(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tmpfs)) as node:
            return open_tree_fd(node, recursive=False, name=name)


def is_loose_node(mount: Mount) -> bool:
    """True if a mount is a loose node. A container can mount a tmpfs of that name, but have no device node on it."""
    return (mount.filesystem, mount.source) == ("tmpfs", _SOURCE)
