"""Incus and LXD: /1.0/instances/NAME on the daemon's socket. Incus and LXD REST API."""

from __future__ import annotations

import os
import re
from functools import partial
from typing import Any

from scplan.errors import EngineUnreachable
from scplan.model.live import ContainerFacts
from scplan.model.provided import ANY_VALUE, NOTHING_PROVIDED, Provided
from scplan.runtimes.configured_hooks import state_dirs_in_lxc_configuration
from scplan.runtimes.foreign_pid import refuse_foreign
from scplan.runtimes.local_api import Daemons, existing, get_one, is_plain
from scplan.runtimes.lxc_monitor import init_pid, monitor_title, payload_cgroup
from scplan.runtimes.provided import in_container, limit_values, swap_limit
from scplan.runtimes.runtime import ContainerName, Runtime, by_reference, is_same_place
from scplan.runtimes.state_files import damaged, facts_of, field, plain
from scplan.startup.named_tuple import NamedTuple

_RUNNING = ("Running", "Frozen", "Ready")
_DEFAULT = "default"
_NODES = ("unix-char", "unix-block", "unix-hotplug", "usb", "gpu", "tpm")
# Bind-mounted into every container from the host's nodes: internal/server/instance/drivers/driver_lxc.go.
_OWN_NODES = ("/dev/fuse", "/dev/net/tun")
# By key of an instance's configuration: the cgroup settings that the key sets.
_LIMITS = {
    "limits.memory": ("memory.max", "memory.swap.max", "memory.low", "memory.high"),
    "limits.memory.swap": ("memory.swap.max",),
    "limits.cpu": ("cpuset.cpus", "cpu.weight"),
    "limits.cpu.allowance": ("cpu.max", "cpu.weight"),
    "limits.cpu.priority": ("cpu.weight",),
    "limits.cpu.nodes": ("cpuset.mems",),
    "limits.processes": ("pids.max",),
}
# Errors of Incus and of LXD: the daemon reports an instance as running once its monitor runs, even before its PID.
_NO_PROCESS = ("Invalid PID", "PID of LXC instance could not be initialized")
_PROJECT_IS = "?project="
_OF_ONE_DAEMON = ("/var/lib/incus", "/run/incus")
_DIRECTORIES = (*_OF_ONE_DAEMON, "/var/lib/lxd", "/var/snap/lxd/common/lxd")


class Incus(Runtime):
    """Instances are known by name. INCUS_DIR, LXD_DIR and INCUS_PROJECT select as for the engines' command lines."""

    name = "incus"
    asks_for_hooks = True

    def __init__(self) -> None:
        self._daemons = Daemons(self.name, "/1.0")

    def check_reachable(self, place: str) -> None:
        self._daemons.check([project_of(place).socket] if place else self.places())

    def places(self) -> list[str]:
        chosen = [directory for key in ("INCUS_DIR", "LXD_DIR") if (directory := os.environ.get(key))]
        return [f"{directory}/unix.socket" for directory in chosen or _DIRECTORIES]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        return self._daemons.from_each(self.places(), partial(_find, reference)) if is_plain(reference) else []

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        if not place:
            return self.find(name, None, None)
        project = project_of(place)
        return self._daemons.from_each([project.socket], lambda _: _exact(project, name)) if is_plain(name) else []

    def all(self) -> list[ContainerName]:
        return self._daemons.from_each(
            existing(self.places()), lambda socket: _names(Project(socket, _chosen_project()))
        )

    def refuse_foreign(self, facts: ContainerFacts) -> None:
        """Accepts a process in the instance's cgroup, or with the instance's monitor as its parent."""
        project = project_of(facts.place)
        own = project.own_name(facts.name)
        directory = f"{os.path.dirname(project.socket)}/containers"
        refuse_foreign(facts, project.socket, cgroup=payload_cgroup(own), monitor=monitor_title(directory, own))

    def provided(self, facts: ContainerFacts) -> Provided:
        """Devices and limits of the instance and its profiles; the rest is in the configuration for LXC."""
        instance, where = self._instance(facts)
        if instance is None:
            return NOTHING_PROVIDED
        devices = field(instance, "expanded_devices", dict, where)
        return _provided(devices, field(instance, "expanded_config", dict, where))

    def hook_state_dirs(self, facts: ContainerFacts) -> list[str] | None:
        """State directories of the hook in `raw.lxc` of the instance or of one of its profiles."""
        instance, where = self._instance(facts)
        raw = None if instance is None else field(instance, "expanded_config", dict, where).get("raw.lxc")
        return state_dirs_in_lxc_configuration(raw) if isinstance(raw, str) else []

    def _instance(self, facts: ContainerFacts) -> tuple[Any, str]:
        """(the daemon's description of the instance, its source for messages); (None, "") if there is no instance."""
        chosen = [Project(socket, _chosen_project()) for socket in existing(self.places())]
        for project in [project_of(facts.place)] if facts.place else chosen:
            with self._daemons.reaching(project.socket):
                instance = project.metadata(f"instances/{facts.name}")
            if instance is not None:
                return instance, f"{project.socket}: {facts.name}"
        return None, ""


