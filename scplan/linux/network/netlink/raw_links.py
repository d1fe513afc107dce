"""Links, their addresses and nexthop objects in the kernel's form: its own messages, sent back. rtnetlink(7).

As in raw.py, attributes unknown to scplan are restored, too. Numbers are those of linux/if_link.h, linux/if_addr.h,
linux/if_bridge.h and linux/nexthop.h.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from struct import Struct

from scplan.errors import KernelError
from scplan.linux.network.netlink import wire
from scplan.linux.network.netlink.layouts import ATTRIBUTE, Malformed, places
from scplan.linux.network.netlink.records import IFA_F_NODAD, RT_SCOPE_LINK, Addr, Link
from scplan.linux.network.netlink.rtnl import Rtnl
from scplan.linux.network.netlink.wire import IFADDR, IFINFO, U32
from scplan.startup.named_tuple import NamedTuple

_AF_INET6 = 10
_NLA_F_NESTED = 0x8000

_IFA_CACHEINFO, _IFA_FLAGS, _IFA_TARGET_NETNSID, _IFA_PROTO = 6, 8, 10, 11
_IFA_F_TEMPORARY = 0x01
# NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN: the other flags are state.
_ASKED_ADDRESS_FLAGS = 0x02 | 0x10 | 0x100 | 0x200 | 0x400
_IFA_F_DEPRECATED = 0x20
_KERNEL_PROTOCOLS = (1, 2, 3)  # IFAPROT_KERNEL_LO, _RA, _LL
_LIFETIMES = Struct("=IIII")  # ifa_cacheinfo: preferred and valid in seconds, when made, when changed
FOREVER = 0xFFFFFFFF

# A link's own attributes: broadcast address, queue, mode, alias, group, proto_down, sizes of GSO and GRO packets.
_OF_A_LINK = frozenset((2, 13, 17, 20, 27, 39, 40, 41, 58, 63, 64))
_IFLA_ADDRESS, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 1, 4, 18, 52, 53
_IFLA_XDP, _IFLA_XDP_ATTACHED = 43, 2
_IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 4, 5
# IFLA_STATS, OPERSTATE, STATS64, AF_SPEC (counters of IPv6), CARRIER and its changes: nothing to restore.
_COUNTERS = frozenset((7, 16, 23, 26, 33, 35, 47, 48))
# IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI, IFF_MULTICAST: set by users; the other flags follow the link's state.
_KEPT_FLAGS = 0x80 | 0x100 | 0x200 | 0x1000
# Attributes of a bridge's port that the kernel lists, but does not accept: spanning tree, timers, counters.
_PORT_STATE = frozenset((0, 1, *range(13, 25), 26, 35, 36, 38, 41))

_NEXTHOP = Struct("=BBBBI")  # nhmsg: family, scope, protocol, reserved, flags
_NHA_ID, _NHA_GROUP, _NHA_OIF = 1, 2, 5
_NHA_MEMBER_BYTES = 8
_RTNH_F_ONLINK = 4
_NHA_ASKED = frozenset(range(1, 10)) | {11}


def attributes_of(body: bytes, start: int) -> Iterator[tuple[int, int, bytes]]:
    """(number, number with flags, payload) of each attribute in a message's body, behind a header of `start` bytes.

    Raises Malformed.
    """
    for number, at, stop in places(body, start, len(body)):
        yield number, ATTRIBUTE.unpack_from(body, at)[1], body[at + ATTRIBUTE.size : stop]


def read_link(rtnl: Rtnl, index: int) -> RawLink | None:
    """Link with this index; None if there is none."""
    body = IFINFO.pack(0, 0, index, 0, 0) + wire.u32(wire.IFLA_EXT_MASK, wire.RTEXT_FILTER_SKIP_STATS)
    try:
        answer = rtnl.body(wire.RTM_GETLINK, wire.RTM_NEWLINK, body, f"RTM_GETLINK({index})")
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return raw_link(_without_counters(answer))


def _without_counters(body: bytes) -> bytes:
    """Message without attributes that change by themselves: they would only make journals and records long."""
    kept = (body[at:stop] for number, at, stop in places(body, IFINFO.size, len(body)) if number not in _COUNTERS)
    return body[: IFINFO.size] + b"".join(one + bytes(-len(one) % ATTRIBUTE.size) for one in kept)


def read_addresses(rtnl: Rtnl, index: int) -> list[RawAddr]:
    """Addresses of a link, in the kernel's order."""
    body = IFADDR.pack(0, 0, 0, 0, index)
    bodies = rtnl.bodies(wire.RTM_GETADDR, wire.RTM_NEWADDR, body, "RTM_GETADDR(dump)")
    found = (parse_raw_address(body, 0, len(body)) for body in bodies)
    return [raw for raw in found if raw is not None and raw.addr.index == index]


