"""The append-only record of an apply: each operation is on disk before it is made, so that a crash can be recovered.

Lines of `CRC32 JSON`, flocked by the apply that writes them; a journal that nobody holds is what a crash left behind.
`begin` · for each operation `intended`, then `done` · `applied` (from here on, forward) · `committed`; or `undone`
lines and `rolled_back`. An apply that must be confirmed goes back until then: after `applied` it has `awaiting`, and
`giving_up` before its operations are taken back.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Self

from scplan.errors import KernelError, RecordDamaged
from scplan.linux.processes.process import start_of
from scplan.model.address import Address
from scplan.model.change import Operation
from scplan.store import locks
from scplan.store.durable import FILE_MODE, decode_line, encode_line, listed, make_directory, sync_directory
from scplan.store.journal_lines import (
    FORMAT_VERSION,
    Begin,
    Deadline,
    Ending,
    Entries,
    Refreshed,
    begin_to_json,
    operation_from_json,
    operation_to_json,
    read_begin,
    read_journal,
)

__all__ = [
    "FORMAT_VERSION",
    "Begin",
    "Deadline",
    "Ending",
    "Entries",
    "Journal",
    "Refreshed",
    "is_at_work",
    "left_behind",
    "new_apply_id",
    "open_again",
    "open_ids",
    "operation_from_json",
    "operation_to_json",
    "read_begin",
    "read_journal",
    "retire",
    "set_aside",
]
HISTORY_KEPT = 100
OF_A_START = "-start"
"""How the ID ends of an apply that only plugs in again what was there: it is no change that could be undone."""
_LAST_LINE_BYTES = 4096
_LOOK_S = 1.0
_MAKER = re.compile(rf"-(\d+)(?:{OF_A_START})?\.jsonl\Z", re.ASCII)
_ID = re.compile(r"(\d{8}T\d{6}\.\d{9})-", re.ASCII)
_ID_TIME = "%Y%m%dT%H%M%S"


def new_apply_id(directory: str) -> str:
    """Unique on the host; sorts after all that the state directory has, also where the clock was set back meanwhile.

    The order of the IDs is that of the history: it tells which apply is the last, to be undone.
    """
    stamp = _stamp(time.time_ns())
    names = (name for part in ("journal", "history") for name in listed(os.path.join(directory, part)))
    later = sorted(found[1] for found in map(_ID.match, names) if found and found[1] >= stamp)
    while later:
        newest_ns = _time_ns(later.pop())
        if newest_ns is not None:
            return f"{_stamp(newest_ns + 1)}-{os.getpid()}"
    return f"{stamp}-{os.getpid()}"


def _stamp(time_ns: int) -> str:
    # One reading of the clock for both parts: time.gmtime() alone takes a coarser one, which lags by milliseconds.
    seconds, rest_ns = divmod(time_ns, 10**9)
    return f"{time.strftime(_ID_TIME, time.gmtime(seconds))}.{rest_ns:09d}"


def _time_ns(stamp: str) -> int | None:
    """None for one that is no time: not everything in the directory must have been put there by scplan."""
    import calendar

    seconds, _, rest_ns = stamp.partition(".")
    try:
        return calendar.timegm(time.strptime(seconds, _ID_TIME)) * 10**9 + int(rest_ns)
    except ValueError:
        return None


class Journal:
    """A journal that is being written; use it in a `with` block. Appending raises KernelError when the disk refuses."""

    def __init__(self, directory: str, begin: Begin, refreshed: Mapping[Address, Refreshed]) -> None:
        self.directory = os.path.join(directory, "journal")
        make_directory(self.directory)
        make_directory(os.path.join(directory, "history"))
        self.path = os.path.join(self.directory, f"{begin.apply_id}.jsonl")
        # It gets its name with its first line on disk: an empty journal is then a damaged one, and no crash.
        nameless = f"{self.path}.tmp"
        self._fd = locks.open_locked(nameless, FILE_MODE)
        try:
            self._append(begin_to_json(begin, refreshed))
            os.rename(nameless, self.path)
            sync_directory(self.directory)
        except BaseException as error:
            os.close(self._fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(nameless)
            if isinstance(error, OSError):
                raise KernelError.from_os(f"rename({self.path})", error) from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        locks.release(self._fd)

    def intended(self, number: int, operation: Operation) -> None:
        """Must return before the operation is made."""
        self._append({"entry": "intended", "number": number, "operation": operation_to_json(operation)})

    def done(self, number: int, operation: Operation) -> None:
        """The operation was made and read back."""
        self._append({"entry": "done", "number": number, "operation": operation_to_json(operation)}, sync=False)

    def undone(self, number: int) -> None:
        self._append({"entry": "undone", "number": number}, sync=False)

    def applied(self) -> None:
        """All operations are made: from here on a crash is recovered forward."""
        self._append({"entry": "applied"})

    def awaiting(self, deadline: Deadline) -> None:
        """The records are in place; all is undone unless `close` comes before the deadline."""
        self._append({"entry": "awaiting", "boottime_s": deadline.boottime_s, "time": deadline.time})

    def giving_up(self, reason: str) -> None:
        """From here on the apply can't be confirmed any more, only undone."""
        self._append({"entry": "giving_up", "reason": reason})

    def close(self, ending: Ending, reason: str = "") -> None:
        """Ends the journal and moves it into the history; `reason` says why it was rolled back."""
        # On a full disk the move alone says that it has ended.
        with contextlib.suppress(KernelError):
            self._append({"entry": ending, "time": time.time(), **({"reason": reason} if reason else {})})
        retire(self.path)

    def _append(self, entry: dict[str, Any], *, sync: bool = True) -> None:
        line = encode_line(entry)
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                # A disk that fills up in the middle of a line: the torn line is ignored by readers.
                raise OSError(28, "the line was written in part")
            if sync:
                os.fdatasync(self._fd)
        except OSError as error:
            raise KernelError.from_os(f"write({self.path})", error) from None


