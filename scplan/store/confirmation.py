"""Applies that crashed or await confirmation: the containers that each blocks, and the time left to confirm it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping

from scplan.errors import AwaitingConfirmation, Diagnostic, Locked, RecordDamaged, RecoveryNeeded, ScplanError, Severity
from scplan.kinds.kind import Kinds
from scplan.model.address import Address
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple
from scplan.store import locks
from scplan.store.journal import Begin, Deadline, Entries, Journal, left_behind, open_again, read_begin, read_journal

_LOCK_WAIT_S = 2.0
_SHOWN = 5


class Scope(NamedTuple):
    """Containers that a command may change, and the resources that it may create, change or remove in them."""

    containers: Iterable[ContainerFacts]
    resources: Iterable[tuple[Address, Resource]] = ()


class LeftBehind(NamedTuple):
    """A journal without an ending whose lock no process holds: its apply crashed, or awaits confirmation.

    `entries` is None if the journal is damaged. `left_s` is the time in seconds in which the apply can still be
    confirmed; 0 if it can only be recovered. `begin` is the journal's first line; None if that line is damaged, too.
    """

    path: str
    entries: Entries | None
    left_s: float
    begin: Begin | None = None

    @property
    def apply_id(self) -> str:
        return os.path.basename(self.path).removesuffix(".jsonl")

    @property
    def is_overdue(self) -> bool:
        """True if the apply is to be undone because nobody confirmed it in time."""
        if self.entries is None or self.entries.ending is not None:
            return False
        return self.entries.must_be_confirmed and not self.left_s

    @property
    def containers(self) -> Mapping[str, ContainerFacts]:
        """Containers that the apply touches, by name; empty if the journal's first line can't be read."""
        return self.begin.containers if self.begin is not None else {}

    def blocks(self, scope: Scope, kinds: Kinds) -> bool:
        """True if the scope and the apply share a container, or claim the same thing of the host (a NIC, a MAC …).

        A journal whose first line can't be read blocks every scope, because the containers it touches are unknown.
        """
        if self.begin is None:
            return True
        mine = {(one.runtime, one.name) for one in self.begin.containers.values()}
        if any((facts.runtime, facts.name) in mine for facts in scope.containers):
            return True
        held = [claim for address, one in self.resources() for claim in kinds[address.kind].claims(address, one)]
        if not held:
            return False
        return any(
            claim.collides(other)
            for address, one in scope.resources
            for claim in kinds[address.kind].claims(address, one)
            for other in held
        )

    def resources(self) -> Iterator[tuple[Address, Resource]]:
        """Resources that the apply created, changed, removed or planned to; none if its first line is damaged."""
        if self.begin is None:
            return
        started = self.entries.started.values() if self.entries is not None else ()
        for operation in (*self.begin.operations, *started):
            for side in (operation.before, operation.after):
                if side is not None:
                    yield operation.address, side


def boottime_s() -> float:
    """Seconds since boot, time in suspend included. clock_gettime(2): CLOCK_BOOTTIME."""
    # No process can set this clock, so that a changed wall clock moves no deadline.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def deadline_in(seconds: float) -> Deadline:
    return Deadline(boottime_s=boottime_s() + seconds, time=time.time() + seconds)


def seconds_left(entries: Entries, boot_id: str) -> float:
    """Seconds in which the apply can still be confirmed; 0 if it can't be.

    After a reboot it can't be confirmed: the resources are gone with the containers' processes, and a user who had
    lost the connection may have rebooted the host to get the apply undone.
    """
    if entries.awaiting is None or entries.giving_up or entries.ending or entries.begin.boot_id != boot_id:
        return 0.0
    return max(0.0, entries.awaiting.boottime_s - boottime_s())


def all_left_behind(directory: str, kinds: Kinds, boot_id: str) -> list[LeftBehind]:
    """Journals whose lock no running scplan holds, oldest first."""
    found = []
    for path in left_behind(directory):
        try:
            entries = read_journal(path, kinds)
        except RecordDamaged:
            if os.path.exists(path):
                found.append(LeftBehind(path, None, 0.0, read_begin(path, kinds)))
            continue
        found.append(LeftBehind(path, entries, seconds_left(entries, boot_id), entries.begin))
    return found


def blocking(left: Iterable[LeftBehind], scope: Scope, kinds: Kinds) -> list[LeftBehind]:
    """Journals that forbid changes in the scope until they are confirmed or recovered."""
    return [one for one in left if one.blocks(scope, kinds)]


def refusal(left: list[LeftBehind]) -> RecoveryNeeded | None:
    """Error with one diagnostic for each of these applies (awaits confirmation, or did not end); None without applies.

    AwaitingConfirmation if any of them can still be confirmed.
    """
    if not left:
        return None
    diagnostics = [_reason(one) for one in left]
    kind = AwaitingConfirmation if any(one.left_s for one in left) else RecoveryNeeded
    error = kind(diagnostics[0].summary)
    error.diagnostics = tuple(diagnostics)
    return error


def _reason(one: LeftBehind) -> Diagnostic:
    where = _containers_words(one)
    if one.left_s:
        return Diagnostic(
            summary=f"apply {one.apply_id}{where} awaits confirmation for {one.left_s:.0f} s more",
            hint="`scplan confirm` keeps what it did, `scplan undo` undoes it at once",
        )
    if one.is_overdue:
        return Diagnostic(
            summary=f"apply {one.apply_id}{where} was not confirmed in time, and is not undone yet",
            hint="`scplan recover` undoes it; so does the next command that changes something",
        )
    return Diagnostic(
        summary=f"an apply{where} did not end: {os.path.basename(one.path)}",
        hint="run `scplan recover`; it undoes what was half done, or finishes what was made\n"
        "where that fails again and again, `scplan recover --accept-live` takes things over as they are",
    )


def _containers_words(one: LeftBehind) -> str:
    names = list(one.containers)
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f" to container{'s' if len(names) > 1 else ''} {shown}"


def warnings(left: list[LeftBehind]) -> list[Diagnostic]:
    """The diagnostics of `refusal` as warnings, for commands that only read."""
    error = refusal(left)
    return [one._replace(severity=Severity.WARNING) for one in error.diagnostics] if error else []


def confirm(directory: str, kinds: Kinds, boot_id: str, wanted: str | None = None) -> str:
    """Confirm the apply that awaits confirmation, and return its ID.

    `wanted` is the ID of the apply or the name of one of its containers; needed if several applies await confirmation.
    Raises ScplanError if no apply awaits confirmation, if its time is over, or if several match.
    """
    left = all_left_behind(directory, kinds, boot_id)
    awaiting = [one for one in left if one.entries and one.entries.awaiting]
    if wanted is not None:
        awaiting = [one for one in awaiting if wanted == one.apply_id or wanted in one.containers]
    if not awaiting:
        summary = "nothing awaits confirmation" if wanted is None else f"no apply {wanted!r} awaits confirmation"
        raise ScplanError(summary, hint="`scplan state history` shows what became of each apply")
    # An apply whose time is over counts only if there is no other: its user then learns that it is too late.
    awaiting = [one for one in awaiting if one.left_s] or awaiting[:1]
    if len(awaiting) > 1:
        listed = "\n".join(f"{one.apply_id}{_containers_words(one)}" for one in awaiting)
        raise ScplanError(
            f"{len(awaiting)} applies await confirmation", detail=listed, hint="name one: `scplan confirm APPLY`"
        )
    path = awaiting[0].path
    with held(path) as journal:
        # Read again under the lock: until then another process could have ended the journal.
        entries = read_journal(path, kinds)
        if not seconds_left(entries, boot_id):
            raise ScplanError(
                f"too late: apply {awaiting[0].apply_id} was not confirmed in time, and is undone",
                hint="`scplan state history` shows when; `scplan recover` undoes it now, if that has not been done",
            )
        journal.close("committed")
    for kind in kinds.values():
        kind.release(directory, entries.begin.apply_id)
    return awaiting[0].apply_id


def held(path: str) -> Journal:
    """The journal, locked until its `with` block ends. Raises Locked if another process keeps it for more than 2 s."""
    found: list[Journal] = []

    def is_settled() -> bool:
        journal = open_again(path) if os.path.exists(path) else None
        found.extend([journal] if journal is not None else [])
        return journal is not None or not os.path.exists(path)

    locks.comes_true(is_settled, time.monotonic() + _LOCK_WAIT_S)
    if found:
        return found[0]
    raise Locked(
        f"{os.path.basename(path)} is being dealt with by another scplan",
        hint="`scplan state history` shows what becomes of it",
    )
