"""A link with all that goes with it, kept as the kernel holds it, and put back: when it was down, moved or removed.

What the kernel drops with a link is its addresses, the routes over it and those elsewhere that have one of its
addresses as their source, its neighbours, its place in a bridge and its settings. All is kept as the kernel's own
messages, in texts that a journal or a record can hold. rtnetlink(7), ip-address(8), ip-route(8).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from scplan.errors import KernelError
from scplan.linux.network import link_sysctls
from scplan.linux.network.links import NetworkNamespace
from scplan.linux.network.netlink import (
    MAIN_TABLE,
    RT_SCOPE_LINK,
    RTN_UNICAST,
    RTPROT_KERNEL,
    RTPROT_RA,
    RTPROT_REDIRECT,
    Addr,
    Link,
    RawRoute,
    Route,
    Rtnl,
    rare,
    raw_from_text,
    wire,
)
from scplan.linux.network.netlink.rare import RareObject
from scplan.linux.network.netlink.raw_links import (
    RawAddr,
    RawLink,
    RawNexthop,
    parse_raw_nexthop,
    raw_address,
    raw_link,
    read_addresses,
    read_link,
    read_nexthops,
)
from scplan.startup.named_tuple import NamedTuple

_AF_INET, _AF_INET6 = 2, 10
_LOCAL_TABLE = 255
_ADD = wire.NLM_F_CREATE | wire.NLM_F_EXCL
_REPLACE = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
_EXISTS = frozenset((errno.EEXIST,))
# What is in the way of a route that its addresses, or other links, no longer allow.
_NO_LONGER_POSSIBLE = frozenset(
    (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.ENODEV, errno.ENETDOWN, errno.ESRCH, errno.ENOENT)
)
_METRIC_OF_A_MOMENT = 0xFFFF_FFF0
_BEHIND, _BEFORE = "route", "route-before"


class KeptRoute(NamedTuple):
    """A route; the names of its links by index; True if it came before others of its key, over other links."""

    raw: RawRoute
    names: Mapping[int, str]
    is_before: bool


class Kept(NamedTuple):
    """A link as it was at a time of the boot clock. `settings` are those of link_sysctls."""

    boot_s: int
    raw: RawLink
    addresses: tuple[RawAddr, ...]
    routes: tuple[KeptRoute, ...]
    nexthops: tuple[tuple[RawNexthop, str], ...]
    rare: tuple[RareObject, ...]
    settings: Mapping[str, str]

    @property
    def link(self) -> Link:
        return self.raw.link

    @property
    def routes_of_users(self) -> list[RawRoute]:
        """Its routes but those that the kernel makes with an address."""
        return [kept.raw for kept in self.routes if kept.raw.route.protocol != RTPROT_KERNEL]

    def texts(self) -> tuple[str, ...]:
        """A text for each object: its sort, and the kernel's message in hexadecimal digits."""
        return (
            f"boottime {self.boot_s}",
            f"link {self.raw.body.hex()}",
            *(f"address {raw.body.hex()}" for raw in self.addresses),
            *(f"nexthop {name or '-'} {raw.body.hex()}" for raw, name in self.nexthops),
            *(f"{_BEFORE if is_before else _BEHIND} {raw.text(names)}" for raw, names, is_before in self.routes),
            *(f"{one.sort} {one.body.hex()}" for one in self.rare),
            *(f"setting {key}={value}" for key, value in self.settings.items()),
        )

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Kept:
        """The link that `texts` stand for; objects of sorts that are not known are left out. Raises ValueError."""
        found: dict[str, list[str]] = {}
        for text in texts:
            sort, _, rest = text.partition(" ")
            found.setdefault(sort, []).append(rest)
        if "link" not in found:
            raise ValueError("a kept link without its own message")
        sorts = ("neighbour", "fdb", "vlan", "qdisc", "class", "filter")
        return cls(
            int(found.get("boottime", ["0"])[0]),
            raw_link(bytes.fromhex(found["link"][0])),
            tuple(raw_address(bytes.fromhex(text)) for text in found.get("address", ())),
            tuple(_route_of(sort, text) for sort in (_BEFORE, _BEHIND) for text in found.get(sort, ())),
            tuple(_nexthop_of(text) for text in found.get("nexthop", ())),
            tuple(RareObject(sort, bytes.fromhex(text)) for sort in sorts for text in found.get(sort, ())),
            dict(_setting_of(text) for text in found.get("setting", ())),
        )


def _route_of(sort: str, text: str) -> KeptRoute:
    raw, names = raw_from_text(text)
    return KeptRoute(raw, names, sort == _BEFORE)


