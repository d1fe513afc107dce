"""The write-ahead log of an apply: each operation is on disk before it is made, so that a crash can be recovered.

A journal consists of lines `CRC32 JSON`. The apply holds its flock(2) while it runs; if no process holds the lock and
the journal has no ending, the apply crashed. Order of the entries: `begin`; for each operation `intended`, then `done`;
`applied`; `committed`. An apply that fails has `undone` entries and `rolled_back` instead. Recovery undoes an apply
without `applied`, and finishes one with it. An apply that must be confirmed has `awaiting` after `applied`, and is
undone until it is confirmed; `giving_up` precedes the undo of its operations.
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
    "open_paths",
    "operation_from_json",
    "operation_to_json",
    "read_begin",
    "read_journal",
    "retire",
    "set_aside",
]
HISTORY_KEPT = 100
OF_A_START = "-start"
"""Suffix of the ID of an apply that only reattaches resources at a start: there is no change to undo."""
_LAST_LINE_BYTES = 4096
_LOOK_S = 1.0
_MAKER = re.compile(rf"-(\d+)(?:{OF_A_START})?\.jsonl\Z", re.ASCII)
_ID = re.compile(r"(\d{8}T\d{6}\.\d{9})-", re.ASCII)
_ID_TIME = "%Y%m%dT%H%M%S"


def new_apply_id(directory: str) -> str:
    """ID of a new apply, unique on the host. It sorts after all IDs in the directory, even if the clock went back.

    The history is in the order of the IDs: `undo` reverts the last one.
    """
    stamp = _stamp(time.time_ns())
    names = (name for part in ("journal", "history") for name in listed(os.path.join(directory, part)))
    # Stamps sort as texts as their times do: they have a fixed number of digits.
    later = sorted(found[1] for found in map(_ID.match, names) if found and found[1] >= stamp)
    while later:
        newest_ns = _time_ns(later.pop())
        if newest_ns is not None:
            return f"{_stamp(newest_ns + 1)}-{os.getpid()}"
    return f"{stamp}-{os.getpid()}"


def _stamp(time_ns: int) -> str:
    # Both parts from one clock reading: time.gmtime() without argument reads a coarser clock, milliseconds behind.
    seconds, rest_ns = divmod(time_ns, 10**9)
    return f"{time.strftime(_ID_TIME, time.gmtime(seconds))}.{rest_ns:09d}"


def _time_ns(stamp: str) -> int | None:
    """Nanoseconds since the epoch of an ID's stamp; None if it is not a time: the file need not be scplan's."""
    import calendar

    seconds, _, rest_ns = stamp.partition(".")
    try:
        return calendar.timegm(time.strptime(seconds, _ID_TIME)) * 10**9 + int(rest_ns)
    except ValueError:
        return None


class Journal:
    """A journal that is being written and whose lock is held until the `with` block ends.

    Methods that append an entry raise KernelError if it can't be written, such as on a full disk.
    """

    def __init__(self, directory: str, begin: Begin, refreshed: Mapping[Address, Refreshed]) -> None:
        self.directory = os.path.join(directory, "journal")
        make_directory(self.directory)
        make_directory(os.path.join(directory, "history"))
        self.path = os.path.join(self.directory, f"{begin.apply_id}.jsonl")
        # Renamed once its first line is on disk: so a journal without a line is damaged, and not the trace of a crash.
        nameless = f"{self.path}.tmp"
        self._fd = locks.open_locked(nameless, FILE_MODE)
        try:
            self._append(begin_to_json(begin, refreshed))
            # The lock is kept: it belongs to the open file, not to the name. flock(2).
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
        """Append, durably, that the operation is going to be made. Must return before the operation is made."""
        self._append({"entry": "intended", "number": number, "operation": operation_to_json(operation)})

    def done(self, number: int, operation: Operation) -> None:
        """Append that the operation was made and verified."""
        # Not synced: without this line recovery treats the operation as one that may have been made.
        self._append({"entry": "done", "number": number, "operation": operation_to_json(operation)}, sync=False)

    def undone(self, number: int) -> None:
        self._append({"entry": "undone", "number": number}, sync=False)

    def applied(self) -> None:
        """Append that all operations are made. After this entry a crash is recovered by finishing the apply."""
        self._append({"entry": "applied"})

    def awaiting(self, deadline: Deadline) -> None:
        """Append that the records are in place and the apply awaits confirmation, which is `close` by the deadline."""
        self._append({"entry": "awaiting", "boottime_s": deadline.boottime_s, "time": deadline.time})

    def giving_up(self, reason: str) -> None:
        """Append that the apply is being undone. After this entry it can't be confirmed any more."""
        self._append({"entry": "giving_up", "reason": reason})

    def close(self, ending: Ending, reason: str = "") -> None:
        """Append the ending and move the journal into the history. `reason` is why the apply was rolled back."""
        # On a full disk the line is missing; that the journal is in the history shows that it has ended.
        with contextlib.suppress(KernelError):
            self._append({"entry": ending, "time": time.time(), **({"reason": reason} if reason else {})})
        retire(self.path)

    def _append(self, entry: dict[str, Any], *, sync: bool = True) -> None:
        line = encode_line(entry)
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                # write(2) writes a part if the disk fills up. Readers ignore the torn line. 28 is ENOSPC.
                raise OSError(28, "the line was written in part")
            if sync:
                # Enough for an appended line: fdatasync(2) also writes the file's size, though not its times.
                os.fdatasync(self._fd)
        except OSError as error:
            raise KernelError.from_os(f"write({self.path})", error) from None


