"""Routes of a container's network namespace, IPv4 and IPv6. rtnetlink(7), ip-route(8)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from socket import AF_INET, AF_INET6

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Described, Hears, Kind, Target
from scplan.linux import links
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.netlink import MAIN_TABLE, RT_SCOPE_LINK, RTN_UNICAST, RTPROT_STATIC, NextHop, Rtnl
from scplan.linux.netlink import Route as LiveRoute
from scplan.model.address import Address
from scplan.model.live import HostFacts
from scplan.model.next_hops import NEXT_HOP, Way, text_of, ways_of
from scplan.model.resource import Resource, Role, attr
from scplan.model.values import BOOL, DESTINATION, INTERFACE_NAME, IP, UINT32_MAX, integer

_DEFAULT_IPV6 = "::/0"
_LOCAL_TABLE = 255
# To the kernel an IPv6 metric of 0 means this one (IP6_RT_PRIO_USER).
_IPV6_METRIC = 1024


class Route(Resource):
    """One route. `to` is "default" (IPv4), or a network; ::/0 is the IPv6 default."""

    to: str = attr(
        "network, address, or default; ::/0 is the default of IPv6", DESTINATION, role=Role.IDENTITY, default="default"
    )
    via: str = attr("next hop; not written, there is none: the destination is on the link", NEXT_HOP, default="")
    dev: str | None = attr(
        "NIC that it goes over; default: the one that reaches via, or has src", INTERFACE_NAME, follows=("via", "src")
    )
    src: str | None = attr("address that packets get as their source", IP)
    metric: int | None = attr("the lowest wins; default 0, 1024 for IPv6", integer(0, UINT32_MAX), role=Role.IDENTITY)
    table: int | None = attr("routing table; default 254, the main one", integer(1, UINT32_MAX), role=Role.IDENTITY)
    onlink: bool | None = attr("takes via for reachable over dev, whatever its addresses are", BOOL)
    required: bool = attr(
        "false: a problem with it is a warning and not an error", BOOL, role=Role.POLICY, default=True
    )
    protocol: int | None = attr(
        "who made it, as the kernel numbers them, kept for an undo", integer(0, 255), role=Role.CARRIED
    )

    @property
    def family(self) -> int:
        return AF_INET6 if ":" in self.to else AF_INET


def _dst(to: str) -> str:
    """The destination as the kernel's answers are read: `default` in both families."""
    return "default" if to == _DEFAULT_IPV6 else to


