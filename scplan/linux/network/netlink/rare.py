"""Objects that few links have: permanent neighbours, static fdb entries, bridge VLANs, qdiscs, classes and filters.

pyroute2 decodes, describes and encodes them. Its import takes longer than an apply, so that only this module imports
it, and only if the headers of the kernel's messages show such an object (docs/decisions/001).
Sources: rtnetlink(7), bridge(8), tc(8), linux/{neighbour,pkt_sched,if_bridge}.h.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any

from scplan.errors import KernelError
from scplan.linux.network.netlink import wire
from scplan.linux.network.netlink.raw_links import attributes_of
from scplan.linux.network.netlink.records import Link
from scplan.linux.network.netlink.rtnl import Rtnl
from scplan.startup.named_tuple import NamedTuple

_AF_BRIDGE = 7
_NEIGHBOUR = Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF, _NTF_MASTER, _NTF_PROXY, _NTF_EXT_LEARNED = 0x02, 0x04, 0x08, 0x10
_NDA_LLADDR, _NDA_IFINDEX = 2, 8
# An entry's state, and its bridge, which follows from the link in the request.
_NEIGHBOUR_STATE = frozenset(("NDA_CACHEINFO", "NDA_PROBES", "NDA_MASTER", "NDA_FLAGS_EXT"))

_TRAFFIC = Struct("=BxxxiIIi")  # tcmsg: family, index, handle, parent, info
_TC_H_ROOT, _TC_H_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
# TC_H_INGRESS, then ingress and egress of clsact. linux/pkt_sched.h
_INGRESS_BLOCKS = (0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3)
_TCA_HTB_INIT, _HTB_GLOBAL = 2, Struct("=IIIII")
_TCA_KIND, _TCA_OPTIONS, _TCA_STATISTICS = 1, 2, frozenset((3, 4, 6, 7, 9, 12, 13))
_MESSAGES = {
    "qdisc": (wire.RTM_GETQDISC, wire.RTM_NEWQDISC),
    "class": (wire.RTM_GETTCLASS, wire.RTM_NEWTCLASS),
    "filter": (wire.RTM_GETTFILTER, wire.RTM_NEWTFILTER),
}

_VLAN = Struct("=BxxxI")  # br_vlan_msg: family, index
_VLANDB_ENTRY, _VLANDB_INFO, _VLANDB_RANGE = 1, 1, 2
_VLAN_INFO = Struct("=HH")  # bridge_vlan_info: flags, id
_PVID_UNTAGGED = 0x02 | 0x04
_NLA_F_NESTED = 0x8000

_CREATE = wire.NLM_F_CREATE | wire.NLM_F_EXCL
_REPLACE = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
_THERE_ALREADY = frozenset((errno.EEXIST,))
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


class RareObject(NamedTuple):
    """An object of a link: "neighbour", "fdb", "vlan", "qdisc", "class" or "filter", and the kernel's message body."""

    sort: str
    body: bytes

    @property
    def comes_back(self) -> bool:
        """False if only the program that made the object can make it again: a filter whose program is in the kernel."""
        return self.sort != "filter" or _kind_of(self.body) != "bpf"

    def words(self) -> str:
        """Description by pyroute2: `permanent neighbour 10.0.0.1`, `qdisc htb`."""
        if self.sort in ("neighbour", "fdb"):
            message = _decoded_neighbour(self.body)
            if self.sort == "fdb":
                return f"fdb entry {message.get_attr('NDA_LLADDR')}"
            proxy = "proxy" if message["flags"] & _NTF_PROXY else "permanent"
            return f"{proxy} neighbour {message.get_attr('NDA_DST')}"
        if self.sort == "vlan":
            return f"bridge VLAN {_vlan_of(self.body)[0][1]}"
        return f"{self.sort} {_decoded_traffic(self.sort, self.body).get_attr('TCA_KIND')}"


# reading


def neighbours(rtnl: Rtnl, link: Link) -> list[RareObject]:
    """Permanent neighbours and proxy entries of a link."""
    index = wire.u32(_NDA_IFINDEX, link.index)
    found = []
    for flags in (0, _NTF_PROXY):
        for body in _listed(rtnl, _NEIGHBOUR.pack(0, 0, 0, flags, 0) + index):
            _, at, state, entry_flags, _ = _NEIGHBOUR.unpack_from(body)
            if at == link.index and (flags or state & _NUD_PERMANENT or entry_flags & _NTF_EXT_LEARNED):
                found.append(RareObject("neighbour", body))
    return found


def of_port(rtnl: Rtnl, link: Link) -> list[RareObject]:
    """Static forwarding entries over a port of a Linux bridge, and its VLANs if they differ from a new port's."""
    if not link.master:
        return []
    found = []
    for body in _listed(rtnl, _NEIGHBOUR.pack(_AF_BRIDGE, 0, 0, 0, 0) + wire.u32(_NDA_IFINDEX, link.index)):
        _, at, state, flags, _ = _NEIGHBOUR.unpack_from(body)
        mac = next((payload for number, _, payload in attributes_of(body, _NEIGHBOUR.size) if number == _NDA_LLADDR))
        is_static = state & (_NUD_NOARP | _NUD_PERMANENT) or flags & _NTF_EXT_LEARNED
        # The bridge itself makes the entry for the port's own address; entries for multicast groups come from the link.
        is_own = mac == wire.mac_bytes(link.mac) or mac[0] & 1
        if at == link.index and is_static and not is_own:
            found.append(RareObject("fdb", body))
    vlans = _vlans(rtnl, link.index)
    return found if _are_usual(vlans) else found + [RareObject("vlan", body) for body in vlans]


