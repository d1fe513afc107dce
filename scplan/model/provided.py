"""Things that a runtime adds to a container at each start: NICs of its networks, volumes, devices, limits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scplan.startup.named_tuple import NamedTuple

_NONE: Mapping[str, str] = MappingProxyType({})


class Provided(NamedTuple):
    """Parts of a container's configuration in its runtime. Each value names the part: "docker's network web".

    Keys: of `nics` names in the container, of `macs` MAC addresses, of `bridges` the host's bridges that NICs of the
    runtime join, of `mounts` and `devices` paths in the container. `settings` are the cgroup settings of the runtime,
    by their cgroup v2 names, with their values.
    """

    nics: Mapping[str, str] = _NONE
    macs: Mapping[str, str] = _NONE
    bridges: Mapping[str, str] = _NONE
    mounts: Mapping[str, str] = _NONE
    devices: Mapping[str, str] = _NONE
    settings: Mapping[str, frozenset[str]] = MappingProxyType({})

    def sets(self, name: str, value: str) -> bool:
        """True if the runtime has set a cgroup setting to this value, or to any."""
        return bool(self.settings.get(name, frozenset()) & {value, ANY_VALUE})

    def joined(self, other: Provided) -> Provided:
        """The parts of both; on equal keys those of `other` win."""
        settings = {
            name: self.settings.get(name, frozenset()) | other.settings.get(name, frozenset())
            for name in {**self.settings, **other.settings}
        }
        return Provided(
            {**self.nics, **other.nics},
            {**self.macs, **other.macs},
            {**self.bridges, **other.bridges},
            {**self.mounts, **other.mounts},
            {**self.devices, **other.devices},
            settings,
        )


NOTHING_PROVIDED = Provided()
ANY_VALUE = "*"
"""In `settings`: whatever value there is, the runtime has set it."""
