"""Scenes: the containers, desired resources and records of a command; all inputs of a plan except live state."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scplan.errors import (
    ContainerGone,
    ContainerNotFound,
    ContainerReplaced,
    Diagnostic,
    EngineUnreachable,
    NoSuchContainer,
    ScplanError,
    Severity,
    SourceRange,
)
from scplan.kinds import KINDS
from scplan.linux.host import boot_id
from scplan.model.address import Address, Selection
from scplan.model.live import ContainerFacts, Naming, Status
from scplan.model.resource import Resource
from scplan.planning.making import SourceOf
from scplan.runtimes import RUNTIMES, unreadable_states
from scplan.runtimes.runtime import AUTO, AmbiguousContainer, Runtime, begins_id, is_same_place, locate
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import Record, State
from scplan.workflow.recorded import (
    AboutStart,
    Asked,
    about_start,
    as_plugged_in,
    ask,
    find_again,
    gone,
    is_about,
    is_followed_by,
    is_plugged_in,
    is_same_container,
    locate_recorded,
    located_again,
    refuse_renamed,
    renamed,
    replaced,
)

if TYPE_CHECKING:
    from scplan.config import Configuration
    from scplan.config.configuration import ContainerConfig
    from scplan.model.probe import Probe


_SHOWN = 5


class Request(NamedTuple):
    """The arguments of a command.

    `files` empty: scplan.yaml, else scplan.d/. `targets` and `excludes` are globs. `containers` are names for destroy.
    `live` is the path of a snapshot to plan against instead of the kernel. `probes` are run in addition to the
    files' probes. An apply must be confirmed within `confirm_within_s`. `command` is kept in the history.
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


class Records(NamedTuple):
    """The contents of the records of some containers.

    `owned` are the recorded resources; of a container that ended or was restarted since, without the former values of
    its last run. `lost` are the resources of that last run, of which things of the host must be returned. `stale` are
    records of former containers with the same names. `renamed` are containers whose records must be written with other
    rules for following the name. `new` are running containers that were started after their records were written.
    """

    owned: Mapping[Address, Resource]
    lost: Mapping[Address, Resource] = MappingProxyType({})
    stale: tuple[Record, ...] = ()
    renamed: frozenset[str] = frozenset()
    new: frozenset[str] = frozenset()


