"""Reads all files into a configuration: joins files and profiles, and checks the rules that span containers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from scplan.config.configuration import Configuration, ContainerConfig, Wishes
from scplan.config.entries import Entry
from scplan.config.fragments import MAX_CONTAINERS, FileReader, Fragment, Written, at
from scplan.config.report import Report, quoted
from scplan.config.yaml_source import STDIN, Mapping, Mark, Node, Scalar, collector_paused, read_file, shown
from scplan.config.yaml_source import Sequence as SequenceNode
from scplan.errors import ConfigurationError
from scplan.kinds.kind import Claim, Kind, Kinds
from scplan.model.address import Address
from scplan.model.live import Naming
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple

T = TypeVar("T")
MAX_RESOURCES = 1_000_000
MAX_FILES = 10_000
MAX_JSON_DEPTH = 32
_AT_A_TIME = 20

_SUFFIXES = (".yaml", ".yml")


def default_paths() -> tuple[str, ...]:
    """Path of the working directory's configuration: scplan.yaml, else scplan.d.

    Raises ConfigurationError if neither exists, or if another user may have put it there.
    """
    for path in ("scplan.yaml", "scplan.d"):
        if os.path.exists(path):
            _refuse_planted(path)
            return (path,)
    hint = "write scplan.yaml, or name files and directories with -f"
    raise ConfigurationError("no configuration", detail="there is no scplan.yaml and no scplan.d/ here", hint=hint)


def _refuse_planted(path: str) -> None:
    """Raise ConfigurationError for another user's file in a world-writable directory, such as /tmp.

    The file was not named on the command line: its owner may be waiting for root to run scplan in that directory.
    """
    # Of the symlink and of its target: the owner of either can choose the content.
    owners = {os.lstat(path).st_uid, os.stat(path).st_uid}
    if os.stat(".").st_mode & stat.S_IWOTH and not owners <= {0, os.geteuid()}:
        raise ConfigurationError(
            f"{path} is not taken from a directory that everybody can write to",
            detail=f"it belongs to somebody else (uid {', '.join(map(str, sorted(owners - {0, os.geteuid()})))})",
            hint=f"if it is meant, name it: -f {path}",
        )


def load(paths: Sequence[str], kinds: Kinds) -> Configuration:
    """The configuration in these files and directories, in this order; "-" is standard input.

    Raises ConfigurationError with all errors, in file order.
    """
    report = Report()
    with collector_paused():
        files = FileReader(kinds, report)
        for path in _files(paths, report):
            report.begins(shown(path))
            document = read_file(path)
            report.errors.extend(document.problems)
            if document.root is not None:
                files.read(document.root)
        return checked(files, kinds, report)


def configuration_from_json(document: object, kinds: Kinds) -> Configuration:
    """The configuration in a document of `Configuration.to_json`, checked as strictly as files of users.

    Raises ConfigurationError, whose diagnostics have no position.
    """
    report = Report()
    with collector_paused():
        files = FileReader(kinds, report)
        files.read(_node(document, 0))
        return checked(files, kinds, report)


def checked(files: FileReader, kinds: Kinds, report: Report) -> Configuration:
    """The configuration in the files that were read. Raises ConfigurationError with all errors."""
    containers = _Joiner(files, kinds, report).containers()
    # Sections of profiles that no container uses have not been read yet: their errors are reported, too.
    for profile in files.profiles.values():
        for kind in profile.kinds:
            profile.entries(kind)
    _check_claims(containers.values(), kinds, report)
    report.raise_errors()
    warnings = tuple(report.sorted(report.warnings))
    return Configuration(containers=containers, probes=tuple(files.probes), kinds=kinds, diagnostics=warnings)


def _files(paths: Sequence[str], report: Report) -> Iterable[str]:
    """The files at the paths, those of directories included, each once. Directories that can't be read are reported."""
    seen: set[object] = set()
    for path in paths:
        for file in _listed(path, report) if path != STDIN and os.path.isdir(path) else [path]:
            identity = _identity(file)
            if identity in seen:
                continue
            seen.add(identity)
            if len(seen) > MAX_FILES:
                report.error("too many files", f"a configuration has at most {MAX_FILES}")
                return
            yield file


def _identity(path: str) -> object:
    """(st_dev, st_ino) of a file, equal for all of its names; its path if stat(2) fails, which `read_file` reports."""
    try:
        status = os.stat(path) if path != STDIN else os.fstat(0)
    except (OSError, ValueError):
        return path
    return status.st_dev, status.st_ino


def _listed(directory: str, report: Report) -> list[str]:
    name = shown(directory)
    try:
        found = sorted(os.listdir(directory))
    except OSError as error:
        report.error("can't read the directory", f"{name}: {error.strerror}", mark=_Place(name))
        return []
    files = [os.path.join(directory, file) for file in found if file.endswith(_SUFFIXES) and file[0] != "."]
    if not files:
        hint = "its files end in .yaml or .yml, and are not hidden"
        report.error("no configuration", f"the directory {name} holds no file to read", hint=hint, mark=_Place(name))
    return files


