"""Mount trees that the root of a user namespace can't take apart. Source: mount_namespaces(7), "Restrictions".

The kernel locks flags and submounts of a mount only while it copies a mount namespace for a less privileged user
namespace: a tree that is moved directly into the container's namespace can be changed by the container.
"""

from __future__ import annotations

import os
import stat

from scplan.linux.paths.rooted_path import opened
from scplan.linux.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MountAttr,
    make_rprivate,
    move_mount,
    new_mount,
    open_tree,
    setns,
    unshare,
)

_SCRATCH = "tree"


def lock_tree(tree: int, owner_fd: int, *, name: str) -> int:
    """Copy of a detached tree, locked for the user namespace `owner_fd`; shared mounts in it become slaves.

    For a child: leaves this process in that user namespace, in a mount namespace of its own. `name` is for errors.
    """
    unshare(CLONE_NEWNS, name="the mount namespace")
    # Without this, the mounts made here would propagate to the host. mount_namespaces(7)
    make_rprivate("/")
    attributes = MountAttr.NOSUID | MountAttr.NODEV | MountAttr.NOEXEC
    with opened(new_mount("tmpfs", "scplan", attributes)) as scratch:
        with opened(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            move_mount(scratch, root, name="/")
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(_SCRATCH, dir_fd=scratch)
        else:
            os.mknod(_SCRATCH, stat.S_IFREG | 0o600, dir_fd=scratch)
        with opened(os.open(_SCRATCH, os.O_PATH | os.O_CLOEXEC, dir_fd=scratch)) as place:
            move_mount(tree, place, name=name)
        # A new mount namespace takes the working directory along, but no other open fd. unshare(2)
        os.fchdir(scratch)
    setns(owner_fd, CLONE_NEWUSER, name="the user namespace of the container")
    unshare(CLONE_NEWNS, name="the mount namespace, for the container's user namespace")
    return open_tree(_SCRATCH, recursive=True)