def _nexthop_of(text: str) -> tuple[RawNexthop, str]:
    name, _, body = text.partition(" ")
    packed = bytes.fromhex(body)
    return parse_raw_nexthop(packed, 0, len(packed)), "" if name == "-" else name


def _setting_of(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


# keeping


def keep(rtnl: Rtnl, link: Link, *, whole: NetworkNamespace | None = None) -> Kept:
    """The link and what the kernel drops when it goes down, or loses addresses.

    With its namespace as `whole` also what is dropped when it is removed, or moved to another one. Raises KernelError
    ENODEV when it is gone.
    """
    raw = read_link(rtnl, link.index)
    if raw is None:
        raise KernelError(f"RTM_GETLINK({link.name})", errno.ENODEV, detail="it vanished while scplan looked at it")
    listed = read_addresses(rtnl, link.index)
    by_users = [one for one in listed if not one.is_kernel_made(raw.link)]
    # Beside link-local ones of users the kernel's own have a place, which it would not give them when they come late.
    has_local = any(one.addr.is_link_local for one in by_users)
    addresses = tuple(one for one in listed if one in by_users or (has_local and one.is_kernel_made_local(raw.link)))
    objects = rare.neighbours(rtnl, link) + rare.of_port(rtnl, raw.link)
    return Kept(
        int(time.clock_gettime(time.CLOCK_BOOTTIME)),
        raw,
        addresses,
        tuple(_routes_with(rtnl, link.index, addresses)),
        tuple(_nexthops_over(rtnl, link)),
        tuple(objects + (rare.traffic_control(rtnl, link) if whole is not None else [])),
        link_sysctls.read_own(whole, link) if whole is not None else {},
    )


def _routes_with(rtnl: Rtnl, index: int, addresses: Collection[RawAddr]) -> Iterator[KeptRoute]:
    sources = {raw.addr.address.partition("/")[0] for raw in addresses}
    routes = rtnl.raw_routes()
    chosen = [_goes_with(raw.route, index, sources) for raw in routes]
    names: dict[int, str] = {0: ""}
    # Where IPv4 has several of a key, their order counts; the last one that stays comes after these.
    last_staying = {
        _key(raw.route): place for place, raw in enumerate(routes) if not chosen[place] and raw.route.family == _AF_INET
    }
    for place, raw in enumerate(routes):
        if not chosen[place]:
            continue
        for oif in raw.route.oifs:
            if oif not in names:
                names[oif] = rtnl.link_name(oif)
        is_before = last_staying.get(_key(raw.route), -1) > place
        yield KeptRoute(raw, {oif: names[oif] for oif in raw.route.oifs}, is_before)


def _goes_with(route: Route, index: int, sources: Collection[str]) -> bool:
    """True if the kernel may drop the route with the link, and nobody makes it again."""
    if route.protocol in (RTPROT_RA, RTPROT_REDIRECT):
        return False
    if route.protocol == RTPROT_KERNEL and not _is_of_an_address(route):
        return False
    return index in route.oifs or route.prefsrc in sources


def _is_of_an_address(route: Route) -> bool:
    """True for a route of the kernel's protocol that users may have removed or changed: to an address's network."""
    return route.type == RTN_UNICAST and route.table != _LOCAL_TABLE and not route.dst.startswith(("fe80:", "ff"))


def _key(route: Route) -> tuple[int, str, int, int, int]:
    return route.family, route.dst, route.table, route.metric, route.tos


def _nexthops_over(rtnl: Rtnl, link: Link) -> Iterator[tuple[RawNexthop, str]]:
    """The nexthop objects over a link, then the groups that have one of them."""
    objects = read_nexthops(rtnl)
    over = {one.id for one in objects if one.oif == link.index}
    yield from ((one, link.name) for one in objects if one.id in over)
    yield from ((one, "") for one in objects if over & set(one.members))


# putting back


def put_link_back(rtnl: Rtnl, link: Link, kept: Kept, namespace: NetworkNamespace) -> None:
    """Gives a link its kept attributes, alternative names and settings. MAC, MTU, name and state are left alone.

    All are tried; raises the first KernelError, with the diagnostics of all.
    """
    now = _now(rtnl, link)
    errors: list[KernelError] = []
    for body in kept.raw.own_changes(now):
        _try(errors, rtnl, wire.RTM_NEWLINK, 0, body, f"RTM_NEWLINK({link.name})")
    for name in kept.raw.other_names:
        body = kept.raw.name_request(link.index, name)
        flags = _ADD | wire.NLM_F_APPEND
        operation = f"RTM_NEWLINKPROP({link.name}, altname {name!r})"
        _try(errors, rtnl, wire.RTM_NEWLINKPROP, flags, body, operation, done_when=_EXISTS)
    if kept.settings:
        try:
            link_sysctls.write(namespace, link, kept.settings)
        except KernelError as error:
            errors.append(error)
    _raise_first(errors)


def put_port_back(rtnl: Rtnl, link: Link, kept: Kept) -> None:
    """Gives a port of a Linux bridge its kept attributes; its entries and VLANs come with `put_back`."""
    now = _now(rtnl, link)
    errors: list[KernelError] = []
    for body in kept.raw.port_changes(now):
        _try(errors, rtnl, wire.RTM_NEWLINK, 0, body, f"RTM_NEWLINK({link.name}, port of a bridge)")
    _raise_first(errors)


def put_back(
    rtnl: Rtnl, link: Link, kept: Kept, *, but: Collection[tuple[str, str]] = (), exactly: bool = False
) -> None:
    """Adds to a link, as it is now, its kept addresses, routes and other objects, where it does not have them.

    Addresses in `but` (RawAddr.key) are left out, and so are routes that are no longer possible. `exactly` also gives
    addresses their former order, and routes of the kernel's that users had changed or removed their former state.
    """
    put_addresses_back(rtnl, link, kept, but=but, exactly=exactly)
    now = _now(rtnl, link).link
    if now.up:
        _put_nexthops(rtnl, link, kept)
        _put_routes(rtnl, link, kept, _networks(raw.addr for raw in kept.addresses if raw.key in but), exactly=exactly)
    # The kernel drops the neighbours of a link that goes down; one that is down can be given some.
    is_lasting = now.up or not kept.link.up
    rare.put_back(rtnl, now, (one for one in kept.rare if is_lasting or one.sort != "neighbour"))


def put_addresses_back(
    rtnl: Rtnl, link: Link, kept: Kept, *, but: Collection[tuple[str, str]] = (), exactly: bool = False
) -> None:
    """The addresses of `put_back` alone."""
    is_same = exactly and link.mac == kept.link.mac
    wanted = [raw for raw in kept.addresses if raw.key not in but and (is_same or not raw.is_kernel_made(kept.link))]
    elapsed_s = max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME)) - kept.boot_s)
    there = {raw.key: raw for raw in read_addresses(rtnl, link.index)}
    # The kernel lists those of IPv6 with the newest first.
    for raw in _by_age(wanted):
        live = there.get(raw.key)
        if live is None:
            add_address(rtnl, link, raw, elapsed_s)
        elif exactly and live.shape() != raw.shape() and (body := raw.request(link.index, elapsed_s)) is not None:
            rtnl.send_raw(wire.RTM_NEWADDR, _REPLACE, body, f"RTM_NEWADDR({raw.addr.address}, link {link.name})")
    if exactly:
        for family in (_AF_INET, _AF_INET6):
            _order_addresses(rtnl, link, [raw for raw in wanted if raw.addr.family == family], elapsed_s)


