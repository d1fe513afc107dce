"""Runtimes that keep a directory with a JSON state file for each container: runc(8) and crun(1)."""

from __future__ import annotations

from scplan.errors import RecordDamaged
from scplan.model.live import ContainerFacts
from scplan.runtimes.runtime import Runtime, by_reference, facts_of, list_directories, read_state, rootless_directory


class StateDirectoryRuntime(Runtime):
    """`ROOT/ID/FILE` holds the PID of a container and, in clock ticks after boot, when it started."""

    file: str
    pid_key: str
    start_key: str

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        root = rootless_directory(self.name) or f"/run/{self.name}"
        exact = self._read(root, reference)
        if exact is not None:
            return [exact]
        read = (self._read(root, name) for name in by_reference(reference, list_directories(root)))
        return [facts for facts in read if facts is not None]

    def _read(self, root: str, name: str) -> ContainerFacts | None:
        path = f"{root}/{name}/{self.file}"
        state = read_state(path)
        if state is None:
            return None
        pid, started = state.get(self.pid_key), state.get(self.start_key, 0)
        if type(pid) is not int or type(started) is not int:
            raise RecordDamaged(f"{path}: {self.pid_key} or {self.start_key} is not a number")
        return facts_of(name, self.name, pid, started)
