"""Access rule and I/O limits of a device, which all nodes with its numbers share.

Kernel: the cgroup v1 controllers devices and blkio.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scplan.kinds.device.record import NODE_TYPES, Device, IoLimits, is_same_device
from scplan.kinds.kind import Target
from scplan.kinds.paths import identity_of
from scplan.linux.cgroups import cgroup_v1
from scplan.linux.cgroups.cgroup_v1 import Cgroup, DeviceRules, access_without, common_access, join_access

# access


def visible_access(
    device: Device, file_type: str, numbers: str, rules: DeviceRules, peers: Mapping[str, Device]
) -> str:
    """Access that counts as the node's: requested and granted, and any that nothing else explains."""
    kind = file_type[0]
    exact = rules.exact(kind, numbers)
    granted = common_access(device.permissions, join_access(exact, rules.wider(kind, numbers)))
    if device.prior_access is None:
        return granted
    others = [peer.permissions for peer in peers.values() if peer is not device and is_same_device(peer, device)]
    explained = join_access(device.permissions, device.prior_access, *others)
    return join_access(granted, access_without(exact, explained))


def in_force(device: Device, file_type: str, numbers: str, rules: DeviceRules) -> str | None:
    """Access of the container if rules for more than this device allow more than its permissions; else None.

    Permission to make nodes (m) is not counted as more: every OCI runtime allows it.
    """
    wider = rules.wider(file_type[0], numbers)
    if not access_without(common_access(wider, "rw"), device.permissions):
        return None
    return join_access(rules.exact(file_type[0], numbers), wider)


def prior_access(target: Target[Device], device: Device) -> str:
    """Access of the container to the device without scplan: as recorded by a peer, or live."""
    for peer in _peers(target, device):
        if peer.prior_access is not None:
            return peer.prior_access
    return _exact_now(target, device)


def access_of_others(target: Target[Device], device: Device) -> str:
    """Access of the container to the device now, without the access that other nodes need or had found.

    An undo that removes the node restores this access: other operations of the apply on nodes of the device may have
    removed it by then, and none of their records has it.
    """
    explained = [text for peer in _peers(target, device) for text in (peer.permissions, peer.prior_access or "")]
    return access_without(_exact_now(target, device), join_access(device.prior_access or "", *explained))


def _exact_now(target: Target[Device], device: Device) -> str:
    rules = cgroup_v1.device_rules(Cgroup(target.container, target.host, "devices"))
    return rules.exact(_letter(device), device.numbers or "")


def allow(target: Target[Device], device: Device) -> None:
    """Allow the access that the device's permissions name."""
    _set_access(target, device, device.permissions)


def revoke(target: Target[Device], device: Device) -> None:
    """Remove the access that only this node needed; nothing if it was not granted in this run of the container."""
    if device.prior_access is None:
        return
    _set_access(target, device, device.access_of_others or "")


def _set_access(target: Target[Device], device: Device, own: str) -> None:
    """Allow the union of `own`, the access from before scplan, and the access that other nodes of the device need."""
    if device.numbers is None or device.file_type not in NODE_TYPES:
        return
    others = [peer.permissions for peer in _peers(target, device)]
    cgroup = Cgroup(target.container, target.host, "devices")
    wanted = join_access(own, device.prior_access or "", *others)
    cgroup_v1.set_exact_access(cgroup, _letter(device), device.numbers, wanted)


# limits

NAMES = (*cgroup_v1.LIMIT_FILES, "weight")


def limits_now(cgroup: Cgroup, device: Device) -> dict[str, int]:
    """The disk's limits and weight by the names of IoLimits; 0 is none."""
    numbers = device.numbers or ""
    return {**cgroup_v1.read_limits(cgroup, numbers), "weight": cgroup_v1.read_weight(cgroup, numbers)}


def prior_limits(target: Target[Device], device: Device) -> str:
    """The disk's limits without scplan, as recorded by a peer, or live."""
    for peer in _peers(target, device):
        if peer.prior_limits is not None:
            return peer.prior_limits
    cgroup = Cgroup(target.container, target.host, "blkio")
    return " ".join(str(value) for value in limits_now(cgroup, device).values())