def add_address(rtnl: Rtnl, link: Link, raw: RawAddr, elapsed_s: int = 0) -> None:
    """Adds an address just as the kernel listed it, `elapsed_s` later; nothing when its time is up."""
    body = raw.request(link.index, elapsed_s, at_once=True)
    if body is None:
        return
    operation = f"RTM_NEWADDR({raw.addr.address}, link {link.name})"
    rtnl.send_raw(wire.RTM_NEWADDR, _ADD, body, operation, done_when=_EXISTS)
    asked = raw.request(link.index, elapsed_s)
    if raw.addr.family == _AF_INET6 and raw.was_proved and asked is not None:
        # It is usable by now; the flag that spared it the proof goes.
        rtnl.send_raw(wire.RTM_NEWADDR, wire.NLM_F_REPLACE, asked, operation)


def _by_age(addresses: Iterable[RawAddr]) -> list[RawAddr]:
    """In the order in which they are to be added, so that the kernel lists them as they are."""
    listed = list(addresses)
    first = [raw for raw in listed if raw.addr.family == _AF_INET]
    return first + [raw for raw in reversed(listed) if raw.addr.family != _AF_INET]


def _order_addresses(rtnl: Rtnl, link: Link, wanted: Sequence[RawAddr], elapsed_s: int) -> None:
    """Makes those again that are not where they would be by their turn."""
    known = {raw.key for raw in wanted}
    live = _by_age(raw for raw in read_addresses(rtnl, link.index) if raw.key in known)
    keys = [raw.key for raw in live]
    ordered = [raw for raw in _by_age(wanted) if raw.key in keys]
    first = next((turn for turn, raw in enumerate(ordered) if raw.key != keys[turn]), None)
    if first is None:
        return
    # The kernel drops routes with them that others, or scplan, have made since.
    now = keep(rtnl, link)
    for raw in live[first:]:
        rtnl.delete_address(link.index, raw.addr.address, peer=raw.addr.peer)
    there = {raw.key for raw in read_addresses(rtnl, link.index)}
    for raw in ordered:
        if raw.key not in there:
            add_address(rtnl, link, raw, elapsed_s)
    put_back(rtnl, link, now)


