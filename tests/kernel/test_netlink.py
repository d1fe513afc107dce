"""rtnetlink against real namespaces, with pyroute2 as an independent witness."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from scplan.errors import KernelError
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.network.netlink import RTN_UNICAST, RTPROT_KERNEL, LinkTable, Route, Rtnl, SharedDump, open_socket
from scplan.linux.processes.namespaces import Child, socket_in
from scplan.startup.ip_text import ip_text
from tests.containers import container as throwaway

pytestmark = pytest.mark.needs("root", "veth", "bridge")


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


@pytest.fixture
def container(process_container: throwaway.Container, host: Host) -> Iterator[Container]:
    with Container(process_container.name, process_container.pid, 0, host) as opened:
        yield opened


@pytest.fixture
def rtnl(container: Container) -> Rtnl:
    return container.rtnl


@pytest.fixture
def witness(container: Container, host: Host) -> Iterator[Any]:
    """pyroute2 in the same namespace."""
    from pyroute2 import IPRoute

    opened = socket_in(
        container.netns_fd, host.netns_fd, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
    )
    with IPRoute(fileno=opened.detach()) as route:
        yield route


def inside(container: Container, *command: str) -> None:
    subprocess.run(["nsenter", "--target", str(container.pid), "--net", *command], check=True, capture_output=True)


def populate(container: Container) -> None:
    script = """
        ip link add eth1 mtu 1400 txqueuelen 77 address 02:00:5e:10:00:01 type veth peer name eth2
        ip link add br7 type bridge; ip link set eth2 master br7 group 9
        ip link set lo up; ip link set eth1 up; ip link set eth2 up
        ip address add 10.9.0.5/24 broadcast 10.9.0.255 dev eth1; ip address add 10.9.0.6/24 dev eth1
        ip address add 10.7.0.1 peer 10.7.0.2 dev eth1
        ip address add fd00:9::5/64 dev eth1 nodad; ip address add ::ffff:1.2.3.4/128 dev eth1 nodad
        ip route add default via 10.9.0.1 metric 5; ip route add 10.20.0.0/16 dev eth1 src 10.9.0.6 table 4242
        ip -6 route add default via fd00:9::1; ip route add unreachable 10.66.0.0/16
        ip route add 192.0.2.0/24 via 203.0.113.1 dev eth1 onlink
        ip route add 198.51.100.0/24 nexthop via 10.9.0.1 weight 3 nexthop via 10.9.0.2
        ip route add 198.18.0.0/15 via inet6 fd00:9::1
    """
    inside(container, "sh", "-ec", script)


def as_records_hold(address: str | None) -> str:
    """Configurations and records hold addresses in this form, which differs from the C library's for mapped ones."""
    return ip_text(ipaddress.ip_address(address).packed) if address else ""


def test_links_are_as_pyroute2_sees_them(container: Container, rtnl: Rtnl, witness: Any) -> None:
    populate(container)
    links = rtnl.links()
    assert [link.name for link in links] == [one.get("IFLA_IFNAME") for one in witness.get_links()]
    for link, one in zip(links, witness.get_links(), strict=True):
        info = one.get("IFLA_LINKINFO")
        assert link.index == one["index"]
        assert link.kind == (info.get("IFLA_INFO_KIND") if info else "")
        assert link.mac == one.get("IFLA_ADDRESS")
        assert (link.mtu, link.txqueuelen) == (one.get("IFLA_MTU"), one.get("IFLA_TXQLEN"))
        assert link.master == (one.get("IFLA_MASTER") or 0)
        assert link.peer_index == (one.get("IFLA_LINK") or 0)
        assert link.group == one.get("IFLA_GROUP")
        assert link.up == bool(one["flags"] & 1)
        assert rtnl.link(link.name) == link
        assert rtnl.link(link.index) == link
        assert rtnl.link_name(link.index) == link.name
    assert rtnl.link("absent") is None
    assert rtnl.link(9999) is None
    assert rtnl.link_name(9999) == ""


def test_addresses_are_as_pyroute2_sees_them(container: Container, rtnl: Rtnl, witness: Any) -> None:
    populate(container)
    seen = {
        (
            one["index"],
            f"{as_records_hold(one.get('IFA_LOCAL') or one.get('IFA_ADDRESS'))}/{one['prefixlen']}",
            one["scope"],
        )
        for one in witness.get_addr()
    }
    assert {(addr.index, addr.address, addr.scope) for addr in rtnl.addresses()} == seen
    (peer,) = [addr for addr in rtnl.addresses() if addr.peer]
    assert (peer.address, peer.peer) == ("10.7.0.1/32", "10.7.0.2")
    assert [addr.broadcast for addr in rtnl.addresses() if addr.address == "10.9.0.5/24"] == ["10.9.0.255"]


