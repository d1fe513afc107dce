"""Live bind mounts, read and recognised. proc_pid_mountinfo(5), statx(2)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from scplan.errors import ScplanError
from scplan.kinds.mount.bind_sources import BindSources
from scplan.kinds.mount.record import BindMount
from scplan.kinds.mount.source_tree import SourceTree, flags_text, source_tree, submount_path, submount_text
from scplan.linux.container import Container
from scplan.linux.host import Host, file_identity
from scplan.linux.mounts.mount_tree import Branch, tree_of
from scplan.linux.mounts.mountinfo import Mount
from scplan.linux.mounts.parking import is_copy
from scplan.linux.syscalls import FileStatus, statx
from scplan.startup.digest import sha256_hex

_NAME_LENGTH = 16


def as_found(host: Host, wanted: BindMount, tree: Sequence[Branch], there: FileStatus) -> BindMount:
    """The live mount `tree`, with the file `there` at its target.

    Its source is the wanted one if both are the same file, else the path where the host has it. If the host has it
    nowhere, the source is the path on its file system, or the type of that file system.
    """
    top = tree[0].mount
    identity = file_identity(there)
    source: str | None = wanted.source
    if identity != (wanted.source_identity or identity_on_host(wanted.source)):
        source = BindSources(host).of(top, there)
    if source is None:
        source = top.filesystem if top.root == "/" else top.root
    found = BindMount(
        source=source,
        target=wanted.target,
        read_only=top.read_only,
        recursive=wanted.recursive,
        propagation=visible_propagation(host, wanted, top),
        source_identity=identity,
        flags=flags_text(top),
        submounts=(),
    )
    if source != wanted.source or (len(tree) == 1 and not wanted.submounts and wanted.read_only >= top.read_only):
        return found
    return _compared_with_source(found, wanted, tree, source_tree(host.known_mounts, source))


def _compared_with_source(found: BindMount, wanted: BindMount, tree: Sequence[Branch], source: SourceTree) -> BindMount:
    """`found` with submounts and read_only as the host's own mounts explain them.

    Submounts are those that came along; a mount that the host itself has read-only is not read_only by its entry.
    """
    brought = source.brought(tree[1:])
    on_host = {branch.path for branch in source.below}
    # A mount that the host has unmounted since is no difference.
    gone = [text for text in wanted.submounts or () if submount_path(text) not in on_host]
    if wanted.read_only:
        read_only = found.read_only and all(branch.mount.read_only for branch in brought)
    else:
        read_only = found.read_only and not source.is_read_only("/")
    return found.replace(read_only=read_only, submounts=(*map(submount_text, brought), *gone))


def visible_propagation(host: Host, wanted: BindMount, top: Mount) -> str:
    """Propagation as in mountinfo, with the prefix "r" if wanted: the kernel does not store if it was set recursively.

    The slave of a mount that receives no mounts is private to the kernel, and counts as wanted. mount_namespaces(7)
    """
    prefix = "r" if wanted.propagation.startswith("r") else ""
    word = wanted.propagation.removeprefix(prefix)
    if word == "slave" and top.propagation == "private" and not host.receives(wanted.source):
        return wanted.propagation
    return prefix + top.propagation


def tree_behind_symlink(container: Container, target: str) -> list[Branch]:
    """The mount at a target whose path has symlinks, so that mountinfo has it under another path."""
    there = container.status(target)
    if there is None or not there.is_mount_root:
        return []
    return tree_of(container.mounts(), there.mount_id)


def tree_at(container: Container, mount: BindMount) -> list[Branch]:
    """The live mount at the target with all mounts below it; empty if it is not a mount of the source."""
    there = container.status(mount.target)
    if there is None or not there.is_mount_root or not _is_of_source(container, mount, there):
        return []
    return tree_of(container.mounts(), there.mount_id)


def is_ours(container: Container, fd: int, mount: BindMount) -> bool:
    """True if the mount at the target is the one that scplan made.

    Raises ScplanError if scplan's mount may lie below another one. If there is only one mount, and it is not scplan's,
    then scplan's is gone.
    """
    there = statx(fd)
    if _is_of_source(container, mount, there):
        return True
    if not _covers_another(container, there):
        return False
    raise ScplanError(
        f"{mount.target}: others have mounted something on top of it", hint="unmount that first, or stop the container"
    )


def is_covered(container: Container, mount: BindMount) -> bool:
    """True if others have mounted something at the target, below which scplan's mount may lie."""
    there = container.status(mount.target)
    if there is None or not there.is_mount_root or _is_of_source(container, mount, there):
        return False
    return _covers_another(container, there)


def hiding(container: Container, mount: BindMount) -> str | None:
    """Mount point above the target at which others have mounted something that hides the mount; None if there is none.

    Source: proc_pid_mountinfo(5). A mount lies in its parent, and the last mount at a place hides all below it.
    """
    mounts = container.mounts()
    by_id = {one.id: one for one in mounts}
    there = container.status(mount.target)
    for own in mounts:
        if own.point != mount.target or (there is not None and own.id == there.mount_id):
            continue
        # The mount and all mounts that it lies in.
        chain = {own.id}
        while own.parent in by_id and own.parent not in chain:
            own = by_id[own.parent]
            chain.add(own.id)
        for other in mounts:
            if other.parent in chain and other.id not in chain and mount.target.startswith(f"{other.point}/"):
                return other.point
    return None


def _covers_another(container: Container, there: FileStatus) -> bool:
    """True if more than one mount is at the mount points of this one."""
    mounts = container.mounts()
    points = [other.point for other in mounts if other.id == there.mount_id]
    return sum(other.point in points for other in mounts) > 1


def is_taken(container: Container, mount: BindMount) -> bool:
    """True if others have mounted something at the target."""
    there = container.status(mount.target)
    return there is not None and there.is_mount_root and not _is_of_source(container, mount, there)


def _is_of_source(container: Container, mount: BindMount, there: FileStatus) -> bool:
    """True if the mounted file is the mount's source, which may have been removed if its path identifies it."""
    identity = file_identity(there)
    if mount.source_identity is not None:
        return identity == mount.source_identity or _is_copy(container, mount, there)
    if identity == identity_on_host(mount.source):
        return True
    mounted = next((one for one in container.mounts() if one.id == there.mount_id), None)
    return mounted is not None and BindSources(container.host).had(mounted, mount.source)


def kept_name(container: Container, target: str) -> str:
    """Name under which a clone of the mount at a target is kept."""
    return sha256_hex(os.fsencode(f"{container.runtime} {container.name} {target}"))[:_NAME_LENGTH]


def _is_copy(container: Container, mount: BindMount, there: FileStatus) -> bool:
    """True if an undo has mounted a copy here, of a file that was removed."""
    mounted = next((one for one in container.mounts() if one.id == there.mount_id), None)
    return mounted is not None and is_copy(mounted, kept_name(container, mount.target))


def identity_on_host(path: str) -> str | None:
    """st_dev:st_ino at a path of the host, symlinks followed; None if the path does not exist."""
    try:
        return file_identity(os.stat(path))
    except OSError:
        return None
