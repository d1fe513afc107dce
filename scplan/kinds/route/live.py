"""Routes as a container's network namespace holds them. rtnetlink(7), ip-route(8)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from socket import AF_INET6

from scplan.kinds.kind import Described
from scplan.kinds.route.record import DEFAULT_IPV6, Route, fits, kernel_destination, metric_of, table_of
from scplan.linux.container import Container
from scplan.linux.network import links
from scplan.linux.network.netlink import (
    RTN_UNICAST,
    RawRoute,
    Rtnl,
    options_of,
    raw_from_text,
)
from scplan.linux.network.netlink import Route as LiveRoute
from scplan.model.networks import network_of
from scplan.model.next_hops import TYPES, Way, text_of

# The kernel's routes to its own addresses: RT_TABLE_LOCAL. ip-route(8)
LOCAL_TABLE = 255

Identify = Callable[[Route], str]
NameOf = Callable[[int], str]


def read(container: Container, wanted: Mapping[str, Route] | None, identity: Identify) -> dict[str, Route]:
    """Live routes by identity. `wanted` as in Kind.read."""
    if wanted is not None and not wanted:
        return {}
    if container.shares_host_network:
        if wanted is None:
            return {}
        raise links.refuse_host_network(container.name)
    name_of = names_of_links(container.rtnl)
    if wanted is None:
        firsts = ((key, entries[0]) for key, entries in _by_key(container.rtnl.raw_routes()).items())
        return {
            identity(_key_of(first.route)): record_of(first, name_of)
            for (*_, table), first in firsts
            if table != LOCAL_TABLE and _is_usual(first.route)
        }
    by_key = _by_key(_listed(container.rtnl, wanted.values()))
    found: dict[str, Route] = {}
    for name, goal in wanted.items():
        entries = by_key.get((goal.family, kernel_destination(goal.to), metric_of(goal), table_of(goal)))
        live = _in_force(entries, goal, _former_names(container.rtnl, goal, name_of)) if entries else None
        if live is not None:
            found[name] = live
    return found


def _former_names(rtnl: Rtnl, goal: Route, name_of: NameOf) -> NameOf:
    """`name_of` with the captured names of links that have other names by now, if an undo expects them.

    The container's root can rename a link at any time; only its index stays.
    """
    captured = {index: name for text in goal.carried or () for index, name in raw_from_text(text[1:])[1].items()}
    renamed = {index: name for index, name in captured.items() if name_of(index) != name and rtnl.link(name) is None}
    return (lambda index: renamed.get(index) or name_of(index)) if renamed else name_of


def _is_usual(live: LiveRoute) -> bool:
    return live.type == RTN_UNICAST and live.protocol not in links.KERNEL_MADE and not live.nexthops


def _in_force(entries: Sequence[RawRoute], goal: Route, name_of: NameOf) -> Route | None:
    """The first route of a key, as a record; None if the kernel made that route and the wanted one is still missing.

    The kernel makes routes for addresses and router advertisements; the wanted route goes in front of these.
    """
    first = record_of(entries[0], name_of)
    if first.over is None:
        first = first.replace(over=goal.over)  # a route with several next hops, or none, keeps them in `via`
    if not is_made_by_kernel(entries[0].route, goal):
        return first
    is_there = any(fits(goal, record_of(entry, name_of)) for entry in entries)
    return first if is_there else None


def describe(container: Container, identity: Identify) -> Described[Route]:
    """Routes as entries of a configuration file; `left_out` are routes that no entry can make."""
    if container.shares_host_network:
        return Described({}, (("all routes", "they are the host's own"),))
    left_out = [
        (identity(_key_of(raw.route)), why)
        for raw in container.rtnl.raw_routes()
        if raw.route.table != LOCAL_TABLE and raw.route.protocol not in links.KERNEL_MADE
        if (why := _why_left_out(raw.route))
    ]
    # A program (slirp4netns, pasta, a VPN) makes and attaches a tun link after the container has started.
    # Documentation/networking/tuntap.rst
    late = {link.name for link in container.rtnl.nics() if link.kind == "tun"}
    live = read(container, None, identity)
    left_out += ((name, f"a route over {route.dev}, a tun link") for name, route in live.items() if route.dev in late)
    found = {
        name: route.replace(src=route.src or None, onlink=route.onlink or None, over=None, options=None)
        for name, route in live.items()
        if route.dev not in late
    }
    return Described(found, tuple(left_out))


def _why_left_out(live: LiveRoute) -> str:
    """Reason why no entry can make the route; "" if an entry can."""
    if live.nexthops:
        return "it has several next hops"
    if live.tos:
        return f"it is for TOS {live.tos}"
    if live.source_length:
        return "it is for packets of one network"
    return f"it is of type {TYPES.get(live.type, live.type)}" if live.type != RTN_UNICAST else ""


def _by_key(listed: Iterable[RawRoute]) -> dict[tuple[int, str, int, int], list[RawRoute]]:
    """Routes by (family, destination, metric, table), in kernel order, without those for a TOS or a source network."""
    found: dict[tuple[int, str, int, int], list[RawRoute]] = {}
    for raw in listed:
        live = raw.route
        if not live.tos and not live.source_length:
            found.setdefault((live.family, live.dst, live.metric, live.table), []).append(raw)
    return found


def _listed(rtnl: Rtnl, wanted: Collection[Route]) -> list[RawRoute]:
    """Routes that may be wanted ones. The kernel is asked only for their families and tables."""
    families, tables = {route.family for route in wanted}, {table_of(route) for route in wanted}
    return rtnl.raw_routes(
        families.pop() if len(families) == 1 else 0,
        table=tables.pop() if len(tables) == 1 else 0,
        lengths={network_of(kernel_destination(route.to)).length for route in wanted},
    )


def names_of_links(rtnl: Rtnl) -> NameOf:
    """A function that returns the name of the link with an index. It asks the kernel once for each link."""
    known: dict[int, str] = {}

    def name_of(index: int) -> str:
        if index not in known:
            known[index] = rtnl.link_name(index)
        return known[index]

    return name_of


def _key_of(live: LiveRoute) -> Route:
    return Route(to=destination(live), metric=live.metric, table=live.table)


def destination(live: LiveRoute) -> str:
    return DEFAULT_IPV6 if live.dst == "default" and live.family == AF_INET6 else live.dst


def record_of(raw: RawRoute, name_of: NameOf) -> Route:
    """A live route as a record, with several next hops and other types than unicast, which users can't write."""
    live = raw.route
    via, dev = live.gateway, name_of(live.oif) if live.oif else ""
    if live.type != RTN_UNICAST:
        via, dev = TYPES.get(live.type, f"type {live.type}"), ""
    elif live.nexthops:
        via = text_of(Way(hop.gateway, name_of(hop.oif) or "?", hop.weight, hop.onlink) for hop in live.nexthops)
    return Route(
        to=destination(live),
        metric=live.metric,
        table=live.table,
        via=via,
        dev=dev or None,
        over=dev or None,
        src=live.prefsrc,
        onlink=live.onlink,
        options=options_of(raw),
    )


def is_made_by_kernel(live: LiveRoute, goal: Route) -> bool:
    """True if the kernel made the route, and the wanted route can exist next to it."""
    return live.protocol in links.KERNEL_MADE and bool(goal.via or live.gateway)


def would_be_joined(made: LiveRoute, others: Iterable[RawRoute]) -> bool:
    """True if IPv6 would make the route a next hop of another's route: neither would then be as requested."""
    if made.family != AF_INET6 or not made.gateway:
        return False
    lives = (raw.route for raw in others)
    return any((live.gateway or live.nexthops) and live.protocol not in links.KERNEL_MADE for live in lives)


def is_behind(made: Route, live: Route) -> bool:
    """True if another route was in force when `made` was captured, and is in force again."""
    raw, names = raw_from_text((made.carried or ("",))[0][1:])
    return not fits(made, live) and fits(record_of(raw, names.__getitem__), live)


def nics_hint(names: Iterable[str]) -> str:
    there = ", ".join(sorted(names))
    return f"it has {there}" if there else "it has no NIC; add one under nics"


def unreachable_hint(via: str) -> str:
    return f"no address in the container is in a network with {via}: add one to a NIC, or write `onlink: true` with dev"
