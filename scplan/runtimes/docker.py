"""Docker: the API socket of its daemon. Docker Engine API, /containers/NAME/json."""

from __future__ import annotations

import os
import re
from functools import partial
from typing import Any

from scplan.errors import RecordDamaged, ScplanError
from scplan.linux.processes.process import parent_of, working_directory
from scplan.model.live import ContainerFacts, Status
from scplan.model.provided import ANY_VALUE, Provided
from scplan.runtimes.configured_hooks import DEFAULT_STATE_DIR, state_dirs_in_bundle
from scplan.runtimes.foreign_pid import refuse_foreign
from scplan.runtimes.local_api import NOT_FOUND, Daemons, existing, get, get_one, is_plain, said
from scplan.runtimes.provided import cpu_max, in_container, limit_values, swap_limit
from scplan.runtimes.runtime import ContainerName, Runtime, Signs, Stream, by_name_or_id, is_generated
from scplan.runtimes.state_files import (
    damaged,
    facts_of,
    field,
    labels_of,
    list_directories,
    plain,
    read_state,
    user_directory,
)

_STATE_DIR_OPTION = "--scplan-state-dir="
WRAPPERS = ("scplan-runc", "scplan-crun")
"""OCI runtimes that add scplan's hook to each container; docker has no hooks of its own."""
# The filters are URL-encoded JSON: {"type":["container"],"event":["start"]}.
_STARTS = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%5D%7D"
_OWN_FILE = re.compile(r"(/.+/containers)/[0-9a-f]{64}/(?:hosts|hostname|resolv\.conf)")
_CONTAINERD = ("/run/containerd", "/run/docker/containerd/daemon")


class Docker(Runtime):
    name = "docker"
    has_own_ids = True
    is_place_an_address = True

    def __init__(self) -> None:
        self._daemons = Daemons(self.name, "/_ping")

    def check_reachable(self, place: str) -> None:
        self._daemons.check([place] if place else self.places())

    def _host_of_context(self) -> str | None:
        try:
            return _host_of_context()
        except RecordDamaged as error:
            # Only docker(1)'s settings for this user are damaged: without them it uses the host's daemon.
            self.unreadable["context"] = error
            return None

    def places(self) -> list[str]:
        host = os.environ.get("DOCKER_HOST") or self._host_of_context()
        if host:
            # Containers of a daemon behind tcp:// or ssh:// are not on this host.
            return [host.removeprefix("unix://")] if host.startswith("unix://") else []
        own = user_directory()
        return [*([f"{own}/docker.sock"] if own else []), "/run/docker.sock"]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        return self._find_at(self.places(), reference)

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        """The container by ID, which survives a rename; else by name, since a re-created container has another ID."""
        sockets = [place] if place else self.places()
        found = self._find_at(sockets, container_id) if is_generated(container_id) else []
        return found or self._find_at(sockets, name)

    def _sockets(self, place: str) -> list[str]:
        """Existing sockets for a container: the recorded socket, else all that the environment names."""
        return existing([place] if place else self.places())

    def _find_at(self, sockets: list[str], reference: str) -> list[ContainerFacts]:
        return self._daemons.from_each(sockets, partial(_find, reference)) if is_plain(reference) else []

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        return Signs(streams=tuple(Stream(socket, _STARTS) for socket in ([place] if place else self.places())))

    def in_bundle(self, bundle: str, container_id: str) -> ContainerFacts | None:
        directory = f"{_data_of(bundle)}/{container_id}"
        path = f"{directory}/config.v2.json"
        about = read_state(path) if directory.startswith("/") else None
        if about is None or about.get("ID") != container_id:
            return None
        name = plain(field(about, "Name", str, path).removeprefix("/"), path)
        facts = ContainerFacts(name, Docker.name, container_id, Status.STOPPED)
        return facts._replace(**_made_of(about, read_state(f"{directory}/hostconfig.json")))

    def all(self) -> list[ContainerName]:
        return self._daemons.from_each(existing(self.places()), _names)

    def bundle(self, facts: ContainerFacts) -> str | None:
        for state in _CONTAINERD:
            path = f"{state}/io.containerd.runtime.v2.task/moby/{facts.id}"
            if os.path.exists(f"{path}/config.json"):
                return path
        return None

    def refuse_foreign(self, facts: ContainerFacts) -> None:
        """Accepts a process in a cgroup named for the ID, or with a parent (containerd's shim) called with the ID."""
        refuse_foreign(facts, facts.place, cgroup=f".*{re.escape(facts.id)}.*", monitor=facts.id)

    def provided(self, facts: ContainerFacts) -> Provided:
        """Parts from the bundle, and from the daemon, which has the networks and the changes by `docker update`."""
        bundled = super().provided(facts)
        for socket in existing([facts.place] if facts.place else self.places()):
            with self._daemons.reaching(socket):
                container = get_one(socket, f"/containers/{facts.id}/json")
            if container is not None:
                return bundled.joined(_provided(container, f"{socket}: {facts.name}"))
        return bundled

    def hook_state_dirs(self, facts: ContainerFacts) -> list[str] | None:
        """State directories of the hook: of a running container from its bundle, to which scplan's wrapper added it.

        The daemon is not queried: it does not answer about a starting container, and waits for the hook, which may
        wait for a lock of the caller.
        """
        if facts.status is Status.STOPPED:
            return self._state_dirs_of_runtime(facts)
        # The parent is containerd's shim, whose working directory is the bundle: proc_pid_cwd(5).
        bundle = working_directory(parent_of(facts.pid)) or self.bundle(facts)
        return state_dirs_in_bundle(bundle) if bundle and os.path.exists(f"{bundle}/config.json") else None

    def has_hook(self, facts: ContainerFacts) -> bool:
        """True if the container's OCI runtime is configured in the daemon as scplan's wrapper."""
        return bool(self._state_dirs_of_runtime(facts))

    def _state_dirs_of_runtime(self, facts: ContainerFacts) -> list[str]:
        """State directory in the arguments of the container's OCI runtime, if that is scplan's wrapper; else empty."""
        for socket in self._sockets(facts.place):
            with self._daemons.reaching(socket):
                container = get_one(socket, f"/containers/{facts.id}/json")
                about = get_one(socket, "/info") or {}
            if container is None:
                continue
            where = f"{socket}: {facts.name}"
            chosen = field(container, "HostConfig", dict, where).get("Runtime")
            runtimes = field(about, "Runtimes", dict, socket)
            known = runtimes.get(chosen)
            runtime: dict[str, Any] = known if isinstance(known, dict) else {}
            path = runtime.get("path")
            if not isinstance(path, str) or os.path.basename(path) not in WRAPPERS:
                return []
            arguments = runtime.get("runtimeArgs") or []
            given = (one for one in arguments if isinstance(one, str) and one.startswith(_STATE_DIR_OPTION))
            return [next(given, f"{_STATE_DIR_OPTION}{DEFAULT_STATE_DIR}").removeprefix(_STATE_DIR_OPTION)]
        return []


