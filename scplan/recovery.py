"""What a crash left half done: found by its journal, then undone, or finished where all operations had been made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from scplan.errors import RecordDamaged, RecoveryNeeded, RollbackIncomplete
from scplan.execute import Executor
from scplan.journal import Entries, Journal, left_behind, open_again, read_journal, retire
from scplan.kinds.kind import Kinds
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.live import ContainerFacts
from scplan.model.report import OnEvent
from scplan.model.resource import Resource
from scplan.observe import OpenContainers
from scplan.rollback import undo
from scplan.state import Record, State

Direction = Literal["auto", "forward", "back"]


def refuse_if_needed(directory: str) -> None:
    """Raises RecoveryNeeded when a crash left something half done: no other command may write until it is recovered."""
    journals = left_behind(directory)
    if journals:
        raise RecoveryNeeded(
            f"an apply did not end: {', '.join(os.path.basename(path) for path in journals)}",
            hint="run `scplan recover`; it undoes what was half done, or finishes what was made",
        )


def recover(
    state: State, kinds: Kinds, host: Host, direction: Direction, timeout_s: float, on_event: OnEvent
) -> list[str]:
    """Recovers every journal that a crash left; returns a line about each.

    Raises RollbackIncomplete when something could not be undone; its journal is kept.
    """
    return [
        _recover_one(path, state, kinds, host, direction, timeout_s, on_event) for path in left_behind(state.directory)
    ]


def _recover_one(
    path: str, state: State, kinds: Kinds, host: Host, direction: Direction, timeout_s: float, on_event: OnEvent
) -> str:
    name = os.path.basename(path).removesuffix(".jsonl")
    try:
        entries = read_journal(path, kinds)
    except RecordDamaged:
        if os.path.exists(path):
            raise
        return f"{name}: recovered by another process meanwhile"
    if entries.ended:
        retire(path)
        return f"{name}: had ended, and is put away"
    containers = list(entries.begin.containers.values())
    with state.locked(containers, host=True, timeout_s=timeout_s):
        journal = open_again(path)
        if journal is None:
            return f"{name}: recovered by another process meanwhile"
        with journal:
            forward = entries.applied if direction == "auto" else direction == "forward"
            if forward:
                return _finish(name, entries, state, journal)
            return _take_back(name, entries, state, kinds, host, journal, on_event)


def _finish(name: str, entries: Entries, state: State, journal: Journal) -> str:
    """Writes the records of what was made, and was not undone again before."""
    changes: dict[Address, Resource | None] = dict(entries.refreshed)
    kept = [operation for number, operation in sorted(entries.started.items()) if number not in entries.undone]
    for operation in kept:
        changes[operation.address] = operation.owned_after
    state.write(_records(entries.begin.containers, state, changes))
    journal.close("committed")
    return f"{name}: {len(kept)} operations kept, records written"


def _take_back(
    name: str, entries: Entries, state: State, kinds: Kinds, host: Host, journal: Journal, on_event: OnEvent
) -> str:
    started = dict(entries.started)
    if entries.begin.boot_id != host.boot_id:
        # Nothing that was plugged in lives across a boot.
        started.clear()
    with OpenContainers(entries.begin.containers, host) as opened:
        executor = Executor(host=host, containers=opened, kinds=kinds, owned=_owned_then(entries, state))
        failures = undo(started, len(started), executor, journal, on_event)
    if failures:
        raise RollbackIncomplete.of(failures)
    _put_records_back(entries, state)
    journal.close("rolled_back")
    return f"{name}: {len(started)} operations undone"


def _owned_then(entries: Entries, state: State) -> dict[Address, Resource]:
    """What scplan answered for when the crash came: the records, with the operations that were begun."""
    owned: dict[Address, Resource] = {}
    for facts in entries.begin.containers.values():
        record = state.read(facts.runtime, facts.name)
        owned.update(record.resources if record else {})
    for _, operation in sorted(entries.started.items()):
        if operation.owned_after is None:
            owned.pop(operation.address, None)
        else:
            owned[operation.address] = operation.owned_after
    return owned


def _put_records_back(entries: Entries, state: State) -> None:
    """Where "applied" had been written, some records may be the new ones already."""
    if not entries.applied:
        return
    changes: dict[Address, Resource | None] = {}
    for _, operation in sorted(entries.started.items()):
        changes.setdefault(operation.address, operation.owned_before)
    state.write(_records(entries.begin.containers, state, changes))


def _records(
    containers: Mapping[str, ContainerFacts], state: State, changes: Mapping[Address, Resource | None]
) -> list[Record]:
    """The containers' records with changes laid over them; None removes."""
    records = []
    for name, facts in containers.items():
        record = state.read(facts.runtime, name)
        resources = dict(record.resources) if record else {}
        for address, resource in changes.items():
            if address.container == name and resource is None:
                resources.pop(address, None)
            elif address.container == name and resource is not None:
                resources[address] = resource
        records.append(Record(name=name, runtime=facts.runtime, id=facts.id, resources=resources))
    return records
