"""Reports that change nothing: drift, owned resources, snapshots, facts of the host."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from scplan import observe
from scplan.errors import ContainerElsewhere, ContainerReplaced, Diagnostic, ScplanError, Severity
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Change, Plan
from scplan.model.comparison import as_recorded, differences, is_recorded_as
from scplan.model.live import Live, Status
from scplan.model.resource import Resource
from scplan.planning import making
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import Runtime
from scplan.store.state import Record, State
from scplan.workflow.confirming import notices
from scplan.workflow.lifecycle import left_on_host
from scplan.workflow.planning import ahead_of_files, live_of, look_and_plan, wanted_of
from scplan.workflow.recorded import renamed
from scplan.workflow.scene import (
    Request,
    Scene,
    emptied,
    has_default_files,
    scene_of_all_records,
    scene_of_configuration,
    set_scene,
    unlisted,
    validate,
)
from scplan.workflow.settled import settled

if TYPE_CHECKING:
    from scplan.model.report import Drifted, DriftReport, Finding, Owned
    from scplan.workflow.ahead import LookAhead


def drift(request: Request) -> DriftReport:
    """Owned resources that differ from live state, and separately the changes in the files that were never applied."""
    state = State(request.state_dir, KINDS)
    return settled(state, lambda: _drift_now(request, state))


def _drift_now(request: Request, state: State) -> DriftReport:
    """The report; each part that can't be read, located or planned is an error in it, and hides no other part."""
    with ahead_of_files(request, state) as ahead, Host() as host:
        problems: list[Diagnostic] = []
        if request.files or has_default_files():
            try:
                scene = set_scene(request, state)
                return _drift_of_files(scene, request, state, host, ahead)
            except ScplanError as error:
                # Files that are wrong, or can't be planned at all: report the drift of the records alone.
                problems += error.diagnostics
        return _drift_of_records(state, host, ahead, problems)


def _drift_of_files(scene: Scene, request: Request, state: State, host: Host, ahead: LookAhead | None) -> DriftReport:
    """The report for containers in the files."""
    notices_of_files = [*unlisted(scene, state)]
    scene, problems = scene.readable()
    notices_of_files += emptied(scene)
    stale = scene.stale
    scene = scene.only(scene.containers.keys() - {record.name for record, _ in stale})
    # An engine that does not answer is an error in a report, since drift of its containers can be missed.
    scene, silent = scene.hearing_of(()), scene.silent
    problems += (one._replace(severity=Severity.ERROR) for one in silent)
    made, live, unchanged, unread = look_and_plan(scene, request, state, host, ahead, goes_on=True)
    drifted = _drifted(scene.only(scene.containers.keys() - unchanged), live.resources, unread)
    # If the environment only selects another place, the recorded container may be as recorded: no drift, but an error.
    again = [(record, error) for record, error in stale if not isinstance(error, ContainerElsewhere)]
    drifted = (*drifted, *_left_alone(record for record, _ in again))
    problems += (_warning(error) for _, error in again)
    problems += (one for _, error in stale if isinstance(error, ContainerElsewhere) for one in error.diagnostics)
    return _report(scene, made, drifted, unread, [*problems, *notices_of_files, *notices(state)])


def _drift_of_records(state: State, host: Host, ahead: LookAhead | None, problems: list[Diagnostic]) -> DriftReport:
    """The report for all containers with records; `problems` are errors found before."""
    scene, stale, more, unknown = _known(state)
    left = tuple(left_on_host(scene.lost, host))
    scene = scene.only({name for name in scene.containers if name not in unknown})
    made = Plan(containers=scene.containers, changes=(), operations=(), refreshed={}, diagnostics=left)
    as_recorded = ahead.as_recorded(scene.containers) if ahead is not None else frozenset()
    drifted, unread = drifted_in(scene.only(scene.containers.keys() - as_recorded), host)
    drifted = (*drifted, *_left_alone(record for record, _ in stale))
    more += (_warning(error) for _, error in stale)
    errors = [one._replace(severity=Severity.ERROR) for one in unread.values()]
    return _report(scene, made, drifted, unread, [*problems, *more, *errors, *notices(state)])


