"""NICs in the kernel: read from a container's namespace, made, changed, lent by the host and given back to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Described, Target
from scplan.kinds.nic.record import DEFAULT_MTU, DEFAULT_TXQUEUELEN, FOREIGN, PHYSICAL, VETH, Nic, derived_host_name
from scplan.linux import links, pins
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.links import LinkChange
from scplan.linux.netlink import Addr, Link, Route
from scplan.model.comparison import as_recorded
from scplan.model.values import INTERFACE_NAME

# reading


def read(container: Container, host: Host, wanted: Mapping[str, Nic] | None) -> dict[str, Nic]:
    if wanted is not None and not wanted:
        return {}
    if container.shares_host_network:
        if wanted is None:
            return {}
        raise links.refuse_host_network(container.name)
    rtnl = container.rtnl
    inside = [link for link in rtnl.nics() if wanted is None or link.name in wanted]
    if not inside:
        return {}
    addresses: dict[int, list[Addr]] = {link.index: [] for link in inside}
    for addr in rtnl.addresses(addresses):
        addresses[addr.index].append(addr)
    host_nsid = rtnl.nsid(host.netns_fd)
    found = {}
    for link in inside:
        nic = _live(link, addresses[link.index], host, host_nsid, wanted[link.name] if wanted else None)
        if nic is not None:
            found[link.name] = nic
    return found


def describe(container: Container, host: Host) -> Described[Nic]:
    """NICs as entries of a file; links that are none which scplan could make are left out."""
    if container.shares_host_network:
        return Described({}, (("all NICs", "they are the host's own"),))
    found = {name: _entry(nic) for name, nic in read(container, host, None).items()}
    taken = {name for name, nic in found.items() if nic.is_physical and nic.host_name in host.links_by_name}
    left_out = [
        (link.name, f"a {link.kind or 'physical'} link that no entry could make")
        for link in container.rtnl.nics()
        if link.name not in found
    ]
    left_out += ((name, "what it was called on the host is not known, and another NIC has this name") for name in taken)
    return Described({name: nic for name, nic in found.items() if name not in taken}, tuple(left_out))


def _entry(nic: Nic) -> Nic:
    is_usual = not nic.is_physical and nic.txqueuelen == DEFAULT_TXQUEUELEN
    return nic.but(bridge=nic.bridge or None, txqueuelen=None if is_usual else nic.txqueuelen)


def capture(target: Target[Nic], before: Nic | None, after: Nic | None) -> tuple[Nic | None, Nic | None]:
    if target.container.shares_host_network:
        raise links.refuse_host_network(target.container.name)
    if before is not None:
        before = _to_remove(target, before) if after is None else _with_carried(target, before)
    if after is not None and after.is_physical and after.origin_kind is None:
        after = _with_former(target.host, after).but(pinned=pins.pin_path(target.container.netns_fd, after.name))
    if after is not None and not after.is_physical and before is None:
        after = after.but(host_mac=after.carried_mac or after.host_mac or _new_mac())
    return before, after


def _new_mac() -> str:
    """A random MAC address, unicast and locally administered, as the kernel would choose one."""
    chosen = bytearray(os.urandom(6))
    chosen[0] = chosen[0] & 0xFC | 0x02
    return chosen.hex(":")


def _live(link: Link, addrs: list[Addr], host: Host, host_nsid: int, wanted: Nic | None) -> Nic | None:
    """A link of a container as a NIC; None when nothing is known of it and it is no NIC from the host."""
    outer = links.host_end(host, link, host_nsid)
    if wanted is None and ((outer is None and link.kind) or not _is_writable(link.name)):
        return None
    is_physical = outer is None if wanted is None else wanted.is_physical
    is_foreign = wanted is not None and not (is_it(link, host_nsid, wanted) if is_physical else outer)
    chosen = wanted.addresses or () if wanted is not None else ()
    name, bridge, mtu, up = None, None, link.mtu, link.up
    if is_foreign:
        pass
    elif is_physical:
        # The kernel doesn't keep the name that a link had elsewhere: it is the one of the record.
        name = wanted.host_name if wanted is not None and _is_lent(link, host, host_nsid, wanted) else link.name
    elif outer is not None:
        name, bridge = outer.name, links.bridge_of(host, outer)
        # Both ends belong to it: with one that is down, or has another MTU, it doesn't work.
        mtu = outer.mtu if wanted is not None and wanted.mtu == link.mtu else link.mtu
        up = link.up and outer.up
    return Nic(
        name=link.name,
        type=FOREIGN if is_foreign else PHYSICAL if is_physical else VETH,
        host_name=name,
        bridge=bridge,
        addresses=tuple(addr.address for addr in addrs if links.is_lasting(addr) or addr.address in chosen),
        mac=link.mac or None,
        mtu=mtu,
        txqueuelen=link.txqueuelen,
        up=up,
        device=name if is_physical and not is_foreign else None,
    )


def _is_writable(name: str) -> bool:
    try:
        return INTERFACE_NAME.parse(name) == name
    except ValueError:
        return False


def _is_lent(link: Link, host: Host, host_nsid: int, wanted: Nic) -> bool:
    """Whether a link in the container is the physical NIC that is wanted there."""
    if not wanted.is_physical:
        return False
    if wanted.origin_kind is not None:
        return is_it(link, host_nsid, wanted)
    return is_of_host(link, host_nsid) and wanted.host_name not in host.links_by_name


def _to_remove(target: Target[Nic], before: Nic) -> Nic:
    """What scplan made, wherever it is inside: the container's root can rename it, and put another link in its place.

    Else that link would be removed, or even be given to the host as one that it had lent.
    """
    side = _Side(target)
    record = target.peers.get(before.name, before)
    if record.host_name is None:
        record = record.but(host_name=before.host_name)
    inner = side.found_inside(record)
    if inner is None:
        return record.but(type=record.type or VETH, host_name=side.host_name(record), carried_name="")
    if inner.name != before.name or before.type != (record.type or VETH):
        before = as_recorded(side.live(inner, record), record).but(name=before.name)
    return _carrying(side, before, inner)


def _with_carried(target: Target[Nic], before: Nic) -> Nic:
    """`before` with what goes with the link, and is neither desired nor recorded: it makes an undo exact."""
    side = _Side(target)
    inner = side.rtnl.link(before.name)
    return before if inner is None else _carrying(side, before, inner)


def _carrying(side: _Side, before: Nic, inner: Link) -> Nic:
    outer = side.host_end(inner) if not before.is_physical else None
    return before.but(
        carried_mac=outer.mac if outer is not None else None,
        carried_name=inner.name,
        carried_routes=tuple(route.text() for route in links.routes_over(side.rtnl, inner.index)),
    )


def _with_former(host: Host, after: Nic) -> Nic:
    """`after` with what the physical NIC has on the host; unchanged when it is in the container already."""
    assert after.host_name is not None
    link = host.rtnl.link(after.host_name)
    if link is None:
        return after
    former = links.settings(host.rtnl, link)
    return after.but(
        former_mac=link.mac or None,
        former_mtu=link.mtu,
        former_txqueuelen=link.txqueuelen,
        origin_kind=link.kind,
        origin_peer=link.peer_index > 0 and link.peer_nsid < 0,
        former_up=link.up,
        former_bridge=links.bridge_now(host, link),
        former_addresses=tuple(addr.text() for addr in former.addresses),
        former_routes=tuple(route.text() for route in former.routes),
    )


# changing


def create(target: Target[Nic], after: Nic) -> None:
    side = _Side(target)
    inner = side.rtnl.link(after.carried_name or after.name)
    if after.is_physical:
        if after.carried_name == "":
            return  # it was not there, nor is it to be
        inner = inner if inner is not None and side.is_lent(inner, after) else side.take_in(after)
        if after.pinned is not None:
            pins.pin(target.container.netns_fd, after.pinned)
    elif inner is None:
        inner = side.make_veth(after)
    elif not side.is_ours(inner, after):
        if after.carried_name is not None:
            return  # the container's root has taken its name; an undo leaves it to that
        raise KernelError(
            f"RTM_NEWLINK({after.name})",
            errno.EEXIST,
            detail=f"container {target.container.name} has a link of that name that is not the NIC",
        )
    side.settle(inner, after, removed=())


def update(target: Target[Nic], before: Nic, after: Nic) -> None:
    side = _Side(target)
    inner = side.rtnl.link(after.name)
    if inner is None:
        create(target, after)
        return
    if after.carried_name is not None and not after.is_physical and side.host_end(inner) is None:
        return  # as in `create`
    side.settle(inner, after, removed=without(before.addresses, after.addresses))


def delete(target: Target[Nic], before: Nic) -> None:
    if target.container.shares_host_network:
        return  # nothing was made there
    side = _Side(target)
    if before.is_physical:
        side.give_back(side.found_inside(before), before)
        if before.pinned is not None:
            pins.unpin(before.pinned)
    else:
        side.delete_veth(before)
    target.host.forget()


def without(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> tuple[str, ...]:
    """The items of the first that the second does not have."""
    return tuple(item for item in first or () if item not in (second or ()))


class _Side:
    """The two sides of one operation: rtnetlink in the container, and the host."""

    def __init__(self, target: Target[Nic]) -> None:
        if target.container.shares_host_network:
            raise links.refuse_host_network(target.container.name)
        self.container = target.container
        self.host = target.host
        self.rtnl = target.container.rtnl

    def host_end(self, inner: Link) -> Link | None:
        return links.host_end(self.host, inner, self.rtnl.nsid(self.host.netns_fd), self.host.rtnl.link)

    def host_name(self, nic: Nic) -> str:
        return nic.host_name or derived_host_name(self.container.name, nic.name)

    def is_ours(self, inner: Link, nic: Nic) -> bool:
        """Whether a link inside is the veth that `nic` says: its other end is on the host under the right name."""
        outer = self.host_end(inner)
        return outer is not None and outer.name == self.host_name(nic)

    def is_lent(self, inner: Link, nic: Nic) -> bool:
        """Whether the physical NIC has left the host, and `inner` is it: another may have its name there by now."""
        outer = self.host.rtnl.link(self.host_name(nic))
        return outer is None or (is_like(inner, nic) and not is_like(outer, nic))

    def make_veth(self, nic: Nic) -> Link:
        master = links.linux_bridge(self.host, nic.bridge) if nic.bridge else None
        self.host.rtnl.create_veth(
            self.host_name(nic),
            mtu=nic.mtu or DEFAULT_MTU,
            txqueuelen=DEFAULT_TXQUEUELEN if nic.txqueuelen is None else nic.txqueuelen,
            mac=nic.host_mac or "",
            master=master or 0,
            peer_name=nic.carried_name or nic.name,
            peer_netns_fd=self.container.netns_fd,
            peer_mac=nic.mac or "",
        )
        return self.inside(nic.carried_name or nic.name)

    def inside(self, name: str) -> Link:
        link = self.rtnl.link(name)
        if link is None:
            raise KernelError(f"RTM_GETLINK({name})", errno.ENODEV, detail="it vanished while scplan worked on it")
        return link

    def settle(self, inner: Link, nic: Nic, *, removed: tuple[str, ...]) -> None:
        """Makes the NIC as `nic` says, from whatever it is; `removed` addresses are taken away."""
        if not nic.is_physical:
            inner = self._settle_host_end(inner, nic)
        change = LinkChange(mac=nic.mac, mtu=nic.mtu, txqueuelen=nic.txqueuelen, up=nic.up is not False)
        links.change_link(self.rtnl, inner, change)
        links.change_addresses(self.rtnl, inner.index, add=nic.addresses or (), remove=removed)
        if nic.carried_routes and nic.up is not False:
            routes = [Route.from_text(text, inner.index) for text in nic.carried_routes]
            links.put_back(self.rtnl, inner.index, (), routes)
        self.host.forget()

    def _settle_host_end(self, inner: Link, nic: Nic) -> Link:
        outer = self.host_end(inner)
        if outer is None:
            raise ScplanError(
                f"nic {nic.name} of container {self.container.name} has no end on the host",
                hint="it was replaced or its host end was moved away; remove the link, and apply again",
            )
        former_bridge = links.bridge_now(self.host, outer)
        bridge = former_bridge if nic.bridge is None else nic.bridge
        name = nic.host_name or outer.name
        if name != outer.name and former_bridge:
            # Open vSwitch knows its ports by name.
            links.join_bridge(self.host, outer, "")
            outer = outer._replace(master=0)
        change = LinkChange(name=name, mac=nic.carried_mac, mtu=nic.mtu, txqueuelen=nic.txqueuelen, up=True)
        links.change_link(self.host.rtnl, outer, change)
        links.join_bridge(self.host, outer._replace(name=name), bridge)
        return inner

    def delete_veth(self, nic: Nic) -> None:
        """Deletes the pair, if it is there, by its end on the host."""
        inner = self.found_inside(nic)
        outer = self.host_end(inner) if inner is not None else None
        if outer is not None:
            links.leave_ovs(self.host, outer)
            self.host.rtnl.delete_link(outer.index, label=outer.name)

    def found_inside(self, nic: Nic) -> Link | None:
        """The link inside that is the NIC, whatever it is called there; one that only has its name is not.

        The container's root can make links, but no hardware, and none that have an end on the host.
        """
        if nic.is_physical:
            return self._lent_inside(nic)
        outer = self.host.rtnl.link(self.host_name(nic))
        if outer is not None and outer.kind == "veth":
            inner = self.rtnl.link(outer.peer_index)
            there = self.host_end(inner) if inner is not None else None
            if there is not None and there.index == outer.index:
                return inner
        # Renamed on the host, perhaps.
        for link in self.rtnl.nics() if nic.host_mac is not None else ():
            there = self.host_end(link)
            if there is not None and there.mac == nic.host_mac:
                return link
        return None

    def _lent_inside(self, nic: Nic) -> Link | None:
        host_nsid = self.rtnl.nsid(self.host.netns_fd)
        candidates = [
            link
            for link in self.rtnl.nics()
            if is_it(link, host_nsid, nic) and (link.name == nic.name or is_like(link, nic))
        ]

        def likelihood(link: Link) -> tuple[bool, bool]:
            return is_like(link, nic), link.name == nic.name

        found = max(candidates, key=likelihood, default=None)
        return found if found is not None and self.is_lent(found, nic) else None

    def live(self, inner: Link, nic: Nic) -> Nic:
        """What a link inside is, as the NIC that it is known to be."""
        addresses = self.rtnl.addresses({inner.index})
        live = _live(inner, addresses, self.host, self.rtnl.nsid(self.host.netns_fd), nic)
        return nic if live is None else live

    # physical NICs

    def take_in(self, nic: Nic) -> Link:
        """Moves the NIC of the host into the container, under its name there."""
        name = self.host_name(nic)
        link = self.host.rtnl.link(name)
        if link is None:
            raise KernelError(f"RTM_GETLINK({name})", errno.ENODEV, detail="the host has no such NIC")
        links.leave_ovs(self.host, link)
        return links.move(
            self.host.rtnl,
            link,
            to=self.rtnl,
            to_fd=self.container.netns_fd,
            back_fd=self.host.netns_fd,
            name=nic.carried_name or nic.name,
        )

    def give_back(self, inner: Link | None, nic: Nic) -> None:
        """Moves the NIC back to the host under its name there, and makes it as it was."""
        name = self.host_name(nic)
        if inner is not None:
            outer = links.move(
                self.rtnl,
                inner,
                to=self.host.rtnl,
                to_fd=self.host.netns_fd,
                back_fd=self.container.netns_fd,
                name=name,
            )
        else:
            # Moved already by a run that was interrupted; or gone, and another one has its name.
            found = self.host.rtnl.link(name)
            if found is None or found.kind != nic.origin_kind or found.mac not in (nic.mac, nic.former_mac):
                return
            outer = found
        restore_on_host(self.host, outer, nic)


def is_of_host(link: Link, host_nsid: int) -> bool:
    """Whether no root of a container can have made it: hardware, and what has its other end or its base on the host."""
    return not link.kind or (host_nsid >= 0 and link.peer_nsid == host_nsid)


def is_it(link: Link, host_nsid: int, nic: Nic) -> bool:
    """Whether a link inside can be the physical NIC `nic`, by what no root of a container can imitate."""
    return nic.origin_kind in (None, link.kind) and (not nic.origin_peer or is_of_host(link, host_nsid))


def is_like(link: Link, nic: Nic) -> bool:
    """Whether a link is of the kind, and has a MAC address, that the physical NIC `nic` is known to have."""
    return link.kind == nic.origin_kind and link.mac in (nic.mac, nic.former_mac)


def restore_on_host(host: Host, link: Link, nic: Nic) -> None:
    """Gives a physical NIC that is back on the host its former MAC, MTU, queue, bridge, addresses, routes and state."""
    change = LinkChange(
        name=nic.host_name, mac=nic.former_mac, mtu=nic.former_mtu, txqueuelen=nic.former_txqueuelen, up=nic.former_up
    )
    links.change_link(host.rtnl, link, change)
    if nic.former_bridge is not None:
        links.join_bridge(host, link._replace(name=nic.host_name or link.name), nic.former_bridge)
    addresses = [Addr.from_text(text, link.index) for text in nic.former_addresses or ()]
    routes = [Route.from_text(text, link.index) for text in nic.former_routes or ()] if nic.former_up else []
    links.put_back(host.rtnl, link.index, addresses, routes)
    host.forget()
