"""The container of a record: found again, gone, or replaced by another container with its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from scplan.errors import (
    ContainerElsewhere,
    ContainerNotFound,
    ContainerRenamed,
    ContainerReplaced,
    Diagnostic,
    EngineUnreachable,
    RecordDamaged,
    ScplanError,
    Severity,
)
from scplan.linux.host import boot_id
from scplan.linux.processes.process import is_in_cgroup, pid_namespace_of, sees_all_processes, start_of
from scplan.model.live import ContainerFacts, Naming, Status
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import is_generated, is_same_place
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import Record, State

_SHOWN_OF_ID = 12


def is_about(recorded_id: str, place: str, facts: ContainerFacts) -> bool:
    """True if a record with this ID and place is about the container; always for plain processes, without either."""
    return is_same_container(recorded_id, place, facts) or not recorded_id or RUNTIMES[facts.runtime].needs_pid


def is_same_container(container_id: str, place: str, facts: ContainerFacts) -> bool:
    """True if the container has this ID and place.

    A generated ID is enough if the place is only one of several addresses (sockets) of the same containers.
    """
    if container_id != facts.id:
        return False
    is_known_by_id = RUNTIMES[facts.runtime].is_place_an_address and is_generated(container_id)
    return is_known_by_id or is_same_place(place, facts.place)


def is_followed_by(record: Record, facts: ContainerFacts) -> bool:
    """True if a container with another ID is the record's container re-created: by name, image and label."""
    return not why_not_followed(record, facts)


def why_not_followed(record: Record, facts: ContainerFacts) -> str:
    """Reason why a record does not follow its name to a container with another ID; "" if it does."""
    if not RUNTIMES[facts.runtime].is_place_an_address and not is_same_place(record.place, facts.place):
        return f"it is in {facts.place}, the recorded one in {record.place}"
    declared, known = facts.naming, record.naming or Naming()
    # The files' naming counts, but `identity: name` alone keeps the recorded image and label.
    wanted = known if declared is None or not declared.by else declared
    if declared is not None and declared.by == "name" and not (declared.image or declared.label):
        wanted = known._replace(by="name")
    if not wanted.follows_name:
        return "it was made again, and its records do not follow the name"
    if wanted.image and not fnmatchcase(facts.image, wanted.image):
        return f"it is made of {facts.image or 'an image without a name'}, the recorded one of {wanted.image}"
    if not facts.image and not wanted.label:
        return "the name of its image is not known"
    labels = RUNTIMES[facts.runtime].labels(facts) if wanted.label else ()
    if labels is None:
        return "its labels are not known"
    if wanted.label and wanted.label not in labels:
        return f"it has no label {wanted.label}"
    return ""


def locate_recorded(record: Record) -> ContainerFacts:
    """The container of a record, running or not; under its recorded name if it was renamed since.

    Raises ContainerReplaced if another container has its name, and ContainerNotFound if no container has. Raises
    EngineUnreachable if this is unknown: the engine does not answer, or does not know a container whose process runs.
    """
    known = RUNTIMES.get(record.runtime)
    for facts in known.find_recorded(record.name, record.id, record.place) if known else ():
        if known and known.has_own_ids and is_same_container(record.id, record.place, facts):
            known.refuse_foreign(facts)
            return facts if facts.name == record.name else facts._replace(name=record.name, renamed_to=facts.name)
        if facts.name != record.name or (facts.status is Status.STOPPED and RUNTIMES[facts.runtime].needs_pid):
            continue  # a plain process that has ended has no container
        if not is_about(record.id, record.place, facts) and not is_followed_by(record, facts):
            raise replaced(record, facts)
        RUNTIMES[facts.runtime].refuse_foreign(facts)
        return facts
    if is_plugged_in(record, boot_id()):
        # The wrong engine was asked, or the container was removed from the engine alone.
        raise EngineUnreachable(
            f"container {record.name} is not known to {record.runtime} here, but its process {record.pid} runs",
            hint="is the environment as it was at its apply (DOCKER_HOST, INCUS_DIR, …)?",
        )
    raise ContainerNotFound(
        f"container {record.name} is gone from {record.runtime}",
        hint=_ways_out(record, "NEW"),
    )


