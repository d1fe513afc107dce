"""A look into a container before a plan is agreed to: what stands against its NICs, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scplan.kinds.kind import Foreseen, Unsuitable
from scplan.kinds.nic.kernel import without
from scplan.kinds.nic.record import Nic
from scplan.linux import links
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.netlink import RTPROT_STATIC, Link, Rtnl
from scplan.model.change import Action, Change


def foresee(container: Container, host: Host, changes: Sequence[Change]) -> Iterator[Foreseen]:
    """Findings about the planned NICs of a container."""
    if container.shares_host_network:
        return
    for change in changes:
        before, after = change.before, change.after
        if isinstance(after, Nic) and change.action is not Action.RELEASE:
            refused = _bridge_has(host, after) or (_name_is_taken(container, after) if before is None else None)
            if refused is not None:
                yield Foreseen(change.address, refused=refused)
                continue
        if change.action is Action.CREATE and isinstance(after, Nic) and after.is_physical and after.host_name:
            yield from _lent(host, change, after.host_name)
        elif isinstance(before, Nic) and change.action in (Action.DELETE, Action.REPLACE, Action.UPDATE):
            yield from _changed(container, host, change, before)


def _bridge_has(host: Host, nic: Nic) -> Unsuitable | None:
    """The refusal of an address that the NIC's own bridge has: one of the two would not be reached."""
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
    link = container.rtnl.link(nic.name)
    if link is None or link.name == nic.name:
        return None
    return Unsuitable(
        f"{nic.name} is an alternative name of the container's link {link.name}",
        hint=f"choose another name, or take it from that link: ip link property del dev {link.name} altname {nic.name}",
    )


def _lent(host: Host, change: Change, name: str) -> Iterator[Foreseen]:
    """What of the host goes with a NIC that it lends; all but programs comes back with it."""
    link = host.rtnl.link(name)
    if link is not None:
        put_back = _of_others(host.rtnl, link, f"{name}, when it returns")
        lost = _programs(host.rtnl, link)
        yield Foreseen(change.address, put_back=tuple(put_back), lost=tuple(lost))


def _changed(container: Container, host: Host, change: Change, before: Nic) -> Iterator[Foreseen]:
    link = container.rtnl.link(before.name)
    if link is None:
        return
    if change.action is Action.UPDATE:
        after = change.after
        removed = without(before.addresses, after.addresses) if isinstance(after, Nic) else ()
        if any(":" not in address for address in removed):
            # The kernel drops secondary addresses with the first of their network, and routes with the last one.
            yield Foreseen(change.address, put_back=tuple(_of_others(container.rtnl, link, before.name)))
        return
    lost = list(_programs(container.rtnl, link))
    outer = links.host_end(host, link, container.rtnl.nsid(host.netns_fd), host.rtnl.link)
    if outer is not None:
        lost += _programs(host.rtnl, outer)
    if lost:
        yield Foreseen(change.address, lost=tuple(lost))


def _of_others(rtnl: Rtnl, link: Link, where: str) -> Iterator[str]:
    """`3 routes of others over eth1`: what scplan does not make itself. Its routes have the protocol "static"."""
    from scplan.linux import kept

    found = kept.keep(rtnl, link)
    routes = [raw for raw in found.routes_of_users if raw.route.protocol != RTPROT_STATIC or where != link.name]
    if routes:
        yield f"{len(routes)} {'route' if len(routes) == 1 else 'routes'} of others over {where}"
    yield from (f"{one.words()} of {where}" for one in found.rare)


def _programs(rtnl: Rtnl, link: Link) -> Iterator[str]:
    """Programs of a link, which only whoever attached them can attach again."""
    from scplan.linux.netlink import rare
    from scplan.linux.netlink.raw_links import read_link

    raw = read_link(rtnl, link.index)
    if raw is not None and raw.has_program:
        yield f"the XDP program of {link.name}"
    yield from (f"{one.words()} of {link.name}" for one in rare.traffic_control(rtnl, link) if not one.comes_back)
