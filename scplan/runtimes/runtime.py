"""The contract of a container runtime: it finds a container by name or ID prefix, and returns its facts.

Each runtime is one module with a subclass of `Runtime`. It reads state files or API sockets, and never runs a command.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from scplan.errors import ContainerNotFound, EngineUnreachable, KernelError, NoSuchContainer, RecordDamaged
from scplan.linux.processes.process import is_in_cgroup, start_of
from scplan.model.live import ContainerFacts
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.model.provided import Provided

AUTO = "auto"
# `auto` treats a runtime as absent if its socket has no listener (ECONNREFUSED) or is closed to this user.
_NOT_THERE = (errno.ECONNREFUSED, errno.ENOENT, errno.EACCES, errno.EPERM)
_GENERATED_ID_LENGTH = 64
_HEXADECIMAL = frozenset("0123456789abcdef")


class ContainerName(NamedTuple):
    """A container as its runtime lists it. `place` is the directory or socket where the runtime found it.

    `image` and `is_temporary` are as in ContainerFacts, and set if the runtime lists them with the name.
    """

    name: str
    id: str
    place: str = ""
    image: str = ""
    is_temporary: bool = False


class Stream(NamedTuple):
    """A daemon's socket, and an HTTP target whose response never ends: it has one line per event."""

    socket: str
    target: str


class Signs(NamedTuple):
    """Signs of a container's start. A sign is only a hint: the runtime has to be queried.

    `files` are written at the start. `streams` send a line with the container's ID. `is_polled`: neither is certain,
    so the runtime has to be polled.
    """

    files: tuple[str, ...] = ()
    streams: tuple[Stream, ...] = ()
    is_polled: bool = False


class Runtime(ABC):
    """One runtime. `find` takes a reference written by a user, and returns every container that it can mean."""

    name: ClassVar[str]
    needs_pid: ClassVar[bool] = False
    """True if its containers are named by `pid` or `pid_file` in the configuration instead."""
    programs: ClassVar[tuple[str, ...]] = ()
    """Programs that show that it is installed, where its places appear with its first container."""
    runs_for_engines: ClassVar[bool] = False
    """True if engines run their containers by it, so that it knows these as well, by their generated IDs."""
    has_own_ids: ClassVar[bool] = False
    """True if it generates an ID for each container, which stays when that is renamed."""
    is_place_an_address: ClassVar[bool] = False
    """True if the place is one of several ways to the same containers, which have generated IDs."""
    asks_for_hooks: ClassVar[bool] = False
    """True if a daemon has to be asked for the hooks of a container that runs, which must not be done under locks."""
    as_owner: ClassVar[str] = ""
    """A command that runs another one with authority over the rootless containers of a user; "" where there is none."""

    @cached_property
    def unreadable(self) -> dict[str, RecordDamaged]:
        """Errors of damaged state files that `find` and `all` skipped, by path."""
        return {}

    @abstractmethod
    def places(self) -> list[str]:
        """State directories or sockets where the runtime's containers are looked for; they may be absent."""

    def evidence(self) -> list[str]:
        """Paths, at least one of which exists on a host with this runtime, even before its first container."""
        return self.places()

    @abstractmethod
    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        """Containers that `reference` names: the exact match, else all whose generated ID begins with it, else none."""

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        """The container of a record, by the name, ID and place that `find` returned for it.

        Searches that place only, whatever the environment names now; place "": the places of `find`.
        """
        return self.find(name, None, None)

    def refuse_foreign(self, facts: ContainerFacts) -> None:
        """Raises EngineUnreachable if the process that the engine names is not the container's.

        Checks the cgroup, since PID and start time are not enough: state files may survive a reboot, and then a process
        of the host can have both, as it was started at boot, too.
        """
        is_outside = bool(facts.cgroup) and is_in_cgroup(facts.pid, facts.cgroup) is False
        if is_outside and start_of(facts.pid) == facts.start_time:
            raise EngineUnreachable(
                f"container {facts.name}: the process that {facts.runtime} names, {facts.pid}, is not the container's",
                detail=f"it is not in its cgroup, {facts.cgroup}",
                hint=f"ask {facts.runtime} for the container's state; a process that was moved to another cgroup by"
                " hand can be named as `runtime: process`",
            )

    def check_reachable(self, place: str) -> None:  # noqa: B027 - most runtimes keep files, not a daemon
        """Raises EngineUnreachable if the daemon of a place's containers does not answer."""

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        """Signs of a start of the recorded container."""
        return Signs(is_polled=True)

    def doubts(self, facts: ContainerFacts, container_id: str) -> str:
        """Reason why the process may not be the container's, so that the user must decide; "" if it certainly is."""
        return ""

    @abstractmethod
    def all(self) -> list[ContainerName]:
        """All containers of the runtime, running or not, in no particular order."""

    def in_bundle(self, bundle: str, container_id: str) -> ContainerFacts | None:
        """The container of a bundle as its engine's files name it, with status stopped; None if they do not name it.

        For hooks: queries no daemon, which may be waiting for the hook. Only for engines whose containers have a name
        and a generated ID.
        """
        return None

    def labels(self, facts: ContainerFacts) -> tuple[str, ...] | None:
        """Labels of the container, as KEY=VALUE; None if they cannot be read."""
        return facts.labels

    def bundle(self, facts: ContainerFacts) -> str | None:
        """Directory of the container's OCI config.json; None if the container has none."""
        return None

    def provided(self, facts: ContainerFacts) -> Provided:
        """Devices, NICs, mounts and limits that the runtime itself adds at each start. Raises ScplanError."""
        from scplan.runtimes.provided import of_bundle, of_cni

        bundle = facts.bundle or self.bundle(facts)
        cni = of_cni(facts.id, self.name)
        return of_bundle(bundle, self.name).joined(cni) if bundle else cni

    def hook_state_dirs(self, facts: ContainerFacts) -> list[str] | None:
        """State directories for which scplan's hook is called at the container's start; empty without the hook.

        None if they cannot be determined.
        """
        bundle = self.bundle(facts)
        from scplan.runtimes.configured_hooks import state_dirs_in_bundle

        return [] if bundle is None else state_dirs_in_bundle(bundle)

    def has_hook(self, facts: ContainerFacts) -> bool:
        """True if scplan's hook runs when the container starts."""
        return bool(self.hook_state_dirs(facts))