def find_again(record: Record) -> ContainerFacts:
    """`locate_recorded`; but a container that is gone counts as stopped if its name alone identifies it.

    Many runtimes remove a container that has ended, and create it again to start it.
    """
    try:
        return locate_recorded(record)
    except ContainerReplaced:
        raise
    except ContainerNotFound:
        if not (record.follows_name or _is_made_out_by_name(record)):
            raise
        return gone(record)


def _is_made_out_by_name(record: Record) -> bool:
    """True if any container with the record's name and place is the same container to its runtime."""
    if record.id == record.name:
        return True
    known = RUNTIMES.get(record.runtime)
    # Neither name nor generated: LXC's ID is the path of the container.
    return known is not None and not (known.has_own_ids or known.needs_pid or is_generated(record.id))


def located_again(facts: ContainerFacts) -> ContainerFacts:
    """The container located again: it may have ended, or started, since.

    Raises ContainerNotFound if it ran before and was removed.
    """
    if facts.start_time and start_of(facts.pid) == facts.start_time:
        return facts
    try:
        known = Record(facts.name, facts.runtime, facts.id, {}, place=facts.place, naming=facts.recorded_naming)
        return find_again(known)._replace(naming=facts.naming)
    except ContainerNotFound:
        if facts.status is Status.STOPPED:
            return facts
        raise


class AboutStart(NamedTuple):
    """The next start of a container. `is_absent`: its engine no longer knows it.

    `state_dirs` are the state directories with which scplan's hook is called; None if unknown. `settings` are the
    cgroup settings that the engine gives a stopped container, as in Provided.
    """

    is_absent: bool
    state_dirs: tuple[str, ...] | None
    settings: Mapping[str, frozenset[str]] = MappingProxyType({})


def about_start(facts: ContainerFacts) -> AboutStart | None:
    """The next start of the container, as its engine will make it; None if the engine can't be reached.

    Not to be called under locks for a stopped container, or for an engine with `asks_for_hooks`: the engine may wait
    for scplan's hook, which waits for the locks.
    """
    engine = RUNTIMES[facts.runtime]
    is_running = facts.status is not Status.STOPPED
    try:
        is_absent = not is_running and not engine.find_recorded(facts.name, facts.id, facts.place)
        state_dirs = None if is_absent else engine.hook_state_dirs(facts)
        settings = {} if is_running or is_absent else engine.provided(facts).settings
        return AboutStart(is_absent, None if state_dirs is None else tuple(state_dirs), settings)
    except EngineUnreachable:
        return None
    except RecordDamaged:
        if not is_running:
            raise
        return None  # a running container needs no hook for its attached resources


def renamed(containers: Iterable[ContainerFacts]) -> list[Diagnostic]:
    """A warning about each container that has another name now than in its record."""
    return [
        Diagnostic(
            summary=f"container {facts.name} was renamed: {facts.runtime} has it as {facts.renamed_to}",
            hint=f"`scplan state mv {facts.name} {facts.renamed_to}` carries the records over to its name;"
            " the files must have that name then",
            severity=Severity.WARNING,
        )
        for facts in containers
        if facts.renamed_to
    ]


def refuse_renamed(facts: ContainerFacts, state: State) -> None:
    """Raises ContainerRenamed if this container has a record under a former name."""
    if not RUNTIMES[facts.runtime].has_own_ids or (facts.runtime, facts.name) in state.names():
        return
    for _, name in (pair for pair in state.names() if pair[0] == facts.runtime):
        record = state.read(facts.runtime, name)
        if record is not None and is_same_container(record.id, record.place, facts):
            raise ContainerRenamed(
                f"container {facts.name} was renamed: scplan's records have it as {name}",
                hint=f"`scplan state mv {name} {facts.name}` carries them over",
            )


def gone(record: Record) -> ContainerFacts:
    """The record's container as a stopped one."""
    return ContainerFacts(record.name, record.runtime, record.id, Status.STOPPED, place=record.place)


