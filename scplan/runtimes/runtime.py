"""The contract of a container runtime: a name or ID prefix becomes the facts of one container.

A runtime is one module with a subclass of `Runtime`; it reads state files or API sockets, never runs a command.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from scplan.errors import ContainerNotFound, KernelError, RecordDamaged
from scplan.linux.container import start_time
from scplan.model.live import ContainerFacts, Status

MAX_STATE_BYTES = 8 << 20
AUTO = "auto"


class Runtime(ABC):
    """One runtime. `find` takes what a user wrote and returns every container that it can mean."""

    name: ClassVar[str]
    needs_pid: ClassVar[bool] = False
    """Whether its containers are named by `pid` or `pid_file` in the configuration instead."""

    @abstractmethod
    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        """Containers that `reference` names: the exact one, else those whose ID begins with it; none is no error."""

    def find_recorded(self, name: str, container_id: str) -> list[ContainerFacts]:
        """The container that a record is about, by the name and ID that `find` had given it."""
        return self.find(name, None, None)


Runtimes = Mapping[str, Runtime]


def locate(
    reference: str, runtime: str, runtimes: Runtimes, *, pid: int | None = None, pid_file: str | None = None
) -> ContainerFacts:
    """The one container that is meant. `runtime` is a name of the registry, or auto: ask all of them.

    Raises ContainerNotFound when there is none, or more than one.
    """
    if runtime != AUTO and runtime not in runtimes:
        raise ContainerNotFound(
            f"container {reference!r}: this version of scplan can't talk to {runtime}",
            hint=f"it knows {', '.join(runtimes)}; any other container is reached as `runtime: process` by its pid",
        )
    asked = [runtimes[runtime]] if runtime != AUTO else [known for known in runtimes.values() if not known.needs_pid]
    found = [facts for known in asked for facts in known.find(reference, pid, pid_file)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(known.name for known in asked)
    if not found:
        raise ContainerNotFound(
            f"no container {reference!r}", detail=f"asked: {names}", hint="is it created, and is scplan run as root?"
        )
    listed = ", ".join(f"{facts.name} ({facts.runtime})" for facts in found)
    raise ContainerNotFound(
        f"{reference!r} can mean {len(found)} containers: {listed}", hint="write more of its name, or `runtime:`"
    )


def by_reference(reference: str, names: Iterable[str]) -> list[str]:
    """The name itself when it is there, else every name that begins with it."""
    names = list(names)
    return [reference] if reference in names else sorted(name for name in names if name.startswith(reference))


def read_state(path: str) -> dict[str, Any] | None:
    """A runtime's JSON state file; None when it is not there. Raises RecordDamaged when it is not an object."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_STATE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error) from None
    try:
        document = json.loads(text) if len(text) <= MAX_STATE_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RecordDamaged(
            f"{path} is not the state of a container", hint="ask its runtime: `runc state`, `crun state`"
        )
    return document


def facts_of(name: str, runtime: str, pid: int, recorded_start: int, *, id: str | None = None) -> ContainerFacts:
    """Facts of a container whose runtime recorded `pid`: stopped when that process is gone or is another one."""
    started = process_start(pid)
    running = bool(started) and recorded_start in (0, started)
    return ContainerFacts(
        name=name,
        runtime=runtime,
        id=name if id is None else id,
        status=Status.RUNNING if running else Status.STOPPED,
        pid=pid if running else 0,
        start_time=started if running else 0,
    )


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks after boot; 0 when there is none, or only a zombie."""
    if pid <= 0:
        return 0
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if stat.rpartition(b")")[2].split()[0] in (b"Z", b"X") else start_time(stat)


def list_directories(path: str) -> list[str]:
    """Names of the directories in `path`; none when it is absent or can't be read."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def rootless_directory(name: str) -> str | None:
    """Where a runtime run by this user keeps its state: $XDG_RUNTIME_DIR/NAME."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return f"{base}/{name}" if base and os.geteuid() else None
