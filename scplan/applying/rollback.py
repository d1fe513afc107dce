"""Inverse operations, newest first: for a failed apply, and for an apply that a crash interrupted."""

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


def undo(
    made: Mapping[int, Operation],
    total: int,
    executor: Executor,
    journal: Journal,
    on_event: OnEvent,
    *,
    undone: Collection[int] = (),
) -> list[Diagnostic]:
    """Undo the operations that were made or begun, by number; returns a diagnostic per failure, after all were tried.

    Operations in a container that ended count as undone, because its resources went with it; a NIC of the host is
    returned. `undone` are the numbers that were undone before.
    """
    told = set(undone)
    left = set(made) - told
    failed: dict[int, ScplanError] = {}
    while left:
        waiting = sorted(to_take_back(made, made.keys() - left).items(), reverse=True)
        failed = _undo_once(waiting, total, executor, journal, on_event, told)
        # Try failed undos again: the undo of an older operation may restore a dependency (the address for a route).
        if len(failed) >= len(left):  # no progress
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
    """Operations to undo, by number: all that are not undone, and creations older than these that are undone already.

    Such a creation was undone out of order, and may have left a directory that a newer resource still occupied. It is
    undone again, but not if other operations had its address: that would remove a resource which the undo restored.
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
    """Try to undo each operation once; returns the errors of operations that could not be undone, by number.

    Numbers in `told` were reported as undone before, and are not reported again; numbers undone here are added.
    """
    failed: dict[int, ScplanError] = {}
    stuck: dict[Address, Resource] = {}
    for number, operation in waiting:
        inverse = operation.inverse()
        if in_the_way := _what_is_in_the_way(inverse, stuck, executor):
            # The resource would be restored on top of, or inside, a resource that should not be there.
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
    """Stuck address that blocks this undo: the same address, or a dependency of the restored resource; None if none."""
    if inverse.address in stuck:
        return inverse.address
    if inverse.after is None:
        return None
    others = {address: one for address, one in stuck.items() if address.container == inverse.address.container}
    return next(iter(executor.kinds[inverse.address.kind].requires(inverse.after, others, inverse.address)), None)


def _be_stuck(stuck: dict[Address, Resource], inverse: Operation) -> None:
    """Add the resource that the failed undo left to `stuck`."""
    there = inverse.before if inverse.before is not None else inverse.after
    if there is not None:
        stuck[inverse.address] = there


def _take_back(inverse: Operation, executor: Executor) -> None:
    """Make the inverse operation. Raises ScplanError or OSError.

    If the container ended meanwhile its resources are gone, and only things of the host are returned.
    """
    if inverse.action is Action.ADOPT:
        # An adoption changed the record alone, and the resource may be gone: nothing to do in the kernel.
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
        # The resource was gone before the apply, too, and can't be created (a dependency is gone, its place is taken):
        # restore the record alone.
        executor.note(inverse.address, inverse.owned_after)


def _has_ended(inverse: Operation, executor: Executor) -> bool:
    """True if the operation failed because the container's process ended meanwhile, which can cause any error."""
    if inverse.at_next_start:
        return False
    try:
        executor.containers[inverse.address.container].check_staying()
    except ContainerGone:
        return True
    return False


def _note_undone(journal: Journal, number: int) -> None:
    """Journal that the operation is undone. A full disk is ignored: a recovery may repeat the undo without harm."""
    try:
        journal.undone(number)
    except KernelError:
        return
