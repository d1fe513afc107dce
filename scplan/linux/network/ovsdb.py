"""Bridges and ports of Open vSwitch, through the JSON-RPC of its database. RFC 7047, ovs-vswitchd.conf.db(5)."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Mapping
from typing import Any

from scplan.errors import KernelError, ScplanError
from scplan.linux.closing import Closing

TIMEOUT_S = 5.0
# Enough for some ten thousand ports; anything longer does not answer scplan's requests.
MAX_ANSWER_BYTES = 16 << 20
_DATABASE = "Open_vSwitch"


class Ovsdb(Closing):
    """A connection to ovsdb-server, opened on first use. What it has read is kept until `forget`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket: socket.socket | None = None
        self._received = b""
        self._id = 0
        self._ports: dict[str, str] | None = None
        self._bridges: frozenset[str] = frozenset()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def forget(self) -> None:
        """Forget the bridges and ports that were read: the next reader reads them again."""
        self._ports = None

    # bridges and ports

    def bridges(self) -> frozenset[str]:
        """Names of all bridges."""
        self._read()
        return self._bridges

    def ports(self) -> Mapping[str, str]:
        """Bridge of each port, by the port's name."""
        return self._read()

    def bridge_of(self, port: str) -> str:
        """Bridge of the port; "" if it has none."""
        return self.ports().get(port, "")

    def add_port(self, bridge: str, port: str) -> None:
        """Add the link `port` to a bridge, and wait until ovs-vswitchd uses it. Succeeds if the bridge has it already.

        Raises ScplanError if the bridge does not exist, another bridge has the port, or the switch can't use the link;
        the database is then as before.
        """
        self.forget()
        there = self.bridge_of(port)
        if there != bridge:
            if there:
                raise ScplanError(f"the port {port} belongs to the Open vSwitch bridge {there}, not to {bridge}")
            self._insert(bridge, port)
        problem = self._problem_of(port)
        if problem:
            self.del_port(bridge, port)
            raise ScplanError(f"Open vSwitch can't use {port} as a port of {bridge}", detail=problem)

    def _insert(self, bridge: str, port: str) -> None:
        operations: list[dict[str, Any]] = [
            # Fails if another process has added the port meanwhile, instead of adding it twice. RFC 7047, 5.2.6
            {
                "op": "wait",
                "table": "Port",
                "where": [["name", "==", port]],
                "columns": ["name"],
                "until": "==",
                "rows": [],
                "timeout": 0,
            },
            {"op": "insert", "table": "Interface", "row": {"name": port}, "uuid-name": "interface"},
            {
                "op": "insert",
                "table": "Port",
                "row": {"name": port, "interfaces": ["named-uuid", "interface"]},
                "uuid-name": "port",
            },
            _change_ports(bridge, "insert", ["named-uuid", "port"]),
        ]
        answers = self._commit(operations, f"add port {port} to bridge {bridge}", undo=(bridge, port))
        if _count(answers, 3) != 1:
            raise ScplanError(f"Open vSwitch has no bridge {bridge}", hint=f"`ovs-vsctl add-br {bridge}` makes it")

    def del_port(self, bridge: str, port: str) -> None:
        """Remove a port from a bridge, and wait until ovs-vswitchd has released it. Succeeds if it is not there."""
        self.forget()
        if self.bridge_of(port) != bridge:
            return
        # The server deletes the rows of the port and its interface with the last reference to them. RFC 7047, "isRoot"
        self._commit([_change_ports(bridge, "delete", self._uuid_of(port))], f"delete port {port} of bridge {bridge}")

    def _uuid_of(self, port: str) -> object:
        select = {"op": "select", "table": "Port", "where": [["name", "==", port]], "columns": ["_uuid"]}
        rows = _rows(self._transact([select], f"find port {port}"), 0)
        return rows[0].get("_uuid") if rows else ["set", []]

    def _problem_of(self, port: str) -> str:
        """Reason why the switch does not use the port's interface; "" if it does."""
        columns = ["error", "ofport"]
        select = {"op": "select", "table": "Interface", "where": [["name", "==", port]], "columns": columns}
        rows = _rows(self._transact([select], f"look at port {port}"), 0)
        if not rows:
            return "its interface is gone"
        error = rows[0].get("error")
        return error if isinstance(error, str) else ""

    def _read(self) -> dict[str, str]:
        if self._ports is not None:
            return self._ports
        select = {"op": "select", "where": []}
        bridges_and_ports = [
            {**select, "table": "Bridge", "columns": ["name", "ports"]},
            {**select, "table": "Port", "columns": ["_uuid", "name"]},
        ]
        try:
            answers = self._transact(bridges_and_ports, "read bridges")
        except KernelError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise
            # No process listens: Open vSwitch was stopped, and has no bridges.
            answers = [{}, {}]
        names = {uuid: str(row.get("name")) for row in _rows(answers, 1) for uuid in _uuids(row.get("_uuid"))}
        bridges = _rows(answers, 0)
        self._bridges = frozenset(str(row.get("name")) for row in bridges)
        self._ports = {
            names[uuid]: str(row.get("name")) for row in bridges for uuid in _uuids(row.get("ports")) if uuid in names
        }
        return self._ports

    # transactions

    def _commit(
        self, operations: list[dict[str, Any]], what: str, *, undo: tuple[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Change the database; wait until ovs-vswitchd has followed: next_cfg counts requests, cur_cfg answers."""
        request = [
            *operations,
            {"op": "mutate", "table": _DATABASE, "where": [], "mutations": [["next_cfg", "+=", 1]]},
            {"op": "select", "table": _DATABASE, "where": [], "columns": ["next_cfg"]},
        ]
        answers = self._transact(request, what)
        self.forget()
        wanted = _integer(_rows(answers, len(request) - 1), "next_cfg")
        try:
            self._await(wanted, what)
        except ScplanError:
            if undo:
                bridge, port = undo
                self._transact([_change_ports(bridge, "delete", self._uuid_of(port))], f"undo: {what}")
            raise
        return answers

    def _await(self, wanted: int, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        select = {"op": "select", "table": _DATABASE, "where": [], "columns": ["cur_cfg"]}
        while True:
            current = _integer(_rows(self._transact([select], what), 0), "cur_cfg")
            left_ms = int((deadline - time.monotonic()) * 1000)
            if current >= wanted:
                return
            if left_ms <= 0:
                raise self._late(what)
            wait = {**select, "op": "wait", "until": "!=", "rows": [{"cur_cfg": current}], "timeout": left_ms}
            try:
                self._transact([wait], what)
            except ScplanError as error:
                if "timed out" in str(error):
                    raise self._late(what) from None
                raise

    def _late(self, what: str) -> ScplanError:
        return ScplanError(
            f"Open vSwitch: {what}: ovs-vswitchd did not follow within {TIMEOUT_S:g} s",
            hint="is ovs-vswitchd running? its log says what holds it up",
        )

    def _transact(self, operations: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
        """Answers to the operations of one transaction. Raises ScplanError if an operation has failed."""
        result = self._call("transact", [_DATABASE, *operations], what)
        if not isinstance(result, list):
            raise self._malformed(what, "the result of a transaction is no list")
        for answer in result:
            if isinstance(answer, dict) and answer.get("error"):
                raise ScplanError(f"Open vSwitch: {what}: {answer['error']}", detail=str(answer.get("details") or ""))
        if len(result) < len(operations) or not all(isinstance(answer, dict) for answer in result):
            raise self._malformed(what, "answers are missing")
        return result

    # JSON-RPC

    def _call(self, method: str, params: list[Any], what: str) -> object:
        import json

        self._id += 1
        try:
            self._send(json.dumps({"method": method, "params": params, "id": self._id}).encode())
            while True:
                message = self._receive(what)
                # The server checks that the client is alive. RFC 7047, 4.1.11
                if message.get("method") == "echo":
                    answer = {"result": message.get("params"), "error": None, "id": message.get("id")}
                    self._send(json.dumps(answer).encode())
                elif message.get("id") == self._id and "result" in message:
                    break
        except OSError as error:
            self.close()
            code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
            raise KernelError(f"ovsdb({self.path}, {what})", code) from None
        if message.get("error"):
            raise ScplanError(f"Open vSwitch: {what}: {message['error']}")
        return message["result"]

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            self._received = b""
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            # A `wait` operation of a transaction ends by its own timeout, before this one.
            self._socket.settimeout(TIMEOUT_S + 1)
            self._socket.connect(self.path)
        self._socket.sendall(data)

    def _receive(self, what: str) -> dict[str, Any]:
        """Next message. Messages follow each other without a separator: each ends with its closing brace."""
        from scplan.startup.strict_json import DECODER

        assert self._socket is not None
        deadline = time.monotonic() + TIMEOUT_S + 1
        while True:
            if self._received and not self._received.startswith(b"{"):
                raise self._malformed(what, "a message that is no object")
            # Decode only where a message can end: a long answer is not decoded again with each of its parts.
            if self._received.endswith(b"}"):
                try:
                    text = self._received.decode()
                    message, end = DECODER.raw_decode(text)
                except RecursionError:
                    raise self._malformed(what, "nested too deeply") from None
                except ValueError:
                    pass  # not complete yet
                else:
                    self._received = text[end:].lstrip().encode()
                    assert isinstance(message, dict)
                    return message
            if len(self._received) > MAX_ANSWER_BYTES:
                raise self._malformed(what, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
            chunk = self._socket.recv(1 << 20)
            if not chunk:
                raise self._malformed(what, "the connection was closed in the middle of an answer")
            self._received += chunk

    def _malformed(self, what: str, problem: str) -> ScplanError:
        self.close()
        return ScplanError(f"Open vSwitch: {what}: malformed answer from {self.path}", detail=problem)


def _change_ports(bridge: str, mutator: str, port: object) -> dict[str, Any]:
    return {
        "op": "mutate",
        "table": "Bridge",
        "where": [["name", "==", bridge]],
        "mutations": [["ports", mutator, port]],
    }


def _rows(answers: list[dict[str, Any]], place: int) -> list[dict[str, Any]]:
    rows = answers[place].get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _count(answers: list[dict[str, Any]], place: int) -> int:
    count = answers[place].get("count")
    return count if isinstance(count, int) else 0


def _integer(rows: list[dict[str, Any]], column: str) -> int:
    value = rows[0].get(column) if rows else None
    return value if isinstance(value, int) else 0


def _uuids(value: object) -> list[str]:
    """UUIDs of a column: ["uuid", U] for one, ["set", [["uuid", U], …]] otherwise."""
    match value:
        case ["uuid", str(uuid)]:
            return [uuid]
        case ["set", list(members)]:
            return [uuid for member in members for uuid in _uuids(member)]
        case _:
            return []
