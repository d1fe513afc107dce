"""The only writer: each operation of a plan is journaled, made and read back; when one fails, all are taken back."""

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
    """What has to say yes before the changes are for good.

    `check` is called when all are made, and raises ScplanError to have them undone. With `confirm_within_s` the
    journal stays open, for a confirmation in so many seconds.
    """

    check: Callable[[], None] = lambda: None
    confirm_within_s: float | None = None


class Begun(NamedTuple):
    """How far an apply had come that is gone on with: what was journaled, by number, and what of it is done."""

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
    """Makes all operations in order, those that are done already left out, and puts the records in place.

    Raises ApplyFailed when one failed and everything was undone, RollbackIncomplete when that failed too: the journal
    is closed in the first case and kept in the second.
    """
    total = len(operations)
    made = dict(begun.started)
    # At no moment may a request to stop end scplan with a journal that is open.
    with stop_requests_wait():
        try:
            with stop_requests_raise():
                for number, operation in enumerate(operations, 1):
                    if number not in begun.done:
                        _step(number, total, operation, executor, journal, on_event, made)
                assurance.check()
            _commit(prepare(executor.owned()), journal, assurance.confirm_within_s)
        except RollbackIncomplete:
            raise
        except (ScplanError, OSError, KeyboardInterrupt) as error:
            _roll_back(error, made, total, executor, journal, on_event)
        else:
            if assurance.confirm_within_s is None:
                executor.release()
        finally:
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
    on_event(Event(step=Step.STARTED, operation=operation, number=number, total=total))
    begun = time.monotonic()
    try:
        # What was there before is what was captured the first time: an operation may be half made by now.
        captured = made.get(number) or executor.capture(operation)
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
    """Says that all is made; from there on only renames are left to do, and the journal ends or awaits confirmation.

    One that fails leaves live state as wanted, and the journal to write the records from.
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
    cause = _diagnostics(error)
    # On a full disk without: whether it goes back is the user's choice then, and back is the default.
    with suppress(KernelError):
        journal.giving_up(cause[0].summary)
    if made and isinstance(error, KeyboardInterrupt):
        # At once: the first step back may take its time, and who pressed ^C should know that it was heard.
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
