"""The history of applies and their outcomes, from ended and open journals, newest first."""

from __future__ import annotations

import os
from collections.abc import Iterator

from scplan.errors import KernelError, RecordDamaged, ScplanError
from scplan.kinds.kind import Kinds
from scplan.model.report import Ended, Past
from scplan.startup.named_tuple import NamedTuple
from scplan.store.confirmation import seconds_left
from scplan.store.durable import listed
from scplan.store.journal import Entries, left_behind, read_journal


class Kept(NamedTuple):
    """A journal and its path. If it can't be read, `entries` is None and `problem` is the reason."""

    path: str
    entries: Entries | None
    problem: str = ""

    @property
    def apply_id(self) -> str:
        return os.path.basename(self.path).removesuffix(".jsonl")

    @property
    def is_open(self) -> bool:
        """True if the apply is running, crashed, or awaits confirmation."""
        return os.path.basename(os.path.dirname(self.path)) == "journal"

    @property
    def is_committed(self) -> bool:
        """True if the apply was committed: its changes are in the records and are not rolled back any more."""
        if self.entries is None or (self.is_open and self.entries.ending is None):
            return False
        if self.entries.ending is not None:
            return self.entries.ending == "committed"
        # The disk was full when the apply ended: the journal was moved into the history without its last line.
        return self.entries.applied and len(self.entries.undone) < max(1, len(self.entries.started))


def history(directory: str, kinds: Kinds, boot_id: str, limit: int | None = None) -> list[Past]:
    """Applies, newest first, at most `limit`."""
    unheld = set(left_behind(directory))
    undone: set[str] = set()
    found: list[Past] = []
    for kept in _all_kept(directory, kinds):
        if limit is not None and len(found) >= limit:
            break
        outcome = _open_outcome(kept, unheld, boot_id) if kept.is_open else _outcome(kept, undone)
        if outcome is Ended.COMMITTED and kept.entries and kept.entries.begin.undoes:
            undone.add(kept.entries.begin.undoes)
        found.append(_past(kept, outcome, boot_id))
    return found


def last_committed(directory: str, kinds: Kinds) -> Kept:
    """Journal of the last committed apply.

    Raises ScplanError if no apply was committed, RecordDamaged if a newer journal can't be read.
    """
    for kept in _all_kept(directory, kinds):
        if kept.entries is None:
            raise RecordDamaged(
                f"the history is damaged: {kept.problem}",
                hint=f"which apply was the last can't be told; to undo the one before it, move {kept.path} away",
            )
        if kept.is_committed:
            return kept
    raise ScplanError("there is nothing to undo: the history has no apply that was committed")


def _all_kept(directory: str, kinds: Kinds) -> Iterator[Kept]:
    """All journals, newest first. Each is read when the iterator reaches it."""
    found = [os.path.join(directory, part, name) for part in ("journal", "history") for name in _names(directory, part)]
    for path in sorted(found, key=os.path.basename, reverse=True):
        try:
            yield Kept(path, read_journal(path, kinds))
        except (RecordDamaged, KernelError) as error:
            yield Kept(path, None, error.diagnostics[0].summary)


def _names(directory: str, part: str) -> list[str]:
    return [name for name in listed(os.path.join(directory, part)) if name.endswith(".jsonl")]


def _outcome(kept: Kept, undone: set[str]) -> Ended:
    if kept.entries is None:
        return Ended.UNREADABLE
    if not kept.is_committed:
        return Ended.ROLLED_BACK
    return Ended.UNDONE if kept.apply_id in undone else Ended.COMMITTED


def _open_outcome(kept: Kept, unheld: set[str], boot_id: str) -> Ended:
    if kept.path not in unheld:
        return Ended.RUNNING
    if kept.entries is None:
        return Ended.UNREADABLE
    return Ended.AWAITING if seconds_left(kept.entries, boot_id) else Ended.NEEDS_RECOVERY


def _past(kept: Kept, outcome: Ended, boot_id: str) -> Past:
    entries = kept.entries
    if entries is None:
        return Past(apply_id=kept.apply_id, outcome=outcome, problem=kept.problem)
    begin = entries.begin
    actions = [operation.action for operation in entries.started.values()]
    return Past(
        apply_id=kept.apply_id,
        outcome=outcome,
        begun=begin.time,
        ended=entries.ended_at,
        user=begin.user,
        uid=begin.uid,
        command=begin.command,
        files=begin.files,
        configuration=begin.configuration,
        containers=tuple(begin.containers),
        counts={action: actions.count(action) for action in dict.fromkeys(actions)},
        undoes=begin.undoes,
        reason=entries.reason or entries.giving_up,
        left_s=seconds_left(entries, boot_id),
    )