def as_plugged_in(record: Record, boot_id: str) -> ContainerFacts:
    """The record's container by the record alone: running if the recorded process still runs, else stopped."""
    return record.facts() if is_plugged_in(record, boot_id) else gone(record)


class Asked(NamedTuple):
    """A container, and the error if its engine did not answer, so that only record and process were consulted."""

    facts: ContainerFacts
    silent: EngineUnreachable | None = None

    @property
    def is_known(self) -> bool:
        """False if it is unknown whether the container runs: no answer of the engine, and no recorded process."""
        return self.silent is None or self.facts.status is not Status.STOPPED


def ask(record: Record, find: Callable[[Record], ContainerFacts]) -> Asked:
    """The record's container by `find`; if its engine can't be reached, by the recorded process."""
    try:
        return Asked(find(record))
    except EngineUnreachable as error:
        return Asked(as_plugged_in(record, boot_id()), error)


def is_plugged_in(record: Record, boot_id: str) -> bool:
    """True if the process to which the resources were attached still runs; asks no runtime.

    Raises ScplanError if this is unknown: then nothing may be attached, removed or forgotten.
    """
    # Start times count from boot, so a process of another boot can have an equal one. random(4), boot_id.
    if not record.start_time or record.boot_id != boot_id:
        return False
    # A PID is valid in one PID namespace only. pid_namespaces(7).
    if record.pid_namespace and not sees_all_processes():
        raise ScplanError(
            f"container {record.name}: its records name process {record.pid} of the host's PID namespace",
            detail="scplan runs in another PID namespace, where processes have other numbers",
            hint="run scplan in that of the host (`--pid=host` for a container in which it runs)",
        )
    # The kernel reuses PIDs: PID and start time together identify a process within one boot.
    if start_of(record.pid) != record.start_time:
        return False
    why = _why_another_process(record)
    # Look again: an exiting process leaves its cgroups before it is seen to have ended.
    if why and start_of(record.pid) == record.start_time:
        raise ScplanError(
            f"container {record.name}: process {record.pid} is not as its records have it",
            detail=why,
            hint=f"move it back; or `scplan state rm {record.name}` forgets the records",
        )
    return True


def _why_another_process(record: Record) -> str:
    """Difference of the process with the record's PID from the recorded process; "" if none is known."""
    pid_namespace = pid_namespace_of(record.pid)
    if record.pid_namespace and pid_namespace not in (0, record.pid_namespace):
        return f"it is in PID namespace {pid_namespace}, the container's in {record.pid_namespace}"
    if record.cgroup and is_in_cgroup(record.pid, record.cgroup) is False:
        return f"it is not in the container's cgroup, {record.cgroup}"
    return ""


def replaced(record: Record, facts: ContainerFacts) -> ContainerReplaced:
    """The error if another container has the record's name: a record is applied to it only if the user moves it."""
    if not is_same_place(record.place, facts.place):
        return ContainerElsewhere(
            f"container {record.name} is not the one that scplan's records are about: that is in another place",
            detail=f"{facts.runtime} has this one in {facts.place}, the recorded one in {record.place}",
            hint=f"choose the other one by {facts.runtime}'s environment; {_ways_out(record, record.name)};"
            " another `--state-dir` has records of its own",
        )
    known = f"{facts.runtime} has {_short(facts.id)} under this name, the records are about {_short(record.id)}"
    why = f"; {why_not_followed(record, facts)}" if record.follows_name else ""
    return ContainerReplaced(
        f"container {record.name} is not the one that scplan's records are about: it was made again",
        detail=f"{known}{why}",
        hint=_ways_out(record, record.name),
    )


def _ways_out(record: Record, name: str) -> str:
    """Hint with the commands that move or forget the record."""
    to = "this one" if name == record.name else "another container"
    old = record.name
    found = f"`scplan state mv {old} {name}` carries the records over to {to}, `scplan state rm {old}` forgets them"
    return found if record.follows_name else f"{found}; with `identity: name` in the files they follow the name"


def _short(container_id: str) -> str:
    return container_id[:_SHOWN_OF_ID] if len(container_id) == 64 else container_id
