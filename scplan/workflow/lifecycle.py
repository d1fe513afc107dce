"""Things of the host (NICs) that containers had: returned when these end, and the resources wanted at a new start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

from scplan.errors import Diagnostic, ScplanError, Severity
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Plan
from scplan.model.live import ContainerFacts, HostFacts, Status
from scplan.model.resource import Resource
from scplan.runtimes import RUNTIMES
from scplan.store.state import Record, State
from scplan.workflow.recorded import AboutStart, gone, is_plugged_in


def give_back(record: Record, facts: ContainerFacts, state: State, host: Host) -> list[Diagnostic]:
    """Return to the host the things that an ended container had, and update its record; returns a warning per thing.

    Things in a network namespace that other containers of the pod share stay there until these containers end.

    Needs the container's lock. All things are tried before failures are raised as one ScplanError; the record is then
    unchanged, and still has the things to return.
    """
    if not record.is_over(facts, host.boot_id) and not record.has_lent:
        return []
    if is_plugged_in(record, host.boot_id):
        raise ScplanError(
            f"container {record.name} runs, as process {record.pid}, into which scplan plugged what its records hold",
            detail=f"process {facts.pid} is not taken for it" if facts.pid else "",
            hint=f"stop it; or `scplan state rm {record.name}` forgets the records",
        )
    problems: list[Diagnostic] = []
    lost = record.lost(facts, host.boot_id)
    staying = {address for address, one in lost.items() if KINDS[address.kind].stays(host, one, facts.pid)}
    returned = left_on_host({one: lost[one] for one in lost.keys() - staying}, host, "came home")
    for address, resource in lost.items():
        if address in staying:
            continue
        try:
            KINDS[address.kind].reclaim(host, resource)
        except ScplanError as error:
            problems += (one._replace(detail=one.detail or str(address)) for one in error.diagnostics)
    if problems:
        raise ScplanError.of(problems)
    lent = {address: lost[address] for address in staying if lost[address].is_lent}
    # Lent resources keep their former values, which are needed when they are returned.
    waiting = record.at_next_start()
    state.write([waiting._replace(resources={**waiting.resources, **lent})])
    return returned


def left_on_host(
    lost: Mapping[Address, Resource], host: Host, what: str = "comes home by the next apply for it, or `scplan recover`"
) -> list[Diagnostic]:
    """A warning about each thing of the host that a container left away from its place when it ended."""
    found = []
    for address, resource in lost.items():
        words = KINDS[address.kind].left_behind(host, resource)
        if words is not None:
            thing, place = words
            summary = f"{thing} {what}: container {address.container}, which has ended, left it {place}"
            found.append(Diagnostic(summary=summary, detail=str(address), severity=Severity.WARNING))
    return found


def bring_home(state: State, host: Host, timeout_s: float) -> list[str]:
    """Return to the host the things that ended containers had; returns a line per thing.

    Containers of an apply that did not end, or awaits confirmation, are ignored.
    """
    lines = []
    for runtime, name in state.names():
        record = state.read(runtime, name)
        if record is None or not _has_of_host(record, host):
            continue
        with state.locked([gone(record)], host=True, timeout_s=timeout_s):
            # Again under the lock: another process may have returned them.
            record = state.read(runtime, name)
            if record is not None and _has_of_host(record, host) and not _is_blocked(record, state, host):
                lines += [one.summary for one in give_back(record, gone(record), state, host)]
    return lines


def return_lent(state: State, host: Host, timeout_s: float) -> list[str]:
    """Return to the host the things that containers left in their pods, if these have ended since; a line per thing."""
    lines = []
    for runtime, name in state.names():
        record = state.read(runtime, name)
        if record is None or not record.has_lent or not _may_return(record, host):
            continue
        with state.locked([gone(record)], host=True, timeout_s=timeout_s):
            record = state.read(runtime, name)
            if record is not None and record.has_lent and not _is_blocked(record, state, host):
                lines += [one.summary for one in give_back(record, gone(record), state, host)]
    return lines


def _may_return(record: Record, host: Host) -> bool:
    """True if no other container shares the namespace of a lent resource any more."""
    return any(
        one.is_lent and not KINDS[address.kind].process_beside(host, one) for address, one in record.resources.items()
    )


def _is_blocked(record: Record, state: State, host: Host) -> bool:
    """True if an apply to the container, or to its things of the host, did not end."""
    if not state.has_open_journals():
        return False
    from scplan.store.confirmation import Scope, all_left_behind, blocking

    left = all_left_behind(state.directory, KINDS, host.boot_id)
    return bool(blocking(left, Scope((gone(record),), record.resources.items()), KINDS))


def _has_of_host(record: Record, host: Host) -> bool:
    """True if the container ended at this boot and had things of the host, or left some in its pod."""
    if record.has_lent:
        return True
    # Network namespaces end with the boot, so after a boot the host has its NICs.
    ended = record.boot_id == host.boot_id and bool(record.start_time) and not is_plugged_in(record, host.boot_id)
    return ended and any(KINDS[address.kind].of_host for address in record.resources)


def facts_after_return(facts: HostFacts, lost: Mapping[Address, Resource], host: Host) -> HostFacts:
    """Facts of the host as they will be once the lost things are returned."""
    for address, resource in lost.items():
        facts = KINDS[address.kind].after_reclaim(facts, host, resource)
    return facts


def wanted_again(record: Record) -> dict[Address, Resource]:
    """Resources to attach when the container of the record starts."""
    wanted = {}
    for address, resource in record.resources.items():
        again = KINDS[address.kind].wanted_again(resource)
        if again is not None:
            wanted[address] = again
    return wanted


def start_warnings(
    made: Plan,
    about: Callable[[str], AboutStart | None],
    resources: Iterable[Address],
    state_dir: str,
    *,
    of_running: bool,
) -> list[Diagnostic]:
    """Warnings about the next start of containers: of stopped containers with any of these resources, and with
    `of_running` of running containers that get resources by the plan.

    `about` returns facts about the next start of a container; None if the engine could not be asked. At most three
    warnings: about containers that start without the hook, about containers that start with a hook for another state
    directory than `state_dir`, and about containers that their engine no longer knows.
    """
    concerned = {address.container for address in resources}
    waiting = [one for name, one in made.containers.items() if one.status is Status.STOPPED and name in concerned]
    getting = {change.address.container for change in made.changes if change.after is not None and of_running}
    waiting += [
        one
        for name, one in made.containers.items()
        if one.status is not Status.STOPPED and name in getting and not RUNTIMES[one.runtime].needs_pid
    ]
    known = [(one, start) for one in waiting if (start := about(one.name)) is not None]
    absent = [one for one, start in known if start.is_absent]
    called = [(one, start.state_dirs) for one, start in known if start.state_dirs is not None]
    hookless = [one for one, state_dirs in called if not state_dirs]
    # A hook may name the state directory by another path, over symlinks.
    own = os.path.realpath(state_dir)
    elsewhere = {one: dirs for one, dirs in called if dirs and own not in map(os.path.realpath, dirs)}
    return [
        *_about(
            hookless,
            "started without scplan's hook",
            "what waits for the start is plugged in by the next `scplan apply` after it, or its timer;"
            " `scplan hook spec` prints the hook",
        ),
        *_about(
            list(elsewhere),
            f"started with a hook for another state directory: {', '.join(sorted({*chain(*elsewhere.values())}))}",
            f"what {own} records is not plugged in at the start; `scplan hook spec` prints the hook for it",
        ),
        *_about(
            absent,
            f"gone from {', '.join(dict.fromkeys(one.runtime for one in absent))}",
            "what is recorded is for the container that is made next under the name; `scplan destroy NAME` forgets it",
        ),
    ]


def _about(containers: list[ContainerFacts], what: str, hint: str) -> list[Diagnostic]:
    """One warning for all of these containers; none without containers."""
    if not containers:
        return []
    names = ", ".join(one.name for one in containers)
    who = f"container {names} is" if len(containers) == 1 else f"containers {names} are"
    return [Diagnostic(summary=f"{who} {what}", hint=hint, severity=Severity.WARNING)]
