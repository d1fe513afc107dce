"""Drafts sorted by their dependencies: the operations in order, and the changes numbered by that order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from scplan.kinds.kind import Claim, Kinds
from scplan.model.address import Address
from scplan.model.change import Action, Change, Operation
from scplan.planning.draft import Dependencies, Draft
from scplan.startup.named_tuple import NamedTuple


class Circle(Exception):
    """Changes that wait for one another, so that none can come first."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        super().__init__()
        self.addresses = tuple(dict.fromkeys(addresses))


class HalfChange(NamedTuple):
    """One half of a change: removing the old resource, or making the new one (create, update, adopt, release).

    A replacement has both halves; all other changes have one.
    """

    address: Address
    takes_away: bool


_TAKES_AWAY = (Action.DELETE, Action.REPLACE)


def put_in_order(
    drafts: list[Draft], dependencies: Dependencies, containers: list[str], kinds: Kinds
) -> tuple[tuple[Change, ...], tuple[Operation, ...]]:
    """Changes in the order of execution, and their operations.

    Where dependencies leave a choice: containers as in the files, kinds as registered, deletions last. Raises Circle
    when changes wait for one another.
    """
    by_address = {draft.address: draft for draft in drafts}
    halves = list(_sorted_halves(by_address, dependencies, _priority(drafts, containers, list(kinds))))
    # A change has the number of its last half.
    last = {half.address: position for position, half in enumerate(halves)}
    numbers = {address: number for number, address in enumerate(sorted(last, key=last.__getitem__), 1)}
    changes = [_change(by_address[address], number, numbers, dependencies) for address, number in numbers.items()]
    operations = [_operation(half, by_address[half.address], numbers[half.address]) for half in halves]
    return tuple(changes), tuple(operations)


def _halves(draft: Draft) -> list[HalfChange]:
    """The halves of a change, in order."""
    halves = []
    if draft.action in _TAKES_AWAY:
        halves.append(HalfChange(draft.address, True))
    if draft.action is not Action.DELETE:
        halves.append(HalfChange(draft.address, False))
    return halves


def _priority(drafts: list[Draft], containers: list[str], kinds: list[str]) -> Callable[[HalfChange], tuple[int, ...]]:
    """Sort key of halves that do not depend on each other; deletions in reverse order of kinds and drafts."""
    container_rank = {name: rank for rank, name in enumerate(containers)}
    kind_rank = {name: rank for rank, name in enumerate(kinds)}
    position = {draft.address: (rank, draft.action is Action.DELETE) for rank, draft in enumerate(drafts)}

    def key(half: HalfChange) -> tuple[int, ...]:
        rank, is_deletion = position[half.address]
        kind = kind_rank[half.address.kind]
        return (
            container_rank[half.address.container],
            is_deletion,
            -kind if is_deletion else kind,
            -rank if is_deletion else rank,
            not half.takes_away,
        )

    return key


def _sorted_halves(
    drafts: dict[Address, Draft], dependencies: Dependencies, priority: Callable[[HalfChange], tuple[int, ...]]
) -> Iterator[HalfChange]:
    """All halves of the drafts in the order of execution. Raises Circle."""
    # graphlib leaves the order of ready halves open; the heap picks by priority, so that equal inputs give equal plans.
    graph: TopologicalSorter[HalfChange] = TopologicalSorter()
    dependents = _dependents(drafts, dependencies)
    for draft in drafts.values():
        for half in _halves(draft):
            graph.add(half, *_predecessors(half, draft, drafts, dependents, dependencies))
    for first, then in _handovers(drafts, dependencies):
        graph.add(then, first)
    try:
        graph.prepare()
    except CycleError as error:
        # args[1] lists the nodes of one cycle, first and last the same.
        raise Circle(half.address for half in error.args[1]) from None
    ready: list[tuple[tuple[int, ...], HalfChange]] = []
    while graph.is_active():
        for half in graph.get_ready():
            heapq.heappush(ready, (priority(half), half))
        half = heapq.heappop(ready)[1]
        yield half
        graph.done(half)


def _dependents(drafts: dict[Address, Draft], dependencies: Dependencies) -> dict[Address, list[HalfChange]]:
    """By address, the halves that remove resources which depend on it: they come before the resource is removed."""
    dependents: dict[Address, list[HalfChange]] = {}
    for address, draft in drafts.items():
        if draft.action in _TAKES_AWAY:
            for needed in dependencies.required_before(address):
                dependents.setdefault(needed, []).append(HalfChange(address, True))
    return dependents


def _predecessors(
    half: HalfChange,
    draft: Draft,
    drafts: dict[Address, Draft],
    dependents: dict[Address, list[HalfChange]],
    dependencies: Dependencies,
) -> Iterator[HalfChange]:
    """The halves that must come before `half`."""
    if half.takes_away:
        yield from dependents.get(draft.address, ())
        return
    if draft.action is Action.REPLACE:
        yield HalfChange(draft.address, True)
    if draft.action is Action.UPDATE:
        # Dependents that the update interrupts are replaced: remove them before, create them after.
        yield from dependents.get(draft.address, ())
    # Dependencies first, as far as they stay.
    for needed in dependencies.required_after(draft.address):
        if needed in drafts and drafts[needed].action is not Action.DELETE:
            yield HalfChange(needed, False)
    # Created before the deletion, the resource would depend on one that goes: a mount inside a deleted mount.
    for going in dependencies.would_stand_on(draft):
        if going in drafts and drafts[going].action is Action.DELETE:
            yield HalfChange(going, True)
    # Mounts below the target are removed first, and created again on top.
    for hidden in dependencies.hidden_by(draft):
        if hidden in drafts and drafts[hidden].action in _TAKES_AWAY:
            yield HalfChange(hidden, True)
    cause = drafts.get(draft.cause) if draft.cause else None
    if cause is not None:
        yield _halves(cause)[-1]


def _handovers(drafts: dict[Address, Draft], dependencies: Dependencies) -> Iterator[tuple[HalfChange, HalfChange]]:
    """(half that releases a thing of the host, half that claims it) for each thing that moves between resources."""
    given: dict[str, list[tuple[Claim, Draft]]] = {}
    claims = {
        address: (
            dependencies.claims(address, draft.before if draft.owned else None),
            dependencies.claims(address, draft.after),
        )
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
                # A thing is released by the first half of its holder, and claimed by the last half of the taker.
                if giver.address != address and claim.collides(other):
                    yield _halves(giver)[0], _halves(draft)[-1]


def _change(draft: Draft, number: int, numbers: dict[Address, int], dependencies: Dependencies) -> Change:
    """The numbered change; a draft with a `cause` gets its reason and effect from the number of that change."""
    reason, effect = draft.reason, draft.effect
    if draft.cause is not None:
        reason = (
            f"goes down with {draft.cause.kind} {draft.cause.identity} in {numbers[draft.cause]}, and is made again"
        )
        effect = f"its {draft.cause.kind} changes in {numbers[draft.cause]}"
    required = (
        dependencies.required_before(draft.address)
        if draft.after is None
        else dependencies.required_after(draft.address)
    )
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


def _operation(half: HalfChange, draft: Draft, number: int) -> Operation:
    """The operation of one half.

    A creation has no `before`, even if it takes over a live resource: its kind captures and remembers the live one.
    """
    replaced = draft.action is Action.REPLACE
    if half.takes_away:
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
        owned_before=None if replaced and not half.takes_away else draft.owned,
        owned_after=None if half.takes_away else draft.managed,
        at_next_start=draft.at_next_start,
        at_once=draft.at_once,
    )
