"""`scplan hook udev`: udev calls it when a partition of a container's disk appears or disappears.

It reads the disk's current partitions, not the event, so number and order of the events do not matter.
"""

from __future__ import annotations

import os
import time
from functools import partial

from scplan import observe
from scplan.applying import recovery
from scplan.errors import Locked, RecoveryNeeded
from scplan.kinds import KINDS
from scplan.linux.devices import udev
from scplan.linux.host import Host
from scplan.linux.processes.programs import hook_command, start_detached, start_service
from scplan.model.address import Address
from scplan.model.live import ContainerFacts, Status
from scplan.model.resource import Resource, Role, brought_by
from scplan.planning import making
from scplan.store.confirmation import Scope
from scplan.store.state import Record, State
from scplan.workflow.applying import Run
from scplan.workflow.lifecycle import give_back
from scplan.workflow.planning import plan_alone
from scplan.workflow.recorded import gone, is_plugged_in
from scplan.workflow.scene import Records, Request, Scene, read_records

# Time of the hook as a child of udev, before another process continues.
_PATIENCE_S = 1.0
_LONG = "10m"
_POLL_S = 0.5


def run(runtime: str, name: str, state_dir: str, timeout_s: float | None) -> list[str]:
    """Attaches the partitions that the container's disks have now, and detaches partitions that are gone.

    Returns lines to report. udev kills a program that runs for long: without `timeout_s`, another process continues
    if a lock is held, or an apply awaits confirmation or recovery.
    """
    # A service of systemd replaces a child of udevd, which has few system calls and is killed after some time.
    if timeout_s is None and udev.is_parent() and _hand_over_to_systemd(runtime, name, state_dir):
        return []
    deadline = time.monotonic() + (_PATIENCE_S if timeout_s is None else timeout_s)
    state = State(state_dir, KINDS)
    while True:
        try:
            with Host() as host:
                return _follow(runtime, name, state, host)
        except (Locked, RecoveryNeeded):
            if time.monotonic() >= deadline:
                if timeout_s is not None:
                    raise
                start_detached(_again(runtime, name, state_dir))
                return []
        time.sleep(_POLL_S)


def _again(runtime: str, name: str, state_dir: str) -> list[str]:
    return hook_command(state_dir, ["udev", "--runtime", runtime, "--lock-timeout", _LONG, name])


def _hand_over_to_systemd(runtime: str, name: str, state_dir: str) -> bool:
    command = _again(runtime, name, state_dir)
    return start_service(f"scplan-partitions-{os.getpid()}-{time.time_ns()}", command, private_mounts=True)


def _follow(runtime: str, name: str, state: State, host: Host) -> list[str]:
    facts = ContainerFacts(name, runtime, "", Status.RUNNING)
    request = Request(state_dir=state.directory, lock_timeout_s=0.0, command=("hook", "udev"))
    with state.locked([facts], host=True, timeout_s=request.lock_timeout_s):
        recovery.refuse_if_needed(state, KINDS, host, Scope((facts,)))
        record = state.read(runtime, name)
        if record is None or not record.pid:
            return []
        if not is_plugged_in(record, host.boot_id):
            give_back(record, gone(record), state, host)
            return [f"container {name} has ended: its disks are not followed any more"]
        facts = record.facts()
        return _follow_locked(record, facts, state, host, request)


def _follow_locked(record: Record, facts: ContainerFacts, state: State, host: Host, request: Request) -> list[str]:
    brought = {address: one for address, one in record.resources.items() if brought_by(one) is not None}
    known = Scene({facts.name: facts}, {}, partial(read_records, state))
    of_disks = Scene({facts.name: facts}, {facts.name: _brought_now(record, host)}, lambda _: Records(brought))
    made = plan_alone(of_disks, request, host)
    Run(made, known, state, host, request, is_start=True).execute(lambda _: None)
    return [f"{change.address}: {change.action}" for change in made.changes]


def _brought_now(record: Record, host: Host) -> dict[Address, Resource]:
    """Partitions that belong in the container now, resolved; none of a disk that was replaced by another disk."""
    found: dict[Address, Resource] = {}
    for address, owned in record.resources.items():
        kind = KINDS[address.kind]
        again = kind.wanted_again(owned) if kind.brings_others(owned) else None
        if again is None:
            continue
        entry = {address: again}
        now = making.resolve(entry, observe.host_facts(host), KINDS, lambda _: None).desired
        if address in now and _resolved(now[address]) == _resolved(owned):
            found.update((place, one) for place, one in now.items() if place != address)
    return {
        place: one
        for place, one in found.items()
        if place not in record.resources or brought_by(record.resources[place]) is not None
    }


def _resolved(resource: Resource) -> list[object]:
    return [getattr(resource, one.name) for one in resource.attributes() if one.role is Role.RESOLVED]
