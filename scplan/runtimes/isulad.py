"""iSulad: GRAPH/engines/RUNTIME/ID/config.v2.json, which its daemon keeps for each container."""

from __future__ import annotations

import os
from functools import lru_cache

from scplan.errors import RecordDamaged
from scplan.model.live import ContainerFacts
from scplan.runtimes.runtime import ContainerName, Runtime, Signs, by_name_or_id
from scplan.runtimes.state_files import facts_of, field, list_directories, plain, read_state

_CONFIGURATION = "/etc/isulad/daemon.json"
_GRAPH = "/var/lib/isulad"
_FILE = "config.v2.json"


class Isulad(Runtime):
    name = "isulad"

    def places(self) -> list[str]:
        graph = (read_state(_CONFIGURATION) or {}).get("graph")
        return [f"{graph if isinstance(graph, str) and graph else _GRAPH}/engines"]

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        names = by_name_or_id(reference, self.all())
        if not any(reference in one[:2] for one in names):
            for path, error in self.unreadable.items():
                # Its name is not known: it may be the one. Its ID is that of its directory.
                if not names or path.split("/")[-2].startswith(reference):
                    raise error
        return [facts for one in names if (facts := _facts(one)) is not None]

    def all(self) -> list[ContainerName]:
        (engines,) = self.places()
        directories = [f"{engines}/{engine}" for engine in list_directories(engines)]
        self.unreadable.clear()
        read = (self._name(place, one) for place in directories for one in list_directories(place))
        return [one for one in read if one is not None]

    def _name(self, place: str, container_id: str) -> ContainerName | None:
        """None for one that is being made or removed, or whose file is damaged."""
        try:
            return _name(place, container_id)
        except RecordDamaged as error:
            self.unreadable[f"{place}/{container_id}/{_FILE}"] = error
            return None

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        if not place:
            return self.find(name, None, None)
        read = (self._name(place, one) for one in list_directories(place))
        named = [one for one in read if one is not None and one.name == name]
        return [facts for one in named if (facts := _facts(one)) is not None]

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        (engines,) = self.places()
        directories = [place] if place else [f"{engines}/{one}" for one in list_directories(engines)]
        files = tuple(f"{one}/{container_id}/{_FILE}" for one in directories)
        return Signs(files=files, is_polled=not files)

    def bundle(self, facts: ContainerFacts) -> str | None:
        (engines,) = self.places()
        directories = [facts.place] if facts.place else [f"{engines}/{one}" for one in list_directories(engines)]
        paths = (f"{directory}/{facts.id}" for directory in directories)
        return next((path for path in paths if os.path.isfile(f"{path}/config.json")), None)


def _name(place: str, container_id: str) -> ContainerName | None:
    try:
        status = os.stat(f"{place}/{container_id}/{_FILE}")
    except OSError:
        return None  # being made or removed, and so not there
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
    path = f"{one.place}/{one.id}/{_FILE}"
    document = read_state(path)
    if document is None:
        return None
    state = field(document, "State", dict, path)
    running = state.get("Running") is True
    pid = field(state, "Pid", int, f"{path}: State") if running else 0
    started = field(state, "StartTime", int, f"{path}: State") if running and "StartTime" in state else 0
    return facts_of(one.name, Isulad.name, pid, started, id=one.id, paused=state.get("Paused") is True)._replace(
        cgroup=one.id, place=one.place
    )
