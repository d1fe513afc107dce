"""Records listed, shown and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scplan.errors import Diagnostic, UsageError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address, Selection
from scplan.model.live import ContainerFacts
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import Record, State
from scplan.workflow.lifecycle import give_back
from scplan.workflow.recorded import gone, is_plugged_in
from scplan.workflow.reporting import show_owned
from scplan.workflow.scene import Request

if TYPE_CHECKING:
    from scplan.model.report import Owned


def recorded_containers(request: Request) -> list[str]:
    """Names of the containers that have records."""
    return [name for _, name in State(request.state_dir, KINDS).names()]


def state_list(request: Request) -> list[Owned]:
    """All resources in readable records; the kernel is not read."""
    records, _ = State(request.state_dir, KINDS).survey()
    return [_owned_of(record, address) for record in records for address in record.resources]


def state_show(request: Request, address: Address) -> Owned:
    """One recorded resource with its live values. Raises UsageError if it is not recorded."""
    for owned in show_owned(request):
        if owned.address == address:
            return owned
    _, failures = State(request.state_dir, KINDS).survey()
    if failures:
        raise failures[0]
    raise UsageError(f"{address} is not in the records", hint="`scplan state list` shows what is")


def state_rm(request: Request, glob: str) -> list[Diagnostic]:
    """Remove the resources that a glob matches from the records; they stay in their containers.

    A container's name matches all of its resources. Things of the host that an ended container had are returned first;
    returns a warning per thing.
    """
    state = State(request.state_dir, KINDS)
    chosen = Selection((glob,))
    returned: list[Diagnostic] = []
    found = False
    records, failures = state.survey()
    for record in records:
        if not any(owned in chosen for owned in record.resources):
            continue
        found = True
        with Host() as host, unchanging(record, state, host, request.lock_timeout_s) as held:
            returned += held.returned
            kept = {owned: one for owned, one in held.record.resources.items() if owned not in chosen}
            state.write([held.record._replace(resources=kept)])
    if not found and failures:
        raise failures[0]
    if not found:
        raise UsageError(f"{glob} matches nothing in the records", hint="`scplan state list` shows what is there")
    return returned


class Held(NamedTuple):
    """A locked record, read under its lock, and warnings about things returned to the host."""

    record: Record
    returned: list[Diagnostic]


@contextmanager
def unchanging(
    record: Record, state: State, host: Host, timeout_s: float, also: tuple[ContainerFacts, ...] = ()
) -> Iterator[Held]:
    """Lock a record and the containers in `also`; if its container ended, return its things to the host.

    Raises RecoveryNeeded if an apply to these containers did not end.
    """
    from scplan.applying.recovery import refuse_if_needed
    from scplan.store.confirmation import Scope

    has_ended = record.has_lent or (bool(record.start_time) and not is_plugged_in(record, host.boot_id))
    # The lock of the host stops all applies with NICs: taken only if something may be returned.
    of_host = has_ended and any(KINDS[address.kind].of_host for address in record.resources)
    with state.locked([gone(record), *also], host=of_host, timeout_s=timeout_s):
        refuse_if_needed(state, KINDS, host, Scope((gone(record), *also), record.resources.items()))
        # Again under the lock: the record may have changed since.
        now = state.read(record.runtime, record.name) or record._replace(resources={})
        returned = []
        if of_host and not is_plugged_in(now, host.boot_id):
            returned = give_back(now, gone(now), state, host)
            now = state.read(now.runtime, now.name) or now.at_next_start()
        yield Held(now, returned)


def _owned_of(record: Record, address: Address) -> Owned:
    from scplan.model.report import Owned

    return Owned(
        address=address,
        runtime=record.runtime,
        container_id=record.id,
        recorded=record.resources[address],
        live=None,
    )
