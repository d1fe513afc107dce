"""Plans from scenes: resolved on the host, compared with live state of the kernel or a snapshot; and saved plans."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from scplan import observe
from scplan.errors import Diagnostic, ScplanError, Severity, SourceRange
from scplan.kinds import KINDS
from scplan.kinds.kind import Kinds
from scplan.linux.host import Host
from scplan.linux.processes.namespaces import Child, results
from scplan.model.address import Address
from scplan.model.change import Plan
from scplan.model.live import ContainerFacts, HostFacts, Live, Status
from scplan.model.resource import Resource
from scplan.planning import making
from scplan.runtimes.runtime import ContainerName, by_name_or_id
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import Record, State
from scplan.workflow.ahead import LOOKING_TIMEOUT_S, LookAhead, in_shares, is_worth_sharing_out, processes
from scplan.workflow.confirming import notices
from scplan.workflow.lifecycle import facts_after_return, left_on_host, start_warnings
from scplan.workflow.modules import asked_modules, missing_said, new_modules
from scplan.workflow.modules import notices as module_notices
from scplan.workflow.scene import Records, Request, Scene, emptied, named, set_scene, unlisted, validate
from scplan.workflow.settled import settled


def make_plan(request: Request) -> Plan:
    """The plan for the files, against the kernel or a snapshot. Changes nothing."""
    if request.live is not None:
        return _plan_against_snapshot(request, request.live)
    state = State(request.state_dir, KINDS)
    # Without locks: made again if an apply was at work meanwhile.
    made = settled(state, lambda: _plan_now(request, state))
    return made._replace(diagnostics=(*made.diagnostics, *notices(state)))


def _plan_now(request: Request, state: State) -> Plan:
    """The plan from the files, records and live state of this moment, without locks."""
    with ahead_of_files(request, state) as ahead, Host() as host:
        scene = set_scene(request, state)
        made = _with_foresight(look_and_plan(scene, request, state, host, ahead).plan, scene, host)
        # The notices below are about whole containers, not about a selection.
        if request.destroy or not request.selection.is_everything:
            return made
        return made._replace(diagnostics=(*made.diagnostics, *emptied(scene), *unlisted(scene, state)))


@contextmanager
def ahead_of_files(request: Request, state: State) -> Iterator[LookAhead | None]:
    """Start comparing all recorded containers in child processes while the files are read; None for few containers."""
    names = [] if request.containers else state.names()
    if not is_worth_sharing_out(names):
        yield None
        return
    with LookAhead(state, names) as ahead:
        yield ahead


def plan_scene(scene: Scene, request: Request, state: State, host: Host) -> Plan:
    """The plan for a scene, with the findings of foresight. Raises PlanError."""
    return _with_foresight(look_and_plan(scene, request, state, host).plan, scene, host)


def _with_foresight(made: Plan, scene: Scene, host: Host) -> Plan:
    """The plan with findings in the containers; unchanged if nothing changes and no container is stopped."""
    if not made.changes and not any(facts.status is Status.STOPPED for facts in scene.containers.values()):
        return made
    from scplan.workflow.foresight import with_foresight

    return with_foresight(made, scene.owned, scene.source_of, host, scene.about_start)


class Planned(NamedTuple):
    """A plan and the live state that it was made from, without containers that are `unchanged`.

    `unread` are containers whose live state is not known.
    """

    plan: Plan
    live: Live
    unchanged: frozenset[str]
    unread: frozenset[str] = frozenset()


def look_and_plan(
    scene: Scene,
    request: Request,
    state: State,
    host: Host,
    ahead: LookAhead | None = None,
    *,
    goes_on: bool = False,
) -> Planned:
    """The plan for a scene. Of many containers, the ones that `ahead` finds unchanged are not read again.

    With `goes_on`, for reports, entries and containers that can't be planned, read or located become errors among the
    plan's diagnostics, and the rest is planned.
    """
    unchanged: frozenset[str] = frozenset()
    if is_worth_sharing_out(scene.containers):
        if ahead is not None:
            unchanged = _unchanged(scene, request, host, ahead)
        else:
            with LookAhead(state, [(facts.runtime, name) for name, facts in scene.containers.items()]) as beside:
                unchanged = _unchanged(scene, request, host, beside)
    # Unchanged containers are not planned again, but stay among the containers of the plan.
    rest = scene.only(scene.containers.keys() - unchanged) if unchanged else scene
    inputs = _gather(rest, request, host, goes_on=goes_on)._replace(containers=scene.containers)
    with missing_said(scene):
        made = with_neighbours(making.make_plan, _with_foreign(inputs, state), rest, state, host)
    diagnostics = (
        *made.diagnostics,
        *scene.silent,
        *_start_warnings(made, scene, state, of_running=not goes_on),
        *module_notices(scene, made),
    )
    made = made._replace(diagnostics=diagnostics, new_modules=new_modules(scene, state, made))
    return Planned(_with_orders(made, scene, request), inputs.live, unchanged, inputs.unread)


def _with_orders(made: Plan, scene: Scene, request: Request) -> Plan:
    """The plan with the modules and probes of the files."""
    probes = scene.configuration.probes if scene.configuration is not None and not request.destroy else ()
    modules = {name: modules for name, modules in asked_modules(scene).items() if modules}
    return made._replace(modules=modules, probes=probes)


def with_neighbours(
    make: Callable[[making.Inputs, Kinds], Plan],
    inputs: making.Inputs,
    scene: Scene,
    state: State,
    host: Host,
) -> Plan:
    """The plan; planned again if resources that it would make or remove have another owner. Raises PlanError.

    Other owners are containers that share a namespace or cgroup, and the containers' runtimes.
    """
    made = make(inputs, KINDS)
    if not made.changes:
        return made
    from scplan.workflow.provided import owned_by_runtimes
    from scplan.workflow.sharing import shared_in  # a hook does without

    shared, problems = shared_in(made, scene, state, host.boot_id)
    shared |= owned_by_runtimes(made)
    if shared:
        made = make(inputs._replace(shared=shared), KINDS)
    return made._replace(diagnostics=(*made.diagnostics, *problems)) if problems else made


def _unchanged(scene: Scene, request: Request, host: Host, ahead: LookAhead) -> frozenset[str]:
    """Containers without changes: live state is as recorded, and the records equal the desired resources."""
    facts = observe.host_facts(host)
    wanted: dict[str, str] = {}
    for names in in_shares(scene.containers):
        part = scene.only(frozenset(names))
        # Kind by kind: each kind runs its own code, which then stays in the CPU's caches.
        desired = dict(sorted(part.desired.items(), key=_kind_of))
        resolution = making.resolve(desired, facts, KINDS, part.source_of)
        wanted |= making.accounts(resolution, part.containers, request.selection)
    return ahead.as_recorded({name: scene.containers[name] for name in wanted}, wanted)


def _kind_of(one: tuple[Address, Resource]) -> str:
    return one[0].kind


def _start_warnings(made: Plan, scene: Scene, state: State, *, of_running: bool) -> list[Diagnostic]:
    """start_warnings for the desired resources of stopped containers and for the plan's changes."""
    stopped = [name for name, facts in scene.containers.items() if facts.status is Status.STOPPED]
    if not stopped and not (of_running and made.changes):
        return []
    concerned = (*scene.only(stopped).desired, *(change.address for change in made.changes))
    return start_warnings(made, scene.about_start, concerned, state.directory, of_running=of_running)


