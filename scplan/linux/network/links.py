"""Links in use: changed, moved and put on bridges without losing addresses and routes. rtnetlink(7), ip-link(8)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Sequence
from socket import AF_INET
from typing import TYPE_CHECKING

from scplan.errors import KernelError, ScplanError
from scplan.linux.host import Host
from scplan.linux.network.netlink import RTN_UNICAST, RTPROT_KERNEL, RTPROT_RA, RTPROT_REDIRECT, Addr, Link, Route, Rtnl
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.linux.network.kept import Kept

LookUp = Callable[[int], Link | None]


class NetworkNamespace(NamedTuple):
    """Network namespace of a link, and scplan's own to return to."""

    fd: int
    own_fd: int


# Protocols of routes that the kernel makes by itself: for an address, or from a router's message.
KERNEL_MADE = frozenset((RTPROT_KERNEL, RTPROT_RA, RTPROT_REDIRECT))
_NO_LONGER_POSSIBLE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL))


def is_lasting(addr: Addr) -> bool:
    """False for addresses that the kernel makes: link-local ones and, from a router's prefix, IPv6 ones."""
    return not addr.is_link_local and (addr.is_permanent or addr.family == AF_INET)


# changing


class LinkChange(NamedTuple):
    """Attributes of a link to be changed; None leaves an attribute as it is, `master` 0 means no bridge."""

    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    txqueuelen: int | None = None
    up: bool | None = None
    master: int | None = None

    def on(self, link: Link) -> LinkChange:
        """Only the attributes that differ from the link's."""
        return LinkChange(
            None if self.name == link.name else self.name,
            None if self.mac == link.mac else self.mac,
            None if self.mtu == link.mtu else self.mtu,
            None if self.txqueuelen == link.txqueuelen else self.txqueuelen,
            None if self.up == link.up else self.up,
            None if self.master == link.master else self.master,
        )


_NO_CHANGE = LinkChange()


def change_link(rtnl: Rtnl, link: Link, wanted: LinkChange) -> None:
    """Change a link as wanted, in one message with only the differences.

    Some kernels and drivers want a link down (EBUSY) for a new name (before Linux 6.2) or MAC address: the link is then
    down for a moment, and what it loses is restored.
    """
    change = wanted.on(link)
    if change == _NO_CHANGE:
        return
    try:
        _set(rtnl, link, change)
    except KernelError as error:
        if error.errno != errno.EBUSY or not link.up:
            raise
        change_while_down(rtnl, link, change)


def change_while_down(rtnl: Rtnl, link: Link, change: LinkChange) -> None:
    """Change a link while it is down; then, even after an error, set it up and restore what it lost."""
    from scplan.linux.network import kept

    former = kept.keep(rtnl, link)
    rtnl.set_link(link.index, label=link.name, up=False)
    try:
        _set(rtnl, link, change._replace(up=None))
    finally:
        if change.up is not False:
            rtnl.set_link(link.index, label=link.name, up=True)
            kept.put_back(rtnl, link, former, exactly=True)


def _set(rtnl: Rtnl, link: Link, change: LinkChange) -> None:
    rtnl.set_link(
        link.index,
        label=link.name,
        name=change.name,
        mac=change.mac,
        mtu=change.mtu,
        txqueuelen=change.txqueuelen,
        up=change.up,
        master=change.master,
    )


def change_addresses(
    rtnl: Rtnl, link: Link, *, add: Sequence[str], remove: Collection[str], renew: Collection[str] = ()
) -> None:
    """Add and remove addresses ("10.0.0.5/24") of a link; all others stay.

    With a primary IPv4 address the kernel drops the secondary ones, and with any address routes: all that are still
    possible are restored. An address that exists with another peer is replaced by that of `add`; addresses in `renew`
    no longer expire. Addresses that join others take the order of `add`, on which an undo depends: the first address in
    a network is the primary one, the source of packets.
    """
    there = [addr for addr in rtnl.addresses({link.index}) if addr.index == link.index]
    added = [Addr.written_as(text, link.index) for text in add]
    wanted = {addr.key for addr in added}
    unwanted = {Addr.written_as(text, link.index).key for text in remove} - wanted
    narrowed = {addr.address for addr in added}
    leaving = [addr for addr in there if addr.key in unwanted or (addr.address in narrowed and addr.key not in wanted)]
    present = {addr.key for addr in there}
    missing = [addr for addr in added if addr.key not in present]
    if leaving:
        _replace_addresses(rtnl, link, leaving, missing)
    else:
        _add_addresses(rtnl, missing)
    _make_lasting(rtnl, [addr for addr in there if addr.written() in renew and not addr.is_lasting])
    if there:
        _put_in_order(rtnl, link, [addr.key for addr in added])


