"""Bind mounts of host files and directories. Kernel: open_tree(2), mount_setattr(2), move_mount(2), umount2(2).

The tree is cloned and given its attributes on the host, detached and invisible; a step inside the container's mount
namespace then attaches it to a target that was opened by fd, so that there is no moment with wrong attributes and no
path that the container could bend.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial

from scplan.errors import KernelError, RecordDamaged, ScplanError
from scplan.kinds.bind_sources import BindSources, is_of_runtime
from scplan.kinds.kind import Described, Hears, Kind, Target, Unsuitable
from scplan.kinds.paths import below, check_target, covering, identity_of, merged_paths
from scplan.linux import bind
from scplan.linux.container import Container
from scplan.linux.host import Host, file_identity
from scplan.linux.mountinfo import Mount, escape
from scplan.linux.rooted_path import open_in_root, opened
from scplan.linux.syscalls import (
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    FileStatus,
    MountAttr,
    mount_setattr,
    open_tree,
    statx,
)
from scplan.model.address import Address
from scplan.model.change import Disruption
from scplan.model.live import HostFacts
from scplan.model.resource import Resource, Role, attr
from scplan.model.values import ABSOLUTE_PATH, BOOL, FILE_IDENTITY, TEXT, choice

MAX_MOUNTS = 128
_PROPAGATION = {"private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED}
_WORDS = tuple(prefix + word for word in _PROPAGATION for prefix in ("", "r"))


class BindMount(Resource):
    """A file or directory of the host, mounted in the container."""

    source: str = attr("host path, file or directory", ABSOLUTE_PATH, role=Role.REFERENCE, required=True)
    target: str = attr("path in the container, never /", ABSOLUTE_PATH, role=Role.IDENTITY, required=True)
    read_only: bool = attr("nothing can be written through it", BOOL, default=False)
    recursive: bool = attr("mounts below the source come along", BOOL, role=Role.FIXED, default=True)
    propagation: str = attr("how later mounts spread between host and container", choice(*_WORDS), default="rslave")
    create_source: bool = attr(
        "make the host directory when absent; goes with the last mount", BOOL, role=Role.POLICY, default=False
    )
    required: bool = attr("an absent source is an error", BOOL, role=Role.POLICY, default=True)
    source_identity: str | None = attr("st_dev:st_ino of the source", FILE_IDENTITY, role=Role.RESOLVED)
    taken: bool | None = attr(
        "whether others had something mounted at target when it was removed or changed", BOOL, role=Role.CARRIED
    )
    made: tuple[str, ...] | None = attr(
        "what was made in the container to mount on", TEXT, role=Role.FORMER, many=True, lasting=True
    )
    made_source: tuple[str, ...] | None = attr("host directories made", TEXT, role=Role.FORMER, many=True, lasting=True)


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

    def resolve(self, desired: BindMount, host: HostFacts) -> Iterable[BindMount]:
        fact = host.paths.get(desired.source)
        if fact is None and not desired.create_source:
            raise Unsuitable(
                f"the host has no {desired.source}",
                hint="make it, write `create_source: true` to have it made, or `required: false` to do without it",
                absent=True,
            )
        if fact is None or desired.create_source:
            # Known by its path: whoever made it makes it again as another inode.
            yield desired.but(source_identity=None)
            return
        yield desired.but(source_identity=fact.identity)

    def requires(self, resource: BindMount, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        return covering(address, resource.target, others)

    def hides(self, address: Address, resource: BindMount, others: Mapping[Address, Resource]) -> Iterable[Address]:
        return below(address, resource.target, others)

    def disruption(self, before: BindMount, after: BindMount) -> tuple[Disruption, str]:
        return Disruption.NONE, ""

    def is_left_to_others(self, made: BindMount, live: BindMount | None) -> bool:
        if made.taken is None or made.source_identity is None or live is None:
            return False
        return live.source_identity != made.source_identity

    # kernel: reading

    def read(self, container: Container, host: Host, wanted: Mapping[str, BindMount] | None) -> dict[str, BindMount]:
        if wanted is not None and not wanted:
            return {}
        if wanted is not None:
            container.refuse_host_mounts()
        points = None if wanted is None else frozenset(escape(mount.target) for mount in wanted.values())
        tops: dict[str, Mount] = {mount.point: mount for mount in container.mounts(points)}
        if wanted is None:
            targets = [mount.point for mount in tops.values() if mount.point != "/"]
            wanted = {identity_of(point): BindMount(source="/", target=point) for point in targets}
        found = {}
        for identity, mount in wanted.items():
            top = tops.get(mount.target) or _behind_symlink(container, mount.target)
            if top is not None:
                found[identity] = _as_found(container, host, mount, top)
        return found

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
                continue  # out of sight, or a node, which is a device
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
                entries[identity_of(point)] = entry.but(propagation=_visible_propagation(host, entry, top))
        if usual:
            left_out.append((", ".join(usual), "the runtime's own"))
        return Described(entries, tuple(left_out))

    # kernel: changing

    def capture(
        self, target: Target[BindMount], before: BindMount | None, after: BindMount | None
    ) -> tuple[BindMount | None, BindMount | None]:
        target.container.refuse_host_mounts()
        record = target.peers.get(self.identity(before)) if before is not None else None
        if before is not None and record is not None:
            # The container can swap what is at the target's path, or mount something else there: the record can't be
            # bent, and what it does not speak of is not scplan's to unmount.
            before = before if before.source == record.source else record
            before = before.but(source_identity=record.source_identity, taken=_is_taken(target.container, record))
        if before is not None and before.source in (before.made_source or ()):
            # An undo makes the directory again, and then it is another inode.
            before = before.but(source_identity=None)
        if after is None or (before is not None and after.made is not None):
            return before, after
        # What was made when it was mounted before, or for another mount, stays scplan's to remove.
        made = merged_paths(after.made, bind.missing(target.container, after.target))
        made_source = _leading_to(after.source, after.made_source or ())
        if after.create_source:
            inherited = made_source or _made_for(target.others(), after)
            made_source = merged_paths(inherited, _missing_on_host(after))
        return before, after.but(made=made, made_source=made_source)

    def create(self, target: Target[BindMount], after: BindMount) -> None:
        container = target.container
        container.refuse_host_mounts()
        if after.taken is not None and _is_taken(container, after):
            return  # an undo leaves it to what others have mounted there
        _make_source(after)
        with opened(open_tree(after.source, recursive=after.recursive)) as tree:
            found = os.fstat(tree)
            if after.source_identity is not None and file_identity(found) != after.source_identity:
                raise ScplanError(f"{after.source} is not the file any more that was planned", hint="plan again")
            if after.source_identity is None and file_identity(os.lstat(after.source)) != file_identity(found):
                raise ScplanError(f"{after.source} was absent when it was planned, and is a symlink now")
            _set_attributes(tree, after)
            # Also what went since it was captured: an undo must not fail because of a directory.
            made = merged_paths(after.made, bind.missing(container, after.target))
            bind.attach(
                container,
                tree,
                after.target,
                source=after.source,
                missing=bind.Missing(made, stat.S_ISDIR(found.st_mode)),
                finish=partial(_set_propagation, mount=after),
            )

    def update(self, target: Target[BindMount], before: BindMount, after: BindMount) -> None:
        container = target.container
        if after.taken is not None and _is_taken(container, after):
            return  # as in `create`
        there = container.status(after.target)
        if there is None or not there.is_mount_root:
            # It went since it was captured.
            self.create(target, after)
        elif before.read_only != after.read_only and container.mount_owner_fd is not None:
            # What is locked can't be lifted, and what is set in place would not be locked: it is mounted anew.
            bind.detach(container, after.target, partial(_is_ours, mount=after))
            self.create(target, after)
        else:
            container.check_enterable()
            container.bounded(partial(_change, mount=after), what=f"mount_setattr {after.target}")

    def delete(self, target: Target[BindMount], before: BindMount) -> None:
        container = target.container
        if not container.shares_host_mounts:
            bind.detach(container, before.target, partial(_is_ours, mount=before), made=before.made or ())
        _remove_source(before, target.others)

    def change_waiting(
        self, before: BindMount | None, after: BindMount | None, others: Callable[[], Collection[BindMount]]
    ) -> None:
        if before is not None and after is not None and before.source == after.source:
            return
        if before is not None:
            _remove_source(before, others)
        if after is not None:
            _make_source(after)


def _comes_along(source: str, point: str, entries: Mapping[str, BindMount]) -> bool:
    """Whether a mount is below another one at the same place as on the host: that was mounted with all below it."""
    return any(
        point.startswith(f"{outer.target}/") and source == outer.source.rstrip("/") + point[len(outer.target) :]
        for outer in entries.values()
    )


def _option(option: str) -> tuple[str, str]:
    if option in ("ro", "rw"):
        return "read_only", "true" if option == "ro" else "false"
    if option in _WORDS:
        return "propagation", option
    if option in ("bind", "rbind"):
        return "recursive", "true" if option == "rbind" else "false"
    raise ValueError(f"unknown mount option {option!r}; there are ro, rw, bind, rbind, {', '.join(_WORDS)}")


def _as_found(container: Container, host: Host, wanted: BindMount, top: Mount) -> BindMount:
    """The live mount. Its source is the wanted one when both are the same file; else where the host has it.

    Where the host has it nowhere, that is its path on its file system, or what kind of file system it is.
    """
    there = container.status(wanted.target)
    identity = file_identity(there) if there is not None else ""
    source: str | None = wanted.source
    if there is None or identity != (wanted.source_identity or _identity_on_host(wanted.source)):
        source = BindSources(host).of(top, there) if there is not None else None
    if source is None:
        source = top.filesystem if top.root == "/" else top.root
    return BindMount(
        source=source,
        target=wanted.target,
        read_only=top.read_only,
        recursive=wanted.recursive,
        propagation=_visible_propagation(host, wanted, top),
        source_identity=identity,
    )


def _visible_propagation(host: Host, wanted: BindMount, top: Mount) -> str:
    """As in /proc, in the recursive or plain word that was wanted: the kernel does not keep which of them it was.

    The slave of a mount that nothing can reach is private to the kernel, and is as wanted.
    """
    prefix = "r" if wanted.propagation.startswith("r") else ""
    word = wanted.propagation.removeprefix(prefix)
    if word == "slave" and top.propagation == "private" and not host.receives(wanted.source):
        return wanted.propagation
    return prefix + top.propagation


def _behind_symlink(container: Container, target: str) -> Mount | None:
    """The mount at a target whose path leads over symlinks, so that mountinfo has it under another name."""
    there = container.status(target)
    if there is None or not there.is_mount_root:
        return None
    return next((mount for mount in container.mounts() if mount.id == there.mount_id), None)


def _change(container: Container, mount: BindMount) -> None:
    with opened(open_in_root(container.root_fd, mount.target)) as fd:
        if mount.source_identity not in (None, file_identity(statx(fd))):
            raise ScplanError(f"{mount.target}: others have mounted something there", hint="plan again")
        container.enter()
        _set_attributes(fd, mount)


def _set_attributes(fd: int, mount: BindMount) -> None:
    """Read-only for the whole tree, writable only for its top: mounts below may be read-only for their own reasons."""
    if mount.read_only:
        mount_setattr(fd, set_flags=MountAttr.RDONLY, recursive=mount.recursive, name=mount.target)
    else:
        mount_setattr(fd, clear_flags=MountAttr.RDONLY, recursive=False, name=mount.target)
    _set_propagation(fd, mount)


def _set_propagation(fd: int, mount: BindMount) -> None:
    word = mount.propagation
    everywhere = word not in _PROPAGATION
    propagation = _PROPAGATION[word.removeprefix("r") if everywhere else word]
    mount_setattr(fd, propagation=propagation, recursive=everywhere, name=mount.target)


def _is_ours(container: Container, fd: int, mount: BindMount) -> bool:
    """Whether the mount at the target is the one that scplan made.

    Raises ScplanError when that may lie below another one. Where there is only one, and not ours, ours is gone.
    """
    there = statx(fd)
    if _is_of_source(container, mount, there):
        return True
    mounts = container.mounts()
    points = [other.point for other in mounts if other.id == there.mount_id]
    if sum(other.point in points for other in mounts) == 1:
        return False
    raise ScplanError(
        f"{mount.target}: others have mounted something on top of it", hint="unmount that first, or stop the container"
    )


def _is_taken(container: Container, mount: BindMount) -> bool:
    """Whether others have mounted something at the target."""
    there = container.status(mount.target)
    return there is not None and there.is_mount_root and not _is_of_source(container, mount, there)


def _is_of_source(container: Container, mount: BindMount, there: FileStatus) -> bool:
    """Whether what is mounted is the mount's source; one that is known by its path may have been removed since."""
    identity = file_identity(there)
    if mount.source_identity is not None:
        return identity == mount.source_identity
    if identity == _identity_on_host(mount.source):
        return True
    mounted = next((one for one in container.mounts() if one.id == there.mount_id), None)
    return mounted is not None and BindSources(container.host).had(mounted, mount.source)