def put_in_order(rtnl: Rtnl, link: Link, keys: Sequence[tuple[str, str]]) -> None:
    """Makes IPv4 addresses of a link come in this order, and those that are not named after them."""
    former = keep(rtnl, link)
    live = [raw for raw in former.addresses if raw.addr.family == _AF_INET]
    named = sorted((raw for raw in live if raw.key in keys), key=lambda raw: keys.index(raw.key))
    first = next((turn for turn, raw in enumerate(named) if raw != live[turn]), len(named))
    for raw in live[first:]:
        rtnl.delete_address(link.index, raw.addr.address, peer=raw.addr.peer)
    for raw in named[first:]:
        add_address(rtnl, link, raw)
    put_back(rtnl, link, former)


def _put_nexthops(rtnl: Rtnl, link: Link, kept: Kept) -> None:
    there = {one.id for one in read_nexthops(rtnl)} if kept.nexthops else set()
    for one, _ in kept.nexthops:
        if one.id in there and not one.members:
            continue
        body = one.request({one.oif: link.index})
        _if_possible(rtnl, wire.RTM_NEWNEXTHOP, _REPLACE, body, f"RTM_NEWNEXTHOP(id {one.id})")


def _put_routes(rtnl: Rtnl, link: Link, kept: Kept, left: Collection[str], *, exactly: bool) -> None:
    """The routes, but for the kernel's own to networks that were `left` with their address."""
    wanted = [
        one
        for one in _as_they_would_be(rtnl, link, kept)
        if one[0].route.protocol != RTPROT_KERNEL or one[0].route.dst not in left
    ]
    if not wanted:
        return
    live = rtnl.raw_routes()
    if exactly and kept.link.up:
        _take_surplus(rtnl, link, kept, {_shape(raw) for raw, _ in wanted}, live)
    shapes = {_shape(raw) for raw in live}
    missing = [(raw, is_before) for raw, is_before in wanted if _shape(raw) not in shapes]
    for raw, _ in missing:
        _take_remains(rtnl, raw, live)
    places = _placed(wanted, missing, shapes)
    # What makes one's gateway reachable may be another of them: what is refused is tried again after the others.
    waiting = sorted(places, key=lambda one: (bool(one[0].route.gateway or one[0].route.nexthops), -_length(one[0])))
    while waiting:
        refused = [(raw, place) for raw, place in waiting if not _put_route(rtnl, raw, place)]
        if len(refused) == len(waiting):
            break
        waiting = refused
    for raw, place in waiting if exactly else ():
        _put_unreachable(rtnl, raw, place)


def _as_they_would_be(rtnl: Rtnl, link: Link, kept: Kept) -> Iterator[tuple[RawRoute, bool]]:
    """The kept routes over the links as they are now; those over links that are gone are left out."""
    indexes = {kept.link.index: link.index}
    for raw, names, is_before in kept.routes:
        for index, name in names.items():
            if index not in indexes and (found := rtnl.link(name)) is not None:
                indexes[index] = found.index
        if all(index in indexes for index in raw.route.oifs):
            yield raw.over(indexes), is_before


def _placed(
    wanted: Sequence[tuple[RawRoute, bool]], missing: Sequence[tuple[RawRoute, bool]], shapes: Collection[bytes]
) -> list[tuple[RawRoute, str]]:
    """The missing ones with their place among those of their key: before what came after them, the last one first."""
    behind: list[tuple[RawRoute, str]] = []
    before: list[tuple[RawRoute, str]] = []
    for place, (raw, is_before) in enumerate(wanted):
        if (raw, is_before) not in missing:
            continue
        later = (other for other, _ in wanted[place + 1 :] if _key(other.route) == _key(raw.route))
        if raw.route.family == _AF_INET and (is_before or any(_shape(other) in shapes for other in later)):
            before.insert(0, (raw, "prepend"))
        else:
            behind.append((raw, "append"))
    return before + behind


