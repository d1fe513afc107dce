"""The kernel's own route messages: what is sent back is the same route, whatever attributes it has."""

from __future__ import annotations

from typing import Any

import pytest

from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.network.netlink import RawRoute, raw_from_text
from scplan.linux.network.netlink.rtnl import Rtnl
from tests.containers import container as throwaway

pytestmark = pytest.mark.needs("root", "veth")

LINKS = """
    ip link add eth1 type veth peer name eth2
    ip address add 10.9.0.5/24 dev eth1; ip address add 10.8.0.5/24 dev eth2
    ip link set eth1 up; ip link set eth2 up
    ip address add fd00:9::5/64 dev eth1 nodad; ip address add fd00:8::5/64 dev eth2 nodad
"""
ROUTES = [
    "10.20.0.0/16 via 10.9.0.1 mtu lock 1300 advmss 1200 initcwnd 20 rto_min 300ms quickack 1",
    "10.21.0.0/16 via 10.9.0.1 realms 3/4 proto 77 metric 50 table 7000 src 10.8.0.5",
    "10.22.0.0/16 nexthop via 10.9.0.1 weight 3 realms 9 nexthop via 10.8.0.1 dev eth2 onlink weight 200",
    "10.23.0.0/16 dev eth2 scope link congctl reno",
    "10.24.0.0/16 via inet6 fd00:9::1 dev eth1",
    "10.25.0.0/16 tos 8 via 10.9.0.1",
    "blackhole 10.26.0.0/16 metric 7",
    "unreachable 10.27.0.0/16",
    "prohibit 10.28.0.0/16",
    "throw 10.29.0.0/16 table 99",
    "10.30.0.0/16 via 192.0.2.1 dev eth1 onlink",
    "fd00:20::/64 via fd00:9::1 mtu 1300 hoplimit 9 pref high",
    "fd00:21::/64 via fd00:9::1 dev eth1 proto 77 metric 5 pref low",
    "fd00:22::/64 nexthop via fd00:9::1 weight 2 nexthop via fd00:8::1 weight 7",
    "fd00:23::/64 dev eth2 expires 900",
    "blackhole fd00:26::/64",
    "fd00:30::/64 via fd00:77::1 dev eth2 onlink",
]


@pytest.fixture
def inside(process_container: throwaway.Container) -> throwaway.Container:
    for line in LINKS.strip().splitlines():
        for command in line.split(";"):
            process_container.ip(*command.split()[1:])
    return process_container


def add(container: throwaway.Container, route: str, how: str = "add") -> None:
    container.ip("-6" if "fd00:2" in route or "fd00:3" in route else "-4", "route", how, *route.split())


def shown(container: throwaway.Container) -> list[Any]:
    """All routes, in their order; the time that one has left goes by."""
    found = container.ip("-4", "-d", "route", "show", "table", "all")
    found += container.ip("-6", "-d", "route", "show", "table", "all")
    for one in found:
        if one.get("expires"):
            one["expires"] = "finite"
    return [one for one in found if one["protocol"] != "kernel"]


def of_others(rtnl: Rtnl) -> list[RawRoute]:
    return [raw for raw in rtnl.raw_routes() if raw.route.protocol != 2]


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_that_is_sent_back_is_the_same(inside: throwaway.Container, route: str) -> None:
    add(inside, route)
    before = shown(inside)
    assert len(before) == 1
    with Host() as host, Container(inside.name, inside.pid, 0, host) as container:
        (raw,) = of_others(container.rtnl)
        names = {index: container.rtnl.link_name(index) for index in raw.route.oifs}
        kept, kept_names = raw_from_text(raw.text(names))
        assert (kept, kept_names) == (raw, names)
        container.rtnl.take_route(kept)
        container.rtnl.take_route(kept)
        assert shown(inside) == []
        container.rtnl.put_route(kept)
        container.rtnl.put_route(kept)
    assert shown(inside) == before


def test_it_can_be_made_over_another_link(inside: throwaway.Container) -> None:
    add(inside, "10.22.0.0/16 nexthop via 10.9.0.1 dev eth1 onlink nexthop dev eth2 weight 5")
    add(inside, "10.23.0.0/16 dev eth1 mtu 1300")
    with Host() as host, Container(inside.name, inside.pid, 0, host) as container:
        links = {link.name: link.index for link in container.rtnl.nics()}
        swapped = {links["eth1"]: links["eth2"], links["eth2"]: links["eth1"]}
        for raw in of_others(container.rtnl):
            container.rtnl.take_route(raw)
            container.rtnl.put_route(raw.over(swapped))
    several, one = shown(inside)
    assert [hop["dev"] for hop in several["nexthops"]] == ["eth2", "eth1"]
    assert (one["dev"], one["metrics"]) == ("eth2", [{"mtu": 1300}])


def test_a_route_of_a_nexthop_object_keeps_it(inside: throwaway.Container) -> None:
    inside.ip("nexthop", "add", "id", "7", "via", "10.9.0.1", "dev", "eth1")
    add(inside, "10.20.0.0/16 nhid 7 mtu 1300")
    before = shown(inside)
    with Host() as host, Container(inside.name, inside.pid, 0, host) as container:
        (raw,) = of_others(container.rtnl)
        container.rtnl.take_route(raw)
        assert shown(inside) == []
        container.rtnl.put_route(raw)
    assert shown(inside) == before


@pytest.mark.parametrize(("place", "order"), [("append", ["1", "2", "9"]), ("prepend", ["9", "1", "2"])])
def test_it_is_put_behind_or_before_those_of_its_key(inside: throwaway.Container, place: Any, order: list[str]) -> None:
    add(inside, "10.20.0.0/16 via 10.9.0.9")
    with Host() as host, Container(inside.name, inside.pid, 0, host) as container:
        (raw,) = of_others(container.rtnl)
        container.rtnl.take_route(raw)
        add(inside, "10.20.0.0/16 via 10.9.0.1")
        add(inside, "10.20.0.0/16 via 10.9.0.2", "append")
        container.rtnl.put_route(raw, place=place)
    assert [one["gateway"] for one in shown(inside)] == [f"10.9.0.{last}" for last in order]


@pytest.mark.parametrize(
    "text", ["", "- ", "- 02", "7:eth1 " + "00" * 12, "- " + "ff" * 40, "x:eth1 02", "7:eth1 02100000"]
)
def test_a_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"route|hexadecimal|invalid literal|attribute|next hop"):
        raw_from_text(text)
