"""Recorded resources reattached to one container: when it starts, and when its live state drifts."""

from __future__ import annotations

from functools import partial

from scplan.applying import recovery
from scplan.kinds import KINDS
from scplan.linux import modules
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.live import ContainerFacts
from scplan.startup.named_tuple import NamedTuple
from scplan.store import confirmation
from scplan.store.journal import OF_A_START, left_behind
from scplan.store.state import Record, State
from scplan.workflow.applying import Run
from scplan.workflow.foresight import with_start_foreseen
from scplan.workflow.lifecycle import give_back, wanted_again
from scplan.workflow.planning import plan_alone
from scplan.workflow.recorded import gone, is_plugged_in
from scplan.workflow.scene import Request, Scene, read_records


class Plugged(NamedTuple):
    """Number of resources attached or changed, lines to report (`said`), and lines about applies ended before."""

    changed: int
    said: list[str]
    settled: list[str]


def start(facts: ContainerFacts, state: State, host: Host, request: Request) -> Plugged:
    """Attach the recorded resources to a container that starts, or has just been started.

    An apply to the container that did not end is ended first. Raises ScplanError.
    """
    with Container(facts.name, facts.pid, facts.start_time, host, facts.root) as container:
        # First of all: the runtime may report a wrong PID, and the process may be in the host's mount namespace.
        container.refuse_host_mounts()
    settled = _settle(facts, state, host, request)
    with state.locked([facts], host=True, timeout_s=request.lock_timeout_s):
        record = state.read(facts.runtime, facts.name)
        if record is None:
            return Plugged(0, [], settled)
        returned = [one.line for one in give_back(record, facts, state, host)]
        loaded = [f"kernel module {name} loaded" for name in modules.load(record.modules or ())]
        done = _plug_in(record, facts, state, host, request)
    return Plugged(done.changed, [*returned, *loaded, *done.said], settled)


def mend(facts: ContainerFacts, state: State, host: Host, request: Request) -> Plugged:
    """Reattach the recorded resources to a running container.

    Raises AwaitingConfirmation or RecoveryNeeded if an apply of a user did not end: the user must decide about it.
    """
    end_starts(state, host, request)
    with state.locked([facts], host=True, timeout_s=request.lock_timeout_s):
        record = state.read(facts.runtime, facts.name)
        resources = record.resources.items() if record is not None else ()
        recovery.refuse_if_needed(state, KINDS, host, confirmation.Scope((facts,), resources))
        if record is None or not is_plugged_in(record, host.boot_id):
            return Plugged(0, [], [])
        return _plug_in(record, facts, state, host, request)


def end(record: Record, state: State, host: Host, request: Request) -> bool:
    """Return to the host the things that an ended container had; True if its record changed. Asks no runtime."""
    with state.locked([gone(record)], host=True, timeout_s=request.lock_timeout_s):
        now = state.read(record.runtime, record.name)
        if now is None or not (now.start_time or now.has_lent) or is_plugged_in(now, host.boot_id):
            return False
        give_back(now, gone(now), state, host)
        return state.read(record.runtime, record.name) != now


def end_starts(state: State, host: Host, request: Request) -> list[str]:
    """Undo runs of `start` or `mend` that did not end; returns a line per run. Applies of users are ignored."""
    if not state.has_open_journals():
        return []
    asked = recovery.Recovery(state, KINDS, host, request.lock_timeout_s, lambda _: None)
    left = [path for path in left_behind(state.directory) if path.endswith(f"{OF_A_START}.jsonl")]
    return [recovery.recover_one(path, asked, "auto") for path in left]


def _plug_in(record: Record, facts: ContainerFacts, state: State, host: Host, request: Request) -> Plugged:
    """Attach the recorded resources. Needs the locks. Raises ScplanError."""
    scene = Scene({facts.name: facts}, {facts.name: wanted_again(record)}, partial(read_records, state))
    made = with_start_foreseen(plan_alone(scene, request, host), scene.owned, host)
    Run(made, scene, state, host, request, is_start=True).execute(lambda _: None)
    now = state.read(facts.runtime, facts.name)
    if now is not None and not is_plugged_in(now, host.boot_id):
        # Everything was attached already and nothing was journaled: record the new process of the container.
        state.write([Record.of(facts, host.boot_id, now.resources)])
    plugged_in = sum(not change.records_only for change in made.changes)
    return Plugged(plugged_in, [one.line for one in made.diagnostics], [])


def _settle(facts: ContainerFacts, state: State, host: Host, request: Request) -> list[str]:
    """Recover applies to the container that did not end, and undo unconfirmed applies; returns a line per apply.

    A container starts with the resources of its record, so the record must be final.
    """
    if not state.has_open_journals():
        return []
    asked = recovery.Recovery(state, KINDS, host, request.lock_timeout_s, lambda _: None)
    lines = []
    for left in confirmation.all_left_behind(state.directory, KINDS, host.boot_id):
        then = left.entries.begin.containers.get(facts.name) if left.entries else None
        if then is None or then.runtime != facts.runtime:
            continue
        if left.left_s:
            reason = f"container {facts.name} was started again before it was confirmed"
            lines.append(recovery.give_up(left.path, asked, reason))
        else:
            lines.append(recovery.recover_one(left.path, asked, "auto"))
    return lines
