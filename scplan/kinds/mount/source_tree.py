"""Mounts below a live bind mount: those that came with its source, and those of others. mountinfo(5)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence

from scplan.kinds.mount.record import BindMount
from scplan.linux.host import file_identity
from scplan.linux.mounts.mount_tree import Branch, Outer
from scplan.linux.mounts.mountinfo import Mount
from scplan.startup.named_tuple import NamedTuple

_ACCESS = ("ro", "rw")
_ATIMES = ("noatime", "nodiratime", "relatime")
# As the kernel lists them: show_mnt_opts() of fs/proc_namespace.c.
_ORDER = ("nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "nosymfollow", "idmapped")


class SourceTree(NamedTuple):
    """Mounts of the host that a clone of a source is made of.

    `top` is the mount that the source lies in, None if no mount shows it; `below` are the mounts below the source, with
    paths relative to it.
    """

    top: Mount | None
    below: tuple[Branch, ...]

    def brought(self, live: Iterable[Branch]) -> list[Branch]:
        """Mounts below a live mount that came with the source, or propagated to it later."""
        known = {(branch.path, branch.mount.device, branch.mount.root) for branch in self.below}
        return [branch for branch in live if (branch.path, branch.mount.device, branch.mount.root) in known]

    def is_read_only(self, path: str) -> bool:
        """True if the host's own mount at this path of the tree is read-only."""
        if path == "/":
            return self.top is not None and self.top.read_only
        return any(branch.path == path and branch.mount.read_only for branch in self.below)


def source_tree(mounts: Sequence[Mount], source: str) -> SourceTree:
    """The tree at a path of the host, symlinks followed. Hidden mounts are left out."""
    source = os.path.realpath(source)
    top = _mount_of(mounts, source)
    if top is None:
        return SourceTree(None, ())
    prefix = source.rstrip("/")
    inside, below = {top.id}, list[Branch]()
    for mount in mounts:
        # Unbindable mounts are not cloned. mount_namespaces(7)
        if mount.parent in inside and mount.point.startswith(f"{prefix}/") and not mount.unbindable:
            inside.add(mount.id)
            below.append(Branch(mount.point.removeprefix(prefix), mount))
    return SourceTree(top, tuple(below))


def _mount_of(mounts: Sequence[Mount], path: str) -> Mount | None:
    """The mount that a path without symlinks lies in.

    Walks from the root, to the last of the mounts that are stacked on each directory.
    """
    by_place = {(mount.parent, mount.point): mount for mount in mounts}
    current = next((mount for mount in reversed(mounts) if mount.point == "/"), None)
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        point = "/" + "/".join(parts[:depth])
        while current is not None and (current.id, point) in by_place:
            current = by_place[(current.id, point)]
    return current


def flags_text(mount: Mount) -> str:
    """Options of a mount without ro and rw: "nosuid,nodev,relatime"."""
    return ",".join(word for word in mount.options.split(",") if word not in _ACCESS)


def submount_text(branch: Branch) -> str:
    """`/sub nosuid,relatime`."""
    return f"{branch.path} {flags_text(branch.mount)}"


def submount_path(text: str) -> str:
    """Path in a text of `submount_text`."""
    return text.rpartition(" ")[0]


def of_others(live: Sequence[Branch], source: SourceTree, nested: Collection[str]) -> list[Branch]:
    """Topmost mounts of others below a live mount: not of its source, and not at or below paths of entries."""
    brought = {branch.mount.id for branch in source.brought(live)}
    found: list[Branch] = []
    hidden: set[int] = set()
    for branch in live[1:]:
        if branch.mount.parent in hidden or any(f"{branch.path}/".startswith(f"{path}/") for path in nested):
            hidden.add(branch.mount.id)
        elif branch.mount.id not in brought:
            hidden.add(branch.mount.id)
            found.append(branch)
    return found


def merged_flags(there: str, wanted: str) -> str:
    """Flags of a mount that also gets those of another one: restrictions stay, access times change."""
    mine, theirs = there.split(","), wanted.split(",")
    if not wanted or set(mine) == set(theirs):
        return there
    kept = {word for word in mine if word not in _ATIMES} | set(theirs)
    return ",".join(word for word in _ORDER if word in kept)


def outer_mounts(entries: Iterable[BindMount], target: str) -> tuple[Outer, ...]:
    """The read-only entry that a target lies in, in whose source the mount point has to be made; else nothing."""
    around = [one for one in entries if target.startswith(f"{one.target}/")]
    innermost = max(around, key=lambda one: len(one.target), default=None)
    if innermost is None or not innermost.read_only:
        return ()
    identity = innermost.source_identity or _identity(innermost.source)
    return (Outer(innermost.target, innermost.source, identity),)


def _identity(path: str) -> str:
    try:
        return file_identity(os.stat(path))
    except FileNotFoundError:
        return ""
