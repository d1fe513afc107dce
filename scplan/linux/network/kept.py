"""A link with its addresses, routes and other objects, kept in the kernel's form and restored after a change.

When a link is set down, moved or removed, the kernel drops its addresses, the routes over it, routes elsewhere that
have one of its addresses as source, its neighbours, its place in a bridge and its settings. All are kept as the
kernel's own messages, in texts that a journal or a record can hold. rtnetlink(7), ip-address(8), ip-route(8).
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
# EXCL: fail if the object exists. REPLACE: replace it then. netlink(7)
_ADD = wire.NLM_F_CREATE | wire.NLM_F_EXCL
_REPLACE = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
_EXISTS = frozenset((errno.EEXIST,))
# Errors for a route that the link's addresses, or other links, no longer allow.
_NO_LONGER_POSSIBLE = frozenset(
    (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.ENODEV, errno.ENETDOWN, errno.ESRCH, errno.ENOENT)
)
_METRIC_OF_A_MOMENT = 0xFFFF_FFF0
_BEHIND, _BEFORE = "route", "route-before"


class KeptRoute(NamedTuple):
    """A route; the names of its links by index; True if it came before routes of its key over other links."""

    raw: RawRoute
    names: Mapping[int, str]
    is_before: bool


class Kept(NamedTuple):
    """A link as it was at `boot_s`, a time of the boot clock in seconds. `settings` are those of link_sysctls."""

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
        """Routes of the link, except those that the kernel makes with an address."""
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
        """Kept link from `texts`; objects of unknown sorts are ignored. Raises ValueError."""
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
    """Keep a link, and the objects that the kernel drops when it goes down or loses addresses.

    With the link's namespace as `whole`, keep also the objects that are dropped when the link is removed or moved.
    Raises KernelError ENODEV if the link is gone.
    """
    raw = read_link(rtnl, link.index)
    if raw is None:
        raise KernelError(f"RTM_GETLINK({link.name})", errno.ENODEV, detail="it vanished while scplan looked at it")
    listed = read_addresses(rtnl, link.index)
    by_users = [one for one in listed if not one.is_kernel_made(raw.link)]
    # If users have added link-local addresses, the kernel's own is kept for its place among them: made later, it would
    # come at another place.
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
    # The order of IPv4 routes of the same key counts. `last_staying` has the place of the last one that stays.
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
    """True if the kernel may drop the route with the link, and is not sure to make the same route again."""
    if route.protocol in (RTPROT_RA, RTPROT_REDIRECT):
        return False
    if route.protocol == RTPROT_KERNEL and not _is_of_an_address(route):
        return False
    return index in route.oifs or route.prefsrc in sources


def _is_of_an_address(route: Route) -> bool:
    """True for a kernel-made route to the network of an address: users may have removed or changed it."""
    return route.type == RTN_UNICAST and route.table != _LOCAL_TABLE and not route.dst.startswith(("fe80:", "ff"))


def _key(route: Route) -> tuple[int, str, int, int, int]:
    return route.family, route.dst, route.table, route.metric, route.tos


def _nexthops_over(rtnl: Rtnl, link: Link) -> Iterator[tuple[RawNexthop, str]]:
    """Nexthop objects over a link, then groups that contain them. ip-nexthop(8)"""
    objects = read_nexthops(rtnl)
    over = {one.id for one in objects if one.oif == link.index}
    yield from ((one, link.name) for one in objects if one.id in over)
    yield from ((one, "") for one in objects if over & set(one.members))


# restoring


def put_link_back(rtnl: Rtnl, link: Link, kept: Kept, namespace: NetworkNamespace) -> None:
    """Restore a link's kept attributes, alternative names and settings; MAC, MTU, name and state stay as they are.

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
    """Restore the kept attributes of a port of a Linux bridge; `put_back` restores its entries and VLANs."""
    now = _now(rtnl, link)
    errors: list[KernelError] = []
    for body in kept.raw.port_changes(now):
        _try(errors, rtnl, wire.RTM_NEWLINK, 0, body, f"RTM_NEWLINK({link.name}, port of a bridge)")
    _raise_first(errors)


def put_back(
    rtnl: Rtnl, link: Link, kept: Kept, *, but: Collection[tuple[str, str]] = (), exactly: bool = False
) -> None:
    """Add the kept addresses, routes and other objects that the link does not have.

    Leaves out addresses in `but` (RawAddr.key), and routes that are no longer possible. `exactly` also restores the
    order of addresses, and kernel-made routes that users had changed or removed.
    """
    put_addresses_back(rtnl, link, kept, but=but, exactly=exactly)
    now = _now(rtnl, link).link
    if now.up:
        _put_nexthops(rtnl, link, kept)
        _put_routes(rtnl, link, kept, _networks(raw.addr for raw in kept.addresses if raw.key in but), exactly=exactly)
    # The kernel drops the neighbours of a link that goes down, but accepts new ones while the link is down.
    is_lasting = now.up or not kept.link.up
    rare.put_back(rtnl, now, (one for one in kept.rare if is_lasting or one.sort != "neighbour"))