def sweep(directory: str) -> None:
    """Remove journals of applies that crashed before the first line was on disk, and so before the first operation."""
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
    """Journal of a crashed apply, locked and open for appending; None if a process holds it or if it has ended."""
    journal = Journal.__new__(Journal)
    journal.path = path
    journal.directory = os.path.dirname(path)
    try:
        # O_APPEND: each write(2) goes to the end of the file, whatever the offset of the fd is.
        journal._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    # `left_behind` in another process holds the lock for a moment, too, to test whether it is free.
    if not locks.comes_true(lambda: locks.take(journal._fd), time.monotonic() + _LOOK_S):
        os.close(journal._fd)
        return None
    if not os.path.exists(path):
        # Another process ended the journal between open() and flock().
        os.close(journal._fd)
        return None
    return journal


def left_behind(directory: str) -> list[str]:
    """Paths of the journals whose lock no running apply holds, oldest first."""
    return [path for path in open_paths(directory) if _is_abandoned(path)]


def open_ids(directory: str) -> list[str]:
    """IDs of the applies whose journal is not in the history yet, oldest first."""
    return [os.path.basename(path).removesuffix(".jsonl") for path in open_paths(directory)]


def is_at_work(directory: str) -> bool:
    """True if an apply or a recovery is running now."""
    return any(not _is_abandoned(path) and os.path.exists(path) for path in open_paths(directory))


def open_paths(directory: str) -> list[str]:
    """Paths of the journals that are not in the history, oldest first."""
    top = os.path.join(directory, "journal")
    return [os.path.join(top, name) for name in sorted(listed(top)) if name.endswith(".jsonl")]


def _is_abandoned(path: str) -> bool:
    """True if no process holds the journal's lock. Children of a killed apply may hold it a moment longer than it."""
    deadline = time.monotonic() + _LOOK_S
    if not locks.comes_true(lambda: not locks.is_held(path) or start_of(_maker_of(path)) != 0, deadline):
        return False
    return not locks.is_held(path) and os.path.exists(path)


def _maker_of(path: str) -> int:
    """PID in the apply's ID, of the process that made the journal; 0, which no process has, if the ID has none."""
    found = _MAKER.search(path)
    return int(found[1]) if found else 0


def _to_drop(history: str) -> list[str]:
    """Journals to delete from the history: all but the newest HISTORY_KEPT, and but the last committed apply.

    The last committed apply can always be undone, however many failed applies followed it.
    """
    names = sorted(os.listdir(history))
    old, kept = names[:-HISTORY_KEPT], names[-HISTORY_KEPT:]
    if not old or any(_is_committed(os.path.join(history, name)) for name in reversed(kept)):
        return old
    last = next((name for name in reversed(old) if _is_committed(os.path.join(history, name))), None)
    return [name for name in old if name != last]


def _is_committed(path: str) -> bool:
    """True if the last line of the journal is `committed`.

    Only the end of the file is read: lines of operations may be longer than that, but are never the last.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_LINE_BYTES))
        lines = file.read().splitlines()
    try:
        return bool(lines) and decode_line(lines[-1], path).get("entry") == "committed"
    except RecordDamaged:
        return False


def set_aside(path: str) -> str:
    """Move a damaged journal into the history, with a suffix that its readers ignore; return the new path."""
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
    """Move an ended journal into the history, and delete the oldest journals there. Raises KernelError.

    The journal of a container's start is deleted: such an apply only reattaches resources, and can't be undone.
    """
    history = os.path.join(os.path.dirname(os.path.dirname(path)), "history")
    make_directory(history)
    try:
        # If it is missing, another process has found the ending, and moved or deleted the journal already.
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
