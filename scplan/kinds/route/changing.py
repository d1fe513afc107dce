"""Routes captured, made, changed and removed. rtnetlink(7), ip-route(8).

The kernel may hold several routes of one key (destination, metric and table); the first of them is in force. So each
operation works on the list of these routes: scplan's route goes to the front, routes of others stay, and routes that an
operation removes are captured as the kernel's own messages, to be restored in their places.

Imported as an operation begins: a plan does without.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from socket import AF_INET6

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Target
from scplan.kinds.route.live import (
    LOCAL_TABLE,
    Identify,
    destination,
    is_made_by_kernel,
    names_of_links,
    nics_hint,
    record_of,
    unreachable_hint,
    would_be_joined,
)
from scplan.kinds.route.record import Route, fits, kernel_destination, metric_of, table_of
from scplan.linux.container import Container
from scplan.linux.network import links
from scplan.linux.network.netlink import (
    RT_SCOPE_LINK,
    RTN_UNICAST,
    RTPROT_STATIC,
    NextHop,
    RawRoute,
    option_attributes,
    options_of,
    raw_from_text,
    raw_route,
    route_body,
)
from scplan.linux.network.netlink import Route as LiveRoute
from scplan.model.comparison import as_recorded
from scplan.model.networks import network_of
from scplan.model.next_hops import is_address, type_of, ways_of

_OWN, _MOVED, _STAYS = "-", "~", "="
_TAKEN_AWAY = (_OWN, _MOVED)


class _Places:
    """Live routes of one key in a container, in kernel order."""

    def __init__(self, container: Container, key: Route) -> None:
        if container.shares_host_network:
            raise links.refuse_host_network(container.name)
        self.container = container
        self.rtnl = container.rtnl
        self.is_ipv6 = key.family == AF_INET6
        self._key = key
        self._name_of = names_of_links(self.rtnl)
        self.look()

    def look(self) -> None:
        """Read the routes of the key again."""
        key = self._key
        listed = self.rtnl.raw_routes(
            key.family, table=table_of(key), lengths={network_of(kernel_destination(key.to)).length}
        )
        self.entries = [
            raw
            for raw in listed
            if (raw.route.dst, raw.route.metric) == (kernel_destination(key.to), metric_of(key))
            and not raw.route.tos
            and not raw.route.source_length
        ]

    def record(self, raw: RawRoute) -> Route:
        return record_of(raw, self._name_of)

    def find(self, wanted: Route | None) -> RawRoute | None:
        """The first live route that has every attribute which `wanted` sets."""
        if wanted is None:
            return None
        fitting = [
            raw for raw in self.entries if not is_made_by_kernel(raw.route, wanted) and fits(wanted, self.record(raw))
        ]
        exact = (raw for raw in fitting if wanted.options in (None, options_of(raw)))
        return next(exact, fitting[0] if fitting else None)

    def is_exact(self, raw: RawRoute, wanted: Route) -> bool:
        """True if the live route also has the options of the wanted one."""
        return wanted.options in (None, options_of(raw))

    def own(self, before: Route, record: Route | None) -> RawRoute | None:
        """scplan's route among the live ones: by its captured message, else by its record, else as read before."""
        if before.carried is None:
            return self.find(record) or self.find(before)
        captured = (self.of_text(text[1:]) for text in before.carried if text.startswith(_OWN))
        keys = {raw.key for raw in captured if raw is not None}
        return next((raw for raw in self.entries if raw.key in keys), None)

    def hop(self, record: Route | None) -> RawRoute | None:
        """scplan's next hop, as a route of its own, in an IPv6 route to which others have joined theirs."""
        if record is None or not self.is_ipv6 or not is_address(record.via):
            return None
        for raw in self.entries:
            for hop in raw.route.nexthops:
                if hop.gateway == record.via and record.link in (None, self._name_of(hop.oif)):
                    alone = raw.route._replace(gateway=hop.gateway, oif=hop.oif, onlink=hop.onlink, nexthops=())
                    return raw_route(route_body(alone))
        return None

    def text(self, raw: RawRoute) -> str:
        """The route as text, with the names of its links instead of their indexes."""
        return raw.text({index: self._name_of(index) or "?" for index in raw.route.oifs})

    def of_text(self, text: str) -> RawRoute | None:
        """The route of a text, over its links of now: by name, else by index. None if a link is gone."""
        raw, names = raw_from_text(text)
        indexes = {}
        for index, name in names.items():
            if self._name_of(index) != name:
                link = self.rtnl.link(name)
                if link is None and not self._name_of(index):
                    return None
                # A link that was renamed keeps its index.
                indexes[index] = index if link is None else link.index
            else:
                indexes[index] = index
        return raw.over(indexes)

    # changing

    def put(self, raw: RawRoute, wanted: Route, place: str) -> None:
        """Add a route. Raises KernelError with a hint."""
        try:
            match place:
                case "prepend":
                    self.rtnl.put_route(raw, place="prepend")
                case "replace":
                    self.rtnl.put_route(raw, place="replace")
                case _:
                    self.rtnl.put_route(raw)
        except KernelError as error:
            raise KernelError(
                error.operation, error.errno, detail=error.said, hint=_hint(error.errno, wanted)
            ) from None

    def take(self, raws: Iterable[RawRoute]) -> None:
        for raw in raws:
            self.rtnl.take_route(raw)

    def put_first(self, made: RawRoute, wanted: Route, own: RawRoute | None) -> None:
        """Put a route in front of the routes of others, in place of its former version `own`."""
        others = [raw for raw in self.entries if raw is not own]
        if would_be_joined(made.route, others):
            raise KernelError(f"RTM_NEWROUTE({made.route.text()})", errno.EEXIST, hint=_hint(errno.EEXIST, wanted))
        if own is not None and self.entries[0] is own and (not self.is_ipv6 or not others):
            self.put(made, wanted, "replace")
        elif not self.is_ipv6:
            self.put(made, wanted, "prepend")
            self.take([own] if own is not None else [])
        elif all(raw.route.protocol in links.KERNEL_MADE for raw in others) and self.entries:
            # NLM_F_REPLACE, netlink(7), swaps the first route in one step; the other former routes are then removed.
            self.put(made, wanted, "replace")
            former = {raw.key for raw in self.entries}
            self.look()
            self.take(raw for raw in self.entries if raw.key in former)
        else:
            # IPv6 has no "prepend": its routes of one key are in the order of their age.
            self.take(self.entries)
            self.put(made, wanted, "append")
            for raw in others:
                if raw.route.protocol not in links.KERNEL_MADE:
                    self.put(raw, wanted, "append")

    def arrange(self, goal: Sequence[RawRoute], wanted: Route) -> None:
        """Make the routes of the key equal to `goal`, in its order; routes that keep their place are not touched."""
        there, keys = [raw.key for raw in self.entries], [raw.key for raw in goal]
        if there == keys:
            return
        fits_first = not self.is_ipv6 and there[1:] == keys[1:]
        if self.entries and goal and keys[0] not in there and (len(goal) == 1 or fits_first):
            self.put(goal[0], wanted, "replace")
            self.look()
            self.take(raw for raw in self.entries if raw.key in there and raw.key not in keys)
            return
        if goal and not self.is_ipv6 and keys[0] not in there:
            self.put(goal[0], wanted, "prepend")
            self.look()
        self.take(raw for raw in self.entries if raw.key not in keys)
        staying = [raw for raw in self.entries if raw.key in keys]
        same = 0
        while same < len(staying) and staying[same].key == keys[same]:
            same += 1
        self.take(staying[same:])
        for raw in goal[same:]:
            self.put(raw, wanted, "append")