def traffic_control(rtnl: Rtnl, link: Link) -> list[RareObject]:
    """Qdiscs, classes and filters of a link that the kernel has not made itself."""
    if not any(_has_qdisc(rtnl, link.index, parent) for parent in (_TC_H_ROOT, _TC_H_INGRESS)):
        return []
    qdiscs = [body for body in _traffic(rtnl, "qdisc", link.index) if _TRAFFIC.unpack_from(body)[2]]
    classes = list(_traffic(rtnl, "class", link.index))
    places = {_TRAFFIC.unpack_from(body)[2] for body in (*qdiscs, *classes)} | set(_INGRESS_BLOCKS)
    filters = [body for place in sorted(places) for body in _traffic(rtnl, "filter", link.index, place)]
    return [
        RareObject(sort, body)
        for sort, bodies in (("qdisc", qdiscs), ("class", classes), ("filter", filters))
        for body in dict.fromkeys(bodies)
        # The kernel also lists the tables of a classifier, which are made with its first filter.
        if sort != "filter" or any(number == _TCA_OPTIONS for number, _, _ in attributes_of(body, _TRAFFIC.size))
    ]


def _listed(rtnl: Rtnl, body: bytes) -> list[bytes]:
    try:
        return rtnl.bodies(wire.RTM_GETNEIGH, wire.RTM_NEWNEIGH, body, "RTM_GETNEIGH(dump)")
    except KernelError as error:
        if error.errno in _NOT_SUPPORTED:
            return []
        raise


def _vlans(rtnl: Rtnl, index: int) -> list[bytes]:
    """VLANs of a port, one message per range; empty if the kernel has no VLAN filter, or is older than 5.7."""
    try:
        body = _VLAN.pack(_AF_BRIDGE, index)
        listed = rtnl.bodies(wire.RTM_GETVLAN, wire.RTM_NEWVLAN, body, "RTM_GETVLAN(dump)")
    except KernelError as error:
        if error.errno in _NOT_SUPPORTED:
            return []
        raise
    return [
        _VLAN.pack(_AF_BRIDGE, index) + wire.attribute(full, payload)
        for body in listed
        if _VLAN.unpack_from(body)[1] == index
        for number, full, payload in attributes_of(body, _VLAN.size)
        if number == _VLANDB_ENTRY
    ]


def _vlan_of(body: bytes) -> tuple[tuple[int, int], bytes]:
    """((flags, ID), payload with the end of the range) of a VLAN message."""
    entry = next(payload for number, _, payload in attributes_of(body, _VLAN.size) if number == _VLANDB_ENTRY)
    found = wire.split(entry, 0, len(entry))
    flags, vid = _VLAN_INFO.unpack_from(found[_VLANDB_INFO])
    return (flags, vid), found.get(_VLANDB_RANGE, b"")


def _are_usual(vlans: Iterable[bytes]) -> bool:
    return all(_vlan_of(body) == ((_PVID_UNTAGGED, 1), b"") for body in vlans)


def _has_qdisc(rtnl: Rtnl, index: int, parent: int) -> bool:
    """True if the link has a qdisc at `parent`, except the kernel's own: these have no handle, or are not shown."""
    try:
        body = rtnl.body(
            wire.RTM_GETQDISC, wire.RTM_NEWQDISC, _TRAFFIC.pack(0, index, 0, parent, 0), f"RTM_GETQDISC({index})"
        )
    except KernelError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    return bool(_TRAFFIC.unpack_from(body)[2])


def _traffic(rtnl: Rtnl, sort: str, index: int, parent: int = 0) -> Iterator[bytes]:
    number, answer = _MESSAGES[sort]
    try:
        bodies = rtnl.bodies(number, answer, _TRAFFIC.pack(0, index, 0, parent, 0), f"RTM_GET{sort.upper()}(dump)")
    except KernelError as error:
        if error.errno in _NOT_SUPPORTED:
            return
        raise
    yield from (body for body in bodies if _TRAFFIC.unpack_from(body)[1] == index)


def _kind_of(body: bytes) -> str:
    kinds = (payload for number, _, payload in attributes_of(body, _TRAFFIC.size) if number == _TCA_KIND)
    return next(kinds, b"").rstrip(b"\0").decode("ascii", "replace")


# restoring


