"""Incus and LXD: /1.0/instances/NAME on the socket of their daemon. Incus and LXD REST API."""

from __future__ import annotations

import os
from typing import Any

from scplan.model.live import ContainerFacts
from scplan.runtimes.configured_hooks import is_in_lxc_configuration
from scplan.runtimes.local_api import existing, get_one, is_plain
from scplan.runtimes.lxc_monitor import init_pid
from scplan.runtimes.runtime import ContainerName, Runtime, by_reference
from scplan.runtimes.state_files import damaged, facts_of, field, plain

_RUNNING = ("Running", "Frozen", "Ready")
_DIRECTORIES = ("/var/lib/incus", "/run/incus", "/var/lib/lxd", "/var/snap/lxd/common/lxd")


class Incus(Runtime):
    """Instances are known by name. INCUS_DIR, LXD_DIR and INCUS_PROJECT choose as they do for the command line."""

    name = "incus"

    def places(self) -> list[str]:
        chosen = [directory for key in ("INCUS_DIR", "LXD_DIR") if (directory := os.environ.get(key))]
        return [f"{directory}/unix.socket" for directory in chosen or _DIRECTORIES]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        found: list[ContainerFacts] = []
        for socket in existing(self.places()) if is_plain(reference) else ():
            exact = _facts(socket, reference)
            names = [reference] if exact else by_reference(reference, (one.name for one in _names(socket)))
            found += [facts for name in names if (facts := exact or _facts(socket, name)) is not None]
        return found

    def all(self) -> list[ContainerName]:
        return [one for socket in existing(self.places()) for one in _names(socket)]

    def has_hook(self, facts: ContainerFacts) -> bool:
        """Whether `raw.lxc` of the instance, or of a profile of it, runs scplan's hook at start."""
        for socket in existing(self.places()):
            instance = _metadata(socket, _target(f"instances/{facts.name}"))
            if instance is not None:
                raw = field(instance, "expanded_config", dict, f"{socket}: {facts.name}").get("raw.lxc")
                return isinstance(raw, str) and is_in_lxc_configuration(raw)
        return False


def _project() -> str:
    return os.environ.get("INCUS_PROJECT") or "default"


def _target(path: str) -> str:
    return f"/1.0/{path}?project={_project()}"


def _metadata(socket: str, target: str) -> Any:
    """What an answer is about; None when there is no such thing."""
    answer = get_one(socket, target)
    if answer is None:
        return None
    if not isinstance(answer, dict) or "metadata" not in answer:
        raise damaged(f"{socket}: {target}", "it has no metadata")
    return answer["metadata"]


def _names(socket: str) -> list[ContainerName]:
    target = _target("instances")
    rows = _metadata(socket, target)
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise damaged(f"{socket}: {target}", "it is not a list of paths")
    # "/1.0/instances/web", with "?project=other" in other projects than the default one.
    names = [row.rpartition("/")[2].partition("?")[0] for row in rows]
    return [ContainerName(name, name, socket) for name in names]


def _facts(socket: str, name: str) -> ContainerFacts | None:
    """None when there is no such instance, and for virtual machines: their process is no container."""
    instance = _metadata(socket, _target(f"instances/{name}"))
    if instance is None:
        return None
    where = f"{socket}: {name}"
    if not isinstance(instance, dict):
        raise damaged(where, "it is not an object")
    if field(instance, "type", str, where) != "container":
        return None
    status = field(instance, "status", str, where)
    pid = _pid(socket, name) if status in _RUNNING else 0
    return facts_of(plain(field(instance, "name", str, where), where), Incus.name, pid, 0, paused=status == "Frozen")


def _pid(socket: str, name: str) -> int:
    """The first process. The monitor tells it at once; the daemon looks at disks and interfaces first, for 40 ms."""
    project = _project()
    directory = f"{os.path.dirname(socket)}/containers/{name if project == 'default' else f'{project}_{name}'}"
    pid = init_pid(directory)
    if pid:
        return pid
    state = _metadata(socket, _target(f"instances/{name}/state"))
    return field(state, "pid", int, f"{socket}: state of {name}") if isinstance(state, dict) else 0