def test_routes_are_as_pyroute2_sees_them(container: Container, rtnl: Rtnl, witness: Any) -> None:
    populate(container)

    def key(one: Any) -> tuple[Any, ...]:
        dst = as_records_hold(one.get("RTA_DST"))
        table = one.get("RTA_TABLE") or one["table"]
        whole = f"{dst}/{one['dst_len']}" if dst or one["dst_len"] else "default"
        return (one["family"], whole, one.get("RTA_GATEWAY") or "", one.get("RTA_OIF") or 0, table, one["type"])

    families = (socket.AF_INET, socket.AF_INET6)
    routes, before = rtnl.routes(), None
    while routes != before:  # the kernel adds its own ones a while after a link comes up
        before = routes
        seen = sorted(key(one) for family in families for one in witness.get_routes(family=family))
        routes = rtnl.routes()
    simple = [route for route in routes if ":" not in route.gateway or route.family == socket.AF_INET6]
    found = sorted((r.family, r.dst, r.gateway, r.oif, r.table, r.type) for r in simple)
    assert found == sorted(one for one in seen if one[1] != "198.18.0.0/15")
    by_dst = {route.dst: route for route in routes if route.family == socket.AF_INET and route.type == RTN_UNICAST}
    assert by_dst["192.0.2.0/24"].onlink
    assert [(hop.gateway, hop.weight) for hop in by_dst["198.51.100.0/24"].nexthops] == [
        ("10.9.0.1", 3),
        ("10.9.0.2", 1),
    ]
    assert len(by_dst["198.51.100.0/24"].oifs) == 2
    assert by_dst["198.18.0.0/15"].gateway == "fd00:9::1"
    assert by_dst["10.20.0.0/16"].table == 4242
    assert rtnl.routes(type=RTN_UNICAST) == [route for route in routes if route.type == RTN_UNICAST]
    assert rtnl.routes(family=socket.AF_INET6) == [r for r in routes if r.family == socket.AF_INET6]
    assert rtnl.routes(protocol=4) == []


def test_routes_as_text_come_back_the_same(container: Container, rtnl: Rtnl) -> None:
    populate(container)
    for route in rtnl.routes(type=RTN_UNICAST):
        if route.nexthops or route.protocol == RTPROT_KERNEL:
            continue
        assert Route.from_text(route.text(), route.oif) == route
        rtnl.delete_route(route)
        assert route not in rtnl.routes()
        rtnl.add_route(route)
        assert route in rtnl.routes()


def test_a_veth_pair_is_made_in_one_message(container: Container, host: Host, rtnl: Rtnl, bridge: str) -> None:
    name = f"{bridge[:13]}-v"
    master = host.rtnl.link(bridge)
    assert master is not None
    made = {"mtu": 1400, "txqueuelen": 55, "peer_netns_fd": container.netns_fd}
    host.rtnl.create_veth(name, peer_name="eth1", peer_mac="02:00:5e:10:00:01", master=master.index, **made)
    outer, inner = host.rtnl.link(name), rtnl.link("eth1")
    assert outer is not None
    assert inner is not None
    assert (outer.up, outer.mtu, outer.txqueuelen, outer.master) == (True, 1400, 55, master.index)
    assert (inner.up, inner.mtu, inner.txqueuelen, inner.mac) == (False, 1400, 55, "02:00:5e:10:00:01")
    assert (inner.peer_index, inner.peer_nsid) == (outer.index, rtnl.nsid(host.netns_fd))
    with pytest.raises(KernelError, match=rf"RTM_NEWLINK\({name}, veth with peer eth1, mtu 1400\): EEXIST"):
        host.rtnl.create_veth(name, peer_name="eth1", **made)
    host.rtnl.delete_link(outer.index)
    host.rtnl.delete_link(outer.index)
    assert rtnl.link("eth1") is None


