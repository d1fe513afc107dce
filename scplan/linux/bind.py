"""Trees of the host attached in a running container: the target is made there, mounted on, and taken away again.

Sources: open_tree(2), move_mount(2), umount2(2), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from scplan.errors import KernelError, ScplanError
from scplan.linux.container import Container
from scplan.linux.host import file_identity
from scplan.linux.locked_tree import lock_tree
from scplan.linux.rooted_path import (
    BENEATH,
    make_directory,
    make_file,
    missing_directories,
    open_in_root,
    opened,
    parent_of,
    remove_made,
)
from scplan.linux.syscalls import MNT_DETACH, UMOUNT_NOFOLLOW, FileStatus, move_mount, openat2, statx, umount2
from scplan.named_tuple import NamedTuple

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def missing(container: Container, target: str) -> tuple[str, ...]:
    """Of a target and the directories above it, those that are not there, outermost first."""
    if container.status(target) is not None:
        return ()
    return (*missing_directories(container.status, target), target)


class Missing(NamedTuple):
    """Paths to be made before something is mounted: directories above a target, and maybe itself, outermost first."""

    paths: tuple[str, ...]
    is_directory: bool

    def make(self, root_fd: int, target: str) -> None:
        """Makes them with the ids of this process. Raises KernelError."""
        try:
            for path in self.paths:
                if path != target or self.is_directory:
                    make_directory(root_fd, path)
                else:
                    make_file(root_fd, path)
        except OSError as error:
            hint = (
                "the container's file system is read-only; choose a target that is there"
                if error.errno == errno.EROFS
                else ""
            )
            raise KernelError.from_os(f"mkdir({target})", error, hint=hint) from None


def attach(
    container: Container,
    open_tree: Callable[[], int],
    target: str,
    *,
    source: str,
    missing: Missing,
    finish: Callable[[int], None] | None = None,
) -> None:
    """Mounts a detached tree on the target, unless it is there already; `source` says in errors what it is.

    What is `missing` is made before, as the container's root. `open_tree()` gives the tree. It is called in a child,
    before that enters the container. With `finish` the tree is locked where the container's root could change mounts:
    it can neither lift its flags nor unmount parts of it. `finish(tree)` then sets what locking and mounting lose.
    """
    container.refuse_host_mounts()
    made_apart = bool(missing.paths) and container.has_user_namespace
    if made_apart:
        container.as_its_root(
            lambda root_fd: missing.make(root_fd, target), what=f"make {target} in container {container.name}"
        )
    owner_fd = container.mount_owner_fd if finish is not None else None

    def work(enter: Callable[[], int]) -> None:
        tree = open_tree()
        if not made_apart:
            # The ids of its root are this process's: a process less.
            os.umask(0)
            missing.make(container.root_fd, target)
        with opened(_open_target(container, target)) as fd:
            if not _is_needed(container, statx(fd), os.fstat(tree), target, source):
                return
            if owner_fd is not None and finish is not None:
                tree = lock_tree(tree, owner_fd, name=source)
                finish(tree)
            enter()
            move_mount(tree, fd, name=target)
            if finish is not None:
                # In a mount that is shared, as the root is under systemd and LXC, a tree becomes shared too.
                finish(tree)

    container.in_child_that_enters(work, what=f"mount {target} in container {container.name}")


def _open_target(container: Container, target: str) -> int:
    try:
        return open_in_root(container.root_fd, target)
    except OSError as error:
        raise KernelError.from_os(f"openat2({target})", error) from None


def _is_needed(container: Container, there: FileStatus, wanted: os.stat_result, target: str, source: str) -> bool:
    """Whether the tree is not mounted yet. Raises ScplanError when it can't be mounted on what is there."""
    if stat.S_ISLNK(there.st_mode):
        raise ScplanError(
            f"{target} is a symlink in the container", hint="name the path that it leads to as the target"
        )
    if there.is_mount_root and file_identity(there) == file_identity(wanted):
        return False
    if stat.S_ISDIR(there.st_mode) != stat.S_ISDIR(wanted.st_mode):
        kinds = ("a directory", "a file") if stat.S_ISDIR(wanted.st_mode) else ("a file", "a directory")
        raise ScplanError(f"{source} is {kinds[0]}, but {target} in the container is {kinds[1]}")
    _refuse_shared_with_host(container, there, target)
    return True


def _refuse_shared_with_host(container: Container, there: FileStatus, target: str) -> None:
    """Raises ScplanError when what is mounted on the target would be mounted on the host too."""
    groups = container.host.peer_groups
    if groups and any(mount.id == there.mount_id and mount.shared in groups for mount in container.mounts()):
        raise ScplanError(
            f"{target} lies in a mount that container {container.name} shares with the host",
            detail="what is mounted there would be mounted on the host too",
            hint="choose a target outside of it, or give the container's mount the propagation rslave",
        )


def detach(
    container: Container,
    target: str,
    is_ours: Callable[[int], bool],
    *,
    made: tuple[str, ...] = (),
    lazy: bool = False,
) -> None:
    """Unmounts what is mounted on the target, if anything is and `is_ours(fd)` of it; then removes what was `made`.

    Lazy: who has it open keeps it; else that is a KernelError EBUSY. A tree with mounts in it is always taken lazily:
    they are locked together with it where the container has a user namespace, and can't be unmounted one by one.
    """

    def work(enter: Callable[[], int]) -> None:
        parent = _parent_of_ours(container, target, is_ours)
        if parent is None:
            remove_made(enter(), made)
            return
        with opened(parent[0]) as directory:
            detached = lazy or _holds_mounts_of_host(container, parent[1])
            root_fd = enter()
            # By name in this directory: what is mounted there can't be renamed in this namespace.
            os.fchdir(directory)
            _unmount(os.path.basename(target), target, MNT_DETACH if detached else 0)
        remove_made(root_fd, made)

    container.in_child_that_enters(work, what=f"unmount {target} in container {container.name}")


def _parent_of_ours(container: Container, target: str, is_ours: Callable[[int], bool]) -> tuple[int, FileStatus] | None:
    """(fd of the directory that holds the target, status of what is mounted there); None when it is not ours."""
    try:
        with (
            parent_of(container.root_fd, target) as (parent, name),
            opened(openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=BENEATH)) as fd,
        ):
            there = statx(fd)
            return (os.dup(parent), there) if there.is_mount_root and is_ours(fd) else None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KernelError.from_os(f"openat2({target})", error) from None


def _holds_mounts_of_host(container: Container, there: FileStatus) -> bool:
    """Whether mounts lie below a mount, and all of them came from the host with it: none is the container's own."""
    inside, below = {there.mount_id}, list[tuple[str, str]]()
    for mount in container.mounts():
        if mount.parent in inside:
            inside.add(mount.id)
            below.append((mount.device, mount.root))
    return bool(below) and container.host.has_mounts_of(below)


def _unmount(name: str, target: str, flags: int) -> None:
    try:
        umount2(name, UMOUNT_NOFOLLOW | flags)
    except OSError as error:
        hint = (
            "a process uses it, or something is mounted below it; end that first" if error.errno == errno.EBUSY else ""
        )
        raise KernelError.from_os(f"umount2({target})", error, hint=hint) from None