class _Place:
    """Position of a file or directory as a whole."""

    line = 0
    column = 0

    def __init__(self, name: str) -> None:
        self.name = name


def _node(value: object, depth: int) -> Node:
    """JSON as nodes, as if it had been read from YAML. Raises ConfigurationError if the value is not JSON."""
    if depth > MAX_JSON_DEPTH:
        raise ConfigurationError("nested too deeply", detail=f"more than {MAX_JSON_DEPTH} levels")
    if value is None:
        return Scalar("", True, None)
    # Before int, of which bool is a subclass.
    if isinstance(value, bool):
        return Scalar("true" if value else "false", False, None)
    if isinstance(value, int | float):
        return Scalar(repr(value), False, None)
    if isinstance(value, str):
        return Scalar(value, False, None)
    if isinstance(value, list):
        return SequenceNode([_node(item, depth + 1) for item in value], None)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return Mapping({key: _node(item, depth + 1) for key, item in value.items()}, [None] * len(value), None)
    raise ConfigurationError("not a configuration", detail=f"it holds a {type(value).__name__}")


class _Joiner:
    """Joins the fragments and profiles of each container."""

    def __init__(self, files: FileReader, kinds: Kinds, report: Report) -> None:
        self.files = files
        self.kinds = kinds
        self.report = report
        self.used: set[str] = set()

    def containers(self) -> dict[str, ContainerConfig]:
        if len(self.files.containers) > MAX_CONTAINERS:
            self.report.error("too many containers", f"a configuration has at most {MAX_CONTAINERS}")
            return {}
        containers = {}
        count = 0
        for name, fragments in self._ahead_of(list(self.files.containers.items())):
            container = containers[name] = self._container(name, fragments)
            count += len(container.resources)
            if count > MAX_RESOURCES:
                detail = f"a configuration has at most {MAX_RESOURCES}, counting those of profiles at each container"
                self.report.error("too many resources", detail)
                return {}
        for name, profile in self.files.profiles.items():
            if name not in self.used:
                detail = f"no container uses profile {quoted(name)}"
                self.report.warning("unused profile", detail, mark=profile.mark)
        if not containers and not self.report.errors:
            self.report.warning("no containers", "the configuration names no container")
        return containers

    def _ahead_of(self, named: list[tuple[str, list[Fragment]]]) -> Iterator[tuple[str, list[Fragment]]]:
        """Yield `named`, after reading the sections of the next 20 containers kind by kind.

        Each kind uses other code and tables, which then stay in the CPU's caches.
        """
        for first in range(0, len(named), _AT_A_TIME):
            share = named[first : first + _AT_A_TIME]
            for kind in self.kinds:
                for fragment in (one for _, fragments in share for one in fragments if kind in one.kinds):
                    fragment.entries(kind)
            yield from share

    def _container(self, name: str, fragments: list[Fragment]) -> ContainerConfig:
        profiles = self._profiles(name, fragments)
        runtime, pid, pid_file = self._process(name, fragments)
        modules = (module for fragment in (*profiles, *fragments) for module in fragment.modules)
        return ContainerConfig(
            name=name,
            runtime=runtime,
            pid=pid,
            pid_file=pid_file,
            modules=tuple(dict.fromkeys(modules)),
            naming=self._naming(name, fragments),
            mark=fragments[0].mark,
            wishes=self._wishes(name, fragments, profiles),
        )

    def _wishes(self, name: str, fragments: list[Fragment], profiles: list[Fragment]) -> Wishes:
        resources: dict[Address, Resource] = {}
        marks: dict[Address, Mark | None] = {}
        for kind in self.kinds.values():
            entries = self._entries(name, kind.name, fragments, profiles)
            if not entries:
                continue
            if type(kind).check_all is not Kind.check_all:
                by_identity = {identity: entry.resource for identity, entry in entries.items()}
                for identity, problem in kind.check_all(by_identity):
                    self.report.error(f"invalid {kind.name}", problem, mark=entries[identity].mark)
            for identity, entry in entries.items():
                address = Address(name, kind.name, identity)
                resources[address] = entry.resource
                marks[address] = entry.mark
        for kind in self.kinds.values():
            if type(kind).check_together is not Kind.check_together:
                for address, problem in kind.check_together(resources):
                    self.report.error(f"invalid {address.kind}", problem, mark=marks[address])
        return Wishes(resources, marks)

    def _profiles(self, name: str, fragments: list[Fragment]) -> list[Fragment]:
        """Profiles that a container uses, each once, in the order of its list. Unknown profiles are reported."""
        found: dict[str, Fragment] = {}
        for fragment in fragments:
            for profile in fragment.profiles:
                known = self.files.profiles.get(profile.value)
                if known is not None:
                    found[profile.value] = known
                    continue
                detail = f"container {quoted(name)} uses profile {quoted(profile.value)}, which no file has"
                self.report.unknown("profile", detail, profile.value, self.files.profiles, profile.mark)
        self.used.update(found)
        return list(found.values())

    def _entries(self, name: str, kind: str, fragments: list[Fragment], profiles: list[Fragment]) -> dict[str, Entry]:
        """Entries of one kind, by identity. A later profile wins over an earlier one, the container's own over all."""
        if len(fragments) == 1 and not profiles:
            return fragments[0].entries(kind) if kind in fragments[0].kinds else {}
        own = [fragment.entries(kind) for fragment in fragments if kind in fragment.kinds]
        shared = [profile.entries(kind) for profile in profiles if kind in profile.kinds]
        entries = {identity: entry for section in shared for identity, entry in section.items()}
        mine: dict[str, Entry] = {}
        for section in own:
            for identity, entry in section.items():
                first = mine.setdefault(identity, entry)
                if first is not entry:
                    detail = f"{kind} {quoted(identity)} of container {quoted(name)} is already at {at(first.mark)}"
                    self.report.error(f"duplicate {kind}", detail, hint="remove one of them", mark=entry.mark)
        entries.update(mine)
        return entries

    def _process(self, name: str, fragments: list[Fragment]) -> tuple[str, int | None, str | None]:
        """(runtime, pid, pid_file) of a container. Contradictions between the three are reported."""
        runtime = self.files.agreed("runtime", fragments) or self.files.runtime
        name_of_runtime: str = runtime.value if runtime else "auto"
        pid, pid_file = self.files.agreed("pid", fragments), self.files.agreed("pid_file", fragments)
        if name_of_runtime == "process":
            self._check_process(name, pid, pid_file, fragments)
        else:
            for key, written in (("pid", pid), ("pid_file", pid_file)):
                if written:
                    detail = f"container {quoted(name)} has {key}, but its runtime is {name_of_runtime}"
                    self.report.error("misplaced key", detail, hint="add runtime: process", mark=written.mark)
        return name_of_runtime, pid and pid.value, pid_file and pid_file.value

    def _naming(self, name: str, fragments: list[Fragment]) -> Naming:
        """The naming from the keys `identity`, `image` and `label`. Contradictions are reported."""
        identity, image, label = (self.files.agreed(key, fragments) for key in ("identity", "image", "label"))
        by = identity.value if identity else ""
        for key, written in (("image", image), ("label", label)):
            if written and by != "name":
                detail = f"container {quoted(name)} has {key}, which is for containers with identity: name"
                self.report.error("misplaced key", detail, hint="add identity: name", mark=written.mark)
        return Naming(by, image.value if image else "", label.value if label else "")

    def _check_process(
        self, name: str, pid: Written | None, pid_file: Written | None, fragments: list[Fragment]
    ) -> None:
        if pid and pid_file:
            detail = f"container {quoted(name)} has both pid and pid_file"
            self.report.error("contradiction", detail, hint="keep one of them", mark=pid_file.mark)
        elif not pid and not pid_file and not any(fragment.has_wrong_pid for fragment in fragments):
            detail, hint = f"process {quoted(name)} has no pid", "write pid: 4242, or pid_file: /run/app.pid"
            self.report.error("missing pid", detail, hint=hint, mark=fragments[0].mark)


