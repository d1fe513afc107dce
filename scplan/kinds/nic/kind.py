"""Network interfaces: veth pairs, and physical NICs of the host lent to a container. rtnetlink(7), veth(4)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from socket import AF_INET
from typing import TYPE_CHECKING, Any

from scplan.kinds.kind import Claim, Described, Foreseen, Hears, Kind, Target, Unsuitable
from scplan.kinds.nic.live import describe, read, without
from scplan.kinds.nic.record import (
    DEFAULT_MTU,
    DEFAULT_TXQUEUELEN,
    FOREIGN,
    IPV6_MIN_MTU,
    VETH,
    Nic,
    derived_host_name,
)
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Change, Disruption
from scplan.model.live import HostFacts, LinkFact
from scplan.model.networks import network_of, number_of
from scplan.model.resource import Resource

if TYPE_CHECKING:
    from scplan.model.provided import Provided

MAX_PHYSICAL = 8


class NicKind(Kind[Nic]):
    name = "nic"
    section = "nics"
    record = Nic
    lives_in = "net"
    of_host = True
    hears = Hears.NETWORK

    # configuration

    def normalise(self, desired: Nic) -> Nic:
        nic = desired.replace(type=desired.type or VETH, up=True if desired.up is None else desired.up)
        if nic.name == "lo":
            raise ValueError("lo is the container's own loopback interface; it can't be a NIC")
        hosts = [address.partition("/")[0] for address in nic.addresses or ()]
        # The kernel takes one address several times, each with another peer.
        single = [address.partition("/")[0] for address in nic.addresses or () if " peer " not in address]
        doubled = {host for host in single if hosts.count(host) > 1}
        if doubled:
            raise ValueError(f"the address {min(doubled)} is written twice")
        for address in nic.addresses or ():
            _check_address(address)
        if nic.mtu is not None and nic.mtu < IPV6_MIN_MTU and any(":" in host for host in hosts):
            raise ValueError(f"IPv6 needs an mtu of {IPV6_MIN_MTU} or more, and this NIC has an IPv6 address")
        if not nic.is_physical:
            if nic.allow_uplink:
                raise ValueError("allow_uplink is for NICs of type physical")
            return nic
        if nic.host_name is None:
            raise ValueError("a physical NIC needs host_name: the NIC of the host that is moved into the container")
        if nic.bridge is not None:
            raise ValueError("a physical NIC can't be on a bridge of the host: it leaves the host; bridge is for veth")
        return nic.replace(device=nic.host_name)

    def identity(self, resource: Nic) -> str:
        return resource.name

    def check_all(self, resources: Mapping[str, Nic]) -> Iterable[tuple[str, str]]:
        physical = [identity for identity, nic in resources.items() if nic.is_physical]
        for identity in physical[MAX_PHYSICAL:]:
            yield identity, f"a container can have at most {MAX_PHYSICAL} physical NICs; this is one more"

    def claims(self, address: Address, resource: Nic) -> Iterable[Claim]:
        yield Claim(thing=f"host link {resource.host_name or derived_host_name(address.container, resource.name)}")
        if resource.mac is not None:
            yield Claim(thing=f"MAC address {resource.mac}")
        for address_text in resource.addresses or ():
            host = address_text.partition("/")[0]
            if not _is_link_local(host):
                yield Claim(thing=f"IP address {host}", scope=resource.bridge or "")

    def host_links(self, address: Address, resource: Nic) -> Iterable[str]:
        if not resource.is_physical:
            yield resource.host_name or derived_host_name(address.container, resource.name)

    # planning

    def resolve(self, desired: Nic, host: HostFacts) -> Iterable[Nic]:
        if desired.bridge:
            _check_bridge(desired.bridge, host)
        yield desired

    def check_creation(self, address: Address, desired: Nic, host: HostFacts) -> None:
        if desired.is_physical:
            _check_physical(desired, host)
            return
        name = desired.host_name or derived_host_name(address.container, desired.name)
        if name in host.links:
            _refuse_other_name(name, host.links[name])
            raise Unsuitable(
                f"the host has a link {name} already, which can't be the host end of this NIC",
                hint=f"remove it (`ip link del {name}`) if it is left over, or set another host_name",
            )

    def completed(self, address: Address, desired: Nic, host: HostFacts) -> Nic:
        if desired.is_physical:
            return desired
        link = host.links.get(desired.bridge) if desired.bridge and desired.bridge not in host.ovs_bridges else None
        return desired.replace(
            # Another MTU would change that of the bridge, for all its ports. br_mtu_auto_adjust() in br_if.c
            host_mtu=link.mtu if link is not None else desired.mtu,
            host_txqueuelen=desired.txqueuelen,
            host_bridge=None if desired.bridge else "",
            host_name=desired.host_name or derived_host_name(address.container, desired.name),
            bridge=desired.bridge or "",
            mtu=desired.mtu or DEFAULT_MTU,
            txqueuelen=DEFAULT_TXQUEUELEN if desired.txqueuelen is None else desired.txqueuelen,
        )

    def value_before(self, owned: Nic, path: str) -> Any:
        """MAC address, MTU or queue length of a physical NIC on the host."""
        former = f"former_{path}"
        return getattr(owned, former) if owned.is_physical and hasattr(owned, former) else None

    def disruption(self, before: Nic, after: Nic) -> tuple[Disruption, str]:
        if before.up and after.up is False:
            return Disruption.BRIEF, "goes down, and its routes with it"
        removed = without(before.addresses, after.addresses)
        if removed:
            return Disruption.BRIEF, f"routes that use {', '.join(removed)} are lost for a moment"
        if after.bridge is not None and (after.bridge or "") != (before.bridge or ""):
            return Disruption.BRIEF, "its connections are cut for a moment: it goes to another bridge"
        has_ipv6 = any(":" in address for address in after.addresses or ())
        if has_ipv6 and after.mtu is not None and before.mtu is not None and after.mtu < IPV6_MIN_MTU <= before.mtu:
            return Disruption.BRIEF, f"loses its IPv6 addresses and routes: they need an mtu of {IPV6_MIN_MTU}"
        return Disruption.NONE, ""

    def is_given_back(self, removed: Nic, live: Nic) -> bool:
        return live.host_name != removed.host_name  # another link has the name by now

    def is_left_to_others(self, made: Nic, live: Nic | None) -> bool:
        if made.carried_name is None:
            return False
        if made.is_physical and made.carried_name == "":
            return True
        return made.carried_name not in ("", made.name) if live is None else live.type != (made.type or VETH)

    def is_own(self, owned: Nic, live: Nic, *, is_new: bool) -> bool | None:
        """By the host end of a veth: its MAC address, which scplan chose or found, and its name.

        In a container that has been started since, a host end with another MAC address is of others, whatever its name.
        """
        if owned.is_physical:
            if live.type == FOREIGN:
                return False if is_new else None
            return True if is_new and owned.is_lent else None
        if live.type == FOREIGN:
            return False if is_new else None
        name = owned.host_name or owned.made_name or owned.found_name
        if owned.mark is not None and live.host_mac is not None:
            if live.host_mac == owned.mark:
                return True
            return None if not is_new and live.host_name == name else False
        if is_new:
            return True if owned.host_name and live.host_name == owned.host_name else None
        # An adopted NIC was on its bridge, with its addresses; a live NIC that has neither is not the adopted one.
        has_moved = bool(owned.bridge) and live.bridge != owned.bridge
        has_none = bool(owned.addresses) and not set(owned.addresses or ()) & set(live.addresses or ())
        return False if has_moved and has_none else None

    def came_with(self, resource: Nic, provided: Provided) -> str:
        if resource.is_physical:
            return provided.nics.get(resource.name, "")
        by_name = "" if provided.macs and resource.mac else provided.nics.get(resource.name, "")
        return provided.macs.get(resource.mac or "") or provided.bridges.get(resource.bridge or "") or by_name

    def with_found(self, provided: Provided, resource: Nic, origin: str) -> Provided:
        return provided._replace(nics={**provided.nics, resource.name: origin})

    # kernel

    def read(self, container: Container, host: Host, wanted: Mapping[str, Nic] | None) -> dict[str, Nic]:
        return read(container, host, wanted)

    def foresee_together(
        self, container: Container, host: Host, changes: Sequence[Change], after: Mapping[Address, Resource]
    ) -> Iterable[Foreseen]:
        from scplan.kinds.nic.foresight import foresee

        return foresee(container, host, changes, after)

    def describe(self, container: Container, host: Host) -> Described[Nic]:
        return describe(container, host)

    def capture(self, target: Target[Nic], before: Nic | None, after: Nic | None) -> tuple[Nic | None, Nic | None]:
        from scplan.kinds.nic import changing

        return changing.capture(target, before, after)

    def create(self, target: Target[Nic], after: Nic) -> None:
        from scplan.kinds.nic import changing

        changing.create(target, after)

    def update(self, target: Target[Nic], before: Nic, after: Nic) -> None:
        from scplan.kinds.nic import changing

        changing.update(target, before, after)

    def delete(self, target: Target[Nic], before: Nic) -> None:
        from scplan.kinds.nic import changing

        changing.delete(target, before)

    def reclaim(self, host: Host, lost: Nic) -> None:
        from scplan.kinds.nic import lost as lost_nics

        lost_nics.reclaim(host, lost)

    def stays(self, host: Host, lost: Nic, pid: int) -> bool:
        from scplan.kinds.nic import lost as lost_nics

        return bool(lost_nics.process_beside(host, lost, pid))

    def process_beside(self, host: Host, lost: Nic) -> int:
        from scplan.kinds.nic import lost as lost_nics

        return lost_nics.process_beside(host, lost)

    def without_left_over(self, facts: HostFacts, host: Host, owned: Nic, pid: int) -> HostFacts:
        if owned.is_physical or (pid and self.stays(host, owned, pid)):
            return facts
        return self.after_reclaim(facts, host, owned)

    def change_waiting(
        self,
        before: Nic | None,
        after: Nic | None,
        others: Callable[[], Collection[Nic]],
        beside: Callable[[], Container | None],
    ) -> None:
        """Remove a NIC from the network namespace of a pod, where it stayed when its container ended."""
        from scplan.kinds.nic import lost as lost_nics

        if before is not None and after is None and (before.is_lent or not before.is_physical):
            with Host() as host:
                lost_nics.reclaim(host, before)

    def left_behind(self, host: Host, lost: Nic) -> tuple[str, str] | None:
        from scplan.kinds.nic import lost as lost_nics

        if not lost.is_physical or self.stays(host, lost, 0):
            return None
        found = lost_nics.stranded(host, lost)
        return None if found is None else (f"NIC {lost.host_name}", found.place)

    def after_reclaim(self, facts: HostFacts, host: Host, lost: Nic) -> HostFacts:
        from scplan.kinds.nic import lost as lost_nics

        if not lost.is_physical:
            left = lost_nics.left_end(host, lost)
            if left is None:
                return facts
            return facts._replace(links={name: link for name, link in facts.links.items() if name != left.name})
        found = lost_nics.stranded(host, lost)
        if found is None or lost.host_name is None:
            return facts
        mac, mtu = lost.former_mac or found.link.mac, lost.former_mtu or found.link.mtu
        home = LinkFact(name=lost.host_name, kind=found.link.kind, mac=mac, mtu=mtu)
        return facts._replace(links=ChainMap({home.name: home}, dict(facts.links)))


def _check_address(text: str) -> None:
    """Raise ValueError for the address of a network, or its broadcast address."""
    if " peer " in text:
        return
    address, _, length = text.partition("/")
    network = network_of(text)
    family, value = number_of(address)
    # Networks of two addresses have no address of their own. RFC 3021, RFC 6164
    if int(length) < (31 if family == AF_INET else 127) and value == network.first:
        raise ValueError(f"{text} is the address of the network itself; a NIC needs one of its hosts'")
    if network.is_broadcast(address):
        raise ValueError(f"{text} is the broadcast address of its network; a NIC needs one of its hosts'")


def _refuse_other_name(name: str, link: LinkFact) -> None:
    if link.name != name:
        raise Unsuitable(
            f"{name} is an alternative name of the host's link {link.name}",
            hint=f"the kernel has one link by that name: write {link.name} if it is meant, or choose another name",
        )


def _check_bridge(name: str, host: HostFacts) -> None:
    link = host.links.get(name)
    if link is not None:
        _refuse_other_name(name, link)
    if name in host.ovs_bridges or (link is not None and link.kind == "bridge"):
        return
    if link is None:
        raise Unsuitable(f"the host has no bridge {name}", hint=f"make it: ip link add {name} type bridge", absent=True)
    raise Unsuitable(f"{name} is a link of the host, but not a bridge", hint="name a Linux or Open vSwitch bridge")


def _check_physical(desired: Nic, host: HostFacts) -> None:
    name = desired.host_name
    assert name is not None
    if name == "lo":
        raise Unsuitable("the host's loopback interface can't be moved into a container")
    if name not in host.links:
        raise Unsuitable(
            f"the host has no NIC {name}",
            hint="is it in another container? A container that ended gives it back under the name that it had inside",
            absent=True,
        )
    _refuse_other_name(name, host.links[name])
    if name in host.uplinks and not desired.allow_uplink:
        raise Unsuitable(
            f"{name} is the NIC of the host's default route; moving it into a container would cut the host off",
            hint="write `allow_uplink: true` in the entry if that is meant",
        )


def _is_link_local(host: str) -> bool:
    return host[:3].lower() in ("fe8", "fe9", "fea", "feb") or host.startswith("169.254.")
