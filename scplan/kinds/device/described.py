"""The devices of a container as entries of a file, for `scplan import`."""

from __future__ import annotations

from collections.abc import Mapping

from scplan.kinds.device import rules
from scplan.kinds.device.record import Device, IoLimits
from scplan.kinds.kind import Described
from scplan.linux.cgroups.cgroup_v1 import Cgroup, DeviceRules, device_rules
from scplan.linux.container import OVERFLOW_ID, Container
from scplan.linux.host import Host

_OF_RUNTIMES = frozenset(
    f"/dev/{name}" for name in ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero")
)
"""Nodes that the OCI runtime specification has in every container ("Default Devices")."""


def described(container: Container, host: Host, found: Mapping[str, Device]) -> Described[Device]:
    """The nodes found in a container, as entries, without the nodes that every runtime makes."""
    allowed = device_rules(Cgroup(container, host, "devices")) if found else DeviceRules("")
    entries: dict[str, Device] = {}
    left_out: list[tuple[str, str]] = []
    for identity, device in sorted(found.items()):
        if device.target in _OF_RUNTIMES:
            continue
        device = device.replace(permissions=_granted(device, allowed))
        reason = _reason(host, device)
        if reason:
            left_out.append((device.target, reason))
        else:
            entries[identity] = _entry(container, host, device)
    usual = [device.target for device in found.values() if device.target in _OF_RUNTIMES]
    if usual:
        left_out.append((", ".join(sorted(usual)), "nodes that runtimes make"))
    return Described(entries, tuple(left_out))


def _granted(device: Device, allowed: DeviceRules) -> str:
    """Access that a rule for exactly this device allows, if there is one; else the access that wider rules allow.

    Permission to make the node (m) does not count: the runtimes' rules allow to make any node.
    """
    exact = allowed.exact((device.file_type or "")[:1], device.numbers or "")
    return exact or device.permissions if device.permissions != "m" or exact else ""


def _reason(host: Host, device: Device) -> str:
    """Reason why no entry can make the node; "" if an entry can."""
    source = host.look_up(device.source)
    if source is None or (source.file_type, source.numbers) != (device.file_type, device.numbers):
        return f"the host has no node of this {device.file_type} device {device.numbers}"
    # An owner that the container's user namespace does not map is shown as the overflow ID. user_namespaces(7)
    if OVERFLOW_ID in (device.uid, device.gid):
        return "the host's own node, which the runtime mounted there: its owner is nobody in the container"
    return "" if device.permissions else f"the container may not use this {device.file_type} device {device.numbers}"


def _entry(container: Container, host: Host, device: Device) -> Device:
    """The node as an entry, without values that scplan sets anyway."""
    source = host.look_up(device.source)
    is_disk = source is not None and source.whole_disk
    return device.replace(
        mode=None if source is not None and source.mode == device.mode else device.mode,
        uid=device.uid or None,
        gid=device.gid or None,
        io=_limits(container, host, device) if is_disk else None,
    )


def _limits(container: Container, host: Host, device: Device) -> IoLimits | None:
    """The disk's limits as an entry has them; None if there are none, or the container has no cgroup of its own."""
    if "blkio" not in host.cgroup_mounts:
        return None
    cgroup = Cgroup(container, host, "blkio")
    limits = {name: value for name, value in rules.limits_now(cgroup, device).items() if value}
    return IoLimits(**limits) if limits and cgroup.is_its_own else None
