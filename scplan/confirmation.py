"""Applies that are undone unless they are confirmed in time: which there are, and how long each still has."""

from __future__ import annotations

import os
import time

from scplan.errors import AwaitingConfirmation, Diagnostic, Locked, RecordDamaged, RecoveryNeeded, ScplanError, Severity
from scplan.journal import Deadline, Entries, Journal, left_behind, open_again, read_journal
from scplan.kinds.kind import Kinds
from scplan.named_tuple import NamedTuple

_LOCK_WAIT_S = 2.0
_LOCK_POLL_S = 0.02


class LeftBehind(NamedTuple):
    """A journal that has not ended and that nobody holds. `entries` is None when it is damaged.

    `left_s` is the time in which its apply can still be confirmed; 0 for one that is only to be recovered.
    """

    path: str
    entries: Entries | None
    left_s: float

    @property
    def apply_id(self) -> str:
        return os.path.basename(self.path).removesuffix(".jsonl")

    @property
    def is_overdue(self) -> bool:
        """Whether it goes back because nobody confirmed it."""
        if self.entries is None or self.entries.ending is not None:
            return False
        return self.entries.must_be_confirmed and not self.left_s


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
    """What no running scplan holds, oldest first."""
    found = []
    for path in left_behind(directory):
        try:
            entries = read_journal(path, kinds)
        except RecordDamaged:
            if os.path.exists(path):
                found.append(LeftBehind(path, None, 0.0))
            continue
        found.append(LeftBehind(path, entries, seconds_left(entries, boot_id)))
    return found


def refusal(left: list[LeftBehind]) -> RecoveryNeeded | None:
    """What stands against changing anything now: an apply that awaits confirmation, or one that did not end."""
    awaiting = [one for one in left if one.left_s]
    if awaiting:
        return AwaitingConfirmation(
            f"apply {awaiting[0].apply_id} awaits confirmation for {awaiting[0].left_s:.0f} s more",
            hint="`scplan confirm` keeps what it did, `scplan undo` undoes it at once",
        )
    overdue = [one for one in left if one.is_overdue]
    if overdue:
        return RecoveryNeeded(
            f"apply {overdue[0].apply_id} was not confirmed in time, and is not undone yet",
            hint="`scplan recover` undoes it; so does the next command that changes something",
        )
    if left:
        return RecoveryNeeded(
            f"an apply did not end: {', '.join(os.path.basename(one.path) for one in left)}",
            hint="run `scplan recover`; it undoes what was half done, or finishes what was made",
        )
    return None


def warnings(left: list[LeftBehind]) -> list[Diagnostic]:
    """The refusal as a warning, for commands that only read."""
    error = refusal(left)
    return [one._replace(severity=Severity.WARNING) for one in error.diagnostics] if error else []


def confirm(directory: str, kinds: Kinds, boot_id: str) -> str:
    """Keeps what the apply that awaits confirmation did; returns its ID. Raises ScplanError when it is too late."""
    awaiting = [one for one in all_left_behind(directory, kinds, boot_id) if one.entries and one.entries.awaiting]
    if not awaiting:
        raise ScplanError("nothing awaits confirmation", hint="`scplan state history` shows what became of each apply")
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
    return awaiting[0].apply_id


def held(path: str) -> Journal:
    """The journal, held until its `with` block ends. Raises Locked when somebody else goes on holding it."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        journal = open_again(path) if os.path.exists(path) else None
        if journal is not None:
            return journal
        if not os.path.exists(path) or time.monotonic() >= deadline:
            raise Locked(
                f"{os.path.basename(path)} is being dealt with by another scplan",
                hint="`scplan state history` shows what becomes of it",
            )
        time.sleep(_LOCK_POLL_S)
