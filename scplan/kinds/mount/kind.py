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
from functools import partial

from scplan.errors import KernelError
from scplan.kinds.kind import Described, Foreseen, Hears, Kind, Target, Unsuitable
from scplan.kinds.mount.bind_sources import BindSources, is_of_runtime
from scplan.kinds.mount.in_place import (
    change,
    cloned_source,
    finish_submount,
    missing_submounts,
    set_attributes,
    set_propagation,
)
from scplan.kinds.mount.live import (
    as_found,
    is_ours,
    is_taken,
    kept_name,
    tree_at,
    tree_behind_symlink,
    visible_propagation,
)
from scplan.kinds.mount.made_sources import (
    attributes_on_host,
    leading_to,
    made_for,
    make_source,
    missing_on_host,
    remove_source,
)
from scplan.kinds.mount.record import WORDS, BindMount
from scplan.kinds.mount.source_tree import (
    SourceTree,
    flags_text,
    merged_flags,
    of_others,
    outer_mounts,
    source_tree,
    submount_text,
)
from scplan.kinds.paths import below, check_target, covering, identity_of, merged_paths
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.mounts import bind, parking
from scplan.linux.mounts.mount_tree import Branch, propagation_of, remembered, restore_propagation, tree_of, written
from scplan.linux.mounts.mountinfo import REMOVED, Mount, escape, is_removed
from scplan.linux.paths.made_files import attributes_of, path_of
from scplan.linux.paths.rooted_path import open_in_root, opened
from scplan.linux.syscalls import open_tree, statx
from scplan.model.address import Address
from scplan.model.change import Change, Disruption
from scplan.model.live import HostFacts
from scplan.model.provided import Provided
from scplan.model.resource import Resource

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
            return desired.but(propagation=desired.propagation[1:])
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
            yield desired.but(source_identity=None, leads_to=_leads_to(desired.source, host))
            return
        yield desired.but(source_identity=fact.identity)

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
                entries[identity_of(point)] = entry.but(propagation=visible_propagation(host, entry, top))
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
        target.container.refuse_host_mounts()
        live = None
        if after is not None:
            # In an undo `after` has the clone's place of an earlier apply, whose clones are gone.
            after = after.but(parked=None)
        if before is not None:
            before = self._as_removed(target, before)
            live = tree_at(target.container, before)
        if before is not None and live:
            before = before.but(tree=written(live))
        if before is not None and after is None:
            return self._captured_removal(target, before), None
        if before is not None and after is not None:
            return self._captured_update(target, before, after, live or [])
        return before, None if after is None else self._captured_creation(target, after)

    def _captured_removal(self, target: Target[BindMount], before: BindMount) -> BindMount:
        made = tuple(path for path in before.made or () if path != before.target)
        made_as: tuple[str, ...] = ()
        if made:
            what = f"look at what was made for {before.target} in container {target.container.name}"
            made_as = target.container.bounded(partial(_attributes_of_made, paths=made), what=what)
        return before.but(
            parked=self._place(target, before),
            made_as=made_as,
            made_source_as=attributes_on_host(leading_to(before.source, before.made_source or ())),
        )

    def _as_removed(self, target: Target[BindMount], before: BindMount) -> BindMount:
        record = target.peers.get(self.identity(before))
        if record is not None:
            # The container can replace the file at the target's path, or mount something else there. It can't
            # manipulate the record, and scplan must not unmount a mount that the record does not name.
            before = before if before.source == record.source else record
            before = before.but(source_identity=record.source_identity, taken=is_taken(target.container, record))
        if before.source in (before.made_source or ()):
            # An undo makes the directory again, as another inode.
            before = before.but(source_identity=None)
        return before

    def _place(self, target: Target[BindMount], mount: BindMount) -> str | None:
        """Place of the clone that is kept for the undo; None for an operation without records.

        The mount's address names it, since an apply makes one change at each address.
        """
        if not target.apply_id:
            return None
        return parking.place_of(target.state_dir, target.apply_id, kept_name(target.container, mount.target))

    def _captured_update(
        self, target: Target[BindMount], before: BindMount, after: BindMount, live: Sequence[Branch]
    ) -> tuple[BindMount, BindMount]:
        source = source_tree(target.host.mounts(), after.source)
        own = [*live[:1], *source.brought(live[1:])]
        if after.flags is None and own:
            # The mount was adopted, or its record is older than the recording of flags.
            after = after.but(flags=flags_text(own[0].mount), submounts=tuple(map(submount_text, own[1:])))
        if after.read_only and not before.read_only:
            writable = (branch.path for branch in own if not branch.mount.read_only)
            after = after.but(made_read_only=tuple(dict.fromkeys((*(before.made_read_only or ()), *writable))))
        elif not after.read_only:
            after = after.but(made_read_only=())
        if before.read_only != after.read_only and target.container.mount_owner_fd is not None:
            before = before.but(parked=self._place(target, before))
            # Mounts of other entries in it stay as well, unchanged.
            after = after.but(put_back=tuple(branch.path for branch in of_others(live, source, ())))
        return before, after

    def _captured_creation(self, target: Target[BindMount], after: BindMount) -> BindMount:
        # Paths that were made for an earlier mount, or for another mount, stay scplan's to remove.
        made = merged_paths(after.made, bind.missing(target.container, after.target))
        made_source = leading_to(after.source, after.made_source or ())
        if after.create_source:
            inherited = made_source or made_for(target.others(), after.source)
            made_source = merged_paths(inherited, missing_on_host(after.source))
        after = after.but(made=made, made_source=made_source)
        source = source_tree(target.host.mounts(), after.source)
        if source.top is not None:
            after = _as_cloned(after, source)
        place = self._place(target, after)
        if parking.is_parked(place):
            # This apply has taken the mount out, to replace it.
            after = after.but(put_back=self._others_below(target, after, _parked_tree(target.host, place or "")))
        return after

    def _others_below(self, target: Target[BindMount], mount: BindMount, live: Sequence[Branch]) -> tuple[str, ...]:
        """Paths below the mount at which others have mounted something."""
        nested = [
            one.target.removeprefix(mount.target)
            for one in target.peers.values()
            if one.target.startswith(f"{mount.target}/")
        ]
        found = of_others(live, source_tree(target.host.mounts(), mount.source), nested)
        return tuple(branch.path for branch in found)

    def create(self, target: Target[BindMount], after: BindMount) -> None:
        container = target.container
        container.refuse_host_mounts()
        if after.taken is not None and is_taken(container, after):
            return  # an undo: others have mounted something here, which stays
        make_source(after, after.leads_to, after.made_source_as or ())
        through = outer_mounts(target.peers.values(), after.target)
        if after.taken is not None and self._is_restored(target, after, through):
            return
        with opened(cloned_source(after)) as tree:
            found = os.fstat(tree)
            set_attributes(tree, after)
            bind.attach(
                container,
                tree,
                after.target,
                source=after.source,
                missing=self._missing(container, after, through, is_directory=stat.S_ISDIR(found.st_mode)),
                finish=partial(set_propagation, mount=after),
            )
        if after.put_back:
            self._put_back(target, after)

    def _is_restored(self, target: Target[BindMount], after: BindMount, through: tuple[bind.Outer, ...]) -> bool:
        """True if the undo has the original mount: its clone is attached again, or it was never taken out."""
        container, kept = target.container, _parked_tree(target.host, after.parked or "")
        if not kept:
            there = container.status(after.target)
            return there is not None and there.is_mount_root
        if after.source in (after.made_source or ()) and (
            is_removed(kept[0].mount) or parking.is_copy(kept[0].mount, kept_name(container, after.target))
        ):
            return False  # the clone is of the directory before it was removed and made again
        fd = parking.open_parked(after.parked or "")
        assert fd is not None
        with opened(fd):
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        bind.reattach(
            container,
            after.target,
            after.parked or "",
            partial(is_ours, mount=after),
            missing=self._missing(container, after, through, is_directory=is_directory),
        )
        return True

    def _missing(
        self, container: Container, mount: BindMount, through: tuple[bind.Outer, ...], *, is_directory: bool
    ) -> bind.Missing:
        """Paths to make before the mount."""
        # Also paths that vanished since the capture: an undo must not fail because of a directory.
        made = merged_paths(mount.made, bind.missing(container, mount.target))
        attributes = tuple(text for text in mount.made_as or () if path_of(text) in made)
        return bind.Missing(made, is_directory, through, attributes)

    def _put_back(self, target: Target[BindMount], after: BindMount) -> None:
        """Attach mounts of others from below the replaced mount, where the new mount has a place for them."""
        place, container = self._place(target, after) or "", target.container
        kept = _parked_tree(target.host, place)
        for path in after.put_back or ():
            clone = [branch for branch in kept if branch.path == path]
            if not clone or container.status(after.target + path) is None:
                continue
            below = [one._replace(path=one.path.removeprefix(path) or "/") for one in kept if _is_in(one.path, path)]
            bind.attach(
                container,
                partial(bind.clone_of_parked, place + path),
                after.target + path,
                source=after.target + path,
                missing=bind.Missing((), is_directory=True),
                finish=partial(restore_propagation, propagation=propagation_of(below), name=after.target + path),
                locks=False,
            )

    def update(self, target: Target[BindMount], before: BindMount, after: BindMount) -> None:
        container = target.container
        if after.taken is not None and is_taken(container, after):
            return  # as in `create`
        there = container.status(after.target)
        if there is None or not there.is_mount_root or parking.is_parked(after.parked):
            # The mount vanished since it was captured, or it was mounted anew.
            self.create(target, after)
        elif before.read_only != after.read_only and container.mount_owner_fd is not None:
            # A locked flag can't be cleared, and a flag set in place would not be locked. mount_namespaces(7)
            bind.detach(container, after.target, partial(is_ours, mount=after), parked=before.parked or "")
            self.create(target, after)
        else:
            container.check_enterable()
            changing = partial(change, before=before, after=after)
            container.bounded(changing, what=f"mount_setattr {after.target}")
            self._mount_again(target, after)

    def _mount_again(self, target: Target[BindMount], mount: BindMount) -> None:
        """Mount submounts of the source again that came along and that the container lacks by now."""
        for path in missing_submounts(target.container, target.host, mount):
            bind.attach(
                target.container,
                partial(open_tree, mount.source.rstrip("/") + path, recursive=True),
                mount.target + path,
                source=mount.source.rstrip("/") + path,
                missing=bind.Missing((), is_directory=True),
                finish=partial(finish_submount, mount=mount),
            )

    def delete(self, target: Target[BindMount], before: BindMount) -> None:
        container = target.container
        if not container.shares_host_mounts:
            bind.detach(
                container,
                before.target,
                partial(is_ours, mount=before),
                made=before.made or (),
                through=outer_mounts(target.peers.values(), before.target),
                parked=before.parked or "",
            )
        remove_source(before, target.others)

    def release(self, state_dir: str, apply_id: str) -> None:
        parking.release(state_dir, apply_id)

    def kept_by(self, state_dir: str) -> Iterable[str]:
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