def put_addresses_back(
    rtnl: Rtnl, link: Link, kept: Kept, *, but: Collection[tuple[str, str]] = (), exactly: bool = False
) -> None:
    """Restore addresses as `put_back` does."""
    is_same = exactly and link.mac == kept.link.mac
    wanted = [raw for raw in kept.addresses if raw.key not in but and (is_same or not raw.is_kernel_made(kept.link))]
    elapsed_s = max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME)) - kept.boot_s)
    there = {raw.key: raw for raw in read_addresses(rtnl, link.index)}
    # The kernel lists IPv6 addresses with the newest first.
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
    """Add an address as the kernel listed it `elapsed_s` ago; does nothing if its lifetime has ended."""
    body = raw.request(link.index, elapsed_s, at_once=True)
    if body is None:
        return
    operation = f"RTM_NEWADDR({raw.addr.address}, link {link.name})"
    rtnl.send_raw(wire.RTM_NEWADDR, _ADD, body, operation, done_when=_EXISTS)
    asked = raw.request(link.index, elapsed_s)
    if raw.addr.family == _AF_INET6 and raw.was_proved and asked is not None:
        # The address is usable by now: clear IFA_F_NODAD, which has spared it duplicate address detection.
        rtnl.send_raw(wire.RTM_NEWADDR, wire.NLM_F_REPLACE, asked, operation)


def _by_age(addresses: Iterable[RawAddr]) -> list[RawAddr]:
    """Addresses in the order in which they must be added, so that the kernel lists them in the given order."""
    listed = list(addresses)
    first = [raw for raw in listed if raw.addr.family == _AF_INET]
    return first + [raw for raw in reversed(listed) if raw.addr.family != _AF_INET]


def _order_addresses(rtnl: Rtnl, link: Link, wanted: Sequence[RawAddr], elapsed_s: int) -> None:
    """Make the addresses again from the first that is out of order."""
    known = {raw.key for raw in wanted}
    live = _by_age(raw for raw in read_addresses(rtnl, link.index) if raw.key in known)
    keys = [raw.key for raw in live]
    ordered = [raw for raw in _by_age(wanted) if raw.key in keys]
    first = next((turn for turn, raw in enumerate(ordered) if raw.key != keys[turn]), None)
    if first is None:
        return
    # With the addresses, the kernel drops routes that others, or scplan, have made since: they are restored, too.
    now = keep(rtnl, link)
    for raw in live[first:]:
        rtnl.delete_address(link.index, raw.addr.address, peer=raw.addr.peer)
    there = {raw.key for raw in read_addresses(rtnl, link.index)}
    for raw in ordered:
        if raw.key not in there:
            add_address(rtnl, link, raw, elapsed_s)
    put_back(rtnl, link, now)


def put_in_order(rtnl: Rtnl, link: Link, keys: Sequence[tuple[str, str]]) -> None:
    """Put IPv4 addresses of a link in this order; addresses that are not in `keys` come after them."""
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
    """Restore the routes, except kernel-made routes to networks that were `left` with their address."""
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
    # A route may make the gateway of another reachable: a refused route is tried again after all others.
    waiting = sorted(places, key=lambda one: (bool(one[0].route.gateway or one[0].route.nexthops), -_length(one[0])))
    while waiting:
        refused = [(raw, place) for raw, place in waiting if not _put_route(rtnl, raw, place)]
        if len(refused) == len(waiting):
            break
        waiting = refused
    for raw, place in waiting if exactly else ():
        _put_unreachable(rtnl, raw, place)


def _as_they_would_be(rtnl: Rtnl, link: Link, kept: Kept) -> Iterator[tuple[RawRoute, bool]]:
    """Kept routes with the present indexes of their links; routes over links that are gone are left out."""
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
    """Missing routes, each to prepend to the routes of its key, or to append.

    A route is prepended, the last one first, if a route that came after it exists.
    """
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
    """Remove routes that the kernel has made with the kept addresses, if users had removed them before."""
    networks = _networks(raw.addr for raw in kept.addresses)
    for raw in live:
        route = raw.route
        is_made = route.protocol == RTPROT_KERNEL and _is_of_an_address(route) and route.oifs == (link.index,)
        if is_made and route.table == MAIN_TABLE and route.dst in networks and _shape(raw) not in shapes:
            rtnl.take_route(raw)


def _networks(addresses: Iterable[Addr]) -> set[str]:
    """Networks to which the kernel makes a route with each address."""
    import ipaddress

    return {str(ipaddress.ip_interface(addr.far_end).network) for addr in addresses}


def _take_remains(rtnl: Rtnl, wanted: RawRoute, live: Sequence[RawRoute]) -> None:
    """Remove the remains of an IPv6 route, which the kernel kept without its source address or some next hops."""
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
    """Add a route. Returns False if the kernel refuses it in the present state."""
    try:
        rtnl.put_route(raw, place="prepend" if place == "prepend" else "append")
    except KernelError as error:
        if error.errno not in _NO_LONGER_POSSIBLE:
            raise
        return False
    return True


def _put_unreachable(rtnl: Rtnl, raw: RawRoute, place: str) -> None:
    """Add a route whose gateways are no longer reachable: the kernel checks them only when a route is added.

    Routes to the gateways exist for that moment. All requests are one system call: if the process is killed, no such
    route is left behind.
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
    """Request for the route without its remaining lifetime."""
    request = raw.request()
    # RTA_EXPIRES is the last attribute: 4 bytes of header and 4 of payload.
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