def capture(
    target: Target[Route], before: Route | None, after: Route | None, identity: Identify
) -> tuple[Route | None, Route | None]:
    """Both sides with all that an undo needs, and `after` with the NIC that its route goes over."""
    known = before or after
    if known is None:
        return before, after
    places = _Places(target.container, known)
    after = after and _with_link(target.container, after)
    if before is not None:
        record = target.peers.get(identity(before))
        own = places.own(before.replace(carried=None), record)
        if after is None and own is not None:
            # `before` may be a route that others put in front of scplan's.
            before = as_recorded(places.record(own), record or before)
        before = before.replace(
            protocol=own.route.protocol if own is not None else None,
            carried=tuple(_mark(places, raw, own, after) + places.text(raw) for raw in places.entries),
        )
    elif after is not None and places.is_ipv6:
        displaced = [raw for raw in places.entries if raw.route.protocol in links.KERNEL_MADE]
        if displaced and not any(fits(after, places.record(raw)) for raw in places.entries):
            after = after.replace(displaced=tuple(map(places.text, displaced)))
    return before, after


def _with_link(container: Container, after: Route) -> Route:
    """The route with its NIC; looked up again if the promised NIC is gone."""
    if after.dev is not None:
        return after.replace(over=after.dev)
    if not is_address(after.via) or (after.over is not None and container.rtnl.link(after.over) is not None):
        return after
    return after.replace(over=_link_towards(container, after.via))


