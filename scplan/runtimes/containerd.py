"""containerd: its task directories, one per namespace and container, and the state files of runc or crun."""

from __future__ import annotations

import os

from scplan.model.live import ContainerFacts
from scplan.runtimes.crun import Crun
from scplan.runtimes.runc import Runc
from scplan.runtimes.runtime import ContainerName, Runtime, Signs, by_name_or_id
from scplan.runtimes.state_files import facts_of, list_directories, pid_in_file

# State directories: of containerd itself, and of the containerd in k3s and rke2.
_STATES = ("/run/containerd", "/run/k3s/containerd")
_TASKS = "io.containerd.runtime.v2.task"
# The shim keeps the OCI runtime's state here, wherever containerd's state directory is.
_OCI_STATES = "/run/containerd/runc"
_OCI_RUNTIMES = (Runc(), Crun())


class Containerd(Runtime):
    """Containers are known by ID. CONTAINERD_ADDRESS and CONTAINERD_NAMESPACE select as for ctr(8)."""

    name = "containerd"
    runs_for_engines = True

    def places(self) -> list[str]:
        address = os.environ.get("CONTAINERD_ADDRESS")
        states = [os.path.dirname(address.removeprefix("unix://"))] if address else _STATES
        return [f"{state}/{_TASKS}" for state in states]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        spaces = _namespaces(self.places())
        found = [space for space in spaces if os.path.isdir(f"{space}/{reference}")]
        if found:
            return [_facts(ContainerName(reference, reference, space)) for space in found]
        return [_facts(one) for one in by_name_or_id(reference, _all_in(spaces))]

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        if not place:
            return self.find(name, None, None)
        return [_facts(ContainerName(name, name, place))] if os.path.isdir(f"{place}/{name}") else []

    def all(self) -> list[ContainerName]:
        return _all_in(_namespaces(self.places()))

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        spaces = [place] if place else self._spaces_of(container_id)
        states = [f"{_OCI_STATES}/{os.path.basename(space)}" for space in spaces]
        files = [file for state in states for file in _files_in(state, container_id)]
        # An absent container may be created in any namespace, so its files are not known yet.
        return Signs(files=(*files, *(f"{space}/{container_id}/init.pid" for space in spaces)), is_polled=not spaces)

    def bundle(self, facts: ContainerFacts) -> str | None:
        spaces = self._spaces_of(facts.id)
        space = facts.place or (spaces[0] if spaces else "")
        return f"{space}/{facts.id}" if space and os.path.isdir(f"{space}/{facts.id}") else None

    def _spaces_of(self, container_id: str) -> list[str]:
        """Directories of the namespaces that have a container with this ID."""
        return [space for space in _namespaces(self.places()) if os.path.isdir(f"{space}/{container_id}")]


def _namespaces(places: list[str]) -> list[str]:
    """Task directories of the namespaces: of CONTAINERD_NAMESPACE if it is set, else of all."""
    chosen = os.environ.get("CONTAINERD_NAMESPACE")
    return [
        f"{place}/{name}"
        for place in places
        for name in ([chosen] if chosen and os.path.isdir(f"{place}/{chosen}") else list_directories(place))
        if chosen in (None, "", name)
    ]


def _all_in(spaces: list[str]) -> list[ContainerName]:
    return [ContainerName(name, name, space) for space in spaces for name in list_directories(space)]


def _files_in(state: str, container_id: str) -> list[str]:
    return [f"{state}/{container_id}/{runtime.file}" for runtime in _OCI_RUNTIMES]


def _facts(one: ContainerName) -> ContainerFacts:
    states, bundle = f"{_OCI_STATES}/{os.path.basename(one.place)}", f"{one.place}/{one.id}"
    for runtime in _OCI_RUNTIMES:
        found = runtime.read(states, one.id)
        if found is not None:
            return found._replace(runtime=Containerd.name, bundle=bundle, place=one.place)
    pid = pid_in_file(f"{one.place}/{one.id}/init.pid", one.id)
    return facts_of(one.name, Containerd.name, pid, 0)._replace(bundle=bundle, place=one.place)