def _find(reference: str, socket: str) -> list[ContainerFacts]:
    status, answer = get(socket, f"/containers/{reference}/json")
    if status == NOT_FOUND:
        return []
    if status < 400:
        return [_facts(answer, socket)]
    # The daemon refuses an ambiguous ID prefix; the status depends on its version.
    return _all_of(socket, reference, said(answer))


def _all_of(socket: str, reference: str, problem: str) -> list[ContainerFacts]:
    several = by_name_or_id(reference, _names(socket))
    if not several:
        raise ScplanError(f"docker at {socket} can't tell about {reference!r}", detail=problem)
    answers = (get_one(socket, f"/containers/{one.id}/json") for one in several)
    return [_facts(answer, socket) for answer in answers if answer is not None]


def _names(socket: str) -> list[ContainerName]:
    where = f"{socket}: the list of containers"
    answer = get_one(socket, "/containers/json?all=1")
    if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
        raise damaged(where, "it is not a list of objects")
    return [
        ContainerName(_own_name(field(one, "Names", list, where)), field(one, "Id", str, where), socket)
        for one in answer
    ]


def _own_name(names: list[Any]) -> str:
    """The container's name, listed as `/web`; the entries of other containers' links to it are `/other/web`."""
    own = [name[1:] for name in names if isinstance(name, str) and name.count("/") == 1]
    return own[0] if own else ""


def _facts(answer: Any, socket: str) -> ContainerFacts:
    if not isinstance(answer, dict):
        raise damaged(f"{socket}: a container", "it is not an object")
    container_id = field(answer, "Id", str, f"{socket}: a container")
    where = f"{socket}: {container_id}"
    state = field(answer, "State", dict, where)
    running = field(state, "Running", bool, f"{where}: State")
    return facts_of(
        plain(field(answer, "Name", str, where).removeprefix("/"), where),
        Docker.name,
        field(state, "Pid", int, f"{where}: State") if running else 0,
        0,
        id=container_id,
        paused=state.get("Paused") is True,
    )._replace(cgroup=container_id, place=socket, **_made_of(answer, answer.get("HostConfig")))


