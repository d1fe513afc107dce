"""From a scene to a plan: resolved on the host, read from the kernel or a snapshot, compared; and plans in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from scplan import observe, plan
from scplan.errors import ContainerNotFound, Diagnostic, ScplanError
from scplan.kinds import KINDS
from scplan.kinds.kind import Claim
from scplan.linux.host import Host
from scplan.linux.namespaces import Child, results
from scplan.linux.netlink import Link
from scplan.model.address import Address
from scplan.model.change import Plan
from scplan.model.live import ContainerFacts, HostFacts, Live, Status
from scplan.model.resource import Resource
from scplan.named_tuple import NamedTuple
from scplan.state import Record, State
from scplan.workflow.confirming import notices
from scplan.workflow.lifecycle import facts_after_return, left_on_host, start_warnings
from scplan.workflow.modules import missing_said
from scplan.workflow.modules import notices as module_notices
from scplan.workflow.scene import (
    Records,
    Request,
    Scene,
    named,
    read_outline,
    scene_of_configuration,
    set_scene,
    validate,
)
from scplan.workflow.settled import settled

if TYPE_CHECKING:
    from scplan.config import Outline

_WORTH_SHARING_OUT = 50
"""From so many containers on, reading them in several processes is quicker than starting these takes."""
_AT_A_TIME = 20
"""Containers that a process compares together: few, so that it uses the same memory again and again."""
_READING_TIMEOUT_S = 300.0


def make_plan(request: Request) -> Plan:
    """The changes that the files ask for, against the kernel or a snapshot. Changes nothing."""
    if request.live is not None:
        return _plan_against_snapshot(request, request.live)
    state = State(request.state_dir, KINDS)
    made = settled(state, lambda: _plan_now(request, state))
    return made._replace(diagnostics=(*made.diagnostics, *notices(state)))


def _plan_now(request: Request, state: State) -> Plan:
    with Host() as host:
        if request.containers:
            return plan_scene(set_scene(request, state), request, state, host)
        with _links_read_ahead(state, host) as want_links:
            outline = read_outline(request)
            if _is_worth_sharing_out(outline.configuration.containers):
                want_links()
            else:
                outline.checked()
            try:
                scene = scene_of_configuration(outline.configuration, request, state)
            except ScplanError:
                # What is wrong in the files comes first.
                outline.checked()
                raise
        return plan_scene(scene, request, state, host, outline)


@contextmanager
def _links_read_ahead(state: State, host: Host) -> Iterator[Callable[[], None]]:
    """Meanwhile another process reads the host's links, of which there are thousands when many containers have NICs.

    They are waited for, at the end, when the function that this yields was called: few containers need few of them.
    """
    wanted = False

    def want() -> None:
        nonlocal wanted
        wanted = True

    if len(state.names()) < _WORTH_SHARING_OUT or _cpus() == 1:
        yield want
        return
    child = Child(partial(_read_links, host), what="read the host's links", timeout_s=_READING_TIMEOUT_S)
    try:
        yield want
    except BaseException:
        wanted = False
        raise
    finally:
        if wanted:
            host.know_links(child.result())
        else:
            child.abandon()


def _read_links(host: Host) -> dict[int, Link]:
    return dict(host.links())


def _cpus() -> int:
    return os.cpu_count() or 1


def _is_worth_sharing_out(containers: Collection[str]) -> bool:
    return len(containers) >= _WORTH_SHARING_OUT and _cpus() > 1


def plan_scene(scene: Scene, request: Request, state: State, host: Host, outline: Outline | None = None) -> Plan:
    """The plan for a scene. With an outline its files are not checked yet; raises ConfigurationError as `checked`."""
    unchanged: frozenset[str] = frozenset()
    found: Mapping[Address, Resource] | None = None
    if _is_worth_sharing_out(scene.containers):
        unchanged, found = _look_shared_out(scene, request, host, outline)
    rest = scene.only(scene.containers.keys() - unchanged) if unchanged else scene
    inputs = _gather(rest, request, host, found)._replace(containers=scene.containers)
    with missing_said(scene):
        made = plan.make_plan(inputs._replace(foreign=foreign_to(inputs, state)), KINDS)
    return made._replace(diagnostics=(*made.diagnostics, *_start_warnings(made, scene), *module_notices(scene, made)))


def _start_warnings(made: Plan, scene: Scene) -> list[Diagnostic]:
    stopped = [name for name, facts in scene.containers.items() if facts.status is Status.STOPPED]
    if not stopped:
        return []
    return start_warnings(made, (*scene.only(stopped).desired, *(change.address for change in made.changes)))


def plan_alone(scene: Scene, request: Request, host: Host) -> Plan:
    """The same for what is in the records already: it was compared with those of all other containers then."""
    return plan.make_plan(_gather(scene, request, host), KINDS)


def _gather(scene: Scene, request: Request, host: Host, found: Mapping[Address, Resource] | None = None) -> plan.Inputs:
    """Resolves on the host and reads live state, unless `found` holds that already."""
    scene.refuse_stale()
    facts = observe.host_facts(host, paths_of(scene.desired) | paths_of(scene.owned))
    facts = facts_after_return(facts, scene.lost, host)
    resolution = _resolve(scene, facts)
    left = left_on_host(scene.lost, host)
    resolution = resolution._replace(diagnostics=(*resolution.diagnostics, *left))
    if found is None:
        wanted = wanted_of(scene.containers, {**resolution.desired, **scene.owned})
        found = observe.observe(scene.containers, wanted, KINDS, host)
    live = Live(host=facts, containers=scene.containers, resources=found)
    return inputs_of(scene, resolution, live, request)


def _resolve(scene: Scene, host: HostFacts) -> plan.Resolution:
    """What the host makes of the scene, with the warnings about its files in front."""
    resolution = plan.resolve(scene.desired, host, KINDS, scene.source_of)
    return resolution._replace(diagnostics=(*scene.diagnostics, *resolution.diagnostics))


class _Seen(NamedTuple):
    """What one process found in its share of the containers."""

    claims: list[Claim]
    unchanged: frozenset[str]
    changing: dict[Address, Resource]


def _look_shared_out(
    scene: Scene, request: Request, host: Host, outline: Outline | None
) -> tuple[frozenset[str], dict[Address, Resource]]:
    """(containers without changes, live resources of the others), read by a process for each CPU."""
    links = _read_links(host)

    def look(share: list[str]) -> _Seen:
        claims = outline.part(scene.written_as[name] for name in share) if outline else []
        unchanged, changing = frozenset[str](), dict[Address, Resource]()
        # A process of its own needs sockets of its own.
        with Host() as own:
            own.know_links(links)
            for first in range(0, len(share), _AT_A_TIME):
                same, live = _look_at(scene.only(frozenset(share[first : first + _AT_A_TIME])), request, own)
                unchanged |= same
                changing.update(live)
        return _Seen(claims, unchanged, changing)

    names, count = list(scene.containers), _cpus()
    shares = [names[first::count] for first in range(count)]
    children = [Child(partial(look, share), what="read live state", timeout_s=_READING_TIMEOUT_S) for share in shares]
    try:
        seen = results(children)
    except (ScplanError, OSError):
        # What is wrong in the files comes first.
        if outline is not None:
            outline.checked()
        raise
    if outline is not None and _collide(claim for one in seen for claim in one.claims):
        outline.checked()
    unchanged = frozenset[str]().union(*(one.unchanged for one in seen))
    return unchanged, {address: one for share in seen for address, one in share.changing.items()}


def _collide(claims: Iterable[Claim]) -> bool:
    from scplan.config import collide

    return collide(claims)


def _look_at(scene: Scene, request: Request, host: Host) -> tuple[frozenset[str], dict[Address, Resource]]:
    """(containers without changes, live resources of the others)"""
    inputs = _gather(scene, request, host)
    unchanged = plan.unchanged_containers(inputs, KINDS) - {address.container for address in scene.lost}
    live = inputs.live.resources
    return unchanged, {address: one for address, one in live.items() if address.container not in unchanged}


def paths_of(resources: Mapping[Address, Resource]) -> set[str]:
    return {path for address, resource in resources.items() for path in KINDS[address.kind].host_paths(resource)}


def wanted_of(
    containers: Mapping[str, ContainerFacts], resources: Mapping[Address, Resource]
) -> dict[str, observe.Wanted]:
    wanted: dict[str, dict[str, dict[str, Resource]]] = {name: {} for name in containers}
    for address, resource in resources.items():
        wanted[address.container].setdefault(address.kind, {})[address.identity] = resource
    return {name: observe.Wanted(by_kind=by_kind) for name, by_kind in wanted.items()}


def inputs_of(scene: Scene, resolution: plan.Resolution, live: Live, request: Request) -> plan.Inputs:
    return plan.Inputs(
        containers=scene.containers,
        resolution=resolution,
        owned=scene.owned,
        live=live,
        foreign={},
        source_of=scene.source_of,
        selection=request.selection,
    )


def foreign_to(inputs: plan.Inputs, state: State) -> dict[Address, Resource]:
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
            desired[matches[0]] = named(config.resources, reference, matches[0])
    own = {address: one for address, one in captured.owned.items() if address.container in containers}
    stale = tuple(
        Record(name, containers[name].runtime, recorded_id, {})
        for name, recorded_id in captured.stale.items()
        if name in containers
    )
    records = Records(own, stale=stale)
    scene = Scene(containers, desired, lambda _: records, configuration.source_of, configuration.diagnostics)
    scene.refuse_stale()
    resolution = _resolve(scene, captured.live.host)
    inputs = inputs_of(scene, resolution, captured.live, request)
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
    planfile.save(path, made, origin, _host_of(request))


def _host_of(request: Request) -> dict[str, str]:
    """Whose plan it is: this host's, or that of the snapshot it was made against."""
    if request.live is not None:
        from scplan import snapshot

        return snapshot.load(request.live, KINDS).live.host.identity()
    with Host() as host:
        return host.identity()


def load_plan_view(path: str) -> Plan:
    """A saved plan, to be looked at."""
    from scplan import planfile

    return planfile.view(planfile.load(path), path, KINDS)


def schema() -> dict[str, object]:
    """The JSON Schema of the configuration."""
    from scplan.config import configuration_schema

    return configuration_schema(KINDS)