class Scene:
    """All inputs of a plan except live state: containers, desired resources, owned resources.

    `desired` has the desired resources by container name. Records are read on first access. `configuration` is None
    without files; `written_as` maps a container to the name or ID prefix that the files use for it. `silent` are
    diagnostics about engines that could not be reached: an error if containers are left out, a warning if all are
    known by their processes.
    """

    def __init__(
        self,
        containers: Mapping[str, ContainerFacts],
        desired: Mapping[str, Mapping[Address, Resource]],
        read_records: Callable[[Mapping[str, ContainerFacts]], Records],
        source_of: SourceOf = lambda _: None,
        diagnostics: tuple[Diagnostic, ...] = (),
        configuration: Configuration | None = None,
        written_as: Mapping[str, str] = MappingProxyType({}),
        starts: dict[str, AboutStart | None] | None = None,
        silent: tuple[Diagnostic, ...] = (),
    ) -> None:
        self.containers = containers
        self._desired = desired
        self._read_records = read_records
        self.source_of = source_of
        self.diagnostics = diagnostics
        self.configuration = configuration
        self.written_as = written_as
        self._starts = {} if starts is None else starts
        self.silent = silent

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
        """Things of the host that ended containers had, and that are not returned yet."""
        return self._records.lost

    @property
    def renamed(self) -> frozenset[str]:
        """Containers whose records must be written with other rules for following the name."""
        return self._records.renamed

    @property
    def new(self) -> frozenset[str]:
        """Running containers that were started after their records were written."""
        return self._records.new

    @property
    def stale(self) -> list[tuple[Record, ContainerReplaced]]:
        """(record of a former container with the name of one in the scene, error about it)"""
        return [(record, replaced(record, self.containers[record.name])) for record in self._records.stale]

    def readable(self) -> tuple[Scene, list[Diagnostic]]:
        """(scene without containers whose records can't be read, errors about these records)"""
        try:
            self.owned  # noqa: B018 - reads all records at once; raises if one is damaged
        except ScplanError:
            # One container at a time, to find the damaged records.
            kept, problems = set[str](), list[Diagnostic]()
            for name in self.containers:
                try:
                    self.only({name}).owned  # noqa: B018
                    kept.add(name)
                except ScplanError as error:
                    problems += error.diagnostics
            return self.only(kept), problems
        return self, []

    def refuse_missing(self) -> None:
        """Raises ContainerNotFound with all containers of the files that can't be located."""
        errors = [one for one in (*self.diagnostics, *self.silent) if one.severity is Severity.ERROR]
        if errors:
            raise ContainerNotFound.of(errors)

    def refuse_stale(self) -> None:
        """Raises ContainerReplaced if any container is not the recorded one."""
        found = [diagnostic for _, error in self.stale for diagnostic in error.diagnostics]
        if found:
            raise ContainerReplaced.of(found)

    def joined_by(self, containers: Mapping[str, ContainerFacts]) -> Scene:
        """The scene with more containers, of which only the records are used."""
        return self._with({**containers, **self.containers})

    def only(self, names: Collection[str]) -> Scene:
        """The scene with only these containers; their records are read again."""
        return self._with({name: facts for name, facts in self.containers.items() if name in names})

    def saying(self, diagnostics: Iterable[Diagnostic]) -> Scene:
        """The scene with more diagnostics."""
        return self._with(self.containers, (*self.diagnostics, *diagnostics))

    def hearing_of(self, silent: tuple[Diagnostic, ...]) -> Scene:
        """The scene with these as its `silent` diagnostics."""
        return Scene(
            self.containers,
            self._desired,
            self._read_records,
            self.source_of,
            self.diagnostics,
            self.configuration,
            self.written_as,
            self._starts,
            silent,
        )

    def about_start(self, name: str) -> AboutStart | None:
        """The next start of the container; its engine is asked once. None if the engine can't be reached."""
        if name not in self._starts:
            self._starts[name] = about_start(self.containers[name])
        return self._starts[name]

    def ask_about_starts(self) -> None:
        """Ask engines about the next start of stopped containers, and of all whose engine must be asked for hooks.

        To be called before locks are taken.
        """
        for name, facts in self.containers.items():
            if facts.status is Status.STOPPED or RUNTIMES[facts.runtime].asks_for_hooks:
                self.about_start(name)

    def located_again(self) -> Scene:
        """The scene with its containers located again, and their records read again. Asks engines.

        Raises ContainerNotFound for containers that ended meanwhile and whose engine can't be reached.
        """
        containers, silent = {}, Silent()
        for name, facts in self.containers.items():
            try:
                containers[name] = located_again(facts)
            except EngineUnreachable as error:
                silent.leave_out(error, name)
        if unknown := silent.diagnostics():
            raise ContainerNotFound.of(unknown)
        return self._with(containers)

    def _with(
        self, containers: Mapping[str, ContainerFacts], diagnostics: tuple[Diagnostic, ...] | None = None
    ) -> Scene:
        return Scene(
            containers,
            self._desired,
            self._read_records,
            self.source_of,
            self.diagnostics if diagnostics is None else diagnostics,
            self.configuration,
            self.written_as,
            self._starts,
            self.silent,
        )


def validate(request: Request) -> Configuration:
    """The configuration in the files. Raises ConfigurationError with all errors in them."""
    from scplan.config import default_paths, load

    return load(request.files or default_paths(), KINDS)