def _mark(places: _Places, raw: RawRoute, own: RawRoute | None, after: Route | None) -> str:
    """Mark of a live route in `carried`: scplan's own, removed for a moment by an update, or left in its place."""
    if raw is own:
        return _OWN
    # put_first() adds the IPv6 routes of others again, behind the new route.
    is_moved = after is not None and (places.is_ipv6 or fits(after, places.record(raw)))
    return _MOVED if is_moved else _STAYS


def _link_towards(container: Container, via: str) -> str | None:
    """NIC over which the container reaches an address: the NIC of the narrowest route without a gateway."""
    family = AF_INET6 if ":" in via else 0
    best: tuple[int, str] | None = None
    for live in container.rtnl.routes(family=family, type=RTN_UNICAST):
        if live.gateway or not live.oif or live.table == LOCAL_TABLE or live.tos or live.source_length:
            continue
        network = network_of(destination(live))
        if network.holds(via) and (best is None or network.length > best[0]):
            best = network.length, container.rtnl.link_name(live.oif)
    return best[1] if best else None


def create(target: Target[Route], after: Route) -> None:
    places = _Places(target.container, after)
    if after.carried is not None:
        _put_back(places, after, mine=None)
        return
    there = places.find(after)
    if there is not None and places.is_exact(there, after) and there is places.entries[0]:
        return
    made = _to_kernel(target.container, after)
    if any(raw is not there and not _gives_way(raw) for raw in places.entries):
        raise KernelError(f"RTM_NEWROUTE({made.route.text()})", errno.EEXIST, hint=_hint(errno.EEXIST, after))
    # The kernel refuses a second equal IPv4 route: fib_table_insert() in net/ipv4/fib_trie.c
    if there is not None and not places.is_ipv6 and places.is_exact(there, after):
        places.take([there])
        there = None
    places.put_first(made, after, there)


def _gives_way(raw: RawRoute) -> bool:
    return raw.route.protocol in links.KERNEL_MADE


def update(target: Target[Route], before: Route, after: Route, identity: Identify) -> None:
    places = _Places(target.container, after)
    if after.carried is not None:
        _put_back(places, after, mine=before)
        return
    # An interrupted update may have made the route already.
    done = places.find(after)
    own = places.own(before, target.peers.get(identity(before)))
    if done is not None and not places.is_exact(done, after):
        done = None
    if done is not None and done is places.entries[0]:
        places.take([own] if own is not None and own is not done else [])
        return
    if done is not None and done is not own and own is not None:
        places.take([own])
        places.look()
    if done is not None:
        # The route is behind another one, so it is not in force, and its removal interrupts nothing.
        own = places.find(after)
        if not places.is_ipv6 and own is not None:
            places.take([own])
            places.look()
            own = None
    places.put_first(_to_kernel(target.container, after), after, own)


def delete(target: Target[Route], before: Route, identity: Identify) -> None:
    if target.container.shares_host_network:
        return  # nothing was made in the host's own namespace
    places = _Places(target.container, before)
    record = target.peers.get(identity(before))
    own = places.own(before, record)
    if own is not None and own.route.nexthops:
        own = places.hop(record) or own
    if own is not None:
        places.take([own])
    if before.displaced:
        places.look()
        if not any(_gives_way(raw) for raw in places.entries):
            places.arrange([*places.entries, *_known(places, before.displaced)], before)


def _known(places: _Places, texts: Iterable[str]) -> list[RawRoute]:
    return [raw for text in texts if (raw := places.of_text(text)) is not None]


