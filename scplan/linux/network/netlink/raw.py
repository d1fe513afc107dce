"""Routes in the kernel's form: its own RTM_NEWROUTE messages, kept as text and sent back. rtnetlink(7).

A message that is sent back makes the same route, with attributes unknown to scplan. The kernel does not accept all that
it lists: state that is no configuration (linkdown, counters) is left out, and a route's remaining lifetime is converted
to seconds.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from socket import AF_INET6
from struct import Struct

from scplan.linux.network.netlink import wire
from scplan.linux.network.netlink.layouts import ATTRIBUTE, Malformed, places
from scplan.linux.network.netlink.records import RTNH_F_ONLINK, Route
from scplan.linux.network.netlink.wire import RTMSG, RTNEXTHOP, U32
from scplan.startup.named_tuple import NamedTuple

# linux/rtnetlink.h
_OIF, _GATEWAY, _MULTIPATH, _FLOW, _CACHEINFO = 4, 5, 9, 11, 12
_MFC_STATS, _VIA, _ENCAP_TYPE, _ENCAP, _EXPIRES, _PAD, _UID, _NH_ID = 17, 18, 21, 22, 23, 24, 25, 30
_NOT_ASKED_FOR = frozenset((_CACHEINFO, _MFC_STATS, _PAD, _UID))
# The kernel lists a route over a nexthop object (ip-nexthop(8)) with the object's attributes, but refuses a request
# that has both.
_OF_THE_NEXTHOP = frozenset((_OIF, _GATEWAY, _MULTIPATH, _FLOW, _VIA, _ENCAP_TYPE, _ENCAP))
_RTNH_F_PERVASIVE = 2
_RTM_F_CLONED = 0x200  # a cached route
_ASKED_FLAGS = RTNH_F_ONLINK | _RTNH_F_PERVASIVE
_CACHED = Struct("=IIi")  # rta_cacheinfo: references, last use, time left
_USER_HZ = 100  # clock ticks per second, the unit of the time left
_NO_GATEWAY = bytes(16)


class RawRoute(NamedTuple):
    """A route, and the body of the kernel's message that listed it."""

    route: Route
    body: bytes

    def text(self, names: Mapping[int, str]) -> str:
        """Names of the route's links by index, and its message in hexadecimal digits: `7:eth1,8:eth2 0210…`."""
        links = ",".join(f"{index}:{names[index]}" for index in sorted(set(self.route.oifs)))
        return f"{links or '-'} {self.body.hex()}"

    def over(self, indexes: Mapping[int, int]) -> RawRoute:
        """The route over other links; `indexes` maps its present indexes to new ones. Raises KeyError."""
        attributes = []
        for kind, payload in _attributes(self.body):
            if kind == _OIF:
                payload = U32.pack(indexes[U32.unpack(payload)[0]])
            elif kind == _MULTIPATH:
                payload = _hops_over(payload, indexes)
            attributes.append(wire.attribute(kind, payload))
        return raw_route(self.body[: RTMSG.size] + b"".join(attributes))

    def request(self, *, with_expiry: bool = True) -> bytes:
        """Body of an RTM_NEWROUTE or RTM_DELROUTE for exactly this route."""
        family, to, source, tos, table, protocol, scope, kind, flags = RTMSG.unpack_from(self.body)
        header = RTMSG.pack(family, to, source, tos, table, protocol, scope, kind, flags & _ASKED_FLAGS)
        found = list(_attributes(self.body))
        left_out = _NOT_ASKED_FOR
        if any(number == _NH_ID for number, _ in found):
            left_out |= _OF_THE_NEXTHOP
        asked = [
            wire.attribute(number, _asked_hops(payload) if number == _MULTIPATH else payload)
            for number, payload in found
            if number not in left_out
        ]
        if with_expiry:
            asked += [wire.u32(_EXPIRES, seconds) for seconds in _seconds_left(found)]
        return header + b"".join(asked)

    def removal(self) -> bytes:
        """Body of an RTM_DELROUTE for this route.

        In IPv6 no gateway means any gateway, so that an empty one is added. The protocol is left out: next hops of an
        IPv6 route can have different ones, of which the kernel lists only one.
        """
        body = self.request(with_expiry=False)
        if self.route.family != AF_INET6:
            return body
        family, to, source, tos, table, _, scope, kind, flags = RTMSG.unpack_from(body)
        found = [
            (number, _exact_hops(payload) if number == _MULTIPATH else payload) for number, payload in _attributes(body)
        ]
        if not {number for number, _ in found} & {_GATEWAY, _MULTIPATH, _NH_ID}:
            found.append((_GATEWAY, _NO_GATEWAY))
        attributes = b"".join(wire.attribute(number, payload) for number, payload in found)
        return RTMSG.pack(family, to, source, tos, table, 0, scope, kind, flags) + attributes

    @property
    def key(self) -> bytes:
        """Equal for two messages about the same route: everything but its remaining lifetime."""
        return self.request(with_expiry=False)

    @property
    def expires(self) -> bool:
        """True if the kernel removes the route after a time."""
        return does_expire(_attributes(self.body))