Runtimes = Mapping[str, Runtime]


class AmbiguousContainer(ContainerNotFound):
    """A reference matches several containers, which are in `found`."""

    found: tuple[ContainerFacts, ...] = ()

    @classmethod
    def among(cls, reference: str, found: Iterable[ContainerFacts]) -> AmbiguousContainer:
        found = tuple(found)
        error = cls(
            f"{reference!r} can mean {len(found)} containers: {', '.join(map(_told, found))}",
            hint="write its whole name or ID, or `runtime:`; or choose the place by the engine's environment variable",
        )
        error.found = found
        return error


def locate(
    reference: str, runtime: str, runtimes: Runtimes, *, pid: int | None = None, pid_file: str | None = None
) -> ContainerFacts:
    """The only container that `reference` matches. `runtime` is a registered name, or `auto` to query all runtimes.

    An exact name or ID takes precedence over the prefix of a generated ID. Raises NoSuchContainer if no container
    matches, AmbiguousContainer if several do.
    """
    if runtime != AUTO and runtime not in runtimes:
        raise ContainerNotFound(
            f"container {reference!r}: this version of scplan can't talk to {runtime}",
            hint=f"it knows {', '.join(runtimes)}; any other container is reached as `runtime: process` by its pid",
        )
    asked = [runtimes[runtime]] if runtime != AUTO else [known for known in runtimes.values() if not known.needs_pid]
    answers: list[ContainerFacts] = []
    silent: list[str] = []
    unreachable: list[EngineUnreachable] = []
    broken: dict[str, RecordDamaged] = {}
    for known in asked:
        try:
            answers += known.find(reference, pid, pid_file)
        except RecordDamaged as error:
            if runtime != AUTO:
                raise
            broken[known.name] = error
        except (KernelError, EngineUnreachable) as error:
            if runtime != AUTO or error.errno not in _NOT_THERE:
                raise
            if isinstance(error, EngineUnreachable) and error.errno != errno.ENOENT:
                unreachable.append(error)  # the engine is installed, and may have the container
            elif isinstance(error, KernelError):
                silent.append(f"{known.name} could not be asked: {error}")
    found = _meant(reference, answers)
    if broken and not (len(found) == 1 and _is_sure(found[0], reference, runtimes, broken)):
        raise next(iter(broken.values()))
    for name, damage in broken.items():
        if damage not in runtimes[name].unreadable.values():
            runtimes[name].unreadable[str(damage)] = damage
    if len(found) == 1:
        runtimes[found[0].runtime].refuse_foreign(found[0])
        return found[0]
    if not found and unreachable:
        raise unreachable[0]
    if not found:
        silent += (f"left out: {path}, which is damaged" for known in asked for path in known.unreadable)
        raise _not_found(reference, asked, silent)
    raise AmbiguousContainer.among(reference, found)