def _put_back(places: _Places, after: Route, mine: Route | None) -> None:
    """Restore the routes of a key as `after` captured them; routes that others made since stay, behind these.

    `mine` is the route that scplan made instead, and is removed.
    """
    goal: list[RawRoute] = []
    there = {raw.key for raw in places.entries}
    for text in after.carried or ():
        raw = places.of_text(text[1:])
        if raw is None and text.startswith(_TAKEN_AWAY):
            raise KernelError(
                f"RTM_NEWROUTE({raw_from_text(text[1:])[0].route.text()})",
                errno.ENODEV,
                detail=f"container {places.container.name} has no longer the NIC that it went over",
            )
        if raw is not None and (text.startswith(_TAKEN_AWAY) or raw.key in there):
            goal.append(raw)
    known = {raw.key for raw in goal}
    made = places.find(mine)
    newer = [raw for raw in places.entries if raw.key not in known and raw is not made]
    if places.is_ipv6:
        newer = [raw for raw in newer if not _is_part_of(raw, goal)]
        if newer and not known <= there:
            return  # IPv6 would join the restored routes to those that others have made since
    places.arrange([*goal, *newer], after)


def _is_part_of(raw: RawRoute, goal: Sequence[RawRoute]) -> bool:
    """True if each next hop of the route belongs to a route that is to be restored."""
    hops = {(hop.gateway, hop.oif) for one in goal for hop in _hops(one.route)}
    return all((hop.gateway, hop.oif) in hops for hop in _hops(raw.route))


def _hops(live: LiveRoute) -> tuple[NextHop, ...]:
    return live.nexthops or (NextHop(live.gateway, live.oif, live.onlink, 1),)


def _to_kernel(container: Container, route: Route) -> RawRoute:
    """The route as a message, with its link looked up. Raises KernelError if the link does not exist."""
    oif = 0
    ways, kind = ways_of(route.via), type_of(route.via)
    gateway = route.via if is_address(route.via) else ""
    if kind != RTN_UNICAST or ways:
        pass
    elif route.link is not None:
        oif = _index_of(container, route.link)
    elif not gateway:
        oif = _link_that_has(container, route.src or "")
    # As ip-route(8) does: a unicast IPv4 route without a gateway has link scope. IPv6 ignores the scope.
    is_on_link = kind == RTN_UNICAST and not any(way.gateway for way in ways) and not gateway
    live = LiveRoute(
        family=route.family,
        dst=kernel_destination(route.to),
        gateway=gateway,
        oif=oif,
        prefsrc=route.src or "",
        metric=metric_of(route),
        table=table_of(route),
        # RTPROT_STATIC: a route of the administrator. rtnetlink(7)
        protocol=RTPROT_STATIC if route.protocol is None else route.protocol,
        scope=RT_SCOPE_LINK if is_on_link and route.family != AF_INET6 else 0,
        type=kind,
        onlink=bool(route.onlink),
        nexthops=tuple(NextHop(way.gateway, _index_of(container, way.dev), way.onlink, way.weight) for way in ways),
    )
    return raw_route(route_body(live) + option_attributes(route.options or ""))


def _index_of(container: Container, dev: str) -> int:
    """Index of the container's link of this name. Raises KernelError ENODEV."""
    link = container.rtnl.link(dev)
    if link is not None:
        return link.index
    raise KernelError(
        f"RTM_NEWROUTE(dev {dev})",
        errno.ENODEV,
        detail=f"container {container.name} has no NIC {dev}",
        hint=nics_hint(other.name for other in container.rtnl.nics()),
    )


def _link_that_has(container: Container, src: str) -> int:
    """Index of the container's link with this address. Raises ScplanError if there is none."""
    for addr in container.rtnl.addresses():
        if addr.address.partition("/")[0] == src:
            return addr.index
    raise ScplanError(
        f"no NIC of container {container.name} has the address {src}", hint="give it to one, or write dev or via"
    )


def _hint(code: int, route: Route) -> str:
    match code:
        case errno.ENETUNREACH | errno.EHOSTUNREACH if is_address(route.via):
            return unreachable_hint(route.via)
        case errno.ENETDOWN:
            return f"the NIC {route.link or 'that it needs'} is down"
        case errno.EEXIST:
            return "another route has this destination, metric and table: remove it, or choose another metric"
        case errno.EINVAL if route.src:
            return f"is {route.src} an address of the container?"
        case _:
            return ""
