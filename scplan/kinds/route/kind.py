"""Routes of a container's network namespace, IPv4 and IPv6. rtnetlink(7), ip-route(8)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from socket import AF_INET6
from typing import TYPE_CHECKING

from scplan.kinds.kind import Described, Foreseen, Hears, Kind, Target
from scplan.kinds.route import live as live_routes
from scplan.kinds.route import reach
from scplan.kinds.route.live import LOCAL_TABLE
from scplan.kinds.route.record import DEFAULT_IPV6, IPV6_METRIC, Route, fits
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.network.netlink import MAIN_TABLE
from scplan.model.address import Address
from scplan.model.change import Change
from scplan.model.live import HostFacts
from scplan.model.networks import network_of
from scplan.model.next_hops import is_address
from scplan.model.resource import Resource

if TYPE_CHECKING:
    from scplan.model.provided import Provided

_LINK_LOCAL = network_of("fe80::/10")
_MULTICAST = (network_of("224.0.0.0/4"), network_of("ff00::/8"))
_UNSPECIFIED = (network_of("0.0.0.0"), network_of("::"))
_NO_SOURCES = (*_MULTICAST, *_UNSPECIFIED, network_of("255.255.255.255"))
_NO_GATEWAYS = (*_NO_SOURCES, network_of("127.0.0.0/8"), network_of("::1"))


class RouteKind(Kind[Route]):
    name = "route"
    section = "routes"
    record = Route
    lives_in = "net"
    hears = Hears.NETWORK

    # configuration

    def normalise(self, desired: Route) -> Route:
        if not desired.via and desired.dev is None and desired.src is None:
            raise ValueError("a route needs via, dev or src")
        if desired.dev == "lo":
            raise ValueError("a route over lo leads nowhere; name a NIC")
        if desired.onlink and (not desired.via or desired.dev is None):
            raise ValueError("onlink needs via and dev: it says that via is on the link of dev")
        hops = [hop for hop in (desired.via, desired.src) if hop]
        families = {":" in hop for hop in hops}
        to = "default" if desired.to == "0.0.0.0/0" else desired.to
        if to == "default" and families == {True}:
            to = DEFAULT_IPV6
        if families - {":" in to}:
            raise ValueError(f"{', '.join([to, *hops])}: a route's addresses are all IPv4 or all IPv6")
        gateway = desired.via if is_address(desired.via) else ""
        if gateway and desired.dev is None and _LINK_LOCAL.holds(gateway):
            raise ValueError(f"a link-local via needs dev: every NIC has a network with {desired.via}")
        if gateway and any(network.holds(gateway) for network in _NO_GATEWAYS):
            raise ValueError(f"via {desired.via} is no address of a router")
        if any(network.holds(desired.src) for network in _NO_SOURCES if desired.src):
            raise ValueError(f"src {desired.src} is no address that a NIC can have")
        if desired.table == LOCAL_TABLE:
            raise ValueError("table 255 belongs to the kernel, which keeps its own addresses there")
        metric = desired.metric or (IPV6_METRIC if ":" in to else 0)
        return desired.replace(to=to, metric=metric, table=desired.table or MAIN_TABLE)

    def identity(self, resource: Route) -> str:
        """`default`, `10.1.0.0/16@metric=200,table=100`: usual values are left out."""
        usual = IPV6_METRIC if resource.family == AF_INET6 else 0
        extra = []
        if resource.metric not in (None, 0, usual):
            extra.append(f"metric={resource.metric}")
        if resource.table not in (None, MAIN_TABLE):
            extra.append(f"table={resource.table}")
        return f"{resource.to}@{','.join(extra)}" if extra else resource.to

    def check_together(self, resources: Mapping[Address, Resource]) -> Iterable[tuple[Address, str]]:
        nics = reach.nics_in(resources)
        for address, route in resources.items():
            if isinstance(route, Route):
                problem = _contradiction(route, nics)
                if problem:
                    yield address, problem

    # planning

    def completed(self, address: Address, desired: Route, host: HostFacts) -> Route:
        return desired.replace(src=desired.src or "", onlink=bool(desired.onlink), options=desired.options or "")

    def promised(
        self,
        address: Address,
        desired: Route,
        others: Mapping[Address, Resource],
        owned: Route | None,
        live: Route | None,
    ) -> Route:
        known = owned if owned is not None else live
        over = None
        # Snapshots of earlier versions have no `over`.
        is_known = live is None or live.over is not None or (live.via != "" and not is_address(live.via))
        if desired.dev is None and is_known:
            over = reach.link_of(desired, others, address)
            if over is None and known is not None and (known.via, known.src or "") == (desired.via, desired.src or ""):
                over = known.over or (live.over if live is not None and fits(desired, live) else None)
        options = known.options if known is not None else None
        if options is None and live is not None:
            options = live.options
        return desired.replace(over=over, options=options)

    def requires(self, resource: Route, others: Mapping[Address, Resource], address: Address) -> Iterable[Address]:
        return list(reach.required(resource, others, address))

    def is_interrupted(self, resource: Route, cause: Address, before: Resource, after: Resource) -> bool:
        return cause.kind != "nic" or reach.is_interrupted(resource, before, after)

    def is_given_back(self, removed: Route, live: Route) -> bool:
        return not fits(removed, live)  # another route to the same destination

    def is_left_to_others(self, made: Route, live: Route | None) -> bool:
        if not made.carried or live is None:
            return False
        # IPv6 would join the restored route to a route that others have added since.
        return live_routes.is_behind(made, live) or (":" in made.to and not fits(made, live))

    # kernel

    def read(self, container: Container, host: Host, wanted: Mapping[str, Route] | None) -> dict[str, Route]:
        return live_routes.read(container, wanted, self.identity)

    def came_with(self, resource: Route, provided: Provided) -> str:
        origin = provided.nics.get(resource.dev or "")
        return f"a route over {origin}" if origin else ""

    def describe(self, container: Container, host: Host) -> Described[Route]:
        return live_routes.describe(container, self.identity)

    def foresee_together(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> Iterable[Foreseen]:
        from scplan.kinds.route import foresight  # not imported by hooks

        return foresight.foresee(container, changes, after)

    def capture(
        self, target: Target[Route], before: Route | None, after: Route | None
    ) -> tuple[Route | None, Route | None]:
        from scplan.kinds.route import changing

        return changing.capture(target, before, after, self.identity)

    def create(self, target: Target[Route], after: Route) -> None:
        from scplan.kinds.route import changing

        changing.create(target, after)

    def update(self, target: Target[Route], before: Route, after: Route) -> None:
        from scplan.kinds.route import changing

        changing.update(target, before, after, self.identity)

    def delete(self, target: Target[Route], before: Route) -> None:
        from scplan.kinds.route import changing

        changing.delete(target, before, self.identity)

    def change_waiting(
        self,
        before: Route | None,
        after: Route | None,
        others: Callable[[], Collection[Route]],
        beside: Callable[[], Container | None],
    ) -> None:
        """Remove a route from the network namespace of a pod, where it stayed with its NIC."""
        container = beside() if before is not None and after is None else None
        if container is None or before is None:
            return
        from scplan.kinds.route import changing

        target = Target(container, container.host, {self.identity(before): before}, others)
        there, _ = changing.capture(target, before, None, self.identity)
        if there is not None:
            changing.delete(target, there, self.identity)


def _contradiction(route: Route, nics: Mapping[Address, Resource]) -> str:
    """Contradiction between a route and the NICs of the same files; "" if there is none."""
    by_name = {address.identity: nic for address, nic in nics.items()}
    link = route.dev
    if is_address(route.via):
        owner = next((name for name, nic in by_name.items() if route.via in reach.hosts(nic)), None)
        if owner is not None:
            return f"via {route.via} is the container's own address, on {owner}"
        near = reach.nic_that_reaches(route.via, nics)
        if near is not None and _is_broadcast(route.via, nics[near]):
            return f"via {route.via} is the broadcast address of its network, on {near.identity}"
        if link is None and near is not None:
            link = near.identity
    if link in by_name and by_name[link].get("up") is False:
        return f"the route goes over NIC {link}, which is to be down (up: false)"
    return ""


def _is_broadcast(via: str, nic: Resource) -> bool:
    return any(network_of(text).is_broadcast(via) for text in nic.get("addresses") or ())
