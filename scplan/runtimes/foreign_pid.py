"""Checks that a PID from an engine is the container's: it may be of another PID namespace than scplan's.

A daemon in its own PID namespace, whose socket is shared with the host, reports the PIDs of that namespace.
Sources: pid_namespaces(7), proc_pid_cgroup(5), proc_pid_cmdline(5).
"""

from __future__ import annotations

import os
import re

from scplan.errors import EngineUnreachable
from scplan.linux.local_socket import process_behind
from scplan.linux.processes.process import parent_of, start_of
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes.state_files import read_file


def refuse_foreign(facts: ContainerFacts, socket: str, *, cgroup: str, monitor: str) -> None:
    """Raises EngineUnreachable if the process is not the container's, or the engine is in another PID namespace.

    The container's process is in a cgroup whose name matches the regular expression `cgroup`, or its parent, which
    set up the container, has `monitor` among its arguments.
    """
    if facts.status is Status.STOPPED:
        if _counts_elsewhere(socket):
            raise _refused(facts, socket, "the engine is in another PID namespace: what runs there is not known here")
        return
    if _is_in(facts.pid, cgroup) or _has_parent(facts.pid, monitor):
        return
    if start_of(facts.pid) == facts.start_time:
        why = f"process {facts.pid} of this PID namespace is in no cgroup of it, and was not started for it"
        raise _refused(facts, socket, why)


def _refused(facts: ContainerFacts, socket: str, why: str) -> EngineUnreachable:
    engine = f"{facts.runtime} at {socket.replace(chr(0), '@')}"
    return EngineUnreachable(
        f"container {facts.name}: the PID that {engine} names is not its PID here",
        detail=why,
        hint="run scplan in the PID namespace of that engine, or name the container by `runtime: process` and its pid",
    )


def _is_in(pid: int, cgroup: str) -> bool:
    text = read_file(f"/proc/{pid}/cgroup") if start_of(pid) else None
    parts = os.fsdecode(text or b"").replace("\n", "/").split("/")
    return any(re.fullmatch(cgroup, part) for part in parts)


def _has_parent(pid: int, argument: str) -> bool:
    parent = parent_of(pid)
    text = read_file(f"/proc/{parent}/cmdline") if parent else None
    return argument in (word.strip() for word in os.fsdecode(text or b"").split("\0"))


def _counts_elsewhere(socket: str) -> bool:
    """True if the process that listens at the socket is in another PID namespace than scplan."""
    pid = process_behind(socket)
    if pid is None:
        return False
    try:
        # PID 0: the process is not visible in scplan's PID namespace. pid_namespaces(7)
        return pid == 0 or os.stat(f"/proc/{pid}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino
    except FileNotFoundError:
        return False  # the process that called listen(2) has ended; another process has inherited the socket