def _made_of(about: dict[str, Any], host_config: object) -> dict[str, Any]:
    """Image, labels and `is_temporary` (removed at its end), from docker's JSON about a container."""
    config = about.get("Config")
    config = config if isinstance(config, dict) else {}
    image = config.get("Image")
    return {
        "image": image if isinstance(image, str) else "",
        "labels": labels_of(config.get("Labels")),
        "is_temporary": isinstance(host_config, dict) and host_config.get("AutoRemove") is True,
    }


def _data_of(bundle: str) -> str:
    """Directory of the daemon's files about its containers, from its mounts in the bundle; "" if unknown."""
    mounts = (read_state(f"{bundle}/config.json") or {}).get("mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        source = mount.get("source") if isinstance(mount, dict) else None
        # If the container shares the network of another container, the files are of that container.
        found = _OWN_FILE.fullmatch(source) if isinstance(source, str) else None
        if found is not None:
            return found[1]
    return ""


def _provided(container: Any, where: str) -> Provided:
    """Networks, volumes, devices and limits in the daemon's description of a container."""
    networks = field(container, "NetworkSettings", dict, where).get("Networks") or {}
    endpoints = {name: one for name, one in networks.items() if name not in ("none", "host") and isinstance(one, dict)}
    named = {name: f"the NIC of docker's network {name}" for name in endpoints}
    host = field(container, "HostConfig", dict, where)
    mounts = [one.get("Destination") for one in container.get("Mounts") or () if isinstance(one, dict)]
    devices = [one.get("PathInContainer") for one in host.get("Devices") or () if isinstance(one, dict)]
    # Docker's MemorySwap limits memory plus swap; memory.swap.max of cgroup v2 limits swap alone.
    memory, both = host.get("Memory") or 0, host.get("MemorySwap") or 0
    # cpu.max has a quota in µs per period, by default of 100000 µs: 1 CPU is 10^9 NanoCpus. cgroup-v2.rst, "CPU".
    quota = host.get("CpuQuota") or (host.get("NanoCpus") or 0) // 10_000
    limits = limit_values(
        {
            "memory.max": memory,
            "memory.low": host.get("MemoryReservation"),
            "pids.max": host.get("PidsLimit"),
            "cpuset.cpus": host.get("CpusetCpus"),
            "cpuset.mems": host.get("CpusetMems"),
            "cpu.weight": ANY_VALUE if host.get("CpuShares") else None,
            "cpu.max": cpu_max(quota, host.get("CpuPeriod")),
        }
    )
    if both >= memory > 0:
        limits |= swap_limit(both - memory)
    return Provided(
        # libnetwork names NICs in the order in which it attaches them.
        nics={f"eth{index}": origin for index, origin in enumerate(named.values())},
        macs={str(one.get("MacAddress")): named[name] for name, one in endpoints.items() if one.get("MacAddress")},
        mounts={
            in_container(one): "a volume of docker's"
            for one in (*mounts, *(host.get("Tmpfs") or {}))
            if isinstance(one, str)
        },
        devices={in_container(one): "a device of docker's" for one in devices if isinstance(one, str)},
        settings=limits,
    )


def _host_of_context() -> str | None:
    """Endpoint of the context that docker(1) would use; None for the default context."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    context = os.environ.get("DOCKER_CONTEXT") or (read_state(f"{directory}/config.json") or {}).get("currentContext")
    if not isinstance(context, str) or context in ("", "default"):
        return None
    contexts = f"{directory}/contexts/meta"
    damage: RecordDamaged | None = None
    for name in list_directories(contexts):
        path = f"{contexts}/{name}/meta.json"
        try:
            meta = read_state(path) or {}
        except RecordDamaged as error:
            damage = error  # the damaged file may be of another context
            continue
        if meta.get("Name") == context:
            endpoints = field(meta, "Endpoints", dict, path)
            return field(field(endpoints, "docker", dict, path), "Host", str, path)
    if damage is not None:
        raise damage
    raise ScplanError(f"docker's context {context!r} is not in {contexts}", hint="`docker context ls` shows them")
