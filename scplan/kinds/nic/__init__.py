"""Network interfaces: see kind.py."""

from __future__ import annotations

from scplan.kinds.nic.kind import NicKind
from scplan.kinds.nic.record import Nic

__all__ = ["Nic", "NicKind"]
