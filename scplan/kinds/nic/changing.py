"""NICs made, changed, lent by the host and returned to it. rtnetlink(7), veth(4), ip-link(8).

Imported as an operation begins: a plan does without.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable
from typing import Any

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Target
from scplan.kinds.nic.live import is_it, is_like, live_nic, without
from scplan.kinds.nic.record import (
    DEFAULT_MTU,
    DEFAULT_TXQUEUELEN,
    IPV6_MIN_MTU,
    VETH,
    Nic,
    derived_host_name,
    plain,
)
from scplan.linux.host import Host
from scplan.linux.network import links, pins
from scplan.linux.network.links import LinkChange, NetworkNamespace
from scplan.linux.network.netlink import Addr, Link, Route
from scplan.model.comparison import as_recorded, differences


def capture(target: Target[Nic], before: Nic | None, after: Nic | None) -> tuple[Nic | None, Nic | None]:
    if target.container.shares_host_network:
        raise links.refuse_host_network(target.container.name)
    if before is not None and after is not None and _is_as(before, after):
        return before, _marked(before, after)  # the operation only records the NIC
    if after is not None and before is not None and not after.is_physical:
        after = _with_promises(target.host, before, after)
    if before is not None:
        before = _to_remove(target, before) if after is None else _with_carried(target, before, after)
    if after is not None and after.is_physical and after.origin_kind is None:
        after = _with_former(target.host, after).replace(pinned=pins.pin_path(target.container.netns_fd, after.name))
    if after is not None and not after.is_physical and before is None:
        after = after.replace(
            host_mac=after.carried_mac or after.host_mac or _new_mac(), made_name=_Side(target).host_name(after)
        )
    return before, after


def _marked(before: Nic, after: Nic) -> Nic:
    """The record of a veth with the marks of its host end as found: others may have made the veth."""
    if after.is_physical or after.mark is not None:
        return after
    return after.replace(found_mac=before.host_mac, found_name=before.host_name)


def _is_as(before: Nic, after: Nic) -> bool:
    return not differences(after, before) and set(before.addresses or ()) == set(after.addresses or ())


def _with_promises(host: Host, before: Nic, after: Nic) -> Nic:
    """The goal of an update, with the derived values of its host end, and without addresses that exclude each other."""
    if after.carried_name is not None:
        return after  # an undo has captured values
    promised: dict[str, Any] = {"addresses": _compatible(after.addresses)}
    if before.bridge == after.bridge and after.host_bridge is not None:
        promised["bridge"] = after.host_bridge  # others put the host end on its present bridge
    elif before.bridge != after.bridge:
        promised["host_bridge"] = None if after.bridge else ""
    if before.bridge != after.bridge or before.mtu != after.mtu:
        promised["host_mtu"] = _mtu_of(host, after.bridge) or after.mtu if after.bridge else after.mtu
    if before.txqueuelen != after.txqueuelen:
        promised["host_txqueuelen"] = after.txqueuelen
    return after.replace(**promised)


def _mtu_of(host: Host, bridge: str) -> int:
    """MTU of a Linux bridge; 0 for an Open vSwitch bridge, which follows no port."""
    if host.ovs is not None and bridge in host.ovs.bridges():
        return 0
    link = host.rtnl.link(bridge)
    return link.mtu if link is not None else 0


def _compatible(addresses: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The addresses that can exist together: of two that differ only in lifetime or peer, the later one."""
    if addresses is None:
        return None
    last = {plain(text).partition(" peer ")[0]: text for text in addresses}
    peers = {plain(text) for text in addresses if " peer " in text}
    kept = []
    for text in addresses:
        winner = last[plain(text).partition(" peer ")[0]]
        both_have_peers = plain(text) in peers and plain(winner) in peers and plain(text) != plain(winner)
        if text == winner or both_have_peers:
            kept.append(text)
    return tuple(kept)


def _new_mac() -> str:
    """A random MAC address for a host end: unicast, locally administered, and high.

    High, because a bridge takes the lowest address of its ports. br_stp_recalculate_bridge_id() in
    net/bridge/br_stp_if.c
    """
    return (b"\xfe" + os.urandom(5)).hex(":")


