"""The pure side of routes: what may be written, how it is named, what it stands on."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scplan.kinds.nic import Nic
from scplan.kinds.route import Route, RouteKind
from scplan.linux.network.netlink import Route as LiveRoute
from scplan.linux.network.netlink import option_attributes, options_of, raw_route, route_body
from scplan.model.address import Address
from scplan.model.networks import network_of
from scplan.model.next_hops import NEXT_HOP, Way, text_of, ways_of
from scplan.model.resource import Resource

KIND = RouteKind()


def route(to: str = "default", **attributes: Any) -> Route:
    return KIND.normalise(Route(to=to, **attributes))


@pytest.mark.parametrize(
    ("wanted", "identity"),
    [
        (route(via="10.0.0.1"), "default"),
        (route("0.0.0.0/0", via="10.0.0.1"), "default"),
        (route(via="10.0.0.1", metric=0, table=254), "default"),
        (route(via="10.0.0.1", metric=200, table=100), "default@metric=200,table=100"),
        (route(via="10.0.0.1", table=100), "default@table=100"),
        (route("192.168.0.0/16", dev="eth1"), "192.168.0.0/16"),
        (route(via="fd00::1"), "::/0"),
        (route(src="fd00::5"), "::/0"),
        (route("::/0", dev="eth1"), "::/0"),
        (route("::/0", via="fd00::1", metric=1024), "::/0"),
        (route("::/0", via="fd00::1", metric=0), "::/0"),
        (route("fd00:1::/64", dev="eth1", metric=5), "fd00:1::/64@metric=5"),
        (route("192.168.0.0/16", dev="eth1", metric=1024), "192.168.0.0/16@metric=1024"),
    ],
)
def test_identities_name_what_is_not_as_usual(wanted: Route, identity: str) -> None:
    assert KIND.identity(wanted) == identity


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "needs via, dev or src"),
        ({"dev": "lo"}, "lo leads nowhere"),
        ({"to": "10.0.0.0/8", "via": "fd00::1"}, "all IPv4 or all IPv6"),
        ({"to": "::/0", "via": "10.0.0.1"}, "all IPv4 or all IPv6"),
        ({"via": "10.0.0.1", "src": "fd00::5"}, "all IPv4 or all IPv6"),
        ({"via": "10.0.0.1", "onlink": True}, "onlink needs via and dev"),
        ({"dev": "eth1", "onlink": True}, "onlink needs via and dev"),
        ({"dev": "eth1", "table": 255}, "belongs to the kernel"),
        ({"to": "::/0", "via": "fe80::1"}, "link-local via needs dev"),
        ({"to": "fd00::/64", "via": "febf::1"}, "link-local via needs dev"),
        ({"via": "127.0.0.1"}, "no address of a router"),
        ({"via": "0.0.0.0"}, "no address of a router"),
        ({"via": "224.0.0.1"}, "no address of a router"),
        ({"to": "::/0", "via": "::1"}, "no address of a router"),
        ({"to": "::/0", "via": "ff02::1", "dev": "eth1"}, "no address of a router"),
        ({"dev": "eth1", "src": "0.0.0.0"}, "no address that a NIC can have"),
    ],
)
def test_contradictions_are_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KIND.normalise(Route(**attributes))


OTHERS: dict[Address, Resource] = {
    Address("web", "nic", "eth1"): Nic(name="eth1", addresses=("10.0.0.5/8", "fd00::5/64")),
    Address("web", "nic", "eth2"): Nic(name="eth2", addresses=("10.1.0.5/16",)),
    Address("web", "nic", "eth3"): Nic(name="eth3"),
    Address("web", "route", "172.16.0.1/32"): route("172.16.0.1/32", dev="eth3"),
    Address("web", "route", "172.16.0.0/12"): route("172.16.0.0/12", dev="eth1"),
    Address("web", "route", "default"): route(dev="eth1"),
}


@pytest.mark.parametrize(
    ("wanted", "needed"),
    [
        (route("198.51.100.0/24", via="10.0.0.1"), ["nic/eth1"]),
        (route("198.51.100.0/24", via="10.1.0.1"), ["nic/eth2"]),
        (route("198.51.100.0/24", via="10.1.0.1", dev="eth3"), ["nic/eth2", "nic/eth3"]),
        (route("198.51.100.0/24", via="192.0.2.1", dev="eth3", onlink=True), ["nic/eth3"]),
        (route("198.51.100.0/24", dev="eth1", src="10.1.0.5"), ["nic/eth1", "nic/eth2"]),
        (route("198.51.100.0/24", src="10.1.0.5"), ["nic/eth2"]),
        (route("198.51.100.0/24", via="172.16.0.1"), ["route/172.16.0.1/32"]),
        (route("198.51.100.0/24", via="172.16.0.9"), ["route/172.16.0.0/12"]),
        (route("198.51.100.0/24", via="192.0.2.1", dev="eth0"), []),
        (route("fd00:1::/64", via="fd00::1"), ["nic/eth1"]),
        (route("fd00:1::/64", via="fd00:9::1"), []),
        (route("198.51.100.0/24", via="192.0.2.1"), ["route/default"]),
        (route("198.51.100.0/24", via="192.0.2.1", dev="eth1"), ["nic/eth1", "route/default"]),
        (route("172.16.0.1/32", via="172.16.0.1", dev="eth3"), ["nic/eth3", "route/172.16.0.0/12"]),
        (route("198.51.100.0/24", via="10.1.0.1 dev eth1, dev eth3 weight 2"), ["nic/eth1", "nic/eth3"]),
    ],
)
def test_a_route_requires_what_makes_its_gateway_reachable(wanted: Route, needed: list[str]) -> None:
    found = KIND.requires(wanted, OTHERS, Address("web", "route", KIND.identity(wanted)))
    assert [f"{address.kind}/{address.identity}" for address in found] == needed


WAYS = st.builds(
    Way,
    gateway=st.sampled_from(("", "10.0.0.1", "fd00::1", "::ffff:10.0.0.1")),
    dev=st.sampled_from(("eth0", "dev", "weight", "onlink", "a,", ",", "dev,dev", "10.0.0.1")),
    weight=st.integers(1, 256),
    onlink=st.booleans(),
)


@given(st.lists(WAYS, min_size=1, max_size=4))
def test_several_next_hops_read_back_from_their_text(ways: list[Way]) -> None:
    assert ways_of(text_of(ways)) == tuple(ways)
    NEXT_HOP.check(text_of(ways))


@pytest.mark.parametrize("text", ["", "10.0.0.1", "fd00::1"])
def test_one_next_hop_is_not_several(text: str) -> None:
    assert ways_of(text) == ()
    NEXT_HOP.check(text)


@pytest.mark.parametrize(
    "text",
    [
        "eth0",
        "dev ",
        "10.0.0 dev eth0",
        "dev eth0 weight 0",
        "dev eth0 weight 257",
        "dev eth0, ",
        "10.0.0.1 eth0",
        "dev eth0 onlink weight 2",
    ],
)
def test_a_damaged_next_hop_is_refused(text: str) -> None:
    """Users write one address and no more; records and snapshots can be damaged."""
    with pytest.raises(ValueError, match=r"not an IP address|not a next hop|weight"):
        NEXT_HOP.check(text)
    with pytest.raises(ValueError, match="not an IP address"):
        NEXT_HOP.parse(text)


NIC = Nic(name="eth1", addresses=("10.0.0.5/24", "10.1.0.5/24", "fd00::5/64"), up=True, mtu=1500)
BY_IPV4, BY_IPV6 = route(via="10.0.0.1"), route(via="fd00::1")


@pytest.mark.parametrize(
    ("wanted", "after", "goes_down"),
    [
        (BY_IPV4, NIC.replace(up=False), True),
        (BY_IPV6, NIC.replace(up=False), True),
        (BY_IPV4, NIC.replace(mtu=1200), False),
        (BY_IPV6, NIC.replace(mtu=1200), True),
        (BY_IPV4, NIC.replace(mtu=1400, mac="02:00:00:00:00:01"), False),
        (BY_IPV4, NIC.replace(bridge="br0"), False),
        (BY_IPV4, NIC.replace(addresses=NIC.addresses[1:]), True),  # its gateway's network
        (BY_IPV6, NIC.replace(addresses=NIC.addresses[1:]), False),
        (route("10.9.0.0/16", dev="eth1"), NIC.replace(addresses=NIC.addresses[1:]), False),
        (route("10.9.0.0/16", dev="eth1"), NIC.replace(addresses=NIC.addresses[2:]), True),  # the last of IPv4
        (
            route("10.9.0.0/16", dev="eth1"),
            NIC.replace(addresses=("10.0.0.6/24", "10.1.0.6/24")),
            True,
        ),  # secondary ones
        (route("10.9.0.0/16", dev="eth1"), NIC.replace(addresses=("10.7.0.6/24",)), False),
        (route("10.9.0.0/16", dev="eth1", src="10.1.0.5"), NIC.replace(addresses=NIC.addresses[:1]), True),
        (route("fd09::/64", dev="eth1"), NIC.replace(addresses=()), False),
        (route("fd09::/64", dev="eth1", src="fd00::5"), NIC.replace(addresses=NIC.addresses[:2]), True),
        (route(via="192.0.2.1", dev="eth1", onlink=True), NIC.replace(addresses=NIC.addresses[1:]), False),
    ],
)
def test_a_route_goes_down_with_its_nic_only_where_the_kernel_drops_it(
    wanted: Route, after: Nic, goes_down: bool
) -> None:
    assert KIND.is_interrupted(wanted, Address("web", "nic", "eth1"), NIC, after) is goes_down


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mtu lock 1300 advmss 1200",
        "initcwnd 20 congctl reno metric60 7",
        "realms 3/4 pref high encap 6:0102 attribute90 ff00",
        "hoplimit 9 pref 7",
    ],
)
def test_options_of_a_route_read_back_from_their_text(text: str) -> None:
    live = LiveRoute(family=2, dst="10.1.0.0/16", gateway="10.0.0.1", oif=7, metric=5)
    assert options_of(raw_route(route_body(live) + option_attributes(text))) == text


@pytest.mark.parametrize("text", ["mtu", "mtu lock", "mtu x", "speed 9", "realms 3", "encap x", "attribute 1"])
def test_damaged_options_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"option|invalid literal|unpack|hexadecimal"):
        option_attributes(text)


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@pytest.mark.slow
@given(ADDRESSES, st.integers(0, 128), ADDRESSES)
def test_networks_hold_what_they_hold_for_python(address: Any, length: int, other: Any) -> None:
    text = f"{address}/{min(length, address.max_prefixlen)}"
    network, ours = ipaddress.ip_network(text, strict=False), network_of(text)
    assert ours.holds(str(address))
    assert ours.holds(str(other)) == (other in network)
    has_broadcast = network.version == 4 and network.prefixlen < 31
    assert ours.is_broadcast(str(network.broadcast_address)) == has_broadcast
