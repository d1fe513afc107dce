"""The pure side of NICs: what may be written, what collides, what is found out before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scplan.kinds.kind import Unsuitable
from scplan.kinds.nic import Nic, NicKind
from scplan.kinds.nic.record import derived_host_name
from scplan.linux.network.netlink import Addr, Route
from scplan.model.address import Address
from scplan.model.live import HostFacts, LinkFact
from scplan.model.values import INTERFACE_NAME

KIND = NicKind()
HERE = Address("web", "nic", "eth1")


def nic(**attributes: Any) -> Nic:
    return KIND.normalise(Nic(**{"name": "eth1", **attributes}))


def facts(*links: LinkFact, **more: Any) -> HostFacts:
    return HostFacts(links={link.name: link for link in links}, **more)


def link(name: str, kind: str = "") -> LinkFact:
    return LinkFact(name=name, kind=kind, mac="02:00:5e:10:00:01", mtu=1500)


def test_a_nic_is_a_veth_that_is_up_unless_it_says_otherwise() -> None:
    assert (nic().type, nic().up, nic(up=False).up, nic().device) == ("veth", True, False, None)
    physical = nic(type="physical", host_name="ens3")
    assert (physical.device, Nic.attribute("type").type.parse("eth")) == ("ens3", "physical")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "lo"}, "loopback"),
        ({"type": "physical"}, "needs host_name"),
        ({"type": "physical", "host_name": "ens3", "bridge": "br0"}, "bridge is for veth"),
        ({"allow_uplink": True}, "allow_uplink is for NICs of type physical"),
        ({"addresses": ("fd00::5/64",), "mtu": 1279}, "IPv6 needs an mtu of 1280"),
        ({"addresses": ("10.0.0.5/24", "10.0.0.5/16")}, "written twice"),
    ],
)
def test_contradictions_are_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nic(**attributes)


@pytest.mark.parametrize("value", ["67", "65536", "-1", "1.5", "abc"])
def test_an_mtu_out_of_range_is_refused(value: str) -> None:
    written = Nic.attribute("mtu").type
    assert written is not None
    with pytest.raises(ValueError, match=r"out of range|whole number"):
        written.parse(value)


def test_the_ninth_physical_nic_is_refused() -> None:
    nics = {f"eth{i}": nic(name=f"eth{i}", type="physical", host_name=f"ens{i}") for i in range(9)}
    assert [identity for identity, _ in KIND.check_all(nics)] == ["eth8"]
    del nics["eth0"]
    assert list(KIND.check_all(nics)) == []


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ({"host_name": "a"}, {"host_name": "a"}, True),
        ({"host_name": "a"}, {"type": "physical", "host_name": "a"}, True),
        ({}, {}, False),
        ({"mac": "02:00:5e:10:00:01"}, {"mac": "02:00:5e:10:00:01"}, True),
        ({"addresses": ("10.0.0.5/24",)}, {"addresses": ("10.0.0.5/16",)}, True),
        ({"addresses": ("10.0.0.5/24",), "bridge": "a"}, {"addresses": ("10.0.0.5/24",), "bridge": "b"}, False),
        ({"addresses": ("10.0.0.5/24",), "bridge": "a"}, {"addresses": ("10.0.0.5/24",)}, True),
        ({"addresses": ("fe80::5/64",)}, {"addresses": ("fe80::5/64",)}, False),
    ],
)
def test_what_only_one_nic_of_a_host_can_have(one: dict[str, Any], other: dict[str, Any], collide: bool) -> None:
    first = KIND.claims(Address("web", "nic", "eth1"), nic(**one))
    second = list(KIND.claims(Address("db", "nic", "eth1"), nic(**other)))
    assert any(mine.collides(theirs) for mine in first for theirs in second) == collide


def test_a_derived_host_name_can_be_read_where_that_is_unambiguous() -> None:
    assert derived_host_name("web", "eth1") == "web-eth1"
    assert derived_host_name("a-b", "c") == "a-b-c"
    assert derived_host_name("a", "b-c") != "a-b-c"
    assert derived_host_name("a/b", "eth1").startswith("veth")
    assert len(derived_host_name("f" * 64, "eth1")) == 15


NAMES = st.tuples(st.text("ab-/ é:", min_size=1, max_size=20), st.text("ab-é.", min_size=1, max_size=15))
"""Names of a container and of a NIC, which has no slash."""


@given(NAMES, NAMES)
def test_derived_host_names_are_valid_stable_and_do_not_collide(one: tuple[str, str], other: tuple[str, str]) -> None:
    name = derived_host_name(*one)
    assert INTERFACE_NAME.parse(name) == name == derived_host_name(*one)
    assert (name == derived_host_name(*other)) == (one == other)


def test_a_creation_gets_defaults() -> None:
    made = KIND.completed(HERE, nic(), facts())
    assert (made.host_name, made.mtu, made.txqueuelen, made.bridge) == ("web-eth1", 1500, 1000, "")
    chosen = KIND.completed(HERE, nic(mtu=1400, txqueuelen=0, host_name="x"), facts())
    assert (chosen.host_name, chosen.mtu, chosen.txqueuelen) == ("x", 1400, 0)


@pytest.mark.parametrize(
    ("attributes", "host", "message", "absent"),
    [
        ({}, facts(link("web-eth1")), "has a link web-eth1 already", False),
        ({"type": "physical", "host_name": "ens3"}, facts(), "no NIC ens3", True),
        (
            {"type": "physical", "host_name": "ens3"},
            facts(link("ens3"), uplinks=frozenset({"ens3"})),
            "cut the host off",
            False,
        ),
        ({"type": "physical", "host_name": "lo"}, facts(link("lo")), "loopback", False),
    ],
)
def test_what_cannot_be_made_is_found_out_by_the_plan(
    attributes: dict[str, Any], host: HostFacts, message: str, absent: bool
) -> None:
    with pytest.raises(Unsuitable, match=message) as caught:
        KIND.check_creation(HERE, nic(**attributes), host)
    assert caught.value.absent is absent


def test_the_uplink_may_be_taken_when_the_entry_says_so() -> None:
    wanted = nic(type="physical", host_name="ens3", allow_uplink=True)
    host = facts(link("ens3"), uplinks=frozenset({"ens3"}))
    KIND.check_creation(HERE, wanted, host)


def test_a_bridge_must_be_there_and_be_one() -> None:
    wanted = nic(bridge="br0")
    assert list(KIND.resolve(wanted, facts(link("br0", "bridge")))) == [wanted]
    assert list(KIND.resolve(wanted, facts(ovs_bridges=frozenset({"br0"})))) == [wanted]
    with pytest.raises(Unsuitable, match="no bridge br0") as caught:
        list(KIND.resolve(wanted, facts()))
    assert caught.value.absent
    with pytest.raises(Unsuitable, match="not a bridge") as caught:
        list(KIND.resolve(wanted, facts(link("br0", "veth"))))
    assert not caught.value.absent


@pytest.mark.parametrize(
    ("before", "after", "effect"),
    [
        ({"mtu": 1500}, {"mtu": 1400, "mac": "02:00:5e:10:00:01", "host_name": "y"}, ""),
        ({"bridge": "x"}, {"bridge": "y"}, "its connections are cut for a moment: it goes to another bridge"),
        ({"bridge": "x"}, {"bridge": ""}, "its connections are cut for a moment: it goes to another bridge"),
        ({"addresses": ("10.0.0.5/24",)}, {"addresses": ("10.0.0.5/24", "10.0.0.6/24")}, ""),
        ({"addresses": ("10.0.0.5/24",)}, {"addresses": ()}, "routes that use 10.0.0.5/24 are lost for a moment"),
        ({}, {"up": False}, "goes down, and its routes with it"),
        ({"up": False}, {}, ""),
    ],
)
def test_what_a_change_interrupts(before: dict[str, Any], after: dict[str, Any], effect: str) -> None:
    assert KIND.disruption(nic(**before), nic(**after))[1] == effect


def test_addresses_and_routes_as_text_come_back_the_same() -> None:
    for addr in (
        Addr(3, 2, "10.0.0.5/32", 0x80, 0, "10.0.0.6", ""),
        Addr(3, 2, "10.0.0.5/24", 0x80, 0, "", "10.0.0.255"),
        Addr(3, 10, "fd00::5/64", 0x80, 0, "", ""),
    ):
        assert Addr.from_text(addr.text(), 3) == addr
    for route in (
        Route(2, "default", gateway="10.0.0.1", oif=3, metric=5, table=70000, protocol=77, onlink=True),
        Route(10, "default", gateway="fd00::1", oif=3, prefsrc="fd00::5", metric=1024),
        Route(2, "10.1.0.0/16", gateway="fd00::1", oif=3),
    ):
        assert Route.from_text(route.text(), 3) == route


@pytest.mark.parametrize("text", ["", "x via", "10.0.0.0/8 dev eth0", "10.0.0.0/8 metric x"])
def test_a_record_that_holds_no_route_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each in the words of what went wrong
        Route.from_text(text, 3)
