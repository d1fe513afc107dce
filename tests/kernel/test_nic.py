"""NICs in real namespaces: made, changed, lent by the host and given back; looked at with `ip`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Target
from scplan.kinds.nic import Nic, NicKind, lost
from scplan.kinds.nic.lost import reclaim
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.network import links, pins
from scplan.linux.network.netlink import Link, Rtnl, open_socket
from scplan.linux.processes.namespaces import socket_in
from scplan.model.comparison import differences
from tests.containers import container as throwaway
from tests.containers import host_parts
from tests.containers.fingerprint import container_fingerprint, difference
from tests.containers.session import Session

KIND = NicKind()

pytestmark = pytest.mark.needs("root", "veth", "bridge")


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


@pytest.fixture
def target(process_container: throwaway.Container, host: Host) -> Iterator[Target[Nic]]:
    with Container(process_container.name, process_container.pid, 0, host) as container:
        yield Target(container=container, host=host, peers={})


@pytest.fixture
def other_bridge(session: Session) -> Iterator[str]:
    with host_parts.bridge(session) as name:
        yield name


@pytest.fixture
def host_name(session: Session) -> Iterator[str]:
    name = session.name()
    yield name
    subprocess.run(["ip", "link", "delete", name], capture_output=True)


def veth(host_name: str, **attributes: Any) -> Nic:
    return KIND.normalise(Nic(name="eth1", **{"host_name": host_name, **attributes}))


def completed(host_name: str, **attributes: Any) -> Nic:
    return veth(host_name, **{"mtu": 1500, "txqueuelen": 1000, "bridge": "", **attributes})


def live(target: Target[Nic], wanted: Nic) -> Nic | None:
    target.host.forget()
    return KIND.read(target.container, target.host, {wanted.name: wanted}).get(wanted.name)


def read(target: Target[Nic], wanted: Nic) -> Nic:
    """Without its host end's values, which are compared only where they were promised."""
    found = live(target, wanted)
    assert found is not None
    return found.replace(host_mtu=None, host_txqueuelen=None, host_bridge=None, host_mac=None)


def ip(*arguments: str) -> Any:
    ended = subprocess.run(["ip", "-json", *arguments], capture_output=True, text=True)
    return json.loads(ended.stdout or "[]")


def sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def inside(container: throwaway.Container, *command: str) -> None:
    sh("nsenter", "--target", str(container.pid), "--net", *command)


def addresses(shown: list[Any]) -> list[str]:
    return [f"{one['local']}/{one['prefixlen']}" for one in shown[0]["addr_info"] if one["scope"] != "link"]


# veth


def test_a_created_veth_reads_back_as_it_was_asked_for(
    target: Target[Nic], process_container: throwaway.Container, bridge: str, host_name: str
) -> None:
    wanted = completed(
        host_name,
        bridge=bridge,
        addresses=("10.9.0.5/24", "10.9.1.5/24", "fd00:9::5/64"),
        mac="02:00:5e:10:00:01",
        mtu=1400,
        txqueuelen=500,
    )
    KIND.create(target, wanted)
    assert differences(wanted, read(target, wanted)) == ()
    assert read(target, wanted).replace(required=True) == wanted
    shown = process_container.ip("-d", "address", "show", "dev", "eth1")
    assert shown[0]["mtu"] == 1400
    assert shown[0]["txqlen"] == 500
    assert shown[0]["address"] == "02:00:5e:10:00:01"
    assert "UP" in shown[0]["flags"]
    assert addresses(shown) == ["10.9.0.5/24", "10.9.1.5/24", "fd00:9::5/64"]
    outer = ip("link", "show", "dev", host_name)[0]
    assert (outer["master"], outer["mtu"], outer["txqlen"]) == (bridge, 1400, 500)
    assert "UP" in outer["flags"]


