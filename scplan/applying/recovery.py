"""Recovery of applies that did not end: found by their journals, then undone, or finished if all operations were made.

An apply that was not confirmed in time is undone in the same way.
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
    """Inputs of a recovery: records, kinds, host, the seconds to wait for locks, and the receiver of events."""

    state: State
    kinds: Kinds
    host: Host
    timeout_s: float
    on_event: OnEvent


def refuse_if_needed(state: State, kinds: Kinds, host: Host, scope: Scope) -> None:
    """Raises RecoveryNeeded if an apply in the scope did not end, or awaits confirmation."""
    if not state.has_open_journals():
        return
    error = refusal(blocking(all_left_behind(state.directory, kinds, host.boot_id), scope, kinds))
    if error is not None:
        raise error


def elsewhere(
    state: State, kinds: Kinds, boot_id: str, containers: Collection[ContainerFacts]
) -> dict[Address, Resource]:
    """Resources of all containers but these, from records and from applies that did not end. Raises RecordDamaged."""
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
    """Recover every journal that a crash left; `tell` gets a line per journal.

    Applies that await confirmation are ignored. After a failure the other journals are recovered, too; then all
    failures are raised as one error, with the exit code of RollbackIncomplete if anything could not be undone. The
    journals of failures are kept.
    """
    # Journals whose first line never reached the disk: no operation had begun.
    sweep(recovery.state.directory)
    release_ended(recovery.kinds, recovery.state.directory, partial(open_ids, recovery.state.directory))
    for_each_left(recovery.state, lambda path: tell(recover_one(path, recovery, direction)))


def for_each_left(state: State, settle: Callable[[str], None]) -> None:
    """Call `settle` with the path of each journal that no process holds; failures are raised together at the end."""
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
    """Undo the applies that were not confirmed in time; returns (a line per undone apply, failures)."""
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
    """Undo an apply that awaits confirmation now; returns a line about the result."""
    return recover_one(path, recovery, "back", reason)


def recover_one(path: str, recovery: Recovery, direction: Direction, reason: str = "") -> str:
    """Recover one journal; returns a line about the result. With a `reason`, undo it even if it awaits confirmation."""
    name = os.path.basename(path).removesuffix(".jsonl")
    try:
        entries = read_journal(path, recovery.kinds)
    except RecordDamaged:
        if os.path.exists(path):
            raise
        return f"{name}: recovered by another process meanwhile"
    if entries.ending:
        # The crash came between the last line and the move into the history.
        retire(path)
        release(recovery.kinds, recovery.state.directory, entries.begin.apply_id)
        return f"{name}: had ended, and is put away"
    containers = list(entries.begin.containers.values())
    with recovery.state.locked(containers, host=True, timeout_s=recovery.timeout_s):
        journal = open_again(path)
        if journal is None:
            return f"{name}: recovered by another process meanwhile"
        with journal:
            # Read again under the lock: another process may have added lines since.
            entries = read_journal(path, recovery.kinds)
            left_s = seconds_left(entries, recovery.host.boot_id)
            if left_s and not reason:
                return f"{name}: awaits confirmation for {left_s:.0f} s more; `scplan confirm` keeps it"
            recovery.state.sweep(containers)
            if entries.must_be_confirmed:
                return _take_back(name, entries, recovery, journal, reason or "not confirmed in time")
            # "applied" means that all operations were made: go forward, unless an undo has begun.
            made = entries.applied and not entries.goes_back
            if direction == "back" or (direction == "auto" and not made):
                return _take_back(name, entries, recovery, journal, "after a crash")
            return (
                _write_records(name, entries, recovery, journal) if made else _finish(name, entries, recovery, journal)
            )


@stop_requests_wait()
def _write_records(name: str, entries: Entries, recovery: Recovery, journal: Journal) -> str:
    """Write the records of an apply that had made all operations, and commit its journal."""
    owned = _owned(entries, recovery.state, entries.started, _refreshed(entries))
    recovery.state.write(_records(entries, owned))
    journal.close("committed")
    release(recovery.kinds, recovery.state.directory, entries.begin.apply_id)
    return f"{name}: {len(entries.started)} operations kept, records written"


def _finish(name: str, entries: Entries, recovery: Recovery, journal: Journal) -> str:
    """Make the operations that are missing, and repeat operations that may be half made or half undone.

    Raises ApplyFailed if an operation fails and all were undone. After a boot the apply is undone instead.
    """
    if entries.begin.boot_id != recovery.host.boot_id:
        return _take_back(name, entries, recovery, journal, "the host was booted since")
    _put_records_back(entries, recovery.state)
    # If an undo had begun, any operation may be half undone: make all of them again.
    begun = Begun(entries.started, frozenset() if entries.goes_back else entries.done)
    # A journal of format 1.0 has only the operations that were begun.
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
    """Undo the operations that are not undone yet, and end the journal. Raises RollbackIncomplete."""
    reason = entries.giving_up or reason
    if not entries.giving_up:
        _give_up(entries, journal, reason)
    # Nothing attached to a container survives a boot: only the records have to be restored.
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
    """Journal that the apply is being undone.

    A full disk matters only if the apply is applied or unconfirmed: it could otherwise be finished after another crash.
    """
    try:
        journal.giving_up(reason)
    except KernelError:
        if entries.applied or entries.must_be_confirmed:
            raise


def _owned(
    entries: Entries, state: State, made: Collection[int], refreshed: Mapping[Address, Resource]
) -> dict[Address, Resource]:
    """Owned resources if exactly the operations numbered in `made` are made."""
    owned: dict[Address, Resource] = {}

    def note(address: Address, resource: Resource | None) -> None:
        if resource is not None:
            owned[address] = resource
        else:
            # Remove the key, so that a later creation is inserted last: removals go by this order.
            owned.pop(address, None)

    # From the records back to the state before all operations, then forward by the operations in `made`.
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
    """Write the old records if "applied" was journaled: some new records may be in place already."""
    if entries.applied:
        before = {address: one.before for address, one in entries.refreshed.items() if one.before is not None}
        owned = _owned(entries, state, (), before)
        state.write(records_of(entries.begin.containers, owned, entries.begin.boot_id, {}))