def read_nexthops(rtnl: Rtnl) -> list[RawNexthop]:
    """All nexthop objects; empty before Linux 5.3, which brought them."""
    try:
        bodies = rtnl.bodies(wire.RTM_GETNEXTHOP, wire.RTM_NEWNEXTHOP, bytes(8), "RTM_GETNEXTHOP(dump)")
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise
    return [parse_raw_nexthop(body, 0, len(body)) for body in bodies]


class RawAddr(NamedTuple):
    """An address of a link, and the body of the kernel's message that listed it."""

    addr: Addr
    body: bytes

    @property
    def key(self) -> tuple[str, str]:
        """Identity among the addresses of one link: address with prefix length, and peer."""
        return self.addr.address, self.addr.peer

    @property
    def lifetimes_s(self) -> tuple[int, int]:
        """(preferred, valid) in seconds, FOREVER for a permanent address."""
        for number, _, payload in attributes_of(self.body, IFADDR.size):
            if number == _IFA_CACHEINFO and len(payload) >= _LIFETIMES.size:
                preferred, valid, _, _ = _LIFETIMES.unpack_from(payload)
                return preferred, valid
        return FOREVER, FOREVER

    def is_kernel_made(self, link: Link) -> bool:
        """True if the kernel made the address by itself: link-local, from a router's prefix, or temporary."""
        if self.addr.family != _AF_INET6:
            return False
        found = {number: payload for number, _, payload in attributes_of(self.body, IFADDR.size)}
        protocol = found.get(_IFA_PROTO)
        if protocol:
            return protocol[0] in _KERNEL_PROTOCOLS
        if self.addr.flags & _IFA_F_TEMPORARY:
            return True
        # Before Linux 5.18 the kernel does not report the maker of an address (IFA_PROTO).
        is_local = self.addr.scope == RT_SCOPE_LINK
        return is_local and self.addr.address == f"{_link_local_of(link.mac)}/64"

    def is_kernel_made_local(self, link: Link) -> bool:
        """True for the link-local address that the kernel makes from the link's MAC address."""
        return self.addr.is_link_local and self.addr.address == f"{_link_local_of(link.mac)}/64"

    def shape(self) -> bytes:
        """Properties of the address that stay the same while its lifetimes run down."""
        preferred, valid = self.lifetimes_s
        return self._request(0, bytes((preferred == FOREVER, valid == FOREVER, preferred == 0)))

    def request(self, index: int, elapsed_s: int = 0, *, at_once: bool = False) -> bytes | None:
        """Body of an RTM_NEWADDR that makes the address on a link; None if its lifetime has ended.

        An IPv6 address can't be a route's source during duplicate address detection (RFC 4862); `at_once` sets
        IFA_F_NODAD, which skips it.
        """
        preferred, valid = self.lifetimes_s
        if valid == FOREVER:
            return self._request(index, b"", at_once=at_once)
        if valid <= elapsed_s:
            return None
        left = valid - elapsed_s
        until_deprecated = preferred if preferred == FOREVER else max(preferred - elapsed_s, 0)
        times = wire.attribute(_IFA_CACHEINFO, _LIFETIMES.pack(min(until_deprecated, left), left, 0, 0))
        return self._request(index, times, at_once=at_once)

    def _request(self, index: int, more: bytes, *, at_once: bool = False) -> bytes:
        family, length, _, scope, _ = IFADDR.unpack_from(self.body)
        flags = self.addr.flags & _ASKED_ADDRESS_FLAGS
        if at_once and family == _AF_INET6:
            flags |= IFA_F_NODAD
        left_out = (_IFA_CACHEINFO, _IFA_FLAGS, _IFA_TARGET_NETNSID)
        kept = [
            wire.attribute(full, payload)
            for number, full, payload in attributes_of(self.body, IFADDR.size)
            if number not in left_out
        ]
        header = IFADDR.pack(family, length, 0, scope, index)
        preferred, valid = self.lifetimes_s
        if not more and (valid == FOREVER and preferred != FOREVER):
            more = wire.attribute(_IFA_CACHEINFO, _LIFETIMES.pack(preferred, valid, 0, 0))
        return header + b"".join(kept) + wire.u32(_IFA_FLAGS, flags) + more

    @property
    def was_proved(self) -> bool:
        """True if the address was made without IFA_F_NODAD: the kernel has detected no duplicate."""
        return not self.addr.flags & IFA_F_NODAD


