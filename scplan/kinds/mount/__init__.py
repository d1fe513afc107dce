"""Bind mounts of host files and directories: see kind.py."""

from __future__ import annotations

from scplan.kinds.mount.kind import MountKind
from scplan.kinds.mount.record import BindMount

__all__ = ["BindMount", "MountKind"]
