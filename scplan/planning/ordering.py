"""Drafts sorted by their dependencies: the operations in order, and the changes numbered by that order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from scplan.kinds.kind import Claim, Kinds
from scplan.model.address import Address
from scplan.model.change import Action, Change, Operation
from scplan.planning.draft import Draft, World
from scplan.startup.named_tuple import NamedTuple


class Circle(Exception):
    """Changes that wait for one another, so that none can come first."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        super().__init__()
        self.addresses = tuple(dict.fromkeys(addresses))


class Act(NamedTuple):
    """One half of a change: removing the old resource, or making the new one (create, update, adopt, release).

    A replacement has both halves; all other changes have one.
    """

    address: Address
    takes_away: bool


_TAKES_AWAY = (Action.DELETE, Action.REPLACE)


def put_in_order(
    drafts: list[Draft], world: World, containers: list[str], kinds: Kinds
) -> tuple[tuple[Change, ...], tuple[Operation, ...]]:
    """Changes in the order of execution, and their operations.

    Where dependencies leave a choice: containers as in the files, kinds as registered, deletions last. Raises Circle
    when changes wait for one another.
    """
    by_address = {draft.address: draft for draft in drafts}
    acts = list(_sorted_acts(by_address, world, _priority(drafts, containers, list(kinds))))
    # A change has the number of its last act.
    last = {act.address: position for position, act in enumerate(acts)}
    numbers = {address: number for number, address in enumerate(sorted(last, key=last.__getitem__), 1)}
    changes = [_change(by_address[address], number, numbers, world) for address, number in numbers.items()]
    operations = [_operation(act, by_address[act.address], numbers[act.address]) for act in acts]
    return tuple(changes), tuple(operations)


def _acts(draft: Draft) -> list[Act]:
    """The halves of a change, in order."""
    acts = []
    if draft.action in _TAKES_AWAY:
        acts.append(Act(draft.address, True))
    if draft.action is not Action.DELETE:
        acts.append(Act(draft.address, False))
    return acts


def _priority(drafts: list[Draft], containers: list[str], kinds: list[str]) -> Callable[[Act], tuple[int, ...]]:
    """Sort key of acts that do not depend on each other; deletions in reverse order of kinds and drafts."""
    container_rank = {name: rank for rank, name in enumerate(containers)}
    kind_rank = {name: rank for rank, name in enumerate(kinds)}
    position = {draft.address: (rank, draft.action is Action.DELETE) for rank, draft in enumerate(drafts)}

    def key(act: Act) -> tuple[int, ...]:
        rank, is_deletion = position[act.address]
        kind = kind_rank[act.address.kind]
        return (
            container_rank[act.address.container],
            is_deletion,
            -kind if is_deletion else kind,
            -rank if is_deletion else rank,
            not act.takes_away,
        )

    return key


def _sorted_acts(
    drafts: dict[Address, Draft], world: World, priority: Callable[[Act], tuple[int, ...]]
) -> Iterator[Act]:
    """All acts of the drafts in the order of execution. Raises Circle."""
    # graphlib leaves the order of ready acts open; the heap picks by priority, so that equal inputs give equal plans.
    graph: TopologicalSorter[Act] = TopologicalSorter()
    dependents = _dependents(drafts, world)
    for draft in drafts.values():
        for act in _acts(draft):
            graph.add(act, *_predecessors(act, draft, drafts, dependents, world))
    for first, then in _handovers(drafts, world):
        graph.add(then, first)
    try:
        graph.prepare()
    except CycleError as error:
        # args[1] lists the nodes of one cycle, first and last the same.
        raise Circle(act.address for act in error.args[1]) from None
    ready: list[tuple[tuple[int, ...], Act]] = []
    while graph.is_active():
        for act in graph.get_ready():
            heapq.heappush(ready, (priority(act), act))
        act = heapq.heappop(ready)[1]
        yield act
        graph.done(act)


def _dependents(drafts: dict[Address, Draft], world: World) -> dict[Address, list[Act]]:
    """By address, the acts that remove resources which depend on it: they come before the resource is removed."""
    dependents: dict[Address, list[Act]] = {}
    for address, draft in drafts.items():
        if draft.action in _TAKES_AWAY:
            for needed in world.required_before(address):
                dependents.setdefault(needed, []).append(Act(address, True))
    return dependents


