"""What a container's start and stop mean for what scplan owns in it: plugged in again, and given back to the host."""

from __future__ import annotations

import os
import select
from functools import partial

from scplan import confirmation, recovery
from scplan.errors import ContainerGone, Diagnostic, KernelError, ScplanError
from scplan.hooks.find import Found
from scplan.hooks.state import STAGES, Told
from scplan.kinds import KINDS
from scplan.linux import modules
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes.state_files import process_start
from scplan.state import Record, State
from scplan.workflow.applying import Run
from scplan.workflow.lifecycle import give_back, wanted_again
from scplan.workflow.planning import plan_alone
from scplan.workflow.recorded import gone, is_plugged_in
from scplan.workflow.scene import Request, Scene, read_records

_ENDING_S = 5


def run(told: Told, found: list[Found], state_dir: str, timeout_s: float) -> list[str]:
    """Does what the stage asks for; returns what should be told. Raises ScplanError, which aborts a start."""
    if len(found) > 1:
        names = ", ".join(f"{one.runtime}/{one.name}" for one in found)
        raise ScplanError(
            f"ID {told.id} can mean {len(found)} containers with records: {names}",
            hint="`scplan hook spec --runtime NAME` prints a hook that says which runtime calls it",
        )
    request = Request(state_dir=state_dir, lock_timeout_s=timeout_s, command=("hook", told.stage))
    state = State(state_dir, KINDS)
    with Host() as host:
        if STAGES[told.stage] == "stop":
            return _stop(told, found[0], state, host, request)
        return _start(told, found[0], state, host, request)


def _start(told: Told, found: Found, state: State, host: Host, request: Request) -> list[str]:
    started = process_start(told.pid)
    if not started:
        raise ContainerGone(f"container {found.name}: its process {told.pid} is gone")
    facts = ContainerFacts(found.name, found.runtime, told.id, Status.RUNNING, told.pid, started, told.root)
    with Container(found.name, told.pid, started, host, told.root) as container:
        # Before anything else: what the runtime says may be wrong, and the process one of the host.
        container.refuse_host_mounts()
    lines = _settle(facts, state, host, request)
    with state.locked([facts], host=True, timeout_s=request.lock_timeout_s):
        record = state.read(found.runtime, found.name)
        if record is None:
            return lines
        give_back(record, facts, state, host)
        loaded = modules.load(record.modules or ())
        scene = Scene({found.name: facts}, {found.name: wanted_again(record)}, partial(read_records, state))
        made = plan_alone(scene, request, host)
        outcome = Run(made, scene, state, host, request, is_start=True).execute(lambda _: None)
    lines += (f"container {found.name}: kernel module {name} loaded" for name in loaded)
    count = sum(outcome.summary.values())
    lines += (f"container {found.name}: {_words(one)}" for one in made.diagnostics)
    return [*lines, f"container {found.name}: {count} resources plugged in"] if count else lines


def _settle(facts: ContainerFacts, state: State, host: Host, request: Request) -> list[str]:
    """Ends what a crash left half done in it, and undoes what is not confirmed: a container starts from the records."""
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


def _stop(told: Told, found: Found, state: State, host: Host, request: Request) -> list[str]:
    """Gives back what is the host's. Asks no runtime: the one that called may answer to nobody until this has ended."""
    ended = ContainerFacts(found.name, found.runtime, told.id, Status.STOPPED)
    with state.locked([ended], host=True, timeout_s=request.lock_timeout_s):
        record = state.read(found.runtime, found.name)
        if record is None or not record.start_time:
            return []
        if is_plugged_in(record, host.boot_id) and not _ends(record):
            return [f"container {found.name} runs: nothing of it is given back"]
        give_back(record, gone(record), state, host)
    return [f"container {found.name}: the host has its things back"]


def _ends(record: Record) -> bool:
    """Whether the process of a container that its runtime says is stopped ends soon: crun only sends a signal.

    Source: pidfd_open(2).
    """
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        if process_start(record.pid) != record.start_time:
            return True
        # Readable as soon as the process ends, be it a zombie.
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        return bool(waiting.poll(_ENDING_S * 1000))
    except OSError as error:
        raise KernelError.from_os(f"poll(pidfd of {record.pid})", error) from None
    finally:
        os.close(pidfd)


def _words(diagnostic: Diagnostic) -> str:
    return "; ".join(part for part in (diagnostic.summary, diagnostic.detail, diagnostic.hint) if part)
