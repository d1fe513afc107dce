"""Routes that change from one form to another: an apply leaves what a first one makes, whatever was before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.e2e.scene import Config, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("root", "veth")

NICS = [
    {"name": "eth1", "addresses": ["10.93.1.5/24", "fd93:1::5/64"]},
    {"name": "eth2", "addresses": ["10.93.2.5/24", "fd93:2::5/64"]},
]
FOUR: list[dict[str, Any]] = [
    {"dev": "eth1"},
    {"dev": "eth2"},
    {"via": "10.93.1.1"},
    {"via": "10.93.2.1", "dev": "eth2", "src": "10.93.1.5"},
    {"via": "10.93.7.1", "dev": "eth1", "onlink": True},
    {"src": "10.93.2.5"},
]
SIX: list[dict[str, Any]] = [
    {"dev": "eth1"},
    {"dev": "eth2", "src": "fd93:2::5"},
    {"via": "fd93:1::1"},
    {"via": "fd93:7::1", "dev": "eth2", "onlink": True},
    {"via": "fd93:2::1", "src": "fd93:2::5"},
]


@pytest.fixture
def web(make_container: MakeContainer) -> Container:
    return make_container("process")


def routing(web: Container, four: dict[str, Any], six: dict[str, Any]) -> Config:
    return of(web, nics=NICS, routes=[{"to": "10.94.0.0/16", **four}, {"to": "fd94::/64", **six}])


def routes(web: Container) -> list[Any]:
    """The routes to what these tests route to, as `ip` shows them."""
    found = web.ip("-4", "-d", "route", "show", "10.94.0.0/16") + web.ip("-6", "-d", "route", "show", "fd94::/64")
    # Whether the link is up and has a carrier shows in some of them.
    return [{key: value for key, value in one.items() if key not in ("flags", "pref")} for one in found]


def apply(scplan: Scplan, config: Config) -> None:
    scplan("apply", "--auto-approve", config=config).ok()
    drift = scplan("drift", "--json", config=config).ok().json
    assert (drift["drifted"], drift["pending"]) == ([], [])


def test_what_a_route_was_leaves_no_trace(scplan: Scplan, web: Container) -> None:
    """From every form to every other one, and from none at first."""
    forms = list(itertools.zip_longest(FOUR, SIX, fillvalue=SIX[0]))
    made = []
    for four, six in forms:
        apply(scplan, of(web, nics=NICS))
        apply(scplan, routing(web, four, six))
        made.append(routes(web))
    for before, after in itertools.pairwise(_there_and_back(range(len(forms)))):
        apply(scplan, routing(web, *forms[after]))
        assert routes(web) == made[after], (forms[before], forms[after])


def _there_and_back(places: Sequence[int]) -> Iterator[int]:
    """A walk that goes from each to each."""
    for number, place in enumerate(places):
        yield place
        for other in places[number + 1 :]:
            yield from (other, place)


@pytest.mark.parametrize(("four", "six"), [(FOUR[3], SIX[4]), (FOUR[4], SIX[3]), (FOUR[5], SIX[1])])
def test_an_undo_gives_the_former_hop_back(
    scplan: Scplan, web: Container, four: dict[str, Any], six: dict[str, Any]
) -> None:
    for other in ((FOUR[0], SIX[0]), (FOUR[2], SIX[2])):
        for before, after in (((four, six), other), (other, (four, six))):
            apply(scplan, routing(web, *before))
            live = fingerprint([web])
            apply(scplan, routing(web, *after))
            scplan("undo", "--auto-approve").ok()
            assert difference(live, fingerprint([web])) == []


def test_a_hop_that_others_set_is_drift(scplan: Scplan, web: Container) -> None:
    config = routing(web, FOUR[0], SIX[0])
    apply(scplan, config)
    before = routes(web)
    web.ip("route", "replace", "10.94.0.0/16", "via", "10.93.1.1")
    web.ip("-6", "route", "replace", "fd94::/64", "via", "fd93:1::1")
    said = scplan("drift", "--detailed-exitcode", config=config).ok(2).stdout
    assert "via none → 10.93.1.1" in said
    assert "via none → fd93:1::1" in said
    apply(scplan, config)
    assert routes(web) == before


@pytest.mark.parametrize("weights", [("1", "1"), ("3", "200")])
def test_several_hops_that_others_set_are_healed_and_given_back(
    scplan: Scplan, web: Container, weights: tuple[str, str]
) -> None:
    """What an undo can't make again would keep it, and all applies after it, from their end."""
    config = routing(web, FOUR[2], SIX[2])
    apply(scplan, config)
    before = routes(web)
    one, two = ("weight", weights[0]), ("weight", weights[1])
    four = ["nexthop", "via", "10.93.7.1", "dev", "eth1", *one, "onlink", "nexthop", "dev", "eth2", *two]
    six = ["nexthop", "via", "fd93:1::9", *one, "nexthop", "via", "fd93:2::1", "dev", "eth2", *two]
    web.ip("route", "replace", "10.94.0.0/16", *four)
    web.ip("-6", "route", "replace", "fd94::/64", *six)
    split = routes(web)
    assert [len(route["nexthops"]) for route in split] == [2, 2]
    said = scplan("drift", "--detailed-exitcode", config=config).ok(2).stdout
    assert f"via 10.93.1.1 → 10.93.7.1 dev eth1{_said(one)} onlink, dev eth2{_said(two)}" in said
    assert f"via fd93:1::1 → fd93:1::9 dev eth1{_said(one)}, fd93:2::1 dev eth2{_said(two)}" in said
    for other in (config, of(web, nics=NICS)):
        scplan("apply", "--auto-approve", config={**other, "probes": ["false"]}).ok(3)
        assert routes(web) == split
    apply(scplan, config)
    assert routes(web) == before
    web.ip("route", "replace", "10.94.0.0/16", *four)
    web.ip("-6", "route", "replace", "fd94::/64", *six)
    apply(scplan, of(web, nics=NICS))
    assert routes(web) == []


