"""The entries of a journal and their JSON form."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from scplan.errors import RecordDamaged
from scplan.kinds.kind import Kinds
from scplan.model.address import Address
from scplan.model.change import Action, Operation
from scplan.model.codec import address_from_json, facts_from_json, facts_to_json, from_json, to_json
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple
from scplan.store.durable import check_version, decode_line, read_bytes

FORMAT_VERSION = "1.1"
Ending = Literal["committed", "rolled_back"]
_LATEST_S = 1e11
"""After any time that a clock says, and before the years that can't be shown: about the year 5138."""


class Begin(NamedTuple):
    """The first line of a journal: the containers of an apply, its time and user, the boot of the host, its input.

    `time` is in seconds since the epoch; `begin_to_json` sets it as it writes the line. `files` are paths as the user
    gave them, `configuration` is a digest of their content. `undoes` is the ID of the apply that this apply undoes.
    `confirm_within_s` is set for an apply that is undone unless it is confirmed in that time. `operations` are all
    planned operations. `modules` are kernel modules by container, for the records that are written at the end.
    Attributes that a journal of format 1.0 does not have are empty or None.
    """

    apply_id: str
    boot_id: str
    user: str
    containers: Mapping[str, ContainerFacts]
    time: float = 0.0
    uid: int | None = None
    command: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    configuration: str = ""
    undoes: str = ""
    confirm_within_s: float | None = None
    operations: tuple[Operation, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Deadline(NamedTuple):
    """The end of the time in which an apply can be confirmed. Valid during the boot that `Begin` names.

    `boottime_s` is in seconds of CLOCK_BOOTTIME, which can't be set and includes time in suspend. `time` is the same
    moment in seconds since the epoch, for people.
    """

    boottime_s: float
    time: float


class Refreshed(NamedTuple):
    """A record that an apply updates without a change in the kernel. `before` is None if it is unknown."""

    before: Resource | None
    after: Resource


class Entries(NamedTuple):
    """The entries of a journal.

    `started` are the operations that may have been made, by number. `done` are the numbers of the operations that were
    made and verified, `undone` of those that were undone. `refreshed` is as in Plan. `applied` is True once all
    operations have been made, even if some are undone since. `giving_up` is the reason why the apply is being undone;
    "" if it is not. `ending` is None until the apply has ended. `ended_at` is in seconds since the epoch. `reason` is
    why the apply was rolled back.
    """

    begin: Begin
    started: Mapping[int, Operation]
    undone: frozenset[int]
    done: frozenset[int]
    refreshed: Mapping[Address, Refreshed]
    applied: bool
    ending: Ending | None = None
    ended_at: float | None = None
    reason: str = ""
    awaiting: Deadline | None = None
    giving_up: str = ""

    @property
    def goes_back(self) -> bool:
        """True if the undo of the operations has begun: any of them may be half undone."""
        return bool(self.giving_up or self.undone)

    @property
    def must_be_confirmed(self) -> bool:
        """True if the apply is undone unless somebody confirms it in time."""
        return self.begin.confirm_within_s is not None


def read_journal(path: str, kinds: Kinds) -> Entries:
    """Entries of a journal.

    A torn last line is ignored: its operation was not begun. Raises RecordDamaged for any other damage.
    """
    try:
        return _read(path, kinds)
    except RecordDamaged as error:
        way_out = "restore it from a backup; or `scplan recover --accept-live` takes things over as they are"
        first = error.diagnostics[0]
        raise RecordDamaged(first.summary, detail=first.detail, hint=first.hint or way_out) from None


def read_begin(path: str, kinds: Kinds) -> Begin | None:
    """First line of a journal whose other lines may be damaged; None if the first line can't be read either."""
    try:
        first = decode_line((read_bytes(path) or b"").partition(b"\n")[0], path)
        check_version(first, FORMAT_VERSION, path)
        return _begin(first, kinds, path)
    except RecordDamaged:
        return None


def _read(path: str, kinds: Kinds) -> Entries:
    lines = (read_bytes(path) or b"").splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        raise RecordDamaged(f"{path} is damaged: it does not have a whole line")
    first = decode_line(lines[0], f"{path}:1")
    check_version(first, FORMAT_VERSION, path)
    entries = Entries(
        begin=_begin(first, kinds, path),
        started={},
        undone=frozenset(),
        done=frozenset(),
        refreshed=_refreshed(first, kinds, path),
        applied=False,
    )
    started: dict[int, Operation] = {}
    done: set[int] = set()
    undone: set[int] = set()
    for line_number, line in enumerate(lines[1:], 2):
        where = f"{path}:{line_number}"
        entry = decode_line(line, where)
        match entry.get("entry"):
            case "intended" | "done" as step:
                number = _number(entry, where)
                started[number] = operation_from_json(entry.get("operation"), kinds, where)
                undone.discard(number)
                if step == "done":
                    done.add(number)
            case "undone":
                number = _number(entry, where)
                undone.add(number)
                done.discard(number)
            case _:
                entries = _advanced(entries, entry, where)
    return entries._replace(started=started, undone=frozenset(undone), done=frozenset(done))


def _advanced(entries: Entries, entry: dict[str, Any], where: str) -> Entries:
    """`entries` with an entry added that is about the whole apply, and not about an operation."""
    match entry.get("entry"):
        case "applied":
            return entries._replace(applied=True, giving_up="")
        case "awaiting":
            return entries._replace(
                awaiting=Deadline(_seconds(entry, "boottime_s", where), _seconds(entry, "time", where))
            )
        case "giving_up":
            return entries._replace(giving_up=str(entry.get("reason")))
        case "committed" | "rolled_back" as ending:
            return entries._replace(
                ending=ending, ended_at=_seconds(entry, "time", where), reason=str(entry.get("reason", ""))
            )
        case other:
            raise RecordDamaged(f"{where}: unknown entry {other!r}")


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """JSON form of an operation."""
    document: dict[str, Any] = {
        "order": operation.order,
        "address": str(operation.address),
        "action": str(operation.action),
    }
    for side in ("before", "after", "owned_before", "owned_after"):
        resource = getattr(operation, side)
        if resource is not None:
            document[side] = to_json(resource)
    for flag in ("at_next_start", "was_gone"):
        if getattr(operation, flag):
            document[flag] = True
    return document


def operation_from_json(document: object, kinds: Kinds, where: str) -> Operation:
    """The operation of a JSON document. Raises RecordDamaged if it is malformed or its kind is unknown."""
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: no operation")
    address = address_from_json(document.get("address"), kinds, where)
    record = kinds[address.kind].record
    sides: dict[str, Any] = {
        side: from_json(record, document[side], f"{where}: {side}") if side in document else None
        for side in ("before", "after", "owned_before", "owned_after")
    }
    try:
        action = Action(str(document.get("action")))
    except ValueError:
        raise RecordDamaged(f"{where}: unknown action {document.get('action')!r}") from None
    order = document.get("order")
    return Operation(
        order=order if isinstance(order, int) else 0,
        address=address,
        action=action,
        **sides,
        at_next_start=document.get("at_next_start") is True,
        was_gone=document.get("was_gone") is True,
    )


def _refreshed(first: dict[str, Any], kinds: Kinds, where: str) -> dict[Address, Refreshed]:
    before = _resources(first.get("refreshed_before", {}), kinds, where)
    after = _resources(first.get("refreshed"), kinds, where)
    return {address: Refreshed(before.get(address), resource) for address, resource in after.items()}


def _resources(document: object, kinds: Kinds, where: str) -> dict[Address, Resource]:
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: no refreshed records")
    addresses = {address_from_json(text, kinds, where): value for text, value in document.items()}
    return {
        address: from_json(kinds[address.kind].record, value, f"{where}: {address}")
        for address, value in addresses.items()
    }


def _number(entry: dict[str, Any], where: str) -> int:
    number = entry.get("number")
    # Not isinstance(): bool is a subclass of int.
    if type(number) is not int:
        raise RecordDamaged(f"{where}: no number")
    return number


def _seconds(entry: dict[str, Any], key: str, where: str) -> float:
    seconds = entry.get(key)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < _LATEST_S:
        raise RecordDamaged(f"{where}: no {key}")
    return float(seconds)


def begin_to_json(begin: Begin, refreshed: Mapping[Address, Refreshed]) -> dict[str, Any]:
    """First line of a new journal, with the current time."""
    return {
        "entry": "begin",
        "format_version": FORMAT_VERSION,
        "apply_id": begin.apply_id,
        "boot_id": begin.boot_id,
        "user": begin.user,
        "uid": begin.uid,
        "time": time.time(),
        "command": list(begin.command),
        "files": list(begin.files),
        "configuration": begin.configuration,
        "undoes": begin.undoes,
        "confirm_within_s": begin.confirm_within_s,
        "containers": {name: facts_to_json(facts) for name, facts in begin.containers.items()},
        "modules": {name: list(modules) for name, modules in begin.modules.items()},
        "operations": [operation_to_json(operation) for operation in begin.operations],
        "refreshed": {str(address): to_json(one.after) for address, one in refreshed.items()},
        "refreshed_before": {str(address): to_json(one.before) for address, one in refreshed.items() if one.before},
    }


def _begin(document: dict[str, Any], kinds: Kinds, where: str) -> Begin:
    containers = document.get("containers")
    if document.get("entry") != "begin" or not isinstance(containers, dict):
        raise RecordDamaged(f"{where}: the first line is not the beginning of a journal")
    uid, within = document.get("uid"), document.get("confirm_within_s")
    operations = document.get("operations", [])
    if not isinstance(operations, list):
        raise RecordDamaged(f"{where}: no operations")
    return Begin(
        apply_id=str(document.get("apply_id", "")),
        boot_id=str(document.get("boot_id", "")),
        user=str(document.get("user", "")),
        containers={name: facts_from_json(name, facts, where) for name, facts in containers.items()},
        time=_seconds(document, "time", where),
        uid=uid if isinstance(uid, int) else None,
        command=_texts(document.get("command")),
        files=_texts(document.get("files")),
        configuration=str(document.get("configuration", "")),
        undoes=str(document.get("undoes", "")),
        confirm_within_s=None if within is None else _seconds(document, "confirm_within_s", where),
        operations=tuple(operation_from_json(one, kinds, where) for one in operations),
        modules=_modules(document.get("modules", {}), where),
    )


def _modules(document: object, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: modules are not an object")
    return {str(name): _texts(modules) for name, modules in document.items()}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