def test_a_namespace_that_was_never_met_has_no_id(rtnl: Rtnl, host: Host) -> None:
    own = subprocess.Popen(["unshare", "--net", "sleep", "100"])
    try:
        deadline = time.monotonic() + 5
        while os.stat(f"/proc/{own.pid}/ns/net").st_ino == host.namespace_id("net"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        fd = os.open(f"/proc/{own.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert rtnl.nsid(fd) == -1
        finally:
            os.close(fd)
    finally:
        own.kill()
        own.wait()


def test_errors_of_a_batch_name_their_messages(container: Container, rtnl: Rtnl) -> None:
    populate(container)
    link = rtnl.link("eth1")
    assert link is not None
    batch = rtnl.batch()
    batch.add_address(link.index, "10.30.0.1/24")
    batch.set_link(link.index, label="eth1", mtu=9999999)
    batch.add_address(link.index, "10.30.0.2/24")
    batch.add_route(Route(socket.AF_INET, "10.40.0.0/16", gateway="172.31.0.1"))
    with pytest.raises(KernelError) as caught:
        batch.send()
    assert caught.value.errno == errno.EINVAL
    assert [str(diagnostic) for diagnostic in caught.value.diagnostics] == [
        "RTM_NEWLINK(eth1, mtu 9999999): EINVAL: mtu greater than device maximum",
        "RTM_NEWROUTE(10.40.0.0/16 via 172.31.0.1 metric 0 table 254 proto 4 scope 0): "
        "ENETUNREACH: Nexthop has invalid gateway",
    ]
    assert {"10.30.0.1/24", "10.30.0.2/24"} <= {addr.address for addr in rtnl.addresses()}
    batch.send()


def test_a_long_batch_loses_no_answer(container: Container, rtnl: Rtnl) -> None:
    populate(container)
    link = rtnl.link("eth1")
    assert link is not None
    batch = rtnl.batch()
    for number in range(1000):
        batch.add_address(link.index, f"10.{50 + number // 250}.{number % 250}.1/24")
    batch.send()
    assert sum(addr.index == link.index for addr in rtnl.addresses()) > 1000


def test_long_dumps_are_read_to_their_end(container: Container, rtnl: Rtnl) -> None:
    populate(container)
    link = rtnl.link("eth1")
    assert link is not None
    batch = rtnl.batch()
    for number in range(3000):
        batch.add_route(
            Route(socket.AF_INET, f"10.{100 + number // 250}.{number % 250}.0/24", oif=link.index, scope=253)
        )
    batch.send()
    assert len(rtnl.routes(protocol=4)) == 3000


def test_messages_of_other_processes_are_ignored(container: Container, host: Host, rtnl: Rtnl) -> None:
    """The root of a container may send to any socket in its namespace, and could forge answers."""
    rtnl.links()
    port = rtnl._socket.getsockname()[0]
    forger = socket_in(container.netns_fd, host.netns_fd, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    with forger:
        for sequence in range(1, 50):
            forger.sendto(b"\x14\0\0\0\x03\0\0\0" + sequence.to_bytes(4, "little") + bytes(8), (port, 0))
        assert next(link.name for link in rtnl.links()) == "lo"


def test_no_answer_ends_in_an_error_and_not_in_a_wait() -> None:
    with Rtnl(open_socket()) as rtnl:
        rtnl._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, (0).to_bytes(8, "little") + (50000).to_bytes(8, "little")
        )
        with pytest.raises(KernelError, match="ETIMEDOUT: no answer within"):
            rtnl._receive("RTM_GETLINK(dump)")


def test_the_socket_stays_where_it_was_opened_and_is_not_inherited(
    container: Container, host: Host, rtnl: Rtnl
) -> None:
    inside(container, "ip", "link", "add", "only-inside", "type", "bridge")
    assert rtnl.link("only-inside") is not None
    assert host.rtnl.link("only-inside") is None
    assert not os.get_inheritable(rtnl._socket.fileno())


def test_link_names_that_are_no_text_are_escaped(container: Container, rtnl: Rtnl) -> None:
    inside(container, "sh", "-c", "ip link add $(printf 'a\\377b') type bridge")
    assert "a\\xffb" in {link.name for link in rtnl.links()}


def test_a_table_of_links_reads_no_more_than_is_asked_for(
    container: Container, rtnl: Rtnl, monkeypatch: pytest.MonkeyPatch
) -> None:
    populate(container)
    expected = {link.index: link for link in rtnl.links()}
    dumps = []
    dump = Rtnl.link_messages
    monkeypatch.setattr(Rtnl, "link_messages", lambda self: dumps.append(self) or dump(self))
    table = LinkTable(rtnl)
    assert table.get(1) == expected[1]
    assert table.get(1) is table.get(1)
    assert table.get(9999) is None
    assert table.by_name["lo"] == expected[1]
    assert all(name not in table.by_name for name in ("", "none", "a-name-too-long-for-a-link", "\udc80"))
    assert not dumps
    for index in (*expected, *range(100, 150)):
        assert table.get(index) == expected.get(index)
    assert len(dumps) == 1
    assert dict(table) == expected
    assert dict(table.by_name) == {link.name: link for link in expected.values()}
    assert "none" not in table.by_name
    assert len(table) == len(table.by_name) == len(expected)
    assert len(dumps) == 1


def test_processes_share_one_dump_of_links(container: Container, rtnl: Rtnl) -> None:
    populate(container)
    expected = {link.index: link for link in rtnl.links()}
    with SharedDump() as dump:
        assert Child(lambda: dict(LinkTable(rtnl, dump)), what="dump").result() == expected
        inside(container, "ip", "link", "add", "late0", "type", "bridge")
        # What the child has dumped, before the link was there.
        assert dict(LinkTable(rtnl, dump)) == expected
        assert len(LinkTable(rtnl)) == len(expected) + 1


def test_dump_of_a_process_that_dies_is_made_by_the_next(rtnl: Rtnl) -> None:
    class Killed(Rtnl):
        def link_messages(self) -> dict[int, bytes]:
            os.kill(os.getpid(), signal.SIGKILL)
            return {}

    with SharedDump() as dump:
        with pytest.raises(KernelError, match="died"):
            Child(lambda: dump.messages(Killed(rtnl._socket)), what="dump").result()
        assert dict(LinkTable(rtnl, dump)) == {link.index: link for link in rtnl.links()}