def _to_remove(target: Target[Nic], before: Nic) -> Nic:
    """The NIC to remove: the link that scplan made or moved, under any name.

    The container's root can rename that link, and give its name to another one. A search by name would then remove the
    other link, or even move it to the host as a lent NIC.
    """
    side = _Side(target)
    record = target.peers.get(before.name, before)
    if record.host_name is None:
        record = record.replace(host_name=before.host_name)
    inner = side.found_inside(record)
    if inner is None:
        return record.replace(type=record.type or VETH, host_name=side.host_name(record), carried_name="")
    if inner.name != before.name or before.type != (record.type or VETH):
        before = as_recorded(side.live(inner, record), record).replace(name=before.name)
    return _carrying(side, before, inner)


def _with_carried(target: Target[Nic], before: Nic, after: Nic) -> Nic:
    """`before` with the state that goes with the link and is neither desired nor recorded, for an exact undo."""
    side = _Side(target)
    inner = side.rtnl.link(before.name)
    return before if inner is None else _carrying(side, before, inner, after)


def _carrying(side: _Side, before: Nic, inner: Link, after: Nic | None = None) -> Nic:
    """`before` with both ends as kernel messages, as far as the operation changes them; without `after` all of it."""
    from scplan.linux.network import kept

    outer = side.host_end(inner) if not before.is_physical else None
    # Below an MTU of 1280 the kernel drops the link's IPv6 state and settings. addrconf_notify() in net/ipv6/addrconf.c
    is_whole = after is None or (after.mtu or IPV6_MIN_MTU) < IPV6_MIN_MTU
    inside = kept.keep(side.rtnl, inner, whole=side.inside_namespace if is_whole else None)
    on_host = None
    if outer is not None and (after is None or _changes_host_end(before, after)):
        on_host = kept.keep(side.host.rtnl, outer, whole=side.host_namespace if is_whole else None)
    if outer is not None:
        before = before.replace(host_mtu=outer.mtu, host_txqueuelen=outer.txqueuelen)
    return before.replace(
        carried_mac=outer.mac if outer is not None else None,
        carried_name=inner.name,
        carried_link=inside.texts(),
        carried_host_end=on_host.texts() if on_host is not None else None,
    )


def _changes_host_end(before: Nic, after: Nic) -> bool:
    """True if the update changes the host end."""
    names = ("host_name", "bridge", "host_bridge", "host_mtu", "host_txqueuelen", "up")
    return any(getattr(after, name) not in (None, getattr(before, name)) for name in names)


def _with_former(host: Host, after: Nic) -> Nic:
    """`after` with the state of the physical NIC on the host; unchanged if the NIC is in the container already."""
    assert after.host_name is not None
    link = host.rtnl.link(after.host_name)
    if link is None:
        return after
    from scplan.linux.network import kept

    former = kept.keep(host.rtnl, link, whole=NetworkNamespace(host.netns_fd, host.netns_fd))
    return after.replace(
        former_mac=link.mac or None,
        former_mtu=link.mtu,
        former_txqueuelen=link.txqueuelen,
        origin_kind=link.kind,
        # IFLA_LINK without IFLA_LINK_NETNSID: the other end, or the base, is in the link's own namespace.
        origin_peer=link.peer_index > 0 and link.peer_nsid < 0,
        former_up=link.up,
        former_bridge=links.bridge_now(host, link),
        former_addresses=tuple(raw.addr.written() for raw in former.addresses),
        former_routes=tuple(raw.route.text() for raw in former.routes_of_users),
        host_state=former.texts(),
    )


def create(target: Target[Nic], after: Nic) -> None:
    side = _Side(target)
    inner = side.rtnl.link(after.carried_name or after.name)
    is_new = inner is None
    if after.is_physical:
        if after.carried_name == "":
            return  # an undo: the NIC was not in the container
        # An interrupted run may have moved the NIC already.
        is_new = inner is None or not side.is_lent(inner, after)
        inner = side.take_in(after) if inner is None or is_new else inner
        if after.pinned is not None:
            pins.pin(target.container.netns_fd, after.pinned)
    elif inner is None:
        side.delete_left_over(target.peers.get(after.name))
        inner = side.make_veth(after)
    elif not side.is_ours(inner, after):
        if after.carried_name is not None:
            return  # an undo: the container's root has another link of this name, which stays
        raise KernelError(
            f"RTM_NEWLINK({after.name})",
            errno.EEXIST,
            detail=f"container {target.container.name} has a link of that name that is not the NIC",
        )
    side.settle(inner, after, is_new=is_new)