def set_scene(request: Request, state: State) -> Scene:
    """The scene of the containers that `destroy` names, else of the files."""
    if request.containers:
        return _scene_of_records(request, state)
    return scene_of_configuration(validate(request), request, state)


def scene_of_configuration(configuration: Configuration, request: Request, state: State) -> Scene:
    """The scene of the files, their containers located. Addresses have the names that runtimes give the containers.

    A container that can't be located becomes an error among the scene's diagnostics, with its place in the files.
    """
    containers: dict[str, ContainerFacts] = {}
    written_as: dict[str, str] = {}
    problems: dict[tuple[str, str], Diagnostic] = {}
    silent = Silent()
    for reference, config in configuration.containers.items():
        try:
            asked = _ask(reference, config, state)
            facts = asked.facts._replace(naming=config.naming)
            if asked.silent is not None:
                silent.add(asked, config.source)
                if not asked.is_known:
                    continue
            else:
                _refuse_unchecked(facts, config)
            if facts.name in containers:
                same = f"{written_as[facts.name]!r} and {reference!r} are the same container {facts.name}"
                raise ContainerNotFound(same)
        except EngineUnreachable as error:
            silent.leave_out(error, reference, config.source)
            continue
        except ScplanError as error:
            for one in error.diagnostics:
                # A runtime that does not answer is reported once, not for each of its containers.
                problems.setdefault((one.summary, one.detail), one._replace(source=config.source))
            continue
        containers[facts.name] = facts
        written_as[facts.name] = reference

    def source_of(address: Address) -> Any:
        reference = written_as.get(address.container, address.container)
        return configuration.source_of(address._replace(container=reference))

    records = partial(read_records, state)
    desired = _Desired(configuration, {} if request.destroy else written_as)
    diagnostics = (*configuration.diagnostics, *problems.values(), *renamed(containers.values()), *_unreadable_states())
    return Scene(
        containers, desired, records, source_of, diagnostics, configuration, written_as, silent=silent.diagnostics()
    )


class Silent:
    """Engines that can't be reached, with their containers: known by their processes, or left out."""

    def __init__(self) -> None:
        self._errors: dict[str, EngineUnreachable] = {}
        self._sources: dict[str, SourceRange | None] = {}
        self._by_process: dict[str, list[str]] = {}
        self._left_out: dict[str, list[str]] = {}

    def add(self, asked: Asked, source: SourceRange | None = None) -> None:
        """Add a recorded container: known by its process, or left out if the process has ended."""
        assert asked.silent is not None
        if asked.is_known:
            self._note(asked.silent, source)
            self._by_process.setdefault(str(asked.silent), []).append(asked.facts.name)
        else:
            self.leave_out(asked.silent, asked.facts.name, source)

    def leave_out(self, error: EngineUnreachable, name: str, source: SourceRange | None = None) -> None:
        """Add a container of which nothing is known."""
        self._note(error, source)
        self._left_out.setdefault(str(error), []).append(name)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """An error per engine with containers that are left out, a warning per engine if all are known."""
        return tuple(self._diagnostic(key, error) for key, error in self._errors.items())

    def _note(self, error: EngineUnreachable, source: SourceRange | None) -> None:
        self._errors.setdefault(str(error), error)
        self._sources.setdefault(str(error), source)

    def _diagnostic(self, key: str, error: EngineUnreachable) -> Diagnostic:
        first, known, left_out = error.diagnostics[0], self._by_process.get(key, ()), self._left_out.get(key, ())
        said = [first.detail] if first.detail else []
        said += [f"known by the processes that their records name: {', '.join(known)}"] if known else []
        said += [f"left out, since it is not known whether they run: {', '.join(left_out)}"] if left_out else []
        hint = first.hint
        if left_out:
            hint += "; `scplan state rm NAME` forgets what is recorded of one that is gone for good"
        return Diagnostic(
            summary=first.summary,
            detail="\n".join(said),
            hint=hint,
            source=self._sources[key],
            severity=Severity.ERROR if left_out else Severity.WARNING,
        )