def sweep(directory: str) -> None:
    """Takes away journals that a crash left before their first line was on disk: nothing had begun."""
    top = os.path.join(directory, "journal")
    try:
        for name in os.listdir(top):
            if name.endswith(".jsonl.tmp"):
                _unlink_if_unheld(os.path.join(top, name))
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError.from_os(f"unlink({top})", error) from None


def _unlink_if_unheld(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if locks.take(fd):
            os.unlink(path)
    finally:
        os.close(fd)


def open_again(path: str) -> Journal | None:
    """A journal that a crash left, to be continued; None when its apply still holds it, or another one ended it."""
    journal = Journal.__new__(Journal)
    journal.path = path
    journal.directory = os.path.dirname(path)
    try:
        journal._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    # Who only looks whether it is held (`left_behind`) holds it for a moment, too.
    if not locks.comes_true(lambda: locks.take(journal._fd), time.monotonic() + _LOOK_S):
        os.close(journal._fd)
        return None
    if not os.path.exists(path):
        # It ended between the opening and the lock.
        os.close(journal._fd)
        return None
    return journal


def left_behind(directory: str) -> list[str]:
    """Paths of the journals that no running apply holds, oldest first."""
    return [path for path in _open_journals(directory) if _is_abandoned(path)]


def open_ids(directory: str) -> list[str]:
    """IDs of the applies whose journal has not been put away, oldest first."""
    return [os.path.basename(path).removesuffix(".jsonl") for path in _open_journals(directory)]


def is_at_work(directory: str) -> bool:
    """Whether an apply, or a recovery, is at work just now."""
    return any(not _is_abandoned(path) and os.path.exists(path) for path in _open_journals(directory))


def _open_journals(directory: str) -> list[str]:
    """Paths, oldest first."""
    top = os.path.join(directory, "journal")
    return [os.path.join(top, name) for name in sorted(listed(top)) if name.endswith(".jsonl")]


def _is_abandoned(path: str) -> bool:
    """True if nobody holds it. What its dead maker had started ends a moment later than its maker."""
    deadline = time.monotonic() + _LOOK_S
    if not locks.comes_true(lambda: not locks.is_held(path) or start_of(_maker_of(path)) != 0, deadline):
        return False
    return not locks.is_held(path) and os.path.exists(path)


def _maker_of(path: str) -> int:
    """The PID in the ID of the apply; 0, which no process has, when there is none."""
    found = _MAKER.search(path)
    return int(found[1]) if found else 0


def _to_drop(history: str) -> list[str]:
    """The oldest ones, but not the last committed apply: it can be undone, however often others failed since."""
    names = sorted(os.listdir(history))
    old, kept = names[:-HISTORY_KEPT], names[-HISTORY_KEPT:]
    if not old or any(_is_committed(os.path.join(history, name)) for name in reversed(kept)):
        return old
    last = next((name for name in reversed(old) if _is_committed(os.path.join(history, name))), None)
    return [name for name in old if name != last]


def _is_committed(path: str) -> bool:
    """By its last line; no line is longer than what is read, but those of operations, which are never the last."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_LINE_BYTES))
        lines = file.read().splitlines()
    try:
        return bool(lines) and decode_line(lines[-1], path).get("entry") == "committed"
    except RecordDamaged:
        return False


def set_aside(path: str) -> str:
    """Move a damaged journal into the history, under a name that nothing reads; returns its new path."""
    history = os.path.join(os.path.dirname(os.path.dirname(path)), "history")
    make_directory(history)
    kept = os.path.join(history, f"{os.path.basename(path)}.damaged")
    try:
        os.rename(path, kept)
        sync_directory(history)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise KernelError.from_os(f"rename({path})", error) from None
    return kept


def retire(path: str) -> None:
    """Moves an ended journal into the history, and drops the oldest ones there. That of a container's start goes."""
    history = os.path.join(os.path.dirname(os.path.dirname(path)), "history")
    make_directory(history)
    try:
        # Not there any more: another run, which found that it had ended, was quicker.
        with contextlib.suppress(FileNotFoundError):
            if path.endswith(f"{OF_A_START}.jsonl"):
                os.unlink(path)
            else:
                os.rename(path, os.path.join(history, os.path.basename(path)))
        for name in _to_drop(history):
            os.unlink(os.path.join(history, name))
        sync_directory(history)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise KernelError.from_os(f"rename({path})", error) from None
