"""Findings about planned bind mounts: refusals by the container, and mounts of others that go along.

Paths are looked up by linux/paths/lookup.py, which never waits for a file system of the container. Sources: openat2(2),
proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

from scplan.kinds.kind import Foreseen, Unsuitable
from scplan.kinds.mount.live import hiding, is_covered, tree_at
from scplan.kinds.mount.record import BindMount
from scplan.kinds.mount.source_tree import of_others, source_tree
from scplan.kinds.paths import shows_again
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.mounts.mount_tree import Branch, remembered
from scplan.linux.mounts.mountinfo import Mount, is_removed
from scplan.linux.paths.real_path import real_path
from scplan.linux.syscalls import FileStatus
from scplan.model.address import Address
from scplan.model.change import Action, Change
from scplan.model.resource import Resource

_CREATING = (Action.CREATE, Action.REPLACE)
_MAX_NAMED = 8


def foreseen(
    container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
) -> Iterable[Foreseen]:
    """Findings about the changes of one running container, which has mounts and a root of its own."""
    look = _Look(container, host, changes, after)
    for change in changes:
        try:
            if isinstance(change.owned, BindMount):
                _check_uncovered(container, change.owned, is_there=change.before is not None)
            for inner in look.left_out_inside(change):
                _check_uncovered(container, inner, is_there=True)
            if change.action in _CREATING and isinstance(change.after, BindMount):
                look.check_target(change.address, change.before, change.after)
            yield from look.what_goes_along(change)
        except Unsuitable as error:
            yield Foreseen(change.address, refused=error)


def _check_uncovered(container: Container, mount: BindMount, *, is_there: bool) -> None:
    """Raise Unsuitable if others have mounted something on top of the mount, or on a directory above its target."""
    if is_there and is_covered(container, mount):
        raise Unsuitable(
            f"others have mounted something on top of {mount.target}",
            hint=f"unmount that first, in the container (`umount {mount.target}`), or stop it",
        )
    if (point := hiding(container, mount)) is not None:
        raise Unsuitable(
            f"others have mounted something on {point}, which hides {mount.target}",
            hint=f"unmount that first, in the container (`umount {point}`), or stop it",
        )


class _Look:
    """The container as it is, and as it will be after the plan."""

    def __init__(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> None:
        self._container = container
        self._on_host = host.mounts()
        # Peer groups of the host: mounts on a member propagate to the host. mount_namespaces(7)
        self._groups = frozenset(mount.shared for mount in self._on_host) - {0}
        self._mounts = container.mounts()
        self._changes = changes
        self._after = after
        self._made = {change.address for change in changes if change.action in _CREATING}
        self._real: dict[str, str] = {}

    # targets

    def check_target(self, address: Address, before: Resource | None, mount: BindMount) -> None:
        """Raise Unsuitable if nothing can be mounted on the target after the mount `before` is taken out."""
        outer = self._outer(address, mount.target)
        if outer is not None and outer[0] in self._made:
            self._check_in_source(outer[1], mount)
            return
        if shows_again(self._container, mount.target, self._changes, self._after):
            return
        self._check_aliases(address, mount.target)
        there = self._container.status(mount.target)
        own = tree_at(self._container, before) if isinstance(before, BindMount) else []
        if own and there is not None:
            assert isinstance(before, BindMount)
            if mount.target not in (before.made or ()):  # else the target is made again
                _check_types(mount, there.st_mode)
            # The new mount will lie on the mount that the old one lies on.
            self._check_shared(own[0].mount.parent, mount.target)
        elif there is not None:
            _check_types(mount, there.st_mode)
            self._check_shared(there.mount_id, mount.target)
        else:
            self._check_can_be_made(mount, outer[1] if outer is not None else None)

    def _outer(self, address: Address, target: str) -> tuple[Address, BindMount] | None:
        """The innermost entry that the target will lie in, with its address."""
        around = [
            (place, one)
            for place, one in self._after.items()
            if isinstance(one, BindMount) and place != address and target.startswith(f"{one.target}/")
        ]
        return max(around, key=lambda pair: len(pair[1].target), default=None)

    def _check_in_source(self, outer: BindMount, mount: BindMount) -> None:
        """Raise Unsuitable if a target in a planned mount can't be made in the source of that mount."""
        source = source_tree(self._on_host, outer.source)
        # A clone of a shared mount is in its peer group, so that mounts on the clone propagate. mount_namespaces(7)
        if outer.propagation.endswith("shared") and source.top is not None and source.top.shared:
            raise _shared(mount.target, f"{outer.source} is in a shared mount of the host, and so is {outer.target}")
        inner = outer.source.rstrip("/") + mount.target.removeprefix(outer.target)
        if os.path.lexists(inner):
            _check_types(mount, os.lstat(inner).st_mode)
            return
        above = os.path.dirname(inner)
        while not os.path.lexists(above) and above != outer.source:
            above = os.path.dirname(above)
        if os.path.lexists(above) and not os.path.isdir(above):
            raise Unsuitable(f"{above} on the host, which {mount.target} will be below, is no directory")
        if not os.path.lexists(above):  # an absent source: `create_source` makes it, owned by the host's root
            if not outer.read_only and self._container.has_user_namespace:
                raise _not_writable(mount.target, above, inner)
            return
        top = source_tree(self._on_host, above).top
        if top is not None and (top.read_only or top.filesystem_read_only):
            raise _read_only(mount.target, f"{above} is read-only on the host")
        if not outer.read_only and not self._container.may_make_in(above):
            raise _not_writable(mount.target, above, inner)

    def _check_can_be_made(self, mount: BindMount, outer: BindMount | None) -> None:
        """Raise Unsuitable if the absent target can't be made in the container."""
        directory, parent = self._nearest_directory(mount.target)
        self._check_shared(parent.mount_id, mount.target)
        there = self._mount_of(parent.mount_id)
        if there is not None and there.filesystem in ("proc", "sysfs"):
            raise Unsuitable(f"{mount.target} leads into {there.point}, which belongs to the kernel")
        if there is not None and there.filesystem_read_only:
            raise _read_only(mount.target, f"the file system of {directory} is read-only")
        if outer is not None and outer.read_only:
            # The mount point is made in the source, past the read-only mount.
            self._check_in_source(outer.replace(propagation="private"), mount)
        elif there is not None and there.read_only:
            raise _read_only(mount.target, f"{there.point} is mounted read-only in the container")
        elif not self._container.may_make_at(parent):
            raise Unsuitable(
                f"the root of container {self._container.name} can't make {mount.target}: {directory} is not its own",
                hint="make the target on the host, or choose one that is there",
            )

    def _nearest_directory(self, target: str) -> tuple[str, FileStatus]:
        """The innermost existing directory above the target. Raises Unsuitable for another kind of file there."""
        directory = os.path.dirname(target)
        while True:
            # "/." follows a symlink to a directory, as lookups in the container do.
            there = self._container.status(f"{directory.rstrip('/')}/.")
            if there is not None:
                return directory, there
            itself = self._container.status(directory)
            if itself is not None:
                kind = "a symlink that leads nowhere" if stat.S_ISLNK(itself.st_mode) else "no directory"
                raise Unsuitable(
                    f"{directory} in the container is {kind}: {target} can't be made",
                    hint="choose another target, or remove what is there",
                )
            directory = os.path.dirname(directory)

    def _check_shared(self, mount_id: int, target: str) -> None:
        """Raise Unsuitable if a mount on this one would propagate to the host: both are in one peer group."""
        mount = self._mount_of(mount_id)
        if mount is not None and mount.shared in self._groups:
            raise _shared(target, f"it lies in a mount that container {self._container.name} shares with the host")

    def _mount_of(self, mount_id: int) -> Mount | None:
        return next((mount for mount in self._mounts if mount.id == mount_id), None)

    def _check_aliases(self, address: Address, target: str) -> None:
        """Raise Unsuitable if symlinks make two targets one place, or change which of them lies inside the other."""
        real = self._real_of(target)
        for place, one in self._after.items():
            other = getattr(one, "target", None)
            if other is None or place == address:
                continue
            there = self._real_of(other)
            if there == real:
                raise Unsuitable(f"{target} and {other} are the same place in the container", hint="keep one of them")
            if _is_below(real, there) != _is_below(target, other) or _is_below(there, real) != _is_below(other, target):
                raise Unsuitable(
                    f"symlinks in the container lead {target} to {real}, and {other} to {there}",
                    hint="name the paths that they lead to as targets",
                )

    def _real_of(self, target: str) -> str:
        if target not in self._real:
            self._real[target] = real_path(self._container, target)
        return self._real[target]

    # mounts of others

    def what_goes_along(self, change: Change) -> Iterator[Foreseen]:
        """Mounts of others that a change takes out, covers, or can't restore. Raises Unsuitable."""
        before, after = change.before, change.after
        if isinstance(before, BindMount) and self._takes_out(change):
            live = tree_at(self._container, before)
            if live and live[0].mount.unbindable:
                raise Unsuitable(
                    f"the mount at {before.target} is unbindable: no clone of it could be kept for an undo",
                    hint=f"make it private in the container: mount --make-private {before.target}",
                )
            if live and is_removed(live[0].mount):
                yield Foreseen(
                    change.address, lost=(f"what is mounted at {before.target}, which the host has removed",)
                )
            found = of_others(live, source_tree(self._on_host, before.source), self._nested(before.target))
            yield self._about_others(change, before, found)
        if isinstance(after, BindMount) and change.action in _CREATING:
            lost = self._not_brought_back(after)
            if lost:
                yield Foreseen(change.address, lost=_named(lost))
        if isinstance(after, BindMount) and change.action is Action.CREATE:
            covered = [mount.point for mount in self._mounts if _is_below(mount.point, after.target)]
            covered = [point for point in covered if point[len(after.target) :] not in self._nested(after.target)]
            if covered:
                yield Foreseen(
                    change.address,
                    warning=(
                        f"{after.target} will cover what others have mounted at {', '.join(covered[:_MAX_NAMED])}",
                        "it shows again when the mount is removed; choose another target where it must stay in sight",
                    ),
                )

    def left_out_inside(self, change: Change) -> Iterator[BindMount]:
        """scplan's mounts below a mount that a change takes out or covers, if their own changes may be left out.

        Such a change is left out if it is refused and its entry has `required: false`. The outer change would then take
        these mounts along, with the mounts of others on them.
        """
        outer = change.before if isinstance(change.before, BindMount) else change.after
        if not isinstance(outer, BindMount) or not (self._takes_out(change) or change.action is Action.CREATE):
            return
        for other in self._changes:
            is_optional = other.after is not None and getattr(other.after, "required", True) is False
            if is_optional and isinstance(other.owned, BindMount) and _is_below(other.owned.target, outer.target):
                yield other.owned

    def _takes_out(self, change: Change) -> bool:
        """True if the change unmounts the mount.

        If another user namespace owns the container's mounts, their read-only flag is locked: a change of `read_only`
        mounts anew. mount_namespaces(7)
        """
        if change.action in (Action.DELETE, Action.REPLACE):
            return True
        return (
            change.action is Action.UPDATE
            and "read_only" in change.changed
            and self._container.mount_owner_fd is not None
        )

    def _nested(self, target: str) -> list[str]:
        """Paths below the target at which entries are, or were."""
        resources = [*self._after.values(), *(change.before for change in self._changes)]
        targets = [getattr(one, "target", None) for one in resources]
        return [one[len(target) :] for one in targets if one is not None and _is_below(one, target)]

    def _about_others(self, change: Change, before: BindMount, found: Sequence[Branch]) -> Foreseen:
        """The finding about mounts of others below a mount that is taken out.

        They are restored if the replacement of the mount has a place for them, else lost.
        """
        after = change.after
        again, lost = list[str](), list[str]()
        for branch in found:
            has_place = isinstance(after, BindMount) and os.path.exists(after.source.rstrip("/") + branch.path)
            (again if has_place else lost).append(before.target + branch.path)
        return Foreseen(change.address, put_back=_named(again), lost=_named(lost))

    def _not_brought_back(self, after: BindMount) -> list[str]:
        """Mounts that an earlier apply took out with the mount, and that are not below its source."""
        source = source_tree(self._on_host, after.source)
        known = {(one.path, one.mount.device, one.mount.root) for one in source.below}
        nested = self._nested(after.target)
        former = remembered(after.tree or ())[1:]
        return [
            after.target + one.path
            for one in former
            if (one.path, one.device, one.root) not in known and one.path not in nested
        ]


