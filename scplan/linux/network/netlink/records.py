"""Links, addresses and routes of rtnetlink as light tuples; addresses and routes also as text, for records."""

from __future__ import annotations

from socket import AF_INET, AF_INET6

from scplan.startup.named_tuple import NamedTuple

# linux/if.h, linux/if_addr.h, linux/rtnetlink.h
IFF_UP = 0x1
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DEPRECATED, IFA_F_PERMANENT, IFA_F_NOPREFIXROUTE = 0x01, 0x02, 0x20, 0x80, 0x200
RTN_UNICAST = 1
RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC, RTPROT_RA = 1, 2, 3, 4, 9
MAIN_TABLE = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTNH_F_ONLINK = 4


class Link(NamedTuple):
    """A network interface.

    `kind` is IFLA_INFO_KIND ("veth", "bridge"; "" for hardware). `mac` and `permanent_mac` are "" if the link has none.
    `master` and `peer_index` (IFLA_LINK) are 0, and `peer_nsid` is -1, if there is none: a peer without a nsid is in
    the same namespace.
    """

    index: int  # type: ignore[assignment]  # the kernel's word, rather than tuple.index
    name: str
    kind: str
    mac: str
    mtu: int
    txqueuelen: int
    up: bool
    master: int
    peer_index: int
    peer_nsid: int
    group: int
    permanent_mac: str


class Addr(NamedTuple):
    """An address of a link: `address` as "10.0.0.5/24"; `peer` the other end of a point-to-point link, else ""."""

    index: int  # type: ignore[assignment]  # the kernel's word, rather than tuple.index
    family: int
    address: str
    flags: int
    scope: int
    peer: str
    broadcast: str

    @property
    def is_permanent(self) -> bool:
        return bool(self.flags & IFA_F_PERMANENT)

    @property
    def is_link_local(self) -> bool:
        """True if the address is in fe80::/10, where the kernel makes an address for each link."""
        return self.family == AF_INET6 and self.scope == RT_SCOPE_LINK

    @property
    def key(self) -> tuple[str, str]:
        """Identity among the addresses of one link: address with prefix length, and peer."""
        return self.address, self.peer

    @property
    def far_end(self) -> str:
        """Address to whose network a route exists: the peer's, or its own, with prefix length."""
        return f"{self.peer}/{self.address.partition('/')[2]}" if self.peer else self.address

    @property
    def is_lasting(self) -> bool:
        """True if the address neither expires nor is deprecated."""
        return self.is_permanent and not self.flags & IFA_F_DEPRECATED

    def written(self) -> str:
        """Text of address and peer: `10.0.0.5/24`, `10.0.0.5/32 peer 10.0.0.6`."""
        return f"{self.address} peer {self.peer}" if self.peer else self.address

    @classmethod
    def written_as(cls, text: str, index: int) -> Addr:
        """Address from a text of `written`, on link `index`."""
        address, _, peer = text.partition(" peer ")
        family = AF_INET6 if ":" in address else AF_INET
        return cls(index, family, address, IFA_F_PERMANENT, RT_SCOPE_UNIVERSE, peer, "")

    def text(self) -> str:
        """Text of the address without its link: `10.0.0.5/24 peer 10.0.0.6 brd 10.0.0.255`."""
        words = [self.address]
        words += ["peer", self.peer] if self.peer else []
        return " ".join(words + (["brd", self.broadcast] if self.broadcast else []))

    @classmethod
    def from_text(cls, text: str, index: int) -> Addr:
        """Address from a text of `text`, on link `index`. Raises ValueError for other texts."""
        address, *words = text.split()
        options = dict(zip(words[::2], words[1::2], strict=True))
        if options.keys() - {"peer", "brd"}:
            raise ValueError(f"not an address: {text!r}")
        family = AF_INET6 if ":" in address else AF_INET
        peer, broadcast = options.get("peer", ""), options.get("brd", "")
        return cls(index, family, address, IFA_F_PERMANENT, RT_SCOPE_UNIVERSE, peer, broadcast)


class NextHop(NamedTuple):
    """One next hop of a multipath route; `weight` counts from 1."""

    gateway: str
    oif: int
    onlink: bool
    weight: int


class Route(NamedTuple):
    """A route. `dst` is "default" or a CIDR; `gateway` and `prefsrc` are "", and `oif` is 0, if the route has none.

    `nexthops` is empty unless there is more than one; `gateway` and `oif` are then unset. A route with a `tos` applies
    only to packets of that type of service (IPv4), a route with a `source_length` only to packets from a network
    (IPv6); both exist beside the route for all packets.
    """

    family: int
    dst: str
    gateway: str = ""
    oif: int = 0
    prefsrc: str = ""
    metric: int = 0
    table: int = MAIN_TABLE
    protocol: int = RTPROT_STATIC
    scope: int = RT_SCOPE_UNIVERSE
    type: int = RTN_UNICAST
    onlink: bool = False
    nexthops: tuple[NextHop, ...] = ()
    tos: int = 0
    source_length: int = 0

    @property
    def oifs(self) -> tuple[int, ...]:
        """Indexes of all links that the route goes over."""
        return tuple(hop.oif for hop in self.nexthops) or ((self.oif,) if self.oif else ())

    def text(self) -> str:
        """`10.1.0.0/16 via 10.0.0.1 src 10.0.0.5 metric 100 table 200 proto 3 scope 0 onlink`, without its link."""
        dst = "::/0" if self.dst == "default" and self.family == AF_INET6 else self.dst
        words = [dst, "tos", str(self.tos)] if self.tos else [dst]
        words += ["via", self.gateway] if self.gateway else []
        words += [f"over {len(self.nexthops)} links"] if self.nexthops else []
        words += ["src", self.prefsrc] if self.prefsrc else []
        words += ["metric", str(self.metric), "table", str(self.table)]
        words += ["proto", str(self.protocol), "scope", str(self.scope)]
        return " ".join(words + (["onlink"] if self.onlink else []))

    @classmethod
    def from_text(cls, text: str, oif: int) -> Route:
        """Route from a text of `text`, over link `oif`. Raises ValueError for other texts."""
        dst, *words = text.split()
        onlink = bool(words) and words[-1] == "onlink"
        words = words[:-1] if onlink else words
        options = dict(zip(words[::2], words[1::2], strict=True))
        if options.keys() - {"tos", "via", "src", "metric", "table", "proto", "scope"}:
            raise ValueError(f"not a route: {text!r}")
        return cls(
            family=AF_INET6 if ":" in dst else AF_INET,
            dst="default" if dst == "::/0" else dst,
            gateway=options.get("via", ""),
            oif=oif,
            prefsrc=options.get("src", ""),
            metric=int(options.get("metric", 0)),
            table=int(options.get("table", MAIN_TABLE)),
            protocol=int(options.get("proto", RTPROT_STATIC)),
            scope=int(options.get("scope", RT_SCOPE_UNIVERSE)),
            onlink=onlink,
            tos=int(options.get("tos", 0)),
        )
