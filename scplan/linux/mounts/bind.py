"""Mount trees of the host in a running container: make the target, attach a tree, detach it, remove the target.

Sources: open_tree(2), move_mount(2), umount2(2), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

from scplan.errors import KernelError, ScplanError
from scplan.linux.container import Container
from scplan.linux.host import file_identity
from scplan.linux.mounts.locked_tree import lock_tree
from scplan.linux.mounts.mount_tree import (
    Branch,
    Outer,
    are_alike,
    flags_of,
    propagation_of,
    restore_propagation,
    tree_of,
)
from scplan.linux.mounts.mountinfo import is_removed
from scplan.linux.mounts.parking import open_parked, park
from scplan.linux.paths.made_files import path_of, restore_attributes
from scplan.linux.paths.rooted_path import (
    BENEATH,
    make_directory,
    make_file,
    missing_directories,
    open_in_root,
    opened,
    parent_of,
    remove_made,
    stat_in_root,
)
from scplan.linux.syscalls import (
    MNT_DETACH,
    MS_PRIVATE,
    UMOUNT_NOFOLLOW,
    FileStatus,
    mount_setattr,
    move_mount,
    open_tree_fd,
    openat2,
    statx,
    umount2,
)
from scplan.startup.named_tuple import NamedTuple

_PASSING_S = 0.2

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def missing(container: Container, target: str) -> tuple[str, ...]:
    """Paths that do not exist, of a target and the directories above it, outermost first."""
    if container.status(target) is not None:
        return ()
    return (*missing_directories(container.status, target), target)


class Missing(NamedTuple):
    """Paths to make before a mount: directories above its target, and maybe the target, outermost first.

    Paths inside a mount of `through` (innermost mount first) are made in the source of that mount. `attributes` are
    owner, mode and extended attributes of paths that existed before, in the format of made_files.
    """

    paths: tuple[str, ...]
    is_directory: bool
    through: tuple[Outer, ...] = ()
    attributes: tuple[str, ...] = ()

    def make(self, root_fd: int, target: str) -> None:
        """Make the paths outside of `through`, with the ids of this process. Raises KernelError."""
        try:
            for path in self.paths:
                if _outer_of(path, self.through) is None:
                    self._make_one(root_fd, path, is_target=path == target)
        except OSError as error:
            hint = (
                "the container's file system is read-only; choose a target that is there"
                if error.errno == errno.EROFS
                else ""
            )
            raise KernelError.from_os(f"mkdir({target})", error, hint=hint) from None

    def make_outside(self, container: Container, target: str) -> None:
        """Make the paths inside `through`, for the container's root; then set the attributes of all paths."""
        owner = container.host_id("uid", 0), container.host_id("gid", 0)
        try:
            for path in self.paths:
                outer = _outer_of(path, self.through)
                if outer is not None:
                    fd = _open_source(outer)
                    if fd is None:
                        raise ScplanError(
                            f"{outer.source} is not what is mounted on {outer.target} any more", hint="plan again"
                        )
                    with opened(fd) as top:
                        inner = path.removeprefix(outer.target)
                        if self._make_one(top, inner, is_target=path == target):
                            with opened(open_in_root(top, inner)) as made:
                                # fchown(2) refuses an O_PATH fd; its link in /proc works. open(2)
                                os.chown(f"/proc/self/fd/{made}", *owner)
            for text in self.attributes:
                with opened(open_in_root(container.root_fd, path_of(text))) as fd:
                    if not statx(fd).is_mount_root and not stat.S_ISLNK(os.fstat(fd).st_mode):
                        restore_attributes(fd, text)
        except OSError as error:
            raise KernelError.from_os(f"mkdir({target})", error) from None

    def _make_one(self, root_fd: int, path: str, *, is_target: bool) -> bool:
        if is_target and not self.is_directory:
            return make_file(root_fd, path)
        return make_directory(root_fd, path)


def _outer_of(path: str, through: Iterable[Outer]) -> Outer | None:
    """Mount in whose source a path must be made; None if there is none."""
    return next((one for one in through if path.startswith(f"{one.target}/")), None)


