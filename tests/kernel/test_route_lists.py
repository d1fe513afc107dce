"""Random lists of routes of one key, made by others around scplan's: each operation is right, and so is its undo."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from errno import EEXIST
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scplan.errors import KernelError
from scplan.kinds.kind import Target
from scplan.kinds.route import Route, RouteKind
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.comparison import differences, goal
from scplan.model.live import HostFacts
from tests.containers import container as throwaway

KIND = RouteKind()
TO = {4: "10.20.0.0/16", 6: "fd00:20::/64"}
LINKS = """
    ip link add eth1 type veth peer name eth2
    ip address add 10.9.0.5/24 dev eth1; ip address add 10.8.0.5/24 dev eth2
    ip link set eth1 up; ip link set eth2 up
    ip address add fd00:9::5/64 dev eth1 nodad; ip address add fd00:8::5/64 dev eth2 nodad
"""

pytestmark = pytest.mark.needs("root", "veth")


class Lab:
    def __init__(self, container: throwaway.Container, target: Target[Route]) -> None:
        self.container = container
        self.target = target

    def inside(self, *lines: str) -> None:
        command = ["nsenter", "--target", str(self.container.pid), "--net", "sh", "-ec", "\n".join(lines)]
        subprocess.run(command, check=True, capture_output=True)

    def shown(self, family: int) -> list[Any]:
        found: list[Any] = self.container.ip(f"-{family}", "-d", "route", "show", TO[family])
        return found

    def empty(self) -> None:
        rtnl = self.target.container.rtnl
        for raw in rtnl.raw_routes():
            if raw.route.dst in TO.values():
                rtnl.take_route(raw)
        assert [self.shown(family) for family in TO] == [[], []]

    def live(self, wanted: Route) -> Route | None:
        identity = KIND.identity(wanted)
        return KIND.read(self.target.container, self.target.host, {identity: wanted}).get(identity)

    def owning(self, record: Route | None) -> Target[Route]:
        return self.target._replace(peers={KIND.identity(record): record} if record is not None else {})


@pytest.fixture
def lab(process_container: throwaway.Container) -> Iterator[Lab]:
    container = process_container
    with Host() as host, Container(container.name, container.pid, 0, host) as opened:
        made = Lab(container, Target(container=opened, host=host, peers={}))
        made.inside(*LINKS.strip().splitlines())
        yield made


def completed(wanted: Route) -> Route:
    return KIND.completed(Address("web", "route", KIND.identity(wanted)), wanted, HostFacts())


OPTIONS = st.sampled_from(["", "mtu 1300", "mtu lock 1400 advmss 1200", "initcwnd 20 proto 77"])
IPV4 = st.one_of(
    st.builds("via {} {}".format, st.sampled_from(["10.9.0.1", "10.8.0.1", "10.9.0.7"]), OPTIONS),
    st.builds("dev {} {}".format, st.sampled_from(["eth1", "eth2"]), OPTIONS),
    st.just("nexthop via 10.9.0.1 weight 2 nexthop via 10.8.0.1"),
)
IPV6 = st.one_of(
    st.builds("via {} {}".format, st.sampled_from(["fd00:9::1", "fd00:8::1", "fd00:9::7"]), OPTIONS),
    st.builds("dev {} {}".format, st.sampled_from(["eth1", "eth2"]), OPTIONS),
    st.just("nexthop via fd00:9::1 weight 2 nexthop via fd00:8::1"),
    st.just("via fe80::7 dev eth2 proto ra expires 900"),
)
TYPES = st.sampled_from(["blackhole", "unreachable", "prohibit", "throw"])
OURS = {
    4: st.sampled_from([{"via": "10.9.0.1"}, {"via": "10.8.0.9"}, {"dev": "eth1"}, {"dev": "eth2", "src": "10.9.0.5"}]),
    6: st.sampled_from([{"via": "fd00:9::1"}, {"via": "fd00:8::9"}, {"dev": "eth1"}]),
}


class Draw(NamedTuple):
    """All that is drawn, before anything is looked at."""

    family: int
    ours: dict[str, str]
    is_owned: bool
    others: list[tuple[str, str]]
    changed: dict[str, str]
    is_removed: bool
    times: int


def of_family(family: int) -> st.SearchStrategy[Draw]:
    to = TO[family]
    typed = st.builds("{} {}".format, TYPES, st.just(to))
    way = st.builds("{} {}".format, st.just(to), IPV4 if family == 4 else IPV6)
    place = st.sampled_from(("append", "prepend") if family == 4 else ("append",))
    others = st.lists(st.tuples(place, st.one_of(way, way, way, typed)), max_size=3)
    if family == 6:
        # What lies between two next hops of one route is not listed by the kernel: it jumps to the last of them.
        gateways = way.filter(lambda words: "via" in words)
        others = st.one_of(
            st.lists(st.tuples(place, gateways), max_size=3),
            st.lists(st.tuples(place, st.one_of(way, typed)), max_size=1),
        )
    return st.builds(
        Draw,
        family=st.just(family),
        ours=OURS[family],
        is_owned=st.booleans(),
        others=others,
        changed=OURS[family],
        is_removed=st.booleans(),
        times=st.sampled_from((1, 2)),
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(draw=st.one_of(of_family(4), of_family(6)))
def test_operations_and_their_undo_among_routes_of_others(lab: Lab, draw: Draw) -> None:
    family, times = draw.family, draw.times
    lab.empty()
    wanted = KIND.normalise(Route(to=TO[family], **draw.ours))
    changed = KIND.normalise(Route(to=TO[family], **draw.changed))
    record = None
    if draw.is_owned:
        _, made = KIND.capture(lab.target, None, completed(wanted))
        assert made is not None
        KIND.create(lab.target, made)
        record = wanted.replace(over=made.over, options="")
    for place, words in draw.others:
        try_to(lab, f"ip -{family} route {place} {words}")
    before = lab.shown(family)
    live = lab.live(wanted)
    owned = lab.owning(record)
    act = "create" if live is None else "delete" if draw.is_removed else "update"
    print(f"{act} {wanted} → {changed}, owned: {record is not None}; {before}")
    if act == "create":
        _, after = KIND.capture(owned, None, completed(changed))
        assert after is not None
        if any(one["protocol"] != "ra" for one in before):
            with pytest.raises(KernelError, match="EEXIST"):
                KIND.create(owned, after)
            assert settled(lab.shown(family)) == settled(before)
            return
        for _ in range(times):
            KIND.create(owned, after)
        is_in_force(lab, after)
        for _ in range(times):
            KIND.delete(owned, after)
    elif act == "update":
        assert live is not None
        there, after = KIND.capture(owned, live, goal(changed, live, record))
        assert there is not None
        assert after is not None
        try:
            for _ in range(times):
                KIND.update(owned, there, after)
        except KernelError as error:
            # IPv6 would join it to one of others, behind it.
            is_joined = error.errno == EEXIST and family == 6 and len(before) > 1
            if not is_joined:
                raise
        else:
            is_in_force(lab, after)
        for _ in range(times):
            KIND.update(owned, after, there)
    else:
        assert live is not None
        there, _ = KIND.capture(owned, live, None)
        assert there is not None
        for _ in range(times if record is not None else 1):
            KIND.delete(owned, there)
        for _ in range(times):
            KIND.create(owned, there)
    assert settled(lab.shown(family)) == settled(before)


def is_in_force(lab: Lab, after: Route) -> None:
    live = lab.live(after)
    assert live is not None
    assert differences(after, live) == ()


def settled(routes: list[Any]) -> list[Any]:
    return [{key: bool(value) if key == "expires" else value for key, value in one.items()} for one in routes]


def try_to(lab: Lab, line: str) -> None:
    """IPv6 refuses a route that is there, and joins others in ways that differ."""
    lab.inside(f"{line} || true")