def _replace_addresses(rtnl: Rtnl, link: Link, leaving: Sequence[Addr], added: Sequence[Addr]) -> None:
    from scplan.linux.network import kept

    former = kept.keep(rtnl, link)
    gone = {addr.key for addr in leaving}
    conflicting = {addr.address for addr in leaving}
    # Before the removal, so that the link always has an address; two that differ only in their peer exclude each other.
    _add_addresses(rtnl, [addr for addr in added if addr.address not in conflicting])
    _delete_addresses(rtnl, leaving)
    _add_addresses(rtnl, added)
    kept.put_back(rtnl, link, former, but=gone)


def _make_lasting(rtnl: Rtnl, addresses: Iterable[Addr]) -> None:
    """Make addresses permanent that would have expired, or were deprecated."""
    batch = rtnl.batch()
    for addr in addresses:
        batch.make_address_last(addr)
    batch.send()


def _delete_addresses(rtnl: Rtnl, addresses: Iterable[Addr]) -> None:
    batch = rtnl.batch()
    for addr in addresses:
        batch.delete_address(addr.index, addr.address, peer=addr.peer)
    batch.send()


def _put_in_order(rtnl: Rtnl, link: Link, wanted: Sequence[tuple[str, str]]) -> None:
    """Make the IPv4 addresses of a link again, from the first that is out of order."""
    live = [addr for addr in rtnl.addresses({link.index}) if addr.index == link.index and addr.family == AF_INET]
    known = {addr.key: addr for addr in live}
    ordered = [known[key] for key in wanted if key in known]
    there = [addr for addr in live if addr in ordered]
    if there == ordered or there == (ordered := _as_listed(ordered)):
        return
    from scplan.linux.network import kept

    kept.put_in_order(rtnl, link, [addr.key for addr in ordered])


def _as_listed(addresses: Iterable[Addr]) -> list[Addr]:
    """Kernel's order of IPv4 addresses that were added in this order: secondary addresses come last."""
    import ipaddress

    networks = set()
    listed: tuple[list[Addr], list[Addr]] = ([], [])
    for addr in addresses:
        network = ipaddress.ip_interface(addr.far_end).network
        listed[network in networks].append(addr)
        networks.add(network)
    return listed[0] + listed[1]


def put_texts_back(rtnl: Rtnl, index: int, addresses: Sequence[Addr], routes: Sequence[Route]) -> None:
    """Add addresses and routes that a link does not have; older records and journals hold them in words.

    Routes that the link's addresses no longer allow are left out.
    """
    present = {addr.address for addr in rtnl.addresses() if addr.index == index}
    _add_addresses(rtnl, [addr._replace(index=index) for addr in addresses if addr.address not in present])
    live = set(rtnl.routes(type=RTN_UNICAST)) if routes else set()
    for route in routes:
        wanted = route._replace(oif=index)
        if wanted in live:
            continue
        try:
            rtnl.append_route(wanted)
        except KernelError as error:
            if error.errno not in _NO_LONGER_POSSIBLE:
                raise


def _add_addresses(rtnl: Rtnl, addresses: Sequence[Addr]) -> None:
    batch = rtnl.batch()
    for addr in addresses:
        batch.restore_address(addr, addr.index)
    try:
        batch.send()
    except KernelError as error:
        if error.errno == errno.EACCES and any(":" in addr.address for addr in addresses):
            hint = "IPv6 is switched off there: see disable_ipv6 of net.ipv6.conf.all, and .default for new NICs"
            raise KernelError(error.operation, error.errno, hint=hint) from None
        raise


# moving


def move(source: Rtnl, link: Link, *, to: Rtnl, to_fd: int, back_fd: int, name: str) -> Link:
    """Move a link to another namespace under `name`; it is then down, without addresses and routes.

    Raises KernelError EEXIST if `name` is taken there; the link is then where and as it was.
    """
    if to.link(name) is not None:
        raise taken(link, name)
    from scplan.linux.network import kept

    former = kept.keep(source, link)
    try:
        source.set_link(link.index, label=link.name, netns_fd=to_fd, name=name)
    except KernelError as error:
        # The kernel moves a link first, and renames it then: if the name was taken in between, the link is stranded
        # there under its old name. Only the link's namespace distinguishes this case.
        stranded = to.link(link.name)
        if source.link(link.index) is None and stranded is not None:
            to.set_link(stranded.index, label=link.name, netns_fd=back_fd)
            _make_as_it_was(source, former)
        raise taken(link, name) if error.errno == errno.EEXIST else error from None
    moved = to.link(name)
    if moved is None:
        raise KernelError(f"RTM_NEWLINK({link.name}, name {name})", errno.ENODEV, detail="it vanished while it moved")
    return moved


