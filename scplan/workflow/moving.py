"""Records moved to another container: a re-created or renamed one, or one of another runtime."""

from __future__ import annotations

from scplan.errors import ScplanError, UsageError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.live import ContainerFacts
from scplan.model.report import Moved
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import AUTO, locate
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import Record, State
from scplan.workflow.recorded import is_about, is_plugged_in, is_same_container, replaced
from scplan.workflow.records import unchanging
from scplan.workflow.scene import Request, record_of


class _Place(NamedTuple):
    """A parsed argument: NAME, RUNTIME/NAME, or the address of one resource."""

    runtime: str
    name: str
    address: Address | None = None


def state_mv(request: Request, source: str, target: str) -> Moved:
    """Move the record of one container, or one resource of the record, to the container `target`.

    Only records change: the next apply, or start, of the target attaches the resources. Raises ScplanError if the
    resources are still attached, or if the target has a record already.
    """
    old, new = _place(source), _place(target)
    _check_addresses(old, new)
    state = State(request.state_dir, KINDS)
    record = record_of(old.name, state, old.runtime)
    facts = locate(new.name, new.runtime, RUNTIMES)
    if (record.runtime, record.name) == (facts.runtime, facts.name) and _is_same(record, facts):
        raise UsageError(f"the records of {record.name} are about this container already")
    with Host() as host, unchanging(record, state, host, request.lock_timeout_s, also=(facts,)) as held:
        addresses = _chosen(held.record, old.address)
        _refuse_plugged_in(held.record, facts, host)
        # A re-created container has the name of its old record: then this is the record to move, not another one.
        there = state.read(facts.runtime, facts.name)
        if there is not None and (there.runtime, there.name) != (record.runtime, record.name):
            _check_room(there, facts, addresses, is_whole=old.address is None)
        state.write(_moved(held.record, there, facts, addresses, host))
    pairs = tuple((address, address._replace(container=facts.name)) for address in addresses)
    return Moved(f"{record.runtime}/{record.name}", record.id, facts, pairs, tuple(held.returned))


def _place(text: str) -> _Place:
    """The parsed argument. Raises UsageError."""
    parts = text.split("/", 2)
    if not all(parts):
        raise UsageError(f"not a container: {text!r}", hint="write NAME, RUNTIME/NAME, or CONTAINER/KIND/IDENTITY")
    if len(parts) == 3:
        return _Place(AUTO, parts[0], Address(*parts))
    if len(parts) == 2 and parts[0] not in RUNTIMES:
        raise UsageError(f"{text!r}: there is no runtime {parts[0]}", hint=f"there are {', '.join(RUNTIMES)}")
    return _Place(parts[0], parts[1]) if len(parts) == 2 else _Place(AUTO, text)


def _check_addresses(old: _Place, new: _Place) -> None:
    """Raises UsageError unless both are containers, or both are addresses of the same kind and identity."""
    if (old.address is None) != (new.address is None):
        raise UsageError("an address is moved to an address, a container's records to a container")
    if old.address is not None and new.address is not None and old.address[1:] != new.address[1:]:
        raise UsageError(
            f"{old.address} can't be moved to {new.address}: records can't rename what is in a container",
            hint="change the entry in the files, and apply",
        )


def _chosen(record: Record, address: Address | None) -> list[Address]:
    """Addresses of the record to move: all, or the given one. Raises UsageError if the record lacks it."""
    if address is None:
        return list(record.resources)
    chosen = address._replace(container=record.name)
    if chosen not in record.resources:
        raise UsageError(f"{address} is not in the records", hint="`scplan state list` shows what is")
    return [chosen]


def _is_same(record: Record, facts: ContainerFacts) -> bool:
    """True if the record is about this container, even if it was renamed."""
    return record.runtime == facts.runtime and is_same_container(record.id, record.place, facts)


def _refuse_plugged_in(record: Record, facts: ContainerFacts, host: Host) -> None:
    """Raises ScplanError if the record's container runs, and is not the target under another name.

    Its resources would stay attached without an owner.
    """
    if is_plugged_in(record, host.boot_id) and not _is_same(record, facts):
        raise ScplanError(
            f"container {record.name} runs, with what its records hold plugged in",
            detail=f"{record.runtime}, process {record.pid}",
            hint=f"stop it, or take it out of there: `scplan destroy {record.name}`",
        )


def _check_room(there: Record, facts: ContainerFacts, addresses: list[Address], *, is_whole: bool) -> None:
    """Raises ScplanError if the target has a record that would be mixed with the moved one."""
    if not is_about(there.id, there.place, facts):
        raise replaced(there, facts)
    arriving = {address._replace(container=facts.name) for address in addresses}
    taken = [str(address) for address in there.resources if address in arriving]
    if is_whole or taken:
        raise ScplanError(
            f"container {facts.name} ({facts.runtime}) has records already",
            detail=", ".join(taken) or f"{len(there.resources)} resources",
            hint=f"`scplan destroy {facts.name}` or `scplan state rm {facts.name}` first",
        )


def _moved(
    record: Record, there: Record | None, facts: ContainerFacts, addresses: list[Address], host: Host
) -> list[Record]:
    """The new records, the target's first: if only that one gets written, nothing is lost."""
    # A running renamed container keeps its attached resources, and with them the former values.
    is_renamed = _is_same(record, facts) and is_plugged_in(record, host.boot_id)
    source = record if is_renamed else record.at_next_start()
    resources = {address._replace(container=facts.name): source.resources[address] for address in addresses}
    left = {address: one for address, one in record.resources.items() if address not in addresses}
    if left and (_is_same(record, facts) or (record.runtime, record.name) == (facts.runtime, facts.name)):
        raise UsageError("a container's records are about one container", hint="name it without an address")
    target = source._replace(
        name=facts.name, runtime=facts.runtime, id=facts.id, resources=resources, bundle=facts.bundle, place=facts.place
    )
    if (record.runtime, record.name) == (facts.runtime, facts.name):
        return [target]
    if there is not None:
        target = there._replace(resources={**there.resources, **resources})
    return [target, record._replace(resources=left)]
