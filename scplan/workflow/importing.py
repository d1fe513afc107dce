"""Import: the live resources of a container as a configuration that a plan only adopts, and reasons for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scplan.errors import PlanError, ScplanError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Action, Plan
from scplan.model.live import ContainerFacts, Naming, Status
from scplan.model.resource import CONFIGURABLE, Resource, brought_by
from scplan.observe import open_container
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import AUTO, locate
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import Record, State
from scplan.workflow.applying import Run, run_under_locks
from scplan.workflow.confirming import undo_overdue
from scplan.workflow.planning import plan_scene
from scplan.workflow.scene import Request, Scene, scene_of_configuration

if TYPE_CHECKING:
    from scplan.kinds.kind import Kind
    from scplan.model.report import Imported

_DIFFERS = "a plan would not leave it as it is"
_OF_COMPOSE = ("com.docker.compose.project=", "io.podman.compose.project=")
"""Labels of containers that compose removes and makes again, under their names, whenever their service changes."""


class Meant(NamedTuple):
    """The container to import: its name or the beginning of its ID; `pid` or `pid_file` for the runtime "process"."""

    reference: str
    runtime: str = AUTO
    pid: int | None = None
    pid_file: str | None = None


def import_container(meant: Meant, request: Request) -> Imported:
    """The container as a configuration. Raises ScplanError if the container is stopped or can't be read."""
    from scplan.model.report import Imported

    facts = locate(meant.reference, meant.runtime, RUNTIMES, pid=meant.pid, pid_file=meant.pid_file)
    if facts.status is Status.STOPPED:
        raise ScplanError(
            f"container {facts.name} is not running",
            hint=f"start it with {facts.runtime}: what it has is gone while it does not run",
        )
    state = State(request.state_dir, KINDS)
    with Host() as host:
        found, left_out = _described(facts, host)
        left_out += _take_out_provided(found, facts)
        found = _with_owned(found, facts, state)
        # Each refused entry is left out; plan again, since the rest may depend on it.
        while True:
            document = _document(meant, facts, found, state)
            refused = _refused(document, found, request, state, host)
            if not refused:
                sections = tuple(kind.section for kind in KINDS.values())
                return Imported(facts, document, tuple(left_out), sections)
            for address, why in refused.items():
                del found[address]
                left_out.append((KINDS[address.kind].section, address.identity, why))


@contextmanager
def open_adoption(imported: Imported, request: Request) -> Iterator[Run]:
    """The plan that adopts the imported resources, under its locks. Raises ScplanError if it would change anything."""
    from scplan.config import configuration_from_json

    state = State(request.state_dir, KINDS)
    with Host() as host:
        undo_overdue(state, host, request.lock_timeout_s)
        scene = scene_of_configuration(configuration_from_json(imported.document, KINDS), request, state)

        def make(locked: Scene) -> Run:
            made = plan_scene(locked, request, state, host)
            others = [str(change.address) for change in made.changes if change.action is not Action.ADOPT]
            if others:
                raise ScplanError(
                    f"to adopt container {imported.facts.name} would change {', '.join(others)}",
                    detail="they are in scplan's records, and not as these say",
                    hint="`scplan drift` shows how; apply your files, or forget them with `scplan state rm`",
                )
            return Run(made, locked, state, host, request)

        with run_under_locks(scene, request, state, host, make) as run:
            yield run


def _described(facts: ContainerFacts, host: Host) -> tuple[dict[Address, Resource], list[tuple[str, str, str]]]:
    """(resources by address, (section, identity or place, reason) of each that is left out)"""
    found: dict[Address, Resource] = {}
    left_out: list[tuple[str, str, str]] = []
    with open_container(facts, host) as container:
        for kind in KINDS.values():
            described = kind.describe(container, host)
            left_out += ((kind.section, what, why) for what, why in described.left_out)
            for identity, resource in described.resources.items():
                try:
                    found[Address(facts.name, kind.name, identity)] = _compact(kind, resource)
                except ValueError as error:
                    left_out.append((kind.section, identity, str(error)))
    return found, left_out


def _take_out_provided(found: dict[Address, Resource], facts: ContainerFacts) -> list[tuple[str, str, str]]:
    """Remove the resources of the container's runtime from `found`; returns (section, identity, reason) of each."""
    provided = RUNTIMES[facts.runtime].provided(facts)
    left_out = []
    for kind in KINDS.values():
        for address in [address for address in found if address.kind == kind.name]:
            origin = kind.came_with(kind.normalise(found[address]), provided)
            if origin:
                left_out.append((kind.section, address.identity, f"{origin}, which each start makes"))
                provided = kind.with_found(provided, found.pop(address), origin)
    return left_out


