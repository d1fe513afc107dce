"""Things that a runtime puts into a container by itself at each start: its network's NICs, volumes, devices, limits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scplan.startup.named_tuple import NamedTuple

_NONE: Mapping[str, str] = MappingProxyType({})


class Provided(NamedTuple):
    """The parts of one container's configuration in its runtime; each value names the part ("docker's network web").

    `nics` are by name in the container, `macs` by MAC address, and `bridges` by the host's bridge that NICs of the
    runtime join. `mounts` and `devices` are by path in the container. `settings` are cgroup settings that it sets, by
    their v2 names, with the values.
    """

    nics: Mapping[str, str] = _NONE
    macs: Mapping[str, str] = _NONE
    bridges: Mapping[str, str] = _NONE
    mounts: Mapping[str, str] = _NONE
    devices: Mapping[str, str] = _NONE
    settings: Mapping[str, frozenset[str]] = MappingProxyType({})

    def joined(self, other: Provided) -> Provided:
        """The parts of both; `other` counts more."""
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
