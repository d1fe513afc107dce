"""Processes of containers in a network namespace: whether it lives on in a pod. network_namespaces(7), proc(5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from scplan.linux.host import Host
from scplan.linux.paths.rooted_path import opened
from scplan.linux.processes.namespaces import namespace_id


def is_in(host: Host, pid: int, nsid: int) -> bool:
    """True if a process is in the network namespace that the host's has the id `nsid` for."""
    try:
        with opened(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as netns:
            return host.rtnl.nsid(netns) == nsid
    except OSError:
        return False  # it has ended


def is_behind(pid: int, netns_fd: int) -> bool:
    """True if a process is in the network namespace of an fd."""
    try:
        return namespace_id(f"/proc/{pid}/ns/net") == os.fstat(netns_fd).st_ino
    except OSError:
        return False  # it has ended


def container_in(host: Host, is_there: Callable[[int], bool]) -> int:
    """PID of a process of a container in the network namespace that `is_there` returns True for; 0 if there is none.

    A process in scplan's own mount and PID namespaces is the host's, as tcpdump in `nsenter --net`: it keeps the
    namespace alive, but nothing there is for it.
    """
    return next(filter(is_there, _one_of_each(host)), 0)


def _one_of_each(host: Host) -> Iterator[int]:
    """A process of a container for each network namespace but the host's."""
    seen = {host.namespace_id("net")}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            netns = namespace_id(f"/proc/{entry}/ns/net")
            if netns in seen or _is_of_host(host, entry):
                continue
        except OSError:
            continue  # it has ended
        seen.add(netns)
        yield int(entry)


def _is_of_host(host: Host, pid: str) -> bool:
    return all(namespace_id(f"/proc/{pid}/ns/{kind}") == host.namespace_id(kind) for kind in ("mnt", "pid"))