def put_back(rtnl: Rtnl, link: Link, wanted: Iterable[RareObject]) -> None:
    """Add the objects that the link does not have. Raises KernelError with everything that the kernel refuses."""
    objects = [one for one in wanted if one.comes_back]
    _put_vlans(rtnl, link, [one.body for one in objects if one.sort == "vlan"])
    has_traffic = any(one.sort in _MESSAGES for one in objects)
    there = {_place_of(one) for one in traffic_control(rtnl, link)} if has_traffic else set()
    waiting = [one for one in objects if one.sort != "vlan" and _place_of(one) not in there]
    # A class is made in its qdisc, and a qdisc in its class: refused objects are tried again.
    while waiting:
        errors = {}
        for one in waiting:
            try:
                _put(rtnl, link, one)
            except KernelError as error:
                errors[one] = error
        if len(errors) == len(waiting):
            first = next(iter(errors.values()))
            first.diagnostics = tuple(diagnostic for error in errors.values() for diagnostic in error.diagnostics)
            raise first
        waiting = list(errors)


def _place_of(one: RareObject) -> tuple[str, int, int, int, str] | None:
    """Key of a qdisc, class or filter on its link; None for other objects."""
    if one.sort not in _MESSAGES:
        return None
    _, _, handle, parent, info = _TRAFFIC.unpack_from(one.body)
    return one.sort, handle, parent, info if one.sort == "filter" else 0, _kind_of(one.body)


def _put(rtnl: Rtnl, link: Link, one: RareObject) -> None:
    operation = f"{one.words()}, link {link.name}"
    if one.sort in ("neighbour", "fdb"):
        message = _decoded_neighbour(one.body)
        message["ifindex"] = link.index
        if one.sort == "fdb" and not message["flags"] & _NTF_SELF:
            message["flags"] |= _NTF_MASTER
        message["attrs"] = [pair for pair in message["attrs"] if pair[0] not in _NEIGHBOUR_STATE]
        rtnl.send_raw(wire.RTM_NEWNEIGH, _REPLACE, _encoded(message), f"RTM_NEWNEIGH({operation})")
        return
    _, answer = _MESSAGES[one.sort]
    family, _, handle, parent, info = _TRAFFIC.unpack_from(one.body)
    is_root = one.sort == "qdisc" and parent == _TC_H_ROOT
    info = info if one.sort == "filter" else 0
    # Not encoded by pyroute2, which writes some options otherwise than it has read them.
    is_htb = one.sort == "qdisc" and _kind_of(one.body) == "htb"
    body = _TRAFFIC.pack(family, link.index, handle, parent, info) + b"".join(
        wire.attribute(full, _htb_options(payload) if is_htb and number == _TCA_OPTIONS else payload)
        for number, full, payload in attributes_of(one.body, _TRAFFIC.size)
        if number not in _TCA_STATISTICS
    )
    flags = _REPLACE if is_root else _CREATE
    rtnl.send_raw(answer, flags, body, f"RTM_NEW{one.sort.upper()}({operation})", done_when=_THERE_ALREADY)


def _htb_options(options: bytes) -> bytes:
    """Options of an htb qdisc: the kernel lists version 0x30011, but accepts only version 3. net/sched/sch_htb.c"""
    asked = []
    for number, full, payload in attributes_of(options, 0):
        if number == _TCA_HTB_INIT:
            version, *others = _HTB_GLOBAL.unpack_from(payload)
            payload = _HTB_GLOBAL.pack(version >> 16, *others)
        asked.append(wire.attribute(full, payload))
    return b"".join(asked)


def _put_vlans(rtnl: Rtnl, link: Link, wanted: list[bytes]) -> None:
    if not wanted or not link.master:
        return
    there = [_on(body, link.index) for body in _vlans(rtnl, link.index)]
    asked = [_on(body, link.index) for body in wanted]
    for body in there:
        if body not in asked:
            rtnl.send_raw(wire.RTM_DELVLAN, 0, body, f"RTM_DELVLAN({link.name})")
    for body in asked:
        if body not in there:
            rtnl.send_raw(wire.RTM_NEWVLAN, 0, body, f"RTM_NEWVLAN({link.name})")


def _on(body: bytes, index: int) -> bytes:
    """Request for a VLAN of a port, without the counters that the kernel lists with the VLAN."""
    (flags, vid), until = _vlan_of(body)
    entry = wire.attribute(_VLANDB_INFO, _VLAN_INFO.pack(flags, vid))
    entry += wire.attribute(_VLANDB_RANGE, until) if until else b""
    return _VLAN.pack(_AF_BRIDGE, index) + wire.attribute(_VLANDB_ENTRY | _NLA_F_NESTED, entry)


# pyroute2


def _decoded_neighbour(body: bytes) -> Any:
    from pyroute2.netlink.rtnl.ndmsg import ndmsg

    return _decoded(ndmsg, wire.RTM_NEWNEIGH, body)


def _decoded_traffic(sort: str, body: bytes) -> Any:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    return _decoded(tcmsg, _MESSAGES[sort][1], body)


def _decoded(message: Any, number: int, body: bytes) -> Any:
    made = message(wire.HEADER.pack(wire.HEADER.size + len(body), number, 0, 0, 0) + body)
    made.decode()
    return made


def _encoded(message: Any) -> bytes:
    """Body of a message, encoded by pyroute2."""
    message.reset()
    message.encode()
    return bytes(message.data)[wire.HEADER.size :]