def _report(
    scene: Scene,
    made: Plan,
    drifted: tuple[Drifted, ...],
    unread: Collection[str],
    diagnostics: Iterable[Diagnostic],
) -> DriftReport:
    from scplan.model.report import DriftReport

    known = {one.address for one in drifted}
    checked = known | {address for address in scene.owned if address.container not in unread}
    # A drifted resource is pending only if the files ask for another change, too.
    pending = tuple(change for change in made.changes if change.address not in known or _asks_for_more(change))
    return DriftReport(
        containers=scene.containers,
        checked=len(checked),
        drifted=drifted,
        pending=made._replace(changes=pending, operations=()),
        # Each diagnostic once, in order.
        diagnostics=tuple(dict.fromkeys((*made.diagnostics, *diagnostics))),
        waiting=tuple(address for address in scene.owned if does_wait(scene, address)),
    )


def _asks_for_more(change: Change) -> bool:
    """True if the desired resource differs from its record: the change is pending, not drift alone."""
    if change.managed is None or change.owned is None:
        return change.managed is not change.owned
    return not is_recorded_as(change.managed, change.owned)


def _known(state: State) -> tuple[Scene, list[tuple[Record, ContainerReplaced]], list[Diagnostic], frozenset[str]]:
    """(containers with records, records whose containers were re-created, warnings and errors about the rest, names of
    containers of which it is unknown whether they run)"""
    scene, unfound, problems = scene_of_all_records(state)
    again = {name: error for name, error in unfound.items() if isinstance(error, ContainerReplaced)}
    stale = [(record, again[record.name]) for record in state.survey()[0] if record.name in again] if again else []
    rest = scene.only(scene.containers.keys() - unfound.keys())
    gone_ones = [_warning(error) for name, error in unfound.items() if name not in again]
    gone_ones += renamed(scene.containers.values())
    unknown = frozenset(name for name, _ in problems if name and does_not_run(rest, name))
    return rest, stale, [*gone_ones, *(one for _, one in problems)], unknown


def _left_alone(records: Iterable[Record]) -> Iterator[Drifted]:
    """Drift for the records of re-created containers: the new containers lack every recorded resource."""
    from scplan.model.report import Drifted

    for record in records:
        for address, recorded in record.resources.items():
            yield Drifted(address=address, changed=(), recorded=recorded, live=None)


def _warning(error: ScplanError) -> Diagnostic:
    return error.diagnostics[0]._replace(severity=Severity.WARNING)


def does_wait(scene: Scene, address: Address) -> bool:
    """True if the resource waits for the next start of its container."""
    return scene.containers[address.container].status is Status.STOPPED


def does_not_run(scene: Scene, name: str) -> bool:
    """True for a container that is not running, or whose record can't be read."""
    return name not in scene.containers or scene.containers[name].status is Status.STOPPED


def drifted_in(scene: Scene, host: Host) -> tuple[tuple[Drifted, ...], dict[str, Diagnostic]]:
    """(owned resources that are not as recorded, warning by name of each container that could not be read)"""
    live, problems = _live_of(scene, host)
    return _drifted(scene, live, problems.keys()), problems


def _drifted(
    scene: Scene, live: Mapping[Address, Resource], unread: Collection[str] = frozenset()
) -> tuple[Drifted, ...]:
    """Owned resources that are not as recorded; an absent one counts only if its container could be read."""
    from scplan.model.report import Drifted

    drifted = []
    for address, recorded in scene.owned.items():
        there = live.get(address)
        if does_wait(scene, address) or (there is None and address.container in unread):
            continue
        changed = () if there is None else differences(recorded, there)
        if there is None or changed:
            drifted.append(Drifted(address=address, changed=changed, recorded=recorded, live=there))
    return tuple(drifted)


