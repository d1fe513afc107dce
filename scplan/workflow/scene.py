"""Who is meant, what is desired and what is owned: everything that a plan needs except live state."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from scplan.errors import ContainerNotFound, Diagnostic
from scplan.kinds import KINDS
from scplan.linux.host import boot_id
from scplan.model.address import Address, Selection
from scplan.model.live import ContainerFacts, Status
from scplan.model.resource import Resource
from scplan.plan import SourceOf
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import locate
from scplan.state import Record, State

if TYPE_CHECKING:
    from scplan.config import Configuration, Outline
    from scplan.model.probe import Probe


class Request(NamedTuple):
    """What a command is about.

    `files` empty: scplan.yaml, else scplan.d/. `targets` and `excludes` are globs. `containers` are names for destroy.
    `live` is a snapshot to plan against instead of the kernel. `probes` are run besides those of the files, and
    `confirm_within_s` is the time in which what was applied must be confirmed. `command` goes into the history.
    """

    state_dir: str
    files: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    destroy: bool = False
    containers: tuple[str, ...] = ()
    live: str | None = None
    lock_timeout_s: float = 30.0
    probes: tuple[Probe, ...] = ()
    confirm_within_s: float | None = None
    command: tuple[str, ...] = ()

    @property
    def selection(self) -> Selection:
        return Selection(self.targets, self.excludes)


def default_state_dir() -> str:
    """/var/lib/scplan for root, $XDG_STATE_HOME/scplan for others."""
    if os.geteuid() == 0:
        return "/var/lib/scplan"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "scplan")


class Records(NamedTuple):
    """What the records of some containers hold.

    `owned` is what is true of containers that were started again since: what was remembered of their former life, and
    what they had of the host in it, is `lost`.
    """

    owned: Mapping[Address, Resource]
    lost: Mapping[Address, Resource] = MappingProxyType({})


class Scene:
    """Everything that a plan needs except live state: who is meant, what is desired, what is owned.

    `desired` holds the addresses of each container by its name. Records are read when they are asked for first.
    `configuration` is None where no files say what is desired.
    """

    def __init__(
        self,
        containers: Mapping[str, ContainerFacts],
        desired: Mapping[str, Mapping[Address, Resource]],
        read_records: Callable[[Mapping[str, ContainerFacts]], Records],
        source_of: SourceOf = lambda _: None,
        diagnostics: tuple[Diagnostic, ...] = (),
        configuration: Configuration | None = None,
    ) -> None:
        self.containers = containers
        self._desired = desired
        self._read_records = read_records
        self.source_of = source_of
        self.diagnostics = diagnostics
        self.configuration = configuration

    @cached_property
    def desired(self) -> dict[Address, Resource]:
        return {address: one for name in self.containers for address, one in self._desired.get(name, {}).items()}

    @cached_property
    def _records(self) -> Records:
        return self._read_records(self.containers)

    @property
    def owned(self) -> Mapping[Address, Resource]:
        return self._records.owned

    @property
    def lost(self) -> Mapping[Address, Resource]:
        """What containers had of the host that have ended since; it has not been given back yet."""
        return self._records.lost

    def joined_by(self, containers: Mapping[str, ContainerFacts]) -> Scene:
        """The same with more containers, of which only the records count."""
        return self._with({**containers, **self.containers})

    def only(self, names: Collection[str]) -> Scene:
        """The same with some of the containers; their records are read anew."""
        return self._with({name: facts for name, facts in self.containers.items() if name in names})

    def _with(self, containers: Mapping[str, ContainerFacts]) -> Scene:
        return Scene(
            containers, self._desired, self._read_records, self.source_of, self.diagnostics, self.configuration
        )


def validate(request: Request) -> Configuration:
    """The configuration in the files; raises ConfigurationError with everything that is wrong in them."""
    from scplan.config import default_paths, load

    return load(request.files or default_paths(), KINDS)


def read_outline(request: Request) -> Outline:
    """The same, with nothing read yet of what the containers should have."""
    from scplan.config import default_paths, outline

    return outline(request.files or default_paths(), KINDS)


def set_scene(request: Request, state: State) -> Scene:
    if request.containers:
        return _scene_of_records(request, state)
    return scene_of_configuration(validate(request), request, state)


def scene_of_configuration(configuration: Configuration, request: Request, state: State) -> Scene:
    """Locates the containers of the files. Addresses carry the name that the runtime gives a container."""
    containers: dict[str, ContainerFacts] = {}
    written_as: dict[str, str] = {}
    for reference, config in configuration.containers.items():
        facts = locate(reference, config.runtime, RUNTIMES, pid=config.pid, pid_file=config.pid_file)
        if facts.name in containers:
            raise ContainerNotFound(f"{written_as[facts.name]!r} and {reference!r} are the same container {facts.name}")
        containers[facts.name] = facts
        written_as[facts.name] = reference

    def source_of(address: Address) -> Any:
        reference = written_as.get(address.container, address.container)
        return configuration.source_of(address._replace(container=reference))

    records = partial(read_records, state)
    desired = _Desired(configuration, {} if request.destroy else written_as)
    return Scene(containers, desired, records, source_of, configuration.diagnostics, configuration)


class _Desired(Mapping[str, Mapping[Address, Resource]]):
    """What the files ask for, by the names of containers; read when it is asked for."""

    def __init__(self, configuration: Configuration, written_as: Mapping[str, str]) -> None:
        self._configuration = configuration
        self._written_as = written_as

    def __getitem__(self, name: str) -> Mapping[Address, Resource]:
        reference = self._written_as[name]
        return named(self._configuration.containers[reference].resources, reference, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._written_as)

    def __len__(self) -> int:
        return len(self._written_as)


def named(resources: Mapping[Address, Resource], reference: str, name: str) -> Mapping[Address, Resource]:
    if reference == name:
        return resources
    return {address._replace(container=name): resource for address, resource in resources.items()}


def _scene_of_records(request: Request, state: State) -> Scene:
    """The containers that `destroy` names, as their records know them."""
    containers = {}
    for reference in request.containers:
        facts = locate_recorded(_record_of(reference, state))
        containers[facts.name] = facts
    return Scene(containers, {}, partial(read_records, state))


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


def scene_of_all_records(state: State) -> Scene:
    containers = {}
    for record in state.all():
        try:
            containers[record.name] = locate_recorded(record)
        except ContainerNotFound:
            containers[record.name] = gone(record)
    return Scene(containers, {}, partial(read_records, state))


def locate_recorded(record: Record) -> ContainerFacts:
    found = RUNTIMES[record.runtime].find_recorded(record.name, record.id) if record.runtime in RUNTIMES else []
    for facts in found:
        if facts.name == record.name:
            return facts
    raise ContainerNotFound(
        f"container {record.name} is gone from {record.runtime}",
        hint=f"what was plugged into it went with it; `scplan state rm {record.name}` forgets it",
    )


def gone(record: Record) -> ContainerFacts:
    return ContainerFacts(name=record.name, runtime=record.runtime, id=record.id, status=Status.STOPPED)


def read_records(state: State, containers: Mapping[str, ContainerFacts]) -> Records:
    owned: dict[Address, Resource] = {}
    lost: dict[Address, Resource] = {}
    for facts in containers.values():
        record = state.read(facts.runtime, facts.name)
        if record is None:
            continue
        if record.is_over(facts, boot_id()):
            lost.update(record.lost(facts, boot_id()))
            record = record.at_next_start()
        owned.update(record.resources)
    return Records(owned, lost)


def has_default_files() -> bool:
    return os.path.exists("scplan.yaml") or os.path.isdir("scplan.d")