def _identity_on_host(path: str) -> str | None:
    try:
        return file_identity(os.stat(path))
    except OSError:
        return None


def _missing_on_host(mount: BindMount) -> tuple[str, ...]:
    parts = mount.source.strip("/").split("/")
    paths = ["/" + "/".join(parts[: depth + 1]) for depth in range(len(parts))]
    return tuple(path for path in paths if not os.path.lexists(path))


def _make_source(mount: BindMount) -> None:
    """Makes the missing directories, each in the one before: a symlink that was put there meanwhile is not followed."""
    made = _leading_to(mount.source, mount.made_source or ())
    if not made:
        return
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    path = os.path.dirname(made[0])
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(opened(os.open(path, flags & ~os.O_NOFOLLOW)))
            for path in made:
                name = os.path.basename(path)
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=directory)
                directory = stack.enter_context(opened(os.open(name, flags, dir_fd=directory)))
        except OSError as error:
            raise KernelError.from_os(f"mkdir({path})", error) from None


def _made_for(others: Iterable[BindMount], mount: BindMount) -> tuple[str, ...]:
    """Of the directories that lead to the mount's source, those that were made for other mounts."""
    return _leading_to(mount.source, {directory for other in others for directory in other.made_source or ()})


def _leading_to(source: str, made: Iterable[str]) -> tuple[str, ...]:
    """Of directories that were made, those on the way to a source: a record may have got another one since."""
    return tuple(directory for directory in made if f"{source}/".startswith(f"{directory}/"))


def _remove_source(mount: BindMount, others: Callable[[], Collection[BindMount]]) -> None:
    """Removes host directories that scplan made, as far as no other mount needs them and they are empty.

    What was put there is the user's.
    """
    made = _leading_to(mount.source, mount.made_source or ())
    if not made:
        return
    try:
        needed = [f"{other.source}/" for other in others()]
    except RecordDamaged:
        return  # who can't be asked may need them
    for directory in reversed(made):
        if any(source.startswith(f"{directory}/") for source in needed):
            return
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno == errno.ENOENT:  # it could not be made; those above it were
                continue
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                return
            raise KernelError.from_os(f"rmdir({directory})", error) from None