def _said(weight: tuple[str, str]) -> str:
    return f" {' '.join(weight)}" if weight[1] != "1" else ""


# what others make


def in_front(web: Container) -> None:
    web.ip("route", "prepend", "10.94.0.0/16", "via", "10.93.1.8")


def blackhole(web: Container) -> None:
    web.ip("route", "replace", "blackhole", "10.94.0.0/16")


def with_options(web: Container) -> None:
    web.ip("route", "change", "10.94.0.0/16", "via", "10.93.1.1", "mtu", "lock", "600", "initcwnd", "4")


def over_another_nic(web: Container) -> None:
    web.ip("route", "replace", "10.94.0.0/16", "via", "10.93.1.1", "dev", "eth2", "onlink")


def appended(web: Container) -> None:
    web.ip("-6", "route", "append", "fd94::/64", "via", "fd93:1::8")


def prohibit(web: Container) -> None:
    web.ip("-6", "route", "del", "fd94::/64")
    web.ip("-6", "route", "add", "prohibit", "fd94::/64", "metric", "1024")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (in_front, "via 10.93.1.1 → 10.93.1.8"),
        (blackhole, "via 10.93.1.1 → blackhole"),
        (with_options, "options none → mtu lock 600 initcwnd 4"),
        (over_another_nic, "over eth1 → eth2"),
        (appended, "via fd93:1::1 → fd93:1::1 dev eth1, fd93:1::8 dev eth1"),
        (prohibit, "via fd93:1::1 → prohibit"),
    ],
)
def test_what_others_change_is_drift_and_mended_and_put_back(
    scplan: Scplan, web: Container, change: Callable[[Container], None], said: str
) -> None:
    config = routing(web, FOUR[2], SIX[2])
    apply(scplan, config)
    wanted = routes(web)
    change(web)
    live = fingerprint([web])
    assert said in scplan("drift", "--detailed-exitcode", config=config).ok(2).stdout
    assert scplan("plan", "--json").ok().json["summary"]["update"] == 1
    scplan("apply", "--auto-approve", config={**config, "probes": ["false"]}).ok(3)
    assert difference(live, fingerprint([web])) == []
    apply(scplan, config)
    assert [one for one in routes(web) if one in wanted] == wanted
    assert web.ip("route", "get", "10.94.0.1")[0]["gateway"] == "10.93.1.1"