def does_expire(attributes: Iterable[tuple[int, bytes]]) -> bool:
    """True if the kernel removes a route with these attributes after a time."""
    return any(True for _ in _seconds_left(attributes))


def raw_route(body: bytes) -> RawRoute:
    """Route of a whole RTM_NEWROUTE body. Raises Malformed for a family other than IPv4 and IPv6."""
    parsed = parse_raw_route(body, 0, len(body))
    if parsed is None:
        raise Malformed("a route of another family than IPv4 and IPv6")
    return parsed


def route_body(route: Route) -> bytes:
    """Body of a message for a route, from everything in its record."""
    dst, _, length = ("", "", "0") if route.dst == "default" else route.dst.partition("/")
    # The header's field has 8 bits: RT_TABLE_UNSPEC (0) if RTA_TABLE holds a larger number.
    table = route.table if route.table < 256 else 0
    flags = RTNH_F_ONLINK if route.onlink else 0
    body = [
        RTMSG.pack(route.family, int(length), 0, route.tos, table, route.protocol, route.scope, route.type, flags),
        wire.attribute(wire.RTA_DST, wire.address_bytes(dst)[1]) if dst else b"",
        wire.gateway(route.family, route.gateway) if route.gateway else b"",
        wire.u32(wire.RTA_OIF, route.oif) if route.oif else b"",
        wire.next_hops(route.family, route.nexthops) if route.nexthops else b"",
        wire.attribute(wire.RTA_PREFSRC, wire.address_bytes(route.prefsrc)[1]) if route.prefsrc else b"",
        wire.u32(wire.RTA_PRIORITY, route.metric) if route.metric else b"",
        wire.u32(wire.RTA_TABLE, route.table),
    ]
    return b"".join(body)


def raw_from_text(text: str) -> tuple[RawRoute, dict[int, str]]:
    """Route from a text of `RawRoute.text`, and the names that its links had. Raises ValueError."""
    links, _, body = text.partition(" ")
    names: dict[int, str] = {}
    # The name of a link can hold commas, but no colons: dev_valid_name() of net/core/dev.c.
    for link in re.split(r",(?=\d+:)", links) if links != "-" else ():
        index, _, name = link.partition(":")
        names[int(index)] = name
    raw = raw_route(bytes.fromhex(body))
    if names.keys() != set(raw.route.oifs):
        raise ValueError(f"not a route over links {links}: {text!r}")
    return raw, names


def parse_raw_route(data: bytes, start: int, end: int, lengths: Container[int] | None = None) -> RawRoute | None:
    """Route of the RTM_NEWROUTE body between two offsets; None as in wire.parse_route, and for a cached route."""
    route = wire.parse_route(data, start, end, lengths)
    if route is None or RTMSG.unpack_from(data, start)[8] & _RTM_F_CLONED:
        return None
    return RawRoute(route, data[start:end])


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    for kind, at, stop in places(body, RTMSG.size, len(body)):
        yield kind, body[at + ATTRIBUTE.size : stop]


def _hops(payload: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(flags, weight - 1, index, attributes) of each next hop of an RTA_MULTIPATH."""
    at = 0
    while at + RTNEXTHOP.size <= len(payload):
        length, flags, weight, index = RTNEXTHOP.unpack_from(payload, at)
        if length < RTNEXTHOP.size or at + length > len(payload):
            raise Malformed(f"a next hop of {length} bytes")
        yield flags, weight, index, payload[at + RTNEXTHOP.size : at + length]
        at += (length + 3) & ~3


def _packed(flags: int, weight: int, index: int, attributes: bytes) -> bytes:
    packed = RTNEXTHOP.pack(RTNEXTHOP.size + len(attributes), flags, weight, index) + attributes
    return packed + bytes(-len(packed) % 4)


def _hops_over(payload: bytes, indexes: Mapping[int, int]) -> bytes:
    return b"".join(_packed(flags, weight, indexes[index], rest) for flags, weight, index, rest in _hops(payload))


def _asked_hops(payload: bytes) -> bytes:
    """Next hops without the state of their links, which the kernel refuses in a request."""
    return b"".join(_packed(flags & _ASKED_FLAGS, weight, index, rest) for flags, weight, index, rest in _hops(payload))


def _exact_hops(payload: bytes) -> bytes:
    """Next hops, with an empty gateway for each that has none."""
    exact = []
    for flags, weight, index, rest in _hops(payload):
        has_gateway = any(number in (_GATEWAY, _VIA) for number, _, _ in places(rest, 0, len(rest)))
        exact.append(
            _packed(flags, weight, index, rest if has_gateway else rest + wire.attribute(_GATEWAY, _NO_GATEWAY))
        )
    return b"".join(exact)


def _seconds_left(attributes: Iterable[tuple[int, bytes]]) -> Iterator[int]:
    for number, payload in attributes:
        if number == _CACHEINFO and len(payload) >= _CACHED.size:
            left = _CACHED.unpack_from(payload)[2]
            if left:
                yield max(1, -(-left // _USER_HZ))
