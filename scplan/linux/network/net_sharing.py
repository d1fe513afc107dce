"""Processes of containers that keep a network namespace, such as a pod's, alive. network_namespaces(7), proc(5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from scplan.linux.host import Host
from scplan.linux.paths.rooted_path import opened
from scplan.linux.processes.namespaces import namespace_id


def is_in(host: Host, pid: int, nsid: int) -> bool:
    """True if a process is in the network namespace that has the ID `nsid` in the host's."""
    try:
        with opened(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as netns:
            return host.rtnl.nsid(netns) == nsid
    except OSError:
        return False  # the process has ended


def is_behind(pid: int, netns_fd: int) -> bool:
    """True if a process is in the network namespace of an fd."""
    try:
        return namespace_id(f"/proc/{pid}/ns/net") == os.fstat(netns_fd).st_ino
    except OSError:
        return False  # the process has ended


def container_in(host: Host, is_there: Callable[[int], bool]) -> int:
    """PID of a container's process in the network namespace for which `is_there` returns True; 0 if there is none.

    A process in scplan's own mount and PID namespaces belongs to the host, such as tcpdump in `nsenter --net`: it keeps
    the namespace alive, but needs none of the resources in it.
    """
    return next(filter(is_there, _one_of_each(host)), 0)


def _one_of_each(host: Host) -> Iterator[int]:
    """PID of one container process in each network namespace except the host's."""
    seen = {host.namespace_id("net")}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            netns = namespace_id(f"/proc/{entry}/ns/net")
            if netns in seen or _is_of_host(host, entry):
                continue
        except OSError:
            continue  # the process has ended
        seen.add(netns)
        yield int(entry)


def _is_of_host(host: Host, pid: str) -> bool:
    return all(namespace_id(f"/proc/{pid}/ns/{kind}") == host.namespace_id(kind) for kind in ("mnt", "pid"))