def _compact(kind: Kind[Any], resource: Resource) -> Resource:
    """The entry without attributes that would be derived anyway. Raises ValueError if the resource can't be written."""
    values = {one.name: getattr(resource, one.name) for one in resource.attributes() if one.role in CONFIGURABLE}
    if not all(text.isprintable() for text in _texts(values.values())):
        raise ValueError("it has a name that is no text, or holds control characters")
    entry = type(resource)(**values)
    meaning = kind.normalise(entry)
    # An attribute is left out if the entry means the same with its default.
    for name in values:
        default = entry.layout.defaults.get(name)
        if name in entry.layout.defaults and values[name] != default:
            shorter = entry.replace(**{name: default})
            try:
                entry = shorter if kind.normalise(shorter) == meaning else entry
            except ValueError:
                continue  # the entry is invalid without this attribute
    return entry


def _texts(values: Iterable[object]) -> Iterator[str]:
    """All strings in the values, nested tuples included."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple):
            yield from _texts(value)


def _with_owned(found: dict[Address, Resource], facts: ContainerFacts, state: State) -> dict[Address, Resource]:
    """`found` with owned resources as recorded, sorted by kind: a file without them would have them removed."""
    record = state.read(facts.runtime, facts.name)
    for address, owned in record.resources.items() if record else ():
        kind = KINDS[address.kind]
        again = kind.wanted_again(owned)
        if again is not None:
            found[address] = _compact(kind, again)
        elif brought_by(owned) is not None:
            # Derived from another entry, such as a partition from its disk.
            found.pop(address, None)
    order = list(KINDS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0].kind)))


def _document(meant: Meant, facts: ContainerFacts, found: Mapping[Address, Resource], state: State) -> dict[str, Any]:
    """The configuration with one container, without attributes that have their default."""
    from scplan.config import add_entry
    from scplan.model.codec import to_entry

    container: dict[str, Any] = {"runtime": facts.runtime}
    if meant.pid is not None:
        container["pid"] = meant.pid
    if meant.pid_file is not None:
        container["pid_file"] = meant.pid_file
    record = state.read(facts.runtime, facts.name)
    naming = _naming(facts, record)
    keys = {"identity": naming.by, "image": naming.image, "label": naming.label}
    container |= {key: value for key, value in keys.items() if value}
    if record is not None and record.modules:
        container["modules"] = list(record.modules)
    for address, resource in found.items():
        kind = KINDS[address.kind]
        entry, defaults = to_entry(resource), resource.layout.defaults
        written = {name: value for name, value in entry.items() if name not in defaults or value != defaults[name]}
        add_entry(container, kind, written)
    return {"version": 1, "containers": {facts.name: container}}


def _naming(facts: ContainerFacts, record: Record | None) -> Naming:
    """The recorded identity of the container; else "name" if its engine or compose re-creates it under the name.

    An image is given only if the record has another glob than the one for the container's own image.
    """
    if record is not None and record.naming is not None and record.naming.by:
        # The naming that a record gets if the files give no image.
        own = facts._replace(naming=Naming("name")).recorded_naming
        return record.naming._replace(image="") if record.naming == own else record.naming
    if not RUNTIMES[facts.runtime].has_own_ids:
        return Naming()
    label = next((one for one in facts.labels or () if one.startswith(_OF_COMPOSE)), "")
    # An image without a name does not distinguish containers.
    return Naming("name", label=label) if label or (facts.is_temporary and facts.image) else Naming()


def _refused(
    document: dict[str, Any], found: Mapping[Address, Resource], request: Request, state: State, host: Host
) -> dict[Address, str]:
    """Reasons, by address, why entries that scplan does not own can't be adopted. Raises PlanError for other errors."""
    from scplan.config import configuration_from_json

    scene = scene_of_configuration(configuration_from_json(document, KINDS), request, state)
    try:
        made: Plan = plan_scene(scene, request, state, host)
    except PlanError as error:
        # Diagnostics of a plan have the address in `detail`.
        by_address = {str(address): address for address in found if address not in scene.owned}
        refused = {by_address[one.detail]: one.summary for one in error.diagnostics if one.detail in by_address}
        if not refused:
            raise
        return refused
    return {
        change.address: _DIFFERS
        for change in made.changes
        if change.action is not Action.ADOPT and change.address in found and change.address not in scene.owned
    }