def _open_source(outer: Outer) -> int | None:
    """O_PATH fd of the mounted directory on the host; None if its path leads to another file by now."""
    try:
        fd = os.open(outer.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KernelError.from_os(f"open({outer.source})", error) from None
    if file_identity(os.fstat(fd)) == outer.identity:
        return fd
    os.close(fd)
    return None


def attach(
    container: Container,
    tree: int | Callable[[], int],
    target: str,
    *,
    source: str,
    missing: Missing,
    finish: Callable[[int], None] | None = None,
    locks: bool = True,
) -> None:
    """Mount a detached tree on the target, unless it is mounted already; `source` names the tree in errors.

    First, the `missing` paths are made, as the container's root. `tree` is an fd, or a function that returns one and is
    called in the step, before the step enters the container. With `finish`, and unless `locks` is false, the tree is
    locked if the container's root could change mounts: that root can then neither clear the tree's flags nor unmount
    parts of it. `finish(tree)` then sets what locking and mounting have changed. Functions are pickled.
    """
    container.refuse_host_mounts()
    made_apart = bool(missing.paths) and container.has_user_namespace
    if made_apart:
        making = partial(_make_missing, missing=missing, target=target)
        container.as_its_root(making, what=f"make {target} in container {container.name}")
    is_locked = locks and finish is not None and container.mount_owner_fd is not None
    container.check_enterable()
    if missing.paths and (missing.through or missing.attributes):
        making = partial(_make_outside, missing=missing, target=target)
        container.bounded(making, what=f"make {target} in container {container.name}")
    attaching = _Attaching(
        target, source, None if made_apart else missing, finish, is_locked, tree if callable(tree) else None
    )
    # Locking a tree moves the process into the container's user namespace, from which it can't return.
    run = container.apart if is_locked else container.bounded
    run(attaching.take, *([] if callable(tree) else [tree]), what=f"mount {target} in container {container.name}")


def _make_outside(container: Container, missing: Missing, target: str) -> None:
    os.umask(0)
    if not container.has_user_namespace:
        missing.make(container.root_fd, target)
    missing.make_outside(container, target)


def _make_missing(container: Container, missing: Missing, target: str) -> None:
    missing.make(container.root_fd, target)


class _Attaching(NamedTuple):
    """The step that mounts a tree; `missing` is None if no paths have to be made in the step."""

    target: str
    source: str
    missing: Missing | None
    finish: Callable[[int], None] | None
    is_locked: bool
    open_tree: Callable[[], int] | None

    def take(self, container: Container, *given: int) -> None:
        """Mount the given tree, or the tree that `open_tree` returns."""
        # Read this first: `open_tree` may move the process into a mount namespace that shares nothing with the host's.
        of_host = container.host.peer_groups
        tree = self.open_tree() if self.open_tree is not None else given[0]
        if self.missing is not None:
            # This process has the ids of the container's root.
            os.umask(0)
            self.missing.make(container.root_fd, self.target)
        with opened(_open_target(container, self.target)) as fd:
            there = statx(fd)
            if not self._is_needed(there, os.fstat(tree)):
                # Attached by a process that was killed, perhaps before it called `finish`.
                container.enter()
                self._finish(fd)
                return
            _refuse_shared_with_host(container, there, self.target, of_host)
            if self.is_locked:
                tree = lock_tree(tree, _owner_of_mounts(container), name=self.source)
                self._finish(tree)
            container.enter()
            # move_mount(2) accepts only targets in the mount namespace of the process.
            move_mount(tree, fd, name=self.target)
            # On a shared mount (such as the root under systemd and LXC), the tree becomes shared. mount_namespaces(7)
            self._finish(tree)

    def _is_needed(self, there: FileStatus, wanted: os.stat_result) -> bool:
        """True if the tree is not mounted yet. Raises ScplanError if it can't be mounted on the target's file."""
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
    """Raise ScplanError if a mount on the target would also appear on the host, which has the peer `groups`."""
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
    through: tuple[Outer, ...] = (),
    lazy: bool = False,
    parked: str = "",
) -> None:
    """Unmount the tree on the target if `is_ours(container, fd)`; remove the files and directories in `made`.

    First, a clone of the tree is parked at `parked`. With `lazy`, processes keep the files that they have open; else
    open files are a KernelError EBUSY. A tree with submounts is always unmounted lazily, and first made private:
    unmounting the submounts would propagate to the host. If the container has a user namespace, submounts are locked to
    the tree, and can't be unmounted one by one. `through` as in Missing. `is_ours` is pickled.
    """
    container.check_enterable()
    detaching = _Detaching(target, is_ours, made, through, lazy, parked)
    container.bounded(detaching.take, what=f"unmount {target} in container {container.name}")


