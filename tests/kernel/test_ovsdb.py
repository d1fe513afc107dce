"""The client of Open vSwitch against a real ovsdb-server and ovs-vswitchd, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scplan.errors import KernelError, ScplanError
from scplan.kinds.kind import Target
from scplan.kinds.nic import Nic, NicKind
from scplan.linux.container import Container
from scplan.linux.host import Host, ovsdb_socket
from scplan.linux.network import ovsdb
from scplan.linux.network.ovsdb import Ovsdb
from tests.containers import container as throwaway
from tests.containers.session import Session

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
SERVER, SWITCH = "/usr/sbin/ovsdb-server", "/usr/sbin/ovs-vswitchd"

needs_ovs = pytest.mark.skipif(
    not (os.path.exists(SERVER) and os.path.exists(SWITCH)) or os.geteuid() != 0,
    reason="needs openvswitch-switch and root",
)


class Switch:
    """An Open vSwitch of its own: database, daemon and runtime directory below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "db.sock")
        self.environment = {**os.environ, "OVS_RUNDIR": str(directory), "OVS_LOGDIR": str(directory)}
        database = str(directory / "conf.db")
        subprocess.run(["ovsdb-tool", "create", database, SCHEMA], check=True)
        self.server = self._start(SERVER, database, f"--remote=punix:{self.path}", "--no-chdir")
        self._until(lambda: os.path.exists(self.path))
        self.vsctl("--no-wait", "init")
        self.switch: subprocess.Popen[bytes] | None = None
        self.start_switch()

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        name = os.path.basename(program)
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [program, *arguments, f"--unixctl={self.directory}/{name}.ctl"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def start_switch(self) -> None:
        self.switch = self._start(SWITCH, f"unix:{self.path}", "--no-chdir")

    def stop_switch(self) -> None:
        if self.switch is not None:
            self.switch.send_signal(signal.SIGTERM)
            self.switch.wait(timeout=20)
            self.switch = None

    def vsctl(self, *arguments: str) -> str:
        command = ["ovs-vsctl", f"--db=unix:{self.path}", *arguments]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, env=self.environment, timeout=30)
        return ended.stdout.strip()

    def close(self) -> None:
        if self.switch is not None:
            for bridge in self.vsctl("list-br").split():
                self.vsctl("del-br", bridge)
        self.stop_switch()
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(timeout=20)


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switch]:
    made = Switch(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def bridges(switch: Switch, session: Session) -> tuple[str, str]:
    names = session.name(), session.name()
    for name in names:
        switch.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")
    return names


@pytest.fixture
def port(session: Session) -> Iterator[str]:
    name = session.name()
    subprocess.run(["ip", "link", "add", name, "type", "ifb"], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", name], check=True)


@needs_ovs
def test_ports_come_and_go(switch: Switch, bridges: tuple[str, str], port: str) -> None:
    one, two = bridges
    with Ovsdb(switch.path) as client:
        assert client.bridges() == {one, two}
        assert client.bridge_of(port) == ""
        client.add_port(one, port)
        client.add_port(one, port)
        assert switch.vsctl("port-to-br", port) == one
        assert client.bridge_of(port) == one
        with pytest.raises(ScplanError, match=f"belongs to the Open vSwitch bridge {one}, not to {two}"):
            client.add_port(two, port)
        client.del_port(two, port)
        assert switch.vsctl("port-to-br", port) == one
        client.del_port(one, port)
        client.del_port(one, port)
        assert port not in switch.vsctl("list-ports", one)
        assert port not in switch.vsctl("list", "Interface")


@needs_ovs
def test_a_missing_bridge_or_link_is_an_error_that_leaves_nothing(
    switch: Switch, bridges: tuple[str, str], port: str
) -> None:
    with Ovsdb(switch.path) as client:
        with pytest.raises(ScplanError, match="no bridge absent0"):
            client.add_port("absent0", port)
        with pytest.raises(ScplanError, match=r"can't use absent1(.|\n)*could not open network device"):
            client.add_port(bridges[0], "absent1")
        assert "absent1" not in switch.vsctl("list", "Interface")
        assert port not in switch.vsctl("list", "Port")


@needs_ovs
def test_a_switch_that_does_not_follow_is_an_error_that_leaves_nothing(
    switch: Switch, bridges: tuple[str, str], port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ovsdb, "TIMEOUT_S", 0.3)
    switch.stop_switch()
    with Ovsdb(switch.path) as client, pytest.raises(ScplanError, match="did not follow within"):
        client.add_port(bridges[0], port)
    assert port not in switch.vsctl("--no-wait", "list", "Interface")
    switch.start_switch()


@needs_ovs
def test_a_nic_joins_changes_and_leaves_bridges(
    switch: Switch,
    bridges: tuple[str, str],
    process_container: throwaway.Container,
    bridge: str,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OVS_RUNDIR", str(switch.directory))
    kind = NicKind()
    with Host() as host, Container(process_container.name, process_container.pid, 0, host) as container:
        target = Target[Nic](container=container, host=host, peers={})
        first = kind.normalise(Nic(name="eth1", host_name=session.name(), bridge=bridges[0], mtu=1500))

        def bridge_now(nic: Nic) -> str | None:
            host.forget()
            return kind.read(container, host, {"eth1": nic})["eth1"].bridge

        kind.create(target, first)
        kind.create(target, first)
        assert bridge_now(first) == bridges[0]
        assert switch.vsctl("port-to-br", str(first.host_name)) == bridges[0]
        before = first
        for after in (
            first.replace(bridge=bridges[1]),
            first.replace(bridge=bridge),
            first.replace(bridge=bridges[0]),
            first.replace(host_name=session.name()),
            first.replace(bridge=""),
            first,
        ):
            kind.update(target, before, after)
            assert bridge_now(after) == after.bridge
            before = after
        kind.delete(target, first)
        assert str(first.host_name) not in switch.vsctl("list", "Port")
        # lent to a container and given back
        name = str(first.host_name)
        host.rtnl.create_veth(name, peer_name="peer", peer_netns_fd=container.netns_fd, mtu=1500, txqueuelen=5)
        switch.vsctl("add-port", bridges[0], name)
        physical = kind.normalise(Nic(name="eth5", type="physical", host_name=name))
        _, lent = kind.capture(target, None, physical)
        assert lent is not None
        kind.create(target, lent)
        assert name not in switch.vsctl("list", "Port")
        kind.delete(target, lent)
        assert switch.vsctl("port-to-br", name) == bridges[0]
        inner = container.rtnl.link("peer")
        assert inner is not None
        switch.vsctl("del-port", bridges[0], name)
        container.rtnl.delete_link(inner.index)
        if host.ovs is not None:
            host.ovs.close()


def test_the_socket_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVS_RUNDIR", "/somewhere")
    assert ovsdb_socket() == "/somewhere/db.sock"
    monkeypatch.delenv("OVS_RUNDIR")
    assert ovsdb_socket() == "/var/run/openvswitch/db.sock"


# servers that misbehave


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], Ovsdb]]:
    """Starts a server whose one connection is handed to a function, and returns a client of it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "db.sock"))
    listener.listen()
    threads = []
    clients = []

    def start(behave: Callable[[socket.socket], None]) -> Ovsdb:
        def run() -> None:
            connection, _ = listener.accept()
            # The client may hang up on it.
            with connection, contextlib.suppress(OSError):
                behave(connection)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        clients.append(Ovsdb(str(tmp_path / "db.sock")))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    listener.close()
    for thread in threads:
        thread.join(timeout=10)


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(answer)

    return behave


def result(value: object, **more: object) -> bytes:
    return json.dumps({"id": 1, "error": None, "result": value, **more}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"garbage",
        b"[1, 2]",
        b"\xff\xfe",
        b'{"id": 1}',
        b"[" * 100000,
        b'{"a":' * 100000 + b"}",
        result(None),
        result({}),
        result([]),
        result([{}]),
        result([1, 2]),
        result([{"error": "syntax error", "details": "x"}]),
        result(None, error="unknown database"),
    ],
)
def test_broken_answers_are_errors(
    serve: Callable[[Callable[[socket.socket], None]], Ovsdb], answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ovsdb, "TIMEOUT_S", 0.3)
    with pytest.raises(ScplanError):
        serve(answering(answer)).bridges()


@pytest.mark.parametrize(
    "rows", [None, 5, [], [5], [{}], [{"name": 5, "ports": 5}], [{"name": "x", "ports": ["set", 5]}]]
)
def test_rows_of_odd_shapes_have_no_ports(
    serve: Callable[[Callable[[socket.socket], None]], Ovsdb], rows: object
) -> None:
    assert serve(answering(result([{"rows": rows}, {"rows": rows}]))).ports() == {}


def test_an_endless_answer_is_given_up(
    serve: Callable[[Callable[[socket.socket], None]], Ovsdb], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ovsdb, "MAX_ANSWER_BYTES", 1 << 20)

    def behave(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b'{"id": 1, "result": "')
        while True:
            connection.sendall(b"x}" * 30000)

    with pytest.raises(ScplanError, match=r"malformed answer(.|\n)*more than 1048576 bytes"):
        serve(behave).bridges()


def test_silence_is_a_timeout(
    serve: Callable[[Callable[[socket.socket], None]], Ovsdb], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ovsdb, "TIMEOUT_S", -0.8)
    with pytest.raises(KernelError, match="ETIMEDOUT"):
        serve(lambda _: time.sleep(1)).bridges()


def test_a_keepalive_is_answered_and_an_answer_in_parts_is_put_together(
    serve: Callable[[Callable[[socket.socket], None]], Ovsdb],
) -> None:
    echoed = []

    def behave(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b'{"method": "echo", "params": ["}"], "id": "echo"}')
        echoed.append(json.loads(connection.recv(1 << 16)))
        whole = result(
            [{"rows": [{"name": "b", "ports": ["uuid", "u"]}]}, {"rows": [{"name": "p", "_uuid": ["uuid", "u"]}]}]
        )
        for place in range(0, len(whole), 7):
            connection.sendall(whole[place : place + 7])
            time.sleep(0.001)

    assert serve(behave).ports() == {"p": "b"}
    assert echoed == [{"result": ["}"], "error": None, "id": "echo"}]


def test_a_socket_that_nobody_listens_at_means_no_bridges(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "db.sock"))
    assert Ovsdb(str(tmp_path / "db.sock")).bridges() == frozenset()
    assert Ovsdb(str(tmp_path / "absent.sock")).ports() == {}
