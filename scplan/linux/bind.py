"""Trees of the host attached in a running container: the target is made there, mounted on, and taken away again.

Sources: open_tree(2), move_mount(2), umount2(2), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

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
    tree: int | Callable[[], int],
    target: str,
    *,
    source: str,
    missing: Missing,
    finish: Callable[[int], None] | None = None,
) -> None:
    """Mounts a detached tree on the target, unless it is there already; `source` says in errors what it is.

    What is `missing` is made before, as the container's root. `tree` is an fd, or makes one in the step, before that
    enters the container. With `finish` the tree is locked where the container's root could change mounts: it can
    neither lift its flags nor unmount parts of it. `finish(tree)` then sets what locking and mounting lose. What can be
    called is pickled.
    """
    container.refuse_host_mounts()
    made_apart = bool(missing.paths) and container.has_user_namespace
    if made_apart:
        making = partial(_make_missing, missing=missing, target=target)
        container.as_its_root(making, what=f"make {target} in container {container.name}")
    is_locked = finish is not None and container.mount_owner_fd is not None
    container.check_enterable()
    attaching = _Attaching(
        target, source, None if made_apart else missing, finish, is_locked, tree if callable(tree) else None
    )
    # To lock a tree takes the process into the container's user namespace.
    run = container.apart if is_locked else container.bounded
    run(attaching.take, *([] if callable(tree) else [tree]), what=f"mount {target} in container {container.name}")


def _make_missing(container: Container, missing: Missing, target: str) -> None:
    missing.make(container.root_fd, target)


class _Attaching(NamedTuple):
    """The step that mounts a tree; `missing` is None when nothing has to be made in it."""

    target: str
    source: str
    missing: Missing | None
    finish: Callable[[int], None] | None
    is_locked: bool
    open_tree: Callable[[], int] | None

    def take(self, container: Container, *given: int) -> None:
        """With the tree given, or opened here."""
        # First: to make a tree may take the process into a mount namespace that shares nothing with the host's.
        of_host = container.host.peer_groups
        tree = self.open_tree() if self.open_tree is not None else given[0]
        if self.missing is not None:
            # The ids of its root are this process's.
            os.umask(0)
            self.missing.make(container.root_fd, self.target)
        with opened(_open_target(container, self.target)) as fd:
            there = statx(fd)
            if not self._is_needed(there, os.fstat(tree)):
                return
            _refuse_shared_with_host(container, there, self.target, of_host)
            if self.is_locked:
                tree = lock_tree(tree, _owner_of_mounts(container), name=self.source)
                self._finish(tree)
            container.enter()
            move_mount(tree, fd, name=self.target)
            # In a mount that is shared, as the root is under systemd and LXC, a tree becomes shared too.
            self._finish(tree)

    def _is_needed(self, there: FileStatus, wanted: os.stat_result) -> bool:
        """Whether the tree is not mounted yet. Raises ScplanError when it can't be mounted on what is there."""
        if stat.S_ISLNK(there.st_mode):
            raise ScplanError(
                f"{self.target} is a symlink in the container", hint="name the path that it leads to as the target"
            )
        if there.is_mount_root and file_identity(there) == file_identity(wanted):
            return False
        if stat.S_ISDIR(there.st_mode) != stat.S_ISDIR(wanted.st_mode):
            kinds = ("a directory", "a file") if stat.S_ISDIR(wanted.st_mode) else ("a file", "a directory")
            raise ScplanError(f"{self.source} is {kinds[0]}, but {self.target} in the container is {kinds[1]}")
        return True

    def _finish(self, tree: int) -> None:
        if self.finish is not None:
            self.finish(tree)


def _owner_of_mounts(container: Container) -> int:
    owner_fd = container.mount_owner_fd
    if owner_fd is None:
        raise ScplanError(f"nobody owns the mounts of container {container.name}; this is a bug in scplan")
    return owner_fd


def _open_target(container: Container, target: str) -> int:
    try:
        return open_in_root(container.root_fd, target)
    except OSError as error:
        raise KernelError.from_os(f"openat2({target})", error) from None


def _refuse_shared_with_host(container: Container, there: FileStatus, target: str, groups: frozenset[int]) -> None:
    """Raises ScplanError when what is mounted on the target would be on the host too: its peer `groups`."""
    if groups and any(mount.id == there.mount_id and mount.shared in groups for mount in container.mounts()):
        raise ScplanError(
            f"{target} lies in a mount that container {container.name} shares with the host",
            detail="what is mounted there would be mounted on the host too",
            hint="choose a target outside of it, or give the container's mount the propagation rslave",
        )


def detach(
    container: Container,
    target: str,
    is_ours: Callable[[Container, int], bool],
    *,
    made: tuple[str, ...] = (),
    lazy: bool = False,
) -> None:
    """Unmounts what is mounted on the target, if anything is and `is_ours(container, fd)`; removes what was `made`.

    Lazy: who has it open keeps it; else that is a KernelError EBUSY. A tree with mounts in it is always taken lazily:
    they are locked together with it where the container has a user namespace, and can't be unmounted one by one.
    `is_ours` is pickled.
    """
    container.check_enterable()
    detaching = _Detaching(target, is_ours, made, lazy)
    container.bounded(detaching.take, what=f"unmount {target} in container {container.name}")


class _Detaching(NamedTuple):
    """The step that unmounts."""

    target: str
    is_ours: Callable[[Container, int], bool]
    made: tuple[str, ...]
    lazy: bool

    def take(self, container: Container) -> None:
        parent = _parent_of_ours(container, self.target, self.is_ours)
        if parent is None:
            remove_made(container.enter(), self.made)
            return
        with opened(parent[0]) as directory:
            detached = self.lazy or _holds_mounts_of_host(container, parent[1])
            root_fd = container.enter()
            # By name in this directory: what is mounted there can't be renamed in this namespace.
            os.fchdir(directory)
            _unmount(os.path.basename(self.target), self.target, MNT_DETACH if detached else 0)
        remove_made(root_fd, self.made)


def _parent_of_ours(
    container: Container, target: str, is_ours: Callable[[Container, int], bool]
) -> tuple[int, FileStatus] | None:
    """(fd of the directory that holds the target, status of what is mounted there); None when it is not ours."""
    try:
        with (
            parent_of(container.root_fd, target) as (parent, name),
            opened(openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=BENEATH)) as fd,
        ):
            there = statx(fd)
            return (os.dup(parent), there) if there.is_mount_root and is_ours(container, fd) else None
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
