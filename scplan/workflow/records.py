"""The records themselves: listed, shown, forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scplan.errors import UsageError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address, Selection
from scplan.state import Record, State
from scplan.workflow.reporting import show_owned
from scplan.workflow.scene import Request, gone

if TYPE_CHECKING:
    from scplan.model.report import Owned


def state_list(request: Request) -> list[Owned]:
    """Everything in the records, without looking at the kernel."""
    return [
        _owned_of(record, address) for record in State(request.state_dir, KINDS).all() for address in record.resources
    ]


def state_show(request: Request, address: Address) -> Owned:
    """One resource of the records, with its live value."""
    for owned in show_owned(request):
        if owned.address == address:
            return owned
    raise UsageError(f"{address} is not in the records", hint="`scplan state list` shows what is")


def state_rm(request: Request, glob: str) -> None:
    """Forgets a resource, or all that a glob matches (a container's name: all of it); nothing in the kernel changes."""
    from scplan.recovery import refuse_if_needed

    state = State(request.state_dir, KINDS)
    chosen = Selection((glob,))
    found = False
    for record in list(state.all()):
        if not any(owned in chosen for owned in record.resources):
            continue
        found = True
        with Host() as host, state.locked([gone(record)], host=False, timeout_s=request.lock_timeout_s):
            refuse_if_needed(state, KINDS, host)
            now = state.read(record.runtime, record.name)
            resources = now.resources if now else {}
            kept = {owned: resource for owned, resource in resources.items() if owned not in chosen}
            state.write([record._replace(resources=kept)])
    if not found:
        raise UsageError(f"{glob} matches nothing in the records", hint="`scplan state list` shows what is there")


def _owned_of(record: Record, address: Address) -> Owned:
    from scplan.model.report import Owned

    return Owned(
        address=address,
        runtime=record.runtime,
        container_id=record.id,
        recorded=record.resources[address],
        live=None,
    )
