"""NICs as a container's network namespace and the host show them. rtnetlink(7), veth(4)."""

from __future__ import annotations

from collections.abc import Mapping

from scplan.kinds.kind import Described
from scplan.kinds.nic.record import (
    DEFAULT_TXQUEUELEN,
    FOREIGN,
    PHYSICAL,
    VETH,
    Nic,
    plain,
)
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.network import links
from scplan.linux.network.netlink import Addr, Link
from scplan.model.values import INTERFACE_NAME


def read(container: Container, host: Host, wanted: Mapping[str, Nic] | None) -> dict[str, Nic]:
    """Live NICs by name. `wanted` as in Kind.read."""
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
    # ID of the host's namespace in the container's one: links with their other end on the host have it. ip-netns(8)
    host_nsid = rtnl.nsid(host.netns_fd)
    found = {}
    for link in inside:
        nic = live_nic(link, addresses[link.index], host, host_nsid, wanted[link.name] if wanted else None)
        if nic is not None:
            found[link.name] = nic
    return found


def describe(container: Container, host: Host) -> Described[Nic]:
    """NICs as entries of a configuration file; `left_out` are links that no entry can make."""
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
    """The NIC without values that scplan sets anyway."""
    is_usual = not nic.is_physical and nic.txqueuelen == DEFAULT_TXQUEUELEN
    return nic.replace(
        bridge=nic.bridge or None,
        txqueuelen=None if is_usual else nic.txqueuelen,
        host_mtu=None,
        host_txqueuelen=None,
        host_bridge=None,
    )


def live_nic(link: Link, addrs: list[Addr], host: Host, host_nsid: int, wanted: Nic | None) -> Nic | None:
    """A link of the container as a NIC; None if no entry wants the link and it is not from the host."""
    outer = links.host_end(host, link, host_nsid)
    if wanted is None and ((outer is None and link.kind) or not _is_writable(link.name)):
        return None
    is_physical = outer is None if wanted is None else wanted.is_physical
    is_foreign = wanted is not None and not (is_it(link, host_nsid, wanted) if is_physical else outer)
    chosen = {plain(address) for address in wanted.addresses or ()} if wanted is not None else set()
    # scplan makes addresses permanent, so that an expiring one is drift. An adopted NIC may have had expiring ones.
    is_made = wanted is not None and (wanted.host_mac is not None or wanted.origin_kind is not None)
    name, bridge, up = None, None, link.up
    host_mtu, host_txqueuelen = None, None
    if is_foreign:
        pass
    elif is_physical:
        # The kernel does not keep the name that a link had in another namespace: the record has it.
        name = wanted.host_name if wanted is not None and _is_lent(link, host, host_nsid, wanted) else link.name
    elif outer is not None:
        name, bridge = outer.name, links.bridge_of(host, outer)
        # Both ends belong to the NIC: if one is down, the link state of both is down. veth(4)
        up = link.up and outer.up
        host_mtu, host_txqueuelen = outer.mtu, outer.txqueuelen
    return Nic(
        name=link.name,
        type=FOREIGN if is_foreign else PHYSICAL if is_physical else VETH,
        host_name=name,
        bridge=bridge,
        addresses=tuple(
            _shown(addr, is_plain=wanted is None or (addr.written() in chosen and not is_made))
            for addr in addrs
            if links.is_lasting(addr) or addr.written() in chosen
        ),
        mac=link.mac or None,
        mtu=link.mtu,
        txqueuelen=link.txqueuelen,
        up=up,
        device=name if is_physical and not is_foreign else None,
        host_mtu=host_mtu,
        host_txqueuelen=host_txqueuelen,
        host_bridge=bridge,
        host_mac=outer.mac if outer is not None and not is_physical and not is_foreign else None,
    )


def _shown(addr: Addr, *, is_plain: bool) -> str:
    """The address as users write it, with a note if it expires or is deprecated, unless `is_plain`."""
    text = addr.written()
    if is_plain or addr.is_lasting:
        return text
    return f"{text} (deprecated)" if addr.is_permanent else f"{text} (expires)"


def _is_writable(name: str) -> bool:
    try:
        return INTERFACE_NAME.parse(name) == name
    except ValueError:
        return False


def _is_lent(link: Link, host: Host, host_nsid: int, wanted: Nic) -> bool:
    """True if a link in the container is the wanted physical NIC."""
    if not wanted.is_physical:
        return False
    if wanted.origin_kind is not None:
        return is_it(link, host_nsid, wanted)
    return is_of_host(link, host_nsid) and wanted.host_name not in host.links_by_name


def without(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> tuple[str, ...]:
    """Addresses of the first that the second does not have, whatever their lifetimes."""
    kept = {plain(address) for address in second or ()}
    return tuple(plain(address) for address in first or () if plain(address) not in kept)


def is_of_host(link: Link, host_nsid: int) -> bool:
    """True if no container's root can have made the link: hardware, and links with their other end or base on the host.

    The kernel gives hardware no IFLA_INFO_KIND. IFLA_LINK_NETNSID is the namespace of the other end or base.
    linux/if_link.h
    """
    return not link.kind or (host_nsid >= 0 and link.peer_nsid == host_nsid)


def is_it(link: Link, host_nsid: int, nic: Nic) -> bool:
    """True if a link in the container can be the physical NIC `nic`, by properties that its root can't fake."""
    return nic.origin_kind in (None, link.kind) and (not nic.origin_peer or is_of_host(link, host_nsid))


def is_like(link: Link, nic: Nic) -> bool:
    """True if a link has the kind and a MAC address of the physical NIC `nic`."""
    return link.kind == nic.origin_kind and link.mac in (nic.mac, nic.former_mac)
