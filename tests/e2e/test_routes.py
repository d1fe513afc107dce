"""Routes that change from one form to another: an apply leaves what a first one makes, whatever was before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.e2e.scene import Config, of

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
