"""Runtimes that keep a directory with a JSON state file per container: runc(8) and crun(1)."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

from scplan.model.live import ContainerFacts
from scplan.runtimes.runtime import ContainerName, Runtime, Signs, by_reference
from scplan.runtimes.state_files import facts_of, field, list_directories, read_state, user_directory


class StateDirectoryRuntime(Runtime):
    """`ROOT/ID/FILE` has the PID of a container, and its start time in clock ticks after boot."""

    file: str
    pid_key: str
    start_key: str

    def places(self) -> list[str]:
        """The root that SCPLAN_RUNC_ROOT or SCPLAN_CRUN_ROOT names, like `--root`; else the default root."""
        chosen = os.environ.get(f"SCPLAN_{self.name.upper()}_ROOT")
        return [os.path.abspath(chosen) if chosen else self.default_root()]

    def default_root(self) -> str:
        """Root directory without `--root`, which podman uses, too."""
        return f"{user_directory() or '/run'}/{self.name}"

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        root = self.places()[0]
        exact = self.read(root, reference)
        if exact is not None:
            return [exact]
        read = (self.read(root, name) for name in by_reference(reference, list_directories(root)))
        return [facts for facts in read if facts is not None]

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        facts = self.read(place or self.places()[0], name)
        return [] if facts is None else [facts]

    def all(self) -> list[ContainerName]:
        root = self.places()[0]
        return [ContainerName(name, name, root) for name in list_directories(root)]

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        return Signs(files=(f"{place or self.places()[0]}/{container_id}/{self.file}",))

    def read(self, root: str, container_id: str) -> ContainerFacts | None:
        """The container whose state is below `root`, which need not be the usual one; None if it does not exist."""
        path = f"{root}/{container_id}/{self.file}"
        state = read_state(path)
        if state is None:
            return None
        started = field(state, self.start_key, int, path) if self.start_key in state else 0
        facts = facts_of(container_id, self.name, field(state, self.pid_key, int, path), started)
        cgroup = self.cgroup_in(state) if facts.pid else ""
        return facts._replace(bundle=self.bundle_in(state) or "", cgroup=cgroup, place=root)

    def bundle(self, facts: ContainerFacts) -> str | None:
        state = read_state(f"{facts.place or self.places()[0]}/{facts.id}/{self.file}")
        return None if state is None else self.bundle_in(state)

    @abstractmethod
    def cgroup_in(self, state: dict[str, Any]) -> str:
        """The cgroup that a state file names, as in ContainerFacts; "" if it names none."""

    @abstractmethod
    def bundle_in(self, state: dict[str, Any]) -> str | None:
        """The bundle that a state file names; None if it names none."""