def plan_alone(scene: Scene, request: Request, host: Host) -> Plan:
    """The plan for recorded resources: they were compared with other containers when they were recorded."""
    return making.make_plan(_gather(scene, request, host), KINDS)


def _with_foreign(inputs: making.Inputs, state: State) -> making.Inputs:
    """The inputs with owned resources of other containers. Raises RecordDamaged, unless `goes_on` is set."""
    try:
        return inputs._replace(foreign=foreign_to(inputs, state))
    except ScplanError as error:
        if not inputs.goes_on:
            raise
        said = (*inputs.resolution.diagnostics, *error.diagnostics)
        return inputs._replace(resolution=inputs.resolution._replace(diagnostics=said))


def _gather(scene: Scene, request: Request, host: Host, *, goes_on: bool = False) -> making.Inputs:
    """The inputs of a plan: desired resources resolved on the host, and live state read. Raises ScplanError."""
    scene.refuse_stale()
    facts = observe.host_facts(host)
    facts = facts_after_return(facts, scene.lost, host)
    resolution = _resolve(scene, facts)
    left = left_on_host(scene.lost, host)
    resolution = resolution._replace(diagnostics=(*resolution.diagnostics, *left))
    # The record of an owned resource, else the desired one, as observe.Wanted needs them.
    known = {**resolution.desired, **scene.owned}
    unread = left_out_of(scene.containers, known, request)
    read = {name: one for name, one in scene.containers.items() if name not in unread}
    wanted = wanted_of(scene.containers, known)
    try:
        resources = _observe(read, wanted, host)
    except ScplanError:
        if not goes_on:
            raise
        resources, problems = live_of(read, wanted, host)
        unread |= problems.keys()
        said = (*resolution.diagnostics, *problems.values())
        resolution = resolution._replace(diagnostics=said)
    # An owned resource that is not live may have left objects on the host, which its creation removes.
    for address in resolution.desired.keys() & scene.owned.keys() - resources.keys():
        owned, pid = scene.owned[address], scene.containers[address.container].pid
        facts = KINDS[address.kind].without_left_over(facts, host, owned, pid)
    live = Live(host=facts, containers=scene.containers, resources=resources)
    inputs = inputs_of(scene, resolution, live, request)
    return inputs._replace(unread=unread, goes_on=goes_on, staying=staying(inputs, host))


