"""Owners of resources in a namespace or cgroup that several containers share, as the containers of a pod do.

To the kernel such a resource is one object, whichever container leads to it. A resource that one container owns is not
adopted, made or removed for another container.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property

from scplan.errors import Diagnostic, ScplanError, Severity
from scplan.kinds import KINDS
from scplan.linux.processes.namespaces import namespace_id
from scplan.linux.processes.process import start_of
from scplan.linux.state_dirs import state_dirs
from scplan.model.address import Address
from scplan.model.change import Action, Plan
from scplan.model.live import ContainerFacts, Status
from scplan.planning.making import Owner
from scplan.store.state import Record, State
from scplan.workflow.recorded import is_plugged_in
from scplan.workflow.scene import Scene

_TAKING = frozenset({Action.CREATE, Action.ADOPT})


def shared_in(made: Plan, scene: Scene, state: State, boot_id: str) -> tuple[dict[Address, Owner], list[Diagnostic]]:
    """(other owners of the resources by address of a planned change, warnings about records that can't be read)

    Nothing is read if the plan creates, adopts or removes nothing.
    """
    actions = {*_TAKING, Action.DELETE}
    changed = [change for change in made.changes if change.action in actions and not change.at_next_start]
    if not changed:
        return {}, []
    neighbours = _Neighbours(scene, state, boot_id)
    found: dict[Address, Owner] = {}
    for change in changed:
        owner = neighbours.owner(change.address, is_taking=change.action in _TAKING)
        if owner is not None:
            found[change.address] = owner
    return found, neighbours.problems


class _Neighbours:
    """Other containers with an equal kind and identity in one namespace or cgroup."""

    def __init__(self, scene: Scene, state: State, boot_id: str) -> None:
        self._scene = scene
        self._state = state
        self._boot_id = boot_id
        self.problems: list[Diagnostic] = []
        self._places: dict[tuple[int, str], str] = {}
        self._order = {name: rank for rank, name in enumerate(scene.containers)}

    def owner(self, address: Address, *, is_taking: bool) -> Owner | None:
        """The other owner of the resource; None if there is none.

        If the plan creates or adopts the resource: a container that owns it, or is written earlier in the files. If the
        plan removes it: a container that keeps it, or, if all remove it, a container that is written earlier.
        """
        facts = self._scene.containers[address.container]
        place = self._place(facts, address.kind)
        if not place:
            return None
        for other in self._of_name.get((address.kind, address.identity), ()):
            if other.container == address.container:
                continue
            comes_first = self._order[other.container] < self._order[address.container]
            is_desired, is_owned = other in self._scene.desired, other in self._scene.owned
            has_it = (is_owned or comes_first) if is_taking else (is_owned and (is_desired or comes_first))
            if has_it and self._place(self._scene.containers[other.container], other.kind) == place:
                return Owner(other)
        return next(self._elsewhere(address, place), None)

    def _elsewhere(self, address: Address, place: str) -> Iterator[Owner]:
        """Owners of the resource outside the scene: other records, and other state directories of the host."""
        for directory, record in self._recorded.get((address.kind, address.identity), ()):
            if self._is_plugged_in(record):
                facts = ContainerFacts(
                    record.name, record.runtime, record.id, Status.RUNNING, record.pid, record.start_time
                )
                if self._place(facts, address.kind) == place:
                    yield Owner(address._replace(container=record.name), directory)

    def _is_plugged_in(self, record: Record) -> bool:
        """True if the record's container runs; True with a warning if this is unknown."""
        try:
            return is_plugged_in(record, self._boot_id)
        except ScplanError as error:
            self.problems.append(error.diagnostics[0]._replace(severity=Severity.WARNING))
            return True

    @cached_property
    def _of_name(self) -> Mapping[tuple[str, str], list[Address]]:
        """Addresses of the scene by kind and identity."""
        found: dict[tuple[str, str], list[Address]] = {}
        for address in dict.fromkeys((*self._scene.desired, *self._scene.owned)):
            found.setdefault((address.kind, address.identity), []).append(address)
        return found

    @cached_property
    def _recorded(self) -> Mapping[tuple[str, str], list[tuple[str, Record]]]:
        """(state directory, "" for this one; record) of containers outside the scene, by kind and identity."""
        found: dict[tuple[str, str], list[tuple[str, Record]]] = {}
        for directory, record in self._records():
            for address in record.resources:
                found.setdefault((address.kind, address.identity), []).append((directory, record))
        return found

    def _records(self) -> Iterator[tuple[str, Record]]:
        own = {(facts.runtime, facts.name) for facts in self._scene.containers.values()}
        yield from (("", record) for record in self._readable(self._state) if (record.runtime, record.name) not in own)
        for directory in state_dirs():
            if directory != os.path.realpath(self._state.directory):
                yield from ((directory, record) for record in self._readable(State(directory, KINDS)))

    def _readable(self, state: State) -> list[Record]:
        """Readable records of a state directory; each unreadable one adds a warning, since it may be of another pod."""
        try:
            records, failures = state.survey()
        except ScplanError as error:  # the directory can't be listed
            records, failures = [], [error]
        self.problems += [error.diagnostics[0]._replace(severity=Severity.WARNING) for error in failures]
        return records

    def _place(self, facts: ContainerFacts, kind: str) -> str:
        """Key of the namespace or cgroups that hold the container's resources of a kind; "" if it has ended."""
        lives_in = KINDS[kind].lives_in
        if not lives_in or not facts.pid:
            return ""
        key = facts.pid, lives_in
        if key not in self._places:
            self._places[key] = _place_of(facts, lives_in)
        return self._places[key]


def _place_of(facts: ContainerFacts, lives_in: str) -> str:
    """Key of the namespace or cgroups; "" if the process has ended. Source: proc_pid_ns(5), proc_pid_cgroup(5)."""
    try:
        if lives_in == "cgroup":
            with open(f"/proc/{facts.pid}/cgroup") as file:
                # A line with the cgroup's path per hierarchy: equal text means equal cgroups. cgroups(7).
                place = file.read()
        else:
            # The inode number identifies a namespace as long as it exists. namespaces(7).
            place = str(namespace_id(f"/proc/{facts.pid}/ns/{lives_in}"))
        if lives_in == "mnt":
            # Processes of one mount namespace can have different roots (chroot(2)): compare the root, too.
            root = os.stat(f"/proc/{facts.pid}/root")
            place = f"{place} {root.st_dev}:{root.st_ino}"
    except OSError:
        if start_of(facts.pid) == facts.start_time:
            raise
        return ""  # the process has ended meanwhile
    # Read the start time last: if the PID was reused meanwhile, the namespace is that of another process.
    return place if not facts.start_time or start_of(facts.pid) == facts.start_time else ""
