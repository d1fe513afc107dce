"""iSulad: GRAPH/engines/RUNTIME/ID/ with config.v2.json and container_state.json, written by its daemon.

Since iSulad 2.0.8 the state is in container_state.json; older versions have it in `State` of config.v2.json, which is
empty now. Both files leave out false values and zeros.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from scplan.errors import RecordDamaged
from scplan.model.live import ContainerFacts
from scplan.runtimes.configured_hooks import state_dirs_in, state_dirs_in_bundle
from scplan.runtimes.runtime import ContainerName, Runtime, Signs, by_name_or_id
from scplan.runtimes.state_files import (
    damaged,
    facts_of,
    field,
    has_cgroup_of,
    labels_of,
    list_directories,
    plain,
    read_file,
    read_state,
    stopped,
)

_CONFIGURATION = "/etc/isulad/daemon.json"
_PID_FILE = "/run/isulad.pid"
_GRAPH = "/var/lib/isulad"
_PROGRAM = "isulad"
_FILE = "config.v2.json"
_STATE_FILE = "container_state.json"
_STATE_KEYS = frozenset(("Running", "Pid", "StartedAt", "FinishedAt", "ExitCode", "Starting", "Paused", "Restarting"))
# Hooks of lcr's containers: lcr writes this file, and LXC reads it instead of config.json. runc reads config.json.
_LCR_HOOKS = "ocihooks.json"


class Isulad(Runtime):
    name = "isulad"
    programs = (_PROGRAM,)
    has_own_ids = True

    def places(self) -> list[str]:
        return [f"{self._graph()}/engines"]

    def evidence(self) -> list[str]:
        # The directory of engines appears with the first container.
        return [*self.places(), self._graph()]

    def _graph(self) -> str:
        """Root directory of the daemon: `isulad -g`, else "graph" in daemon.json, else the default."""
        try:
            configuration = read_state(_CONFIGURATION) or {}
        except RecordDamaged as error:
            self.unreadable[_CONFIGURATION] = error
            configuration = {}
        else:
            self.unreadable.pop(_CONFIGURATION, None)
        pid_file = configuration.get("pidfile")
        chosen = _graph_of_daemon(pid_file if isinstance(pid_file, str) and pid_file else _PID_FILE)
        if chosen:
            # The daemon's command line takes precedence, so a damaged configuration file does not matter.
            self.unreadable.pop(_CONFIGURATION, None)
            return chosen
        graph = configuration.get("graph")
        return graph.rstrip("/") if isinstance(graph, str) and graph.startswith("/") else _GRAPH

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        names = by_name_or_id(reference, self.all())
        if not any(reference in one[:2] for one in names):
            for path, error in self.unreadable.items():
                # A damaged file hides the name, so the container may match. Its ID is the name of its directory.
                if not names or path.split("/")[-2].startswith(reference):
                    raise error
        return [facts for one in names if (facts := _facts(one)) is not None]

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        """The container by ID, else by name: a re-created container has another ID, and may use another runtime."""
        if not container_id:
            return self.find(name, None, None)
        directories = _directories(os.path.dirname(place)) if place else self._all_directories()
        for directory in directories:
            known = _name(directory, container_id)
            facts = _facts(known) if known is not None else None
            if facts is not None:
                return [facts]
        named = (one for one in self._all_in(directories) if one.name == name)
        return [facts for one in named if (facts := _facts(one)) is not None]

    def all(self) -> list[ContainerName]:
        return self._all_in(self._all_directories())

    def _all_directories(self) -> list[str]:
        (engines,) = self.places()
        return _directories(engines)

    def _all_in(self, directories: list[str]) -> list[ContainerName]:
        configuration = self.unreadable.get(_CONFIGURATION)
        self.unreadable.clear()
        if configuration is not None:
            self.unreadable[_CONFIGURATION] = configuration
        read = (self._name(place, one) for place in directories for one in list_directories(place))
        return [one for one in read if one is not None]

    def _name(self, place: str, container_id: str) -> ContainerName | None:
        """Name of a container; None while it is being created or removed, or if its file is damaged."""
        try:
            return _name(place, container_id)
        except RecordDamaged as error:
            self.unreadable[f"{place}/{container_id}/{_FILE}"] = error
            return None

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        directories = [place] if place else self._all_directories()
        files = tuple(f"{one}/{container_id}/{file}" for one in directories for file in (_STATE_FILE, _FILE))
        return Signs(files=files, is_polled=not files)

    def in_bundle(self, bundle: str, container_id: str) -> ContainerFacts | None:
        directory, _, own = os.path.normpath(bundle).rpartition("/")
        for place in [*([directory] if own == container_id else []), *self._all_directories()]:
            known = _name(place, container_id)
            if known is not None:
                return stopped(known, Isulad.name, place)._replace(**_made_of(place, container_id))
        return None

    def bundle(self, facts: ContainerFacts) -> str | None:
        directories = [facts.place] if facts.place else self._all_directories()
        paths = (f"{directory}/{facts.id}" for directory in directories)
        return next((path for path in paths if os.path.isfile(f"{path}/config.json")), None)

    def hook_state_dirs(self, facts: ContainerFacts) -> list[str] | None:
        """State directories of the hook: lcr reads hooks from a file of its own, other runtimes from config.json."""
        bundle = self.bundle(facts)
        if bundle is None:
            return []
        of_lcr = read_state(f"{bundle}/{_LCR_HOOKS}")
        return state_dirs_in_bundle(bundle) if of_lcr is None else state_dirs_in(of_lcr)


def _graph_of_daemon(pid_file: str) -> str:
    """Root directory from the running daemon's command line; "" if no daemon runs, or it has no such option.

    Source: proc_pid_cmdline(5); isulad -g, --graph.
    """
    text = (read_file(pid_file) or b"").strip()
    words = os.fsdecode(read_file(f"/proc/{int(text)}/cmdline") or b"").split("\0") if _is_pid(text) else [""]
    if os.path.basename(words[0]) != _PROGRAM:
        return ""  # the daemon has ended, and another process may have its PID
    rest = iter(words[1:])
    graph = ""
    for word in rest:
        if word in ("-g", "--graph"):
            graph = next(rest, "")
        elif word.startswith("--graph="):
            graph = word.removeprefix("--graph=")
        elif word.startswith("-g"):
            graph = word.removeprefix("-g").removeprefix("=")
    return graph.rstrip("/") if graph.startswith("/") else ""


def _is_pid(text: bytes) -> bool:
    return text.isdigit() and len(text) < 10


def _directories(engines: str) -> list[str]:
    """Directories with containers, one per runtime."""
    return [f"{engines}/{runtime}" for runtime in list_directories(engines)]


def _name(place: str, container_id: str) -> ContainerName | None:
    try:
        status = os.stat(f"{place}/{container_id}/{_FILE}")
    except OSError:
        return None  # the container is being created or removed
    # The file's version is part of the cache's key: a file that was replaced is parsed again.
    return _parsed(place, container_id, (status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=1024)
def _parsed(place: str, container_id: str, _version: tuple[int, ...]) -> ContainerName | None:
    path = f"{place}/{container_id}/{_FILE}"
    document = read_state(path)
    if document is None:
        return None
    name = plain(field(field(document, "CommonConfig", dict, path), "Name", str, path), path)
    return ContainerName(name, container_id, place)


def _facts(one: ContainerName) -> ContainerFacts | None:
    """Facts of a container; None if it was removed meanwhile.

    A restarting container has `Running` without a process, and counts as stopped.
    """
    path = f"{one.place}/{one.id}/{_STATE_FILE}"
    state = read_state(path)
    if state and not state.keys() & _STATE_KEYS:
        raise damaged(path, "it has nothing of a state")
    if state is None:
        path = f"{one.place}/{one.id}/{_FILE}"
        document = read_state(path)
        if document is None:
            return None
        path, state = f"{path}: State", field(document, "State", dict, path)
    running = state.get("Running") is True
    pid, started = (_number(state, key, path) if running else 0 for key in ("Pid", "StartTime"))
    if pid and not started and not has_cgroup_of(pid, one.id):
        pid = 0
    facts = facts_of(one.name, Isulad.name, pid, started, id=one.id, paused=state.get("Paused") is True)
    return facts._replace(cgroup=one.id, place=one.place, **_made_of(one.place, one.id))


def _number(state: dict[str, Any], key: str, path: str) -> int:
    return field(state, key, int, path) if key in state else 0


def _made_of(place: str, container_id: str) -> dict[str, Any]:
    """Image, labels and `is_temporary` (removed at its end), from iSulad's files about a container."""
    common = (read_state(f"{place}/{container_id}/{_FILE}") or {}).get("CommonConfig")
    common = common if isinstance(common, dict) else {}
    image, config = common.get("Image"), common.get("Config")
    return {
        "image": image if isinstance(image, str) and image != "none" else "",
        "labels": labels_of(config.get("Labels") if isinstance(config, dict) else None),
        "is_temporary": (read_state(f"{place}/{container_id}/hostconfig.json") or {}).get("AutoRemove") is True,
    }
