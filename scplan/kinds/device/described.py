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
    """Of the nodes that were found, those that no runtime makes by itself."""
    allowed = device_rules(Cgroup(container, host, "devices")) if found else DeviceRules("")
    entries: dict[str, Device] = {}
    left_out: list[tuple[str, str]] = []
    for identity, device in sorted(found.items()):
        if device.target in _OF_RUNTIMES:
            continue
        device = device.but(permissions=_granted(device, allowed))
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
    """What a rule for the very device allows, where there is one; else what the wider ones do.

    That it may be made says nothing: the runtimes' rules allow to make any node.
    """
    exact = allowed.exact((device.file_type or "")[:1], device.numbers or "")
    return exact or device.permissions if device.permissions != "m" or exact else ""


def _reason(host: Host, device: Device) -> str:
    """Why there can be no entry for the node; "" if there can."""
    source = host.look_up(device.source)
    if source is None or (source.file_type, source.numbers) != (device.file_type, device.numbers):
        return f"the host has no node of this {device.file_type} device {device.numbers}"
    if OVERFLOW_ID in (device.uid, device.gid):
        return "the host's own node, which the runtime mounted there: its owner is nobody in the container"
    return "" if device.permissions else f"the container may not use this {device.file_type} device {device.numbers}"


def _entry(container: Container, host: Host, device: Device) -> Device:
    source = host.look_up(device.source)
    is_disk = source is not None and source.whole_disk
    return device.but(
        mode=None if source is not None and source.mode == device.mode else device.mode,
        uid=device.uid or None,
        gid=device.gid or None,
        io=_limits(container, host, device) if is_disk else None,
    )


def _limits(container: Container, host: Host, device: Device) -> IoLimits | None:
    if "blkio" not in host.cgroup_mounts:
        return None
    cgroup = Cgroup(container, host, "blkio")
    limits = {name: value for name, value in rules.limits_now(cgroup, device).items() if value}
    return IoLimits(**limits) if limits and cgroup.is_its_own else None
