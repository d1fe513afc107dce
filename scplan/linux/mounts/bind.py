"""Trees of the host attached in a running container: the target is made there, mounted on, and taken away again.

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
from scplan.linux.mounts.mount_tree import Branch, are_alike, flags_of, propagation_of, restore_propagation, tree_of
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
    """Of a target and the directories above it, those that are not there, outermost first."""
    if container.status(target) is not None:
        return ()
    return (*missing_directories(container.status, target), target)


class Outer(NamedTuple):
    """A read-only mount of scplan: what has to be made below its target is made in its source on the host."""

    target: str
    source: str
    identity: str


class Missing(NamedTuple):
    """Paths to be made before something is mounted: directories above a target, and maybe itself, outermost first.

    Those that lie in a mount of `through`, of which the innermost comes first, are made in its source. `attributes` are
    owner, mode and extended attributes of paths that were there before, as made_files writes them.
    """

    paths: tuple[str, ...]
    is_directory: bool
    through: tuple[Outer, ...] = ()
    attributes: tuple[str, ...] = ()

    def make(self, root_fd: int, target: str) -> None:
        """Makes them with the ids of this process. Raises KernelError."""
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
        """Makes those of `through`, for the container's root, and gives all of them their attributes."""
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
    """The mount in whose source the path is to be made."""
    return next((one for one in through if path.startswith(f"{one.target}/")), None)


def _open_source(outer: Outer) -> int | None:
    """An O_PATH fd of what is mounted, on the host; None when its path is another file's by now."""
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
    """Mounts a detached tree on the target, unless it is there already; `source` says in errors what it is.

    What is `missing` is made before, as the container's root. `tree` is an fd, or makes one in the step, before that
    enters the container. With `finish`, unless `locks` is false, the tree is locked where the container's root could
    change mounts: it can neither lift its flags nor unmount parts of it. `finish(tree)` then sets what locking and
    mounting lose. What can be called is pickled.
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
    # To lock a tree takes the process into the container's user namespace.
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
                # Attached by a process that was killed, perhaps before it could finish.
                container.enter()
                self._finish(fd)
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
    through: tuple[Outer, ...] = (),
    lazy: bool = False,
    parked: str = "",
) -> None:
    """Unmounts what is mounted on the target, if anything is and `is_ours(container, fd)`; removes what was `made`.

    Before, a clone of it is kept at `parked`. Lazy: who has it open keeps it; else that is a KernelError EBUSY. A tree
    with mounts in it is always taken lazily, and first made private: the unmounting of the mounts in it would spread
    to the host. They are locked together with it where the container has a user namespace, and can't be unmounted one
    by one. `through` as in Missing. `is_ours` is pickled.
    """
    container.check_enterable()
    detaching = _Detaching(target, is_ours, made, through, lazy, parked)
    container.bounded(detaching.take, what=f"unmount {target} in container {container.name}")


class _Detaching(NamedTuple):
    """The step that unmounts."""

    target: str
    is_ours: Callable[[Container, int], bool]
    made: tuple[str, ...]
    through: tuple[Outer, ...]
    lazy: bool
    parked: str

    def take(self, container: Container) -> None:
        parent = self._prepared(container)
        if parent is None and not self._has_left(container):
            return  # to enter takes privileges that an undo of what was never made can do without
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
                elif outer in sources:  # else the source was replaced: what was made in it went with it
                    remove_made(sources[outer], (path.removeprefix(outer.target),))

    def _has_left(self, container: Container) -> bool:
        """True if any of the files and directories that were made for the target is there."""
        return any(
            _outer_of(path, self.through) is not None or stat_in_root(container.root_fd, path) is not None
            for path in self.made
        )

    def _unmount(self, parent: tuple[int, bool] | None) -> None:
        if parent is not None:
            with opened(parent[0]) as directory:
                # By name in this directory: what is mounted there can't be renamed in this namespace.
                os.fchdir(directory)
                _unmount(os.path.basename(self.target), self.target, MNT_DETACH if self.lazy or parent[1] else 0)

    def _prepared(self, container: Container) -> tuple[int, bool] | None:
        """(fd of the directory that holds the target, whether mounts are in the tree); None when it is not ours.

        A clone is kept by then, and a tree that spreads does no more.
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
                    mount_setattr(fd, propagation=MS_PRIVATE, recursive=True, name=self.target)
        return parent, has_mounts


def _cloned(container: Container, fd: int, target: str) -> int:
    """A detached clone of the live tree at an opened path of the container."""
    with container.mounts_entered():
        return open_tree_fd(fd, recursive=True, name=target)


def _ours(container: Container, target: str, is_ours: Callable[[Container, int], bool]) -> tuple[int, int] | None:
    """(fd of the directory that holds the target, fd of what is mounted there); None when it is not ours."""
    try:
        with ExitStack() as stack:
            parent, name = stack.enter_context(parent_of(container.root_fd, target))
            fd = openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=BENEATH)
            stack.callback(os.close, fd)
            if not statx(fd).is_mount_root or not is_ours(container, fd):
                return None
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
    """Mounts a clone of the tree that is kept at `parked` on the target, with its flags, its peers and all in it.

    Does nothing where the tree itself was never taken out. One that was changed since is unmounted first.
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
    """A detached clone of the tree that is kept at a place."""
    fd = open_parked(place)
    if fd is None:
        raise ScplanError(f"nothing is kept at {place} any more")
    with opened(fd):
        return open_tree_fd(fd, recursive=True, name=place)


def _is_there(container: Container, target: str, is_ours: Callable[[Container, int], bool], kept: list[Branch]) -> bool:
    """True if the tree at the target is the one of which a clone is kept, unchanged."""
    found = _ours(container, target, is_ours)
    if found is None:
        return False
    with opened(found[0]), opened(found[1]) as fd:
        live = tree_of(container.mounts(), statx(fd).mount_id)
        # What is kept of a file that was removed is a copy: the mount itself was not taken out.
        is_original = is_removed(live[0].mount) and not is_removed(kept[0].mount)
        return is_original or are_alike(kept, live)


def _restore_propagation(tree: int, propagation: tuple[tuple[str, int], ...], name: str) -> None:
    restore_propagation(tree, propagation, name=name)


def _unmount(name: str, target: str, flags: int) -> None:
    """Unmounts what is at `name`. Waits a moment for who only looks at it, as another scplan does, and monitoring."""
    deadline = time.monotonic() + _PASSING_S
    while True:
        try:
            umount2(name, UMOUNT_NOFOLLOW | flags)
        except OSError as error:
            is_busy = error.errno == errno.EBUSY
            if is_busy and time.monotonic() < deadline:
                time.sleep(_PASSING_S / 10)
                continue
            hint = "a process uses it, or something is mounted below it; end that first" if is_busy else ""
            raise KernelError.from_os(f"umount2({target})", error, hint=hint) from None
        return
