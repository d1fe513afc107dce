"""Inverse operations, newest first: for an apply that failed, and for what a crash left behind."""

from __future__ import annotations

import time
from collections.abc import Mapping

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
    failures: list[Diagnostic] = []
    for number, operation in sorted(made.items(), reverse=True):
        inverse = operation.inverse()
        on_event(Event(step=Step.UNDOING, operation=inverse, number=number, total=total))
        begun = time.monotonic()
        try:
            _take_back(inverse, executor)
            _note_undone(journal, number)
        except (ScplanError, OSError) as error:
            failures.append(Diagnostic(summary=f"{operation.address} could not be undone", detail=str(error)))
            why = error.diagnostics[0].summary if isinstance(error, ScplanError) else str(error)
            on_event(Event(step=Step.UNDO_FAILED, operation=inverse, number=number, total=total, error=why))
            continue
        seconds = time.monotonic() - begun
        on_event(Event(step=Step.UNDONE, operation=inverse, number=number, total=total, seconds=seconds))
    return failures


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