def update(target: Target[Nic], before: Nic, after: Nic) -> None:
    side = _Side(target)
    inner = side.rtnl.link(after.name)
    if inner is None:
        create(target, after)
        return
    if after.carried_name is not None and not after.is_physical and side.host_end(inner) is None:
        return  # as in `create`
    # Addresses that expire or are deprecated, and are to be permanent again.
    renewed = {plain(address) for address in before.addresses or () if address != plain(address)}
    renewed &= set(_lasting(after.addresses))
    side.settle(inner, after, removed=without(before.addresses, after.addresses), renewed=renewed)


def delete(target: Target[Nic], before: Nic) -> None:
    if target.container.shares_host_network:
        return  # nothing was made in the host's own namespace
    side = _Side(target)
    if before.is_physical:
        side.give_back(side.found_inside(before), before)
        if before.pinned is not None:
            pins.unpin(before.pinned)
    else:
        side.delete_veth(before)
    target.host.forget()


class _Side:
    """Both sides of one operation: rtnetlink in the container, and the host."""

    def __init__(self, target: Target[Nic]) -> None:
        if target.container.shares_host_network:
            raise links.refuse_host_network(target.container.name)
        self.container = target.container
        self.host = target.host
        self.rtnl = target.container.rtnl

    @property
    def inside_namespace(self) -> NetworkNamespace:
        return NetworkNamespace(self.container.netns_fd, self.host.netns_fd)

    @property
    def host_namespace(self) -> NetworkNamespace:
        return NetworkNamespace(self.host.netns_fd, self.host.netns_fd)

    def host_end(self, inner: Link) -> Link | None:
        """The other end of a veth, if it is on the host; else None."""
        return links.host_end(self.host, inner, self.rtnl.nsid(self.host.netns_fd), self.host.rtnl.link)

    def host_name(self, nic: Nic) -> str:
        return nic.host_name or derived_host_name(self.container.name, nic.name)

    def is_ours(self, inner: Link, nic: Nic) -> bool:
        """True if a link in the container is the veth `nic`: its other end is on the host, and has the right name."""
        outer = self.host_end(inner)
        return outer is not None and outer.name == self.host_name(nic)

    def is_lent(self, inner: Link, nic: Nic) -> bool:
        """True if `inner` is the physical NIC, which has left the host: another link may have its name there by now."""
        outer = self.host.rtnl.link(self.host_name(nic))
        return outer is None or (is_like(inner, nic) and not is_like(outer, nic))

    def delete_left_over(self, record: Nic | None) -> None:
        """Delete the record's veth if it is in the container's former namespace, which other containers keep."""
        if record is None or record.is_physical or self.found_inside(record) is not None:
            return
        from scplan.kinds.nic.lost import reclaim

        reclaim(self.host, record)

    def make_veth(self, nic: Nic) -> Link:
        """Create the pair, with its inner end in the container's namespace from the start. veth(4)"""
        master = links.linux_bridge(self.host, nic.bridge) if nic.bridge else None
        txqueuelen = DEFAULT_TXQUEUELEN if nic.txqueuelen is None else nic.txqueuelen
        self.host.rtnl.create_veth(
            self.host_name(nic),
            mtu=nic.host_mtu or nic.mtu or DEFAULT_MTU,
            txqueuelen=next(
                (one for one in (nic.host_txqueuelen, nic.txqueuelen) if one is not None), DEFAULT_TXQUEUELEN
            ),
            mac=nic.host_mac or "",
            master=master or 0,
            peer_name=nic.carried_name or nic.name,
            peer_netns_fd=self.container.netns_fd,
            peer_mac=nic.mac or "",
            peer_mtu=nic.mtu or DEFAULT_MTU,
            peer_txqueuelen=txqueuelen,
        )
        return self.inside(nic.carried_name or nic.name)

    def inside(self, name: str) -> Link:
        """The link of this name in the container. Raises KernelError if it vanished."""
        link = self.rtnl.link(name)
        if link is None:
            raise KernelError(f"RTM_GETLINK({name})", errno.ENODEV, detail="it vanished while scplan worked on it")
        return link

    def settle(
        self,
        inner: Link,
        nic: Nic,
        *,
        removed: tuple[str, ...] = (),
        renewed: Collection[str] = (),
        is_new: bool = False,
    ) -> None:
        """Set all attributes of the NIC, from any state. `removed` addresses go, `renewed` ones become permanent.

        A NIC that `is_new` gets its whole carried state; a NIC that was there the whole time has lost only some of it.
        """
        if not nic.is_physical:
            self._settle_host_end(inner, nic, is_new=is_new)
        if nic.carried_link:
            self._settle_as_it_was(inner, nic, nic.carried_link, removed, is_new=is_new)
        else:
            change = LinkChange(mac=nic.mac, mtu=nic.mtu, txqueuelen=nic.txqueuelen, up=nic.up is not False)
            links.change_link(self.rtnl, inner, change)
            links.change_addresses(self.rtnl, inner, add=_lasting(nic.addresses), remove=removed, renew=renewed)
        if nic.carried_routes and nic.up is not False:
            routes = [Route.from_text(text, inner.index) for text in nic.carried_routes]
            links.put_texts_back(self.rtnl, inner.index, (), routes)
        self.host.forget()

    def _settle_as_it_was(
        self, inner: Link, nic: Nic, texts: Iterable[str], removed: tuple[str, ...], *, is_new: bool
    ) -> None:
        """Restore the container's end as the undone operation found it."""
        from scplan.linux.network import kept, link_sysctls

        former = kept.Kept.from_texts(texts)
        change = LinkChange(mac=nic.mac, mtu=nic.mtu, txqueuelen=nic.txqueuelen)
        links.change_link(self.rtnl, inner, change)
        if is_new:
            kept.put_link_back(self.rtnl, inner, former, self.inside_namespace)
        elif former.settings:
            link_sysctls.write(self.inside_namespace, inner, former.settings)
        inner = self.inside(inner.name)
        # `nic.up` is false, too, if only the host end was down.
        links.change_link(self.rtnl, inner, LinkChange(up=nic.up is not False or former.link.up))
        known = {raw.addr.written() for raw in former.addresses}
        added = tuple(address for address in _lasting(nic.addresses) if address not in known)
        links.change_addresses(self.rtnl, inner, add=added, remove=removed)
        kept.put_back(self.rtnl, inner, former, exactly=True)

    def _settle_host_end(self, inner: Link, nic: Nic, *, is_new: bool) -> None:
        """Set all attributes of the end on the host, its bridge included."""
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
            # Open vSwitch knows its ports by name, so the host end leaves its bridge before it is renamed.
            links.join_bridge(self.host, outer, "")
            outer = outer._replace(master=0)
        former = None
        if nic.carried_host_end:
            from scplan.linux.network import kept

            former = kept.Kept.from_texts(nic.carried_host_end)
        mtu, txqueuelen = nic.host_mtu, nic.host_txqueuelen
        if former is not None:
            mtu = former.link.mtu if mtu is None else mtu
            txqueuelen = former.link.txqueuelen if txqueuelen is None else txqueuelen
        change = LinkChange(
            name=name,
            mac=nic.carried_mac,
            mtu=mtu,
            txqueuelen=txqueuelen,
            # The host end of a NIC that is down stays up, unless it was captured as down.
            up=nic.up is not False or former is None or former.link.up,
        )
        links.change_link(self.host.rtnl, outer, change)
        outer = outer._replace(name=name)
        links.join_bridge(self.host, outer, bridge)
        if former is not None:
            if is_new:
                kept.put_link_back(self.host.rtnl, outer, former, self.host_namespace)
                # The queue length is scplan's promise: it is set as recorded, not as captured.
                outer = self.host.rtnl.link(outer.index) or outer
                links.change_link(self.host.rtnl, outer, LinkChange(txqueuelen=nic.host_txqueuelen))
            kept.put_port_back(self.host.rtnl, outer, former)
            kept.put_back(self.host.rtnl, outer, former, exactly=True)

    def delete_veth(self, nic: Nic) -> None:
        """Delete the pair, if it exists, by its end on the host."""
        inner = self.found_inside(nic)
        outer = self.host_end(inner) if inner is not None else None
        if outer is not None:
            links.leave_ovs(self.host, outer)
            self.host.rtnl.delete_link(outer.index, label=outer.name)

    def found_inside(self, nic: Nic) -> Link | None:
        """The link in the container that is the NIC, under any name; a link that only has the NIC's name is not found.

        The container's root can make links, but no hardware, and no link with an end on the host.
        """
        if nic.is_physical:
            return self._lent_inside(nic)
        outer = self.host.rtnl.link(self.host_name(nic))
        if outer is not None and outer.kind == "veth":
            inner = self.rtnl.link(outer.peer_index)
            there = self.host_end(inner) if inner is not None else None
            if there is not None and there.index == outer.index:
                return inner
        # The host end may have been renamed: its MAC address is the mark.
        for link in self.rtnl.nics() if nic.mark is not None else ():
            there = self.host_end(link)
            if there is not None and there.mac == nic.mark:
                return link
        return None

    def _lent_inside(self, nic: Nic) -> Link | None:
        """The lent NIC in the container: preferably a link with its kind and MAC address, else one with its name."""
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
        """A link in the container, known to be `nic`, with its live attributes."""
        addresses = self.rtnl.addresses({inner.index})
        live = live_nic(inner, addresses, self.host, self.rtnl.nsid(self.host.netns_fd), nic)
        return nic if live is None else live

    # physical NICs

    def take_in(self, nic: Nic) -> Link:
        """Move the host's NIC into the container, under its name there."""
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
        """Move the NIC back to the host, under its name there, and restore its former state."""
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
            # An interrupted run has moved the NIC already, or the NIC is gone and another link has its name.
            found = self.host.rtnl.link(name)
            if found is None or found.kind != nic.origin_kind or found.mac not in (nic.mac, nic.former_mac):
                return
            outer = found
        restore_on_host(self.host, outer, nic)


