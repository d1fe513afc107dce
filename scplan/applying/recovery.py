"""What a crash left half done: found by its journal, then undone, or finished where all operations had been made.

An apply that was to be confirmed and was not, is undone in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal

from scplan.applying.apply import Begun, apply
from scplan.applying.execute import Executor, release, release_ended
from scplan.applying.rollback import to_take_back, undo
from scplan.errors import KernelError, RecordDamaged, RollbackIncomplete, ScplanError
from scplan.kinds.kind import Kinds
from scplan.linux.host import Host
from scplan.linux.processes.signals import stop_requests_wait
from scplan.model.address import Address
from scplan.model.live import ContainerFacts
from scplan.model.report import OnEvent
from scplan.model.resource import Resource
from scplan.observe import OpenContainers
from scplan.startup.named_tuple import NamedTuple
from scplan.store.confirmation import Scope, all_left_behind, blocking, refusal, seconds_left
from scplan.store.journal import Entries, Journal, left_behind, open_again, open_ids, read_journal, retire, sweep
from scplan.store.state import Record, State, records_of

Direction = Literal["auto", "forward", "back"]


class Recovery(NamedTuple):
    """What recovering takes: the records, the host, how long to wait for locks, and who is told of each step."""

    state: State
    kinds: Kinds
    host: Host
    timeout_s: float
    on_event: OnEvent


def refuse_if_needed(state: State, kinds: Kinds, host: Host, scope: Scope) -> None:
    """Raises RecoveryNeeded when an apply did not end, or awaits confirmation, that touches something of the scope."""
    if not state.has_open_journals():
        return
    error = refusal(blocking(all_left_behind(state.directory, kinds, host.boot_id), scope, kinds))
    if error is not None:
        raise error


def elsewhere(
    state: State, kinds: Kinds, boot_id: str, containers: Collection[ContainerFacts]
) -> dict[Address, Resource]:
    """The resources of all other containers than these: recorded ones, and those of applies there that did not end.

    Raises RecordDamaged.
    """
    found = state.elsewhere(containers)
    if not state.has_open_journals():
        return found
    own = {(facts.runtime, facts.name) for facts in containers}
    for left in all_left_behind(state.directory, kinds, boot_id):
        for address, resource in left.resources():
            facts = left.containers.get(address.container)
            if facts is not None and (facts.runtime, facts.name) not in own:
                found.setdefault(address, resource)
    return found


def recover(recovery: Recovery, direction: Direction, tell: Callable[[str], None]) -> None:
    """Recover every journal that a crash left; `tell` gets a line about each.

    What awaits confirmation is left alone. Goes on after a failure, and raises all of them as one error, whose exit
    code is that of RollbackIncomplete where something could not be undone. The journals of those are kept.
    """
    sweep(recovery.state.directory)
    release_ended(recovery.kinds, recovery.state.directory, partial(open_ids, recovery.state.directory))
    for_each_left(recovery.state, lambda path: tell(recover_one(path, recovery, direction)))


def for_each_left(state: State, settle: Callable[[str], None]) -> None:
    """Call `settle` with the path of each journal that nobody holds; goes on after a failure, and raises all."""
    failures: list[ScplanError] = []
    for path in left_behind(state.directory):
        try:
            settle(path)
        except ScplanError as error:
            failures.append(error)
        except OSError as error:
            failures.append(ScplanError(f"{error.filename or os.path.basename(path)}: {error.strerror}"))
    if len(failures) > 1:
        worst = max(failures, key=lambda error: isinstance(error, RollbackIncomplete))
        joined = ScplanError.of([one for error in failures for one in error.diagnostics])
        joined.exit_code = worst.exit_code
        raise joined
    if failures:
        raise failures[0]


def undo_overdue(recovery: Recovery) -> tuple[list[str], list[ScplanError]]:
    """Undo the applies that nobody confirmed in time; returns (a line about each undone one, the failures)."""
    lines: list[str] = []
    failures: list[ScplanError] = []
    for one in all_left_behind(recovery.state.directory, recovery.kinds, recovery.host.boot_id):
        if not one.is_overdue:
            continue
        try:
            lines.append(recover_one(one.path, recovery, "auto"))
        except ScplanError as error:
            failures.append(error)
    return lines, failures


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
        release(recovery.kinds, recovery.state.directory, entries.begin.apply_id)
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
            recovery.state.sweep(containers)
            if entries.must_be_confirmed:
                return _take_back(name, entries, recovery, journal, reason or "not confirmed in time")
            made = entries.applied and not entries.goes_back
            if direction == "back" or (direction == "auto" and not made):
                return _take_back(name, entries, recovery, journal, "after a crash")
            return (
                _write_records(name, entries, recovery, journal) if made else _finish(name, entries, recovery, journal)
            )


@stop_requests_wait()
def _write_records(name: str, entries: Entries, recovery: Recovery, journal: Journal) -> str:
    """What is left where all operations had been made."""
    owned = _owned(entries, recovery.state, entries.started, _refreshed(entries))
    recovery.state.write(_records(entries, owned))
    journal.close("committed")
    release(recovery.kinds, recovery.state.directory, entries.begin.apply_id)
    return f"{name}: {len(entries.started)} operations kept, records written"


def _finish(name: str, entries: Entries, recovery: Recovery, journal: Journal) -> str:
    """Makes the operations that were not made, and again those that may be half made or half undone.

    Raises ApplyFailed when one fails and all were undone.
    """
    if entries.begin.boot_id != recovery.host.boot_id:
        return _take_back(name, entries, recovery, journal, "the host was booted since")
    _put_records_back(entries, recovery.state)
    begun = Begun(entries.started, frozenset() if entries.goes_back else entries.done)
    # A journal of format 1.0 names only the operations that were begun.
    operations = entries.begin.operations or [operation for _, operation in sorted(entries.started.items())]
    containers = entries.begin.containers
    with OpenContainers(containers, recovery.host) as opened:
        owned = _owned(entries, recovery.state, begun.done, _refreshed(entries))
        executor = _executor(recovery, entries, opened, owned)
        apply(
            operations,
            executor,
            journal,
            lambda owned: recovery.state.prepare(_records(entries, owned)),
            recovery.on_event,
            begun=begun,
        )
    return f"{name}: finished, {len(operations)} operations made"


def _executor(
    recovery: Recovery, entries: Entries, opened: OpenContainers, owned: Mapping[Address, Resource]
) -> Executor:
    return Executor(
        host=recovery.host,
        containers=opened,
        kinds=recovery.kinds,
        owned=owned,
        state_dir=recovery.state.directory,
        elsewhere=partial(
            elsewhere, recovery.state, recovery.kinds, recovery.host.boot_id, entries.begin.containers.values()
        ),
        apply_id=entries.begin.apply_id,
    )


@stop_requests_wait()
def _take_back(name: str, entries: Entries, recovery: Recovery, journal: Journal, reason: str) -> str:
    reason = entries.giving_up or reason
    if not entries.giving_up:
        _give_up(entries, journal, reason)
    # Nothing that was plugged in lives across a boot.
    started = entries.started if entries.begin.boot_id == recovery.host.boot_id else {}
    left = started.keys() - entries.undone
    started = to_take_back(started, entries.undone)
    with OpenContainers(entries.begin.containers, recovery.host) as opened:
        owned = _owned(entries, recovery.state, started, {})
        executor = _executor(recovery, entries, opened, owned)
        failures = undo(
            started, len(entries.started), executor, journal, recovery.on_event, undone=entries.undone & started.keys()
        )
    if failures:
        raise RollbackIncomplete.of(failures)
    _put_records_back(entries, recovery.state)
    journal.close("rolled_back", reason)
    release(recovery.kinds, recovery.state.directory, entries.begin.apply_id)
    because = f" ({reason})" if entries.must_be_confirmed else ""
    return f"{name}: {len(left)} operations undone{because}"


def _give_up(entries: Entries, journal: Journal, reason: str) -> None:
    """Notes that the apply goes back. Only one that would else go forward after another crash needs the note."""
    try:
        journal.giving_up(reason)
    except KernelError:
        if entries.applied or entries.must_be_confirmed:
            raise


def _owned(
    entries: Entries, state: State, made: Collection[int], refreshed: Mapping[Address, Resource]
) -> dict[Address, Resource]:
    """What scplan answers for when `made` of the operations are made, and the others are not or not any more."""
    owned: dict[Address, Resource] = {}

    def note(address: Address, resource: Resource | None) -> None:
        if resource is not None:
            owned[address] = resource
        else:
            # What is made comes last again: removals go by this order.
            owned.pop(address, None)

    for facts in entries.begin.containers.values():
        record = state.read(facts.runtime, facts.name)
        owned.update(record.resources if record else {})
    owned.update(refreshed)
    for _, operation in sorted(entries.started.items(), reverse=True):
        note(operation.address, operation.owned_before)
    for number in sorted(made):
        note(entries.started[number].address, entries.started[number].owned_after)
    return owned


def _refreshed(entries: Entries) -> dict[Address, Resource]:
    return {address: one.after for address, one in entries.refreshed.items()}


def _records(entries: Entries, owned: Mapping[Address, Resource]) -> list[Record]:
    return records_of(entries.begin.containers, owned, entries.begin.boot_id, entries.begin.modules)


def _put_records_back(entries: Entries, state: State) -> None:
    """Where "applied" had been written, some records may be the new ones already."""
    if entries.applied:
        before = {address: one.before for address, one in entries.refreshed.items() if one.before is not None}
        owned = _owned(entries, state, (), before)
        state.write(records_of(entries.begin.containers, owned, entries.begin.boot_id, {}))
