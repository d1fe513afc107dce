"""Containers that share a namespace or a cgroup, as those of a pod do: which of them owns a resource there.

To the kernel it is one thing, whichever container it was reached through. What one container owns is not adopted, made
or removed for another.
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
    """By address of a planned change, who else has the resource: an address, and its state directory if another.

    And warnings about records that can't be read. Nothing is read where nothing is made, adopted or removed.
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
    """Other containers that have a resource of the same name, and whether it is in the same place."""

    def __init__(self, scene: Scene, state: State, boot_id: str) -> None:
        self._scene = scene
        self._state = state
        self._boot_id = boot_id
        self.problems: list[Diagnostic] = []
        self._places: dict[tuple[int, str], str] = {}
        self._order = {name: rank for rank, name in enumerate(scene.containers)}

    def owner(self, address: Address, *, is_taking: bool) -> Owner | None:
        """Who else has the resource; None for nobody.

        For one that is to be taken: whoever owns it, or is written before it. For one that is to be removed: whoever
        keeps it, or, where all of them give it up, is written before it.
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
        for directory, record in self._recorded.get((address.kind, address.identity), ()):
            if self._is_plugged_in(record):
                facts = ContainerFacts(
                    record.name, record.runtime, record.id, Status.RUNNING, record.pid, record.start_time
                )
                if self._place(facts, address.kind) == place:
                    yield Owner(address._replace(container=record.name), directory)

    def _is_plugged_in(self, record: Record) -> bool:
        try:
            return is_plugged_in(record, self._boot_id)
        except ScplanError as error:
            self.problems.append(error.diagnostics[0]._replace(severity=Severity.WARNING))
            return True

    @cached_property
    def _of_name(self) -> Mapping[tuple[str, str], list[Address]]:
        found: dict[tuple[str, str], list[Address]] = {}
        for address in dict.fromkeys((*self._scene.desired, *self._scene.owned)):
            found.setdefault((address.kind, address.identity), []).append(address)
        return found

    @cached_property
    def _recorded(self) -> Mapping[tuple[str, str], list[tuple[str, Record]]]:
        """By kind and identity, (state directory if another, record) of other containers and of other directories."""
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
        """Records of a state directory; each that can't be read is a warning, since it may be of another pod."""
        try:
            records, failures = state.survey()
        except ScplanError as error:  # the directory can't be listed
            records, failures = [], [error]
        self.problems += [error.diagnostics[0]._replace(severity=Severity.WARNING) for error in failures]
        return records

    def _place(self, facts: ContainerFacts, kind: str) -> str:
        """The namespace or cgroups in which a container has its resources of a kind; "" where it has none by now."""
        lives_in = KINDS[kind].lives_in
        if not lives_in or not facts.pid:
            return ""
        key = facts.pid, lives_in
        if key not in self._places:
            self._places[key] = _place_of(facts, lives_in)
        return self._places[key]


def _place_of(facts: ContainerFacts, lives_in: str) -> str:
    try:
        if lives_in == "cgroup":
            with open(f"/proc/{facts.pid}/cgroup") as file:
                place = file.read()
        else:
            place = str(namespace_id(f"/proc/{facts.pid}/ns/{lives_in}"))
        if lives_in == "mnt":
            root = os.stat(f"/proc/{facts.pid}/root")
            place = f"{place} {root.st_dev}:{root.st_ino}"
    except OSError:
        if start_of(facts.pid) == facts.start_time:
            raise
        return ""  # it has ended meanwhile
    return place if not facts.start_time or start_of(facts.pid) == facts.start_time else ""