def _is_sure(facts: ContainerFacts, reference: str, runtimes: Runtimes, broken: Mapping[str, RecordDamaged]) -> bool:
    """True if no damaged state file can belong to another container that the reference matches.

    An engine precedes its OCI runtime in the registry, and gives its containers generated IDs.
    """
    if reference not in (facts.name, facts.id):
        return False
    order = list(runtimes)
    if all(order.index(facts.runtime) < order.index(name) for name in broken):
        return True
    if runtimes[facts.runtime].runs_for_engines and is_generated(facts.id):
        return False
    return not any(f"/{reference}/" in str(error) for error in broken.values())


def _meant(reference: str, answers: Iterable[ContainerFacts]) -> list[ContainerFacts]:
    """Matching containers without duplicates, only exact matches if there are any.

    Of duplicates the first counts: it is from the outermost runtime, which comes first in the registry.
    """
    found: list[ContainerFacts] = []
    for facts in answers:
        if not any(_is_same(facts, other) for other in found):
            found.append(facts)
    exact = [facts for facts in found if reference in (facts.name, facts.id)]
    return exact or found


def _is_same(one: ContainerFacts, other: ContainerFacts) -> bool:
    """True if both facts are of one container: engines run containers by runc or crun, under the same generated ID."""
    if one.pid and other.pid:
        return one.pid == other.pid
    return one.id == other.id and is_generated(one.id)


def _told(facts: ContainerFacts) -> str:
    same = "" if facts.id == facts.name else f", {facts.id[:12] if is_generated(facts.id) else facts.id}"
    place = "" if same or not facts.place else f", {facts.place}"
    return f"{facts.name} ({facts.runtime}{same}{place})"


def _not_found(reference: str, asked: list[Runtime], silent: list[str]) -> NoSuchContainer:
    lines = [f"asked: {', '.join(known.name for known in asked)}", *silent]
    if len(asked) == 1 and not asked[0].needs_pid:
        lines.append(f"looked in {', '.join(asked[0].places())}")
    return NoSuchContainer(
        f"no container {reference!r}", detail="\n".join(lines), hint="is it created, and is scplan run as root?"
    )


def is_generated(container_id: str) -> bool:
    """True for an ID that an engine generated, which is unique on all hosts: 64 hexadecimal digits."""
    return len(container_id) == _GENERATED_ID_LENGTH and _HEXADECIMAL.issuperset(container_id)


def begins_id(reference: str, container_id: str) -> bool:
    """True if `container_id` is a generated ID that begins with `reference`.

    An ID that people chose has no short form: `web` does not match `web-canary`.
    """
    return is_generated(container_id) and container_id.startswith(reference)


def is_same_place(one: str, other: str) -> bool:
    """True if both paths lead to the same place, or if one of them is unknown ("")."""
    return one == other or not one or not other or os.path.realpath(one) == os.path.realpath(other)


def by_name_or_id(reference: str, names: Iterable[ContainerName]) -> list[ContainerName]:
    """Containers with that ID; else with that name; else all whose generated ID begins with it. Sorted by name."""
    names = list(names)
    for matches in (
        [one for one in names if one.id == reference],
        [one for one in names if one.name == reference],
        [one for one in names if begins_id(reference, one.id)],
    ):
        if matches:
            return sorted(matches)
    return []


def by_reference(reference: str, names: Iterable[str]) -> list[str]:
    """Matching names, for runtimes whose ID is the name: the exact name, else generated names that begin with it."""
    names = list(names)
    return [reference] if reference in names else sorted(name for name in names if begins_id(reference, name))
