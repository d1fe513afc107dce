"""NICs and routes of a container by which a route reaches its gateway, from records alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from scplan.kinds.route.record import Route, table_of
from scplan.linux.network.netlink import MAIN_TABLE
from scplan.model.address import Address
from scplan.model.networks import network_of
from scplan.model.next_hops import is_address, ways_of
from scplan.model.resource import Resource

Resources = Mapping[Address, Resource]
_IPV6_MIN_MTU = 1280
_DEFAULTS = ("default", "::/0")


def hosts(nic: Resource) -> list[str]:
    """The NIC's addresses without their prefix lengths."""
    return [address.partition("/")[0] for address in nic.get("addresses") or ()]


def nics_in(others: Resources) -> dict[Address, Resource]:
    return {address: nic for address, nic in others.items() if address.kind == "nic"}


def nic_that_reaches(via: str, nics: Resources) -> Address | None:
    """The NIC with the narrowest network that holds `via`."""
    best: tuple[int, Address] | None = None
    for address, nic in nics.items():
        for written in nic.get("addresses") or ():
            network = network_of(written)
            if network.holds(via) and (best is None or network.length > best[0]):
                best = network.length, address
    return best[1] if best else None


def route_that_reaches(route: Route, others: Resources, own: Address) -> Address | None:
    """The route over a link, with the narrowest network, that makes the gateway reachable.

    The kernel looks in the route's own table and in main; in other tables only if rules name them.
    """
    best: tuple[bool, int, Address] | None = None
    for address, other in others.items():
        if address.kind != "route" or address == own or other.get("via"):
            continue
        if other.get("to") in _DEFAULTS and route.dev not in (None, other.get("dev")):
            continue
        network = network_of(other.get("to"))
        is_near = (other.get("table") or MAIN_TABLE) in (table_of(route), MAIN_TABLE)
        if network.holds(route.via) and (best is None or (is_near, network.length) > best[:2]):
            best = is_near, network.length, address
    return best[2] if best else None


def required(route: Route, others: Resources, address: Address) -> Iterator[Address]:
    """NICs and routes in `others` that the route depends on, in their order."""
    nics = nics_in(others)
    ways = ways_of(route.via)
    links_of_it = {route.dev, *(way.dev for way in ways)}
    found = {other for other in nics if other.identity in links_of_it}
    if is_address(route.via) and not route.onlink:
        near = nic_that_reaches(route.via, nics)
        through = None if near else route_that_reaches(route, others, address)
        found |= {other for other in (near, through) if other is not None}
        if near is None and through is None and route.over is not None:
            found |= {other for other in nics if other.identity == route.over}
    if route.src:
        found |= {other for other, nic in nics.items() if route.src in hosts(nic)}
    return (other for other in others if other in found)


def link_of(route: Route, others: Resources, address: Address) -> str | None:
    """NIC of a route whose `dev` is not written, as the resources of its container decide it."""
    nics = nics_in(others)
    if is_address(route.via):
        near = nic_that_reaches(route.via, nics)
        if near is not None:
            return near.identity
        through = route_that_reaches(route, others, address)
        on_link = others[through] if through is not None else None
        return on_link.get("dev") if on_link is not None else None
    return next((nic.identity for nic, one in nics.items() if route.src in hosts(one)), None)


def is_interrupted(route: Route, nic: Resource, nic_after: Resource) -> bool:
    """True if the kernel drops or redirects the route while a NIC that it depends on changes.

    An IPv4 route goes with the last address of its NIC, and with its source address. An IPv6 route loses only its
    source address, and goes when the MTU falls below the IPv6 minimum. fib_frontend.c, addrconf.c
    """
    if nic.get("up") is not False and nic_after.get("up") is False:
        return True
    before, after = nic.get("addresses") or (), nic_after.get("addresses") or ()
    removed = [text for text in before if text not in after]
    if route.src and any(text.partition("/")[0] == route.src for text in removed):
        return True
    if is_address(route.via) and not route.onlink:
        reached, still = (any(network_of(text).holds(route.via) for text in texts) for texts in (before, after))
        if reached and not still:
            return True
    if ":" in route.to:
        mtu_before, mtu = nic.get("mtu"), nic_after.get("mtu")
        return mtu is not None and mtu < _IPV6_MIN_MTU <= (mtu_before or _IPV6_MIN_MTU)
    removed_ipv4 = [text for text in removed if ":" not in text]
    return bool(removed_ipv4) and not any(_outlives(text, removed_ipv4) for text in after if ":" not in text)


def _outlives(address: str, removed: Sequence[str]) -> bool:
    """True if the kernel keeps an IPv4 address when `removed` go: the addresses of a network go with its first.

    The sysctl promote_secondaries, which would keep these, is not read. __inet_del_ifa() in net/ipv4/devinet.c
    """
    return all(network_of(other) != network_of(address) for other in removed)
