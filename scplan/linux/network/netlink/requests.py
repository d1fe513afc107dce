"""Changes that scplan requests from the kernel, one message each, with texts for errors. rtnetlink(7)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Literal

from scplan.linux.network.netlink import wire
from scplan.linux.network.netlink.raw import RawRoute, route_body
from scplan.linux.network.netlink.records import IFA_F_NODAD, IFF_UP, RT_SCOPE_LINK, Addr, Route
from scplan.linux.network.netlink.wire import IFADDR, IFINFO, address_bytes, attribute, text, u32
from scplan.startup.named_tuple import NamedTuple

_ADD = wire.NLM_F_CREATE | wire.NLM_F_EXCL
_NOTHING: frozenset[int] = frozenset()
_IFA_CACHEINFO = 6
_FOREVER = b"\xff" * 8 + bytes(8)  # ifa_cacheinfo: preferred and valid in seconds
# NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN
_KEPT_ADDRESS_FLAGS = 0x02 | 0x10 | 0x100 | 0x200 | 0x400
# CREATE alone puts an IPv4 route before the others of its key, as ip-route(8) does for "prepend".
_PLACES = {
    "append": wire.NLM_F_CREATE | wire.NLM_F_APPEND,
    "prepend": wire.NLM_F_CREATE,
    "replace": wire.NLM_F_CREATE | wire.NLM_F_REPLACE,
}


class Request(NamedTuple):
    """One message: number, flags, body, the operation in words, and errors that mean that it is done already."""

    number: int
    flags: int
    body: bytes
    operation: str
    done_when: frozenset[int] = _NOTHING


class Requests:
    """The changes as methods; a subclass sends each at once, or collects them."""

    def _submit(self, request: Request) -> None:
        raise NotImplementedError

    def create_veth(
        self,
        name: str,
        *,
        mtu: int,
        txqueuelen: int,
        peer_name: str,
        peer_netns_fd: int,
        mac: str = "",
        peer_mac: str = "",
        peer_mtu: int | None = None,
        peer_txqueuelen: int | None = None,
        master: int = 0,
    ) -> None:
        """Create a veth pair: this end here and up, the other (`peer_name`) in another namespace and down.

        Without `peer_mtu` and `peer_txqueuelen`, the other end has the MTU and queue length of this end.

        One message makes both ends, so that half a pair never exists. IFF_UP and IFLA_MASTER of the peer don't work
        here. Fails with EEXIST if one of the names is taken.
        """
        peer = [
            IFINFO.pack(0, 0, 0, 0, 0),
            text(wire.IFLA_IFNAME, peer_name),
            attribute(wire.IFLA_ADDRESS, wire.mac_bytes(peer_mac)) if peer_mac else b"",
            u32(wire.IFLA_MTU, mtu if peer_mtu is None else peer_mtu),
            u32(wire.IFLA_TXQLEN, txqueuelen if peer_txqueuelen is None else peer_txqueuelen),
            u32(wire.IFLA_NET_NS_FD, peer_netns_fd),
        ]
        pair = attribute(wire.VETH_INFO_PEER, b"".join(peer))
        info = text(wire.IFLA_INFO_KIND, "veth") + attribute(wire.IFLA_INFO_DATA, pair)
        body = [
            IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP),
            text(wire.IFLA_IFNAME, name),
            attribute(wire.IFLA_ADDRESS, wire.mac_bytes(mac)) if mac else b"",
            u32(wire.IFLA_MTU, mtu),
            u32(wire.IFLA_TXQLEN, txqueuelen),
            u32(wire.IFLA_MASTER, master) if master else b"",
            attribute(wire.IFLA_LINKINFO, info),
        ]
        operation = f"RTM_NEWLINK({name}, veth with peer {peer_name}, mtu {mtu})"
        self._submit(Request(wire.RTM_NEWLINK, _ADD, b"".join(body), operation))

    def set_link(
        self,
        index: int,
        *,
        label: str = "",
        name: str | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        txqueuelen: int | None = None,
        up: bool | None = None,
        master: int | None = None,
        netns_fd: int | None = None,
        group: int | None = None,
    ) -> None:
        """Change attributes of a link in one message; `master` 0 removes it from its bridge, None changes nothing.

        The kernel carries them out in its own order and not atomically: the move to another namespace first (only if
        the old name, or else the new one, is free there), then MAC, MTU, name. `label` names the link in errors.
        """
        # ifinfomsg has a mask of the flags to change: all others stay as they are. rtnetlink(7)
        state = IFF_UP if up else 0
        change = 0 if up is None else IFF_UP
        body = [IFINFO.pack(0, 0, index, state, change)]
        if netns_fd is not None:
            body.append(u32(wire.IFLA_NET_NS_FD, netns_fd))
        if mac is not None:
            body.append(attribute(wire.IFLA_ADDRESS, wire.mac_bytes(mac)))
        if mtu is not None:
            body.append(u32(wire.IFLA_MTU, mtu))
        if name is not None:
            body.append(text(wire.IFLA_IFNAME, name))
        if txqueuelen is not None:
            body.append(u32(wire.IFLA_TXQLEN, txqueuelen))
        if master is not None:
            body.append(u32(wire.IFLA_MASTER, master))
        if group is not None:
            body.append(u32(wire.IFLA_GROUP, group))
        asked = {"name": name, "mac": mac, "mtu": mtu, "txqueuelen": txqueuelen, "master": master, "netns": netns_fd}
        operation = f"RTM_NEWLINK({', '.join([label or f'link {index}', *_words(asked, up)])})"
        self._submit(Request(wire.RTM_NEWLINK, 0, b"".join(body), operation))

    def send_raw(
        self, number: int, flags: int, body: bytes, operation: str, *, done_when: frozenset[int] = _NOTHING
    ) -> None:
        """Send a message built elsewhere; `done_when` are errors that mean that it is done already."""
        self._submit(Request(number, flags, body, operation, done_when))

    def delete_link(self, index: int, *, label: str = "") -> None:
        """Delete a link (and its peer). Succeeds if it is gone already."""
        operation = f"RTM_DELLINK({label or f'link {index}'})"
        body = IFINFO.pack(0, 0, index, 0, 0)
        self._submit(Request(wire.RTM_DELLINK, 0, body, operation, frozenset((errno.ENODEV,))))

    def add_address(self, index: int, address: str, *, peer: str = "", broadcast: str = "") -> None:
        """Add "10.0.0.5/24" to a link. Succeeds if it is there already.

        IPv6 addresses are usable at once: without IFA_F_NODAD, they can't be a route's source for a second or two.
        """
        family, body = _address(index, address, peer)
        if broadcast:
            body += attribute(wire.IFA_BROADCAST, address_bytes(broadcast)[1])
        if family == _AF_INET6:
            body += u32(wire.IFA_FLAGS, IFA_F_NODAD)
        operation = f"RTM_NEWADDR({address}, link {index})"
        self._submit(Request(wire.RTM_NEWADDR, _ADD, body, operation, frozenset((errno.EEXIST,))))

    def restore_address(self, addr: Addr, index: int) -> None:
        """Add an address as it was on another link, or on this link before."""
        self.add_address(index, addr.address, peer=addr.peer, broadcast=addr.broadcast)

    def make_address_last(self, addr: Addr) -> None:
        """Make an existing address permanent, and no longer deprecated."""
        _, body = _address(addr.index, addr.address, addr.peer)
        # A change clears those of the other flags that it does not name.
        body += u32(wire.IFA_FLAGS, addr.flags & _KEPT_ADDRESS_FLAGS)
        body += attribute(_IFA_CACHEINFO, _FOREVER)
        operation = f"RTM_NEWADDR({addr.address}, link {addr.index}, permanent)"
        self._submit(Request(wire.RTM_NEWADDR, wire.NLM_F_REPLACE, body, operation))

    def delete_address(self, index: int, address: str, *, peer: str = "") -> None:
        """Remove an address from a link. Succeeds if it is gone already."""
        body = _address(index, address, peer)[1]
        gone = frozenset((errno.EADDRNOTAVAIL,))
        self._submit(Request(wire.RTM_DELADDR, 0, body, f"RTM_DELADDR({address}, link {index})", gone))

    def add_route(self, route: Route, *, replace: bool = False) -> None:
        """Add a route; fails with EEXIST if a route of the same destination, metric and table exists.

        `replace` replaces that route in a single step, without a moment in between.
        """
        flags = wire.NLM_F_CREATE | wire.NLM_F_REPLACE if replace else _ADD
        self._submit(Request(wire.RTM_NEWROUTE, flags, route_body(route), f"RTM_NEWROUTE({route.text()})"))

    def append_route(self, route: Route) -> None:
        """Add a route behind a route of the same destination, metric and table."""
        flags = wire.NLM_F_CREATE | wire.NLM_F_APPEND
        done = frozenset((errno.EEXIST,))
        self._submit(
            Request(wire.RTM_NEWROUTE, flags, route_body(route), f"RTM_NEWROUTE({route.text()}, append)", done)
        )

    def delete_route(self, route: Route) -> None:
        """Remove the route that has all these attributes. Succeeds if it is gone already.

        The kernel takes a metric, gateway, link or source of 0 for any: pass a route as it was read, so that one fits
        exactly.
        """
        gone = frozenset((errno.ESRCH,))
        self._submit(Request(wire.RTM_DELROUTE, 0, route_body(route), f"RTM_DELROUTE({route.text()})", gone))

    def put_route(self, raw: RawRoute, *, place: Literal["append", "prepend", "replace"] = "append") -> None:
        """Add a route as the kernel listed it: behind or before the routes of its key, or in place of the first.

        The key is destination, table, metric and type of service. IPv6 routes of a key are ordered by age alone: the
        kernel does not know "prepend" for them, and joins a route over a gateway to others of its key, as one of
        several next hops.
        """
        operation = f"RTM_NEWROUTE({raw.route.text()}, {place})"
        done = frozenset((errno.EEXIST,))
        self._submit(Request(wire.RTM_NEWROUTE, _PLACES[place], raw.request(), operation, done))

    def take_route(self, raw: RawRoute) -> None:
        """Remove exactly this route. Succeeds if it is gone already."""
        gone = frozenset((errno.ESRCH,))
        self._submit(Request(wire.RTM_DELROUTE, 0, raw.removal(), f"RTM_DELROUTE({raw.route.text()})", gone))


_AF_INET6 = 10


def _words(asked: Mapping[str, object], up: bool | None) -> list[str]:
    words = [f"{key} {value}" for key, value in asked.items() if value is not None]
    return words if up is None else [*words, "up" if up else "down"]


def _address(index: int, address: str, peer: str) -> tuple[int, bytes]:
    own, _, length = address.partition("/")
    family, packed = address_bytes(own)
    scope = RT_SCOPE_LINK if family == _AF_INET6 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 else 0
    far = address_bytes(peer)[1] if peer else packed
    body = IFADDR.pack(family, int(length), 0, scope, index)
    return family, body + attribute(wire.IFA_LOCAL, packed) + attribute(wire.IFA_ADDRESS, far)
