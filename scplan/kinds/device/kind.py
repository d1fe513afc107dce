"""Device nodes with their access rule and I/O limits. Kernel: mknod(2), the cgroup v1 controllers devices and blkio.

A node is useless without a rule that allows the device, and a rule is shared by all nodes of the same numbers. So the
rule allows the union of the access from before scplan and the access that the managed nodes need.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scplan.errors import ScplanError
from scplan.kinds.device import followed, rules
from scplan.kinds.device.node import (
    file_type,
    is_taken,
    make_node,
    node_status,
    nodes_below_dev,
    refuse_node_of_host,
    remove_node,
    set_node_status,
    type_in_place,
    with_former,
)
from scplan.kinds.device.record import NODE_TYPES, Device, IoLimits, is_same_device
from scplan.kinds.kind import Described, Foreseen, Hears, Kind, Target, Unsuitable
from scplan.kinds.paths import check_target, covering, identity_of
from scplan.linux.cgroups.cgroup_v1 import Cgroup, DeviceRules, device_rules
from scplan.linux.container import Container
from scplan.linux.devices.blockdev import device_path
from scplan.linux.devices.node_status import NodeStatus
from scplan.linux.host import Host, device_numbers
from scplan.linux.syscalls import FileStatus
from scplan.model.address import Address
from scplan.model.change import Change
from scplan.model.comparison import differences
from scplan.model.live import HostFacts, PathFact
from scplan.model.resource import Resource

if TYPE_CHECKING:
    from scplan.model.provided import Provided

_NODES_SHOWN = 8
_INSIDE = "inside="


class DeviceKind(Kind[Device]):
    name = "device"
    section = "devices"
    record = Device
    lives_in = "mnt"
    hears = Hears.MOUNTS  # in a user namespace nodes are bind mounts; other nodes are polled

    # configuration

    def parse_short(self, text: str) -> dict[str, str]:
        """`source[:target][:permissions]`; permissions are recognised by having no slash."""
        source, *rest = text.split(":")
        values = {"source": source}
        if rest and rest[0].startswith("/"):
            values["target"] = rest.pop(0)
        if rest and rest[0].isalpha():
            values["permissions"] = rest.pop(0)
        if rest:
            raise ValueError(
                f"{text!r} is not of the form source[:target][:permissions]; a path with colons takes the long form:"
                f" {_long_form(text)}"
            )
        return values

    def normalise(self, desired: Device) -> Device:
        target = desired.target or desired.source
        check_target(target)
        if desired.io is not None and desired.io.weight is not None and desired.io.weight < 10:
            raise ValueError("io.weight must be at least 10 on cgroup v1")
        return desired if desired.target else desired.replace(target=target)

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
        if fact.file_type == "directory":
            nodes = host.paths.get(f"{desired.source}/")
            raise Unsuitable(
                f"{desired.source} is a directory; an entry is for one device node",
                hint=_one_by_one(desired, nodes.nodes if nodes is not None else ()),
            )
        if fact.file_type not in NODE_TYPES:
            raise Unsuitable(f"{desired.source} is not a device node", hint="files are for `mounts:`")
        if desired.io is not None and not fact.whole_disk:
            raise Unsuitable(
                f"{desired.source} is not a whole disk, so it can't have I/O limits",
                hint="the kernel limits disks, not their partitions nor character devices",
            )
        if desired.io is not None and (desired.io.weight or 0) > 1000:
            raise Unsuitable("io.weight is at most 1000 on cgroup v1")
        yield desired.replace(file_type=fact.file_type, numbers=fact.numbers)
        if desired.partitions:
            yield from self._partitions(desired, fact, host)

    def remarks(self, desired: Device, host: HostFacts) -> Iterable[tuple[str, str]]:
        if desired.partitions and not host.has_udev:
            hint = "plan and apply again after partitioning; start udevd to have it done"
            yield f"later partitions of {desired.source} are not followed: udevd does not run on this host", hint

    def brings_others(self, record: Device) -> bool:
        return record.partitions

    def _partitions(self, disk: Device, fact: PathFact, host: HostFacts) -> Iterable[Device]:
        """The disk's partitions as devices of their own: /dev/data1, or /dev/data2p1 after a digit."""
        separator = "p" if disk.target[-1].isdigit() else ""
        for number, path, numbers in fact.partitions:
            yield disk.replace(
                source=path,
                target=f"{disk.target}{separator}{number}",
                partitions=False,
                io=None,
                file_type="block",
                numbers=numbers,
                partition_of=self.identity(disk),
            )

    def completed(self, address: Address, desired: Device, host: HostFacts) -> Device:
        fact = host.paths.get(desired.source)
        mode = desired.mode or (fact.mode if fact else "") or "0600"
        return desired.replace(mode=mode, uid=desired.uid or 0, gid=desired.gid or 0)

    def check_all(self, resources: Mapping[str, Device]) -> Iterable[tuple[str, str]]:
        limited = [(identity, one) for identity, one in resources.items() if one.io is not None]
        for number, (identity, one) in enumerate(limited):
            for _, other in limited[:number]:
                if one.source == other.source and (words := rules.contradiction(one, other)):
                    yield identity, words

    def takes_over_in_place(self, desired: Device, live: Device) -> bool:
        return is_same_device(desired, live)

    def value_before(self, owned: Device, path: str) -> Any:
        if owned.former_node is None or path not in ("mode", "uid", "gid"):
            return None
        former = NodeStatus.decoded(owned.former_node)
        if path == "mode":
            return f"{former.mode:04o}"
        return _inside_ids(owned.former_node).get(path)

    def can_take_over(self, desired: Device, live: Device) -> bool:
        return desired.replace_existing or (live.file_type, live.numbers) == (desired.file_type, desired.numbers)

    def requires(self, resource: Device, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        return covering(address, resource.target, others)

    # kernel: reading

    def read(self, container: Container, host: Host, wanted: Mapping[str, Device] | None) -> dict[str, Device]:
        if wanted is None:
            wanted = {identity_of(path): Device(source=path, target=path) for path in nodes_below_dev(container)}
        elif wanted:
            container.refuse_host_mounts()
        if not wanted:
            return {}
        found = {}
        cgroup = Cgroup(container, host, "devices")
        allowed = device_rules(cgroup)
        for identity, device in wanted.items():
            there = container.status(device.target)
            if there is not None:
                found[identity] = self._as_found(container, host, device, there, allowed, wanted)
        self._add_limits(container, host, found, wanted)
        return found

    def _as_found(
        self,
        container: Container,
        host: Host,
        device: Device,
        there: FileStatus,
        allowed: DeviceRules,
        peers: Mapping[str, Device],
    ) -> Device:
        kind = file_type(there.st_mode)
        is_followed = followed.is_followed(host, device)
        if kind not in NODE_TYPES:
            other = {"permissions": "", "mode": None, "uid": None, "gid": None, "numbers": "", "io": None}
            return device.replace(file_type=kind, partitions=is_followed, **other)
        numbers = device_numbers(there.st_rdev)
        source = device.source if device.numbers == numbers else device_path(kind, numbers) or device.source
        mode = f"{stat.S_IMODE(there.st_mode):04o}"
        uid, gid = container.inside_id("uid", there.st_uid), container.inside_id("gid", there.st_gid)
        return Device(
            source=source,
            target=device.target,
            permissions=rules.visible_access(device, kind, numbers, allowed, peers),
            mode=mode,
            uid=uid,
            gid=gid,
            file_type=kind,
            numbers=numbers,
            partitions=is_followed,
            in_force=rules.in_force(device, kind, numbers, allowed),
            # These are compared only if the entry does not set the attribute itself.
            default_mode=mode if device.default_mode is not None and device.mode is None else device.default_mode,
            default_uid=uid if device.default_uid is not None and device.uid is None else device.default_uid,
            default_gid=gid if device.default_gid is not None and device.gid is None else device.default_gid,
        )

    def _add_limits(
        self, container: Container, host: Host, found: dict[str, Device], wanted: Mapping[str, Device]
    ) -> None:
        limited = [
            identity for identity, device in found.items() if device.file_type == "block" and wanted[identity].io
        ]
        if not limited:
            return
        cgroup = Cgroup(container, host, "blkio")
        cgroup.refuse_shared()
        for identity in limited:
            found[identity] = found[identity].replace(io=IoLimits(**rules.limits_now(cgroup, found[identity])))

    def came_with(self, resource: Device, provided: Provided) -> str:
        return provided.devices.get(resource.target, "")

    def describe(self, container: Container, host: Host) -> Described[Device]:
        if container.shares_host_mounts:
            return Described({}, (("/dev", "it is the host's own"),))
        from scplan.kinds.device.described import described

        return described(container, host, self.read(container, host, None))

    # kernel: changing

    def foresee_together(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> Iterable[Foreseen]:
        from scplan.kinds.device.foreseen import foreseen

        return foreseen(container, host, changes, after)

    def capture(
        self, target: Target[Device], before: Device | None, after: Device | None
    ) -> tuple[Device | None, Device | None]:
        target.container.refuse_host_mounts()
        planned = before
        if before is not None:
            before = _as_made(target, before)
            before = before.replace(node=node_status(target.container, before))
            if before.file_type == "block" and (before.io is not None or (after is not None and after.io is not None)):
                before = before.replace(io=rules.limits_before(target, before))
        if after is None:
            return before, after
        if before is None or before.numbers != after.numbers:
            _check_source(target.host, after)
        after = _with_defaults(planned, after)
        refuse_node_of_host(target.container, after)
        after = _with_taken_over(target, planned, after)
        if before is None or after.prior_access is None:
            after = with_former(target.container, after)
        if after.prior_access is None:
            after = after.replace(prior_access=rules.prior_access(target, after))
        after = after.replace(access_of_others=rules.access_of_others(target, after))
        if after.io is not None and after.prior_limits is None:
            after = after.replace(prior_limits=rules.prior_limits(target, after))
        if after.partitions and after.rule is None and target.host.has_udev:
            after = after.replace(rule=followed.rule_of(target, after))
        return before, rules.kept_for_peers(target, after)

    def create(self, target: Target[Device], after: Device) -> None:
        target.container.refuse_host_mounts()
        rules.allow(target, after)
        if not is_taken(target.container, after):
            make_node(target.container, after)
        rules.limit(target, after)
        followed.follow(target, after)

    def update(self, target: Target[Device], before: Device, after: Device) -> None:
        if after.prior_access is None:
            # An undo returns the device to others: the rule is theirs.
            rules.revoke(target, before)
        else:
            rules.allow(target, after)
        if not is_taken(target.container, after):
            # The node vanished since it was captured.
            make_node(target.container, after)
        rules.limit(target, after)
        if after.partitions:
            followed.follow(target, after)
        else:
            followed.forget(before.replace(rule=after.rule or before.rule))

    def delete(self, target: Target[Device], before: Device) -> None:
        if target.container.shares_host_mounts:
            return  # nothing was made in the host's own /dev
        followed.forget(before)
        rules.unlimit(target, before)
        if before.former_node is None:
            remove_node(target.container, before)
        else:
            _return_node(target, before)
        rules.revoke(target, before)

    def is_given_back(self, removed: Device, live: Device) -> bool:
        return removed.former_node is not None and is_same_device(removed, live)

    def is_left_to_others(self, made: Device, live: Device | None) -> bool:
        return made.taken_by is not None and live is not None and not is_same_device(made, live)

    def reclaim(self, host: Host, lost: Device) -> None:
        followed.forget(lost)


def _as_made(target: Target[Device], before: Device) -> Device:
    """The node to remove or change: scplan's own, even if others have put another file in its place.

    The access rule and the limits of that other file are not scplan's.
    """
    record = target.peers.get(identity_of(before.target))
    made = before if record is None or is_same_device(before, record) else record
    return made.replace(taken_by=type_in_place(target.container, made))


def _with_defaults(before: Device | None, after: Device) -> Device:
    """`after` with the mode and owner that scplan promises if the entry does not set them: those of its creation.

    An update leaves attributes that are not written as they are; a promised one that has drifted returns to its value.
    """
    if before is None:
        return after.replace(default_mode=after.mode, default_uid=after.uid, default_gid=after.gid)
    values: dict[str, Any] = {}
    for name in ("mode", "uid", "gid"):
        promised, wanted = getattr(after, f"default_{name}"), getattr(after, name)
        if promised is not None:
            values[name] = promised if wanted == getattr(before, name) else wanted
            values[f"default_{name}"] = values[name]
    return after.replace(**values)


def _with_taken_over(target: Target[Device], before: Device | None, after: Device) -> Device:
    """`after` with the former state of a node of others: such a node is changed in place, and never removed.

    A node that was taken over in an earlier run of the container, and has to be made in this one, is scplan's.
    """
    is_kept = before is not None and (after.former_node is not None or not differences(after, before))
    if is_kept or (after.former_node is None and identity_of(after.target) in target.peers):
        return after
    former = node_status(target.container, after)
    if former is None:
        return after.replace(former_node=None)
    inside = "" if before is None else f" {_INSIDE}{before.uid}:{before.gid}"
    return after.replace(former_node=former + inside, default_mode=None, default_uid=None, default_gid=None)


def _inside_ids(former_node: str) -> dict[str, int]:
    """Owner IDs, as the container sees them, of a node that was taken over."""
    uid, _, gid = former_node.partition(_INSIDE)[2].partition(":")
    return {name: int(value) for name, value in (("uid", uid), ("gid", gid)) if value.isdecimal()}


def _return_node(target: Target[Device], device: Device) -> None:
    """Restore the attributes of a node that was taken over, as far as the entry has set them."""
    now = node_status(target.container, device)
    if now is None:
        return
    record = target.peers.get(identity_of(device.target), device)
    now_, former = NodeStatus.decoded(now), NodeStatus.decoded(device.former_node or "")
    set_node_status(
        target.container,
        device,
        now_._replace(
            mode=now_.mode if record.mode is None else former.mode,
            attributes=now_.attributes if record.mode is None else former.attributes,
            uid=now_.uid if record.uid is None else former.uid,
            gid=now_.gid if record.gid is None else former.gid,
        ),
        times=False,
    )


def _one_by_one(directory: Device, nodes: Sequence[str]) -> str:
    """The hint for a directory of nodes. As a mount it would show its nodes, but none could be opened."""
    if not nodes:
        return f"write the nodes in it one by one, such as {directory.source}/NODE:{directory.target}/NODE"
    shown = [f"{node}:{directory.target}{node.removeprefix(directory.source)}" for node in nodes[:_NODES_SHOWN]]
    more = f" and {len(nodes) - _NODES_SHOWN} more" if len(nodes) > _NODES_SHOWN else ""
    return f"write the nodes in it one by one: {', '.join(shown)}{more}"


def _long_form(text: str) -> str:
    """The entry in the long form that a short form with colons in its paths may mean."""
    source, _, rest = text.partition(":/")
    permissions = ""
    if rest and not set(rest.rpartition(":")[2]) - set("rwm"):
        rest, _, permissions = rest.rpartition(":")
    words = [f'source: "{source}"', f'target: "/{rest}"' if rest else "", f"permissions: {permissions or 'rwm'}"]
    return f"{{{', '.join(word for word in words if word)}}}"


def _check_source(host: Host, device: Device) -> None:
    """Raise ScplanError if the host's device is no longer the planned one: its node would be dead."""
    found = host.look_up(device.source)
    if found is None or (found.file_type, found.numbers) != (device.file_type, device.numbers):
        what = "is gone from the host" if found is None else "is not the device any more that was planned"
        raise ScplanError(f"{device.source} {what}", detail=f"device {device.target}", hint="plan again")
