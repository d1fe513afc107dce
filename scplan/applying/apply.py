"""The only writer: journals, makes and reads back each operation of a plan; if one fails, undoes all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NoReturn

from scplan.applying.execute import Executor
from scplan.applying.rollback import undo
from scplan.errors import ApplyFailed, Diagnostic, KernelError, RollbackIncomplete, ScplanError
from scplan.linux.processes.signals import forget_stop_requests, stop_requests_raise, stop_requests_wait
from scplan.model.address import Address
from scplan.model.change import Operation
from scplan.model.report import Event, GoingBack, OnEvent, Step
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple
from scplan.store.confirmation import deadline_in
from scplan.store.journal import Journal
from scplan.store.state import Update

Prepare = Callable[[Mapping[Address, Resource]], Update]
"""Writes the new records beside the old ones."""


class Assurance(NamedTuple):
    """Conditions for keeping the changes.

    `check` is called after the last operation; if it raises ScplanError, the changes are undone. With
    `confirm_within_s` the journal stays open, and the apply must be confirmed within that many seconds.
    """

    check: Callable[[], None] = lambda: None
    confirm_within_s: float | None = None


class Begun(NamedTuple):
    """Progress of an apply that is being resumed: its journaled operations by number, and the numbers that are done."""

    started: Mapping[int, Operation] = MappingProxyType({})
    done: frozenset[int] = frozenset()


def apply(
    operations: Sequence[Operation],
    executor: Executor,
    journal: Journal,
    prepare: Prepare,
    on_event: OnEvent,
    assurance: Assurance = Assurance(),  # noqa: B008 - a value that never changes
    begun: Begun = Begun(),  # noqa: B008
) -> None:
    """Make all operations in order, except operations that are done in `begun`, and commit the records.

    Raises ApplyFailed if an operation failed and everything was undone: the journal is closed. Raises
    RollbackIncomplete if the undo failed, too: the journal is kept.
    """
    total = len(operations)
    made = dict(begun.started)
    # Signals that ask scplan to stop must not end it while the journal is open: they are blocked here, and raise
    # KeyboardInterrupt only while operations are made.
    with stop_requests_wait():
        try:
            with stop_requests_raise():
                for number, operation in enumerate(operations, 1):
                    if number not in begun.done:
                        _step(number, total, operation, executor, journal, on_event, made)
                assurance.check()
            _commit(prepare(executor.owned()), journal, assurance.confirm_within_s)
        except RollbackIncomplete:
            # From _commit: all operations are made, so nothing is rolled back here.
            raise
        except (ScplanError, OSError, KeyboardInterrupt) as error:
            _roll_back(error, made, total, executor, journal, on_event)
        else:
            if assurance.confirm_within_s is None:
                # An unconfirmed apply still needs the objects that kinds keep for its undo.
                executor.release()
        finally:
            # The apply has ended as pending signals asked: consume them. sigtimedwait(2).
            forget_stop_requests()


def _step(
    number: int,
    total: int,
    operation: Operation,
    executor: Executor,
    journal: Journal,
    on_event: OnEvent,
    made: dict[int, Operation],
) -> None:
    """Capture, journal and make one operation, and add it to `made`. Raises ScplanError or OSError."""
    on_event(Event(step=Step.STARTED, operation=operation, number=number, total=total))
    begun = time.monotonic()
    try:
        # A resumed operation keeps its first capture: live state may be half changed.
        captured = made.get(number) or executor.capture(operation)
        # On disk before the kernel changes, so that recovery knows every operation that may have been made.
        journal.intended(number, captured)
        made[number] = captured
        executor.perform(captured)
        journal.done(number, captured)
    except (ScplanError, OSError) as error:
        on_event(
            Event(
                step=Step.FAILED, operation=operation, number=number, total=total, error=_diagnostics(error)[0].summary
            )
        )
        raise
    seconds = time.monotonic() - begun
    on_event(Event(step=Step.DONE, operation=made[number], number=number, total=total, seconds=seconds))


def _commit(update: Update, journal: Journal, confirm_within_s: float | None) -> None:
    """Journal that all operations are made, rename the records into place, and end the journal or await confirmation.

    If a rename fails, live state is as desired, and the journal is kept to write the records from. Raises
    RollbackIncomplete then.
    """
    try:
        journal.applied()
    except BaseException:
        update.discard()
        raise
    try:
        update.commit()
        if confirm_within_s is None:
            journal.close("committed")
        else:
            journal.awaiting(deadline_in(confirm_within_s))
    except ScplanError as error:
        hint = f"the changes are made; `scplan recover` writes the records from {journal.path}"
        if confirm_within_s is not None:
            hint = "the changes are made, but can't be confirmed: they are undone now, or by `scplan recover`"
        raise RollbackIncomplete.of(
            [*error.diagnostics, Diagnostic(summary="the records could not be written", hint=hint)]
        ) from error
    finally:
        update.discard()


def _roll_back(
    error: BaseException,
    made: Mapping[int, Operation],
    total: int,
    executor: Executor,
    journal: Journal,
    on_event: OnEvent,
) -> NoReturn:
    """Undo the operations in `made`; raises ApplyFailed, or RollbackIncomplete if some could not be undone."""
    cause = _diagnostics(error)
    # A full disk may refuse the line. Without it recovery still undoes by default, but the user may have it finish.
    with suppress(KernelError):
        journal.giving_up(cause[0].summary)
    if made and isinstance(error, KeyboardInterrupt):
        # Report at once that ^C was received: the first undo may take a while.
        on_event(GoingBack(cause[0].summary, len(made)))
    failures = undo(made, total, executor, journal, on_event)
    if failures:
        hint = f"the journal is kept: {journal.path}; mend the cause, then `scplan recover` tries again"
        kept = Diagnostic(summary="not everything could be undone", hint=hint)
        raise RollbackIncomplete.of([*cause, *failures, kept]) from error
    journal.close("rolled_back")
    executor.release()
    count = f"{len(made)} operation{'s' if len(made) != 1 else ''} undone" if made else "nothing had been changed"
    raise ApplyFailed.of([*cause, Diagnostic(summary=f"apply failed: {count}, everything is as before")]) from error


def _diagnostics(error: BaseException) -> list[Diagnostic]:
    if isinstance(error, ScplanError):
        return list(error.diagnostics)
    return [Diagnostic(summary="interrupted" if isinstance(error, KeyboardInterrupt) else str(error))]