def _live_of(scene: Scene, host: Host) -> tuple[dict[Address, Resource], dict[str, Diagnostic]]:
    """(live values of owned resources, warning by name of each container that could not be read)"""
    live, problems = live_of(scene.containers, wanted_of(scene.containers, scene.owned), host)
    return live, {name: one._replace(severity=Severity.WARNING) for name, one in problems.items()}


def show_owned(request: Request) -> list[Owned]:
    """All owned resources with their live values."""
    from scplan.model.report import Owned

    state = State(request.state_dir, KINDS)
    scene, unfound, unasked = scene_of_all_records(state)
    with Host() as host:
        live, unread = _live_of(scene, host)
    problems = {name: one.summary for name, one in unasked if does_not_run(scene, name)}
    problems |= {name: one.summary for name, one in unread.items()}
    problems |= {name: error.diagnostics[0].summary for name, error in unfound.items()}
    return [
        Owned(
            address=address,
            runtime=scene.containers[address.container].runtime,
            container_id=scene.containers[address.container].id,
            recorded=recorded,
            live=as_recorded(live[address], recorded) if address in live else None,
            problem=problems.get(address.container, ""),
            at_next_start=does_wait(scene, address) and address.container not in problems,
        )
        for address, recorded in scene.owned.items()
    ]


def snapshot(request: Request) -> str:
    """Live state and records, as JSON, of all containers in files and records; no live state of stopped containers."""
    from scplan.store import snapshot as snapshots

    state = State(request.state_dir, KINDS)
    scene = scene_of_all_records(state).scene
    if request.files or has_default_files():
        of_files = scene_of_configuration(validate(request), request, state)
        of_files.refuse_missing()
        scene = of_files.joined_by(scene.containers)
    running = scene.only({name for name, facts in scene.containers.items() if facts.status is not Status.STOPPED})
    with Host() as host:
        facts = observe.host_facts(host, (*_paths_of(scene.desired), *_paths_of(scene.owned), *host.disks()))
        resolution = making.resolve(running.desired, facts, KINDS, scene.source_of)
        # All live resources first, then the known ones with their records: a source, for instance, can't always be
        # read back without its record.
        everything = {name: observe.Wanted(by_kind=None) for name in running.containers}
        wanted = wanted_of(running.containers, {**resolution.desired, **running.owned})
        resources = observe.observe(running.containers, everything, KINDS, host)
        resources |= observe.observe(running.containers, wanted, KINDS, host)
        live = Live(host=facts._replace(machine=host.machine), containers=scene.containers, resources=resources)
        stale = {record.name: _told_apart(record, scene.containers[record.name].id) for record, _ in scene.stale}
        return snapshots.encode(snapshots.Snapshot(live=live, owned=scene.owned, stale=stale))


def _told_apart(record: Record, container_id: str) -> str:
    """ID of the recorded container; with its place if the present container has an equal ID."""
    return record.id if record.id != container_id else f"{record.id} in {record.place}"


def _paths_of(resources: Mapping[Address, Resource]) -> Iterator[str]:
    return (path for address, resource in resources.items() for path in KINDS[address.kind].host_paths(resource))


def record_notices(request: Request) -> list[Diagnostic]:
    """Doubts about the records: warnings about containers that are gone, re-created or renamed, and about things of the
    host that they left; errors about records and runtimes that can't be read."""
    scene, unfound, problems = scene_of_all_records(State(request.state_dir, KINDS))
    with Host() as host:
        left = left_on_host(scene.lost, host)
    of_names = renamed(scene.containers.values())
    return [*map(_warning, unfound.values()), *(one for _, one in problems), *of_names, *left]


def doctor() -> list[Finding]:
    """Findings about this host, for `scplan doctor`."""
    from scplan.workflow.doctor import Looked, examine

    def looked(runtime: Runtime) -> Looked:
        try:
            return Looked(runtime.places(), runtime.evidence(), runtime.programs)
        except ScplanError as error:
            return Looked(problem=error.diagnostics[0].line)

    with Host() as host:
        return examine(host, {name: looked(runtime) for name, runtime in RUNTIMES.items()})