def _is_in(path: str, top: str) -> bool:
    return f"{path}/".startswith(f"{top}/")


def _as_cloned(mount: BindMount, source: SourceTree) -> BindMount:
    """The mount with the flags that a clone of its source has, and the flags that it had before."""
    former = {one.path: one.options for one in remembered(mount.tree or ())}
    assert source.top is not None
    flags = merged_flags(flags_text(source.top), former.get("/") or mount.flags or "")
    inner = source.below if mount.recursive else ()
    submounts = tuple(f"{one.path} {merged_flags(flags_text(one.mount), former.get(one.path) or '')}" for one in inner)
    writable = [] if source.top.read_only else ["/"]
    writable += [one.path for one in inner if not one.mount.read_only]
    return mount.but(flags=flags, submounts=submounts, made_read_only=tuple(writable) if mount.read_only else ())


def _parked_tree(host: Host, place: str) -> list[Branch]:
    """The clone that is kept at a place, with all mounts below it; empty if none is."""
    fd = parking.open_parked(place)
    if fd is None:
        return []
    with opened(fd):
        return tree_of(host.mounts(), statx(fd).mount_id)


def _attributes_of_made(container: Container, paths: tuple[str, ...]) -> tuple[str, ...]:
    """For a step: owner, mode and extended attributes of the files at these paths of the container."""
    texts = []
    for path in paths:
        try:
            with opened(open_in_root(container.root_fd, path)) as fd:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    texts.append(attributes_of(fd, path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise KernelError.from_os(f"openat2({path})", error) from None
    return tuple(texts)
