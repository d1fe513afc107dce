"""READ FIRST: what every command does, as a few named steps over the stages.

files ─▶ configuration ─▶ containers located ─▶ resolved on the host ─▶ observed ─▶ planned ─▶ applied
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from scplan import observe, plan
from scplan.errors import ContainerNotFound, Diagnostic, RecoveryNeeded, ScplanError, Severity, UsageError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.linux.namespaces import Child, results
from scplan.model.address import Address, Selection
from scplan.model.change import Plan
from scplan.model.live import ContainerFacts, Live, Status
from scplan.model.resource import Resource, as_recorded, differences
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import locate
from scplan.state import Record, State

if TYPE_CHECKING:
    from scplan.config import Configuration
    from scplan.model.report import DriftReport, Finding, OnEvent, Outcome, Owned
    from scplan.recovery import Direction


_WORTH_SHARING_OUT = 50
"""From so many containers on, reading them in several processes is quicker than starting these takes."""
_READING_TIMEOUT_S = 300.0


class Request(NamedTuple):
    """What a command is about.

    `files` empty: scplan.yaml, else scplan.d/. `targets` and `excludes` are globs. `containers` are names for destroy.
    `live` is a snapshot to plan against instead of the kernel.
    """

    state_dir: str
    files: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    destroy: bool = False
    containers: tuple[str, ...] = ()
    live: str | None = None
    lock_timeout_s: float = 30.0

    @property
    def selection(self) -> Selection:
        return Selection(self.targets, self.excludes)


def default_state_dir() -> str:
    """/var/lib/scplan for root, $XDG_STATE_HOME/scplan for others."""
    if os.geteuid() == 0:
        return "/var/lib/scplan"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "scplan")


# reading


def validate(request: Request) -> Configuration:
    """The configuration in the files; raises ConfigurationError with everything that is wrong in them."""
    from scplan.config import default_paths, load

    return load(request.files or default_paths(), KINDS)


def schema() -> dict[str, object]:
    """The JSON Schema of the configuration."""
    from scplan.config import configuration_schema

    return configuration_schema(KINDS)


class _Scene:
    """Everything that a plan needs except live state: who is meant, what is desired, what is owned.

    `desired` holds the addresses of each container by its name. Records are read when they are asked for first.
    """

    def __init__(
        self,
        containers: Mapping[str, ContainerFacts],
        desired: Mapping[str, Mapping[Address, Resource]],
        read_owned: Callable[[Mapping[str, ContainerFacts]], dict[Address, Resource]],
        source_of: plan.SourceOf = lambda _: None,
        diagnostics: tuple[Diagnostic, ...] = (),
    ) -> None:
        self.containers = containers
        self._desired = desired
        self._read_owned = read_owned
        self.source_of = source_of
        self.diagnostics = diagnostics

    @cached_property
    def desired(self) -> dict[Address, Resource]:
        return {address: one for name in self.containers for address, one in self._desired.get(name, {}).items()}

    @cached_property
    def owned(self) -> dict[Address, Resource]:
        return self._read_owned(self.containers)

    def joined_by(self, containers: Mapping[str, ContainerFacts]) -> _Scene:
        """The same with more containers, of which only the records count."""
        return _Scene(
            {**containers, **self.containers}, self._desired, self._read_owned, self.source_of, self.diagnostics
        )

    def only(self, names: Collection[str]) -> _Scene:
        """The same with some of the containers; their records are read anew."""
        containers = {name: facts for name, facts in self.containers.items() if name in names}
        return _Scene(containers, self._desired, self._read_owned, self.source_of, self.diagnostics)


def make_plan(request: Request) -> Plan:
    """The changes that the files ask for, against the kernel or a snapshot. Changes nothing."""
    if request.live is not None:
        return _plan_against_snapshot(request, request.live)
    state = State(request.state_dir, KINDS)
    with Host() as host:
        made = _plan_scene(_set_scene(request, state), request, state, host)
    return made._replace(diagnostics=(*made.diagnostics, *_open_journals(state)))


def _open_journals(state: State) -> list[Diagnostic]:
    """A warning when a crash left something half done: the plan is then about that, too."""
    if not state.has_open_journals():
        return []
    from scplan.recovery import refuse_if_needed

    try:
        refuse_if_needed(state.directory)
    except RecoveryNeeded as error:
        return [one._replace(severity=Severity.WARNING) for one in error.diagnostics]
    return []


def _set_scene(request: Request, state: State) -> _Scene:
    if request.containers:
        return _scene_of_records(request, state)
    return _scene_of_configuration(validate(request), request, state)


def _scene_of_configuration(configuration: Configuration, request: Request, state: State) -> _Scene:
    """Locates the containers of the files. Addresses carry the name that the runtime gives a container."""
    containers: dict[str, ContainerFacts] = {}
    desired: dict[str, Mapping[Address, Resource]] = {}
    written_as: dict[str, str] = {}
    for reference, config in configuration.containers.items():
        facts = locate(reference, config.runtime, RUNTIMES, pid=config.pid, pid_file=config.pid_file)
        if facts.name in containers:
            raise ContainerNotFound(f"{written_as[facts.name]!r} and {reference!r} are the same container {facts.name}")
        containers[facts.name] = facts
        written_as[facts.name] = reference
        if not request.destroy:
            desired[facts.name] = _named(config.resources, reference, facts.name)

    def source_of(address: Address) -> Any:
        reference = written_as.get(address.container, address.container)
        return configuration.source_of(address._replace(container=reference))

    return _Scene(containers, desired, partial(_owned, state), source_of, configuration.diagnostics)


def _named(resources: Mapping[Address, Resource], reference: str, name: str) -> Mapping[Address, Resource]:
    if reference == name:
        return resources
    return {address._replace(container=name): resource for address, resource in resources.items()}


def _scene_of_records(request: Request, state: State) -> _Scene:
    """The containers that `destroy` names, as their records know them."""
    containers = {}
    for reference in request.containers:
        facts = _locate_recorded(_record_of(reference, state))
        containers[facts.name] = facts
    return _Scene(containers, {}, partial(_owned, state))


def _record_of(reference: str, state: State) -> Record:
    """The record of a container by its name, or the beginning of it."""
    names = state.names()
    found = [pair for pair in names if pair[1] == reference] or [
        pair for pair in names if pair[1].startswith(reference)
    ]
    if len(found) > 1:
        listed = ", ".join(f"{name} ({runtime})" for runtime, name in found)
        raise ContainerNotFound(f"{reference!r} can mean {len(found)} containers with records: {listed}")
    record = state.read(*found[0]) if found else None
    if record is None:
        raise ContainerNotFound(
            f"scplan owns nothing in a container {reference!r}", hint="`scplan state list` shows what it owns"
        )
    return record


def _locate_recorded(record: Record) -> ContainerFacts:
    found = RUNTIMES[record.runtime].find_recorded(record.name, record.id) if record.runtime in RUNTIMES else []
    for facts in found:
        if facts.name == record.name:
            return facts
    raise ContainerNotFound(
        f"container {record.name} is gone from {record.runtime}",
        hint=f"what was plugged into it went with it; `scplan state rm {record.name}` forgets it",
    )


def _owned(state: State, containers: Mapping[str, ContainerFacts]) -> dict[Address, Resource]:
    owned: dict[Address, Resource] = {}
    for facts in containers.values():
        record = state.read(facts.runtime, facts.name)
        if record is not None:
            owned.update(record.resources)
    return owned


# planning


def _plan_scene(scene: _Scene, request: Request, state: State, host: Host) -> Plan:
    shared_out = len(scene.containers) >= _WORTH_SHARING_OUT and (os.cpu_count() or 1) > 1
    unchanged, found = _look_shared_out(scene, request) if shared_out else (frozenset(), None)
    rest = scene.only(scene.containers.keys() - unchanged) if unchanged else scene
    inputs = _gather(rest, request, host, found)._replace(containers=scene.containers)
    return plan.make_plan(inputs._replace(foreign=_foreign(inputs, state)), KINDS)


def _gather(
    scene: _Scene, request: Request, host: Host, found: Mapping[Address, Resource] | None = None
) -> plan.Inputs:
    """Resolves on the host and reads live state, unless `found` holds that already."""
    facts = observe.host_facts(host, _paths(scene.desired) | _paths(scene.owned))
    resolution = plan.resolve(scene.desired, facts, KINDS, scene.source_of)
    resolution = resolution._replace(diagnostics=(*scene.diagnostics, *resolution.diagnostics))
    if found is None:
        wanted = _wanted(scene.containers, {**resolution.desired, **scene.owned})
        found = observe.observe(scene.containers, wanted, KINDS, host)
    live = Live(host=facts, containers=scene.containers, resources=found)
    return _inputs(scene, resolution, live, request)


def _look_shared_out(scene: _Scene, request: Request) -> tuple[frozenset[str], dict[Address, Resource]]:
    """(containers without changes, live resources of the others), read by a process for each CPU."""

    def look(share: _Scene) -> tuple[frozenset[str], dict[Address, Resource]]:
        # A process of its own needs sockets of its own.
        with Host() as host:
            inputs = _gather(share, request, host)
        unchanged = plan.unchanged_containers(inputs, KINDS)
        live = inputs.live.resources
        return unchanged, {address: one for address, one in live.items() if address.container not in unchanged}

    names, count = list(scene.containers), os.cpu_count() or 1
    shares = [scene.only(frozenset(names[first::count])) for first in range(count)]
    children = [Child(partial(look, share), what="read live state", timeout_s=_READING_TIMEOUT_S) for share in shares]
    answers = results(children)
    unchanged = frozenset[str]().union(*(answer for answer, _ in answers))
    return unchanged, {address: one for _, changing in answers for address, one in changing.items()}


def _paths(resources: Mapping[Address, Resource]) -> set[str]:
    return {path for address, resource in resources.items() for path in KINDS[address.kind].host_paths(resource)}


def _wanted(
    containers: Mapping[str, ContainerFacts], resources: Mapping[Address, Resource]
) -> dict[str, observe.Wanted]:
    wanted: dict[str, dict[str, dict[str, Resource]]] = {name: {} for name in containers}
    for address, resource in resources.items():
        wanted[address.container].setdefault(address.kind, {})[address.identity] = resource
    return {name: observe.Wanted(by_kind=by_kind) for name, by_kind in wanted.items()}


def _inputs(scene: _Scene, resolution: plan.Resolution, live: Live, request: Request) -> plan.Inputs:
    return plan.Inputs(
        containers=scene.containers,
        resolution=resolution,
        owned=scene.owned,
        live=live,
        foreign={},
        source_of=scene.source_of,
        selection=request.selection,
    )


def _foreign(inputs: plan.Inputs, state: State) -> dict[Address, Resource]:
    """What scplan owns in containers that the plan is not about; not read when nothing could collide with it."""
    desired = inputs.resolution.desired
    if not any(True for address, one in desired.items() for _ in KINDS[address.kind].claims(address, one)):
        return {}
    own = {(facts.runtime, facts.name) for facts in inputs.containers.values()}
    foreign: dict[Address, Resource] = {}
    for runtime, name in state.names():
        record = state.read(runtime, name) if (runtime, name) not in own else None
        if record is not None:
            foreign.update(record.resources)
    return foreign


def _plan_against_snapshot(request: Request, path: str) -> Plan:
    from scplan import snapshot

    captured = snapshot.load(path, KINDS)
    configuration = validate(request)
    containers: dict[str, ContainerFacts] = {}
    desired: dict[str, Mapping[Address, Resource]] = {}
    for reference, config in configuration.containers.items():
        matches = [name for name in captured.live.containers if name == reference] or [
            name for name in captured.live.containers if name.startswith(reference)
        ]
        if len(matches) != 1:
            raise ContainerNotFound(f"the snapshot has {len(matches)} containers {reference!r}")
        containers[matches[0]] = captured.live.containers[matches[0]]
        if not request.destroy:
            desired[matches[0]] = _named(config.resources, reference, matches[0])
    own = {address: one for address, one in captured.owned.items() if address.container in containers}
    scene = _Scene(containers, desired, lambda _: own, configuration.source_of, configuration.diagnostics)
    resolution = plan.resolve(scene.desired, captured.live.host, KINDS, scene.source_of)
    resolution = resolution._replace(diagnostics=(*scene.diagnostics, *resolution.diagnostics))
    inputs = _inputs(scene, resolution, captured.live, request)
    foreign = {address: owned for address, owned in captured.owned.items() if address.container not in containers}
    return plan.make_plan(inputs._replace(foreign=foreign), KINDS)


def save_plan(made: Plan, request: Request, path: str) -> None:
    """Saves a plan with the configuration that it can be made again from."""
    from scplan import planfile

    origin: dict[str, Any] = {
        "targets": list(request.targets),
        "excludes": list(request.excludes),
        "destroy": request.destroy,
        "configuration": validate(request).to_json(),
    }
    planfile.save(path, made, origin)


# applying


class Run:
    """A plan with the locks that it needs, ready to be executed once."""

    def __init__(self, made: Plan, scene: _Scene, state: State, host: Host) -> None:
        self.plan = made
        self._scene = scene
        self._state = state
        self._host = host

    def execute(self, on_event: OnEvent) -> Outcome:
        """Makes the changes. Raises ApplyFailed (all undone) or RollbackIncomplete (the journal is kept)."""
        from scplan.apply import apply
        from scplan.execute import Executor
        from scplan.journal import Begin, Journal
        from scplan.model.report import Outcome

        begun = time.monotonic()
        apply_id = _new_apply_id()
        if self.plan.operations or self.plan.refreshed:
            names = {address.container for address in self.plan.refreshed}
            names |= {operation.address.container for operation in self.plan.operations}
            touched = {name: facts for name, facts in self._scene.containers.items() if name in names}
            begin = Begin(apply_id=apply_id, boot_id=self._host.boot_id, user=_user(), containers=touched)
            with ExitStack() as stack:
                opened = stack.enter_context(observe.OpenContainers(touched, self._host))
                owned = {**self._scene.owned, **self.plan.refreshed}
                executor = Executor(host=self._host, containers=opened, kinds=KINDS, owned=owned)
                journal = stack.enter_context(Journal(self._state.directory, begin, self.plan.refreshed))
                apply(
                    self.plan.operations,
                    executor,
                    journal,
                    lambda owned: self._state.prepare(_new_records(touched, owned)),
                    on_event,
                )
        return Outcome(apply_id=apply_id, summary=self.plan.summary(), seconds=time.monotonic() - begun)


@contextmanager
def open_apply(request: Request) -> Iterator[Run]:
    """Takes the locks, then plans: what is planned can't be changed by another scplan until the block ends."""
    state = State(request.state_dir, KINDS)
    with Host() as host, _locked_scene(_set_scene(request, state), request, state) as scene:
        yield Run(_plan_scene(scene, request, state, host), scene, state, host)


