"""The configuration as read: containers, and the desired resources of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scplan.config.yaml_source import Mark, source_range
from scplan.errors import Diagnostic, SourceRange
from scplan.model.address import Address
from scplan.model.codec import naming_to_json, to_entry
from scplan.model.live import Naming
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.kinds.kind import Kind, Kinds
    from scplan.model.probe import Probe

VERSION = "1"
RUNTIMES = (
    "auto",
    "runc",
    "crun",
    "docker",
    "podman",
    "containerd",
    "isulad",
    "lxc",
    "incus",
    "nspawn",
    "process",
)
"""Names that `runtime:` takes; whether scplan can talk to one on this host shows when the container is looked up."""


_BY_DEFAULT = Naming()


class Wishes(NamedTuple):
    """Desired resources of a container, and the position of each in the files."""

    resources: Mapping[Address, Resource]
    marks: Mapping[Address, Mark | None]


class ContainerConfig:
    """The configuration of one container.

    `name` is the container's name or ID prefix in its runtime. `pid` or `pid_file` is set for the runtime `process`
    alone. `modules` are kernel modules that the resources need. `naming` is the rule by which records find a container
    that was made again.
    """

    def __init__(
        self,
        *,
        name: str,
        runtime: str,
        pid: int | None = None,
        pid_file: str | None = None,
        modules: tuple[str, ...] = (),
        naming: Naming = _BY_DEFAULT,
        mark: Mark | None = None,
        wishes: Wishes,
    ) -> None:
        self.name = name
        self.runtime = runtime
        self.pid = pid
        self.pid_file = pid_file
        self.modules = modules
        self.naming = naming
        self._mark = mark
        self._wishes = wishes

    def __eq__(self, other: object) -> bool:
        """True if both desire the same; positions in files are ignored."""
        mine = (self.name, self.runtime, self.pid, self.pid_file, self.modules, self.naming)
        return (
            isinstance(other, ContainerConfig)
            and mine == (other.name, other.runtime, other.pid, other.pid_file, other.modules, other.naming)
            and self.resources == other.resources
        )

    __hash__ = None  # type: ignore[assignment]  # compared, and never a key

    @property
    def resources(self) -> Mapping[Address, Resource]:
        return self._wishes.resources

    @property
    def source(self) -> SourceRange | None:
        """Position of the container's first occurrence in the files; None if the configuration comes from a plan."""
        return source_range(self._mark)

    def mark_of(self, address: Address) -> Mark | None:
        """Position of a resource in the files."""
        return self._wishes.marks.get(address)

    def source_of(self, address: Address) -> SourceRange | None:
        return source_range(self.mark_of(address))


class Configuration:
    """All containers in file order, the probes to run after changes, and warnings."""

    def __init__(
        self,
        *,
        containers: Mapping[str, ContainerConfig],
        probes: tuple[Probe, ...],
        kinds: Kinds,
        diagnostics: tuple[Diagnostic, ...],
    ) -> None:
        self.containers = containers
        self.probes = probes
        self.kinds = kinds
        self.diagnostics = diagnostics

    def source_of(self, address: Address) -> SourceRange | None:
        """Position of a resource in the files; None if no file has it, or if the configuration comes from a plan."""
        container = self.containers.get(address.container)
        return container.source_of(address) if container else None

    def to_json(self) -> dict[str, Any]:
        """The configuration as one valid document, with profiles merged and values normalised."""
        containers = {name: self._container(container) for name, container in self.containers.items()}
        document: dict[str, Any] = {"version": int(VERSION), "containers": containers}
        if self.probes:
            document["probes"] = [_probe(probe) for probe in self.probes]
        return document

    def _container(self, container: ContainerConfig) -> dict[str, Any]:
        document: dict[str, Any] = {"runtime": container.runtime}
        if container.pid is not None:
            document["pid"] = container.pid
        if container.pid_file is not None:
            document["pid_file"] = container.pid_file
        document |= naming_to_json(container.naming)
        if container.modules:
            document["modules"] = list(container.modules)
        for address, resource in container.resources.items():
            add_entry(document, self.kinds[address.kind], to_entry(resource))
        return document


def _probe(probe: Probe) -> str | dict[str, Any]:
    from scplan.model.probe import DEFAULT_TIMEOUT_S

    if probe.timeout_s == DEFAULT_TIMEOUT_S:
        return probe.command
    return {"command": probe.command, "timeout": f"{probe.timeout_s:.10g}s"}


def add_entry(document: dict[str, Any], kind: Kind[Any], entry: dict[str, Any]) -> None:
    """Add the entry of a resource to the section of its kind, in the document of a container."""
    if kind.section_form == "mapping":
        rest = {name: value for name, value in entry.items() if name != "name"}
        is_short = kind.record(**entry) == kind.record(name=entry["name"], value=entry["value"])
        document.setdefault(kind.section, {})[entry["name"]] = entry["value"] if is_short else rest
    else:
        document.setdefault(kind.section, []).append(entry)