def test_an_adopted_route_keeps_what_it_had(scplan: Scplan, web: Container) -> None:
    apply(scplan, of(web, nics=NICS))
    options = ["mtu", "1300", "advmss", "1200", "proto", "77"]
    web.ip("route", "add", "10.94.0.0/16", "via", "10.93.1.1", *options)
    config = of(web, nics=NICS, routes=[{"to": "10.94.0.0/16", "via": "10.93.1.1"}])
    apply(scplan, config)
    before = fingerprint([web])
    changed = of(web, nics=NICS, routes=[{"to": "10.94.0.0/16", "via": "10.93.1.9"}])
    scplan("apply", "--auto-approve", config={**changed, "probes": ["false"]}).ok(3)
    assert difference(before, fingerprint([web])) == []
    apply(scplan, changed)
    assert web.ip("route", "show", "10.94.0.0/16")[0]["metrics"] == [{"mtu": 1300, "advmss": 1200}]
    scplan("undo", "--auto-approve").ok()
    assert difference(before, fingerprint([web])) == []


def test_the_route_of_a_router_gives_way_and_is_named(scplan: Scplan, web: Container) -> None:
    apply(scplan, of(web, nics=NICS))
    announced = ["default", "via", "fe80::1", "dev", "eth1", "proto", "ra", "metric", "1024", "expires", "1800"]
    web.ip("-6", "route", "add", *announced)
    before = fingerprint([web])
    config = of(web, nics=NICS, routes=[{"to": "::/0", "via": "fd93:1::1"}])
    (row,) = scplan("plan", "--json", config=config).ok().json["changes"]
    assert len(row["lost"]) == 1
    assert "default via fe80::1 dev eth1" in row["lost"][0]
    scplan("apply", "--auto-approve", config={**config, "probes": ["false"]}).ok(3)
    assert difference(before, fingerprint([web])) == []
    apply(scplan, config)
    assert [one["gateway"] for one in web.ip("-6", "route", "show", "default")] == ["fd93:1::1"]


def test_removed_is_scplans_alone(scplan: Scplan, web: Container) -> None:
    config = routing(web, FOUR[2], SIX[2])
    apply(scplan, config)
    in_front(web)
    appended(web)
    live = fingerprint([web])
    scplan("apply", "--auto-approve", config={**of(web, nics=NICS), "probes": ["false"]}).ok(3)
    assert difference(live, fingerprint([web])) == []
    apply(scplan, of(web, nics=NICS))
    assert [one["gateway"] for one in routes(web)] == ["10.93.1.8", "fd93:1::8"]


# the NIC that a route goes over


def test_a_route_follows_its_network_to_another_nic(scplan: Scplan, web: Container) -> None:
    def moved(one: list[str], two: list[str]) -> Config:
        nics = [{"name": "eth1", "addresses": one}, {"name": "eth2", "addresses": two}]
        return of(web, nics=nics, routes=[{"to": "default", "via": "10.93.1.1"}, {"to": "::/0", "via": "fd93:1::1"}])

    networks = ["10.93.1.5/24", "fd93:1::5/64"]
    apply(scplan, moved(networks, []))
    before = fingerprint([web])
    scplan("apply", "--auto-approve", config={**moved([], networks), "probes": ["false"]}).ok(3)
    assert difference(before, fingerprint([web])) == []
    apply(scplan, moved([], networks))
    shown = web.ip("-4", "route", "show", "default") + web.ip("-6", "route", "show", "default")
    assert [one["dev"] for one in shown] == ["eth2", "eth2"]
    scplan("undo", "--auto-approve").ok()
    assert difference(before, fingerprint([web])) == []


def test_what_an_address_takes_down_is_planned_and_no_more(scplan: Scplan, web: Container) -> None:
    config = routing(web, FOUR[2], SIX[2])
    apply(scplan, config)
    nics = [{"name": "eth1", "addresses": ["10.93.1.6/24", "fd93:1::5/64"]}, NICS[1]]
    assert planned(scplan("plan", "--json", config={**config, **of(web, nics=nics, routes=_routes(config))}).ok()) == {
        "nic/eth1": "update",
        "route/10.94.0.0/16": "replace",
    }
    apply(scplan, of(web, nics=nics, routes=_routes(config)))


