"""The registry of container runtimes, outermost first: an engine's containers are also known to its OCI runtime.

A runtime's module is imported at its first use, since most configurations name the runtime that they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import cast

from scplan.errors import RecordDamaged
from scplan.runtimes.runtime import Runtime, Runtimes

# By runtime: the class, in the module of that name in this package.
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
        """Runtimes that were used so far."""
        return list(self._made.values())

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES


_REGISTRY = _Registry()
RUNTIMES: Runtimes = _REGISTRY


def unreadable_states() -> list[RecordDamaged]:
    """Errors about damaged state files that were skipped: none is the file of a container that was looked for."""
    return [error for runtime in _REGISTRY.made() for error in runtime.unreadable.values()]
