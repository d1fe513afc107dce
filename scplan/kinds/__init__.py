"""Registry of the kinds, in the order in which independent changes are made."""

from __future__ import annotations

from typing import Any

from scplan.kinds.cgroup import CgroupKind
from scplan.kinds.device import DeviceKind
from scplan.kinds.kind import Kind
from scplan.kinds.mount import MountKind
from scplan.kinds.nic import NicKind
from scplan.kinds.route import RouteKind

_ALL: tuple[Kind[Any], ...] = (DeviceKind(), NicKind(), RouteKind(), MountKind(), CgroupKind())

KINDS = {kind.name: kind for kind in _ALL}