def _ask(reference: str, config: ContainerConfig, state: State) -> Asked:
    """The container of the files. If the engine of the environment can't be reached: the recorded container, from its
    engine at the recorded place, else by its process."""
    try:
        return Asked(_locate(reference, config, state))
    except EngineUnreachable:
        record = _recorded_as(reference, config, state)
        if record is None:
            raise
        return ask(record, find_again)


def _unreadable_states() -> Iterator[Diagnostic]:
    """A warning about each damaged state file of a runtime, which was ignored."""
    for error in unreadable_states():
        first = error.diagnostics[0]
        yield Diagnostic(summary=first.summary, detail=first.detail, hint=first.hint, severity=Severity.WARNING)


def _locate(reference: str, config: ContainerConfig, state: State) -> ContainerFacts:
    """The container of the files: by exact name or ID, else the recorded container, else by the beginning of its ID.

    If several containers match, the recorded one. Raises ScplanError.
    """
    try:
        facts = locate(reference, config.runtime, RUNTIMES, pid=config.pid, pid_file=config.pid_file)
    except NoSuchContainer as error:
        record = _recorded_as(reference, config, state)
        if record is None:
            raise _with_guess(error, reference, config) from None
        return find_again(record)
    except AmbiguousContainer as error:
        record = _recorded_as(reference, config, state)
        if record is None:
            raise
        recorded = [
            one for one in error.found if one.runtime == record.runtime and is_about(record.id, record.place, one)
        ]
        if len(recorded) == 1:
            return recorded[0]
        if any(one.name == reference for one in error.found):
            raise
        return find_again(record)
    # Found by the beginning of its ID: a recorded container with exactly this name counts more.
    if reference not in (facts.name, facts.id):
        record = _recorded_as(reference, config, state)
        if record is not None:
            return find_again(record)
    if facts.status is Status.STOPPED and RUNTIMES[facts.runtime].needs_pid:
        raise ContainerGone(
            f"container {reference} is not running", hint="a plain process is planned for only while it runs"
        )
    refuse_renamed(facts, state)
    return facts


def _refuse_unchecked(facts: ContainerFacts, config: ContainerConfig) -> None:
    """Raises ScplanError for `identity: name` if neither image nor label could identify a re-created container."""
    naming = config.naming
    if naming.by != "name" or type(RUNTIMES[facts.runtime]).in_bundle is Runtime.in_bundle:
        return  # not an engine with generated IDs: the name is the ID
    if naming.label and RUNTIMES[facts.runtime].labels(facts) is None:
        raise ScplanError(
            f"container {facts.name}: scplan can't read the labels that {facts.runtime} keeps",
            hint="write image: instead of label:",
        )
    if not naming.label and not facts.image and facts.status is not Status.STOPPED:
        raise ScplanError(
            f"container {facts.name}: identity: name needs an image by which the container is known again",
            detail="its image has no name",
            hint="without identity: name, `scplan state mv` carries the records over",
        )


def _recorded_as(reference: str, config: ContainerConfig, state: State) -> Record | None:
    """The record with exactly this container name; None if there is no such record, or more than one."""
    recorded = [pair for pair in state.names() if pair[1] == reference and config.runtime in (AUTO, pair[0])]
    return state.read(*recorded[0]) if len(recorded) == 1 else None


def _with_guess(error: NoSuchContainer, reference: str, config: ContainerConfig) -> NoSuchContainer:
    """The error with a hint to the most similar name that the runtimes know."""
    from difflib import get_close_matches

    names: set[str] = set()
    for runtime in RUNTIMES if config.runtime == AUTO else (config.runtime,):
        try:
            names |= {one.name for one in RUNTIMES[runtime].all()}
        except ScplanError:
            continue  # its failure is part of the error already
    first = error.diagnostics[0]
    close = get_close_matches(reference, names, 1)
    hint = f'did you mean "{close[0]}"?' if close else first.hint
    return NoSuchContainer(first.summary, detail=first.detail, hint=hint)