def _provided(expanded: dict[str, Any], config: dict[str, Any]) -> Provided:
    nics: dict[str, str] = {}
    mounts: dict[str, str] = {}
    devices = dict.fromkeys(_OWN_NODES, "a device of its own")
    settings: dict[str, frozenset[str]] = {}
    for name, device in expanded.items():
        options = device if isinstance(device, dict) else {}
        path = options.get("path") or options.get("source")
        if options.get("type") in ("nic", "infiniband"):
            nics[options.get("name") or config.get(f"volatile.{name}.name") or name] = f"the NIC of its device {name}"
        elif options.get("type") == "disk" and isinstance(path, str) and path != "/":
            mounts[in_container(path)] = f"its device {name}"
        elif options.get("type") in _NODES and isinstance(path, str):
            devices[in_container(path)] = f"its device {name}"
    for key, value in config.items():
        for setting in _LIMITS.get(key, ()) if value else ():
            settings[setting] = frozenset((ANY_VALUE,))
    settings |= {name: settings[name] | values for name, values in _memory_limits(config).items()}
    # Incus creates a node of its own for each unix device, and bind-mounts it: a device is a mount, too.
    return Provided(nics=nics, mounts={**mounts, **devices}, devices={**mounts, **devices}, settings=settings)


def _memory_limits(config: dict[str, Any]) -> dict[str, frozenset[str]]:
    """Limits of memory and swap in bytes, without a limit that is a share of the host's memory ("50%").

    Without a size for swap, swap is limited to none: internal/server/instance/drivers/driver_lxc.go.
    """
    limit_bytes = _bytes(config.get("limits.memory"))
    if limit_bytes is None or config.get("limits.memory.enforce") == "soft":
        return {}
    return limit_values({"memory.max": limit_bytes}) | swap_limit(_bytes(config.get("limits.memory.swap")) or 0)


def _bytes(text: object) -> int | None:
    """Bytes of a size such as 512MiB; None for other texts. shared/units/units.go."""
    match = re.fullmatch(r"(\d+)(?:([kKMGTPE]?)(i?)B)?", text, re.ASCII) if isinstance(text, str) else None
    if match is None:
        return None
    unit_bytes: int = (1024 if match[3] else 1000) ** " kmgtpe".index((match[2] or " ").lower())
    return int(match[1]) * unit_bytes


class Project(NamedTuple):
    """A project of the daemon at a socket. Each project can have an instance of the same name."""

    socket: str
    name: str

    @property
    def place(self) -> str:
        """The project's place in facts and records."""
        return f"{self.socket}{_PROJECT_IS}{self.name}"

    def own_name(self, instance: str) -> str:
        """Name of the instance's LXC container."""
        return instance if self.name == _DEFAULT else f"{self.name}_{instance}"

    def target(self, path: str) -> str:
        return f"/1.0/{path}?project={self.name}"

    def metadata(self, path: str) -> Any:
        """The `metadata` of a response; None if the daemon has no such object."""
        target = self.target(path)
        answer = get_one(self.socket, target)
        if answer is None:
            return None
        if not isinstance(answer, dict) or "metadata" not in answer:
            raise damaged(f"{self.socket}: {target}", "it has no metadata")
        return answer["metadata"]