def limits_before(target: Target[Device], before: Device) -> IoLimits:
    """Limits to which an undo returns the disk: none for limits that only other nodes of the disk set.

    For limits that this node sets, the values that the plan found: by now another operation may have changed them for a
    peer.
    """
    cgroup = Cgroup(target.container, target.host, "blkio")
    now = limits_now(cgroup, before)
    own, peers = _set_by(target.peers.get(identity_of(before.target))), _set_by(*_peers(target, before))
    found = {}
    for name, value in now.items():
        planned = getattr(before.io, name) if before.io is not None else None
        if name in own:
            found[name] = value if planned is None else planned
        else:
            found[name] = None if name in peers else value
    return IoLimits(**found)


def kept_for_peers(target: Target[Device], device: Device) -> Device:
    """`device` with the peers' values for limits that it would lift and other nodes of the disk need."""
    if device.io is None:
        return device
    peers = _peers(target, device)
    needed = {name: asked_by(peers, name) for name in NAMES if getattr(device.io, name) == 0}
    return device.replace(io=device.io.replace(**{name: value for name, value in needed.items() if value}))


def limit(target: Target[Device], device: Device) -> None:
    """Set the limits that the device's entry names."""
    if device.io is not None:
        _set_limits(target, device, {name: getattr(device.io, name) for name in NAMES})


def unlimit(target: Target[Device], device: Device) -> None:
    """Return the limits that the device has set to those that other nodes of the disk need, else to the former ones."""
    record = target.peers.get(identity_of(device.target))
    names, peers = _set_by(record if record is not None else device), _peers(target, device)
    values: dict[str, int | None] = {name: asked_by(peers, name) for name in names}
    if device.prior_limits is not None:
        former = dict(zip(NAMES, map(int, device.prior_limits.split()), strict=True))
        values = {name: former[name] if value is None else value for name, value in values.items()}
        values |= _lifted(target, device, {name: one for name, one in former.items() if one and name not in names})
    if values:
        _set_limits(target, device, values)


def _lifted(target: Target[Device], device: Device, former: Mapping[str, int]) -> dict[str, int]:
    """Former limits of the disk that are lifted now: an entry had set them, and no longer does."""
    if not former:
        return {}
    now, others = limits_now(Cgroup(target.container, target.host, "blkio"), device), _set_by(*_peers(target, device))
    return {name: value for name, value in former.items() if not now[name] and name not in others}


def asked_by(peers: Iterable[Device], name: str) -> int | None:
    """The strictest limit that nodes of one disk request; None if none requests any, 0 if all request no limit."""
    asked = [value for peer in peers if peer.io is not None and (value := getattr(peer.io, name)) is not None]
    return min((value for value in asked if value), default=0) if asked else None


def contradiction(one: Device, other: Device) -> str:
    """Limits of one disk that two nodes of it set differently, in words; "" if there are none."""
    if one.io is None or other.io is None:
        return ""
    for path, attribute, value in one.io.leaves():
        there = other.io.get(path)
        if None not in (value, there) and value != there:
            return (
                f"{path} is {attribute.show(value)} here and {attribute.show(there)} for {other.target}, a node of the"
                " same disk: the kernel has one limit for both"
            )
    return ""


def _set_by(*devices: Device | None) -> set[str]:
    """Names of the limits that any of these nodes sets."""
    return {
        name
        for device in devices
        if device is not None and device.io is not None
        for name in NAMES
        if getattr(device.io, name) is not None
    }


def _set_limits(target: Target[Device], device: Device, values: Mapping[str, int | None]) -> None:
    """Write the limits that are not None and differ from the live ones. admin-guide/cgroup-v1/blkio-controller"""
    if not device.numbers or device.file_type != "block":
        return
    cgroup = Cgroup(target.container, target.host, "blkio")
    now = limits_now(cgroup, device)
    for name, value in values.items():
        if value is None or value == now[name]:
            continue
        if name == "weight":
            cgroup_v1.write_weight(cgroup, device.numbers, value)
        else:
            cgroup_v1.write_limit(cgroup, name, device.numbers, value)


def _peers(target: Target[Device], device: Device) -> list[Device]:
    """The other managed nodes of the same device."""
    return [peer for peer in target.peers.values() if peer.target != device.target and is_same_device(peer, device)]


def _letter(device: Device) -> str:
    """Type letter of the device in the files devices.allow and devices.deny: b or c."""
    return (device.file_type or "")[:1]
