"""Links with all that others gave them: removed or changed, then undone; looked at with `ip`, `tc` and `bridge`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from scplan.kinds.kind import Target
from scplan.kinds.nic import Nic, NicKind
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.network.kept import Kept
from tests.containers import container as throwaway
from tests.containers import host_parts
from tests.containers.session import Session

KIND = NicKind()

pytestmark = pytest.mark.needs("root", "veth", "bridge")

SETTINGS = (
    "ipv4/conf/{}/rp_filter",
    "ipv4/conf/{}/proxy_arp",
    "ipv6/conf/{}/accept_ra",
    "ipv4/neigh/{}/delay_first_probe_time",
)


@pytest.fixture
def target(process_container: throwaway.Container) -> Iterator[Target[Nic]]:
    with Host() as host, Container(process_container.name, process_container.pid, 0, host) as container:
        yield Target(container=container, host=host, peers={})


@pytest.fixture
def host_name(session: Session) -> Iterator[str]:
    name = session.name()
    yield name
    subprocess.run(["ip", "link", "delete", name], capture_output=True)


@pytest.fixture
def other_bridge(session: Session) -> Iterator[str]:
    with host_parts.bridge(session) as name:
        yield name


LINK_WORDS = "mtu [0-9]+|qlen [0-9]+|UP|PROMISC|alias .*"
OF_THE_KERNEL = r"table local\|^multicast\|^fe80::/64\|^anycast"


def run(script: str, *enter: str) -> str:
    ended = subprocess.run([*enter, "sh", "-ec", script], capture_output=True, text=True)
    assert ended.returncode == 0, f"{script}: {ended.stderr}"
    return ended.stdout


def inside(target: Target[Nic], script: str) -> str:
    return run(script, "nsenter", "--target", str(target.container.pid), "--net")


def in_container(target: Target[Nic]) -> dict[str, str]:
    """All that is to come back in the container, as other programs show it."""
    shown = {
        "link": f"ip -d link show eth1 | grep -oE '{LINK_WORDS}|ALLMULTI|NOARP|gso_max_size [0-9]+'",
        "addresses": "ip -d address show eth1 | grep inet | grep -v 'fe80::[0-9a-f]*:' | sed 's/tentative//'",
        "lifetimes": "ip address show eth1 | grep -c 'valid_lft [0-9]'",
        "routes": "ip -d route show table all | grep eth1 | grep -v 'table local'",
        "routes6": f"ip -6 -d route show table all | grep eth1 | grep -v '{OF_THE_KERNEL}'",
        "neighbours": "ip neighbour show nud permanent; ip neighbour show proxy",
        "tc": "tc qdisc show dev eth1; tc class show dev eth1",
        "settings": "; ".join(f"cat /proc/sys/net/{path.format('eth1')}" for path in SETTINGS),
        "nexthops": "ip nexthop show",
    }
    return {name: inside(target, f"{command} || true") for name, command in shown.items()}


def on_host(name: str) -> dict[str, str]:
    """The same of the host end."""
    shown = {
        "link": f"ip -d link show {name} | grep -oE '{LINK_WORDS}|altname .*|master [^ ]*'",
        "port": f"bridge -d link show dev {name} | grep -oE '(hairpin|guard|isolated|learning|cost) [^ ]+'",
        "fdb": f"bridge fdb show dev {name} | grep static",
        "addresses": f"ip -d address show {name} | grep 'inet '",
        "routes": f"ip -d route show | grep {name} | sed 's/linkdown//'",
        "settings": f"cat /proc/sys/net/ipv4/conf/{name}/rp_filter",
    }
    return {key: run(f"{command} || true") for key, command in shown.items()}


OF_OTHERS = """
ip link set eth1 alias theirs promisc on txqueuelen 321
ip link set eth1 gso_max_size 32000
ip address add 10.9.0.77/24 dev eth1 label eth1:vip
ip address add 10.9.0.78/24 dev eth1 valid_lft 5000 preferred_lft 4000
ip address add 10.9.5.1 peer 10.9.5.2/32 dev eth1 metric 9
ip address add 10.9.6.1/24 dev eth1 noprefixroute scope link
ip address add fe80::9/64 dev eth1 nodad
ip address add fd00:9::9/64 dev eth1 nodad valid_lft 5000 preferred_lft 4000
ip route add 10.20.0.0/16 via 10.9.0.1 mtu 1300 advmss 1200
ip route add 10.21.0.0/16 nexthop via 10.9.0.1 weight 2 nexthop via 10.9.5.2
ip route add 10.22.0.0/16 via 10.9.0.1 metric 5 table 77 src 10.9.0.77
ip -6 route add fd00:20::/64 via fe80::5 dev eth1 pref high
ip -6 route add fd00:21::/64 nexthop via fd00:9::1 nexthop via fd00:9::2
ip nexthop add id 7 via 10.9.0.1 dev eth1
ip route add 10.23.0.0/16 nhid 7
ip neighbour add 10.9.0.1 lladdr 02:00:00:00:00:01 dev eth1 nud permanent
ip neighbour add proxy 10.9.0.3 dev eth1
tc qdisc add dev eth1 root handle 1: htb default 10
tc class add dev eth1 parent 1: classid 1:10 htb rate 1mbit
tc qdisc add dev eth1 clsact
echo 2 > /proc/sys/net/ipv4/conf/eth1/rp_filter
echo 1 > /proc/sys/net/ipv4/conf/eth1/proxy_arp
echo 0 > /proc/sys/net/ipv6/conf/eth1/accept_ra
echo 9 > /proc/sys/net/ipv4/neigh/eth1/delay_first_probe_time
"""


def made(target: Target[Nic], host_name: str, **attributes: Any) -> Nic:
    wanted = Nic(name="eth1", host_name=host_name, addresses=("10.9.0.5/24", "fd00:9::5/64"), mtu=1500, txqueuelen=1000)
    wanted = KIND.normalise(wanted).replace(bridge="", **attributes)
    KIND.create(target, wanted)
    inside(target, OF_OTHERS)
    target.host.forget()
    found = KIND.read(target.container, target.host, {"eth1": wanted})
    return found["eth1"]


def test_a_removed_veth_comes_back_with_all_that_others_gave_it(target: Target[Nic], host_name: str) -> None:
    before = made(target, host_name)
    run(
        f"ip link set {host_name} alias uplink mtu 1700 txqueuelen 77"
        f"\nip link property add dev {host_name} altname {host_name}alt"
    )
    run(f"ip address add 10.9.0.1/24 dev {host_name}; ip route add 10.30.0.0/16 via 10.9.0.5 dev {host_name}")
    run(f"echo 2 > /proc/sys/net/ipv4/conf/{host_name}/rp_filter")
    there, outside = in_container(target), on_host(host_name)
    carried, _ = KIND.capture(target, before, None)
    assert carried is not None
    KIND.delete(target, carried)
    KIND.create(target, carried)
    assert in_container(target) == there
    assert on_host(host_name) == outside
    KIND.create(target, carried)
    assert in_container(target) == there


def test_a_nic_that_was_down_comes_back_with_all_that_others_gave_it(target: Target[Nic], host_name: str) -> None:
    before = made(target, host_name)
    there = in_container(target)
    carried, down = KIND.capture(target, before, before.replace(up=False))
    assert carried is not None
    assert down is not None
    KIND.update(target, carried, down)
    assert in_container(target) != there
    KIND.update(target, down, carried)
    assert in_container(target) == there


def test_addresses_of_others_stay_as_they_are_when_a_primary_one_goes(target: Target[Nic], host_name: str) -> None:
    before = made(target, host_name)
    there = in_container(target)
    left = tuple(address for address in before.addresses or () if address != "10.9.0.5/24")
    _, after = KIND.capture(target, before, before.replace(addresses=left))
    assert after is not None
    KIND.update(target, before, after)
    now = in_container(target)
    theirs = [line.split() for line in there["addresses"].splitlines() if "10.9.0.5/" not in line]
    kept = [[word for word in line.split() if word != "secondary"] for line in now["addresses"].splitlines()]
    assert sorted(kept) == sorted([word for word in words if word != "secondary"] for words in theirs)
    assert now["routes"].count("10.2") == there["routes"].count("10.2")


def test_a_port_comes_back_to_its_bridge_with_all_that_others_gave_it(
    target: Target[Nic], bridge: str, other_bridge: str, host_name: str
) -> None:
    before = made(target, host_name).replace(bridge=bridge)
    KIND.update(target, before, before)
    run(f"bridge link set dev {host_name} isolated on hairpin on guard on learning off cost 7")
    run(f"bridge fdb add 02:00:00:00:00:09 dev {host_name} master static")
    outside = on_host(host_name)
    carried, after = KIND.capture(target, before, before.replace(bridge=other_bridge))
    assert carried is not None
    assert after is not None
    KIND.update(target, carried, after)
    assert on_host(host_name) != outside
    KIND.update(target, after, carried)
    assert on_host(host_name) == outside


def test_a_kept_link_is_the_same_after_it_was_written(target: Target[Nic], host_name: str) -> None:
    carried, _ = KIND.capture(target, made(target, host_name), None)
    assert carried is not None
    texts = carried.carried_link
    assert texts is not None
    assert {text.partition(" ")[0] for text in texts} >= {"link", "address", "route", "neighbour", "qdisc", "setting"}
    assert Kept.from_texts(texts).texts() == texts
    assert Kept.from_texts((*texts, "of-a-later-version 00")).texts() == texts


@pytest.mark.parametrize("texts", [(), ("link ",), ("link zz",), ("link 00", "route 7:eth1 02")])
def test_a_damaged_kept_link_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"link|hexadecimal"):
        Kept.from_texts(texts)