def test_creating_twice_and_deleting_twice_succeed(target: Target[Nic], bridge: str, host_name: str) -> None:
    wanted = completed(host_name, bridge=bridge, addresses=("10.9.0.5/24",))
    KIND.create(target, wanted)
    first = read(target, wanted)
    KIND.create(target, wanted)
    assert read(target, wanted) == first
    KIND.delete(target, first)
    assert live(target, wanted) is None
    assert not ip("link", "show", "dev", host_name)
    KIND.delete(target, first)


def test_a_creation_that_was_cut_off_is_completed(
    target: Target[Nic], process_container: throwaway.Container, bridge: str, host_name: str
) -> None:
    peer = ["peer", "name", "eth1", "netns", str(process_container.pid)]
    sh("ip", "link", "add", host_name, "type", "veth", *peer)
    wanted = completed(host_name, bridge=bridge, addresses=("10.9.0.5/24", "fd00:9::5/64"), mac="02:00:5e:10:00:01")
    KIND.create(target, wanted)
    assert read(target, wanted) == wanted


@pytest.mark.parametrize(
    ("change", "interrupts"),
    [
        ({"mtu": 1300}, False),
        ({"mac": "02:00:5e:10:00:02"}, False),
        ({"txqueuelen": 50}, False),
        ({"addresses": ("10.9.0.5/24", "10.9.0.6/24")}, False),
        ({"addresses": ("10.9.0.6/24",)}, True),
        ({"addresses": ("fd00:9::6/64",)}, True),
        ({"bridge": ""}, True),
        ({"up": False}, True),
    ],
)
def test_every_attribute_changes_in_place(
    target: Target[Nic], bridge: str, host_name: str, change: dict[str, Any], interrupts: bool
) -> None:
    before = completed(host_name, bridge=bridge, addresses=("10.9.0.5/24",), mac="02:00:5e:10:00:01")
    KIND.create(target, before)
    index = target.container.rtnl.link("eth1")
    after = before.replace(**change)
    assert (KIND.disruption(before, after)[0] != "none") == interrupts
    KIND.update(target, before, after)
    assert read(target, after) == after
    KIND.update(target, before, after)
    assert read(target, after) == after
    KIND.update(target, after, before)
    assert read(target, before) == before
    now = target.container.rtnl.link("eth1")
    assert index is not None
    assert now is not None
    assert now.index == index.index


def test_bridge_and_host_name_change_in_place(
    target: Target[Nic], bridge: str, other_bridge: str, host_name: str, session: Session
) -> None:
    before = completed(host_name, bridge=bridge, addresses=("10.9.0.5/24",))
    KIND.create(target, before)
    before = before.replace(mac=read(target, before).mac)
    after = before.replace(bridge=other_bridge, host_name=session.name())
    KIND.update(target, before, after)
    assert read(target, after) == after
    assert not ip("link", "show", "dev", host_name)
    KIND.update(target, after, before)
    assert read(target, before) == before


def test_routes_and_others_addresses_outlive_a_change_of_address(
    target: Target[Nic], process_container: throwaway.Container, host_name: str
) -> None:
    before = completed(host_name, addresses=("10.9.0.5/24",))
    KIND.create(target, before)
    inside(process_container, "ip", "address", "add", "10.9.0.77/24", "dev", "eth1")
    inside(process_container, "ip", "address", "add", "fd00:9::77/64", "dev", "eth1", "nodad")
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1", "metric", "7")
    inside(process_container, "ip", "route", "add", "10.20.0.0/16", "via", "10.9.0.1", "src", "10.9.0.77")
    inside(process_container, "ip", "route", "add", "fd00:20::/64", "via", "fd00:9::1")
    before = read(target, before)
    assert before.addresses is not None
    after = before.replace(addresses=("10.9.0.77/24", "fd00:9::77/64", "10.9.0.6/24"))
    KIND.update(target, before, after)
    shown = addresses(process_container.ip("address", "show", "dev", "eth1"))
    assert sorted(shown) == ["10.9.0.6/24", "10.9.0.77/24", "fd00:9::77/64"]
    routes = {route["dst"]: route for route in process_container.ip("route")}
    assert routes["default"]["gateway"] == "10.9.0.1"
    assert routes["default"]["metric"] == 7
    assert routes["10.20.0.0/16"]["prefsrc"] == "10.9.0.77"
    assert any(route["dst"] == "fd00:20::/64" for route in process_container.ip("-6", "route"))


