"""Partitions that come and go while their disk is plugged in, as udev reports them. linux/devices/udev.py."""

from __future__ import annotations

from scplan.kinds.device.record import Device
from scplan.kinds.kind import Target
from scplan.linux.devices import udev
from scplan.linux.devices.blockdev import disk_name
from scplan.linux.host import Host


def is_followed(host: Host, device: Device) -> bool:
    """True if the disk's partitions are plugged in when they appear. Without udev nothing more can be done."""
    if device.rule is not None and udev.read_rule(device.rule) is not None:
        return True
    return device.partitions and not host.has_udev


def rule_of(target: Target[Device], device: Device) -> str:
    """Path of the udev rule: one for each disk of each container of each state directory."""
    return udev.rule_path(target.state_dir, target.container.runtime, target.container.name, device.target)


def follow(target: Target[Device], device: Device) -> None:
    """Have udev call scplan when a partition of the disk appears or disappears."""
    if not device.partitions or device.rule is None or device.numbers is None:
        return
    from scplan.linux.processes.programs import hook_command

    container = target.container
    command = hook_command(target.state_dir, ["udev", "--runtime", container.runtime, container.name])
    udev.write_rule(device.rule, udev.rule_text(disk_name(device.numbers), command))


def forget(device: Device) -> None:
    """Undo `follow`."""
    if device.rule is not None:
        udev.remove_rule(device.rule)
