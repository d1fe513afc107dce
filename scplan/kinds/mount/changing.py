"""Bind mounts captured, attached, changed and taken out. open_tree(2), move_mount(2), mount_setattr(2), umount(2).

Imported as an operation begins: a plan and a hook's look into a container do without.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import partial

from scplan.errors import KernelError
from scplan.kinds.kind import Target
from scplan.kinds.mount.in_place import (
    change,
    cloned_source,
    finish_submount,
    missing_submounts,
    set_attributes,
    set_propagation,
)
from scplan.kinds.mount.live import is_ours, is_taken, kept_name, tree_at
from scplan.kinds.mount.made_sources import (
    attributes_on_host,
    leading_to,
    made_for,
    make_source,
    missing_on_host,
    remove_source,
)
from scplan.kinds.mount.record import BindMount
from scplan.kinds.mount.source_tree import (
    SourceTree,
    flags_text,
    merged_flags,
    of_others,
    outer_mounts,
    source_tree,
    submount_text,
)
from scplan.kinds.paths import identity_of, merged_paths
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.mounts import bind, parking
from scplan.linux.mounts.mount_tree import (
    Branch,
    Outer,
    propagation_of,
    remembered,
    restore_propagation,
    tree_of,
    written,
)
from scplan.linux.mounts.mountinfo import is_removed
from scplan.linux.paths.made_files import attributes_of, path_of
from scplan.linux.paths.rooted_path import open_in_root, opened
from scplan.linux.syscalls import open_tree, statx


def capture(
    target: Target[BindMount], before: BindMount | None, after: BindMount | None
) -> tuple[BindMount | None, BindMount | None]:
    target.container.refuse_host_mounts()
    live = None
    if after is not None:
        # In an undo `after` has the clone's place of an earlier apply, whose clones are gone.
        after = after.replace(parked=None)
    if before is not None:
        before = _as_removed(target, before)
        live = tree_at(target.container, before)
    if before is not None and live:
        before = before.replace(tree=written(live))
    if before is not None and after is None:
        return _captured_removal(target, before), None
    if before is not None and after is not None:
        return _captured_update(target, before, after, live or [])
    return before, None if after is None else _captured_creation(target, after)


def _captured_removal(target: Target[BindMount], before: BindMount) -> BindMount:
    made = tuple(path for path in before.made or () if path != before.target)
    made_as: tuple[str, ...] = ()
    if made:
        what = f"look at what was made for {before.target} in container {target.container.name}"
        made_as = target.container.bounded(partial(_attributes_of_made, paths=made), what=what)
    return before.replace(
        parked=_place(target, before),
        made_as=made_as,
        made_source_as=attributes_on_host(leading_to(before.source, before.made_source or ())),
    )


def _as_removed(target: Target[BindMount], before: BindMount) -> BindMount:
    record = target.peers.get(identity_of(before.target))
    if record is not None:
        # The container can replace the file at the target's path, or mount something else there. It can't
        # manipulate the record, and scplan must not unmount a mount that the record does not name.
        before = before if before.source == record.source else record
        before = before.replace(source_identity=record.source_identity, taken=is_taken(target.container, record))
    if before.source in (before.made_source or ()):
        # An undo makes the directory again, as another inode.
        before = before.replace(source_identity=None)
    return before


def _place(target: Target[BindMount], mount: BindMount) -> str | None:
    """Place of the clone that is kept for the undo; None for an operation without records.

    The mount's address names it, since an apply makes one change at each address.
    """
    if not target.apply_id:
        return None
    return parking.place_of(target.state_dir, target.apply_id, kept_name(target.container, mount.target))


def _captured_update(
    target: Target[BindMount], before: BindMount, after: BindMount, live: Sequence[Branch]
) -> tuple[BindMount, BindMount]:
    source = source_tree(target.host.mounts(), after.source)
    own = [*live[:1], *source.brought(live[1:])]
    if after.flags is None and own:
        # The mount was adopted, or its record is older than the recording of flags.
        after = after.replace(flags=flags_text(own[0].mount), submounts=tuple(map(submount_text, own[1:])))
    if after.read_only and not before.read_only:
        writable = (branch.path for branch in own if not branch.mount.read_only)
        after = after.replace(made_read_only=tuple(dict.fromkeys((*(before.made_read_only or ()), *writable))))
    elif not after.read_only:
        after = after.replace(made_read_only=())
    if before.read_only != after.read_only and target.container.mount_owner_fd is not None:
        before = before.replace(parked=_place(target, before))
        # Mounts of other entries in it stay as well, unchanged.
        after = after.replace(put_back=tuple(branch.path for branch in of_others(live, source, ())))
    return before, after


def _captured_creation(target: Target[BindMount], after: BindMount) -> BindMount:
    # Paths that were made for an earlier mount, or for another mount, stay scplan's to remove.
    made = merged_paths(after.made, bind.missing(target.container, after.target))
    made_source = leading_to(after.source, after.made_source or ())
    if after.create_source:
        inherited = made_source or made_for(target.others(), after.source)
        made_source = merged_paths(inherited, missing_on_host(after.source))
    after = after.replace(made=made, made_source=made_source)
    source = source_tree(target.host.mounts(), after.source)
    if source.top is not None:
        after = _as_cloned(after, source)
    place = _place(target, after)
    if parking.is_parked(place):
        # This apply has taken the mount out, to replace it.
        after = after.replace(put_back=_others_below(target, after, _parked_tree(target.host, place or "")))
    return after


def _others_below(target: Target[BindMount], mount: BindMount, live: Sequence[Branch]) -> tuple[str, ...]:
    """Paths below the mount at which others have mounted something."""
    nested = [
        one.target.removeprefix(mount.target)
        for one in target.peers.values()
        if one.target.startswith(f"{mount.target}/")
    ]
    found = of_others(live, source_tree(target.host.mounts(), mount.source), nested)
    return tuple(branch.path for branch in found)


def create(target: Target[BindMount], after: BindMount) -> None:
    container = target.container
    container.refuse_host_mounts()
    if after.taken is not None and is_taken(container, after):
        return  # an undo: others have mounted something here, which stays
    make_source(after, after.leads_to, after.made_source_as or ())
    through = outer_mounts(target.peers.values(), after.target)
    if after.taken is not None and _is_restored(target, after, through):
        return
    with opened(cloned_source(after)) as tree:
        found = os.fstat(tree)
        set_attributes(tree, after)
        bind.attach(
            container,
            tree,
            after.target,
            source=after.source,
            missing=_missing(container, after, through, is_directory=stat.S_ISDIR(found.st_mode)),
            finish=partial(set_propagation, mount=after),
        )
    if after.put_back:
        _put_back(target, after)


def _is_restored(target: Target[BindMount], after: BindMount, through: tuple[Outer, ...]) -> bool:
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
        missing=_missing(container, after, through, is_directory=is_directory),
    )
    return True


def _missing(container: Container, mount: BindMount, through: tuple[Outer, ...], *, is_directory: bool) -> bind.Missing:
    """Paths to make before the mount."""
    # Also paths that vanished since the capture: an undo must not fail because of a directory.
    made = merged_paths(mount.made, bind.missing(container, mount.target))
    attributes = tuple(text for text in mount.made_as or () if path_of(text) in made)
    return bind.Missing(made, is_directory, through, attributes)


def _put_back(target: Target[BindMount], after: BindMount) -> None:
    """Attach mounts of others from below the replaced mount, where the new mount has a place for them."""
    place, container = _place(target, after) or "", target.container
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


def update(target: Target[BindMount], before: BindMount, after: BindMount) -> None:
    container = target.container
    if after.taken is not None and is_taken(container, after):
        return  # as in `create`
    there = container.status(after.target)
    if there is None or not there.is_mount_root or parking.is_parked(after.parked):
        # The mount vanished since it was captured, or it was mounted anew.
        create(target, after)
    elif before.read_only != after.read_only and container.mount_owner_fd is not None:
        # A locked flag can't be cleared, and a flag set in place would not be locked. mount_namespaces(7)
        bind.detach(container, after.target, partial(is_ours, mount=after), parked=before.parked or "")
        create(target, after)
    else:
        container.check_enterable()
        changing = partial(change, before=before, after=after)
        container.bounded(changing, what=f"mount_setattr {after.target}")
        _mount_again(target, after)


def _mount_again(target: Target[BindMount], mount: BindMount) -> None:
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


def delete(target: Target[BindMount], before: BindMount) -> None:
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
    return mount.replace(flags=flags, submounts=submounts, made_read_only=tuple(writable) if mount.read_only else ())


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