def test_a_change_of_mtu_keeps_routes(
    target: Target[Nic], process_container: throwaway.Container, host_name: str
) -> None:
    before = completed(host_name, addresses=("10.9.0.5/24", "fd00:9::5/64"))
    KIND.create(target, before)
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1")
    routes = process_container.ip("route"), process_container.ip("-6", "route")
    KIND.update(target, before, before.replace(mtu=1400))
    assert (process_container.ip("route"), process_container.ip("-6", "route")) == routes


def test_what_a_link_loses_by_going_down_is_put_back(
    target: Target[Nic], process_container: throwaway.Container, host_name: str
) -> None:
    """As on kernels and drivers that want a link down for a new name or MAC."""
    wanted = completed(host_name, addresses=("10.9.0.5/24", "fd00:9::5/64"))
    KIND.create(target, wanted)
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1")
    inside(process_container, "ip", "route", "add", "10.20.0.0/16", "dev", "eth1")
    inside(process_container, "ip", "-6", "route", "add", "default", "via", "fd00:9::1")
    rtnl = target.container.rtnl
    link = rtnl.link("eth1")
    assert link is not None
    before = container_fingerprint(process_container)
    links.change_while_down(rtnl, link, links.LinkChange(mac="02:00:5e:10:00:09"))
    changed = difference(before, container_fingerprint(process_container))
    assert [line for line in changed if not line.startswith("links.eth1.address:")] == []
    assert process_container.ip("link", "show", "dev", "eth1")[0]["address"] == "02:00:5e:10:00:09"


@pytest.mark.parametrize("side", ["inside", "host"])
def test_a_link_that_was_set_down_is_drift_and_heals(
    target: Target[Nic], process_container: throwaway.Container, host_name: str, side: str
) -> None:
    wanted = completed(host_name, addresses=("10.9.0.5/24", "fd00:9::5/64"))
    KIND.create(target, wanted)
    if side == "inside":
        inside(process_container, "ip", "link", "set", "eth1", "down")
    else:
        sh("ip", "link", "set", host_name, "down")
    found = read(target, wanted)
    assert "up" in differences(wanted, found)
    KIND.update(target, found, wanted)
    assert differences(wanted, read(target, wanted)) == ()


def test_another_mtu_of_the_host_end_is_drift_where_it_was_promised(target: Target[Nic], host_name: str) -> None:
    wanted = completed(host_name, host_mtu=1500, host_txqueuelen=1000, host_bridge="")
    KIND.create(target, wanted)
    sh("ip", "link", "set", host_name, "mtu", "1300", "txqueuelen", "7")
    found = live(target, wanted)
    assert found is not None
    assert differences(wanted, found) == ("host_mtu", "host_txqueuelen")
    assert differences(completed(host_name), found) == ()
    KIND.update(target, found, completed(host_name))
    assert live(target, wanted) == found
    KIND.update(target, found, wanted)
    assert live(target, wanted) == wanted.replace(mac=found.mac, addresses=(), host_mac=found.host_mac)


