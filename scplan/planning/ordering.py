"""Drafts of changes → operations in the order in which they can be made, and the changes numbered by it."""

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
    """Changes that wait for one another."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        super().__init__()
        self.addresses = tuple(dict.fromkeys(addresses))


class Act(NamedTuple):
    """One half of a change: taking away, or making (creating, updating, adopting)."""

    address: Address
    takes_away: bool


_TAKES_AWAY = (Action.DELETE, Action.REPLACE)


def put_in_order(
    drafts: list[Draft], world: World, containers: list[str], kinds: Kinds
) -> tuple[tuple[Change, ...], tuple[Operation, ...]]:
    """Changes in the order of execution with the operations that they are made of.

    Without a reason to do otherwise: containers as in the files, kinds as registered, deletions after the rest.
    Raises Circle when changes wait for one another.
    """
    by_address = {draft.address: draft for draft in drafts}
    acts = list(_sorted_acts(by_address, world, _priority(drafts, containers, list(kinds))))
    last = {act.address: position for position, act in enumerate(acts)}
    numbers = {address: number for number, address in enumerate(sorted(last, key=last.__getitem__), 1)}
    changes = [_change(by_address[address], number, numbers, world) for address, number in numbers.items()]
    operations = [_operation(act, by_address[act.address], numbers[act.address]) for act in acts]
    return tuple(changes), tuple(operations)


def _acts(draft: Draft) -> list[Act]:
    acts = []
    if draft.action in _TAKES_AWAY:
        acts.append(Act(draft.address, True))
    if draft.action is not Action.DELETE:
        acts.append(Act(draft.address, False))
    return acts


def _priority(drafts: list[Draft], containers: list[str], kinds: list[str]) -> Callable[[Act], tuple[int, ...]]:
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
        raise Circle(act.address for act in error.args[1]) from None
    ready: list[tuple[tuple[int, ...], Act]] = []
    while graph.is_active():
        for act in graph.get_ready():
            heapq.heappush(ready, (priority(act), act))
        act = heapq.heappop(ready)[1]
        yield act
        graph.done(act)


def _dependents(drafts: dict[Address, Draft], world: World) -> dict[Address, list[Act]]:
    """For each address, the acts that take away what stands on it: these come before it goes."""
    dependents: dict[Address, list[Act]] = {}
    for address, draft in drafts.items():
        if draft.action in _TAKES_AWAY:
            for needed in world.required_before(address):
                dependents.setdefault(needed, []).append(Act(address, True))
    return dependents


def _predecessors(
    act: Act, draft: Draft, drafts: dict[Address, Draft], dependents: dict[Address, list[Act]], world: World
) -> Iterator[Act]:
    if act.takes_away:
        yield from dependents.get(draft.address, ())
        return
    if draft.action is Action.REPLACE:
        yield Act(draft.address, True)
    if draft.action is Action.UPDATE:
        yield from dependents.get(draft.address, ())
    for needed in world.required_after(draft.address):
        if needed in drafts and drafts[needed].action is not Action.DELETE:
            yield Act(needed, False)
    for going in world.would_stand_on(draft):
        if going in drafts and drafts[going].action is Action.DELETE:
            yield Act(going, True)
    for hidden in world.hidden_by(draft):
        if hidden in drafts and drafts[hidden].action in _TAKES_AWAY:
            yield Act(hidden, True)
    cause = drafts.get(draft.cause) if draft.cause else None
    if cause is not None:
        yield _acts(cause)[-1]


def _handovers(drafts: dict[Address, Draft], world: World) -> Iterator[tuple[Act, Act]]:
    """(the act that gives a thing up, the act that takes it) for things of the host that change hands."""
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
                if giver.address != address and claim.collides(other):
                    yield _acts(giver)[0], _acts(draft)[-1]


def _change(draft: Draft, number: int, numbers: dict[Address, int], world: World) -> Change:
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
    """The half of a change that an act is. What a creation takes over is remembered by its kind, not taken away."""
    replaced = draft.action is Action.REPLACE
    if act.takes_away:
        action, before, after = Action.DELETE, draft.before, None
    elif replaced or draft.action is Action.CREATE:
        action, before, after = Action.CREATE, None, draft.after
    else:
        # A release is an adoption the other way round: an act on the record alone.
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
