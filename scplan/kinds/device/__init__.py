"""Device nodes with their access rule and I/O limits: see kind.py."""

from __future__ import annotations

from scplan.kinds.device.kind import DeviceKind
from scplan.kinds.device.record import Device, IoLimits

__all__ = ["Device", "DeviceKind", "IoLimits"]