def staying(inputs: making.Inputs, host: Host) -> frozenset[Address]:
    """Resources to remove from stopped containers that are still in a namespace which other containers share."""
    stopped = {name for name, facts in inputs.containers.items() if facts.status is Status.STOPPED}
    going = [one for one in inputs.owned.keys() - inputs.resolution.desired.keys() if one.container in stopped]
    names = {address.container for address in going}
    living = {
        (address.container, KINDS[address.kind].lives_in)
        for address, owned in inputs.owned.items()
        if address.container in names and KINDS[address.kind].process_beside(host, owned)
    }
    return frozenset(one for one in going if (one.container, KINDS[one.kind].lives_in) in living)


def live_of(
    containers: Mapping[str, ContainerFacts], wanted: Mapping[str, observe.Wanted], host: Host
) -> tuple[dict[Address, Resource], dict[str, Diagnostic]]:
    """(live resources, error by name of each container that could not be read)"""
    live: dict[Address, Resource] = {}
    problems: dict[str, Diagnostic] = {}
    for name, facts in containers.items():
        if not wanted[name].by_kind:
            continue
        try:
            live.update(observe.observe({name: facts}, wanted, KINDS, host))
        except ScplanError as error:
            first = error.diagnostics[0]
            problems[name] = Diagnostic(summary=first.summary, detail=first.detail, hint=first.hint)
        except OSError as error:
            problems[name] = Diagnostic(f"container {name}: {error.filename or 'system call'}: {error.strerror}")
    return live, problems


def left_out_of(containers: Collection[str], known: Iterable[Address], request: Request) -> frozenset[str]:
    """Containers without a selected resource. They are not read: --exclude must work for an unreadable container."""
    selection = request.selection
    if selection.is_everything:
        return frozenset()
    return frozenset(containers) - {address.container for address in known if address in selection}


def _observe(
    containers: Mapping[str, ContainerFacts], wanted: Mapping[str, observe.Wanted], host: Host
) -> dict[Address, Resource]:
    """Live resources; for many containers, read by a process per CPU."""
    if not is_worth_sharing_out(containers):
        return observe.observe(containers, wanted, KINDS, host)
    from scplan.linux.network.netlink import SharedDump

    def look(share: list[str]) -> dict[Address, Resource]:
        # Each process needs its own netlink sockets: forked copies of a socket would read each other's answers.
        with Host(dump) as own:
            return observe.observe({name: containers[name] for name in share}, wanted, KINDS, own)

    names, count = list(containers), processes(containers)
    shares = [names[first::count] for first in range(count)]
    what = "read live state"
    with SharedDump() as dump:
        found = results([Child(partial(look, one), what=what, timeout_s=LOOKING_TIMEOUT_S) for one in shares])
    return {address: resource for share in found for address, resource in share.items()}


def _resolve(scene: Scene, host: HostFacts) -> making.Resolution:
    """The scene's desired resources resolved on the host, with the diagnostics of the files first."""
    resolution = making.resolve(scene.desired, host, KINDS, scene.source_of)
    return resolution._replace(diagnostics=(*scene.diagnostics, *resolution.diagnostics))


def wanted_of(
    containers: Mapping[str, ContainerFacts], resources: Mapping[Address, Resource]
) -> dict[str, observe.Wanted]:
    """The resources to read, by container."""
    wanted: dict[str, dict[str, dict[str, Resource]]] = {name: {} for name in containers}
    for address, resource in resources.items():
        wanted[address.container].setdefault(address.kind, {})[address.identity] = resource
    return {name: observe.Wanted(by_kind=by_kind) for name, by_kind in wanted.items()}