def raw_address(body: bytes) -> RawAddr:
    """Address of a whole RTM_NEWADDR body. Raises Malformed."""
    parsed = parse_raw_address(body, 0, len(body))
    if parsed is None:
        raise Malformed("an address of another family than IPv4 and IPv6")
    return parsed


def parse_raw_address(data: bytes, start: int, end: int) -> RawAddr | None:
    """Address of the RTM_NEWADDR body between two offsets; None for families other than IPv4 and IPv6."""
    addr = wire.parse_address(data, start, end)
    return None if addr is None else RawAddr(addr, data[start:end])


def _link_local_of(mac: str) -> str:
    """Link-local address of a MAC address: fe80:: with its EUI-64. RFC 4291, appendix A."""
    import ipaddress

    if len(mac) != 17:
        return ""
    raw = wire.mac_bytes(mac)
    interface = bytes((raw[0] ^ 2, raw[1], raw[2], 0xFF, 0xFE, raw[3], raw[4], raw[5]))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))


class RawLink(NamedTuple):
    """A link, and the body of the kernel's message that listed it."""

    link: Link
    body: bytes

    def own_changes(self, now: RawLink) -> Iterator[bytes]:
        """Bodies of RTM_NEWLINKs that give the link `now` the attributes of this one, except MAC address and MTU.

        One body per attribute: an attribute that a driver refuses does not keep the others from being set.
        """
        index = now.link.index
        there = {number: payload for number, _, payload in attributes_of(now.body, IFINFO.size)}
        for number, full, payload in attributes_of(self.body, IFINFO.size):
            if number in _OF_A_LINK and there.get(number) != payload:
                yield IFINFO.pack(0, 0, index, 0, 0) + wire.attribute(full, payload)
        flags, flags_now = IFINFO.unpack_from(self.body)[3], IFINFO.unpack_from(now.body)[3]
        changed = (flags ^ flags_now) & _KEPT_FLAGS
        if changed:
            yield IFINFO.pack(0, 0, index, flags & changed, changed)

    def port_changes(self, now: RawLink) -> Iterator[bytes]:
        """Bodies as in `own_changes`, for a port's attributes; none unless both are ports of Linux bridges."""
        kind, mine = self._port()
        kind_now, there = now._port()
        if kind != b"bridge" or kind_now != b"bridge":
            return
        for number, payload in mine.items():
            if number in _PORT_STATE or there.get(number) == payload:
                continue
            data = wire.attribute(_IFLA_INFO_SLAVE_DATA | _NLA_F_NESTED, wire.attribute(number, payload))
            info = wire.attribute(_IFLA_INFO_SLAVE_KIND, b"bridge\0") + data
            yield IFINFO.pack(0, 0, now.link.index, 0, 0) + wire.attribute(_IFLA_LINKINFO | _NLA_F_NESTED, info)

    def _port(self) -> tuple[bytes, dict[int, bytes]]:
        info = wire.split(self._attribute(_IFLA_LINKINFO), 0, len(self._attribute(_IFLA_LINKINFO)))
        data = info.get(_IFLA_INFO_SLAVE_DATA, b"")
        return info.get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0"), wire.split(data, 0, len(data))

    @property
    def other_names(self) -> tuple[bytes, ...]:
        """Alternative names of the link. ip-link(8), "property"."""
        listed = self._attribute(_IFLA_PROP_LIST)
        return tuple(payload for number, _, payload in attributes_of(listed, 0) if number == _IFLA_ALT_IFNAME)

    def name_request(self, index: int, name: bytes) -> bytes:
        """Body of an RTM_NEWLINKPROP that gives a link an alternative name."""
        names = wire.attribute(_IFLA_ALT_IFNAME, name)
        return IFINFO.pack(0, 0, index, 0, 0) + wire.attribute(_IFLA_PROP_LIST | _NLA_F_NESTED, names)

    @property
    def has_program(self) -> bool:
        """True if an XDP program is attached to the link: no other process can attach it again."""
        xdp = self._attribute(_IFLA_XDP)
        return bool(wire.split(xdp, 0, len(xdp)).get(_IFLA_XDP_ATTACHED, b"\0")[0])

    def _attribute(self, wanted: int) -> bytes:
        return next((payload for number, _, payload in attributes_of(self.body, IFINFO.size) if number == wanted), b"")


