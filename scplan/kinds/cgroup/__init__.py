"""Cgroup settings under their v2 names; on v1 written to the equivalent files. cgroups(7), admin-guide/cgroup-v1."""

from __future__ import annotations

from scplan.kinds.cgroup.kind import CgroupKind
from scplan.kinds.cgroup.record import CgroupSetting
from scplan.kinds.cgroup.settings import SETTINGS

__all__ = ["SETTINGS", "CgroupKind", "CgroupSetting"]
