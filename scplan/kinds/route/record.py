"""Attributes of a route, its identity, and its comparison with a live route."""

from __future__ import annotations

from socket import AF_INET, AF_INET6

from scplan.linux.network.netlink import MAIN_TABLE
from scplan.model.next_hops import NEXT_HOP
from scplan.model.resource import Resource, Role, attr
from scplan.model.values import BOOL, DESTINATION, INTERFACE_NAME, IP, TEXT, UINT32_MAX, integer

DEFAULT_IPV6 = "::/0"
# The kernel takes an IPv6 metric of 0 for this one (IP6_RT_PRIO_USER).
IPV6_METRIC = 1024


class Route(Resource):
    """One route. `to` is "default" (IPv4), or a network; ::/0 is the IPv6 default."""

    to: str = attr(
        "network, address, or default; ::/0 is the default of IPv6", DESTINATION, role=Role.IDENTITY, default="default"
    )
    via: str = attr("next hop; not written, there is none: the destination is on the link", NEXT_HOP, default="")
    dev: str | None = attr(
        "NIC that it goes over; default: the one that reaches via, or has src",
        INTERFACE_NAME,
        follows=("via", "src", "over"),
    )
    src: str | None = attr("address that packets get as their source", IP)
    metric: int | None = attr("the lowest wins; default 0, 1024 for IPv6", integer(0, UINT32_MAX), role=Role.IDENTITY)
    table: int | None = attr("routing table; default 254, the main one", integer(1, UINT32_MAX), role=Role.IDENTITY)
    onlink: bool | None = attr("takes via for reachable over dev, whatever its addresses are", BOOL)
    required: bool = attr(
        "false: a problem with it is a warning and not an error", BOOL, role=Role.POLICY, default=True
    )
    over: str | None = attr(
        "NIC that it goes over where dev is not written: the one that reached via, or had src, when it was made",
        TEXT,
        role=Role.PROMISED,
        follows=("via", "src"),
        unless="dev",
    )
    options: str | None = attr(
        "its other attributes in the words of ip-route(8): none when it is made, those that it had when it was adopted",
        TEXT,
        role=Role.PROMISED,
    )
    protocol: int | None = attr(
        "who made it, as the kernel numbers them, kept for an undo", integer(0, 255), role=Role.CARRIED
    )
    carried: tuple[str, ...] | None = attr(
        "routes of its destination, metric and table in their order, as the kernel held them before an operation;"
        ' "-" marks scplan\'s own, "~" those that are made again behind it, "=" the rest',
        TEXT,
        role=Role.CARRIED,
        many=True,
    )
    displaced: tuple[str, ...] | None = attr(
        "routes that its creation took the place of, as the kernel held them", TEXT, role=Role.CARRIED, many=True
    )

    @property
    def family(self) -> int:
        return AF_INET6 if ":" in self.to else AF_INET

    @property
    def link(self) -> str | None:
        """NIC of the route, as far as the record has it."""
        return self.dev or self.over


def metric_of(route: Route) -> int:
    """Metric of the route in the kernel."""
    return route.metric or (IPV6_METRIC if route.family == AF_INET6 else 0)


def table_of(route: Route) -> int:
    return route.table or MAIN_TABLE


def kernel_destination(to: str) -> str:
    """Destination as read from the kernel: `default` for both families."""
    return "default" if to == DEFAULT_IPV6 else to


def fits(wanted: Route, live: Route) -> bool:
    """True if `live` has every attribute that `wanted` sets."""
    pairs = (
        (wanted.via, live.via),
        (wanted.dev, live.dev),
        # A route with several next hops, or none, has no `over`: its `via` holds them all.
        (wanted.over if live.over is not None else None, live.over),
        (wanted.src, live.src),
        (wanted.onlink, live.onlink),
    )
    return all(one is None or one == other for one, other in pairs)
