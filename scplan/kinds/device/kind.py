"""Device nodes with their access rule and I/O limits. Kernel: mknodat(2), the cgroup v1 controllers devices and blkio.

A node is useless without a rule that allows the device, and a rule is shared by all nodes of the same numbers: what is
allowed is the union of what was allowed before scplan and what the managed nodes ask for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Kind, Target, Unsuitable
from scplan.kinds.paths import check_target, covering, identity_of
from scplan.linux import cgroup_v1
from scplan.linux.blockdev import device_path
from scplan.linux.cgroup_v1 import Cgroup, join_access
from scplan.linux.container import Container
from scplan.linux.host import Host, device_numbers
from scplan.linux.rooted_path import (
    make_directory,
    missing_directories,
    open_in_root,
    opened,
    parent_of,
    remove_made,
    stat_in_root,
)
from scplan.linux.syscalls import renameat2
from scplan.model.address import Address
from scplan.model.live import HostFacts, PathFact
from scplan.model.resource import Attributes, Resource, Role, attr, nested
from scplan.model.values import (
    ABSOLUTE_PATH,
    BOOL,
    BYTES_PER_SECOND,
    ID,
    MODE,
    OPERATIONS_PER_SECOND,
    PERMISSIONS,
    TEXT,
    integer,
)

_NODE_TYPES = {"block": stat.S_IFBLK, "char": stat.S_IFCHR}
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class IoLimits(Attributes):
    """What a container may do to one disk. 0 is no limit."""

    read_bps: int | None = attr("bytes per second read", BYTES_PER_SECOND, on_unset=0)
    write_bps: int | None = attr("bytes per second written", BYTES_PER_SECOND, on_unset=0)
    read_iops: int | None = attr("read operations per second", OPERATIONS_PER_SECOND, on_unset=0)
    write_iops: int | None = attr("write operations per second", OPERATIONS_PER_SECOND, on_unset=0)
    weight: int | None = attr(
        "share of the disk's time, where its scheduler knows weights", integer(1, 10000), on_unset=0
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Device(Resource):
    """A device of the host, as a node in the container."""

    source: str = attr("host device node; symlinks are followed", ABSOLUTE_PATH, role=Role.REFERENCE, required=True)
    target: str = attr("path in the container; the source's when absent", ABSOLUTE_PATH, role=Role.IDENTITY, default="")
    permissions: str = attr("what the container may do: r, w, m (mknod)", PERMISSIONS, default="rwm")
    mode: str | None = attr("file mode of the node; the host node's when absent", MODE)
    uid: int | None = attr("owner, as an id in the container; its root when absent", ID)
    gid: int | None = attr("group, as an id in the container; its root's when absent", ID)
    partitions: bool = attr("also the disk's partitions", BOOL, role=Role.POLICY, default=False)
    replace_existing: bool = attr("may take the place of another file at target", BOOL, role=Role.POLICY, default=False)
    required: bool = attr("an absent host device is an error", BOOL, role=Role.POLICY, default=True)
    io: IoLimits | None = nested("I/O limits, for whole disks", IoLimits)
    file_type: str | None = attr("block, char; of something else at target its type", TEXT, role=Role.RESOLVED)
    numbers: str | None = attr("major:minor of the host device", TEXT, role=Role.RESOLVED)
    prior_access: str | None = attr("what the container could do before scplan", TEXT, role=Role.FORMER)
    prior_limits: str | None = attr("the disk's I/O limits before scplan", TEXT, role=Role.FORMER)
    saved_as: str | None = attr("where the file that was at target is kept", TEXT, role=Role.FORMER)
    made: tuple[str, ...] | None = attr("directories made for the node", TEXT, role=Role.FORMER, many=True)


class DeviceKind(Kind[Device]):
    name = "device"
    section = "devices"
    record = Device

    # configuration

    def parse_short(self, text: str) -> dict[str, str]:
        """`source[:target][:permissions]`; permissions are told from a target by having no slash."""
        source, *rest = text.split(":")
        values = {"source": source}
        if rest and rest[0].startswith("/"):
            values["target"] = rest.pop(0)
        if rest:
            values["permissions"] = rest.pop(0)
        if rest:
            raise ValueError(f"{text!r} is not of the form source[:target][:permissions]")
        return values

    def normalise(self, desired: Device) -> Device:
        target = desired.target or desired.source
        check_target(target)
        if desired.io is not None and desired.io.weight is not None and desired.io.weight < 10:
            raise ValueError("io.weight must be at least 10 on cgroup v1")
        return desired if desired.target else desired.but(target=target)

    def identity(self, resource: Device) -> str:
        return identity_of(resource.target)

    # planning

    def host_paths(self, resource: Device) -> Iterable[str]:
        yield resource.source

    def resolve(self, desired: Device, host: HostFacts) -> Iterable[Device]:
        fact = host.paths.get(desired.source)
        if fact is None:
            raise Unsuitable(
                f"the host has no {desired.source}",
                hint="plug the device in, or write `required: false` to do without it",
                absent=True,
            )
        if fact.file_type not in _NODE_TYPES:
            raise Unsuitable(f"{desired.source} is not a device node", hint="directories and files are for `mounts:`")
        if desired.io is not None and not fact.whole_disk:
            raise Unsuitable(
                f"{desired.source} is not a whole disk, so it can't have I/O limits",
                hint="the kernel limits disks, not their partitions nor character devices",
            )
        if desired.io is not None and (desired.io.weight or 0) > 1000:
            raise Unsuitable("io.weight is at most 1000 on cgroup v1")
        yield desired.but(file_type=fact.file_type, numbers=fact.numbers)
        if desired.partitions:
            yield from self._partitions(desired, fact, host)

    def _partitions(self, disk: Device, fact: PathFact, host: HostFacts) -> Iterable[Device]:
        """The disk's partitions as devices of their own: /dev/data1, or /dev/data2p1 after a digit."""
        separator = "p" if disk.target[-1].isdigit() else ""
        for number, path, numbers in fact.partitions:
            yield disk.but(
                source=path,
                target=f"{disk.target}{separator}{number}",
                partitions=False,
                io=None,
                file_type="block",
                numbers=numbers,
            )

    def completed(self, address: Address, desired: Device, host: HostFacts) -> Device:
        fact = host.paths.get(desired.source)
        mode = desired.mode or (fact.mode if fact else "") or "0600"
        return desired.but(mode=mode, uid=desired.uid or 0, gid=desired.gid or 0)

    def can_take_over(self, desired: Device, live: Device) -> bool:
        return desired.replace_existing or (live.file_type, live.numbers) == (desired.file_type, desired.numbers)

    def requires(self, resource: Device, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        return covering(address, resource.target, others)

    # kernel: reading

    def read(self, container: Container, host: Host, wanted: Mapping[str, Device] | None) -> dict[str, Device]:
        if wanted is None:
            wanted = {identity_of(path): Device(source=path, target=path) for path in _nodes_below_dev(container)}
        elif wanted:
            container.refuse_host_mounts()
        if not wanted:
            return {}
        found = {}
        with Cgroup(container, host, "devices") as cgroup:
            rules = cgroup_v1.device_rules(cgroup)
        for identity, device in wanted.items():
            there = stat_in_root(container.root_fd, device.target)
            if there is not None:
                found[identity] = self._as_found(container, device, there, rules, wanted)
        self._add_limits(container, host, found, wanted)
        return found

    def _as_found(
        self,
        container: Container,
        device: Device,
        there: os.stat_result,
        rules: list[cgroup_v1.DeviceRule],
        peers: Mapping[str, Device],
    ) -> Device:
        file_type = _file_type(there.st_mode)
        if file_type not in _NODE_TYPES:
            return device.but(file_type=file_type, numbers="", io=None, permissions="", mode=None, uid=None, gid=None)
        numbers = device_numbers(there.st_rdev)
        source = device.source if device.numbers == numbers else device_path(file_type, numbers) or device.source
        return Device(
            source=source,
            target=device.target,
            permissions=_visible_access(device, file_type, numbers, rules, peers),
            mode=f"{stat.S_IMODE(there.st_mode):04o}",
            uid=container.inside_id("uid", there.st_uid),
            gid=container.inside_id("gid", there.st_gid),
            file_type=file_type,
            numbers=numbers,
        )

    def _add_limits(
        self, container: Container, host: Host, found: dict[str, Device], wanted: Mapping[str, Device]
    ) -> None:
        limited = [
            identity for identity, device in found.items() if device.file_type == "block" and wanted[identity].io
        ]
        if not limited:
            return
        with Cgroup(container, host, "blkio") as cgroup:
            cgroup.refuse_shared()
            for identity in limited:
                found[identity] = found[identity].but(io=IoLimits(**_limits_now(cgroup, found[identity])))

    # kernel: changing

    def capture(
        self, target: Target[Device], before: Device | None, after: Device | None
    ) -> tuple[Device | None, Device | None]:
        if after is None:
            return before, after
        if after.prior_access is None:
            there = stat_in_root(target.container.root_fd, after.target)
            taken = there is not None and not _is_node(there, after)
            after = after.but(
                prior_access=self._prior_access(target, after),
                saved_as=f".{os.path.basename(after.target)}.scplan-saved" if taken else None,
                made=missing_directories(target.container.root_fd, after.target),
            )
        if after.io is not None and after.prior_limits is None:
            after = after.but(prior_limits=self._prior_limits(target, after))
        return before, after

    def _prior_access(self, target: Target[Device], device: Device) -> str:
        """What the container may do with the device without scplan: as a peer recorded it, or live."""
        for peer in _peers(target, device):
            if peer.prior_access is not None:
                return peer.prior_access
        with Cgroup(target.container, target.host, "devices") as cgroup:
            rules = cgroup_v1.device_rules(cgroup)
        return cgroup_v1.exact_access(rules, _letter(device), device.numbers or "")

    def _prior_limits(self, target: Target[Device], device: Device) -> str:
        for peer in _peers(target, device):
            if peer.prior_limits is not None:
                return peer.prior_limits
        with Cgroup(target.container, target.host, "blkio") as cgroup:
            return " ".join(str(value) for value in _limits_now(cgroup, device).values())

    def create(self, target: Target[Device], after: Device) -> None:
        container = target.container
        container.refuse_host_mounts()
        if container.has_user_namespace:
            raise ScplanError(
                f"container {container.name} has a user namespace: the kernel refuses device nodes that are made there",
                hint="start the container without a user namespace, or leave the device out",
            )
        for directory in after.made or ():
            make_directory(container.root_fd, directory)
        self._allow(target, after)
        self._make_node(container, after)
        self._limit(target, after)

    def update(self, target: Target[Device], before: Device, after: Device) -> None:
        self._allow(target, after)
        with parent_of(target.container.root_fd, after.target) as (parent, name):
            _own_node(target.container, parent, name, after)
        self._limit(target, after)

    def delete(self, target: Target[Device], before: Device) -> None:
        container = target.container
        container.refuse_host_mounts()
        self._unlimit(target, before)
        try:
            with parent_of(container.root_fd, before.target) as (parent, name):
                _remove_node(parent, name, before)
                _put_back(parent, name, before)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise KernelError.from_os(f"unlinkat({before.target})", error) from None
        remove_made(container.root_fd, before.made or ())
        self._revoke(target, before)

    def _make_node(self, container: Container, device: Device) -> None:
        with parent_of(container.root_fd, device.target) as (parent, name):
            there = _stat_at(parent, name)
            if there is not None and not _is_node(there, device):
                _move_aside(parent, name, device)
                there = None
            if there is None:
                major, minor = (int(number) for number in (device.numbers or "").split(":"))
                kind = _NODE_TYPES[device.file_type or ""]
                try:
                    os.mknod(name, kind | 0o600, os.makedev(major, minor), dir_fd=parent)
                except OSError as error:
                    hint = "the file system there is read-only; choose a target on a tmpfs such as /dev"
                    raise KernelError.from_os(
                        f"mknodat({device.target})", error, hint=hint if error.errno == errno.EROFS else ""
                    ) from None
            _own_node(container, parent, name, device)

    # access

    def _allow(self, target: Target[Device], device: Device) -> None:
        self._set_access(target, device, device.permissions)

    def _revoke(self, target: Target[Device], device: Device) -> None:
        self._set_access(target, device, "")

    def _set_access(self, target: Target[Device], device: Device, own: str) -> None:
        """Allows the union of `own`, what was allowed before scplan, and what the other nodes of the device need."""
        if device.numbers is None or device.file_type not in _NODE_TYPES:
            return
        others = [peer.permissions for peer in _peers(target, device)]
        with Cgroup(target.container, target.host, "devices") as cgroup:
            wanted = join_access(own, device.prior_access or "", *others)
            cgroup_v1.set_exact_access(cgroup, _letter(device), device.numbers, wanted)

    # limits

    def _limit(self, target: Target[Device], device: Device) -> None:
        if device.io is None or not device.numbers:
            return
        with Cgroup(target.container, target.host, "blkio") as cgroup:
            now = _limits_now(cgroup, device)
            for name in cgroup_v1.LIMIT_FILES:
                wanted = getattr(device.io, name)
                if wanted is not None and wanted != now[name]:
                    cgroup_v1.write_limit(cgroup, name, device.numbers, wanted)
            if device.io.weight is not None and device.io.weight != now["weight"]:
                cgroup_v1.write_weight(cgroup, device.numbers, device.io.weight)

    def _unlimit(self, target: Target[Device], device: Device) -> None:
        """Gives back the limits from before, unless another managed node of the disk has some: they are the disk's."""
        if device.prior_limits is None or any(peer.io is not None for peer in _peers(target, device)):
            return
        names = (*cgroup_v1.LIMIT_FILES, "weight")
        former = dict(zip(names, map(int, device.prior_limits.split()), strict=True))
        self._limit(target, device.but(io=IoLimits(**former)))


def _letter(device: Device) -> str:
    """As device rules name the type: b or c."""
    return (device.file_type or "")[:1]


def _same_device(one: Device, other: Device) -> bool:
    return (one.file_type, one.numbers) == (other.file_type, other.numbers)


def _peers(target: Target[Device], device: Device) -> list[Device]:
    """The other managed nodes of the same device."""
    return [peer for peer in target.peers.values() if peer.target != device.target and _same_device(peer, device)]


def _limits_now(cgroup: Cgroup, device: Device) -> dict[str, int]:
    numbers = device.numbers or ""
    return {**cgroup_v1.read_limits(cgroup, numbers), "weight": cgroup_v1.read_weight(cgroup, numbers)}


def _is_node(there: os.stat_result, device: Device) -> bool:
    return _file_type(there.st_mode) == device.file_type and device_numbers(there.st_rdev) == device.numbers


def _file_type(mode: int) -> str:
    names = {stat.S_IFBLK: "block", stat.S_IFCHR: "char", stat.S_IFDIR: "directory", stat.S_IFREG: "file"}
    return names.get(stat.S_IFMT(mode), "symlink" if stat.S_ISLNK(mode) else "other")


def _visible_access(
    device: Device,
    file_type: str,
    numbers: str,
    rules: list[cgroup_v1.DeviceRule],
    peers: Mapping[str, Device],
) -> str:
    """The access that a node answers for: what it asked for and has, and what nothing else explains."""
    kind = file_type[0]
    exact = cgroup_v1.exact_access(rules, kind, numbers)
    allowed = join_access(exact, cgroup_v1.wildcard_access(rules, kind, numbers))
    if device.prior_access is None:
        return join_access(set(device.permissions) & set(allowed))
    others = [peer.permissions for peer in peers.values() if peer is not device and _same_device(peer, device)]
    explained = join_access(device.permissions, device.prior_access, *others)
    return join_access(set(device.permissions) & set(allowed), set(exact) - set(explained))


def _stat_at(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _own_node(container: Container, parent: int, name: str, device: Device) -> None:
    """Gives the node its owner and mode, through a fd of it: the container may swap what is at the path."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    with opened(fd):
        if not _is_node(os.fstat(fd), device):
            raise ScplanError(f"{device.target} was changed inside the container while scplan made it")
        path = f"/proc/self/fd/{fd}"
        os.chown(path, container.host_id("uid", device.uid or 0), container.host_id("gid", device.gid or 0))
        if device.mode is not None:
            os.chmod(path, int(device.mode, 8))


def _move_aside(parent: int, name: str, device: Device) -> None:
    if not device.replace_existing or device.saved_as is None:
        raise KernelError(
            f"mknodat({device.target})",
            errno.EEXIST,
            detail="something else is there",
            hint="remove it, or write `replace_existing: true`; it is put back when the device is removed",
        )
    try:
        renameat2(parent, name, device.saved_as)
    except OSError as error:
        raise KernelError.from_os(f"renameat2({device.target}, {device.saved_as})", error) from None


def _remove_node(parent: int, name: str, device: Device) -> None:
    """Removes the node when it is the one that scplan made; anything else at its place is the container's."""
    there = _stat_at(parent, name)
    if there is not None and _is_node(there, device):
        os.unlink(name, dir_fd=parent)


def _put_back(parent: int, name: str, device: Device) -> None:
    if device.saved_as is not None and _stat_at(parent, device.saved_as) is not None:
        renameat2(parent, device.saved_as, name)


def _nodes_below_dev(container: Container, directory: str = "/dev", depth: int = 3) -> Iterable[str]:
    """Paths of the device nodes in the container's /dev; terminals and directories deeper than `depth` are left out."""
    try:
        fd = open_in_root(container.root_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (*_ABSENT, errno.ELOOP):
            return
        raise KernelError.from_os(f"openat2({directory})", error) from None
    with opened(fd):
        for name in sorted(os.listdir(fd)):
            there = _stat_at(fd, name)
            kind = _file_type(there.st_mode) if there is not None else ""
            if kind in _NODE_TYPES:
                yield f"{directory}/{name}"
            elif kind == "directory" and depth and name != "pts":
                yield from _nodes_below_dev(container, f"{directory}/{name}", depth - 1)
