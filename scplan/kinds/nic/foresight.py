"""Checks of planned NICs in a container: reasons for a refusal, and objects of others that go with a NIC."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from scplan.kinds.kind import Foreseen, Unsuitable
from scplan.kinds.nic.live import without
from scplan.kinds.nic.record import Nic
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.network import links
from scplan.linux.network.netlink import MAIN_TABLE, Link, Rtnl
from scplan.model.address import Address
from scplan.model.change import Action, Change
from scplan.model.resource import Resource

_MTU_WITHOUT_PORTS = 1500
"""Of a bridge. Source: br_mtu_auto_adjust() in net/bridge/br_if.c."""
RouteKey = tuple[str, int, int]
"""Destination, metric and table."""


def foresee(
    container: Container, host: Host, changes: Sequence[Change], managed: Mapping[Address, Resource]
) -> Iterator[Foreseen]:
    """Findings about the planned NICs of a container. `changes` and `managed` are of all kinds."""
    nics = [change for change in changes if change.address.kind == "nic"]
    if not nics or container.shares_host_network:
        return
    routes = [one for address, one in managed.items() if address.kind == "route"]
    routes += [change.before for change in changes if change.address.kind == "route" and change.before is not None]
    own = {_key_of(route) for route in routes}
    for change in nics:
        before, after = change.before, change.after
        if isinstance(after, Nic) and change.action is not Action.RELEASE:
            refused = _bridge_has(host, after) or (_name_is_taken(container, after) if before is None else None)
            if refused is not None:
                yield Foreseen(change.address, refused=refused)
                continue
            yield from _packets_are_dropped(host, change.address, after)
        if change.action is Action.CREATE and isinstance(after, Nic) and after.is_physical and after.host_name:
            yield from _lent(host, change, after.host_name)
        elif isinstance(before, Nic) and change.action in (Action.DELETE, Action.REPLACE, Action.UPDATE):
            yield from _changed(container, host, change, before, own)


def _key_of(route: Resource) -> RouteKey:
    to = route.get("to")
    return "default" if to == "::/0" else to, route.get("metric") or 0, route.get("table") or MAIN_TABLE


def _packets_are_dropped(host: Host, address: Address, nic: Nic) -> Iterator[Foreseen]:
    """A warning about a NIC with a larger MTU than its bridge: the bridge keeps its MTU, for its other ports."""
    bridge = host.links_by_name.get(nic.bridge) if nic.bridge else None
    if bridge is not None and nic.mtu is not None and bridge.kind == "bridge" and nic.mtu > bridge.mtu:
        summary = f"packets of more than {bridge.mtu} bytes are dropped: that is the MTU of the bridge {bridge.name}"
        hint = f"raise it, if all on the bridge can take that (`ip link set {bridge.name} mtu {nic.mtu}`), or lower mtu"
        yield Foreseen(address, warning=(summary, hint))


def _bridge_has(host: Host, nic: Nic) -> Unsuitable | None:
    """Refusal of an address that the NIC's own bridge has: one of the two would not be reached."""
    bridge = host.links_by_name.get(nic.bridge) if nic.bridge else None
    if bridge is None:
        return None
    theirs = {addr.address.partition("/")[0] for addr in host.rtnl.addresses({bridge.index})}
    mine = [address.partition("/")[0] for address in nic.addresses or ()]
    taken = next((address for address in mine if address in theirs), None)
    if taken is None:
        return None
    return Unsuitable(
        f"{taken} is an address of the bridge {bridge.name} itself", hint="give the NIC another one of its network"
    )


def _name_is_taken(container: Container, nic: Nic) -> Unsuitable | None:
    """Refusal of a name that is an alternative name of another link: the kernel looks links up by both. ip-link(8)"""
    link = container.rtnl.link(nic.name)
    if link is None or link.name == nic.name:
        return None
    return Unsuitable(
        f"{nic.name} is an alternative name of the container's link {link.name}",
        hint=f"choose another name, or take it from that link: ip link property del dev {link.name} altname {nic.name}",
    )


def _lent(host: Host, change: Change, name: str) -> Iterator[Foreseen]:
    """Objects of the host that go with a NIC that it lends; all but programs return with the NIC."""
    link = host.rtnl.link(name)
    if link is not None:
        put_back = _of_others(host.rtnl, link, f"{name}, when it returns")
        lost = _programs(host.rtnl, link)
        yield Foreseen(change.address, put_back=tuple(put_back), lost=tuple(lost))


