"""Inverse operations, newest first: for an apply that failed, and for what a crash left behind."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from scplan.errors import ContainerGone, Diagnostic, KernelError, ScplanError
from scplan.execute import Executor
from scplan.journal import Journal
from scplan.model.change import Action, Operation
from scplan.model.report import Event, OnEvent, Step


def undo(
    made: Mapping[int, Operation], total: int, executor: Executor, journal: Journal, on_event: OnEvent
) -> list[Diagnostic]:
    """Takes back what was made, or was begun, by number; goes on after a failure and returns all failures.

    What was plugged into a container that is gone went with it, and counts as undone; a NIC of the host is given back.
    """
    waiting = sorted(made.items(), reverse=True)
    while True:
        failed = _undo_once(waiting, total, executor, journal, on_event)
        if len(failed) in (0, len(waiting)):
            break
        # What stood in the way of one may have been put back by the undo of an older one: an address, for its route.
        waiting = [(number, operation) for number, operation in waiting if number in failed]
    for number, operation in waiting if failed else ():
        inverse, why = operation.inverse(), failed[number].diagnostics[0].summary
        on_event(Event(step=Step.UNDO_FAILED, operation=inverse, number=number, total=total, error=why))
    return [
        Diagnostic(summary=f"{made[number].address} could not be undone", detail=str(error))
        for number, error in failed.items()
    ]


def _undo_once(
    waiting: Sequence[tuple[int, Operation]], total: int, executor: Executor, journal: Journal, on_event: OnEvent
) -> dict[int, ScplanError]:
    """Tries to take back each operation; returns why those that are still to be undone are, by number."""
    failed: dict[int, ScplanError] = {}
    stuck = set()
    for number, operation in waiting:
        inverse = operation.inverse()
        if operation.address in stuck:
            # What was replaced would be put back on top of what is in its place.
            failed[number] = ScplanError(f"{operation.address}: what is in its place could not be taken away")
            continue
        on_event(Event(step=Step.UNDOING, operation=inverse, number=number, total=total))
        begun = time.monotonic()
        try:
            _take_back(inverse, executor)
            _note_undone(journal, number)
        except (ScplanError, OSError) as error:
            failed[number] = error if isinstance(error, ScplanError) else ScplanError(str(error))
            stuck.add(operation.address)
            continue
        seconds = time.monotonic() - begun
        on_event(Event(step=Step.UNDONE, operation=inverse, number=number, total=total, seconds=seconds))
    return failed


def _take_back(inverse: Operation, executor: Executor) -> None:
    if inverse.action is Action.ADOPT:
        # Nothing was made: what was adopted, or was to be, may be gone by now.
        executor.note(inverse.address, inverse.owned_after)
        return
    try:
        executor.perform(inverse)
    except ContainerGone:
        executor.note(inverse.address, None)
        if inverse.before is not None and inverse.after is None:
            executor.kinds[inverse.address.kind].reclaim(executor.host, inverse.before)


def _note_undone(journal: Journal, number: int) -> None:
    """The line spares a recovery some work. On a full disk the undo goes on without: to undo twice is harmless."""
    try:
        journal.undone(number)
    except KernelError:
        return
