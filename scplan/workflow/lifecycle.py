"""What happens to the things of the host when containers end and start again, whoever finds out about it."""

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
    """Gives the host back what a container that has ended had of it, and records that; a warning about each thing.

    What is in a network namespace that other containers of its pod have stays there, until these have ended.

    Needs the container's lock. Goes on after a failure, and raises ScplanError with all of them: the record then still
    says what has to be given back.
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
    waiting = record.at_next_start()
    state.write([waiting._replace(resources={**waiting.resources, **lent})])
    return returned


def left_on_host(
    lost: Mapping[Address, Resource], host: Host, what: str = "comes home by the next apply for it, or `scplan recover`"
) -> list[Diagnostic]:
    """A warning about each thing of the host that a container left somewhere when it ended."""
    found = []
    for address, resource in lost.items():
        words = KINDS[address.kind].left_behind(host, resource)
        if words is not None:
            thing, place = words
            summary = f"{thing} {what}: container {address.container}, which has ended, left it {place}"
            found.append(Diagnostic(summary=summary, detail=str(address), severity=Severity.WARNING))
    return found


def bring_home(state: State, host: Host, timeout_s: float) -> list[str]:
    """Gives the host back what containers that have ended had of it; a line about each thing.

    What an apply touches that did not end, or awaits confirmation, is left alone.
    """
    lines = []
    for runtime, name in state.names():
        record = state.read(runtime, name)
        if record is None or not _has_of_host(record, host):
            continue
        with state.locked([gone(record)], host=True, timeout_s=timeout_s):
            record = state.read(runtime, name)
            if record is not None and _has_of_host(record, host) and not _is_blocked(record, state, host):
                lines += [one.summary for one in give_back(record, gone(record), state, host)]
    return lines


def return_lent(state: State, host: Host, timeout_s: float) -> list[str]:
    """Return to the host what containers left in pods that have ended since; a line about each thing."""
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
    return any(
        one.is_lent and not KINDS[address.kind].process_beside(host, one) for address, one in record.resources.items()
    )


def _is_blocked(record: Record, state: State, host: Host) -> bool:
    """True if an apply to the container, or to what it has of the host, did not end."""
    if not state.has_open_journals():
        return False
    from scplan.store.confirmation import Scope, all_left_behind, blocking

    left = all_left_behind(state.directory, KINDS, host.boot_id)
    return bool(blocking(left, Scope((gone(record),), record.resources.items()), KINDS))


def _has_of_host(record: Record, host: Host) -> bool:
    """True if its container has ended, at this boot, and had things of the host, or its pod has some."""
    if record.has_lent:
        return True
    ended = record.boot_id == host.boot_id and bool(record.start_time) and not is_plugged_in(record, host.boot_id)
    return ended and any(KINDS[address.kind].of_host for address in record.resources)


def facts_after_return(facts: HostFacts, lost: Mapping[Address, Resource], host: Host) -> HostFacts:
    """The facts of the host as they will be when it has got these things back."""
    for address, resource in lost.items():
        facts = KINDS[address.kind].after_reclaim(facts, host, resource)
    return facts


def wanted_again(record: Record) -> dict[Address, Resource]:
    """What the records ask for when their container starts."""
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
    """Warnings about the next start of containers: of those that do not run and are to have any of these resources,
    and with `of_running` of those that run and get any by the plan.

    `about` returns how the engine starts a container, None where it could not be asked. One warning about all that are
    started without the hook, one about all whose hook is called with another state directory than `state_dir`, and one
    about all that nobody knows any more.
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
    if not containers:
        return []
    names = ", ".join(one.name for one in containers)
    who = f"container {names} is" if len(containers) == 1 else f"containers {names} are"
    return [Diagnostic(summary=f"{who} {what}", hint=hint, severity=Severity.WARNING)]