def _check_types(mount: BindMount, there: int) -> None:
    """Raise Unsuitable for a file on a directory, a directory on a file, or a symlink as the target."""
    if stat.S_ISLNK(there):
        raise Unsuitable(
            f"{mount.target} is a symlink in the container", hint="name the path that it leads to as the target"
        )
    is_directory = not os.path.lexists(mount.source) or os.path.isdir(mount.source)
    if is_directory != stat.S_ISDIR(there):
        kinds = ("a directory", "a file") if is_directory else ("a file", "a directory")
        raise Unsuitable(
            f"{mount.source} is {kinds[0]}, but {mount.target} in the container is {kinds[1]}",
            hint="choose another target, or remove what is there",
        )


def _shared(target: str, why: str) -> Unsuitable:
    return Unsuitable(
        f"what is mounted on {target} would be mounted on the host too: {why}",
        hint="choose a target outside of it, or give the mount that it lies in the propagation rslave",
    )


def _not_writable(target: str, directory: str, inner: str) -> Unsuitable:
    return Unsuitable(
        f"{target} lies in {directory} of the host, where the container's root may make nothing",
        hint=f"make {inner} there, or choose another target",
    )


def _read_only(target: str, why: str) -> Unsuitable:
    return Unsuitable(f"{target} is not there, and can't be made: {why}", hint="choose a target that is there")


def _is_below(path: str, top: str) -> bool:
    return path.startswith(f"{top.rstrip('/')}/")


def _named(points: Sequence[str]) -> tuple[str, ...]:
    """`the mount of others at /data/sub`, with the number of further mounts."""
    if not points:
        return ()
    shown = ", ".join(points[:_MAX_NAMED])
    more = f" and {len(points) - _MAX_NAMED} more" if len(points) > _MAX_NAMED else ""
    return (f"mount{'s' if len(points) > 1 else ''} of others at {shown}{more}",)
