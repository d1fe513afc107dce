"""The registry of container runtimes: outermost first, since an engine's containers are known to what it is built on.

Each is imported when it is asked for first: most configurations name the one that they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import cast

from scplan.errors import RecordDamaged
from scplan.runtimes.runtime import Runtime, Runtimes

# The module below this package, and its class.
_CLASSES = {
    "docker": "Docker",
    "podman": "Podman",
    "containerd": "Containerd",
    "isulad": "Isulad",
    "incus": "Incus",
    "lxc": "Lxc",
    "nspawn": "Nspawn",
    "runc": "Runc",
    "crun": "Crun",
    "process": "Process",
}


class _Registry(Mapping[str, Runtime]):
    def __init__(self) -> None:
        self._made: dict[str, Runtime] = {}

    def __getitem__(self, name: str) -> Runtime:
        if name not in self._made:
            self._made[name] = cast(Runtime, getattr(import_module(f"scplan.runtimes.{name}"), _CLASSES[name])())
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def made(self) -> list[Runtime]:
        """The runtimes that were asked for so far."""
        return list(self._made.values())

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES


_REGISTRY = _Registry()
RUNTIMES: Runtimes = _REGISTRY


def unreadable_states() -> list[RecordDamaged]:
    """Why state files of runtimes were left out: they are damaged, and not those of a container that was looked for."""
    return [error for runtime in _REGISTRY.made() for error in runtime.unreadable.values()]
