"""Undo of the last apply, planned against live state like any change; and the history of applies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from scplan import observe
from scplan.errors import Diagnostic, ScplanError, Severity
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Plan
from scplan.model.comparison import without_former
from scplan.model.live import ContainerFacts, Live
from scplan.model.resource import Resource
from scplan.planning import making
from scplan.store.state import Record, State
from scplan.workflow.applying import Run, run_under_locks
from scplan.workflow.confirming import undo_overdue
from scplan.workflow.foresight import with_foresight
from scplan.workflow.planning import foreign_to, inputs_of, staying, wanted_of, with_neighbours
from scplan.workflow.recorded import ask, find_again
from scplan.workflow.scene import Request, Scene, read_records

if TYPE_CHECKING:
    from scplan.model.report import OnEvent, Past
    from scplan.planning.undo import Reversal
    from scplan.store.history import Kept


@contextmanager
def open_undo(request: Request) -> Iterator[Run]:
    """The plan that undoes the last committed apply, under its locks. Raises ScplanError if there is no such apply."""
    from scplan.store.history import last_committed

    state = State(request.state_dir, KINDS)
    with Host() as host:
        overdue = undo_overdue(state, host, request.lock_timeout_s)
        kept = last_committed(state.directory, KINDS)
        scene = _scene_of(kept, state)

        def make(locked: Scene) -> Run:
            # Under the locks: another apply may have been committed since `kept` was read.
            if last_committed(state.directory, KINDS).apply_id != kept.apply_id:
                raise ScplanError("another apply was committed meanwhile", hint="look at the history, and undo again")
            made = _plan(_reversals(kept), locked, request, state, host)
            said = [] if made.changes or made.refreshed else [_nothing_left_of(kept.apply_id)]
            made = made._replace(diagnostics=(*overdue, *made.diagnostics, *said))
            return Run(made, locked, state, host, request, undoes=kept.apply_id)

        with run_under_locks(scene, request, state, host, make) as run:
            yield run


def _nothing_left_of(apply_id: str) -> Diagnostic:
    return Diagnostic(
        summary=f"there is nothing to take back of the last apply, {apply_id}",
        detail="it made again what others had changed, or others have taken it back since",
        hint="to go further back, apply the configuration of that time",
        severity=Severity.WARNING,
    )


def awaiting(request: Request) -> Past | None:
    """The apply that awaits confirmation; None if there is none, or another apply was committed or undone since."""
    if not State(request.state_dir, KINDS).has_open_journals():
        return None
    from scplan.model.report import Ended

    for past in history(request, None):
        if past.outcome is Ended.AWAITING:
            return past
        if past.outcome in (Ended.COMMITTED, Ended.UNDONE):
            return None
    return None


def give_up(pending: Past, request: Request, on_event: OnEvent) -> str:
    """Undo an apply that awaits confirmation now; returns a line about the result."""
    from scplan.applying import recovery

    with Host() as host:
        state = State(request.state_dir, KINDS)
        asked = recovery.Recovery(state, KINDS, host, request.lock_timeout_s, on_event)
        path = os.path.join(state.directory, "journal", f"{pending.apply_id}.jsonl")
        return recovery.give_up(path, asked, "given up by `scplan undo`")


def history(request: Request, limit: int | None) -> list[Past]:
    """The applies of this state directory, newest first, at most `limit`."""
    from scplan.store import history as histories

    with Host() as host:
        return histories.history(request.state_dir, KINDS, host.boot_id, limit)


def _reversals(kept: Kept) -> dict[Address, Reversal]:
    """Net effects of the apply by address."""
    from scplan.planning import undo

    assert kept.entries is not None
    return undo.reversals(kept.entries.started, kept.entries.refreshed)


def _scene_of(kept: Kept, state: State) -> Scene:
    """The containers of the apply as they are now, with the records before the apply as desired.

    Raises ContainerNotFound if a container is gone for good.
    """
    from scplan.planning import undo

    assert kept.entries is not None
    containers: dict[str, ContainerFacts] = {}
    for name, facts in kept.entries.begin.containers.items():
        asked = ask(Record.of(facts, kept.entries.begin.boot_id, {}), find_again)
        if asked.silent is not None and not asked.is_known:
            raise asked.silent
        containers[name] = asked.facts
    past = _reversals(kept)

    desired: dict[str, dict[Address, Resource]] = {name: {} for name in containers}
    for address, resource in undo.desired_after({}, past).items():
        desired[address.container][address] = resource
    return Scene(containers, desired, partial(read_records, state))


def _plan(past: Mapping[Address, Reversal], scene: Scene, request: Request, state: State, host: Host) -> Plan:
    """The plan that undoes these net effects, with the findings of foresight. Raises PlanError."""
    from scplan.planning import undo

    past = undo.with_brought(past, scene.owned, KINDS)
    desired = undo.desired_after(scene.owned, past)
    touched = {address: one for address, one in desired.items() if address in past}
    facts = observe.host_facts(host)
    resolution = making.resolve(touched, facts, KINDS, scene.source_of)
    # Only the addresses of the apply are resolved; other owned resources stay as recorded.
    kept = {address: one for address, one in desired.items() if address not in past}
    resolved = {address: one for address, one in resolution.desired.items() if address in touched}
    resolution = resolution._replace(desired={**kept, **resolved})
    # Read a resource that is not owned now without its former values: the live resource may be of others.
    known = {address: without_former(one) for address, one in resolved.items()} | dict(scene.owned)
    found = observe.observe(scene.containers, wanted_of(scene.containers, known), KINDS, host)
    live = Live(host=facts, containers=scene.containers, resources=found)
    inputs = inputs_of(scene, resolution, live, request)
    inputs = inputs._replace(foreign=foreign_to(inputs, state), staying=staying(inputs, host))
    made = with_neighbours(lambda these, kinds: undo.make_undo(these, past, kinds), inputs, scene, state, host)
    return with_foresight(made, scene.owned, scene.source_of, host)