def _routes(config: Config) -> Any:
    (container,) = config["containers"].values()
    return container["routes"]


# plans that can't work


@pytest.mark.parametrize(
    ("nics", "route", "said"),
    [
        ([], {"to": "default", "via": "10.93.1.1"}, "nothing reaches the gateway 10.93.1.1"),
        (NICS, {"to": "default", "via": "10.93.7.1"}, "nothing reaches the gateway 10.93.7.1"),
        (NICS, {"to": "::/0", "via": "fd93:7::1"}, "nothing reaches the gateway fd93:7::1"),
        (NICS, {"to": "default", "via": "10.93.1.1", "dev": "eth2"}, "nothing reaches the gateway 10.93.1.1 over eth2"),
        (NICS, {"to": "default", "dev": "eth9"}, "has no NIC eth9 for the route"),
        (NICS, {"to": "default", "via": "10.93.1.1", "src": "10.93.9.9"}, "has the address 10.93.9.9"),
        (NICS, {"to": "default", "src": "10.93.9.9"}, "has the address 10.93.9.9"),
        (NICS, {"to": "10.1.0.0/16", "dev": "eth0"}, "needs NIC eth0, which is down"),
        (NICS, {"to": "default", "via": "10.93.5.5"}, "via 10.93.5.5 is the container's own address, on eth0"),
    ],
)
def test_what_the_container_will_refuse_is_refused_by_the_plan(
    scplan: Scplan, web: Container, nics: list[Any], route: dict[str, Any], said: str
) -> None:
    """eth0 is another one's, with an address, and down."""
    web.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0p")
    web.ip("address", "add", "10.93.5.5/24", "dev", "eth0")
    refused(scplan("plan", config=of(web, nics=nics, routes=[route])), said, "scplan.yaml:")


def test_gateways_that_only_others_reach_are_taken(scplan: Scplan, web: Container) -> None:
    web.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0p")
    web.ip("link", "set", "eth0p", "up")
    web.ip("link", "set", "eth0", "up")
    web.ip("address", "add", "10.93.5.5/24", "dev", "eth0")
    web.ip("route", "add", "192.0.2.0/24", "dev", "eth0")
    wanted = [{"to": "default", "via": "10.93.5.1"}, {"to": "10.1.0.0/16", "via": "192.0.2.7"}]
    apply(scplan, of(web, routes=wanted))
    assert [one["dev"] for one in web.ip("route", "show", "proto", "static")] == ["eth0", "eth0"]


@pytest.mark.parametrize(("default", "gateway"), [("default", "192.0.2.1"), ("::/0", "2001:db8::1")])
def test_a_gateway_can_be_on_the_link_of_a_default_route(
    scplan: Scplan, web: Container, default: str, gateway: str
) -> None:
    """Written first, it is made last."""
    to = "fd94::/64" if ":" in gateway else "10.94.0.0/16"
    apply(scplan, of(web, nics=NICS, routes=[{"to": to, "via": gateway}, {"to": default, "dev": "eth2"}]))
    assert [one["dev"] for one in routes(web)] == ["eth2"]


@pytest.mark.parametrize(("default", "gateway"), [("default", "192.0.2.1"), ("::/0", "2001:db8::1")])
def test_a_gateway_on_the_link_of_another_table_takes_a_rule(
    scplan: Scplan, web: Container, default: str, gateway: str
) -> None:
    to = "fd94::/64" if ":" in gateway else "10.94.0.0/16"
    wanted = [{"to": to, "via": gateway}, {"to": default, "dev": "eth2", "table": 100}]
    asked = of(web, nics=NICS, routes=wanted)
    with nothing_changed(web):
        refused(scplan("plan", config=asked), f"nothing reaches the gateway {gateway}")
    web.ip("-6" if ":" in gateway else "-4", "rule", "add", "table", "100")
    apply(scplan, asked)
    assert [one["dev"] for one in routes(web)] == ["eth2"]