def inputs_of(scene: Scene, resolution: making.Resolution, live: Live, request: Request) -> making.Inputs:
    """The inputs of a plan, without owned resources of other containers."""
    return making.Inputs(
        containers=scene.containers,
        resolution=resolution,
        owned=scene.owned,
        live=live,
        foreign={},
        source_of=scene.source_of,
        selection=request.selection,
        new=scene.new,
    )


def foreign_to(inputs: making.Inputs, state: State) -> dict[Address, Resource]:
    """Owned resources of containers outside the plan; empty, and not read, if no desired resource claims anything."""
    desired = inputs.resolution.desired
    if not any(True for address, one in desired.items() for _ in KINDS[address.kind].claims(address, one)):
        return {}
    return state.elsewhere(inputs.containers.values())


def _plan_against_snapshot(request: Request, path: str) -> Plan:
    """The plan for the files against the live state and records of a snapshot; the kernel is not read."""
    from scplan.store import snapshot

    captured = snapshot.load(path, KINDS)
    configuration = validate(request)
    containers: dict[str, ContainerFacts] = {}
    desired: dict[str, Mapping[Address, Resource]] = {}
    missing: list[Diagnostic] = []
    written_as: dict[str, str] = {}
    for reference, config in configuration.containers.items():
        known = [ContainerName(name, facts.id) for name, facts in captured.live.containers.items()]
        matches = [one.name for one in by_name_or_id(reference, known)]
        if len(matches) != 1:
            missing.append(_not_captured(reference, len(matches), config.source, captured.live.containers))
            continue
        containers[matches[0]] = captured.live.containers[matches[0]]
        written_as[matches[0]] = reference
        if not request.destroy:
            desired[matches[0]] = named(config.resources, reference, matches[0])
    own = {address: one for address, one in captured.owned.items() if address.container in containers}
    # A snapshot has only the IDs of stale records.
    stale = tuple(
        Record(name, containers[name].runtime, recorded_id, {})
        for name, recorded_id in captured.stale.items()
        if name in containers
    )
    records = Records(own, stale=stale)
    scene = Scene(
        containers,
        desired,
        lambda _: records,
        configuration.source_of,
        (*configuration.diagnostics, *missing),
        configuration,
        written_as,
    )
    scene.refuse_stale()
    resolution = _resolve(scene, captured.live.host)
    inputs = inputs_of(scene, resolution, captured.live, request)
    foreign = {address: owned for address, owned in captured.owned.items() if address.container not in containers}
    return _with_orders(making.make_plan(inputs._replace(foreign=foreign), KINDS), scene, request)


def _not_captured(reference: str, count: int, source: SourceRange | None, known: Iterable[str]) -> Diagnostic:
    from difflib import get_close_matches

    close = get_close_matches(reference, known, 1)
    hint = f'did you mean "{close[0]}"?' if close else "capture it again: `scplan snapshot --out FILE`"
    return Diagnostic(f"the snapshot has {count} containers {reference!r}", hint=hint, source=source)


def save_plan(made: Plan, request: Request, path: str) -> None:
    """Save a plan with its configuration, from which an apply makes the plan again."""
    from scplan.store import saved_plans

    origin: dict[str, Any] = {
        "targets": list(request.targets),
        "excludes": list(request.excludes),
        "destroy": request.destroy,
        "configuration": validate(request).to_json(),
    }
    saved_plans.save(path, made, origin, _host_of(request))


def _host_of(request: Request) -> dict[str, str]:
    """Identity of the host of the plan: this host, or the host of the snapshot."""
    if request.live is not None:
        from scplan.store import snapshot

        return snapshot.load(request.live, KINDS).live.host.identity()
    with Host() as host:
        return host.identity()


def load_plan_view(path: str) -> Plan:
    """A saved plan for display, with a warning if the file was changed since it was saved."""
    from scplan.store import saved_plans

    document = saved_plans.load(path)
    viewed = saved_plans.view(document, path, KINDS)
    if saved_plans.is_as_saved(document):
        return viewed
    changed = Diagnostic(
        summary=f"{path} is not as it was saved: an apply refuses it",
        detail="it was changed since",
        severity=Severity.WARNING,
    )
    return viewed._replace(diagnostics=(*viewed.diagnostics, changed))


def schema() -> dict[str, object]:
    """The JSON Schema of the configuration."""
    from scplan.config.schema import configuration_schema

    return configuration_schema(KINDS)
