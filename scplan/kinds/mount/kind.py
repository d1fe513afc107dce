"""Bind mounts of host files and directories. Kernel: open_tree(2), mount_setattr(2), move_mount(2), umount2(2).

The tree is cloned and given its attributes on the host, detached and invisible. A step inside the container's mount
namespace then attaches it to a target that was opened by fd: there is no moment with wrong attributes, and no path that
the container could bend. A mount that is taken out is kept as a clone until the apply has ended: its undo attaches this
clone, with all its kernel state.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from scplan.kinds.kind import Described, Foreseen, Hears, Kind, Target, Unsuitable
from scplan.kinds.mount.bind_sources import BindSources, is_of_runtime
from scplan.kinds.mount.live import (
    as_found,
    tree_behind_symlink,
    visible_propagation,
)
from scplan.kinds.mount.record import WORDS, BindMount
from scplan.kinds.paths import below, check_target, covering, identity_of
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.mounts.mount_tree import tree_of
from scplan.linux.mounts.mountinfo import REMOVED, Mount, escape
from scplan.model.address import Address
from scplan.model.change import Change, Disruption
from scplan.model.live import HostFacts
from scplan.model.resource import Resource

if TYPE_CHECKING:
    from scplan.model.provided import Provided

MAX_MOUNTS = 128


class MountKind(Kind[BindMount]):
    name = "mount"
    section = "mounts"
    record = BindMount
    lives_in = "mnt"
    hears = Hears.MOUNTS

    # configuration

    def parse_short(self, text: str) -> dict[str, str]:
        """`source:target[:options]`; options are ro, rw and a propagation, separated by commas."""
        source, colon, rest = text.partition(":")
        target, _, options = rest.partition(":")
        if not colon or not target:
            raise ValueError(f"{text!r} is not of the form source:target[:options]")
        values = {"source": source, "target": target}
        for option in options.split(",") if options else ():
            key, value = _option(option)
            if values.setdefault(key, value) != value:
                raise ValueError(f"{text!r} has contradicting options")
        return values

    def normalise(self, desired: BindMount) -> BindMount:
        check_target(desired.target)
        if desired.propagation.startswith("r") and not desired.recursive:
            return desired.replace(propagation=desired.propagation[1:])
        return desired

    def identity(self, resource: BindMount) -> str:
        return identity_of(resource.target)

    def check_all(self, resources: Mapping[str, BindMount]) -> Iterable[tuple[str, str]]:
        for identity in list(resources)[MAX_MOUNTS:]:
            yield identity, f"a container can have at most {MAX_MOUNTS} mounts; this one is past them"

    # planning

    def host_paths(self, resource: BindMount) -> Iterable[str]:
        yield resource.source
        if resource.create_source:
            yield from _above(resource.source)

    def resolve(self, desired: BindMount, host: HostFacts) -> Iterable[BindMount]:
        fact = host.paths.get(desired.source)
        if fact is None and not desired.create_source:
            raise Unsuitable(
                f"the host has no {desired.source}",
                hint="make it, write `create_source: true` to have it made, or `required: false` to do without it",
                absent=True,
            )
        if fact is None or desired.create_source:
            # The source is identified by its path: its owner may make it again as another inode.
            yield desired.replace(source_identity=None, leads_to=_leads_to(desired.source, host))
            return
        yield desired.replace(source_identity=fact.identity)

    def requires(self, resource: BindMount, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        return covering(address, resource.target, others)

    def hides(self, address: Address, resource: BindMount, others: Mapping[Address, Resource]) -> Iterable[Address]:
        return below(address, resource.target, others)

    def disruption(self, before: BindMount, after: BindMount) -> tuple[Disruption, str]:
        return Disruption.NONE, ""

    def is_left_to_others(self, made: BindMount, live: BindMount | None) -> bool:
        if made.taken is None or live is None:
            return False
        if made.source_identity is None:
            return live.source.endswith(REMOVED)  # a mount of the directory before it was removed and made again
        return live.source_identity != made.source_identity

    # kernel: reading

    def read(self, container: Container, host: Host, wanted: Mapping[str, BindMount] | None) -> dict[str, BindMount]:
        if wanted is not None and not wanted:
            return {}
        if wanted is not None:
            container.refuse_host_mounts()
        points = None if wanted is None else frozenset(escape(mount.target) for mount in wanted.values())
        mounts = container.mounts(points, below=True)
        # Of the mounts that are stacked at a point, the last one is visible.
        tops: dict[str, Mount] = {mount.point: mount for mount in mounts}
        if wanted is None:
            targets = [mount.point for mount in tops.values() if mount.point != "/"]
            wanted = {identity_of(point): BindMount(source="/", target=point) for point in targets}
        found = {}
        for identity, mount in wanted.items():
            top = tops.get(mount.target)
            tree = tree_of(mounts, top.id) if top is not None else tree_behind_symlink(container, mount.target)
            # A mount that others have covered is not visible in the container.
            if tree and (there := container.status(mount.target)) is not None and there.mount_id == tree[0].mount.id:
                found[identity] = as_found(host, mount, tree, there)
        return found

    def came_with(self, resource: BindMount, provided: Provided) -> str:
        return provided.mounts.get(resource.target, "")

    def describe(self, container: Container, host: Host) -> Described[BindMount]:
        if container.shares_host_mounts:
            return Described({}, (("all mounts", "they are the host's own"),))
        sources, entries = BindSources(host), dict[str, BindMount]()
        left_out: list[tuple[str, str]] = []
        usual: list[str] = []
        tops = {mount.point: mount for mount in container.mounts() if mount.point != "/"}
        for point, top in sorted(tops.items()):
            there = container.status(point)
            if there is None or not there.is_mount_root or stat.S_ISCHR(there.st_mode) or stat.S_ISBLK(there.st_mode):
                continue  # covered, or a device node, which the device kind describes
            if is_of_runtime(point):
                usual.append(point)
                continue
            source = sources.of(top, there)
            if source is None:
                left_out.append((point, f"{top.filesystem}, not from the host's files"))
            elif _comes_along(source, point, entries):
                left_out.append((point, "comes along with the mount that it lies in"))
            else:
                entry = BindMount(source=source, target=point, read_only=top.read_only)
                entries[identity_of(point)] = entry.replace(propagation=visible_propagation(host, entry, top))
        if usual:
            left_out.append((", ".join(usual), "the runtime's own"))
        return Described(entries, tuple(left_out))

    # kernel: changing

    def foresee(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> Iterable[Foreseen]:
        if container.shares_host_mounts:
            return ()
        from scplan.kinds.mount.foresight import foreseen

        return foreseen(container, host, changes, after)

    def capture(
        self, target: Target[BindMount], before: BindMount | None, after: BindMount | None
    ) -> tuple[BindMount | None, BindMount | None]:
        from scplan.kinds.mount import changing

        return changing.capture(target, before, after)

    def create(self, target: Target[BindMount], after: BindMount) -> None:
        from scplan.kinds.mount import changing

        changing.create(target, after)

    def update(self, target: Target[BindMount], before: BindMount, after: BindMount) -> None:
        from scplan.kinds.mount import changing

        changing.update(target, before, after)

    def delete(self, target: Target[BindMount], before: BindMount) -> None:
        from scplan.kinds.mount import changing

        changing.delete(target, before)

    def release(self, state_dir: str, apply_id: str) -> None:
        from scplan.linux.mounts import parking

        parking.release(state_dir, apply_id)

    def kept_by(self, state_dir: str) -> Iterable[str]:
        from scplan.linux.mounts import parking

        return parking.kept_by(state_dir)

    def change_waiting(
        self,
        before: BindMount | None,
        after: BindMount | None,
        others: Callable[[], Collection[BindMount]],
        beside: Callable[[], Container | None],
    ) -> None:
        if before is not None and after is not None and before.source == after.source:
            return
        from scplan.kinds.mount.made_sources import make_source, remove_source

        if before is not None:
            remove_source(before, others)
        if after is not None:
            make_source(after, after.leads_to, ())


def _comes_along(source: str, point: str, entries: Mapping[str, BindMount]) -> bool:
    """True if a mount lies in another one at the same place as on the host: it came with that mount."""
    return any(
        point.startswith(f"{outer.target}/") and source == outer.source.rstrip("/") + point[len(outer.target) :]
        for outer in entries.values()
    )


def _option(option: str) -> tuple[str, str]:
    if option in ("ro", "rw"):
        return "read_only", "true" if option == "ro" else "false"
    if option in WORDS:
        return "propagation", option
    if option in ("bind", "rbind"):
        return "recursive", "true" if option == "rbind" else "false"
    raise ValueError(f"unknown mount option {option!r}; there are ro, rw, bind, rbind, {', '.join(WORDS)}")


def _above(path: str) -> Iterable[str]:
    """The directories above a path, innermost first."""
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _leads_to(source: str, host: HostFacts) -> str | None:
    """The source with its symlinks resolved; None if that is not known."""
    for there in (source, *_above(source)):
        fact = host.paths.get(there)
        if fact is not None:
            return fact.real.rstrip("/") + source[len(there.rstrip("/")) :] if fact.file_type == "directory" else None
    return None
