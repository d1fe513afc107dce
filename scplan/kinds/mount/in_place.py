"""Attributes of bind mounts: set on a clone before it is attached, or changed in place. mount_setattr(2)."""

from __future__ import annotations

import os

from scplan.errors import KernelError, ScplanError
from scplan.kinds.mount.live import tree_at
from scplan.kinds.mount.record import PROPAGATION, BindMount
from scplan.kinds.mount.source_tree import SourceTree, source_tree, submount_path
from scplan.linux.container import Container
from scplan.linux.host import Host, file_identity
from scplan.linux.mounts.mount_tree import Branch, flags_of, open_below, remembered, set_flags, tree_of
from scplan.linux.paths.rooted_path import open_in_root, opened
from scplan.linux.syscalls import (
    AT_FDCWD,
    MountAttr,
    Resolve,
    mount_setattr,
    open_tree,
    open_tree_fd,
    openat2,
    statx,
)

_RDONLY = int(MountAttr.RDONLY)


def cloned_source(mount: BindMount) -> int:
    """A detached clone of the mount's source. Raises ScplanError if the source is not the planned file."""
    if mount.leads_to is not None:
        tree = _clone_without_symlinks(mount.leads_to, recursive=mount.recursive)
    else:
        tree = open_tree(mount.source, recursive=mount.recursive)
    identity = file_identity(os.fstat(tree))
    if mount.source_identity is not None and identity != mount.source_identity:
        os.close(tree)
        raise ScplanError(f"{mount.source} is not the file any more that was planned", hint="plan again")
    if mount.source_identity is None and identity != file_identity(os.lstat(mount.leads_to or mount.source)):
        os.close(tree)
        raise ScplanError(f"{mount.source} was absent when it was planned, and is a symlink now")
    return tree


def _clone_without_symlinks(path: str, *, recursive: bool) -> int:
    """A detached clone of the tree at a path. With a symlink in the path openat2(2) fails with ELOOP."""
    try:
        fd = openat2(AT_FDCWD, path, os.O_PATH, resolve=int(Resolve.NO_SYMLINKS))
    except OSError as error:
        raise KernelError.from_os(f"openat2({path}, RESOLVE_NO_SYMLINKS)", error, hint="plan again") from None
    with opened(fd):
        return open_tree_fd(fd, recursive=recursive, name=path)


def set_attributes(tree: int, mount: BindMount) -> None:
    """Set the attributes of a clone of the source. Flags of the host's own mount are never cleared."""
    if mount.read_only:
        mount_setattr(tree, set_flags=_RDONLY, recursive=mount.recursive, name=mount.target)
    for path, options in _wanted_flags(mount):
        try:
            with opened(open_below(tree, path)) as fd:
                if statx(fd).is_mount_root:
                    _add_flags(fd, options, name=mount.target)
        except KernelError:
            if path == "/":
                raise
            continue  # the host has removed the directory, and with it the mount there
    set_propagation(tree, mount)


def _wanted_flags(mount: BindMount) -> list[tuple[str, str]]:
    """(path, options) of the mounts in the tree that had flags of their own before."""
    if mount.tree:
        return [(one.path, one.options) for one in remembered(mount.tree)]
    return [("/", mount.flags)] if mount.flags else []


def _add_flags(fd: int, options: str, *, name: str) -> None:
    """Add the flags of `options` to a mount, and set its access times."""
    # Access times are a field, not flags: setting one needs MOUNT_ATTR__ATIME in attr_clr. mount_setattr(2)
    mount_setattr(fd, set_flags=flags_of(options), clear_flags=int(MountAttr.ATIME), recursive=False, name=name)


def set_propagation(fd: int, mount: BindMount) -> None:
    """Set the propagation of an opened mount, and of the mounts below it if the value is recursive ("rslave")."""
    word = mount.propagation
    everywhere = word not in PROPAGATION
    propagation = PROPAGATION[word.removeprefix("r") if everywhere else word]
    mount_setattr(fd, propagation=propagation, recursive=everywhere, name=mount.target)


def change(container: Container, before: BindMount, after: BindMount) -> None:
    """For a step: change the flags of a live mount in place, and those of mounts below it that came with its source."""
    with opened(open_in_root(container.root_fd, after.target)) as top:
        status = statx(top)
        if after.source_identity not in (None, file_identity(status)):
            raise ScplanError(f"{after.target}: others have mounted something there", hint="plan again")
        live = tree_of(container.mounts(), status.mount_id)
        wanted = _flags_after(live, source_tree(container.host.mounts(), after.source), before, after)
        container.enter()
        for branch in live:
            flags = wanted.get(branch.mount.id)
            if flags is None or flags == flags_of(branch.mount.options):
                continue
            with opened(open_below(top, branch.path)) as fd:
                if statx(fd).mount_id != branch.mount.id:
                    raise ScplanError(
                        f"{after.target}{branch.path}: something was mounted on top of it meanwhile", hint="plan again"
                    )
                set_flags(fd, flags, name=after.target)


def _flags_after(live: list[Branch], source: SourceTree, before: BindMount, after: BindMount) -> dict[int, int]:
    """New flags of the mounts of a live tree, by mount ID."""
    if after.tree:
        former = {(one.path, one.device, one.root): one.flags for one in remembered(after.tree)}
        keys = {one.mount.id: (one.path, one.mount.device, one.mount.root) for one in live}
        return {number: former[key] for number, key in keys.items() if key in former}
    own = [live[0], *source.brought(live[1:])]
    promised = {submount_path(text): text.rpartition(" ")[2] for text in after.submounts or ()}
    promised["/"] = after.flags or ""
    # Mounts that scplan has made read-only: only their flag is cleared.
    lifted = {"/", *(before.made_read_only or ())}
    wanted = {}
    for branch in own:
        flags = flags_of(branch.mount.options)
        if promised.get(branch.path):
            flags = flags & _RDONLY | flags_of(promised[branch.path])
        if after.read_only:
            flags |= _RDONLY
        elif branch.path in lifted and not source.is_read_only(branch.path):
            flags &= ~_RDONLY
        wanted[branch.mount.id] = flags
    return wanted


def missing_submounts(container: Container, host: Host, mount: BindMount) -> list[str]:
    """Paths of submounts of the source that the host still has and the container lacks, outermost first."""
    if not mount.submounts:
        return []
    source = source_tree(host.mounts(), mount.source)
    on_host = {branch.path for branch in source.below}
    there = {branch.path for branch in source.brought(tree_at(container, mount)[1:])}
    found: list[str] = []
    for text in mount.submounts:
        path = submount_path(text)
        # A mount below another missing one comes back with that.
        if path in on_host and path not in there and not any(path.startswith(f"{outer}/") for outer in found):
            found.append(path)
    return found


def finish_submount(tree: int, mount: BindMount) -> None:
    """Set the mount's attributes on a submount of its source that is mounted again."""
    if mount.read_only:
        mount_setattr(tree, set_flags=_RDONLY, recursive=True, name=mount.target)
    set_propagation(tree, mount)
