"""`scplan apply` and `scplan destroy`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

from scplan.cli.given_files import saved_plan
from scplan.cli.options import (
    AutoApprove,
    ConfirmWithin,
    Excludes,
    Files,
    LockTimeout,
    MaxDisruption,
    Probes,
    Targets,
    request,
)
from scplan.cli.output import approve, code_of, complain, message, messages, raw, results, unfailing
from scplan.cli.parameters import Argument, Option, Settings
from scplan.cli.plan import print_plan
from scplan.errors import (
    ApplyOvertaken,
    ContainerGone,
    ContainerNotFound,
    Declined,
    ExitCode,
    PlanError,
    RecoveryNeeded,
    ScplanError,
    UsageError,
)

if TYPE_CHECKING:
    from scplan.model.change import Disruption
    from scplan.model.report import OnEvent, Outcome
    from scplan.workflow.applying import Run

_ATTEMPTS = 10
"""Each takes a container that ends in the middle of it."""
JsonLines = Annotated[bool, Option(("--json",), help="A JSON object a line for each event; needs --auto-approve.")]


def apply(
    settings: Settings,
    paths: Annotated[
        list[str] | None,
        Argument(
            metavar="[PLAN | FILE...]",
            help="A plan saved by 'scplan plan --out', which is not asked about; or configurations, as after -f.",
        ),
    ] = None,
    files: Files = None,
    targets: Targets = None,
    excludes: Excludes = None,
    auto_approve: AutoApprove = False,
    as_json: JsonLines = False,
    confirm_within: ConfirmWithin = None,
    probes: Probes = None,
    max_disruption: MaxDisruption = None,
    lock_timeout: LockTimeout = 30.0,
) -> ExitCode:
    """Plan, ask, and make the changes.

    Each change is read back. When one fails, all are undone. A saved plan
    is applied as it is, or refused with exit code 5 when live state has moved on since.

    With --confirm-within everything is undone again when 'scplan confirm' does not come in time, even if the
    terminal or the connection is lost meanwhile.

    Examples:
      scplan apply web.yaml
      scplan apply --auto-approve --target web
      scplan apply web.plan
      scplan apply --confirm-within 60s
      scplan apply --probe ./check-web
    """
    from scplan.workflow import applying

    plan_file = saved_plan(paths or ())
    asked = request(
        settings,
        files=[*(files or ()), *(paths or ())] if plan_file is None else files,
        targets=targets,
        excludes=excludes,
        lock_timeout_s=lock_timeout,
        probes=probes,
        confirm_within_s=confirm_within,
    )
    if plan_file is None:
        return carry_out(
            lambda: applying.open_apply(asked), approved=auto_approve, as_json=as_json, most=max_disruption
        )
    if files or targets or excludes:
        raise UsageError("a saved plan takes no -f, --target or --exclude", hint="they belong to 'scplan plan --out'")
    return carry_out(
        lambda: applying.open_saved(plan_file, asked),
        approved=True,
        as_json=as_json,
        most=max_disruption,
        is_saved=True,
    )


def destroy(
    settings: Settings,
    containers: Annotated[
        list[str] | None,
        Argument(metavar="[CONTAINER]...", help="As in the records. Default: the containers of the files."),
    ] = None,
    files: Files = None,
    auto_approve: AutoApprove = False,
    as_json: JsonLines = False,
    lock_timeout: LockTimeout = 30.0,
) -> ExitCode:
    """Remove all that scplan owns in these containers.

    What was there before is given back. What scplan does not own stays.

    Examples:
      scplan destroy web
      scplan destroy web db --auto-approve
      scplan destroy -f web.yaml
    """
    from scplan.workflow import applying

    if containers and files:
        raise UsageError("destroy takes containers or -f, not both", hint="the files say which containers are meant")
    asked = request(settings, files=files, destroy=True, containers=containers or (), lock_timeout_s=lock_timeout)
    return carry_out(lambda: applying.open_apply(asked), approved=auto_approve, as_json=as_json)


def carry_out(
    open_run: Callable[[], AbstractContextManager[Run]],
    *,
    approved: bool,
    as_json: bool,
    most: Disruption | None = None,
    is_saved: bool = False,
) -> ExitCode:
    """Print the plan, ask for approval unless it is given, execute the plan, and report the outcome.

    `most` is the strongest interruption that the plan may cause; raises Refused if it causes a stronger one. If a
    container ends during the apply, a plan that was approved beforehand is made and executed again. A saved plan is
    not: a new plan would not be the approved one.
    """
    again = approved and not is_saved
    if as_json:
        return _carry_out_for_machines(open_run, approved=approved, most=most, again=again)
    return _until_not_overtaken(lambda: _carry_out_once(open_run(), approved=approved, most=most), again=again)


def _until_not_overtaken(once: Callable[[], ExitCode], *, again: bool) -> ExitCode:
    overtaken: ApplyOvertaken | None = None
    for left in reversed(range(_ATTEMPTS)):
        try:
            return once()
        except ApplyOvertaken as error:
            if not again or not left:
                raise
            overtaken = error
        except (PlanError, ContainerGone, ContainerNotFound):
            if overtaken is None:
                raise
            raise overtaken from None  # planning fails because the container has ended and was not started again
        message("a container ended meanwhile: planned again")
    raise RecoveryNeeded("an apply was neither made nor refused; this is a bug in scplan")


def _carry_out_once(opened: AbstractContextManager[Run], *, approved: bool, most: Disruption | None) -> ExitCode:
    from scplan.workflow import gates

    with opened as run:
        print_plan(run.plan)
        complain(run.plan.diagnostics)
        if most is not None:
            gates.refuse_disruption(run.plan, most)
        if run.plan.has_changes:
            if not approved:
                approve("Apply these changes?")
            _print_outcome(_execute_with_progress(run))
        elif run.changes_records:
            _execute(run, lambda _: None)
    complain(run.afterwards)
    return code_of(run.plan.diagnostics)


def _execute_with_progress(run: Run) -> Outcome:
    from scplan.render.text import Progress

    with Progress(sys.stderr) as progress:
        return _execute(run, progress.show)


def _print_outcome(outcome: Outcome) -> None:
    from scplan.render.documents import awaiting_lines, outcome_lines

    results(outcome_lines(outcome))
    messages(awaiting_lines(outcome))


def _execute(run: Run, show: OnEvent) -> Outcome:
    try:
        return run.execute(unfailing(show))
    except ScplanError:
        raise
    except Exception as error:
        # Changes may have been made already: the exit code must not be the one for "nothing was changed".
        raise RecoveryNeeded(
            f"the apply ended half-way: {type(error).__name__}: {error}",
            hint="'scplan recover' finishes or undoes it",
        ) from error


def _carry_out_for_machines(
    open_run: Callable[[], AbstractContextManager[Run]], *, approved: bool, most: Disruption | None, again: bool
) -> ExitCode:
    from scplan.render import machine

    try:
        return _until_not_overtaken(lambda: _events_of(open_run(), approved=approved, most=most), again=again)
    except ScplanError as error:
        _emit(machine.failure_event(error.exit_code, error.diagnostics))
        raise


def _events_of(opened: AbstractContextManager[Run], *, approved: bool, most: Disruption | None) -> ExitCode:
    from scplan.render import machine
    from scplan.workflow import gates

    with opened as run:
        _emit(machine.plan_event(run.plan))
        if most is not None:
            gates.refuse_disruption(run.plan, most)
        if not run.plan.changes and not run.changes_records:
            _emit(machine.unchanged_event(run.plan))
            return code_of(run.plan.diagnostics)
        if run.plan.has_changes and not approved:
            raise Declined("nothing was changed: --json can't ask", hint="approve it beforehand: --auto-approve")
        outcome = _execute(run, lambda event: _emit(machine.event_document(event)))
    complain(run.afterwards)
    if outcome.confirm_within_s is not None:
        _emit(machine.awaiting_event(outcome))
    _emit(machine.outcome_event(outcome, run.plan))
    return code_of(run.plan.diagnostics)


def _emit(document: dict[str, object]) -> None:
    from scplan.render import machine

    raw(machine.to_line(document))