class _Desired(Mapping[str, Mapping[Address, Resource]]):
    """Desired resources by container name, taken from the configuration on access."""

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
    """The resources with the runtime's container name in their addresses, instead of the reference in the files."""
    if reference == name:
        return resources
    return {address._replace(container=name): resource for address, resource in resources.items()}


def _scene_of_records(request: Request, state: State) -> Scene:
    """The scene of the containers that `destroy` names, by their records; nothing is desired."""
    containers = {}
    silent = Silent()
    for reference in request.containers:
        record = record_of(reference, state)
        _refuse_other_place(record)
        try:
            asked = ask(record, locate_recorded)
        except ContainerNotFound:
            asked = Asked(gone(record))  # also a re-created container, which is not touched
        if asked.silent is not None:
            silent.add(asked)
        if asked.is_known:
            containers[record.name] = asked.facts
    return Scene(containers, {}, partial(read_records, state), silent=silent.diagnostics())


def _refuse_other_place(record: Record) -> None:
    """Raises ContainerReplaced if the environment selects another place, which has another container of the name."""
    runtime = RUNTIMES.get(record.runtime)
    if runtime is None or not record.place:
        return
    try:
        found = [facts for facts in runtime.find(record.name, None, None) if facts.name == record.name]
    except ScplanError:
        return  # the recorded place is asked next
    if any(is_about(record.id, record.place, facts) for facts in found):
        return
    for facts in found:
        if not is_same_place(record.place, facts.place):
            raise replaced(record, facts)


def record_of(reference: str, state: State, runtime: str = AUTO) -> Record:
    """The record of a container by its name, generated ID, or beginning of that ID. Raises ContainerNotFound."""
    # By recorded name, else by ID, else by the present name of a renamed container.
    names = [pair for pair in state.names() if runtime in (AUTO, pair[0])]
    found = [pair for pair in names if pair[1] == reference]
    if not found:
        records, _ = state.survey()
        by_id = [(one.runtime, one.name) for one in records if begins_id(reference, one.id) or one.id == reference]
        found = [pair for pair in by_id if pair in names]
    if not found:
        found = [pair for pair in _under_another_name(reference, state, runtime) if pair in names]
    if len(found) > 1:
        listed = ", ".join(f"{name} ({runtime})" for runtime, name in found)
        raise ContainerNotFound(f"{reference!r} can mean {len(found)} containers with records: {listed}")
    record = state.read(*found[0]) if found else None
    if record is None:
        raise ContainerNotFound(
            f"scplan owns nothing in a container {reference!r}", hint="`scplan state list` shows what it owns"
        )
    return record


def _under_another_name(reference: str, state: State, runtime: str) -> list[tuple[str, str]]:
    """(runtime, recorded name) of the container that has this name now; empty if no engine knows the name."""
    try:
        facts = locate(reference, runtime, RUNTIMES)
    except ScplanError:
        return []  # the caller reports that the records have no such container
    if not RUNTIMES[facts.runtime].has_own_ids:
        return []
    records, _ = state.survey()
    return [
        (one.runtime, one.name)
        for one in records
        if one.runtime == facts.runtime and is_same_container(one.id, one.place, facts)
    ]


class Known(NamedTuple):
    """All containers with records.

    `unfound` has an error by name for each container that can't be found again: gone or re-created. `problems` are
    (container, error) of engines and records that could not be read; "" if the container of a record is not known.
    """

    scene: Scene
    unfound: Mapping[str, ContainerNotFound]
    problems: tuple[tuple[str, Diagnostic], ...]