@contextmanager
def open_saved(path: str, request: Request) -> Iterator[Run]:
    """The same for a saved plan. Raises StalePlan when planning again gives other changes."""
    from scplan import planfile
    from scplan.config import configuration_from_json

    document = planfile.load(path)
    origin = document["origin"]
    request = request._replace(
        targets=tuple(map(str, origin.get("targets", ()))),
        excludes=tuple(map(str, origin.get("excludes", ()))),
        destroy=bool(origin.get("destroy")),
    )
    configuration = configuration_from_json(origin.get("configuration"), KINDS)
    state = State(request.state_dir, KINDS)
    scene = _scene_of_configuration(configuration, request, state)
    with Host() as host, _locked_scene(scene, request, state) as locked:
        made = _plan_scene(locked, request, state, host)
        planfile.check_unchanged(path, document, made)
        yield Run(made, locked, state, host)


def load_plan_view(path: str) -> Plan:
    """A saved plan, to be looked at."""
    from scplan import planfile

    return planfile.view(planfile.load(path), path, KINDS)


@contextmanager
def _locked_scene(scene: _Scene, request: Request, state: State) -> Iterator[_Scene]:
    """Locks the scene's containers, and the host when NICs are concerned; then reads the records again."""
    kinds = {address.kind for address in (*scene.desired, *scene.owned)}
    of_host = any(KINDS[kind].of_host for kind in kinds)
    with state.locked(list(scene.containers.values()), host=of_host, timeout_s=request.lock_timeout_s):
        if state.has_open_journals():
            from scplan.recovery import refuse_if_needed

            refuse_if_needed(state.directory)
        yield scene.only(scene.containers.keys())