def project_of(place: str) -> Project:
    """The project that a place names."""
    socket, _, name = place.partition(_PROJECT_IS)
    return Project(socket, name or _DEFAULT)


def is_same_project(one: str, other: str) -> bool:
    """True if both places are the same project; an unknown socket matches any socket."""
    first, second = project_of(one), project_of(other)
    return first.name == second.name and (
        is_same_place(first.socket, second.socket)
        or {os.path.dirname(first.socket), os.path.dirname(second.socket)} == set(_OF_ONE_DAEMON)
    )


def _chosen_project() -> str:
    return os.environ.get("INCUS_PROJECT") or _DEFAULT


def _names(project: Project) -> list[ContainerName]:
    rows = project.metadata("instances")
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise damaged(f"{project.socket}: {project.target('instances')}", "it is not a list of paths")
    # "/1.0/instances/web", with "?project=other" outside of the default project.
    names = [row.rpartition("/")[2].partition("?")[0] for row in rows]
    return [ContainerName(name, name, project.place) for name in names]


def _find(reference: str, socket: str) -> list[ContainerFacts]:
    project = Project(socket, _chosen_project())
    exact = _exact(project, reference)
    names = [] if exact else by_reference(reference, (one.name for one in _names(project)))
    return exact or [facts for name in names if (facts := _facts(project, name)) is not None]


def _exact(project: Project, name: str) -> list[ContainerFacts]:
    facts = _facts(project, name)
    return [] if facts is None else [facts]


def _facts(project: Project, name: str) -> ContainerFacts | None:
    """Facts of an instance; None if it does not exist, or is a virtual machine, whose process is no container."""
    instance = project.metadata(f"instances/{name}")
    if instance is None:
        return None
    where = f"{project.socket}: {name}"
    if not isinstance(instance, dict):
        raise damaged(where, "it is not an object")
    if field(instance, "type", str, where) != "container":
        return None
    _refuse_other_member(project, name, instance.get("location"))
    status = field(instance, "status", str, where)
    pid = _pid(project, name) if status in _RUNNING else 0
    known = plain(field(instance, "name", str, where), where)
    return facts_of(known, Incus.name, pid, 0, paused=status == "Frozen")._replace(place=project.place)


def _refuse_other_member(project: Project, name: str, location: object) -> None:
    """Raises EngineUnreachable for an instance on another cluster member: its PID is of another host."""
    if location in (None, "", "none"):
        return
    answer = get_one(project.socket, "/1.0")
    server = answer.get("metadata") if isinstance(answer, dict) else None
    environment = server.get("environment") if isinstance(server, dict) else None
    own = environment.get("server_name") if isinstance(environment, dict) else None
    if location != own:
        raise EngineUnreachable(
            f"instance {name} is on cluster member {location}, and this is {own}",
            hint=f"run scplan on {location}; `scplan state rm {name}` forgets what is recorded here",
        )


def _pid(project: Project, name: str) -> int:
    """PID of the first process; 0 for an instance without a process, which is starting or ending.

    LXC's monitor returns it at once; the daemon first reads the state of disks and interfaces, which takes 40 ms.
    """
    pid = init_pid(f"{os.path.dirname(project.socket)}/containers/{project.own_name(name)}")
    if pid:
        return pid
    try:
        state = project.metadata(f"instances/{name}/state")
    except EngineUnreachable as error:
        if error.diagnostics[0].detail.startswith(_NO_PROCESS):
            return 0
        raise
    return field(state, "pid", int, f"{project.socket}: state of {name}") if isinstance(state, dict) else 0
