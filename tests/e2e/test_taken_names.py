"""A container's root renames a NIC, and gives its name to a link of its own: the pair goes, and the link stays."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.session import Session
from tests.e2e.scene import of

pytestmark = pytest.mark.needs("root", "busybox")

ASIDE = "ip link set eth1 down; ip link set eth1 name aside; ip link set aside up"
THINGS = {
    "nothing": ASIDE,
    "veth": f"{ASIDE}; ip link add eth1 type veth peer name bar",
    "tap": f"{ASIDE}; ip tuntap add eth1 mode tap",
    "ifb": f"{ASIDE}; ip link add eth1 type ifb",
    "veth, NIC deleted": "ip link del eth1; ip link add eth1 type veth peer name bar",
}


def inside(container: Container, script: str) -> None:
    """What the container's root does to its network."""
    subprocess.run(["nsenter", "--target", str(container.pid), "--net", "sh", "-ec", script], check=True)


def links(container: Container) -> set[str]:
    return {link["ifname"] for link in container.ip("link")}


def links_of_host() -> set[str]:
    listed = subprocess.run(["ls", "/sys/class/net"], check=True, capture_output=True, text=True).stdout
    return set(listed.split())


@dataclass
class Taken:
    container: Container
    sections: dict[str, Any]
    host: set[str]
    own: set[str]
    """The host's links, and the container's, without scplan's."""


@pytest.fixture(params=THINGS)
def taken(
    request: pytest.FixtureRequest, scplan: Scplan, make_container: MakeContainer, session: Session, bridge: str
) -> Taken:
    container = make_container("process", userns=True)
    host = links_of_host()
    nic = {"name": "eth1", "host_name": session.name(), "bridge": bridge, "addresses": ["10.77.0.5/24"]}
    sections = {"nics": [nic], "routes": [{"to": "default", "via": "10.77.0.1"}]}
    scplan("apply", "--auto-approve", config=of(container, **sections)).ok()
    inside(container, THINGS[request.param])
    return Taken(container, sections, host, links(container) - {"aside"})


def is_all_gone(taken: Taken, scplan: Scplan) -> None:
    scplan("destroy", taken.container.name, "--auto-approve").ok()
    assert links_of_host() == taken.host
    assert links(taken.container) == taken.own
    assert scplan("state", "list", "--json").json["resources"] == []


def test_destroy_takes_the_pair_and_leaves_what_has_its_name(taken: Taken, scplan: Scplan) -> None:
    is_all_gone(taken, scplan)


def test_failure_after_the_removal_brings_it_back(taken: Taken, scplan: Scplan) -> None:
    before = fingerprint([taken.container])
    ran = scplan("apply", "--auto-approve", "--probe", "false", config=of(taken.container)).ok(3)
    assert "not undone" not in ran.stderr
    changed = difference(before, fingerprint([taken.container]))
    assert [one for one in changed if "aside" not in one and "link-netnsid" not in one] == []
    assert links(taken.container) == taken.own | {"aside"} & links(taken.container)
    is_all_gone(taken, scplan)


def test_what_can_not_be_made_anew_leaves_all_as_it_was(taken: Taken, scplan: Scplan) -> None:
    before = fingerprint([taken.container])
    ran = scplan("apply", "--auto-approve", config=of(taken.container, **taken.sections))
    assert ran.code in (1, 2, 3)
    assert "not undone" not in ran.stderr
    assert difference(before, fingerprint([taken.container])) == []
    is_all_gone(taken, scplan)


@pytest.mark.parametrize("mac", ["its own", "the same"])
def test_lent_nic_comes_home_and_not_a_link_with_its_name(
    scplan: Scplan, make_container: MakeContainer, veth_pair: host_parts.Nic, mac: str
) -> None:
    container = make_container("process", userns=True)
    before = fingerprint([container])
    nic = {"name": "eth1", "type": "physical", "host_name": veth_pair.name}
    scplan("apply", "--auto-approve", config=of(container, nics=[nic])).ok()
    (lent,) = (link for link in container.ip("link") if link["ifname"] == "eth1")
    address = f"address {lent['address']}" if mac == "the same" else ""
    inside(container, f"{ASIDE}; ip link add eth1 {address} type veth peer name bar")
    ran = scplan("apply", "--auto-approve", "--probe", "false", config=of(container)).ok(3)
    assert "not undone" not in ran.stderr
    assert links(container) == {"lo", "aside", "eth1", "bar"}
    scplan("destroy", container.name, "--auto-approve").ok()
    assert links(container) == {"lo", "eth1", "bar"}
    inside(container, "ip link del eth1")
    assert difference(before, fingerprint([container])) == []


def test_a_bridge_that_follows_its_ports_is_named(
    process_container: Container, scplan: Scplan, session: Session
) -> None:
    """Whoever set the MTU of the host end set that of the bridge, too: the kernel keeps both alike."""
    with host_parts.bridge(session) as bridge:
        host_end = session.name()
        nic = {"name": "eth1", "bridge": bridge, "host_name": host_end}
        scplan("apply", "--auto-approve", config=of(process_container, nics=[nic])).ok()
        subprocess.run(["ip", "link", "set", host_end, "mtu", "9000"], check=True)
        before = fingerprint([process_container])
        ran = scplan("plan", "--destroy").ok()
        assert f"also goes: the MTU 9000 of {bridge}, 1500 without this port" in " ".join(ran.stdout.split())
        scplan("apply", "--auto-approve", "--probe", "false", config=of(process_container)).ok(3)
        assert difference(before, fingerprint([process_container])) == []
        # An update that sets the MTU of the host end sets that of the bridge.
        nic |= {"mtu": 1500}
        ran = scplan("plan", config=of(process_container, nics=[nic])).ok()
        assert f"also goes: the MTU 9000 of {bridge}, 1500 with 1500 on this port" in " ".join(ran.stdout.split())
        scplan("apply", "--auto-approve", config=of(process_container, nics=[nic])).ok()
        shown = subprocess.run(["ip", "link", "show", bridge], check=True, capture_output=True, text=True)
        assert " mtu 1500 " in shown.stdout
        scplan("destroy", process_container.name, "--auto-approve").ok()