def test_a_link_of_others_is_neither_taken_nor_deleted(
    target: Target[Nic], process_container: throwaway.Container, host_name: str
) -> None:
    inside(process_container, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth2")
    wanted = completed(host_name)
    with pytest.raises(KernelError, match="EEXIST"):
        KIND.create(target, wanted)
    KIND.delete(target, wanted)
    assert process_container.ip("link", "show", "dev", "eth1")
    assert not ip("link", "show", "dev", host_name)


def test_a_nic_that_was_renamed_inside_is_deleted_by_its_host_end(
    target: Target[Nic], process_container: throwaway.Container, host_name: str
) -> None:
    wanted = completed(host_name)
    KIND.create(target, wanted)
    inside(process_container, "ip", "link", "set", "eth1", "name", "other")
    assert live(target, wanted) is None
    KIND.delete(target, wanted)
    assert not ip("link", "show", "dev", host_name)


def test_the_host_end_of_another_container_is_not_deleted(
    target: Target[Nic], session: Session, host: Host, host_name: str
) -> None:
    wanted = completed(host_name)
    with session.container("process") as other, Container(other.name, other.pid, 0, host) as opened:
        KIND.create(Target(container=opened, host=host, peers={}), wanted)
        KIND.delete(target, wanted)
        assert ip("link", "show", "dev", host_name)


def test_routes_of_others_come_back_when_a_deletion_is_undone(
    target: Target[Nic], process_container: throwaway.Container, host_name: str
) -> None:
    wanted = completed(host_name, addresses=("10.9.0.5/24",))
    KIND.create(target, wanted)
    inside(process_container, "ip", "route", "add", "10.20.0.0/16", "via", "10.9.0.1", "metric", "5", "proto", "77")
    routes = process_container.ip("route")
    before, _ = KIND.capture(target, read(target, wanted), None)
    assert before is not None
    KIND.delete(target, before)
    KIND.create(target, before)
    assert process_container.ip("route") == routes


def test_a_refused_value_names_the_operation_and_what_the_kernel_says(target: Target[Nic], host_name: str) -> None:
    wanted = completed(host_name)
    KIND.create(target, wanted)
    with pytest.raises(KernelError, match=r"RTM_NEWLINK\(.*bridge|no bridge"):
        KIND.update(target, wanted, wanted.replace(bridge="absent0"))
    with pytest.raises(KernelError, match=r"RTM_NEWADDR\(10\.9\.0\.5/77"):
        target.container.rtnl.add_address(1, "10.9.0.5/77")


def test_ipv6_switched_off_is_said(target: Target[Nic], process_container: throwaway.Container, host_name: str) -> None:
    off = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
    inside(process_container, "sh", "-c", f"mount -t proc proc /proc 2>/dev/null; echo 1 > {off}")
    with pytest.raises(KernelError, match="disable_ipv6"):
        KIND.create(target, completed(host_name, addresses=("fd00:9::5/64",)))


def test_import_finds_nics_from_the_host_only(
    target: Target[Nic], process_container: throwaway.Container, bridge: str, host_name: str
) -> None:
    wanted = completed(host_name, bridge=bridge, addresses=("10.9.0.5/24",), mac="02:00:5e:10:00:01")
    KIND.create(target, wanted)
    inside(process_container, "ip", "link", "add", "own0", "type", "veth", "peer", "name", "own1")
    inside(process_container, "ip", "link", "add", "own2", "type", "bridge")
    (outer,) = ip("link", "show", "dev", host_name)
    promised = {"host_mtu": 1500, "host_txqueuelen": 1000, "host_bridge": bridge, "host_mac": outer["address"]}
    assert KIND.read(target.container, target.host, None) == {"eth1": wanted.replace(**promised)}


def test_a_container_on_the_hosts_network_is_refused(host: Host) -> None:
    with Container("self", os.getpid(), 0, host) as container:
        target = Target[Nic](container=container, host=host, peers={})
        nic = completed("never0")
        for act in (
            lambda: KIND.create(target, nic),
            lambda: KIND.update(target, nic, nic),
            lambda: KIND.capture(target, None, nic),
            lambda: KIND.read(container, host, {"eth1": nic}),
        ):
            with pytest.raises(ScplanError, match="shares the host's network"):
                act()
        assert KIND.read(container, host, None) == {}


# physical


@pytest.fixture
def physical(veth_pair: host_parts.Nic) -> Nic:
    return KIND.normalise(Nic(name="eth1", type="physical", host_name=veth_pair.name))


def lend(target: Target[Nic], nic: Nic) -> Nic:
    _, captured = KIND.capture(target, None, nic)
    assert captured is not None
    KIND.create(target, captured)
    return captured


def give_back(target: Target[Nic], lent: Nic) -> None:
    found = read(target, lent)
    recorded = found.replace(**{name: getattr(lent, name) for name in FORMER})
    before, _ = KIND.capture(target, recorded, None)
    assert before is not None
    KIND.delete(target, before)


FORMER = [attribute.name for attribute in Nic.attributes() if attribute.role == "former"]


def test_a_physical_nic_comes_back_exactly_as_it_was(
    target: Target[Nic], process_container: throwaway.Container, physical: Nic, bridge: str
) -> None:
    name = str(physical.host_name)
    sh("ip", "link", "set", name, "mtu", "1400", "txqueuelen", "77", "address", "02:00:5e:10:00:21", "master", bridge)
    sh("ip", "link", "set", name, "up")
    sh("ip", "address", "add", "10.9.9.5/24", "broadcast", "10.9.9.255", "dev", name)
    sh("ip", "address", "add", "10.9.9.6/24", "dev", name)
    sh("ip", "address", "add", "fd00:99::5/64", "dev", name, "nodad")
    sh("ip", "route", "add", "10.99.0.0/16", "via", "10.9.9.1", "metric", "50")

    def state() -> Any:
        link = ip("-d", "link", "show", "dev", name)[0]
        wanted = ("ifname", "address", "mtu", "txqlen", "master")
        shown = ip("address", "show", "dev", name)[0]["addr_info"]
        kept = ("local", "prefixlen", "broadcast", "scope", "secondary")
        return (
            {key: link[key] for key in wanted},
            "UP" in link["flags"],
            sorted(str({key: one.get(key) for key in kept}) for one in shown if one["scope"] == "global"),
            ip("route", "show", "dev", name),
        )

    before = state()
    wanted = physical.replace(
        addresses=("10.8.0.5/24", "fd00:8::5/64"), mac="02:00:5e:10:00:22", mtu=1300, txqueuelen=5
    )
    lent = lend(target, wanted)
    assert not ip("link", "show", "dev", name)
    assert differences(wanted, read(target, lent)) == ()
    assert differences(wanted, read(target, wanted)) == ()
    shown = process_container.ip("address", "show", "dev", "eth1")
    assert addresses(shown) == ["10.8.0.5/24", "fd00:8::5/64"]
    KIND.create(target, lent)
    assert differences(wanted, read(target, lent)) == ()
    give_back(target, lent)
    assert state() == before
    assert live(target, wanted) is None
    KIND.delete(target, lent)
    assert state() == before


def test_a_physical_nic_keeps_its_mac_and_goes_down_again(target: Target[Nic], physical: Nic) -> None:
    name = str(physical.host_name)
    before = ip("link", "show", "dev", name)[0]
    lent = lend(target, physical)
    assert read(target, lent).mac == before["address"]
    give_back(target, lent)
    after = ip("link", "show", "dev", name)[0]
    assert after["address"] == before["address"]
    assert "UP" not in after["flags"]


def test_names_that_clash_on_the_way_do_not_matter(
    target: Target[Nic], process_container: throwaway.Container, physical: Nic
) -> None:
    """The container has a link of the NIC's host name, and the host one of its name inside."""
    name = str(physical.host_name)
    inside(process_container, "ip", "link", "add", name, "type", "bridge")
    lent = lend(target, physical)
    assert read(target, lent).name == "eth1"
    assert process_container.ip("-d", "link", "show", "dev", name)[0]["linkinfo"]["info_kind"] == "bridge"
    give_back(target, lent)
    assert ip("-d", "link", "show", "dev", name)[0]["linkinfo"]["info_kind"] == "veth"


def test_a_name_taken_on_the_host_meanwhile_leaves_all_as_it_was(
    target: Target[Nic], process_container: throwaway.Container, physical: Nic
) -> None:
    lent = lend(target, physical.replace(addresses=("10.8.0.5/24",)))
    inside(process_container, "ip", "route", "add", "default", "via", "10.8.0.1")
    before = process_container.ip("address"), process_container.ip("route")
    sh("ip", "link", "add", str(physical.host_name), "type", "bridge")
    try:
        with pytest.raises(KernelError, match=r"EEXIST.*another link is named"):
            give_back(target, lent)
        assert (process_container.ip("address"), process_container.ip("route")) == before
    finally:
        sh("ip", "link", "delete", str(physical.host_name))
    give_back(target, lent)
    assert ip("link", "show", "dev", str(physical.host_name))


class RacingRtnl(Rtnl):
    """A socket whose first look is followed at once by somebody who takes the name `eth1`."""

    def __init__(self, container: throwaway.Container, target: Target[Nic]) -> None:
        super().__init__(socket_in(target.container.netns_fd, target.host.netns_fd, open_socket))
        self.container = container
        self.is_first = True

    def link(self, which: str | int) -> Link | None:
        found = super().link(which)
        if self.is_first:
            self.is_first = False
            inside(self.container, "ip", "link", "add", "eth1", "type", "bridge")
        return found


def test_a_link_stranded_by_a_rename_is_brought_back(
    target: Target[Nic], process_container: throwaway.Container, physical: Nic
) -> None:
    """The name is taken between the look and the move: the kernel has then moved the link already."""
    name = str(physical.host_name)
    sh("ip", "link", "set", name, "up")
    sh("ip", "address", "add", "10.9.9.5/24", "dev", name)
    sh("ip", "route", "add", "10.99.0.0/16", "via", "10.9.9.1")
    before = ip("address", "show", "dev", name)[0]["addr_info"][0], ip("route", "show", "dev", name)
    link = target.host.rtnl.link(name)
    assert link is not None
    with RacingRtnl(process_container, target) as racing, pytest.raises(KernelError, match="EEXIST"):
        links.move(
            target.host.rtnl,
            link,
            to=racing,
            to_fd=target.container.netns_fd,
            back_fd=target.host.netns_fd,
            name="eth1",
        )
    assert (ip("address", "show", "dev", name)[0]["addr_info"][0], ip("route", "show", "dev", name)) == before


def test_a_foreign_link_of_the_name_is_not_handed_to_the_host(
    target: Target[Nic], process_container: throwaway.Container, physical: Nic
) -> None:
    lent = lend(target, physical)
    inside(process_container, "ip", "link", "set", "eth1", "name", "gone0")
    inside(process_container, "ip", "link", "add", "eth1", "type", "bridge")
    KIND.delete(target, lent)
    assert process_container.ip("-d", "link", "show", "dev", "eth1")[0]["linkinfo"]["info_kind"] == "bridge"
    assert ip("-d", "link", "show", "dev", str(physical.host_name))[0]["linkinfo"]["info_kind"] == "veth"


def test_a_return_that_was_cut_off_is_completed(
    target: Target[Nic], process_container: throwaway.Container, physical: Nic
) -> None:
    name = str(physical.host_name)
    sh("ip", "link", "set", name, "up", "mtu", "1400")
    sh("ip", "address", "add", "10.9.9.5/24", "dev", name)
    lent = lend(target, physical.replace(mtu=1300))
    inside(process_container, "ip", "link", "set", "eth1", "name", name)
    inside(process_container, "ip", "link", "set", name, "netns", str(os.getpid()))
    KIND.delete(target, lent)
    shown = ip("address", "show", "dev", name)[0]
    assert shown["mtu"] == 1400
    assert addresses([shown]) == ["10.9.9.5/24"]
    assert "UP" in shown["flags"]


@pytest.mark.parametrize("name_back", ["eth1", "dev4711"])
def test_a_nic_that_the_kernel_gave_back_is_reclaimed(
    target: Target[Nic], process_container: throwaway.Container, physical: Nic, session: Session, name_back: str
) -> None:
    """As after the end of its container. A stand-in dies with a namespace, so it is moved out by hand."""
    name = str(physical.host_name)
    sh("ip", "link", "set", name, "up", "mtu", "1400")
    sh("ip", "address", "add", "10.9.9.5/24", "dev", name)
    before = ip("address", "show", "dev", name)[0]
    inner = session.name() if name_back == "eth1" else name_back
    lent = lend(target, physical.replace(name=inner, mtu=1300, mac="02:00:5e:10:00:22"))
    pins.unpin(str(lent.pinned))
    reclaim(target.host, lent)
    assert not ip("link", "show", "dev", name), "it is in the container still"
    inside(process_container, "ip", "link", "set", inner, "netns", str(os.getpid()))
    reclaim(target.host, lent)
    after = ip("address", "show", "dev", name)[0]
    assert [after[key] for key in ("address", "mtu", "flags")] == [before[key] for key in ("address", "mtu", "flags")]
    assert addresses([after]) == ["10.9.9.5/24"]


def test_a_nic_comes_home_from_the_namespace_that_is_kept_for_it(session: Session, host: Host, physical: Nic) -> None:
    """Also a stand-in, which would die with its container's namespace."""
    name = str(physical.host_name)
    sh("ip", "link", "set", name, "up", "mtu", "1400")
    sh("ip", "address", "add", "10.9.9.5/24", "dev", name)
    before = ip("address", "show", "dev", name)[0]
    container = session.start(session.name())
    with Container(container.name, container.pid, 0, host) as opened:
        lent = lend(Target(container=opened, host=host, peers={}), physical.replace(mtu=1300, mac="02:00:5e:10:00:22"))
    session.stop(container.name)
    assert not ip("link", "show", "dev", name)
    stranded = lost.stranded(host, lent)
    assert stranded is not None
    assert (stranded.link.name, stranded.place) == (
        lent.name,
        f"as {lent.name} in its network namespace, kept at {lent.pinned}",
    )
    reclaim(host, lent)
    assert lost.stranded(host, lent) is None
    assert pins.open_pin(str(lent.pinned)) is None
    after = ip("address", "show", "dev", name)[0]
    assert [after[key] for key in ("address", "mtu", "flags")] == [before[key] for key in ("address", "mtu", "flags")]
    assert addresses([after]) == ["10.9.9.5/24"]
    reclaim(host, lent)


def test_a_host_end_that_was_left_is_deleted_and_one_of_another_is_not(
    target: Target[Nic], bridge: str, host_name: str
) -> None:
    _, wanted = KIND.capture(target, None, completed(host_name, bridge=bridge))
    assert wanted is not None
    KIND.create(target, wanted)
    reclaim(target.host, wanted.replace(host_mac="02:00:00:00:00:01"))
    assert ip("link", "show", "dev", host_name)
    reclaim(target.host, wanted)
    assert not ip("link", "show", "dev", host_name)


# a container in a user namespace


def test_a_container_in_a_user_namespace(userns_container: throwaway.Container, host: Host, host_name: str) -> None:
    with Container(userns_container.name, userns_container.pid, 0, host) as container:
        target = Target[Nic](container=container, host=host, peers={})
        wanted = completed(host_name, addresses=("10.9.0.5/24",), mac="02:00:5e:10:00:01")
        KIND.create(target, wanted)
        assert read(target, wanted) == wanted
        KIND.delete(target, wanted)
        assert live(target, wanted) is None
