"""The plan that undoes an apply, from the changes of the apply, live and owned resources. Pure, as making.py.

An undo is planned against live state like any change, so changes that others made since the apply show in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scplan.errors import Diagnostic, Severity
from scplan.kinds.kind import Kind, Kinds, Unsuitable
from scplan.model.address import Address
from scplan.model.change import Action, Disruption, Operation, Plan
from scplan.model.comparison import (
    as_recorded,
    differences,
    goal,
    in_order_of,
    keep_former,
    laid_over,
    surplus,
    with_promises_of,
    with_values,
    withdrawn,
    without_former,
)
from scplan.model.resource import REPLACING, Resource, Role, brought_by
from scplan.planning import making
from scplan.planning.at_next_start import waiting
from scplan.planning.draft import REMADE, Draft
from scplan.startup.named_tuple import NamedTuple

_MADE = "made by the apply that is undone"
_REMOVED = "removed by the apply that is undone"
_CHANGED = "changed by the apply that is undone"
_ELSEWHERE = "changed by the apply that is undone, and outside scplan since"


class Reversal(NamedTuple):
    """The net effect of an apply on one address: resource and record before the apply, resource after the apply.

    `adopted`: the apply only recorded a resource that was there already.
    """

    before: Resource | None
    owned_before: Resource | None
    after: Resource | None
    adopted: bool = False


def reversals(
    operations: Mapping[int, Operation], refreshed: Mapping[Address, tuple[Resource | None, Resource]]
) -> dict[Address, Reversal]:
    """Net effects of an apply by address, from its numbered operations and the records (before, after) it refreshed."""
    made: dict[Address, Reversal] = {}
    # The first operation at an address has the state before the apply, the last one the state after.
    for _, operation in sorted(operations.items()):
        first = made.get(operation.address)
        if first is None:
            adopted = operation.action is Action.ADOPT and operation.owned_before is None
            first = Reversal(operation.before, operation.owned_before, None, adopted)
        made[operation.address] = first._replace(after=operation.after)
    return {address: Reversal(None, before, after) for address, (before, after) in refreshed.items()} | made


def with_brought(
    past: Mapping[Address, Reversal], owned: Mapping[Address, Resource], kinds: Kinds
) -> dict[Address, Reversal]:
    """`past` with the resources that came by themselves since the apply, for an entry that the undo removes.

    Such as partitions that a disk got later: they go with the entry of the disk.
    """
    found = dict(past)
    for address, resource in owned.items():
        origin = brought_by(resource)
        reversal = past.get(address._replace(identity=origin)) if origin is not None else None
        if reversal is None or address in past:
            continue
        if reversal.owned_before is None or not kinds[address.kind].brings_others(reversal.owned_before):
            found[address] = Reversal(None, None, resource)
    return found


def desired_after(owned: Mapping[Address, Resource], past: Mapping[Address, Reversal]) -> dict[Address, Resource]:
    """Records that scplan should have after the undo."""
    desired = {address: one for address, one in owned.items() if address not in past}
    return desired | {address: one.owned_before for address, one in past.items() if one.owned_before is not None}


def make_undo(inputs: making.Inputs, past: Mapping[Address, Reversal], kinds: Kinds) -> Plan:
    """The changes that undo the apply. Raises PlanError with all errors, in file order."""
    drafts: dict[Address, Draft] = {}
    refreshed: dict[Address, Resource] = {}
    problems: list[Diagnostic] = []
    skipped = inputs.resolution.skipped
    for address, reversal in past.items():
        wanted, owned = inputs.resolution.desired.get(address), inputs.owned.get(address)
        if address in skipped:
            continue
        try:
            draft = _draft(kinds[address.kind], address, reversal, wanted, inputs)
        except Unsuitable as error:
            problems.append(making.unsuitable(None, address, error, Severity.ERROR))
            continue
        if draft is not None:
            drafts[address] = draft
        elif wanted is not None and owned is not None:
            # Former values that were remembered before a restart of the container no longer apply.
            record = keep_former(wanted, owned) if making.is_waiting(inputs, address) else wanted
            if record != owned:
                refreshed[address] = record
    problems += _refused_creations(drafts, inputs, kinds)
    return making.finish(inputs, kinds, drafts, refreshed, problems)


def _draft(
    kind: Kind[Any], address: Address, reversal: Reversal, wanted: Resource | None, inputs: making.Inputs
) -> Draft | None:
    """The change that undoes one address; None if there is nothing to undo. Raises Unsuitable."""
    live, owned = inputs.live.resources.get(address), inputs.owned.get(address)
    if wanted is None:
        return None if owned is None else _withdrawal(address, reversal, owned, inputs)
    if making.is_waiting(inputs, address):
        return waiting(kind, address, wanted, owned, inputs.live.host)
    if owned is None and live is not None:
        # The apply removed the resource, and others have made one there since.
        draft = making.taking_over(kind, address, without_former(wanted), live, inputs.live.host)
        return draft._replace(reason=_REMOVED)
    if live is None:
        return _creation(kind, address, reversal, wanted, owned, inputs)
    assert owned is not None
    return _alteration(kind, address, reversal, wanted, live, owned, inputs)


def _withdrawal(address: Address, reversal: Reversal, owned: Resource, inputs: making.Inputs) -> Draft:
    """Undo for an address that scplan did not own before: a release if the apply adopted it, else a removal."""
    live = inputs.live.resources.get(address)
    if live is None or not reversal.adopted:
        draft = making.removal(inputs, address, _MADE)
        if draft.before is None or reversal.after is None:
            return draft
        # The removal restores what the creation had replaced: CARRIED values are not in records.
        return draft._replace(before=laid_over(draft.before, reversal.after, (Role.CARRIED,)))
    return making.released(address, live, owned, "adopted by the apply that is undone")


def _creation(
    kind: Kind[Any],
    address: Address,
    reversal: Reversal,
    wanted: Resource,
    owned: Resource | None,
    inputs: making.Inputs,
) -> Draft:
    return Draft(
        address=address,
        action=Action.CREATE,
        reason=_REMOVED if owned is None else "owned, but gone from the container",
        before=None,
        after=_as_it_was(kind, address, reversal, wanted, inputs),
        managed=without_former(wanted),
        owned=owned,
    )


def _as_it_was(
    kind: Kind[Any], address: Address, reversal: Reversal, wanted: Resource, inputs: making.Inputs
) -> Resource:
    """The resource with all values from before the apply; values of the record win."""
    bare = without_former(wanted)
    completed: Resource = kind.completed(address, bare, inputs.live.host)
    if reversal.before is None:
        return completed
    return laid_over(
        laid_over(with_promises_of(completed, wanted), reversal.before, (Role.MANAGED, Role.FIXED, Role.CARRIED)),
        bare,
        (Role.FIXED, Role.POLICY, Role.RESOLVED, Role.ORIGIN),
    )


def _alteration(
    kind: Kind[Any],
    address: Address,
    reversal: Reversal,
    wanted: Resource,
    live: Resource,
    owned: Resource,
    inputs: making.Inputs,
) -> Draft | None:
    """An update in place to the values from before the apply, or a replacement."""
    # Attributes that the apply had set go back to their captured values, not to defaults of the kind.
    values = {path: reversal.before.get(path) for path in withdrawn(owned, wanted)} if reversal.before else {}
    target = with_values(wanted, {path: value for path, value in values.items() if value is not None})
    changed = tuple(dict.fromkeys(differences(target, live) + surplus(owned, target, live)))
    if not changed:
        return None
    if any(wanted.attribute(path).role in REPLACING for path in changed):
        return Draft(
            address=address,
            action=Action.REPLACE,
            reason=_CHANGED,
            before=as_recorded(live, owned),
            after=_as_it_was(kind, address, reversal, wanted, inputs),
            managed=without_former(wanted),
            owned=owned,
            changed=changed,
        ).interrupting(Disruption.RECREATE, REMADE)
    before, after = as_recorded(live, owned), in_order_of(goal(target, live, owned), reversal.before)
    draft = Draft(
        address=address,
        action=Action.UPDATE,
        reason=_ELSEWHERE if differences(owned, live) else _CHANGED,
        before=before,
        # Former values of the record before the apply; where it has none, of the present record.
        after=laid_over(
            with_promises_of(laid_over(after, wanted, (Role.FORMER,)), wanted),
            reversal.before or wanted,
            (Role.CARRIED,),
        ),
        managed=wanted,
        owned=owned,
        changed=changed,
    )
    return draft.interrupting(*kind.disruption(before, after))


def _refused_creations(drafts: Mapping[Address, Draft], inputs: making.Inputs, kinds: Kinds) -> list[Diagnostic]:
    """Errors about resources that the host, as it is now, does not allow to be created again."""
    removed = [draft for draft in drafts.values() if draft.action is Action.DELETE and draft.owned is not None]
    given_up = [claim for one in removed for claim in kinds[one.address.kind].claims(one.address, one.before)]
    problems = []
    for address, draft in drafts.items():
        if draft.action is not Action.CREATE or inputs.live.resources.get(address) is not None:
            continue
        kind = kinds[address.kind]
        try:
            if draft.after is not None and not making.is_handed_over(kind, address, draft.after, given_up):
                kind.check_creation(address, draft.after, inputs.live.host)
        except Unsuitable as error:
            problems.append(making.unsuitable(None, address, error, Severity.ERROR))
    return problems