def _make_as_it_was(rtnl: Rtnl, former: Kept) -> None:
    link = rtnl.link(former.link.name)
    if link is None:
        raise KernelError(f"RTM_GETLINK({former.link.name})", errno.ENODEV, detail="it vanished while it moved back")
    from scplan.linux.network import kept

    change_link(rtnl, link, LinkChange(up=former.link.up, master=former.link.master))
    kept.put_back(rtnl, link, former, exactly=True)


def taken(link: Link, name: str) -> KernelError:
    """Error for a link whose new name is taken."""
    return KernelError(
        f"RTM_NEWLINK({link.name}, name {name})",
        errno.EEXIST,
        detail=f"another link is named {name} there",
        hint=f"rename or remove that link; {link.name} was left as it is",
    )


# bridges


def bridge_of(host: Host, link: Link, look_up: LookUp | None = None) -> str:
    """Linux or Open vSwitch bridge of which a link of the host is a port; "" if it is no port.

    `look_up` finds the links of the host as they are now; without `look_up`, they are those of `Host.links`.
    """
    master = (look_up or host.links().get)(link.master) if link.master else None
    # In the kernel, the master of an Open vSwitch port is the datapath, not the bridge.
    if master is not None and master.kind != "openvswitch":
        return master.name
    return host.ovs.bridge_of(link.name) if host.ovs is not None else ""


def bridge_now(host: Host, link: Link) -> str:
    """Bridge of a link as in `bridge_of`, read now without listing all links, which takes long on a large host."""
    if host.ovs is not None:
        host.ovs.forget()
    return bridge_of(host, link, host.rtnl.link)


def linux_bridge(host: Host, name: str) -> int | None:
    """Index of a Linux bridge (or of another link that takes ports); None if Open vSwitch has the bridge.

    Raises KernelError ENODEV if there is no such bridge.
    """
    if host.ovs is not None and name in host.ovs.bridges():
        return None
    link = host.rtnl.link(name)
    if link is None:
        raise KernelError(f"RTM_GETLINK({name})", errno.ENODEV, detail=f"the host has no bridge {name}")
    return link.index


def leave_ovs(host: Host, link: Link) -> None:
    """Remove a link of the host from its Open vSwitch bridge, which would list the link even after it is gone."""
    bridge = bridge_now(host, link)
    if host.ovs is not None and bridge in host.ovs.bridges():
        host.ovs.del_port(bridge, link.name)


def join_bridge(host: Host, link: Link, name: str) -> None:
    """Make a link of the host a port of this bridge only; "" removes it from its bridge."""
    former = bridge_now(host, link)
    if former == name:
        return
    index = linux_bridge(host, name) if name else 0
    if former and host.ovs is not None and former in host.ovs.bridges():
        host.ovs.del_port(former, link.name)
    elif former and index is None:
        host.rtnl.set_link(link.index, label=link.name, master=0)
    if index is not None:
        host.rtnl.set_link(link.index, label=link.name, master=index)
    elif host.ovs is not None:
        host.ovs.add_port(name, link.name)


def host_end(host: Host, inner: Link, host_nsid: int, look_up: LookUp | None = None) -> Link | None:
    """Host's end of a veth inside a container; None if it is not on the host.

    `host_nsid` is the host's ID in the container's namespace (Rtnl.nsid); `look_up` as for `bridge_of`.
    """
    if inner.kind != "veth" or inner.peer_nsid < 0 or inner.peer_nsid != host_nsid:
        return None
    # IFLA_LINK is the index of the peer in the namespace that IFLA_LINK_NETNSID names.
    outer = (look_up or host.links().get)(inner.peer_index)
    return outer if outer is not None and outer.kind == "veth" and outer.peer_index == inner.index else None


def refuse_host_network(container_name: str) -> ScplanError:
    """Error for a container whose network is the host's."""
    return ScplanError(
        f"container {container_name} shares the host's network",
        hint="its NICs and routes would be the host's; start it with a network namespace of its own",
    )
