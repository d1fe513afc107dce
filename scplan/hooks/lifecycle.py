"""Reattaches a container's recorded resources when it starts, and returns resources to the host when it stops."""

from __future__ import annotations

from scplan.errors import ContainerGone, ScplanError
from scplan.hooks.find import Found, has_pins
from scplan.hooks.identity import ends_soon, is_elsewhere, why_another
from scplan.hooks.state import STAGES, HookCall
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.linux.processes.process import cgroup_of, pid_namespace_of, start_of
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes import RUNTIMES
from scplan.store.state import Record, State
from scplan.workflow import plugging
from scplan.workflow.lifecycle import return_lent
from scplan.workflow.recorded import is_plugged_in, replaced, why_not_followed
from scplan.workflow.scene import Request


def run(call: HookCall, found: list[Found], state_dir: str, timeout_s: float) -> list[str]:
    """Does the work of the stage; returns lines to report. Raises ScplanError, which aborts a start."""
    request = Request(state_dir=state_dir, lock_timeout_s=timeout_s, command=("hook", call.stage))
    state = State(state_dir, KINDS)
    with Host() as host:
        if STAGES[call.stage] == "stop":
            lines = [line for one in found for line in _stop(call, one, state, host, request)]
            return [*lines, *(return_lent(state, host, timeout_s) if has_pins() else ())]
        return _start(call, found, state, host, request)


def _start(call: HookCall, found: list[Found], state: State, host: Host, request: Request) -> list[str]:
    started = start_of(call.pid)
    if not started:
        raise ContainerGone(f"container {found[0].name}: its process {call.pid} is gone")
    meant: list[Record] = []
    lines: list[str] = []
    for one in found:
        record = state.read(one.runtime, one.name)
        if record is not None and record.id != call.id:
            why = _why_not_followed(call, record, host)
            if why:
                lines.append(f"container {one.name}: scplan's records are about another one of this name: {why}")
                continue
            record = record._replace(bundle="")
        why = why_another(call, record, host.boot_id) if record is not None else ""
        if why:
            lines.append(f"container {call.id}: not the {one.name} of scplan's records, which has this ID, too: {why}")
        elif record is not None:
            meant.append(record)
    if len(meant) > 1:
        names = ", ".join(f"{one.runtime}/{one.name}" for one in meant)
        raise ScplanError(
            f"ID {call.id} can mean {len(meant)} containers with records: {names}",
            hint="`scplan hook spec --runtime NAME` prints a hook that says which runtime calls it",
        )
    return _plug_in(call, meant[0], started, state, host, request) if meant else lines


def _plug_in(call: HookCall, record: Record, started: int, state: State, host: Host, request: Request) -> list[str]:
    # The container's program does not run yet, so the process is still in the cgroup that its runtime chose.
    life = call.pid, started, call.root, call.bundle, cgroup_of(call.pid)
    facts = ContainerFacts(record.name, record.runtime, call.id, Status.RUNNING, *life, place=record.place)
    facts = facts._replace(pid_namespace=pid_namespace_of(call.pid))
    made = _made(call, record) if record.id != call.id else None
    if made is not None:
        facts = facts._replace(image=made.image, labels=made.labels, is_temporary=made.is_temporary)
    done = plugging.start(facts, state, host, request)
    said = [f"container {record.name}: {text}" for text in done.said]
    if done.changed:
        said.append(f"container {record.name}: {done.changed} resources plugged in")
    return [*done.settled, *said]


def _made(call: HookCall, record: Record) -> ContainerFacts | None:
    """The starting container as its engine's files name it; None if they do not."""
    return RUNTIMES[record.runtime].in_bundle(call.bundle, call.id)


def _why_not_followed(call: HookCall, record: Record, host: Host) -> str:
    """Reason why a record does not apply to the re-created container of its name; "" if it applies."""
    made = _made(call, record)
    if made is None:
        return "its engine's files do not name it"
    if is_plugged_in(record, host.boot_id) and not ends_soon(record):
        return f"that one runs, as process {record.pid}; nothing is plugged in here"
    why = why_not_followed(record, made)
    if not why:
        return ""
    way_out = replaced(record, made).diagnostics[0].hint
    return f"{why}; it starts without what is recorded; {way_out}"


def _stop(call: HookCall, found: Found, state: State, host: Host, request: Request) -> list[str]:
    """Returns resources to the host; returns lines to report.

    Queries no runtime: the runtime that called the hook may not answer until the hook has ended.
    """
    record = state.read(found.runtime, found.name)
    if record is None or not record.start_time or is_elsewhere(call, record):
        return []
    if is_plugged_in(record, host.boot_id) and not ends_soon(record):
        return [f"container {found.name} runs: nothing of it is given back"]
    if not plugging.end(record, state, host, request):
        return []  # another process has returned them already
    return [f"container {found.name}: the host has its things back"]
