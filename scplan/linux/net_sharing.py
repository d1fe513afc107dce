"""Processes of containers in a network namespace: whether it lives on in a pod. network_namespaces(7), proc(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator

from scplan.linux.host import Host
from scplan.linux.namespaces import namespace_id
from scplan.linux.rooted_path import opened


def is_in(host: Host, pid: int, nsid: int) -> bool:
    """True if a process is in the network namespace that the host's has the id `nsid` for."""
    try:
        with opened(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as netns:
            return host.rtnl.nsid(netns) == nsid
    except OSError:
        return False  # it has ended


def has_container(host: Host, nsid: int) -> bool:
    """True if a process of any container is in that network namespace.

    A process in scplan's own mount and PID namespaces is the host's, as tcpdump in `nsenter --net`: it keeps the
    namespace alive, but nothing there is for it.
    """
    return any(is_in(host, pid, nsid) for pid in _one_of_each(host))


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
