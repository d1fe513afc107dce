"""Acceptance of live state, for an apply that can be neither undone nor finished: the records are set to live state.

Nothing is changed in containers or on the host. A live resource that is recorded, or that the apply expected, is owned
as it is; a resource that is gone leaves the records; every difference is reported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from scplan.errors import RecordDamaged, ScplanError
from scplan.kinds.kind import Kinds
from scplan.linux.host import Host
from scplan.linux.processes.process import start_of
from scplan.linux.processes.signals import stop_requests_wait
from scplan.model.address import Address
from scplan.model.change import Operation
from scplan.model.comparison import differences, with_values
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.observe import open_container
from scplan.startup.named_tuple import NamedTuple
from scplan.store.journal import Begin, Entries, Journal, open_again, read_begin, read_journal, retire, set_aside
from scplan.store.state import Record, State

REASON = "live state was accepted"
Candidates = dict[Address, list[Resource]]
"""By address, the forms in which a resource is recorded or was to be, the most recent first."""


class Acceptance(NamedTuple):
    """Records, kinds and host of an acceptance; it waits up to `timeout_s` for locks."""

    state: State
    kinds: Kinds
    host: Host
    timeout_s: float


def accept_live(path: str, acceptance: Acceptance) -> list[str]:
    """Accept live state as the outcome of the apply with this journal, and retire the journal.

    Returns a line per difference. Raises Locked if the containers are in use, and KernelError if the records can't be
    written.
    """
    name = os.path.basename(path).removesuffix(".jsonl")
    entries, begin = _read(path, acceptance.kinds)
    if begin is None:
        if not os.path.exists(path):
            return [f"{name}: recovered by another process meanwhile"]
        kept = set_aside(path)
        return [
            f"{name}: can't be read, and is kept as {kept}; the records stay as they are, `scplan drift` checks them"
        ]
    if entries is not None and entries.ending:
        retire(path)
        return [f"{name}: had ended, and is put away"]
    containers = list(begin.containers.values())
    with acceptance.state.locked(containers, host=True, timeout_s=acceptance.timeout_s):
        journal = open_again(path)
        if journal is None:
            return [f"{name}: recovered by another process meanwhile"]
        with journal:
            # Again under the locks: another process may have added lines since.
            entries, _ = _read(path, acceptance.kinds)
            acceptance.state.sweep(containers)
            return [f"{name}: {text}" for text in _accept(begin, entries, journal, acceptance)]


def _read(path: str, kinds: Kinds) -> tuple[Entries | None, Begin | None]:
    """(all entries, first entry) of a journal; None for each that is damaged."""
    try:
        entries = read_journal(path, kinds)
    except RecordDamaged:
        return None, read_begin(path, kinds)
    return entries, entries.begin


# SIGINT, SIGTERM and SIGHUP stay blocked until both the records and the end of the journal are written.
@stop_requests_wait()
def _accept(begin: Begin, entries: Entries | None, journal: Journal, acceptance: Acceptance) -> list[str]:
    """Write the records from live state and end the journal; returns a line per difference. Needs the locks."""
    operations = _made(begin, entries)
    lines: list[str] = []
    records: list[Record] = []
    for facts in begin.containers.values():
        of_it = [one for one in operations if one.address.container == facts.name]
        record, said = _accepted(facts, of_it, begin, acceptance)
        lines += said
        if record is not None:
            records.append(record)
    acceptance.state.write(records)
    if entries is None:
        lines.append(f"the journal is damaged, and is kept as {set_aside(journal.path)}")
    else:
        journal.close("rolled_back", REASON)
    return lines or ["everything is as the records have it"]


def _made(begin: Begin, entries: Entries | None) -> Sequence[Operation]:
    """Operations that may have been made, newest first; all planned operations if the journal is damaged."""
    if entries is None:
        return tuple(reversed(begin.operations))
    return [operation for _, operation in sorted(entries.started.items(), reverse=True)]


def _accepted(
    facts: ContainerFacts, operations: Sequence[Operation], begin: Begin, acceptance: Acceptance
) -> tuple[Record | None, list[str]]:
    """(record of the container from live state, lines about its differences); None if the record is to stay."""
    stranded = list(_stranded(operations, acceptance))
    # A damaged record, an ended container and an unreadable one each keep their record: live state is not known.
    try:
        record = acceptance.state.read(facts.runtime, facts.name)
    except RecordDamaged as error:
        return None, [f"container {facts.name}: {error.diagnostics[0].summary}; it stays as it is", *stranded]
    before = dict(record.resources) if record is not None else {}
    # PID and start time identify a process within one boot: PIDs are reused.
    is_alive = begin.boot_id == acceptance.host.boot_id and bool(facts.pid) and start_of(facts.pid) == facts.start_time
    if not is_alive:
        return None, [f"container {facts.name} does not run any more: its records stay as they are", *stranded]
    candidates = _candidates(before, operations)
    try:
        live = _live(facts, candidates, acceptance)
    except (ScplanError, OSError) as error:
        why = error.diagnostics[0].summary if isinstance(error, ScplanError) else str(error)
        return None, [f"container {facts.name}: {why}; its records stay as they are", *stranded]
    after = {address: _as_live(candidates[address], live[address]) for address in candidates if address in live}
    made = Record.of(facts, begin.boot_id, after)
    return made, [*_changes(before, after, candidates), *stranded]


def _candidates(recorded: Mapping[Address, Resource], operations: Iterable[Operation]) -> Candidates:
    """The forms of each resource in the operations and in the record, by address, the most recent first."""
    found: Candidates = {}
    for operation in operations:
        known = found.setdefault(operation.address, [])
        # `owned_after` first: it has the values captured just before the operation.
        known += (one for one in (operation.owned_after, operation.owned_before) if one is not None)
    for address, resource in recorded.items():
        found.setdefault(address, []).append(resource)
    return {address: resources for address, resources in found.items() if resources}


def _live(facts: ContainerFacts, candidates: Candidates, acceptance: Acceptance) -> dict[Address, Resource]:
    """Live resources at the addresses of the candidates; absent ones are left out."""
    live: dict[Address, Resource] = {}
    by_kind: dict[str, dict[str, Resource]] = {}
    for address, resources in candidates.items():
        by_kind.setdefault(address.kind, {})[address.identity] = resources[0]
    with open_container(facts, acceptance.host) as container:
        for name, wanted in by_kind.items():
            found = acceptance.kinds[name].read(container, acceptance.host, wanted)
            live.update((Address(facts.name, name, identity), one) for identity, one in found.items())
    return live


def _as_live(candidates: Sequence[Resource], live: Resource) -> Resource:
    """The record for a live resource: the candidate with the fewest differences, these set to their live values."""
    best = min(candidates, key=lambda one: len(differences(one, live)))
    values = {}
    for path in differences(best, live):
        attribute, there = best.attribute(path), live.get(path)
        if attribute.many:
            # Elements that others added are not scplan's: the record keeps only its own elements that are live.
            there = tuple(item for item in best.get(path) or () if item in (there or ()))
        values[path] = there
    return with_values(best, values)


def _changes(
    before: Mapping[Address, Resource], after: Mapping[Address, Resource], candidates: Candidates
) -> Iterator[str]:
    """A line for each difference between the records and live state."""
    for address in {**candidates, **before}:
        old, new = before.get(address), after.get(address)
        if new is None:
            yield f"{address} is {'gone, and forgotten' if old is not None else 'not there'}"
        elif old is None:
            yield f"{address} is there, and owned as it is"
        elif changed := differences(old, new):
            yield f"{address} is owned as it is: " + "; ".join(
                f"{path} was recorded as {old.attribute(path).show(old.get(path))},"
                f" is {old.attribute(path).show(new.get(path))}"
                for path in changed
            )


def _stranded(operations: Iterable[Operation], acceptance: Acceptance) -> Iterator[str]:
    """A line for each thing of the host that an operation left away from its place."""
    told: set[str] = set()
    for operation in operations:
        kind = acceptance.kinds[operation.address.kind]
        for resource in (operation.before, operation.after):
            words = kind.left_behind(acceptance.host, resource) if kind.of_host and resource is not None else None
            if words is not None and words[0] not in told:
                told.add(words[0])
                yield f"{words[0]} is {words[1]}: {operation.address} had it; return it by hand, or by an apply"