def _new_records(touched: Mapping[str, ContainerFacts], owned: Mapping[Address, Resource]) -> list[Record]:
    by_container: dict[str, dict[Address, Resource]] = {name: {} for name in touched}
    for address, resource in owned.items():
        if address.container in by_container:
            by_container[address.container][address] = resource
    return [
        Record(name=name, runtime=facts.runtime, id=facts.id, resources=by_container[name])
        for name, facts in touched.items()
    ]


def _new_apply_id() -> str:
    """Sorts by time; unique on the host."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.{time.time_ns() % 10**9:09d}-{os.getpid()}"


def _user() -> str:
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.getuid())


def recover(request: Request, direction: Direction, on_event: OnEvent) -> list[str]:
    """Undoes, or finishes, what a crash left half done; returns a line about each apply."""
    from scplan import recovery

    with Host() as host:
        state = State(request.state_dir, KINDS)
        return recovery.recover(state, KINDS, host, direction, request.lock_timeout_s, on_event)


# reporting


def drift(request: Request) -> DriftReport:
    """How the owned state differs from live, and apart from it what the files ask for and was never applied."""
    from scplan.model.report import Drifted, DriftReport

    state = State(request.state_dir, KINDS)
    with Host() as host:
        if request.files or _has_default_files():
            scene = _set_scene(request, state)
            made = _plan_scene(scene, request, state, host)
        else:
            scene = _scene_of_all_records(state)
            made = Plan(containers=scene.containers, changes=(), operations=(), refreshed={})
        live, problems = _read_owned(scene, host)
    drifted = []
    for address, recorded in scene.owned.items():
        there = live.get(address)
        if there is None and address.container in problems:
            continue
        changed = () if there is None else differences(recorded, there)
        if there is None or changed:
            drifted.append(Drifted(address=address, changed=changed, recorded=recorded, live=there))
    known = {one.address for one in drifted}
    pending = tuple(change for change in made.changes if change.address not in known or change.managed != change.owned)
    return DriftReport(
        containers=scene.containers,
        checked=len(scene.owned),
        drifted=tuple(drifted),
        pending=made._replace(changes=pending, operations=()),
        diagnostics=(*made.diagnostics, *problems.values()),
    )


def _has_default_files() -> bool:
    return os.path.exists("scplan.yaml") or os.path.isdir("scplan.d")


def _scene_of_all_records(state: State) -> _Scene:
    containers = {}
    for record in state.all():
        try:
            containers[record.name] = _locate_recorded(record)
        except ContainerNotFound:
            containers[record.name] = _gone(record)
    return _Scene(containers, {}, partial(_owned, state))


def _gone(record: Record) -> ContainerFacts:
    return ContainerFacts(name=record.name, runtime=record.runtime, id=record.id, status=Status.STOPPED)


def _read_owned(scene: _Scene, host: Host) -> tuple[dict[Address, Resource], dict[str, Diagnostic]]:
    """Live values of what is owned, and by container why they could not be read."""
    wanted = _wanted(scene.containers, scene.owned)
    live: dict[Address, Resource] = {}
    problems: dict[str, Diagnostic] = {}
    for name, facts in scene.containers.items():
        if not wanted[name].by_kind:
            continue
        try:
            live.update(observe.observe({name: facts}, wanted, KINDS, host))
        except ScplanError as error:
            first = error.diagnostics[0]
            problems[name] = Diagnostic(summary=first.summary, hint=first.hint, severity=Severity.WARNING)
    return live, problems


def show_owned(request: Request) -> list[Owned]:
    """What scplan owns, with its live values."""
    from scplan.model.report import Owned

    state = State(request.state_dir, KINDS)
    scene = _scene_of_all_records(state)
    with Host() as host:
        live, problems = _read_owned(scene, host)
    return [
        Owned(
            address=address,
            runtime=scene.containers[address.container].runtime,
            container_id=scene.containers[address.container].id,
            recorded=recorded,
            live=as_recorded(live[address], recorded) if address in live else None,
            problem=problems[address.container].summary if address.container in problems else "",
        )
        for address, recorded in scene.owned.items()
    ]


def snapshot(request: Request) -> str:
    """Live state and records of the containers in the files and the records, as JSON; nothing live of stopped ones."""
    from scplan import snapshot as snapshots

    state = State(request.state_dir, KINDS)
    scene = _scene_of_all_records(state)
    if request.files or _has_default_files():
        scene = _scene_of_configuration(validate(request), request, state).joined_by(scene.containers)
    running = scene.only({name for name, facts in scene.containers.items() if facts.status is not Status.STOPPED})
    with Host() as host:
        facts = observe.host_facts(host, _paths(scene.desired) | _paths(scene.owned) | set(host.disks()))
        resolution = plan.resolve(running.desired, facts, KINDS, scene.source_of)
        everything = {name: observe.Wanted(by_kind=None) for name in running.containers}
        wanted = _wanted(running.containers, {**resolution.desired, **running.owned})
        resources = observe.observe(running.containers, everything, KINDS, host)
        resources |= observe.observe(running.containers, wanted, KINDS, host)
        live = Live(host=facts, containers=scene.containers, resources=resources)
        return snapshots.encode(snapshots.Snapshot(live=live, owned=scene.owned))


# records


def state_list(request: Request) -> list[Owned]:
    """Everything in the records, without looking at the kernel."""
    return [
        _owned_of(record, address) for record in State(request.state_dir, KINDS).all() for address in record.resources
    ]


def state_show(request: Request, address: Address) -> Owned:
    """One resource of the records, with its live value."""
    for owned in show_owned(request):
        if owned.address == address:
            return owned
    raise UsageError(f"{address} is not in the records", hint="`scplan state list` shows what is")


def state_rm(request: Request, glob: str) -> None:
    """Forgets a resource, or all that a glob matches (a container's name: all of it); nothing in the kernel changes."""
    from scplan.recovery import refuse_if_needed

    state = State(request.state_dir, KINDS)
    chosen = Selection((glob,))
    found = False
    for record in list(state.all()):
        if not any(owned in chosen for owned in record.resources):
            continue
        found = True
        with state.locked([_gone(record)], host=False, timeout_s=request.lock_timeout_s):
            refuse_if_needed(state.directory)
            now = state.read(record.runtime, record.name)
            resources = now.resources if now else {}
            kept = {owned: resource for owned, resource in resources.items() if owned not in chosen}
            state.prepare([record._replace(resources=kept)]).commit()
    if not found:
        raise UsageError(f"{glob} matches nothing in the records", hint="`scplan state list` shows what is there")


def _owned_of(record: Record, address: Address) -> Owned:
    from scplan.model.report import Owned

    return Owned(
        address=address,
        runtime=record.runtime,
        container_id=record.id,
        recorded=record.resources[address],
        live=None,
    )


def doctor() -> list[Finding]:
    """What this host supports."""
    from scplan.doctor import examine

    with Host() as host:
        return examine(host, tuple(RUNTIMES))