def _predecessors(
    act: Act, draft: Draft, drafts: dict[Address, Draft], dependents: dict[Address, list[Act]], world: World
) -> Iterator[Act]:
    """The acts that must come before `act`."""
    if act.takes_away:
        yield from dependents.get(draft.address, ())
        return
    if draft.action is Action.REPLACE:
        yield Act(draft.address, True)
    if draft.action is Action.UPDATE:
        # Dependents that the update interrupts are replaced: remove them before, create them after.
        yield from dependents.get(draft.address, ())
    # Dependencies first, as far as they stay.
    for needed in world.required_after(draft.address):
        if needed in drafts and drafts[needed].action is not Action.DELETE:
            yield Act(needed, False)
    # Created before the deletion, the resource would depend on one that goes: a mount inside a deleted mount.
    for going in world.would_stand_on(draft):
        if going in drafts and drafts[going].action is Action.DELETE:
            yield Act(going, True)
    # Mounts below the target are removed first, and created again on top.
    for hidden in world.hidden_by(draft):
        if hidden in drafts and drafts[hidden].action in _TAKES_AWAY:
            yield Act(hidden, True)
    cause = drafts.get(draft.cause) if draft.cause else None
    if cause is not None:
        yield _acts(cause)[-1]


def _handovers(drafts: dict[Address, Draft], world: World) -> Iterator[tuple[Act, Act]]:
    """(act that releases a thing of the host, act that claims it) for each thing that moves between resources."""
    given: dict[str, list[tuple[Claim, Draft]]] = {}
    claims = {
        address: (world.claims(address, draft.before if draft.owned else None), world.claims(address, draft.after))
        for address, draft in drafts.items()
    }
    for address, draft in drafts.items():
        before, after = claims[address]
        for claim in before:
            if claim not in after:
                given.setdefault(claim.thing, []).append((claim, draft))
    if not given:
        return
    for address, draft in drafts.items():
        for claim in claims[address][1]:
            for other, giver in given.get(claim.thing, ()):
                # A thing is released by the first act of its holder, and claimed by the last act of the taker.
                if giver.address != address and claim.collides(other):
                    yield _acts(giver)[0], _acts(draft)[-1]


def _change(draft: Draft, number: int, numbers: dict[Address, int], world: World) -> Change:
    """The numbered change; a draft with a `cause` gets its reason and effect from the number of that change."""
    reason, effect = draft.reason, draft.effect
    if draft.cause is not None:
        reason = (
            f"goes down with {draft.cause.kind} {draft.cause.identity} in {numbers[draft.cause]}, and is made again"
        )
        effect = f"its {draft.cause.kind} changes in {numbers[draft.cause]}"
    required = world.required_before(draft.address) if draft.after is None else world.required_after(draft.address)
    return Change(
        order=number,
        address=draft.address,
        action=draft.action,
        reason=reason,
        before=draft.before,
        after=draft.after,
        managed=draft.managed,
        owned=draft.owned,
        changed=draft.changed,
        disruption=draft.disruption,
        effect=effect,
        requires=tuple(required),
        at_next_start=draft.at_next_start,
        at_once=draft.at_once,
    )


def _operation(act: Act, draft: Draft, number: int) -> Operation:
    """The operation of one act.

    A creation has no `before`, even if it takes over a live resource: its kind captures and remembers the live one.
    """
    replaced = draft.action is Action.REPLACE
    if act.takes_away:
        action, before, after = Action.DELETE, draft.before, None
    elif replaced or draft.action is Action.CREATE:
        action, before, after = Action.CREATE, None, draft.after
    else:
        # A release is the inverse of an adoption: both change the record alone.
        action = Action.ADOPT if draft.action is Action.RELEASE else draft.action
        before, after = draft.before, draft.after
    return Operation(
        order=number,
        address=draft.address,
        action=action,
        before=before,
        after=after,
        owned_before=None if replaced and not act.takes_away else draft.owned,
        owned_after=None if act.takes_away else draft.managed,
        at_next_start=draft.at_next_start,
        at_once=draft.at_once,
    )