class _Detaching(NamedTuple):
    """The step that unmounts a tree."""

    target: str
    is_ours: Callable[[Container, int], bool]
    made: tuple[str, ...]
    through: tuple[Outer, ...]
    lazy: bool
    parked: str

    def take(self, container: Container) -> None:
        parent = self._prepared(container)
        if parent is None and not self._has_left(container):
            return  # nothing was made: to undo that takes no privileges to enter
        with ExitStack() as stack:
            sources = {outer: fd for outer in self.through if (fd := _open_source(outer)) is not None}
            for fd in sources.values():
                stack.callback(os.close, fd)
            root_fd = container.enter()
            self._unmount(parent)
            for path in reversed(self.made):
                outer = _outer_of(path, self.through)
                if outer is None:
                    remove_made(root_fd, (path,))
                elif outer in sources:  # else the source was replaced, and the made files went with it
                    remove_made(sources[outer], (path.removeprefix(outer.target),))

    def _has_left(self, container: Container) -> bool:
        """True if a file or directory in `made` may still exist."""
        return any(
            _outer_of(path, self.through) is not None or stat_in_root(container.root_fd, path) is not None
            for path in self.made
        )

    def _unmount(self, parent: tuple[int, bool] | None) -> None:
        if parent is not None:
            with opened(parent[0]) as directory:
                # By name in this directory: a mount point can't be renamed in its own mount namespace. rename(2)
                os.fchdir(directory)
                _unmount(os.path.basename(self.target), self.target, MNT_DETACH if self.lazy or parent[1] else 0)

    def _prepared(self, container: Container) -> tuple[int, bool] | None:
        """(fd of the target's directory, True if submounts require a lazy unmount); None if the tree is not scplan's.

        By then a clone is parked, and a tree with submounts is private.
        """
        found = _ours(container, self.target, self.is_ours)
        if found is None:
            return None
        parent, fd = found
        with opened(fd):
            if self.parked:
                top = tree_of(container.mounts(), statx(fd).mount_id)[0].mount
                with opened(_cloned(container, fd, self.target)) as tree:
                    park(tree, self.parked, flags_of(top.options))
            has_mounts = not self.lazy and len(tree_of(container.mounts(), statx(fd).mount_id)) > 1
            if has_mounts:
                with container.mounts_entered():
                    # mount_setattr(2) changes only mounts in the mount namespace of the process.
                    mount_setattr(fd, propagation=MS_PRIVATE, recursive=True, name=self.target)
        return parent, has_mounts


def _cloned(container: Container, fd: int, target: str) -> int:
    """Detached clone of the live tree at an opened path of the container."""
    # open_tree(2) clones mounts of the caller's mount namespace only (EINVAL).
    with container.mounts_entered():
        return open_tree_fd(fd, recursive=True, name=target)


def _ours(container: Container, target: str, is_ours: Callable[[Container, int], bool]) -> tuple[int, int] | None:
    """(fd of the target's directory, fd of the mount on the target); None if the mount is not scplan's."""
    try:
        with ExitStack() as stack:
            parent, name = stack.enter_context(parent_of(container.root_fd, target))
            fd = openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=BENEATH)
            stack.callback(os.close, fd)
            if not statx(fd).is_mount_root or not is_ours(container, fd):
                return None
            # Copies, because the stack closes its own fds.
            return os.dup(parent), os.dup(fd)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KernelError.from_os(f"openat2({target})", error) from None


def reattach(
    container: Container,
    target: str,
    parked: str,
    is_ours: Callable[[Container, int], bool],
    *,
    missing: Missing,
) -> None:
    """Mount a clone of the tree parked at `parked` on the target, with its flags, peer groups and submounts.

    Does nothing if the tree itself was never unmounted. A tree that has changed since is unmounted first.
    """
    fd = open_parked(parked)
    if fd is None:
        raise ScplanError(f"nothing is kept at {parked}; this is a bug in scplan")
    with opened(fd):
        kept = tree_of(container.host.mounts(), statx(fd).mount_id)
    container.check_enterable()
    is_there = container.bounded(
        partial(_is_there, target=target, is_ours=is_ours, kept=kept),
        what=f"look at {target} in container {container.name}",
    )
    if is_there:
        return
    detach(container, target, is_ours)
    attach(
        container,
        partial(clone_of_parked, parked),
        target,
        source=target,
        missing=missing,
        finish=partial(_restore_propagation, propagation=propagation_of(kept), name=target),
        locks=False,
    )


def clone_of_parked(place: str) -> int:
    """Detached clone of the tree that is parked at a place."""
    fd = open_parked(place)
    if fd is None:
        raise ScplanError(f"nothing is kept at {place} any more")
    with opened(fd):
        return open_tree_fd(fd, recursive=True, name=place)


def _is_there(container: Container, target: str, is_ours: Callable[[Container, int], bool], kept: list[Branch]) -> bool:
    """True if the target holds the unchanged tree of which a clone is parked."""
    found = _ours(container, target, is_ours)
    if found is None:
        return False
    with opened(found[0]), opened(found[1]) as fd:
        live = tree_of(container.mounts(), statx(fd).mount_id)
        # Of a removed file, a copy is parked: a live mount of the removed file is the original.
        is_original = is_removed(live[0].mount) and not is_removed(kept[0].mount)
        return is_original or are_alike(kept, live)


def _restore_propagation(tree: int, propagation: tuple[tuple[str, int], ...], name: str) -> None:
    restore_propagation(tree, propagation, name=name)


def _unmount(name: str, target: str, flags: int) -> None:
    """Unmount the mount at `name`; while it is busy, wait a moment: another scplan, or monitoring, may look at it."""
    deadline = time.monotonic() + _PASSING_S
    while True:
        try:
            # UMOUNT_NOFOLLOW: the container could have put a symlink there.
            umount2(name, UMOUNT_NOFOLLOW | flags)
        except OSError as error:
            is_busy = error.errno == errno.EBUSY
            if is_busy and time.monotonic() < deadline:
                time.sleep(_PASSING_S / 10)
                continue
            hint = "a process uses it, or something is mounted below it; end that first" if is_busy else ""
            raise KernelError.from_os(f"umount2({target})", error, hint=hint) from None
        return
