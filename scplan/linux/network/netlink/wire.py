"""rtnetlink messages as bytes: attributes packed, replies parsed. linux/{netlink,rtnetlink,if_link,if_addr}.h."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton

from scplan.linux.network.netlink.layouts import ATTRIBUTE, Layouts, Malformed, places
from scplan.linux.network.netlink.records import IFF_UP, RTNH_F_ONLINK, Addr, Link, NextHop, Route
from scplan.startup.ip_text import ip_text

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, device type, index, flags, change mask
IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
RTMSG = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst and src length, tos, table, protocol, scope, type, flags
RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, index
U32 = struct.Struct("=I")
I32 = struct.Struct("=i")
_U16 = struct.Struct("=H")

NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x2, 0x4, 0x8, 0x10, 0x300
# In requests that make objects, and in acknowledgements, the bits of dump flags have other meanings. linux/netlink.h
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSGERR_ATTR_MSG = 1
_MAX_ERRNO = 4095  # include/linux/err.h

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTCLASS, RTM_GETTCLASS, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 38, 40, 42, 44, 46
RTM_NEWRULE, RTM_GETRULE = 32, 34
RTM_NEWNSID, RTM_GETNSID = 88, 90
RTM_NEWNEXTHOP, RTM_GETNEXTHOP = 104, 106
RTM_NEWLINKPROP = 108
RTM_NEWVLAN, RTM_DELVLAN, RTM_GETVLAN = 112, 113, 114

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_TXQLEN = 1, 3, 4, 5, 10, 13
IFLA_LINKINFO, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_LINK_NETNSID, IFLA_PERM_ADDRESS = 18, 27, 28, 29, 37, 54
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
RTEXT_FILTER_SKIP_STATS = 8
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 7, 9, 15, 18
NETNSA_NSID, NETNSA_FD = 1, 3
_RULE_BYTES = 12  # fib_rule_hdr

_IFF_LOOPBACK = 0x8
_LENGTHS: dict[int, int] = {AF_INET: 4, AF_INET6: 16}

_LINK = Layouts(
    {
        IFLA_IFNAME: "s",
        IFLA_LINKINFO: "s",
        IFLA_ADDRESS: "s",
        IFLA_MTU: "I",
        IFLA_TXQLEN: "I",
        IFLA_MASTER: "I",
        IFLA_LINK: "I",
        IFLA_LINK_NETNSID: "i",
        IFLA_GROUP: "I",
        IFLA_PERM_ADDRESS: "s",
    }
)
_ADDRESS = Layouts({IFA_ADDRESS: "s", IFA_LOCAL: "s", IFA_BROADCAST: "s", IFA_FLAGS: "I"})
_ROUTE = Layouts(
    {
        RTA_DST: "s",
        RTA_GATEWAY: "s",
        RTA_VIA: "s",
        RTA_OIF: "I",
        RTA_PREFSRC: "s",
        RTA_PRIORITY: "I",
        RTA_TABLE: "I",
        RTA_MULTIPATH: "s",
    }
)
Attributes = dict[int, bytes]


# packing


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes (NLA_ALIGNTO)."""
    length = len(payload) + 4
    return ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, U32.pack(value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def address_bytes(address: str) -> tuple[int, bytes]:
    """(family, packed address) of an address without prefix length."""
    family = AF_INET6 if ":" in address else AF_INET
    return family, inet_pton(family, address)


def gateway(route_family: int, address: str) -> bytes:
    """RTA_GATEWAY, or RTA_VIA if the gateway is of another family than its route."""
    family, packed = address_bytes(address)
    if family == route_family:
        return attribute(RTA_GATEWAY, packed)
    return attribute(RTA_VIA, _U16.pack(family) + packed)


# parsing


def read_header(data: bytes, start: int, size: int) -> tuple[int, int, int, int]:
    """(length, type, flags, sequence) of the message at an offset. Raises Malformed if it reaches beyond `size`."""
    if size - start < 16:
        raise Malformed(f"{size - start} bytes where a message should begin")
    length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
    if not 16 <= length <= size - start:
        raise Malformed(f"a message of {length} bytes, {size - start} received")
    return length, kind, flags, sequence


def split(data: bytes, start: int, end: int) -> Attributes:
    """Attributes between two offsets, by number; the last of a number wins. Raises Malformed as `places` does."""
    return {kind: data[at + 4 : stop] for kind, at, stop in places(data, start, end)}


def _string(payload: bytes | None) -> str:
    """Text of the kernel, up to its NUL byte. Bytes that are not UTF-8 (a container names its links) are escaped."""
    return payload.split(b"\0", 1)[0].decode("utf-8", "backslashreplace") if payload else ""


def _ip(family: int, payload: bytes) -> str:
    if len(payload) != _LENGTHS[family]:
        raise Malformed(f"an address of {len(payload)} bytes")
    return ip_text(payload)


def _mac(payload: bytes | None) -> str:
    return payload.hex(":") if payload else ""


def parse_link(data: bytes, start: int, end: int) -> Link:
    """Link of the RTM_NEWLINK body between two offsets."""
    if end - start < IFINFO.size:
        raise Malformed("a short link message")
    _, _, index, flags, _ = IFINFO.unpack_from(data, start)
    name, nested, mac, mtu, txqueuelen, master, peer, nsid, group, permanent = _LINK.read(
        data, start + IFINFO.size, end
    )
    return Link(
        index,
        _string(name),
        _kind(nested) if nested else "",
        _mac(mac),
        mtu or 0,
        txqueuelen or 0,
        bool(flags & IFF_UP),
        master or 0,
        peer or 0,
        -1 if nsid is None else nsid,
        group or 0,
        _mac(permanent),
    )


@lru_cache(maxsize=64)
def _kind(nested: bytes) -> str:
    """IFLA_INFO_KIND of an IFLA_LINKINFO. Cached, because most links of a host are of one kind."""
    return _string(split(nested, 0, len(nested)).get(IFLA_INFO_KIND))


def link_message(data: bytes, start: int, end: int) -> tuple[int, bytes]:
    """(index, body) of the RTM_NEWLINK body between two offsets, for parse_link."""
    if end - start < IFINFO.size:
        raise Malformed("a short link message")
    index: int = IFINFO.unpack_from(data, start)[2]
    return index, data[start:end]


def parse_nic(data: bytes, start: int, end: int) -> Link | None:
    """Link as of parse_link; None for the loopback interface, which every namespace has."""
    if end - start >= IFINFO.size and IFINFO.unpack_from(data, start)[3] & _IFF_LOOPBACK:
        return None
    return parse_link(data, start, end)


def parse_address(data: bytes, start: int, end: int, links: Container[int] | None = None) -> Addr | None:
    """Address of the RTM_NEWADDR body between two offsets; None if neither IPv4 nor IPv6, or not of `links`."""
    if end - start < IFADDR.size:
        raise Malformed("a short address message")
    family, prefix_length, flags, scope, index = IFADDR.unpack_from(data, start)
    if family not in _LENGTHS or (links is not None and index not in links):
        return None
    # On a point-to-point link, IFA_ADDRESS is the peer, and IFA_LOCAL the link's own address. linux/if_addr.h
    far, own, broadcast, all_flags = _ADDRESS.read(data, start + IFADDR.size, end)
    if own is None:
        own = far
    if own is None:
        raise Malformed("an address message without an address")
    return Addr(
        index,
        family,
        f"{_ip(family, own)}/{prefix_length}",
        flags if all_flags is None else all_flags,
        scope,
        _ip(family, far) if far is not None and far != own else "",
        _ip(family, broadcast) if broadcast else "",
    )


def parse_route(data: bytes, start: int, end: int, lengths: Container[int] | None = None) -> Route | None:
    """Route of the RTM_NEWROUTE body between two offsets; None if neither IPv4 nor IPv6, or not of `lengths`."""
    if end - start < RTMSG.size:
        raise Malformed("a short route message")
    family, dst_length, source_length, tos, table, protocol, scope, kind, flags = RTMSG.unpack_from(data, start)
    if family not in _LENGTHS or (lengths is not None and dst_length not in lengths):
        return None
    dst, near, via, oif, source, metric, full_table, multipath = _ROUTE.read(data, start + RTMSG.size, end)
    return Route(
        family,
        _destination(family, dst, dst_length),
        _gateway(family, near, via),
        oif or 0,
        _ip(family, source) if source else "",
        metric or 0,
        table if full_table is None else full_table,
        protocol,
        scope,
        kind,
        bool(flags & RTNH_F_ONLINK),
        tuple(_next_hops(family, multipath)) if multipath else (),
        tos,
        source_length,
    )


def _destination(family: int, dst: bytes | None, length: int) -> str:
    if dst is None:
        return "default" if length == 0 else f"{_ip(family, bytes(_LENGTHS[family]))}/{length}"
    return f"{_ip(family, dst)}/{length}"


def _gateway(family: int, near: bytes | None, via: bytes | None) -> str:
    """Address in RTA_GATEWAY, or in RTA_VIA: an IPv6 gateway of an IPv4 route; "" without either."""
    if near is not None:
        return _ip(family, near)
    if via is None:
        return ""
    if len(via) < 2 or (via_family := _U16.unpack_from(via)[0]) not in _LENGTHS:
        raise Malformed("a gateway of an unknown family")
    return _ip(via_family, via[2:])


def _next_hops(family: int, data: bytes) -> list[NextHop]:
    hops = []
    at = 0
    while at + RTNEXTHOP.size <= len(data):
        length, flags, weight, index = RTNEXTHOP.unpack_from(data, at)
        if length < RTNEXTHOP.size or at + length > len(data):
            raise Malformed(f"a next hop of {length} bytes")
        found = split(data, at + RTNEXTHOP.size, at + length)
        gateway = _gateway(family, found.get(RTA_GATEWAY), found.get(RTA_VIA))
        hops.append(NextHop(gateway, index, bool(flags & RTNH_F_ONLINK), weight + 1))
        at += (length + 3) & ~3
    return hops


def next_hops(route_family: int, hops: Iterable[NextHop]) -> bytes:
    """RTA_MULTIPATH of next hops."""
    packed = []
    for hop in hops:
        way = gateway(route_family, hop.gateway) if hop.gateway else b""
        flags = RTNH_F_ONLINK if hop.onlink else 0
        # rtnh_hops is the weight minus one.
        packed.append(RTNEXTHOP.pack(RTNEXTHOP.size + len(way), flags, hop.weight - 1, hop.oif) + way)
    return attribute(RTA_MULTIPATH, b"".join(packed))


def parse_error(data: bytes, start: int, end: int, flags: int, *, done: bool) -> tuple[int, str]:
    """(errno, the kernel's text) of an NLMSG_ERROR or NLMSG_DONE body; errno 0 acknowledges."""
    if end - start < 4:
        raise Malformed("a short error message")
    code: int = -I32.unpack_from(data, start)[0]
    if not 0 <= code <= _MAX_ERRNO:
        raise Malformed(f"an error message of error {code}")
    if not flags & NLM_F_ACK_TLVS:
        return code, ""
    start += 4
    if not done:
        if end - start < HEADER.size:
            raise Malformed("an error message without its request")
        request_length: int = HEADER.unpack_from(data, start)[0]
        # The request follows, or with NLM_F_CAPPED only its header, then attributes. netlink(7)
        start += HEADER.size if flags & NLM_F_CAPPED else (request_length + 3) & ~3
    return code, _string(split(data, start, end).get(NLMSGERR_ATTR_MSG))


def table_of_rule(body: bytes) -> int:
    """Table in an RTM_NEWRULE, 0 if none. The header has 8 bits for it, FRA_TABLE 32."""
    if len(body) < _RULE_BYTES:
        raise Malformed(f"a rule of {len(body)} bytes")
    found = split(body, _RULE_BYTES, len(body)).get(RTA_TABLE)
    return U32.unpack(found)[0] if found is not None and len(found) == 4 else body[4]


def parse_nsid(data: bytes, start: int, end: int) -> int:
    """ID in an RTM_NEWNSID; -1 if the namespace has none here. The header rtgenmsg takes four bytes."""
    found = split(data, start + 4, end).get(NETNSA_NSID)
    if found is None:
        return -1
    if len(found) < 4:
        raise Malformed(f"a namespace id of {len(found)} bytes")
    nsid: int = I32.unpack_from(found)[0]
    return nsid
