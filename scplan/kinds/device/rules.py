"""What a container may do with a device: the access rule and the I/O limits of its numbers, shared by all their nodes.

Kernel: the cgroup v1 controllers devices and blkio.
"""

from __future__ import annotations

from collections.abc import Mapping

from scplan.kinds.device.record import NODE_TYPES, Device, IoLimits, is_same_device
from scplan.kinds.kind import Target
from scplan.linux import cgroup_v1
from scplan.linux.cgroup_v1 import Cgroup, DeviceRules, access_without, common_access, join_access

# access


def visible_access(
    device: Device, file_type: str, numbers: str, rules: DeviceRules, peers: Mapping[str, Device]
) -> str:
    """The access that a node answers for: what it asked for and has, and what nothing else explains."""
    kind = file_type[0]
    exact = rules.exact(kind, numbers)
    granted = common_access(device.permissions, join_access(exact, rules.wider(kind, numbers)))
    if device.prior_access is None:
        return granted
    others = [peer.permissions for peer in peers.values() if peer is not device and is_same_device(peer, device)]
    explained = join_access(device.permissions, device.prior_access, *others)
    return join_access(granted, access_without(exact, explained))


def prior_access(target: Target[Device], device: Device) -> str:
    """What the container may do with the device without scplan: as a peer recorded it, or live."""
    for peer in _peers(target, device):
        if peer.prior_access is not None:
            return peer.prior_access
    cgroup = Cgroup(target.container, target.host, "devices")
    rules = cgroup_v1.device_rules(cgroup)
    return rules.exact(_letter(device), device.numbers or "")


def allow(target: Target[Device], device: Device) -> None:
    """Allows what the device's permissions say."""
    _set_access(target, device, device.permissions)


def revoke(target: Target[Device], device: Device) -> None:
    """Takes away what only this node needed; nothing where it was not granted in this life of the container."""
    if device.prior_access is None:
        return
    _set_access(target, device, "")


def _set_access(target: Target[Device], device: Device, own: str) -> None:
    """Allows the union of `own`, what was allowed before scplan, and what the other nodes of the device need."""
    if device.numbers is None or device.file_type not in NODE_TYPES:
        return
    others = [peer.permissions for peer in _peers(target, device)]
    cgroup = Cgroup(target.container, target.host, "devices")
    wanted = join_access(own, device.prior_access or "", *others)
    cgroup_v1.set_exact_access(cgroup, _letter(device), device.numbers, wanted)


# limits


def limits_now(cgroup: Cgroup, device: Device) -> dict[str, int]:
    """The disk's limits and weight by the names of IoLimits; 0 is none."""
    numbers = device.numbers or ""
    return {**cgroup_v1.read_limits(cgroup, numbers), "weight": cgroup_v1.read_weight(cgroup, numbers)}


def prior_limits(target: Target[Device], device: Device) -> str:
    """The disk's limits without scplan, as a peer recorded them, or live."""
    for peer in _peers(target, device):
        if peer.prior_limits is not None:
            return peer.prior_limits
    cgroup = Cgroup(target.container, target.host, "blkio")
    return " ".join(str(value) for value in limits_now(cgroup, device).values())


def limit(target: Target[Device], device: Device) -> None:
    """Sets the limits that the device says anything of."""
    if device.io is None or not device.numbers:
        return
    cgroup = Cgroup(target.container, target.host, "blkio")
    now = limits_now(cgroup, device)
    for name in cgroup_v1.LIMIT_FILES:
        wanted = getattr(device.io, name)
        if wanted is not None and wanted != now[name]:
            cgroup_v1.write_limit(cgroup, name, device.numbers, wanted)
    if device.io.weight is not None and device.io.weight != now["weight"]:
        cgroup_v1.write_weight(cgroup, device.numbers, device.io.weight)


def unlimit(target: Target[Device], device: Device) -> None:
    """Gives back the limits from before, unless another managed node of the disk has some: they are the disk's."""
    if device.prior_limits is None or any(peer.io is not None for peer in _peers(target, device)):
        return
    names = (*cgroup_v1.LIMIT_FILES, "weight")
    former = dict(zip(names, map(int, device.prior_limits.split()), strict=True))
    limit(target, device.but(io=IoLimits(**former)))


def _peers(target: Target[Device], device: Device) -> list[Device]:
    """The other managed nodes of the same device."""
    return [peer for peer in target.peers.values() if peer.target != device.target and is_same_device(peer, device)]


def _letter(device: Device) -> str:
    """As device rules name the type: b or c."""
    return (device.file_type or "")[:1]
