"""Resources that the container's runtime made: no plan changes, adopts or removes them."""

from __future__ import annotations

from collections.abc import Iterable

from scplan.errors import EngineUnreachable
from scplan.kinds import KINDS
from scplan.model.address import Address
from scplan.model.change import Action, Change, Plan
from scplan.model.live import ContainerFacts
from scplan.model.provided import NOTHING_PROVIDED, Provided
from scplan.model.resource import Resource, Role
from scplan.planning.making import Owner
from scplan.runtimes import RUNTIMES

_OF_RECORDS = (Action.DELETE, Action.UPDATE, Action.REPLACE)


def owned_by_runtimes(made: Plan) -> dict[Address, Owner]:
    """Resources of runtimes that the plan would adopt, change or remove, with the runtime as owner.

    Also resources that a stopped container would get in the place of its runtime's.
    """
    found: dict[Address, Owner] = {}
    for name, changes in made.by_container():
        asked = [change for change in changes if _concerns(change)]
        if not asked:
            continue
        provided = _provided(made.containers[name], asked)
        for change in asked:
            kind, resource = KINDS[change.address.kind], change.before if change.before is not None else change.after
            origin = kind.came_with(resource, provided) if resource is not None else ""
            if origin:
                found[change.address] = Owner(change.address, origin=origin)
    return found


def _provided(facts: ContainerFacts, asked: Iterable[Change]) -> Provided:
    """Things that the runtime puts into the container. Raises EngineUnreachable."""
    try:
        return RUNTIMES[facts.runtime].provided(facts)
    except EngineUnreachable:
        # Removals need only the records: they must work while the engine is down.
        if all(change.action is Action.DELETE for change in asked):
            return NOTHING_PROVIDED
        raise


def _concerns(change: Change) -> bool:
    """True if the change makes a resource scplan's, or changes a recorded resource that scplan may never have made."""
    if change.records_only:
        return False
    # A kind that can take over live resources may take over the runtime's, too.
    if change.owned is None:
        live = change.before if change.action is Action.ADOPT else change.after if change.at_next_start else None
        return live is not None and not KINDS[change.address.kind].can_take_over(change.after or live, live)
    if change.action not in _OF_RECORDS or change.at_next_start or _is_marked(change, change.owned):
        return False
    live = change.before
    is_removal = change.after is None or live is None
    return is_removal or not KINDS[change.address.kind].can_take_over(change.after or live, live)


def _is_marked(change: Change, owned: Resource) -> bool:
    """True if the record, or a mark, shows that scplan made or changed the resource."""
    known = [attribute for _, attribute, value in owned.leaves() if value is not None and attribute.role is Role.FORMER]
    if known:
        return not all(attribute.of_others for attribute in known)
    live = change.before
    return live is None or bool(KINDS[change.address.kind].is_own(owned, live, is_new=True))
