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
from scplan.linux.rooted_path import (
    make_directory,
    make_file,
    missing_directories,
    open_in_root,
    opened,
    parent_of,
    stat_in_root,
)
from scplan.linux.syscalls import MNT_DETACH, UMOUNT_NOFOLLOW, mount_of, move_mount, umount2

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def missing(root_fd: int, target: str) -> tuple[str, ...]:
    """Of a target and the directories above it, those that are not there, outermost first."""
    above = missing_directories(root_fd, target)
    return above if stat_in_root(root_fd, target) is not None else (*above, target)


def make_target(container: Container, target: str, paths: tuple[str, ...], *, is_directory: bool) -> None:
    """Makes `paths`, which are missing directories above the target and maybe itself, as the container's root."""

    def make(root_fd: int) -> None:
        for path in paths:
            if path != target or is_directory:
                make_directory(root_fd, path)
            else:
                make_file(root_fd, path)

    container.refuse_host_mounts()
    if not paths:
        return
    try:
        if container.has_user_namespace:
            container.as_its_root(make, what=f"make {target} in container {container.name}")
        else:
            make(container.root_fd)
    except OSError as error:
        hint = (
            "the container's file system is read-only; choose a target that is there"
            if error.errno == errno.EROFS
            else ""
        )
        raise KernelError.from_os(f"mkdir({target})", error, hint=hint) from None


def attach(container: Container, open_tree: Callable[[], int], target: str, *, source: str) -> None:
    """Mounts a detached tree on the target, unless it is there already; `source` says in errors what it is.

    `open_tree()` gives the tree. It is called in a child, before that enters the container.
    """

    def work(enter: Callable[[], int]) -> None:
        tree = open_tree()
        _attach(enter(), tree, target, source)

    container.in_child_that_enters(work, what=f"mount {target} in container {container.name}")


def _attach(root_fd: int, tree: int, target: str, source: str) -> None:
    wanted = os.fstat(tree)
    try:
        fd = open_in_root(root_fd, target)
    except OSError as error:
        raise KernelError.from_os(f"openat2({target})", error) from None
    with opened(fd):
        found = os.fstat(fd)
        if stat.S_ISLNK(found.st_mode):
            raise ScplanError(
                f"{target} is a symlink in the container", hint="name the path that it leads to as the target"
            )
        if mount_of(fd)[1] and file_identity(found) == file_identity(wanted):
            return
        if stat.S_ISDIR(found.st_mode) != stat.S_ISDIR(wanted.st_mode):
            kinds = ("a directory", "a file") if stat.S_ISDIR(wanted.st_mode) else ("a file", "a directory")
            raise ScplanError(f"{source} is {kinds[0]}, but {target} in the container is {kinds[1]}")
        move_mount(tree, fd, name=target)


def detach(container: Container, target: str, is_ours: Callable[[int], bool], *, lazy: bool = False) -> None:
    """Unmounts what is mounted on the target, if anything is and `is_ours(fd)` of it.

    Lazy: who has it open keeps it; else that is a KernelError EBUSY.
    """
    container.in_mount_namespace(
        lambda root_fd: _detach(root_fd, target, is_ours, lazy),
        what=f"unmount {target} in container {container.name}",
    )


def _detach(root_fd: int, target: str, is_ours: Callable[[int], bool], lazy: bool) -> None:
    try:
        with opened(open_in_root(root_fd, target)) as fd, parent_of(root_fd, target) as (parent, name):
            if not mount_of(fd)[1] or not is_ours(fd):
                return
            os.fchdir(parent)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise KernelError.from_os(f"openat2({target})", error) from None
    try:
        umount2(name, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
    except OSError as error:
        hint = (
            "a process uses it, or something is mounted below it; end that first" if error.errno == errno.EBUSY else ""
        )
        raise KernelError.from_os(f"umount2({target})", error, hint=hint) from None