class RouteKind(Kind[Route]):
    name = "route"
    section = "routes"
    record = Route
    hears = Hears.NETWORK

    # configuration

    def normalise(self, desired: Route) -> Route:
        if not desired.via and desired.dev is None and desired.src is None:
            raise ValueError("a route needs via, dev or src")
        if desired.dev == "lo":
            raise ValueError("a route over lo leads nowhere; name a NIC")
        if desired.onlink and (not desired.via or desired.dev is None):
            raise ValueError("onlink needs via and dev: it says that via is on the link of dev")
        hops = [hop for hop in (desired.via, desired.src) if hop]
        families = {":" in hop for hop in hops}
        to = "default" if desired.to == "0.0.0.0/0" else desired.to
        if to == "default" and families == {True}:
            to = _DEFAULT_IPV6
        if families - {":" in to}:
            raise ValueError(f"{', '.join([to, *hops])}: a route's addresses are all IPv4 or all IPv6")
        if desired.table == _LOCAL_TABLE:
            raise ValueError("table 255 belongs to the kernel, which keeps its own addresses there")
        metric = desired.metric or (_IPV6_METRIC if ":" in to else 0)
        return desired.but(to=to, metric=metric, table=desired.table or MAIN_TABLE)

    def identity(self, resource: Route) -> str:
        """`default`, `10.1.0.0/16@metric=200,table=100`: what is as usual is left out."""
        usual = _IPV6_METRIC if resource.family == AF_INET6 else 0
        extra = []
        if resource.metric not in (None, 0, usual):
            extra.append(f"metric={resource.metric}")
        if resource.table not in (None, MAIN_TABLE):
            extra.append(f"table={resource.table}")
        return f"{resource.to}@{','.join(extra)}" if extra else resource.to

    # planning

    def completed(self, address: Address, desired: Route, host: HostFacts) -> Route:
        return desired.but(src=desired.src or "", onlink=bool(desired.onlink))

    def requires(self, resource: Route, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        nics = {other: nic for other, nic in others.items() if other.kind == "nic"}
        ways = ways_of(resource.via)
        links_of_it = {resource.dev, *(way.dev for way in ways)}
        found = {other for other in nics if other.identity in links_of_it}
        if resource.via and not ways and not resource.onlink:
            near = _nic_that_reaches(resource.via, nics)
            through = None if near else _route_that_reaches(resource, others, address)
            found |= {other for other in (near, through) if other is not None}
        if resource.src:
            found |= {other for other, nic in nics.items() if resource.src in _hosts(nic)}
        return [other for other in others if other in found]

    def is_given_back(self, removed: Route, live: Route) -> bool:
        return not _fits(removed, live)  # another route to the same destination

    # kernel

    def read(self, container: Container, host: Host, wanted: Mapping[str, Route] | None) -> dict[str, Route]:
        if wanted is not None and not wanted:
            return {}
        if container.shares_host_network:
            if wanted is None:
                return {}
            raise links.refuse_host_network(container.name)
        rtnl = container.rtnl
        found: dict[str, Route] = {}
        names: dict[int, str] = {}

        def name_of(index: int) -> str:
            if index not in names:
                names[index] = rtnl.link_name(index)
            return names[index]

        for live in _routes(rtnl, None if wanted is None else wanted.values()):
            if live.table == _LOCAL_TABLE or live.tos:
                continue
            if wanted is None and (live.protocol in links.KERNEL_MADE or live.nexthops):
                continue
            identity = self.identity(_key_of(live))
            goal = wanted.get(identity) if wanted is not None else None
            if wanted is not None and (goal is None or _is_made_by_kernel(live, goal)):
                continue
            route = _record(live, name_of)
            # The kernel may hold several of a destination and metric; then the one that is wanted counts.
            if identity not in found or (goal is not None and _fits(goal, route) and not _fits(goal, found[identity])):
                found[identity] = route
        return found

    def describe(self, container: Container, host: Host) -> Described[Route]:
        if container.shares_host_network:
            return Described({}, (("all routes", "they are the host's own"),))
        left_out = [
            (self.identity(_key_of(live)), "it has several next hops" if live.nexthops else f"it is for TOS {live.tos}")
            for live in _routes(container.rtnl, None)
            if (live.nexthops or live.tos) and live.table != _LOCAL_TABLE
        ]
        found = {
            identity: route.but(src=route.src or None, onlink=route.onlink or None)
            for identity, route in self.read(container, host, None).items()
        }
        return Described(found, tuple(left_out))

    def capture(
        self, target: Target[Route], before: Route | None, after: Route | None
    ) -> tuple[Route | None, Route | None]:
        rtnl = _rtnl(target.container)
        if before is not None and (there := _find(rtnl, before)) is not None:
            before = before.but(protocol=there.protocol)
        return before, after

    def create(self, target: Target[Route], after: Route) -> None:
        rtnl = _rtnl(target.container)
        if _find(rtnl, after) is not None:
            return
        route = _to_kernel(target.container, after)
        _add(target.container, route, after)

    def update(self, target: Target[Route], before: Route, after: Route) -> None:
        rtnl = _rtnl(target.container)
        there = _find(rtnl, before)
        done = _find(rtnl, after)
        if done is not None:
            if there is not None and there != done:
                rtnl.delete_route(there)
            return
        route = _to_kernel(target.container, after)
        key = _kernel_key(route)
        rivals = [live for live in rtnl.routes(type=RTN_UNICAST, family=route.family) if _kernel_key(live) == key]
        if there is None:
            _add(target.container, route, after)
        elif len(rivals) == 1:
            _add(target.container, route, after, replace=True)
        else:
            # To replace would hit the first of them, which may be another's.
            _add(target.container, route, after, append=True)
            rtnl.delete_route(there)

    def delete(self, target: Target[Route], before: Route) -> None:
        if target.container.shares_host_network:
            return  # nothing was made there
        rtnl = _rtnl(target.container)
        there = _find(rtnl, before)
        if there is not None:
            rtnl.delete_route(there)


# reachability


def _hosts(nic: Resource) -> list[str]:
    return [address.partition("/")[0] for address in nic.get("addresses") or ()]


def _nic_that_reaches(via: str, nics: Mapping[Address, Resource]) -> Address | None:
    """The NIC with the narrowest network that holds `via`."""
    import ipaddress

    gateway = ipaddress.ip_address(via)
    best: tuple[int, Address] | None = None
    for address, nic in nics.items():
        for written in nic.get("addresses") or ():
            network = ipaddress.ip_interface(written).network
            if gateway in network and (best is None or network.prefixlen > best[0]):
                best = network.prefixlen, address
    return best[1] if best else None


def _route_that_reaches(route: Route, others: Mapping[Address, Resource], own: Address) -> Address | None:
    """The route over a link, with the narrowest network, that makes the gateway reachable."""
    import ipaddress

    gateway = ipaddress.ip_address(route.via)
    best: tuple[int, Address] | None = None
    for address, other in others.items():
        if address.kind != "route" or address == own or other.get("via") or other.get("to") == "default":
            continue
        network = ipaddress.ip_network(other.get("to"))
        if gateway in network and (best is None or network.prefixlen > best[0]):
            best = network.prefixlen, address
    return best[1] if best else None


# between records and the kernel


def _rtnl(container: Container) -> Rtnl:
    if container.shares_host_network:
        raise links.refuse_host_network(container.name)
    return container.rtnl


def _routes(rtnl: Rtnl, wanted: Collection[Route] | None) -> list[LiveRoute]:
    """The routes to these destinations, or all of them; read no further than that takes."""
    if wanted is None:
        return rtnl.routes(type=RTN_UNICAST)
    families, destinations = {route.family for route in wanted}, {_dst(route.to) for route in wanted}
    family = families.pop() if len(families) == 1 else 0
    lengths = {_prefix_length(destination) for destination in destinations}
    return [live for live in rtnl.routes(type=RTN_UNICAST, family=family, lengths=lengths) if live.dst in destinations]


def _prefix_length(destination: str) -> int:
    return 0 if destination == "default" else int(destination.rpartition("/")[2])


def _key_of(live: LiveRoute) -> Route:
    to = _DEFAULT_IPV6 if live.dst == "default" and live.family == AF_INET6 else live.dst
    return Route(to=to, metric=live.metric, table=live.table)


def _record(live: LiveRoute, name_of: Callable[[int], str]) -> Route:
    """A live route as users would write it, if they could write several next hops."""
    via = live.gateway
    if live.nexthops:
        via = text_of(Way(hop.gateway, name_of(hop.oif) or "?", hop.weight, hop.onlink) for hop in live.nexthops)
    dev = name_of(live.oif) if live.oif else ""
    return _key_of(live).but(via=via, dev=dev or None, src=live.prefsrc, onlink=live.onlink)


def _is_made_by_kernel(live: LiveRoute, goal: Route) -> bool:
    """Whether it is one of the kernel's own, next to which the wanted one has a place of its own."""
    return live.protocol in links.KERNEL_MADE and bool(goal.via or live.gateway)


def _fits(wanted: Route, live: Route) -> bool:
    """Whether `live` is as wanted, as far as that says."""
    pairs = ((wanted.via, live.via), (wanted.dev, live.dev), (wanted.src, live.src), (wanted.onlink, live.onlink))
    return all(one is None or one == other for one, other in pairs)


def _kernel_key(live: LiveRoute) -> tuple[str, int, int, int]:
    """What tells routes of one family apart to the kernel, IPv4's type of service included."""
    return live.dst, live.table, live.metric, live.tos


def _find(rtnl: Rtnl, wanted: Route) -> LiveRoute | None:
    """The live route that is `wanted`, as far as that says."""
    key = _dst(wanted.to), wanted.table or MAIN_TABLE, _metric(wanted), 0
    for live in rtnl.routes(type=RTN_UNICAST, family=wanted.family):
        if _kernel_key(live) != key or _is_made_by_kernel(live, wanted):
            continue
        if _fits(wanted, _record(live, rtnl.link_name)):
            return live
    return None


def _metric(route: Route) -> int:
    return route.metric or (_IPV6_METRIC if route.family == AF_INET6 else 0)


def _to_kernel(container: Container, route: Route) -> LiveRoute:
    """The route with its link looked up; raises KernelError when there is no such link."""
    oif = 0
    ways = ways_of(route.via)
    if route.dev is not None:
        oif = _index_of(container, route.dev)
    elif not route.via:
        oif = _link_that_has(container, route.src or "")
    gateways = [way.gateway for way in ways] or [route.via]
    return LiveRoute(
        family=route.family,
        dst=_dst(route.to),
        gateway="" if ways else route.via,
        oif=oif,
        prefsrc=route.src or "",
        metric=_metric(route),
        table=route.table or MAIN_TABLE,
        protocol=RTPROT_STATIC if route.protocol is None else route.protocol,
        scope=RT_SCOPE_LINK if not any(gateways) and route.family == AF_INET else 0,
        type=RTN_UNICAST,
        onlink=bool(route.onlink),
        nexthops=tuple(NextHop(way.gateway, _index_of(container, way.dev), way.onlink, way.weight) for way in ways),
    )


def _index_of(container: Container, dev: str) -> int:
    link = container.rtnl.link(dev)
    if link is not None:
        return link.index
    there = ", ".join(sorted(other.name for other in container.rtnl.nics()))
    raise KernelError(
        f"RTM_NEWROUTE(dev {dev})",
        errno.ENODEV,
        detail=f"container {container.name} has no NIC {dev}",
        hint=f"it has {there}" if there else "it has no NIC; add one under nics",
    )


def _link_that_has(container: Container, src: str) -> int:
    for addr in container.rtnl.addresses():
        if addr.address.partition("/")[0] == src:
            return addr.index
    raise ScplanError(
        f"no NIC of container {container.name} has the address {src}", hint="give it to one, or write dev or via"
    )


def _add(container: Container, route: LiveRoute, wanted: Route, *, replace: bool = False, append: bool = False) -> None:
    try:
        if append:
            container.rtnl.append_route(route)
        else:
            container.rtnl.add_route(route, replace=replace)
    except KernelError as error:
        raise KernelError(error.operation, error.errno, detail=error.said, hint=_hint(error.errno, wanted)) from None


def _hint(code: int, route: Route) -> str:
    match code:
        case errno.ENETUNREACH | errno.EHOSTUNREACH if route.via:
            return (
                f"no address in the container is in a network with {route.via}: add one to a NIC,"
                " or write `onlink: true` with dev"
            )
        case errno.ENETDOWN:
            return f"the NIC {route.dev or 'that it needs'} is down"
        case errno.EEXIST:
            return "another route has this destination, metric and table: remove it, or choose another metric"
        case errno.EINVAL if route.src:
            return f"is {route.src} an address of the container?"
        case _:
            return ""