def _changed(
    container: Container, host: Host, change: Change, before: Nic, own: Collection[RouteKey]
) -> Iterator[Foreseen]:
    """Objects of others that go with a NIC which the change removes, replaces or updates."""
    link = container.rtnl.link(before.name)
    if link is None:
        return
    if change.action is Action.UPDATE:
        if isinstance(change.after, Nic):
            yield from _updated(container, host, change.address, link, before, change.after, own)
        return
    lost, along = list(_programs(container.rtnl, link)), list(_of_others(container.rtnl, link, before.name, own))
    outer = links.host_end(host, link, container.rtnl.nsid(host.netns_fd), host.rtnl.link)
    if outer is not None:
        lost += _programs(host.rtnl, outer)
        along += _of_others(host.rtnl, outer, outer.name)
        along += _mtu_of_bridge(host, outer)
    if lost or along:
        yield Foreseen(change.address, taken_along=tuple(along), lost=tuple(lost))


def _updated(
    container: Container,
    host: Host,
    address: Address,
    link: Link,
    before: Nic,
    after: Nic,
    own: Collection[RouteKey],
) -> Iterator[Foreseen]:
    """Objects of others that go when an update sets a NIC down, removes IPv4 addresses, or changes the bridge's MTU."""
    outer = links.host_end(host, link, container.rtnl.nsid(host.netns_fd), host.rtnl.link)
    along = [] if outer is None else list(_mtu_of_bridge(host, outer, _mtu_there(host, outer, before, after)))
    if before.up and after.up is False:
        along += _of_others(container.rtnl, link, before.name, own)
    elif any(":" not in removed for removed in without(before.addresses, after.addresses)):
        # The kernel drops secondary IPv4 addresses with the first of their network, and the link's IPv4 routes with its
        # last address. net/ipv4/devinet.c, fib_frontend.c
        put_back = tuple(_of_others(container.rtnl, link, before.name, own))
        yield Foreseen(address, put_back=put_back, taken_along=tuple(along))
        return
    if along:
        yield Foreseen(address, taken_along=tuple(along))


def _mtu_there(host: Host, outer: Link, before: Nic, after: Nic) -> int | None:
    """MTU of the host end after an update; None if the update takes the host end off its present bridge."""
    if after.bridge is not None and (after.bridge or "") != (links.bridge_now(host, outer) or ""):
        return None
    return after.host_mtu or (after.mtu if after.mtu != before.mtu else None) or outer.mtu


def _mtu_of_bridge(host: Host, port: Link, mtu: int | None = None) -> Iterator[str]:
    """The MTU of a bridge, if it changes because a port goes (`mtu` is None) or gets another `mtu`.

    A bridge whose MTU nobody has set has the smallest MTU of its ports. br_mtu_auto_adjust() in net/bridge/br_if.c
    """
    known = host.links_by_name.values()
    bridge = next((one for one in known if one.index == port.master and one.kind == "bridge"), None)
    if bridge is None:
        return
    others = [one.mtu for one in known if one.master == bridge.index and one.index != port.index]
    then = min([*others, *([mtu] if mtu is not None else [])], default=_MTU_WITHOUT_PORTS)
    if bridge.mtu == min([*others, port.mtu]) != then:
        how = "without this port" if mtu is None else f"with {mtu} on this port"
        yield f"the MTU {bridge.mtu} of {bridge.name}, {then} {how} unless it was set on the bridge"


def _of_others(rtnl: Rtnl, link: Link, where: str, own: Collection[RouteKey] = ()) -> Iterator[str]:
    """Objects of others that go with a link: `3 routes of others over eth1`. scplan's `own` routes are left out."""
    from scplan.linux.network import kept

    found = kept.keep(rtnl, link)
    routes = [raw for raw in found.routes_of_users if (raw.route.dst, raw.route.metric, raw.route.table) not in own]
    if routes:
        yield f"{len(routes)} {'route' if len(routes) == 1 else 'routes'} of others over {where}"
    yield from (f"{one.words()} of {where}" for one in found.rare)


def _programs(rtnl: Rtnl, link: Link) -> Iterator[str]:
    """Programs on a link (XDP, tc), which only their owner can attach again."""
    from scplan.linux.network.netlink import rare
    from scplan.linux.network.netlink.raw_links import read_link

    raw = read_link(rtnl, link.index)
    if raw is not None and raw.has_program:
        yield f"the XDP program of {link.name}"
    yield from (f"{one.words()} of {link.name}" for one in rare.traffic_control(rtnl, link) if not one.comes_back)
