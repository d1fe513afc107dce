"""A plain process with its own namespaces, named by `pid` or `pid_file` in the configuration."""

from __future__ import annotations

import os
import time

from scplan.errors import ContainerNotFound, KernelError
from scplan.model.live import ContainerFacts
from scplan.runtimes.runtime import ContainerName, Runtime, Signs
from scplan.runtimes.state_files import facts_of

_MAX_PID_FILE_BYTES = 64
# Tolerance between the time of a file (wall clock) and the start time of a process (clock ticks after boot).
_CLOCK_SLACK_S = 2.0


class Process(Runtime):
    name = "process"
    needs_pid = True

    def places(self) -> list[str]:
        return ["/proc"]

    def all(self) -> list[ContainerName]:
        return []  # any process could be a container

    def find(self, reference: str, pid: int | None, pid_file: str | None) -> list[ContainerFacts]:
        number = pid if pid is not None else _read_pid(reference, pid_file)
        found_by = f"pid:{pid}" if pid is not None else f"pid_file:{pid_file}"
        return [facts_of(reference, self.name, number, 0, id=found_by)]

    def signs(self, name: str, container_id: str, place: str = "") -> Signs:
        key, _, value = container_id.partition(":")
        # A process named by its PID does not start again, so its start has no signs.
        return Signs(files=(value,)) if key == "pid_file" else Signs()

    def doubts(self, facts: ContainerFacts, container_id: str) -> str:
        key, _, path = container_id.partition(":")
        if key != "pid_file":
            return "its pid was taken again: a process that is named by its number does not start again"
        try:
            written = os.stat(path).st_mtime
        except OSError:
            return f"{path} is gone"
        # proc_pid_stat(5): the start time is in clock ticks after boot; CLOCK_BOOTTIME counts from the same moment.
        began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + facts.start_time / os.sysconf("SC_CLK_TCK")
        if written < began - _CLOCK_SLACK_S:
            return f"{path} was written before its process began: the pid was taken again"
        return ""

    def find_recorded(self, name: str, container_id: str, place: str = "") -> list[ContainerFacts]:
        key, _, value = container_id.partition(":")
        if key == "pid":
            return self.find(name, int(value), None)
        return self.find(name, None, value)


def _read_pid(reference: str, pid_file: str | None) -> int:
    if pid_file is None:
        raise ContainerNotFound(f"container {reference}: the runtime process needs `pid` or `pid_file`")
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer. fifo(7)
        fd = os.open(pid_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ContainerNotFound(
            f"container {reference}: there is no {pid_file}", hint="the file appears when its process is started"
        ) from None
    except OSError as error:
        raise KernelError.from_os(f"open({pid_file})", error) from None
    try:
        text = os.read(fd, _MAX_PID_FILE_BYTES).strip()
    except OSError as error:
        raise KernelError.from_os(f"read({pid_file})", error) from None
    finally:
        os.close(fd)
    if not text.isdigit() or not 0 < int(text) <= 1 << 22:
        raise ContainerNotFound(f"container {reference}: {pid_file} holds no process ID")
    return int(text)
