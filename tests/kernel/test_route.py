"""Routes in real namespaces, IPv4 and IPv6, looked at with `ip`."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Target
from scplan.kinds.route import Route, RouteKind
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.comparison import differences, goal
from tests.containers import container as throwaway

KIND = RouteKind()

pytestmark = pytest.mark.needs("root", "veth")


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


@pytest.fixture
def target(process_container: throwaway.Container, host: Host) -> Iterator[Target[Route]]:
    """A container with eth1 (10.9.0.5/24, fd00:9::5/64) and eth2 (10.8.0.5/24)."""
    script = """
        ip link add eth1 type veth peer name eth2
        ip address add 10.9.0.5/24 dev eth1; ip address add 10.8.0.5/24 dev eth2
        ip link set eth1 up; ip link set eth2 up
        ip address add fd00:9::5/64 dev eth1 nodad; ip address add fd00:8::5/64 dev eth2 nodad
    """
    inside(process_container, "sh", "-ec", script)
    with Container(process_container.name, process_container.pid, 0, host) as container:
        yield Target(container=container, host=host, peers={})


def inside(container: throwaway.Container, *command: str) -> None:
    subprocess.run(["nsenter", "--target", str(container.pid), "--net", *command], check=True, capture_output=True)


def route(to: str = "default", **attributes: Any) -> Route:
    return KIND.normalise(Route(to=to, **attributes))


def live(target: Target[Route], wanted: Route) -> Route | None:
    identity = KIND.identity(wanted)
    return KIND.read(target.container, target.host, {identity: wanted}).get(identity)


def shown(container: throwaway.Container, *arguments: str) -> list[Any]:
    """Routes as `ip` shows them, without those that the kernel made."""
    found = container.ip("-4", "-d", "route", "show", "table", "all", *arguments)
    found += container.ip("-6", "-d", "route", "show", "table", "all", *arguments)
    return [one for one in found if one["protocol"] != "kernel"]


@pytest.mark.parametrize(
    ("wanted", "identity", "expected"),
    [
        (route(via="10.9.0.1"), "default", {"dst": "default", "gateway": "10.9.0.1", "dev": "eth1"}),
        (route("10.20.0.0/16", dev="eth2"), "10.20.0.0/16", {"dst": "10.20.0.0/16", "dev": "eth2", "scope": "link"}),
        (
            route("10.20.0.0/16", via="10.9.0.1", src="10.9.0.5", metric=100, table=200),
            "10.20.0.0/16@metric=100,table=200",
            {"gateway": "10.9.0.1", "prefsrc": "10.9.0.5", "metric": 100, "table": "200"},
        ),
        (route("10.20.0.0/16", src="10.8.0.5"), "10.20.0.0/16", {"dev": "eth2", "prefsrc": "10.8.0.5"}),
        (route("10.20.0.7/32", via="10.9.0.1", table=70000), "10.20.0.7/32@table=70000", {"dst": "10.20.0.7"}),
        (
            route(via="192.0.2.1", dev="eth1", onlink=True),
            "default",
            {"gateway": "192.0.2.1", "flags": ["onlink"]},
        ),
        (route(via="fd00:9::1"), "::/0", {"dst": "default", "gateway": "fd00:9::1", "metric": 1024}),
        (
            route("fd00:20::/64", via="fd00:9::1", src="fd00:9::5", metric=5),
            "fd00:20::/64@metric=5",
            {"prefsrc": "fd00:9::5", "metric": 5},
        ),
        (route("fd00:20::/64", dev="eth2"), "fd00:20::/64", {"dev": "eth2"}),
    ],
)
def test_a_created_route_reads_back_and_goes_again(
    target: Target[Route],
    process_container: throwaway.Container,
    wanted: Route,
    identity: str,
    expected: dict[str, Any],
) -> None:
    assert KIND.identity(wanted) == identity
    before = shown(process_container)
    assert live(target, wanted) is None
    KIND.create(target, wanted)
    KIND.create(target, wanted)
    found = live(target, wanted)
    assert found is not None
    assert differences(wanted, found) == ()
    (made,) = [one for one in shown(process_container) if one not in before]
    assert {key: made.get(key) for key in expected} == expected
    assert made["protocol"] == "static"
    KIND.delete(target, found)
    assert shown(process_container) == before
    assert live(target, wanted) is None
    KIND.delete(target, found)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (route(via="10.9.0.1"), route(via="10.9.0.2")),
        (route(via="10.9.0.1"), route(via="10.8.0.1", dev="eth2")),
        (route("10.20.0.0/16", dev="eth1"), route("10.20.0.0/16", dev="eth2")),
        (route("10.20.0.0/16", dev="eth1"), route("10.20.0.0/16", dev="eth1", src="10.9.0.5")),
        (route(via="192.0.2.1", dev="eth1", onlink=True), route(via="10.9.0.1", dev="eth1", onlink=False)),
        (route(via="fd00:9::1"), route(via="fd00:9::2")),
        (route("fd00:20::/64", dev="eth1"), route("fd00:20::/64", via="fd00:8::1", dev="eth2")),
        (route("10.20.0.0/16", via="10.9.0.1"), route("10.20.0.0/16", dev="eth1")),
        (route("10.20.0.0/16", via="10.9.0.1", dev="eth1"), route("10.20.0.0/16", dev="eth2")),
        (route("10.20.0.0/16", dev="eth1", src="10.9.0.5"), route("10.20.0.0/16", dev="eth1", src="")),
        (route("fd00:20::/64", via="fd00:9::1"), route("fd00:20::/64", dev="eth2")),
        (route("fd00:20::/64", dev="eth1", src="fd00:9::5"), route("fd00:20::/64", dev="eth1", src="")),
    ],
)
def test_a_route_changes_in_place_and_back(
    target: Target[Route], process_container: throwaway.Container, before: Route, after: Route
) -> None:
    KIND.create(target, before)
    there = live(target, before)
    assert there is not None
    count = len(shown(process_container))
    KIND.update(target, there, after)
    KIND.update(target, there, after)
    found = live(target, after)
    assert found is not None
    assert differences(after, found) == ()
    assert len(shown(process_container)) == count
    KIND.update(target, found, there)
    assert live(target, there) == there
    assert len(shown(process_container)) == count


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (route(via="10.9.0.1"), route(via="10.8.0.1")),
        (route(via="fd00:9::1"), route(via="fd00:8::1")),
        (route("10.20.0.0/16", src="10.9.0.5"), route("10.20.0.0/16", src="10.8.0.5")),
        (route("10.20.0.0/16", via="10.9.0.1"), route("10.20.0.0/16", src="10.8.0.5")),
    ],
)
def test_what_is_on_another_link_takes_the_link_with_it(target: Target[Route], before: Route, after: Route) -> None:
    """`dev` was never written: that the live route has one must not pin it."""
    KIND.create(target, before)
    there = live(target, before)
    assert there is not None
    KIND.update(target, there, goal(after, there, before))
    found = live(target, after)
    assert found is not None
    assert (found.via, found.src, found.dev) == (after.via, after.src or "", "eth2")
    KIND.update(target, found, there)
    assert live(target, before) == there


def test_only_the_one_of_many_routes_via_a_gateway_is_deleted(
    target: Target[Route], process_container: throwaway.Container
) -> None:
    for destination in ("default", "10.20.0.0/16", "10.21.0.0/16"):
        inside(process_container, "ip", "route", "add", destination, "via", "10.9.0.1")
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1", "metric", "50")
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1", "table", "200")
    before = shown(process_container)
    KIND.delete(target, route(via="10.9.0.1", metric=50))
    after = shown(process_container)
    assert [one for one in before if one not in after] == [one for one in before if one.get("metric") == 50]
    KIND.delete(target, route(via="10.9.0.2"))
    KIND.delete(target, route(via="10.9.0.1", metric=51))
    assert shown(process_container) == after
    KIND.delete(target, route(via="10.9.0.1"))
    assert len(shown(process_container)) == len(after) - 1


def test_a_missing_route_does_not_take_one_of_another_metric_with_it(
    target: Target[Route], process_container: throwaway.Container
) -> None:
    """To the kernel a metric of 0 in a deletion matches any."""
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1", "metric", "50")
    before = shown(process_container)
    KIND.delete(target, route(via="10.9.0.1"))
    assert shown(process_container) == before


def test_of_several_routes_with_one_key_the_first_counts(
    target: Target[Route], process_container: throwaway.Container
) -> None:
    """It is the one in force; the one that is recorded is put in front of it, and is the only one that is removed."""
    wanted = route("10.20.0.0/16", via="10.9.0.2", dev="eth1")
    KIND.create(target, wanted)
    owned = target._replace(peers={KIND.identity(wanted): wanted})
    inside(process_container, "ip", "route", "prepend", "10.20.0.0/16", "via", "10.9.0.1")
    before = shown(process_container)
    found = live(target, wanted)
    assert found is not None
    assert found.via == "10.9.0.1"
    captured, after = KIND.capture(owned, found, wanted)
    assert captured is not None
    assert after is not None
    for _ in range(2):
        KIND.update(owned, captured, after)
        assert [one["gateway"] for one in shown(process_container)] == ["10.9.0.2", "10.9.0.1"]
        assert live(target, wanted) == found.replace(via="10.9.0.2")
    for _ in range(2):
        KIND.update(owned, after, captured)
        assert shown(process_container) == before
    removed, _ = KIND.capture(owned, found, None)
    assert removed is not None
    KIND.delete(owned, removed)
    assert [one["gateway"] for one in shown(process_container)] == ["10.9.0.1"]
    KIND.create(owned, removed)
    assert shown(process_container) == before


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("to", "gateways", "options"),
    [
        ("10.20.0.0/16", ["10.9.0.1", "10.9.0.2", "10.9.0.3"], "mtu lock 1300 advmss 1200 initcwnd 20 realms 5"),
        ("10.20.0.0/16@metric=5,table=99", ["10.9.0.1", "10.8.0.2", "10.9.0.3"], "congctl reno rto_min 3000"),
    ],
)
def test_a_removed_route_comes_back_in_its_place_with_all_that_it_had(
    target: Target[Route],
    process_container: throwaway.Container,
    place: int,
    to: str,
    gateways: list[str],
    options: str,
) -> None:
    network, _, key = to.partition("@")
    words = key.replace("=", " ").replace(",", " ").split()
    for number, gateway in enumerate(gateways):
        own = options.split() if number == place else []
        inside(process_container, "ip", "route", "append", network, *words, "via", gateway, *own, "proto", "77")
    before = shown(process_container)
    wanted = route(network, via=gateways[place], metric=5 if key else None, table=99 if key else None)
    owned = target._replace(peers={KIND.identity(wanted): wanted})
    captured, _ = KIND.capture(owned, wanted, None)
    assert captured is not None
    KIND.delete(owned, captured)
    assert len(shown(process_container)) == 2
    for _ in range(2):
        KIND.create(owned, captured)
        assert shown(process_container) == before
    changed = wanted.replace(via="10.9.0.9")
    captured, after = KIND.capture(owned, wanted, changed)
    assert captured is not None
    assert after is not None
    KIND.update(owned, captured, after)
    assert shown(process_container)[0]["gateway"] == "10.9.0.9"
    inside(process_container, "ip", "route", "append", network, *words, "via", "10.9.0.77")
    newer = shown(process_container)[-1]
    for _ in range(2):
        KIND.update(owned, after, captured)
        assert shown(process_container) == [*before, newer]


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit", "throw"])
@pytest.mark.parametrize(("to", "via"), [("10.20.0.0/16", "10.9.0.1"), ("fd00:20::/64", "fd00:9::1")])
def test_a_route_that_leads_nowhere_is_seen_replaced_and_put_back(
    target: Target[Route], process_container: throwaway.Container, kind: str, to: str, via: str
) -> None:
    wanted = route(to, via=via)
    inside(process_container, "ip", "route", "add", kind, to)
    before = shown(process_container)
    found = live(target, wanted)
    assert found is not None
    assert (found.via, found.dev) == (kind, None)
    assert (KIND.identity(wanted), f"it is of type {kind}") in KIND.describe(target.container, target.host).left_out
    captured, after = KIND.capture(target, found, wanted)
    assert captured is not None
    assert after is not None
    KIND.update(target, captured, after)
    assert [one["gateway"] for one in shown(process_container)] == [via]
    KIND.update(target, after, captured)
    assert shown(process_container) == before


def test_a_route_of_a_router_gives_way_and_comes_back(
    target: Target[Route], process_container: throwaway.Container
) -> None:
    """Joined to it, as one of two next hops, the wanted one would not be in force."""
    script = "ip -6 route add default via fe80::1 dev eth1 proto ra metric 1024 expires 1800"
    inside(process_container, "sh", "-ec", script)
    before = shown(process_container)
    wanted = route(via="fd00:9::1")
    assert live(target, wanted) is None
    _, after = KIND.capture(target, None, wanted)
    assert after is not None
    assert after.over == "eth1"
    KIND.create(target, after)
    assert [one["gateway"] for one in shown(process_container)] == ["fd00:9::1"]
    for _ in range(2):
        KIND.delete(target, after)
        there = shown(process_container)
        assert 1700 < there[0].pop("expires") <= 1800
        assert there == [{key: value for key, value in before[0].items() if key != "expires"}]


def test_a_route_to_what_is_on_a_link_goes_in_front_of_the_kernels_own(
    target: Target[Route], process_container: throwaway.Container
) -> None:
    wanted = route("10.9.0.0/24", via="10.8.0.1")
    assert live(target, wanted) is None
    _, after = KIND.capture(target, None, wanted)
    assert after is not None
    KIND.create(target, after)
    listed = [one.get("gateway") for one in process_container.ip("-4", "route", "show", "10.9.0.0/24")]
    assert listed == ["10.8.0.1", None]
    found = live(target, wanted)
    assert found is not None
    assert differences(after, found) == ()
    KIND.delete(target, after)
    assert [one.get("gateway") for one in process_container.ip("-4", "route", "show", "10.9.0.0/24")] == [None]


@pytest.mark.parametrize("proto", [(), ("proto", "static")])
def test_a_hop_that_others_added_is_left_when_the_route_goes(
    target: Target[Route], process_container: throwaway.Container, proto: tuple[str, ...]
) -> None:
    wanted = route("fd00:20::/64", via="fd00:9::1")
    KIND.create(target, wanted)
    owned = target._replace(peers={KIND.identity(wanted): wanted})
    inside(process_container, "ip", "-6", "route", "append", "fd00:20::/64", "via", "fd00:9::7", *proto)
    before = shown(process_container)
    found = live(target, wanted)
    assert found is not None
    assert found.via == "fd00:9::1 dev eth1, fd00:9::7 dev eth1"
    captured, _ = KIND.capture(owned, found, None)
    assert captured is not None
    KIND.delete(owned, captured)
    assert [one["gateway"] for one in shown(process_container)] == ["fd00:9::7"]
    KIND.create(owned, captured)
    assert shown(process_container) == before


def test_what_others_made_of_it_meanwhile_stays(target: Target[Route], process_container: throwaway.Container) -> None:
    """An undo makes an IPv6 route again only where it would not be joined to one that came since."""
    wanted = route("fd00:20::/64", via="fd00:9::1")
    KIND.create(target, wanted)
    found = live(target, wanted)
    captured, _ = KIND.capture(target, found, None)
    assert captured is not None
    KIND.delete(target, captured)
    inside(process_container, "ip", "-6", "route", "add", "fd00:20::/64", "via", "fd00:9::7")
    before = shown(process_container)
    KIND.create(target, captured)
    assert shown(process_container) == before
    assert KIND.is_left_to_others(captured, live(target, wanted))


def test_a_multipath_route_of_others_is_left_alone(
    target: Target[Route], process_container: throwaway.Container
) -> None:
    hops = ["nexthop", "via", "10.9.0.1", "nexthop", "via", "10.8.0.1"]
    inside(process_container, "ip", "route", "add", "default", *hops)
    before = shown(process_container)
    wanted = route(via="10.9.0.1")
    found = live(target, wanted)
    assert found is not None
    assert "via" in differences(wanted, found)
    KIND.delete(target, wanted)
    with pytest.raises(KernelError, match="EEXIST"):
        KIND.create(target, wanted)
    assert shown(process_container) == before


def test_a_route_for_one_type_of_service_is_another_one(
    target: Target[Route], process_container: throwaway.Container
) -> None:
    inside(process_container, "ip", "route", "add", "10.20.0.0/16", "tos", "8", "via", "10.9.0.1")
    before = shown(process_container)
    wanted = route("10.20.0.0/16", via="10.9.0.1")
    assert live(target, wanted) is None
    assert KIND.read(target.container, target.host, None) == {}
    assert ("10.20.0.0/16", "it is for TOS 8") in KIND.describe(target.container, target.host).left_out
    KIND.create(target, wanted)
    found = live(target, wanted)
    assert found is not None
    KIND.update(target, found, found.replace(via="10.9.0.2"))
    assert {(one.get("tos"), one["gateway"]) for one in shown(process_container)} == {
        ("0x08", "10.9.0.1"),
        (None, "10.9.0.2"),
    }
    KIND.delete(target, found.replace(via="10.9.0.2"))
    assert shown(process_container) == before


def test_import_leaves_out_what_the_kernel_made(target: Target[Route], process_container: throwaway.Container) -> None:
    assert KIND.read(target.container, target.host, None) == {}
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1")
    inside(process_container, "ip", "-6", "route", "add", "default", "via", "fd00:9::1")
    inside(process_container, "ip", "route", "add", "unreachable", "10.66.0.0/16")
    found = KIND.read(target.container, target.host, None)
    assert sorted(found) == ["::/0", "default"]
    assert found["default"].via == "10.9.0.1"


def test_who_made_a_route_is_kept_for_an_undo(target: Target[Route], process_container: throwaway.Container) -> None:
    inside(process_container, "ip", "route", "add", "default", "via", "10.9.0.1", "proto", "77")
    before = shown(process_container)
    found = live(target, route(via="10.9.0.1"))
    captured, _ = KIND.capture(target, found, None)
    assert captured is not None
    KIND.delete(target, captured)
    KIND.create(target, captured)
    assert shown(process_container) == before


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (route(via="172.30.0.1"), "ENETUNREACH.*\n.*no address in the container is in a network with 172.30.0.1"),
        (route(via="fd00:77::1"), "no address in the container is in a network with fd00:77::1"),
        (route(via="10.9.0.1", dev="eth7"), "ENODEV: container .* has no NIC eth7\n  it has eth1, eth2"),
        (route("10.20.0.0/16", src="10.1.1.1"), "no NIC of container .* has the address 10.1.1.1"),
        (route("10.20.0.0/16", dev="eth1", src="10.1.1.1"), "EINVAL.*\n.*is 10.1.1.1 an address of the container"),
    ],
)
def test_what_the_kernel_refuses_is_explained(target: Target[Route], wanted: Route, message: str) -> None:
    with pytest.raises(ScplanError) as caught:
        KIND.create(target, wanted)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_link_that_is_down_is_said(target: Target[Route], process_container: throwaway.Container) -> None:
    inside(process_container, "ip", "link", "set", "eth1", "down")
    with pytest.raises(KernelError, match=r"ENETDOWN|ENETUNREACH"):
        KIND.create(target, route("10.20.0.0/16", dev="eth1"))


def test_a_container_on_the_hosts_network_is_refused(host: Host) -> None:
    with Container("self", os.getpid(), 0, host) as container:
        target = Target[Route](container=container, host=host, peers={})
        wanted = route("10.254.0.0/16", via="192.0.2.77", table=4242)
        for act in (
            lambda: KIND.create(target, wanted),
            lambda: KIND.update(target, wanted, wanted),
            lambda: KIND.capture(target, wanted, None),
            lambda: KIND.read(container, host, {"x": wanted}),
        ):
            with pytest.raises(ScplanError, match="shares the host's network"):
                act()
        assert KIND.read(container, host, None) == {}
