"""NICs of ended containers: physical ones are returned to the host, left-over host ends of veths are deleted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial

from scplan.kinds.nic.changing import restore_on_host
from scplan.kinds.nic.live import is_like
from scplan.kinds.nic.record import Nic
from scplan.linux.host import Host
from scplan.linux.network import links, net_sharing, pins
from scplan.linux.network.netlink import Link, Rtnl, open_socket
from scplan.linux.paths.rooted_path import opened
from scplan.linux.processes.namespaces import socket_in
from scplan.startup.named_tuple import NamedTuple

# Name that the kernel gives a NIC which returns to a host where its name is in use.
# default_device_exit_net() in net/core/dev.c: "dev%d"
_FALLBACK_NAME = re.compile(r"dev\d+", re.ASCII)
# Limit for the return of hardware, in seconds.
_RETURN_S = 3.0
_RETURN_POLL_S = 0.02


def reclaim(host: Host, nic: Nic) -> None:
    """Return a lent NIC of an ended container to the host, or delete the host end that is left of a veth."""
    if not nic.is_physical:
        _delete_left_end(host, nic)
    elif not _fetch_from_pin(host, nic):
        _await_return(host, nic)
    if nic.pinned is not None:
        pins.unpin(nic.pinned)
    host.forget()


class Stranded(NamedTuple):
    """A physical NIC that its container left somewhere, and that place in words."""

    link: Link
    place: str


def stranded(host: Host, nic: Nic) -> Stranded | None:
    """A physical NIC that is not on the host, or not in its former state; None if there is none."""
    pinned = pins.open_pin(nic.pinned) if nic.pinned is not None else None
    if pinned is None:
        found = _returned(host, nic)
        return None if found is None or _is_home(found, nic) else Stranded(found, f"on the host as {found.name}")
    with opened(pinned), Rtnl(socket_in(pinned, host.netns_fd, open_socket)) as rtnl:
        kept = _kept(rtnl, nic)
    return None if kept is None else Stranded(kept, f"as {kept.name} in its network namespace, kept at {nic.pinned}")


def _is_home(link: Link, nic: Nic) -> bool:
    """True if a NIC on the host looks as it did before a container had it."""
    return (link.name, link.mac, link.mtu) == (nic.host_name, nic.former_mac or link.mac, nic.former_mtu or link.mtu)


def left_end(host: Host, nic: Nic) -> Link | None:
    """Host end of a veth whose namespace still exists: the kernel deletes namespaces with a delay.

    Source: cleanup_net() in net/core/net_namespace.c, which runs in a workqueue.
    """
    name = nic.host_name or nic.made_name or nic.found_name
    outer = host.rtnl.link(name) if name is not None else None
    if outer is None or outer.kind != "veth" or nic.mark is None or outer.mac != nic.mark:
        return None
    return outer


def process_beside(host: Host, nic: Nic, pid: int = 0) -> int:
    """PID of a container's process in the NIC's network namespace: `pid`, or any if `pid` is 0; 0 for none."""
    if nic.is_physical:
        pinned = pins.open_pin(nic.pinned) if nic.pinned is not None else None
        if pinned is None:
            return 0
        with opened(pinned), Rtnl(socket_in(pinned, host.netns_fd, open_socket)) as rtnl:
            return _process_in(host, pid, partial(net_sharing.is_behind, netns_fd=pinned)) if _kept(rtnl, nic) else 0
    outer = left_end(host, nic)
    if outer is None or outer.peer_nsid < 0:
        return 0
    nsid = outer.peer_nsid
    return _process_in(host, pid, lambda one: net_sharing.is_in(host, one, nsid))


def _process_in(host: Host, pid: int, is_there: Callable[[int], bool]) -> int:
    if pid:
        return pid if is_there(pid) else 0
    return net_sharing.container_in(host, is_there)


def _delete_left_end(host: Host, nic: Nic) -> None:
    """Delete the host end of a veth, and with it the other end. veth_dellink() in drivers/net/veth.c"""
    outer = left_end(host, nic)
    if outer is None:
        return
    links.leave_ovs(host, outer)
    host.rtnl.delete_link(outer.index, label=outer.name)


def _fetch_from_pin(host: Host, nic: Nic) -> bool:
    """Move a physical NIC from its pinned namespace to the host. False if it is not there."""
    pinned = pins.open_pin(nic.pinned) if nic.pinned is not None else None
    if pinned is None or nic.host_name is None:
        return False
    with opened(pinned), Rtnl(socket_in(pinned, host.netns_fd, open_socket)) as rtnl:
        inner = _kept(rtnl, nic)
        if inner is None:
            return False
        outer = links.move(rtnl, inner, to=host.rtnl, to_fd=host.netns_fd, back_fd=pinned, name=nic.host_name)
    restore_on_host(host, outer, nic)
    return True


def _kept(rtnl: Rtnl, nic: Nic) -> Link | None:
    """The NIC in the pinned namespace of an ended container; it may have another name by now."""
    alike = [link for link in rtnl.nics() if is_like(link, nic)]
    return next((link for link in alike if link.name == nic.name), alike[0] if len(alike) == 1 else None)


def _returned(host: Host, nic: Nic) -> Link | None:
    """A physical NIC that the kernel returned to the host because its container ended.

    It has the name from the container, or `dev` and a number if the host has a link of that name, and the container's
    MAC address.
    """
    if nic.origin_kind is None or nic.host_name is None:
        return None
    for link in host.rtnl.links():
        by_name = link.name in (nic.name, nic.host_name) or _FALLBACK_NAME.fullmatch(link.name)
        if by_name and is_like(link, nic):
            return link
    return None


def _restore_returned(host: Host, nic: Nic) -> bool:
    """Restore a NIC that the kernel returned. Raises KernelError EEXIST if another link has its name.

    Returns False if the kernel has not returned it.
    """
    link = _returned(host, nic)
    if link is None:
        return False
    if link.name != nic.host_name and nic.host_name is not None and host.rtnl.link(nic.host_name) is not None:
        raise links.taken(link, nic.host_name)
    restore_on_host(host, link, nic)
    return True


def _await_return(host: Host, nic: Nic) -> None:
    """Restore a NIC that the kernel returned, and wait for hardware, which returns with a delay.

    The kernel moves hardware a while after the last process of the namespace has ended. A NIC that does not return is
    gone: only hardware outlives its network namespace.
    """
    deadline = time.monotonic() + _RETURN_S
    while not _restore_returned(host, nic) and nic.origin_kind == "" and time.monotonic() < deadline:
        time.sleep(_RETURN_POLL_S)