def _lasting(addresses: tuple[str, ...] | None) -> tuple[str, ...]:
    """The permanent addresses, without those that expire or are deprecated."""
    return tuple(address for address in addresses or () if address == plain(address))


def restore_on_host(host: Host, link: Link, nic: Nic) -> None:
    """Restore a physical NIC that is back on the host, with all state that goes with a link."""
    change = LinkChange(name=nic.host_name, mac=nic.former_mac, mtu=nic.former_mtu, txqueuelen=nic.former_txqueuelen)
    if not nic.host_state:
        _restore_from_words(host, link, nic, change)
        return
    from scplan.linux.network import kept

    former = kept.Kept.from_texts(nic.host_state)
    links.change_link(host.rtnl, link, change)
    link = link._replace(name=nic.host_name or link.name)
    if nic.former_bridge is not None:
        links.join_bridge(host, link, nic.former_bridge)
    kept.put_link_back(host.rtnl, link, former, NetworkNamespace(host.netns_fd, host.netns_fd))
    host.rtnl.set_link(link.index, label=link.name, up=nic.former_up)
    kept.put_port_back(host.rtnl, link, former)
    kept.put_back(host.rtnl, link, former, exactly=True)
    host.forget()


def _restore_from_words(host: Host, link: Link, nic: Nic, change: LinkChange) -> None:
    """Restore the NIC from a record of an earlier version, which has less of its state."""
    links.change_link(host.rtnl, link, change._replace(up=nic.former_up))
    if nic.former_bridge is not None:
        links.join_bridge(host, link._replace(name=nic.host_name or link.name), nic.former_bridge)
    addresses = [Addr.from_text(text, link.index) for text in nic.former_addresses or ()]
    routes = [Route.from_text(text, link.index) for text in nic.former_routes or ()] if nic.former_up else []
    links.put_texts_back(host.rtnl, link.index, addresses, routes)
    host.forget()