class _Holder(NamedTuple):
    """A resource that claims a thing, and its position in the files."""

    address: Address
    mark: Mark | None


def _check_claims(containers: Iterable[ContainerConfig], kinds: Kinds, report: Report) -> None:
    """Report things that more than one resource claims, and of which the host has only one (a NIC, a MAC address)."""
    holders: dict[str, dict[str, _Holder]] = {}
    claiming = {name: kind for name, kind in kinds.items() if type(kind).claims is not Kind.claims}
    for container in containers:
        for address, resource in container.resources.items():
            if address.kind not in claiming:
                continue
            for claim in claiming[address.kind].claims(address, resource):
                scopes = holders.setdefault(claim.thing, {})
                holder = _holder(scopes, claim)
                if holder is None:
                    scopes[claim.scope] = _Holder(address, container.mark_of(address))
                elif holder.address != address:
                    detail = f"{claim.thing} of {address} is already that of {holder.address} at {at(holder.mark)}"
                    report.error(
                        "claimed twice", detail, hint="only one resource can have it", mark=container.mark_of(address)
                    )


def _holder(scopes: dict[str, T], claim: Claim) -> T | None:
    """The holder that the claim collides with; None if there is none. An empty scope collides with every scope."""
    # A look-up by scope: 10 000 claims of one thing are not compared with each other.
    if not claim.scope:
        return next(iter(scopes.values()), None)
    return scopes.get(claim.scope) or scopes.get("")