@pytest.mark.parametrize(
    "others",
    [
        ["address add 10.93.3.9/24 dev eth1 noprefixroute"],
        ["address add 10.93.3.9/24 dev eth1", "route del 10.93.3.0/24 dev eth1"],
    ],
)
@pytest.mark.parametrize("added", [[], ["10.93.3.5/24"]], ids=["without one of scplan's", "before one of scplan's"])
def test_a_network_of_others_without_its_route_reaches_no_gateway(
    scplan: Scplan, web: Container, others: list[str], added: list[str]
) -> None:
    """With a second address of a network the kernel makes no route either."""
    apply(scplan, of(web, nics=NICS))
    for command in others:
        web.ip(*command.split())
    nic = {**NICS[0], "addresses": [*NICS[0]["addresses"], *added]}
    asked = of(web, nics=[nic, NICS[1]], routes=[{"to": "10.94.0.0/16", "via": "10.93.3.1"}])
    with nothing_changed(web):
        refused(scplan("plan", config=asked), "nothing reaches the gateway 10.93.3.1")
    web.ip("route", "add", "10.93.3.0/24", "dev", "eth1")
    apply(scplan, asked)


def test_a_route_comes_back_over_a_nic_that_was_renamed(scplan: Scplan, web: Container) -> None:
    """The container's root renames a link at any time; its index stays."""
    config = routing(web, FOUR[2], SIX[2])
    apply(scplan, config)
    before = routes(web)
    probe = f"nsenter -t {web.pid} -n sh -c 'ip link set eth1 name gone; false'"
    scplan("apply", "--auto-approve", "--probe", probe, config=of(web, nics=NICS)).ok(3)
    web.ip("link", "set", "gone", "name", "eth1")
    assert routes(web) == before


@pytest.mark.parametrize("nics", [[], [{**NICS[1], "addresses": []}]], ids=["without the NIC", "without its addresses"])
@pytest.mark.parametrize(
    "others",
    [
        ["route add 10.95.0.0/16 via 192.0.2.1"],
        ["route add 10.95.0.0/16 nexthop via 192.0.2.1 weight 2 nexthop via 192.0.2.2"],
        ["-6 route add fd95::/64 via 2001:db8::1"],
        ["-6 route add fd95::/64 nexthop via 2001:db8::1 nexthop via 2001:db8::2"],
        ["route add 198.51.100.0/24 dev eth2", "route add 10.95.0.0/16 via 198.51.100.1", "route del 198.51.100.0/24"],
    ],
)
def test_routes_of_others_over_one_of_scplans_come_back(
    scplan: Scplan, web: Container, others: list[str], nics: list[dict[str, Any]]
) -> None:
    """Their gateways are reached by a route of scplan's, which comes after its NIC; or by nothing any more."""
    apply(scplan, of(web, nics=NICS, routes=[{"to": "default", "dev": "eth2"}, {"to": "::/0", "dev": "eth2"}]))
    for command in others:
        web.ip(*command.split())
    before = fingerprint([web])
    apply(scplan, of(web, nics=[NICS[0], *nics]))
    scplan("undo", "--auto-approve").ok()
    assert difference(before, fingerprint([web])) == []


def test_a_nic_that_goes_or_loses_the_network_under_a_route_is_refused(scplan: Scplan, web: Container) -> None:
    config = routing(web, FOUR[2], SIX[2])
    apply(scplan, config)
    left = [{"name": "eth1", "addresses": ["fd93:1::5/64"]}, NICS[1]]
    with nothing_changed(web):
        refused(scplan("plan", config=of(web, nics=NICS[1:], routes=_routes(config))), "no NIC eth1 for the route")
        refused(scplan("plan", config=of(web, nics=left, routes=_routes(config))), "nothing reaches the gateway")


def test_a_target_that_goes_takes_its_routes_with_it_in_the_plan(scplan: Scplan, web: Container) -> None:
    config = routing(web, FOUR[2], SIX[2])
    apply(scplan, config)
    target = f"{web.name}/nic/eth1"
    plan = scplan("plan", "--json", "--destroy", "--target", target, config=config).ok()
    assert planned(plan) == {"route/10.94.0.0/16": "delete", "route/fd94::/64": "delete", "nic/eth1": "delete"}
    kept = ["--exclude", f"{web.name}/route/fd94*"]
    refused(scplan("plan", "--destroy", "--target", target, *kept), "goes with", "is excluded")
