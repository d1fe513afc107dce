"""One cgroup setting: its attributes, and its value as shown to users."""

from __future__ import annotations

from scplan.model.resource import Resource, Role, attr
from scplan.model.values import BOOL, TEXT, show_size


class CgroupSetting(Resource):
    """One setting, such as memory.max: its value as cgroup v2 writes it."""

    name: str = attr("name of the cgroup v2 file", TEXT, role=Role.IDENTITY, required=True)
    value: str = attr("what the file holds", TEXT, required=True, examples=("2GiB", "50000 100000", 512))
    required: bool = attr(
        "false: a setting that can't be made is a warning and not an error", BOOL, role=Role.POLICY, default=True
    )
    former: str | None = attr("what was there before scplan set it, given back on removal", TEXT, role=Role.FORMER)
    former_files: str | None = attr(
        "the kernel's files of the setting and of those that depend on it, before scplan set any of them",
        TEXT,
        role=Role.FORMER,
    )
    found: str | None = attr("the same files, as a creation found them", TEXT, role=Role.CARRIED)
    files: str | None = attr("the same files, just before the operation", TEXT, role=Role.CARRIED)

    def shown(self, path: str, value: object) -> str:
        """Memory sizes with their unit; other values unchanged."""
        if path == "value" and self.name.startswith("memory.") and isinstance(value, str) and value.isdecimal():
            return show_size(int(value))
        if path == "former" and self.name.startswith("memory.") and isinstance(value, str) and value.isdecimal():
            return show_size(int(value))
        return super().shown(path, value)