def raw_link(body: bytes) -> RawLink:
    """Link of a whole RTM_NEWLINK body. Raises Malformed."""
    return parse_raw_link(body, 0, len(body))


def parse_raw_link(data: bytes, start: int, end: int) -> RawLink:
    """Link of the RTM_NEWLINK body between two offsets."""
    return RawLink(wire.parse_link(data, start, end), data[start:end])


class RawNexthop(NamedTuple):
    """A nexthop object, or a group of them: its ID, link (0 if none), and IDs of its members. ip-nexthop(8)"""

    id: int
    oif: int
    members: tuple[int, ...]
    body: bytes

    def request(self, indexes: Mapping[int, int]) -> bytes:
        """Body of an RTM_NEWNEXTHOP that makes the object; `indexes` maps its link's index to the new one."""
        family, _, protocol, _, flags = _NEXTHOP.unpack_from(self.body)
        asked = []
        for number, full, payload in attributes_of(self.body, _NEXTHOP.size):
            if number == _NHA_OIF:
                payload = U32.pack(indexes[self.oif])
            if number in _NHA_ASKED:
                asked.append(wire.attribute(full, payload))
        return _NEXTHOP.pack(family, 0, protocol, 0, flags & _RTNH_F_ONLINK) + b"".join(asked)


def parse_raw_nexthop(data: bytes, start: int, end: int) -> RawNexthop:
    """Nexthop object of the RTM_NEWNEXTHOP body between two offsets."""
    if end - start < _NEXTHOP.size:
        raise Malformed("a short nexthop message")
    body = data[start:end]
    found = {number: payload for number, _, payload in attributes_of(body, _NEXTHOP.size)}
    if _NHA_ID not in found:
        raise Malformed("a nexthop without an id")
    group = found.get(_NHA_GROUP, b"")
    members = [U32.unpack_from(group, at)[0] for at in range(0, len(group) - 7, _NHA_MEMBER_BYTES)]
    oif = U32.unpack_from(found[_NHA_OIF])[0] if _NHA_OIF in found else 0
    return RawNexthop(U32.unpack_from(found[_NHA_ID])[0], oif, tuple(members), body)
