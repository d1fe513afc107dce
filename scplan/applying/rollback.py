"""Inverse operations, newest first: for an apply that failed, and for what a crash left behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from scplan.applying.execute import Executor
from scplan.errors import ContainerGone, Diagnostic, KernelError, ScplanError
from scplan.model.address import Address
from scplan.model.change import Action, Operation
from scplan.model.report import Event, OnEvent, Step
from scplan.model.resource import Resource
from scplan.store.journal import Journal

_ENDING_S = 0.05


def undo(
    made: Mapping[int, Operation],
    total: int,
    executor: Executor,
    journal: Journal,
    on_event: OnEvent,
    *,
    undone: Collection[int] = (),
) -> list[Diagnostic]:
    """Takes back what was made, or was begun, by number; goes on after a failure and returns all failures.

    What was plugged into a container that is gone went with it, and counts as undone; a NIC of the host is given back.
    `undone` are those of them that were taken back before.
    """
    told = set(undone)
    left = set(made) - told
    failed: dict[int, ScplanError] = {}
    while left:
        waiting = sorted(to_take_back(made, made.keys() - left).items(), reverse=True)
        failed = _undo_once(waiting, total, executor, journal, on_event, told)
        # What stood in the way of one may have been put back by the undo of an older one: an address, for its route.
        if len(failed) >= len(left):
            break
        left = set(failed)
    for number in sorted(failed, reverse=True):
        inverse, why = made[number].inverse(), failed[number].diagnostics[0].summary
        on_event(Event(step=Step.UNDO_FAILED, operation=inverse, number=number, total=total, error=why))
    return [
        Diagnostic(summary=f"{made[number].address} could not be undone", detail=str(error))
        for number, error in failed.items()
    ]


def to_take_back(made: Mapping[int, Operation], undone: Collection[int]) -> dict[int, Operation]:
    """Of what was made, what was not taken back yet, and what must be once more: what was added before any of that.

    It was taken back in the wrong order then, and may have left a directory in which the newer thing still was. What
    was replaced is not: that would take away what has been put back.
    """
    left = made.keys() - set(undone)
    newest = max(left, default=-1)
    times = Counter(operation.address for operation in made.values())

    def is_repeated(number: int, operation: Operation) -> bool:
        is_added = operation.inverse().after is None and times[operation.address] == 1
        return is_added and number < newest

    return {number: one for number, one in made.items() if number in left or is_repeated(number, one)}


def _undo_once(
    waiting: Sequence[tuple[int, Operation]],
    total: int,
    executor: Executor,
    journal: Journal,
    on_event: OnEvent,
    told: set[int],
) -> dict[int, ScplanError]:
    """Tries to take back each operation; returns why those that are still to be undone are, by number.

    Those that are `told` were taken back before: nothing is said of them again, and the others join them.
    """
    failed: dict[int, ScplanError] = {}
    stuck: dict[Address, Resource] = {}
    for number, operation in waiting:
        inverse = operation.inverse()
        if in_the_way := _what_is_in_the_way(inverse, stuck, executor):
            # It would be put back on top of, or into, what should not be there.
            failed[number] = ScplanError(f"{in_the_way}: what is in its place could not be taken away")
            _be_stuck(stuck, inverse)
            continue
        if number not in told:
            on_event(Event(step=Step.UNDOING, operation=inverse, number=number, total=total))
        begun = time.monotonic()
        try:
            _take_back(inverse, executor)
            if number not in told:
                _note_undone(journal, number)
        except (ScplanError, OSError) as error:
            failed[number] = error if isinstance(error, ScplanError) else ScplanError(str(error))
            _be_stuck(stuck, inverse)
            continue
        if number not in told:
            told.add(number)
            seconds = time.monotonic() - begun
            on_event(Event(step=Step.UNDONE, operation=inverse, number=number, total=total, seconds=seconds))
    return failed


def _what_is_in_the_way(inverse: Operation, stuck: Mapping[Address, Resource], executor: Executor) -> Address | None:
    """The address of which something newer could not be taken back, where that is this one's, or one that it is in."""
    if inverse.address in stuck:
        return inverse.address
    if inverse.after is None:
        return None
    others = {address: one for address, one in stuck.items() if address.container == inverse.address.container}
    return next(iter(executor.kinds[inverse.address.kind].requires(inverse.after, others, inverse.address)), None)


def _be_stuck(stuck: dict[Address, Resource], inverse: Operation) -> None:
    there = inverse.before if inverse.before is not None else inverse.after
    if there is not None:
        stuck[inverse.address] = there


def _take_back(inverse: Operation, executor: Executor) -> None:
    if inverse.action is Action.ADOPT:
        # Nothing was made: what was adopted, or was to be, may be gone by now.
        executor.note(inverse.address, inverse.owned_after)
        return
    try:
        executor.perform(inverse)
    except (ScplanError, OSError) as error:
        if isinstance(error, ContainerGone) or _has_ended(inverse, executor):
            executor.note(inverse.address, None)
            if inverse.before is not None and inverse.after is None:
                executor.kinds[inverse.address.kind].reclaim(executor.host, inverse.before)
            return
        if not inverse.was_gone:
            raise
        # It was not there before the apply either, and can't be made: what it needs is gone, or its place is taken.
        executor.note(inverse.address, inverse.owned_after)


def _has_ended(inverse: Operation, executor: Executor) -> bool:
    """True if the operation failed because its container's process ended meanwhile: that fails in many ways."""
    if inverse.at_next_start:
        return False
    try:
        container = executor.containers[inverse.address.container]
        container.check_alive()
        # It gives up its namespaces a moment before it is seen to have ended.
        time.sleep(_ENDING_S)
        container.check_alive()
    except ContainerGone:
        return True
    return False


def _note_undone(journal: Journal, number: int) -> None:
    """The line spares a recovery some work. On a full disk the undo goes on without: to undo twice is harmless."""
    try:
        journal.undone(number)
    except KernelError:
        return
