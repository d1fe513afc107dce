"""A mount with all mounts below it: listed, written as text, and restored in its flags. mount_setattr(2)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from scplan.errors import KernelError
from scplan.linux.mounts.mountinfo import Mount, escape, unescape
from scplan.linux.paths.rooted_path import BENEATH, opened
from scplan.linux.syscalls import MS_PRIVATE, MS_SLAVE, MountAttr, mount_setattr, openat2
from scplan.startup.named_tuple import NamedTuple

_FLAGS = {
    "ro": MountAttr.RDONLY,
    "nosuid": MountAttr.NOSUID,
    "nodev": MountAttr.NODEV,
    "noexec": MountAttr.NOEXEC,
    "nosymfollow": MountAttr.NOSYMFOLLOW,
    "noatime": MountAttr.NOATIME,
    "nodiratime": MountAttr.NODIRATIME,
}
_ALL_FLAGS = int(
    MountAttr.RDONLY
    | MountAttr.NOSUID
    | MountAttr.NODEV
    | MountAttr.NOEXEC
    | MountAttr.NOSYMFOLLOW
    | MountAttr.ATIME
    | MountAttr.NODIRATIME
)


class Outer(NamedTuple):
    """A read-only mount of scplan: paths below its target are made in its source on the host."""

    target: str
    source: str
    identity: str


class Branch(NamedTuple):
    """One mount of a tree. `path` is its mount point below the tree's top: "/" for the top itself, "/sub/deep"."""

    path: str
    mount: Mount

    def is_like(self, other: Branch) -> bool:
        """True if both are the same mount at the same path, except for the mount's ID."""
        one, two = self.mount, other.mount
        return (self.path, one.device, one.root, one.options, one.shared, one.master, one.unbindable) == (
            other.path,
            two.device,
            two.root,
            two.options,
            two.shared,
            two.master,
            two.unbindable,
        )


def tree_of(mounts: Iterable[Mount], top_id: int) -> list[Branch]:
    """Tree of the mount with this ID, parents first; empty if the ID is not among `mounts`."""
    found: list[Branch] = []
    inside: set[int] = set()
    prefix = ""
    for mount in mounts:
        if mount.id == top_id:
            prefix = mount.point.rstrip("/")
            found.append(Branch("/", mount))
            inside.add(mount.id)
        elif mount.parent in inside:
            inside.add(mount.id)
            found.append(Branch(mount.point.removeprefix(prefix) or "/", mount))
    return found


def are_alike(one: Sequence[Branch], other: Sequence[Branch]) -> bool:
    """True if two trees are equal except for the IDs of their mounts."""
    pairs = zip(sorted(one, key=_by_path), sorted(other, key=_by_path), strict=False)
    return len(one) == len(other) and all(first.is_like(second) for first, second in pairs)


def _by_path(branch: Branch) -> str:
    return branch.path


def written(tree: Iterable[Branch]) -> tuple[str, ...]:
    """The tree as texts, one per mount: `ro,nosuid slave 8:1 /root/of/it /path`."""
    return tuple(
        " ".join(
            (
                branch.mount.options,
                branch.mount.propagation,
                branch.mount.device,
                os.fsdecode(escape(branch.mount.root)),
                os.fsdecode(escape(branch.path)),
            )
        )
        for branch in tree
    )


class Remembered(NamedTuple):
    """A mount, as a text of `written` holds it."""

    options: str
    propagation: str
    device: str
    root: str
    path: str

    @property
    def flags(self) -> int:
        """MOUNT_ATTR_* of the options."""
        return flags_of(self.options)


def remembered(texts: Iterable[str]) -> list[Remembered]:
    """Mounts of a tree from texts of `written`; texts in other forms are ignored."""
    found = []
    for text in texts:
        words = text.split(" ")
        if len(words) == 5:
            options, propagation, device, root, path = words
            found.append(Remembered(options, propagation, device, unescape(root), unescape(path)))
    return found


def flags_of(options: str) -> int:
    """MOUNT_ATTR_* of a mount's options. Options without noatime and relatime stand for strictatime."""
    words = options.split(",")
    flags = 0
    for word in words:
        flags |= int(_FLAGS.get(word, 0))
    if "noatime" not in words and "relatime" not in words:
        flags |= int(MountAttr.STRICTATIME)
    return flags


def set_flags(fd: int, flags: int, *, name: str) -> None:
    """Set exactly these flags on an opened mount; the mounts below keep theirs."""
    # The atime modes are one field of several bits, which must be cleared to be set. mount_setattr(2)
    mount_setattr(fd, set_flags=flags, clear_flags=_ALL_FLAGS & ~flags | MountAttr.ATIME, recursive=False, name=name)


def propagation_of(tree: Iterable[Branch]) -> tuple[tuple[str, int], ...]:
    """(path, MS_PRIVATE or MS_SLAVE) of each mount of a tree that is not shared."""
    return tuple(
        (branch.path, MS_SLAVE if branch.mount.master else MS_PRIVATE) for branch in tree if not branch.mount.shared
    )


def restore_propagation(top_fd: int, propagation: Iterable[tuple[str, int]], *, name: str) -> None:
    """Restore the propagation of mounts that became shared when their tree was attached below a shared mount."""
    for path, kind in propagation:
        with opened(open_below(top_fd, path)) as fd:
            mount_setattr(fd, propagation=kind, recursive=False, name=name + path)


def open_below(top_fd: int, path: str) -> int:
    """O_PATH fd of the root of a mount in the tree whose top is opened; `path` as in Branch.

    Symlinks are not followed. Raises KernelError.
    """
    try:
        if path == "/":
            return os.dup(top_fd)
        return openat2(top_fd, path[1:], os.O_PATH | os.O_NOFOLLOW, resolve=BENEATH)
    except OSError as error:
        raise KernelError.from_os(f"openat2({path})", error) from None