def _take_surplus(rtnl: Rtnl, link: Link, kept: Kept, shapes: Collection[bytes], live: Sequence[RawRoute]) -> None:
    """Removes routes that the kernel has made with the kept addresses, though users had removed them before."""
    networks = _networks(raw.addr for raw in kept.addresses)
    for raw in live:
        route = raw.route
        is_made = route.protocol == RTPROT_KERNEL and _is_of_an_address(route) and route.oifs == (link.index,)
        if is_made and route.table == MAIN_TABLE and route.dst in networks and _shape(raw) not in shapes:
            rtnl.take_route(raw)


def _networks(addresses: Iterable[Addr]) -> set[str]:
    """The networks to which the kernel makes a route with each address."""
    import ipaddress

    return {str(ipaddress.ip_interface(addr.far_end).network) for addr in addresses}


def _take_remains(rtnl: Rtnl, wanted: RawRoute, live: Sequence[RawRoute]) -> None:
    """Removes what the kernel left of an IPv6 route: without its source address, or without some of its next hops."""
    if wanted.route.family != _AF_INET6:
        return
    for raw in live:
        if _key(raw.route) != _key(wanted.route) or raw.route.protocol != wanted.route.protocol:
            continue
        lost_source = wanted.route.prefsrc and raw.route == wanted.route._replace(prefsrc="")
        hops = raw.route.nexthops
        one = {(raw.route.gateway, raw.route.oif)} if not hops else {(hop.gateway, hop.oif) for hop in hops}
        lost_hops = wanted.route.nexthops and one < {(hop.gateway, hop.oif) for hop in wanted.route.nexthops}
        if lost_source or lost_hops:
            rtnl.take_route(raw)


def _put_route(rtnl: Rtnl, raw: RawRoute, place: str) -> bool:
    """False if the kernel refuses the route as things are."""
    try:
        rtnl.put_route(raw, place="prepend" if place == "prepend" else "append")
    except KernelError as error:
        if error.errno not in _NO_LONGER_POSSIBLE:
            raise
        return False
    return True


def _put_unreachable(rtnl: Rtnl, raw: RawRoute, place: str) -> None:
    """Puts a route whose gateways nothing reaches any more: the kernel asks for that only as it takes the route.

    Routes to the gateways are there for that moment. All is one system call, in which no death leaves them behind.
    """
    route = raw.route
    gateways = {(hop.gateway, hop.oif) for hop in route.nexthops} or {(route.gateway, route.oif)}
    ways = [
        Route(
            family=route.family,
            dst=f"{gateway}/{32 if route.family == _AF_INET else 128}",
            oif=oif,
            scope=RT_SCOPE_LINK if route.family == _AF_INET else 0,
            metric=_METRIC_OF_A_MOMENT,
            table=MAIN_TABLE,
        )
        for gateway, oif in sorted(gateways)
        if gateway and oif
    ]
    batch = rtnl.batch()
    for way in ways:
        batch.add_route(way)
    batch.put_route(raw, place="prepend" if place == "prepend" else "append")
    for way in ways:
        batch.delete_route(way)
    try:
        batch.send()
    except KernelError as error:
        if error.errno not in _NO_LONGER_POSSIBLE:
            raise


def _shape(raw: RawRoute) -> bytes:
    """The route without the time that it has left."""
    request = raw.request()
    return request[:-8] if raw.expires else request


def _length(raw: RawRoute) -> int:
    return int(raw.route.dst.rpartition("/")[2]) if "/" in raw.route.dst else 0


def _now(rtnl: Rtnl, link: Link) -> RawLink:
    raw = read_link(rtnl, link.index)
    if raw is None:
        raise KernelError(f"RTM_GETLINK({link.name})", errno.ENODEV, detail="it vanished while scplan worked on it")
    return raw


def _try(
    errors: list[KernelError],
    rtnl: Rtnl,
    number: int,
    flags: int,
    body: bytes,
    operation: str,
    *,
    done_when: frozenset[int] = frozenset(),
) -> None:
    try:
        rtnl.send_raw(number, flags, body, operation, done_when=done_when)
    except KernelError as error:
        errors.append(error)


def _if_possible(rtnl: Rtnl, number: int, flags: int, body: bytes, operation: str) -> None:
    try:
        rtnl.send_raw(number, flags, body, operation)
    except KernelError as error:
        if error.errno not in _NO_LONGER_POSSIBLE:
            raise


def _raise_first(errors: Sequence[KernelError]) -> None:
    if errors:
        errors[0].diagnostics = tuple(diagnostic for error in errors for diagnostic in error.diagnostics)
        raise errors[0]