def scene_of_all_records(state: State) -> Known:
    """All containers with records, as far as records and runtimes can be read."""
    containers: dict[str, ContainerFacts] = {}
    unfound: dict[str, ContainerNotFound] = {}
    records, failures = state.survey()
    problems = [("", one) for error in failures for one in error.diagnostics]
    for record in records:
        try:
            containers[record.name] = find_again(record)
        except ContainerNotFound as error:
            containers[record.name] = gone(record)
            unfound[record.name] = error
        except ScplanError as error:
            # The runtime does not answer: use the recorded process.
            containers[record.name] = as_plugged_in(record, boot_id())
            problems += [(record.name, one) for one in error.diagnostics]
    scene = Scene(containers, {}, partial(read_records, state)).only(containers.keys())
    return Known(scene, unfound, tuple(problems))


def unlisted(scene: Scene, state: State) -> list[Diagnostic]:
    """A notice about containers that have records but are in none of the files; none without files."""
    if scene.configuration is None:
        return []
    listed = {(facts.runtime, facts.name) for facts in scene.containers.values()}
    written = scene.configuration.containers.keys()
    rest = [pair for pair in state.names() if pair not in listed and pair[1] not in written]
    if not rest:
        return []
    shown = ", ".join(f"{name} ({_size(state, runtime, name)})" for runtime, name in rest[:_SHOWN])
    more = f", and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
    return [
        Diagnostic(
            summary=f"not in these files: {shown}{more}",
            hint="scplan goes on owning what it plugged in there; `scplan destroy NAME` removes it,"
            " `scplan state rm NAME` forgets it",
            severity=Severity.NOTICE,
        )
    ]


def emptied(scene: Scene) -> list[Diagnostic]:
    """A warning about each container of the files that has no entries while scplan owns resources in it."""
    if scene.configuration is None:
        return []
    owned = {address.container for address in scene.owned}
    found = []
    for name, reference in scene.written_as.items():
        config = scene.configuration.containers[reference]
        if name in owned and not config.resources:
            found.append(
                Diagnostic(
                    summary=f"container {name} has no entries: all that scplan owns there is removed",
                    hint="take its key out of the files, too, to leave it as it is",
                    source=config.source,
                    severity=Severity.WARNING,
                )
            )
    return found


def _size(state: State, runtime: str, name: str) -> str:
    try:
        record = state.read(runtime, name)
    except ScplanError:
        return "its record can't be read"
    count = len(record.resources) if record is not None else 0
    return f"{count} resource{'s' if count != 1 else ''}"


def read_records(state: State, containers: Mapping[str, ContainerFacts]) -> Records:
    """The records of these containers. Raises RecordDamaged, or ScplanError if a recorded process is in doubt."""
    owned: dict[Address, Resource] = {}
    lost: dict[Address, Resource] = {}
    stale: list[Record] = []
    renamed: set[str] = set()
    new: set[str] = set()
    for facts in containers.values():
        record = state.read(facts.runtime, facts.name)
        if record is None:
            continue
        if not is_about(record.id, record.place, facts) and not is_followed_by(record, facts):
            # Another container has the name now: the record is reported, and never applied to it.
            stale.append(record)
            continue
        # Without files `naming` is None: the record keeps its own.
        naming = facts.recorded_naming
        if naming is not None and naming != (record.naming or Naming()) and (facts.image or naming.image):
            renamed.add(facts.name)
        if facts.start_time and (not record.start_time or record.is_over(facts, boot_id())):
            new.add(facts.name)
        if record.is_over(facts, boot_id()):
            is_plugged_in(record, boot_id())  # raises if it is unknown whether the recorded process has ended
            lost.update(record.lost(facts, boot_id()))
            record = record.at_next_start()
        elif record.has_lent:
            # The container ended before, and its pod may still have things of the host.
            lost.update(record.lost(facts, boot_id()))
        owned.update(record.resources)
    return Records(owned, lost, tuple(stale), frozenset(renamed), frozenset(new))


def has_default_files() -> bool:
    return os.path.exists("scplan.yaml") or os.path.isdir("scplan.d")
