"""What a crash left half done: found by its journal, then undone, or finished where all operations had been made.

An apply that was to be confirmed and was not, is undone in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple

from scplan.confirmation import all_left_behind, refusal, seconds_left
from scplan.errors import RecordDamaged, RollbackIncomplete
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


class Recovery(NamedTuple):
    """What recovering takes: the records, the host, how long to wait for locks, and who is told of each step."""

    state: State
    kinds: Kinds
    host: Host
    timeout_s: float
    on_event: OnEvent


def refuse_if_needed(state: State, kinds: Kinds, host: Host) -> None:
    """Raises RecoveryNeeded when something is left half done or awaits confirmation: nothing may be changed then."""
    if not state.has_open_journals():
        return
    error = refusal(all_left_behind(state.directory, kinds, host.boot_id))
    if error is not None:
        raise error


def recover(recovery: Recovery, direction: Direction) -> list[str]:
    """Recovers every journal that a crash left; returns a line about each.

    What awaits confirmation is left alone. Raises RollbackIncomplete when something could not be undone; its journal
    is kept.
    """
    return [recover_one(path, recovery, direction) for path in left_behind(recovery.state.directory)]


def undo_overdue(recovery: Recovery) -> list[str]:
    """Undoes the applies that nobody confirmed in time; returns a line about each."""
    left = all_left_behind(recovery.state.directory, recovery.kinds, recovery.host.boot_id)
    return [recover_one(one.path, recovery, "auto") for one in left if one.is_overdue]


def give_up(path: str, recovery: Recovery, reason: str) -> str:
    """Undoes an apply that awaits confirmation, at once; returns a line about it."""
    return recover_one(path, recovery, "back", reason)


def recover_one(path: str, recovery: Recovery, direction: Direction, reason: str = "") -> str:
    """Recovers one journal. With a `reason` also one that awaits confirmation is undone."""
    name = os.path.basename(path).removesuffix(".jsonl")
    try:
        entries = read_journal(path, recovery.kinds)
    except RecordDamaged:
        if os.path.exists(path):
            raise
        return f"{name}: recovered by another process meanwhile"
    if entries.ending:
        retire(path)
        return f"{name}: had ended, and is put away"
    containers = list(entries.begin.containers.values())
    with recovery.state.locked(containers, host=True, timeout_s=recovery.timeout_s):
        journal = open_again(path)
        if journal is None:
            return f"{name}: recovered by another process meanwhile"
        with journal:
            # Read again: it may have gone on before it was held.
            entries = read_journal(path, recovery.kinds)
            left_s = seconds_left(entries, recovery.host.boot_id)
            if left_s and not reason:
                return f"{name}: awaits confirmation for {left_s:.0f} s more; `scplan confirm` keeps it"
            if entries.must_be_confirmed:
                return _take_back(name, entries, recovery, journal, reason or "not confirmed in time")
            forward = entries.applied if direction == "auto" else direction == "forward"
            if forward:
                return _finish(name, entries, recovery.state, journal)
            return _take_back(name, entries, recovery, journal, "after a crash")


def _finish(name: str, entries: Entries, state: State, journal: Journal) -> str:
    """Writes the records of what was made, and was not undone again before."""
    changes: dict[Address, Resource | None] = {address: one.after for address, one in entries.refreshed.items()}
    kept = [operation for number, operation in sorted(entries.started.items()) if number not in entries.undone]
    for operation in kept:
        changes[operation.address] = operation.owned_after
    state.write(_records(entries.begin.containers, state, changes))
    journal.close("committed")
    return f"{name}: {len(kept)} operations kept, records written"


def _take_back(name: str, entries: Entries, recovery: Recovery, journal: Journal, reason: str) -> str:
    reason = entries.giving_up or reason
    if entries.must_be_confirmed and not entries.giving_up:
        journal.giving_up(reason)
    started = dict(entries.started)
    if entries.begin.boot_id != recovery.host.boot_id:
        # Nothing that was plugged in lives across a boot.
        started.clear()
    with OpenContainers(entries.begin.containers, recovery.host) as opened:
        owned = _owned_then(entries, recovery.state)
        executor = Executor(host=recovery.host, containers=opened, kinds=recovery.kinds, owned=owned)
        failures = undo(started, len(started), executor, journal, recovery.on_event)
    if failures:
        raise RollbackIncomplete.of(failures)
    _put_records_back(entries, recovery.state)
    journal.close("rolled_back", reason)
    because = f" ({reason})" if entries.must_be_confirmed else ""
    return f"{name}: {len(started)} operations undone{because}"


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
    changes: dict[Address, Resource | None] = {
        address: one.before for address, one in entries.refreshed.items() if one.before is not None
    }
    for _, operation in sorted(entries.started.items(), reverse=True):
        changes[operation.address] = operation.owned_before
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
