"""Checks of planned routes in a container: gateways that nothing reaches, NICs that are absent or down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from socket import AF_INET, AF_INET6

from scplan.kinds.kind import Foreseen, Unsuitable
from scplan.kinds.route.live import (
    LOCAL_TABLE,
    is_made_by_kernel,
    nics_hint,
    record_of,
    unreachable_hint,
    would_be_joined,
)
from scplan.kinds.route.record import Route, fits, kernel_destination, metric_of, table_of
from scplan.linux.container import Container
from scplan.linux.network.netlink import (
    IFA_F_NOPREFIXROUTE,
    IFA_F_SECONDARY,
    RTN_UNICAST,
    Addr,
    RawRoute,
)
from scplan.linux.network.netlink import Route as LiveRoute
from scplan.model.address import Address
from scplan.model.change import Action, Change
from scplan.model.networks import Network, network_of
from scplan.model.next_hops import is_address
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple


class _Link(NamedTuple):
    """A link of the container after the plan: its addresses, and the networks that planned addresses add a route to."""

    is_up: bool
    hosts: frozenset[str]
    networks: tuple[Network, ...]


class _OnLink(NamedTuple):
    """A route without a gateway: its destination is on the link."""

    dev: str
    network: Network
    table: int


class _Ground:
    """Links and gateway-less routes of the container after the plan: every planned route depends on these."""

    def __init__(self, container: Container, changes: Sequence[Change], after: Mapping[Address, Resource]) -> None:
        self.container = container
        rtnl = container.rtnl
        listed = rtnl.nics()
        addresses: dict[int, list[Addr]] = {}
        for addr in rtnl.addresses():
            addresses.setdefault(addr.index, []).append(addr)
        nics = {address.identity: nic for address, nic in after.items() if address.kind == "nic"}
        changed = {
            change.address.identity: change
            for change in changes
            if change.address.kind == "nic" and change.action not in (Action.ADOPT, Action.RELEASE)
        }
        self.links: dict[str, _Link] = {}
        self.on_link: list[_OnLink] = []
        self.routes = rtnl.raw_routes()
        # Routes that the plan changes: `after` has their planned side.
        replaced = {
            _key(change.before)
            for change in changes
            if isinstance(change.before, Route) and change.action not in (Action.ADOPT, Action.RELEASE)
        }
        on_link = [
            raw
            for raw in self.routes
            if raw.route.type == RTN_UNICAST
            and not raw.route.gateway
            and raw.route.table != LOCAL_TABLE
            and (raw.route.dst, raw.route.metric, raw.route.table) not in replaced
        ]
        for link in listed:
            there, change = addresses.get(link.index, []), changed.get(link.name)
            routes = [
                _OnLink(link.name, _network(raw), raw.route.table) for raw in on_link if raw.route.oif == link.index
            ]
            if change is None:
                self.links[link.name] = _Link(link.up, _hosts(addr.address for addr in there), ())
                self.on_link += routes
            elif change.action is Action.UPDATE and link.name in nics:
                self.links[link.name], staying = _updated_link(change, link.up, there, routes)
                self.on_link += staying
        # A new or replaced NIC has its planned addresses alone: with a link the kernel drops its addresses and routes.
        for name, nic in nics.items():
            if name in changed and name not in self.links:
                texts = nic.get("addresses") or ()
                self.links[name] = _Link(nic.get("up") is not False, _hosts(texts), tuple(map(network_of, texts)))
        # Of lo, which `nics()` leaves out.
        self.loopback = frozenset(
            addr.address.partition("/")[0]
            for index, of_link in addresses.items()
            if all(link.index != index for link in listed)
            for addr in of_link
        )
        self.on_link += [
            _OnLink(route.link, network_of(route.to), table_of(route))
            for route in after.values()
            if isinstance(route, Route) and not route.via and route.link is not None
        ]

    def reaches(self, via: str, dev: str | None, table: int) -> bool:
        """True if a gateway is in a network of a link that is up, or of a gateway-less route; only over `dev` if set.

        The kernel looks the gateway up in the table of the route, and in the tables that the rules name (ip-rule(8);
        fib_check_nh_v4_gw() in net/ipv4/fib_semantics.c).
        """
        tables = {table, *self._tables_of_rules}
        return any(
            network.holds(via)
            for name, link in self.links.items()
            if link.is_up and dev in (None, name)
            for network in link.networks
        ) or any(
            one.network.holds(via)
            for one in self.on_link
            if dev in (None, one.dev) and one.table in tables and self.links[one.dev].is_up
        )

    @cached_property
    def _tables_of_rules(self) -> set[int]:
        return self.container.rtnl.tables_of_rules()

    def owner(self, address: str) -> str | None:
        """The link with this address as its own."""
        found = (name for name, link in self.links.items() if address in link.hosts)
        return next(found, "lo" if address in self.loopback else None)

    def is_broadcast(self, address: str) -> bool:
        return any(network.is_broadcast(address) for link in self.links.values() for network in link.networks)


def _network(raw: RawRoute) -> Network:
    is_ipv6_default = raw.route.dst == "default" and raw.route.family == AF_INET6
    return network_of("::/0" if is_ipv6_default else raw.route.dst)


def _hosts(addresses: Iterable[str]) -> frozenset[str]:
    return frozenset(text.partition("/")[0] for text in addresses)


def _updated_link(
    change: Change, is_up: bool, there: Sequence[Addr], routes: Sequence[_OnLink]
) -> tuple[_Link, list[_OnLink]]:
    """A link after an update, and the routes over it that stay.

    The kernel adds a route with the first IPv4 address of a network only, and none if that address is `noprefixroute`.
    """
    before, after = change.before, change.after
    assert before is not None
    assert after is not None
    wanted = after.get("addresses") or ()
    networks = [network_of(text) for text in wanted]
    gone = [network_of(text) for text in before.get("addresses") or () if text not in wanted]
    had = {addr.written(): network_of(addr.far_end) for addr in there}
    staying = [addr for addr in there if had[addr.written()] not in gone or addr.written() in wanted]
    routes = [one for one in routes if one.network not in gone or one.network in networks]
    # For IPv6 the kernel adds a route with each address.
    first = {
        had[addr.written()] if addr.family == AF_INET else addr.written(): addr
        for addr in staying
        if addr.family != AF_INET or not addr.flags & IFA_F_SECONDARY
    }
    will_be_up = after.get("up") is not False
    made = []
    for text, network in zip(wanted, networks, strict=True):
        there_first = first.get(network if network.family == AF_INET else text)
        # `routes` has the live route of an address that stays; the kernel adds the route of a link that comes up.
        if there_first is None or (not is_up and not there_first.flags & IFA_F_NOPREFIXROUTE):
            made.append(network)
    return _Link(will_be_up, _hosts([*wanted, *(addr.address for addr in staying)]), tuple(made)), routes


def _key(route: Route) -> tuple[str, int, int]:
    return kernel_destination(route.to), metric_of(route), table_of(route)


def foresee(container: Container, changes: Sequence[Change], after: Mapping[Address, Resource]) -> Iterator[Foreseen]:
    """Findings about the planned routes of a container."""
    planned = [
        (change, change.after)
        for change in changes
        if isinstance(change.after, Route) and change.action not in (Action.ADOPT, Action.RELEASE)
    ]
    if not planned or container.shares_host_network:
        return
    ground = _Ground(container, changes, after)
    for change, route in planned:
        # An undo restores the kernel's own messages, with next hops that no file can describe: these are not checked.
        refused = _refused(route, ground) or _joined(change, route, ground) if route.carried is None else None
        displaced = tuple(_displaced(route, ground)) if change.action is Action.CREATE else ()
        if refused is not None or displaced:
            yield Foreseen(address=change.address, refused=refused, lost=displaced)


def _refused(route: Route, ground: _Ground) -> Unsuitable | None:
    """Refusal of a route whose NIC, source address or gateway will not be usable."""
    dev, name = route.link, ground.container.name
    if dev is not None and dev not in ground.links:
        return Unsuitable(f"container {name} has no NIC {dev} for the route", hint=nics_hint(ground.links))
    if dev is not None and not ground.links[dev].is_up:
        return Unsuitable(f"the route needs NIC {dev}, which is down", hint="set it up, or remove the route")
    if route.src and ground.owner(route.src) is None:
        return Unsuitable(
            f"no NIC of container {name} has the address {route.src}", hint="give it to one, or write another src"
        )
    if not is_address(route.via):
        return None
    owner = ground.owner(route.via)
    if owner is not None:
        return Unsuitable(f"via {route.via} is the container's own address, on {owner}", hint="name another router")
    if route.onlink or _is_link_local(route.via):
        return None
    if not ground.reaches(route.via, dev, table_of(route)):
        over = f" over {dev}" if dev is not None else ""
        hint = unreachable_hint(route.via) if ground.links else "the container has no NIC; add one under nics"
        return Unsuitable(f"nothing reaches the gateway {route.via}{over}", hint=hint)
    if ground.is_broadcast(route.via):
        return Unsuitable(f"via {route.via} is the broadcast address of its network", hint="name a router")
    return None


def _joined(change: Change, route: Route, ground: _Ground) -> Unsuitable | None:
    """Refusal of a route that IPv6 would join to a route of others."""
    of_key = [raw for raw in ground.routes if _is_of_key(raw, route)]
    names = {index: ground.container.rtnl.link_name(index) for raw in of_key for index in raw.route.oifs}
    mine = [one for one in (change.owned, change.before) if isinstance(one, Route)]
    own = next((raw for one in mine for raw in of_key if fits(one, record_of(raw, names.__getitem__))), None)
    if not is_address(route.via) or not would_be_joined(
        _gateway_route(route), [raw for raw in of_key if raw is not own]
    ):
        return None
    return Unsuitable(
        f"others have a route to {route.to} of the same metric and table, to which IPv6 would join this one",
        hint="choose another metric, or remove that route",
    )


def _gateway_route(route: Route) -> LiveRoute:
    return LiveRoute(family=route.family, dst=kernel_destination(route.to), gateway=route.via)


def _is_of_key(raw: RawRoute, route: Route) -> bool:
    """True if a live route has the key of the planned one."""
    live = raw.route
    return (
        (live.dst, live.metric, live.table) == _key(route)
        and live.family == route.family
        and not live.source_length
        and not live.tos
    )


def _is_link_local(address: str) -> bool:
    return network_of("fe80::/10").holds(address)


def _displaced(route: Route, ground: _Ground) -> Iterator[str]:
    """IPv6 routes made by the kernel whose place the route takes; IPv4 keeps such routes behind the new one."""
    if ":" not in route.to:
        return
    for raw in ground.routes:
        live = raw.route
        if _is_of_key(raw, route) and is_made_by_kernel(live, route):
            yield f"route {_words(raw, ground)}, which a router announced: its next announcement brings it back"


def _words(raw: RawRoute, ground: _Ground) -> str:
    live = raw.route
    words = [live.dst, *(["via", live.gateway] if live.gateway else [])]
    name = ground.container.rtnl.link_name(live.oif) if live.oif else ""
    return " ".join([*words, *(["dev", name] if name else [])])
