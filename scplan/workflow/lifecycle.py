"""What happens to the things of the host when containers end and start again, whoever finds out about it."""

from __future__ import annotations

from collections.abc import Mapping

from scplan.errors import Diagnostic, ScplanError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.live import ContainerFacts, HostFacts
from scplan.model.resource import Resource
from scplan.state import Record, State


def give_back(record: Record, facts: ContainerFacts, state: State, host: Host) -> None:
    """Gives the host back what a container that has ended had of it, and records that.

    Needs the container's lock. Goes on after a failure, and raises ScplanError with all of them: the record then still
    says what has to be given back.
    """
    if not record.is_over(facts, host.boot_id):
        return
    problems: list[Diagnostic] = []
    for address, resource in record.lost(facts, host.boot_id).items():
        try:
            KINDS[address.kind].reclaim(host, resource)
        except ScplanError as error:
            problems += (one._replace(detail=one.detail or str(address)) for one in error.diagnostics)
    if problems:
        raise ScplanError.of(problems)
    state.write([record.at_next_start()])


def facts_after_return(facts: HostFacts, lost: Mapping[Address, Resource], host: Host) -> HostFacts:
    """The facts of the host as they will be when it has got these things back."""
    for address, resource in lost.items():
        facts = KINDS[address.kind].after_reclaim(facts, host, resource)
    return facts


def wanted_again(record: Record) -> dict[Address, Resource]:
    """What the records ask for when their container starts."""
    wanted = {}
    for address, resource in record.resources.items():
        again = KINDS[address.kind].wanted_again(resource)
        if again is not None:
            wanted[address] = again
    return wanted
