"""Applies that did not end, or await confirmation: which containers each blocks, and how long it can be confirmed."""

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
    """Containers that a command may change, and the resources that it may take, change or give up in them."""

    containers: Iterable[ContainerFacts]
    resources: Iterable[tuple[Address, Resource]] = ()


class LeftBehind(NamedTuple):
    """A journal that has not ended and that nobody holds. `entries` is None when it is damaged.

    `left_s` is the time in which its apply can still be confirmed; 0 for one that is only to be recovered. `begin` is
    its first line; None where that is damaged, too.
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
        """Whether it goes back because nobody confirmed it."""
        if self.entries is None or self.entries.ending is not None:
            return False
        return self.entries.must_be_confirmed and not self.left_s

    @property
    def containers(self) -> Mapping[str, ContainerFacts]:
        """The containers that the apply touches; none where the journal can't tell."""
        return self.begin.containers if self.begin is not None else {}

    def blocks(self, scope: Scope, kinds: Kinds) -> bool:
        """True if the scope shares a container with the apply, or something of the host that only one can have.

        A journal without a readable first line blocks everything: what it touches is not known.
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
        """The resources that the apply made, changed or removed, or was to; none where its first line is damaged."""
        if self.begin is None:
            return
        started = self.entries.started.values() if self.entries is not None else ()
        for operation in (*self.begin.operations, *started):
            for side in (operation.before, operation.after):
                if side is not None:
                    yield operation.address, side


def boottime_s() -> float:
    """Seconds since boot, suspends included. clock_gettime(2): CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def deadline_in(seconds: float) -> Deadline:
    return Deadline(boottime_s=boottime_s() + seconds, time=time.time() + seconds)


def seconds_left(entries: Entries, boot_id: str) -> float:
    """How long the apply can still be confirmed.

    0 after a boot: what was plugged in is gone, and whoever cut himself off may have pulled the plug for that.
    """
    if entries.awaiting is None or entries.giving_up or entries.ending or entries.begin.boot_id != boot_id:
        return 0.0
    return max(0.0, entries.awaiting.boottime_s - boottime_s())


def all_left_behind(directory: str, kinds: Kinds, boot_id: str) -> list[LeftBehind]:
    """The journals that no running scplan holds, oldest first."""
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
    """The journals that stand against changing anything in the scope."""
    return [one for one in left if one.blocks(scope, kinds)]


def refusal(left: list[LeftBehind]) -> RecoveryNeeded | None:
    """The reasons against changing what these applies touch: each awaits confirmation, or did not end."""
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
    """The refusal as warnings, for commands that only read."""
    error = refusal(left)
    return [one._replace(severity=Severity.WARNING) for one in error.diagnostics] if error else []


def confirm(directory: str, kinds: Kinds, boot_id: str, wanted: str | None = None) -> str:
    """Keep what the apply that awaits confirmation did; returns its ID.

    `wanted` is its ID or one of its containers: needed where several applies await. Raises ScplanError when it is too
    late, or when it is not clear which one is meant.
    """
    left = all_left_behind(directory, kinds, boot_id)
    awaiting = [one for one in left if one.entries and one.entries.awaiting]
    if wanted is not None:
        awaiting = [one for one in awaiting if wanted == one.apply_id or wanted in one.containers]
    if not awaiting:
        summary = "nothing awaits confirmation" if wanted is None else f"no apply {wanted!r} awaits confirmation"
        raise ScplanError(summary, hint="`scplan state history` shows what became of each apply")
    # One whose time is up is another command's to undo, as long as there is one that can be confirmed.
    awaiting = [one for one in awaiting if one.left_s] or awaiting[:1]
    if len(awaiting) > 1:
        listed = "\n".join(f"{one.apply_id}{_containers_words(one)}" for one in awaiting)
        raise ScplanError(
            f"{len(awaiting)} applies await confirmation", detail=listed, hint="name one: `scplan confirm APPLY`"
        )
    path = awaiting[0].path
    with held(path) as journal:
        # Read again: only now nobody else can end it.
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
    """The journal, held until its `with` block ends. Raises Locked when somebody else goes on holding it."""
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
