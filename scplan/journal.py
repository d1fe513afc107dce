"""The append-only record of an apply: each operation is on disk before it is made, so that a crash can be recovered.

Lines of `CRC32 JSON`, flocked by the apply that writes them; a journal that nobody holds is what a crash left behind.
`begin` · for each operation `intended`, then `done` · `applied` (from here on, forward) · `committed`; or `undone`
lines and `rolled_back`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from scplan.errors import KernelError, RecordDamaged
from scplan.kinds.kind import Kinds
from scplan.model.address import Address
from scplan.model.change import Action, Operation
from scplan.model.codec import facts_from_json, facts_to_json, from_json, to_json
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.records import (
    FILE_MODE,
    check_version,
    decode_line,
    encode_line,
    make_directory,
    read_bytes,
    sync_directory,
)

FORMAT_VERSION = "1.0"
HISTORY_KEPT = 100
_LOOK_S = 1.0


class Begin(NamedTuple):
    """What the first line says: which containers, when, by whom, at which boot of the host."""

    apply_id: str
    boot_id: str
    user: str
    containers: Mapping[str, ContainerFacts]


class Entries(NamedTuple):
    """A journal read back. `started` are operations that may have been made, by number; `refreshed` as in Plan."""

    begin: Begin
    started: Mapping[int, Operation]
    undone: frozenset[int]
    refreshed: Mapping[Address, Resource]
    applied: bool
    ended: bool


class Journal:
    """A journal that is being written; use it in a `with` block. Appending raises KernelError when the disk refuses."""

    def __init__(self, directory: str, begin: Begin, refreshed: Mapping[Address, Resource]) -> None:
        self.directory = os.path.join(directory, "journal")
        make_directory(self.directory)
        make_directory(os.path.join(directory, "history"))
        self.path = os.path.join(self.directory, f"{begin.apply_id}.jsonl")
        # It gets its name with its first line on disk: an empty journal is then a damaged one, and no crash.
        nameless = f"{self.path}.tmp"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(nameless, flags, FILE_MODE)
        except OSError as error:
            raise KernelError.from_os(f"open({nameless})", error) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._append(_begin_line(begin, refreshed))
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
        os.close(self._fd)

    def intended(self, number: int, operation: Operation) -> None:
        """Must return before the operation is made."""
        self._append({"entry": "intended", "number": number, "operation": operation_to_json(operation)})

    def done(self, number: int, operation: Operation) -> None:
        """The operation was made and read back; `operation` now has what was found out by it."""
        self._append({"entry": "done", "number": number, "operation": operation_to_json(operation)}, sync=False)

    def undone(self, number: int) -> None:
        self._append({"entry": "undone", "number": number}, sync=False)

    def applied(self) -> None:
        """All operations are made: from here on a crash is recovered forward."""
        self._append({"entry": "applied"})

    def close(self, ending: str) -> None:
        """Ends the journal ("committed" or "rolled_back") and moves it into the history."""
        # On a full disk the move alone says that it has ended.
        with contextlib.suppress(KernelError):
            self._append({"entry": ending, "time": time.time()})
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
    if not _is_locked_soon(journal._fd):
        os.close(journal._fd)
        return None
    return journal


def _is_locked_soon(fd: int) -> bool:
    """Locks it. Who only looks whether it is held (`left_behind`) holds it for a moment, too."""
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(0.01)


def left_behind(directory: str) -> list[str]:
    """Paths of the journals that no running apply holds, oldest first."""
    top = os.path.join(directory, "journal")
    try:
        names = sorted(name for name in os.listdir(top) if name.endswith(".jsonl"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise KernelError.from_os(f"listdir({top})", error) from None
    return [path for name in names if _is_abandoned(path := os.path.join(top, name))]


def _is_abandoned(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return os.path.exists(path)


def retire(path: str) -> None:
    """Moves an ended journal into the history, and drops the oldest ones there."""
    history = os.path.join(os.path.dirname(os.path.dirname(path)), "history")
    make_directory(history)
    try:
        # Not there any more: another run, which found that it had ended, was quicker.
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, os.path.join(history, os.path.basename(path)))
        for name in sorted(os.listdir(history))[:-HISTORY_KEPT]:
            os.unlink(os.path.join(history, name))
        sync_directory(history)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise KernelError.from_os(f"rename({path})", error) from None


def read_journal(path: str, kinds: Kinds) -> Entries:
    """The journal's entries.

    A last line that is torn is left out: what it announced was not begun. Raises RecordDamaged for any other damage.
    """
    try:
        return _read(path, kinds)
    except RecordDamaged as error:
        way_out = (
            f"restore it from a backup; or mend by hand what its apply left (`scplan drift`), and move {path} away"
        )
        first = error.diagnostics[0]
        raise RecordDamaged(first.summary, detail=first.detail, hint=first.hint or way_out) from None


def _read(path: str, kinds: Kinds) -> Entries:
    lines = (read_bytes(path) or b"").splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        raise RecordDamaged(f"{path} is damaged: it does not have a whole line")
    first = decode_line(lines[0], f"{path}:1")
    check_version(first, FORMAT_VERSION, path)
    started: dict[int, Operation] = {}
    undone = set()
    applied = ended = False
    for line_number, line in enumerate(lines[1:], 2):
        where = f"{path}:{line_number}"
        entry = decode_line(line, where)
        match entry.get("entry"):
            case "intended" | "done":
                started[_number(entry, where)] = operation_from_json(entry.get("operation"), kinds, where)
            case "undone":
                undone.add(_number(entry, where))
            case "applied":
                applied = True
            case "committed" | "rolled_back":
                ended = True
            case other:
                raise RecordDamaged(f"{where}: unknown entry {other!r}")
    return Entries(
        begin=_begin(first, path),
        started=started,
        undone=frozenset(undone),
        refreshed=_resources(first.get("refreshed"), kinds, path),
        applied=applied,
        ended=ended,
    )


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """The one JSON form of an operation."""
    document: dict[str, Any] = {
        "order": operation.order,
        "address": str(operation.address),
        "action": str(operation.action),
    }
    for side in ("before", "after", "owned_before", "owned_after"):
        resource = getattr(operation, side)
        if resource is not None:
            document[side] = to_json(resource)
    return document


def operation_from_json(document: object, kinds: Kinds, where: str) -> Operation:
    """Raises RecordDamaged when the document is not an operation on a known kind."""
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: no operation")
    address = _address(document.get("address"), kinds, where)
    record = kinds[address.kind].record
    sides = {
        side: from_json(record, document[side], f"{where}: {side}") if side in document else None
        for side in ("before", "after", "owned_before", "owned_after")
    }
    try:
        action = Action(str(document.get("action")))
    except ValueError:
        raise RecordDamaged(f"{where}: unknown action {document.get('action')!r}") from None
    order = document.get("order")
    return Operation(order=order if isinstance(order, int) else 0, address=address, action=action, **sides)


def _address(text: object, kinds: Kinds, where: str) -> Address:
    parts = text.split("/", 2) if isinstance(text, str) else []
    if len(parts) != 3 or parts[1] not in kinds:
        raise RecordDamaged(f"{where}: not an address: {text!r}")
    return Address(*parts)


def _resources(document: object, kinds: Kinds, where: str) -> dict[Address, Resource]:
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: no refreshed records")
    addresses = {_address(text, kinds, where): value for text, value in document.items()}
    return {
        address: from_json(kinds[address.kind].record, value, f"{where}: {address}")
        for address, value in addresses.items()
    }


def _number(entry: dict[str, Any], where: str) -> int:
    number = entry.get("number")
    if type(number) is not int:
        raise RecordDamaged(f"{where}: no number")
    return number


def _begin_line(begin: Begin, refreshed: Mapping[Address, Resource]) -> dict[str, Any]:
    return {
        "entry": "begin",
        "format_version": FORMAT_VERSION,
        "apply_id": begin.apply_id,
        "boot_id": begin.boot_id,
        "user": begin.user,
        "time": time.time(),
        "containers": {name: facts_to_json(facts) for name, facts in begin.containers.items()},
        "refreshed": {str(address): to_json(resource) for address, resource in refreshed.items()},
    }


def _begin(document: dict[str, Any], where: str) -> Begin:
    containers = document.get("containers")
    if document.get("entry") != "begin" or not isinstance(containers, dict):
        raise RecordDamaged(f"{where}: the first line is not the beginning of a journal")
    return Begin(
        apply_id=str(document.get("apply_id", "")),
        boot_id=str(document.get("boot_id", "")),
        user=str(document.get("user", "")),
        containers={name: facts_from_json(name, facts, where) for name, facts in containers.items()},
    )
