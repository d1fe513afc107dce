"""What scplan reads that others wrote, as functions of bytes: each ends with a value or with a documented exception."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from scplan.config import configuration_from_json
from scplan.errors import ExitCode, ScplanError, StalePlan
from scplan.kinds import KINDS
from scplan.linux.cgroups.cgroup_v1 import DeviceRules
from scplan.linux.mounts.mountinfo import escape, parse_mountinfo
from scplan.linux.network.netlink import Rtnl, wire
from scplan.linux.network.netlink.wire import HEADER, IFADDR, IFINFO, RTMSG, attribute, u32
from scplan.linux.network.ovsdb import Ovsdb
from scplan.linux.processes.process import start_time
from scplan.model.change import Plan
from scplan.model.report import Owned
from scplan.render import documents, machine
from scplan.render.markdown import plan_markdown
from scplan.runtimes import docker, isulad, podman, state_files
from scplan.runtimes.crun import Crun
from scplan.runtimes.runc import Runc
from scplan.runtimes.runtime import ContainerName
from scplan.store import saved_plans, snapshot
from scplan.store.durable import encode_line
from scplan.store.history import history
from scplan.store.journal import read_journal
from scplan.store.state import State
from scplan.workflow import planning, scene

GOLDEN = Path(__file__).parents[2] / "state/golden/1.0"


class Target(NamedTuple):
    """`run(data, scratch)`, `scratch` being a directory to itself, says how it ended: "valid" or "refused"."""

    run: Callable[[bytes, Path], str]
    seeds: tuple[bytes, ...]


def refused_or_valid(read: Callable[[], object]) -> str:
    try:
        read()
    except ScplanError as refusal:
        told = refusal
    else:
        return "valid"
    assert told.diagnostics
    assert told.exit_code is ExitCode.ERROR
    assert all(one.summary for one in told.diagnostics)
    assert "bug in scplan" not in str(told)
    return "refused"


# /proc and cgroup files: the kernel writes their form, containers choose names and paths in it


def mountinfo(data: bytes, _: Path) -> str:
    mounts = parse_mountinfo(data)
    assert len(mounts) <= data.count(b"\n") + data.count(b"\r") + len(data) // 10 + 1
    for mount in mounts:
        assert b"\n" not in escape(mount.point)
    return "valid" if mounts else "refused"


def process_stat(data: bytes, _: Path) -> str:
    """A process can call itself anything, in 15 bytes."""
    name = data[:15].replace(b"\0", b"?")
    fields = b" ".join(b"%d" % number for number in range(4, 53))
    assert start_time(b"4242 (" + name + b") S " + fields + b"\n") == 22
    return "valid"


def devices_list(data: bytes, _: Path) -> str:
    """Lines of the kernel's form, their numbers made of the data."""
    kinds, accesses = "abc", ("r", "w", "m", "rw", "rm", "wm", "rwm")
    lines = []
    for kind, major, minor, access in struct.iter_unpack("=BHIB", data[: len(data) // 8 * 8]):
        numbers = ["*" if number % 7 == 0 else str(number) for number in (major, minor)]
        lines.append(f"{kinds[kind % 3]} {':'.join(numbers)} {accesses[access % 7]}")
    rules = DeviceRules("\n".join(lines))
    for line in lines:
        kind, numbers, access = line.split()
        if kind != "a" and "*" not in numbers:
            assert set(access) <= set(rules.exact(kind, numbers))
        assert set(rules.wider("b", "8:1")) <= set("rwm")
    return "valid"


# netlink


LINK = IFINFO.pack(0, 1, 7, 1, 0) + attribute(3, b"eth1\0") + u32(4, 1500) + attribute(1, bytes.fromhex("02005e100001"))
LINK += attribute(18, attribute(1, b"veth\0"))
ADDRESS = IFADDR.pack(2, 24, 0x80, 0, 7) + attribute(1, bytes((10, 0, 0, 6))) + attribute(2, bytes((10, 0, 0, 5)))
ROUTE = RTMSG.pack(2, 16, 0, 0, 254, 4, 0, 1, 0) + attribute(1, bytes((10, 1, 0, 0))) + u32(4, 7)
_PARSERS: tuple[Callable[[bytes, int, int], object], ...] = (
    wire.parse_link,
    wire.parse_address,
    wire.parse_route,
    wire.parse_nsid,
    lambda data, start, end: wire.parse_error(data, start, end, 0x200, done=False),
    lambda data, start, end: wire.parse_error(data, start, end, 0x300, done=True),
    wire.split,
)


def netlink_messages(data: bytes, _: Path) -> str:
    ended = "refused"
    for parse in _PARSERS:
        try:
            parse(data, 0, len(data))
            ended = "valid"
        except wire.Malformed:
            continue
    return ended


def netlink_answers(data: bytes, _: Path) -> str:
    """Dumps, single answers and acknowledgements, over a pair of sockets; the other end is closed after the data."""

    def ask(question: Callable[[Rtnl], object]) -> str:
        with _answering(data) as opened, Rtnl(opened) as rtnl:  # type: ignore[arg-type]
            return refused_or_valid(lambda: question(rtnl))

    questions: tuple[Callable[[Rtnl], object], ...] = (
        Rtnl.links,
        Rtnl.addresses,
        Rtnl.routes,
        lambda rtnl: rtnl.link(7),
        lambda rtnl: rtnl.delete_link(7),
    )
    return "valid" if "valid" in [ask(question) for question in questions] else "refused"


class _answering:  # noqa: N801 - a context manager
    """A socket whose receives give the datagrams that the data holds (each after two bytes of length), as the kernel's.

    The kernel's address is what AF_UNIX can't give, and an end without data is its timeout.
    """

    def __init__(self, data: bytes) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        try:
            for datagram in _datagrams(data):
                theirs.send(datagram)
        except BlockingIOError:
            pass  # what has room in the buffer is enough
        theirs.close()

    def __enter__(self) -> _answering:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()

    def close(self) -> None:
        self._ours.close()

    def send(self, data: bytes) -> int:
        return len(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        data, ancillary, flags, _ = self._ours.recvmsg(size)
        if not data:
            raise BlockingIOError(errno.EAGAIN, "timed out")
        return data, ancillary, flags & socket.MSG_TRUNC, (0, 0)


def _datagrams(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 <= len(data):
        (length,) = struct.unpack_from("=H", data, at)
        if datagram := data[at + 2 : at + 2 + length]:
            yield datagram
        at += 2 + length


def _datagram(*messages: bytes) -> bytes:
    data = b"".join(messages)
    return struct.pack("=H", len(data)) + data


def _message(kind: int, body: bytes, flags: int = 2) -> bytes:
    return HEADER.pack(16 + len(body), kind, flags, 1, 0) + body + bytes(-len(body) % 4)


_DONE = _message(3, bytes(4))
_ANSWERS = (
    _datagram(_message(16, LINK), _message(16, LINK)) + _datagram(_DONE),
    _datagram(_message(20, ADDRESS)) + _datagram(_DONE),
    _datagram(_message(24, ROUTE), _DONE),
    _datagram(_message(2, bytes(4) + HEADER.pack(20, 17, 5, 1, 0))),
    _datagram(_message(2, struct.pack("=i", -16) + HEADER.pack(20, 17, 5, 1, 0) + attribute(1, b"in use\0"), 0x202)),
)


# Open vSwitch


def ovsdb(data: bytes, _: Path) -> str:
    """The database answers with these bytes, and closes the connection."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.settimeout(2)
        theirs.sendall(data[: 1 << 17])
        theirs.shutdown(socket.SHUT_WR)
        database = Ovsdb("/run/openvswitch/db.sock")
        database._socket = ours
        with database:
            return refused_or_valid(lambda: database.ports())


_OVSDB = json.dumps(
    {
        "id": 1,
        "error": None,
        "result": [
            {"rows": [{"name": "br0", "ports": ["set", [["uuid", "a"], ["uuid", "b"]]]}]},
            {"rows": [{"_uuid": ["uuid", "a"], "name": "p1"}, {"_uuid": ["uuid", "b"], "name": "p2"}]},
        ],
    }
).encode()


# files


def journal(data: bytes, scratch: Path) -> str:
    def read(path: str) -> None:
        read_journal(path, KINDS)
        past = history(str(scratch), KINDS, "boot")
        documents.history_lines(past)
        machine.to_text(machine.history_document(past))

    (scratch / "history").mkdir(exist_ok=True)
    return _of_file(data, scratch / "history/j.jsonl", read)


def journal_documents(data: bytes, scratch: Path) -> str:
    """The same for lines whose checksums fit."""
    lines = [_line(line) for line in data.split(b"\n") if line]
    return journal(b"".join(lines), scratch)


def record(data: bytes, scratch: Path) -> str:
    directory = scratch / "containers/runc"
    directory.mkdir(parents=True, exist_ok=True)

    def read(_: str) -> None:
        found = State(str(scratch), KINDS).read("runc", "web")
        assert found is not None
        for address, resource in found.resources.items():
            owned = Owned(address, found.runtime, found.id, resource, live=None)
            documents.record_lines(owned)
            documents.owned_lines([owned])
            machine.to_text(machine.record_document(owned))

    return _of_file(data, directory / "web.json", read)


def record_document(data: bytes, scratch: Path) -> str:
    return record(_line(data), scratch)


def _line(text: bytes) -> bytes:
    """A line of a record that holds this text, if it is JSON, and else as a line that was damaged."""
    try:
        return encode_line(json.loads(text))
    except (ValueError, RecursionError):
        return b"00000000 " + text + b"\n"


def plan_file(data: bytes, scratch: Path) -> str:
    def read(path: str) -> None:
        document = saved_plans.load(path)
        plan = saved_plans.view(document, path, KINDS)
        _show(plan)
        with suppress(StalePlan):
            saved_plans.check_host(path, document, {"machine": "this", "boot_id": "now"})
        with suppress(StalePlan):
            saved_plans.check_unchanged(path, document, plan)
        with suppress(StalePlan):
            saved_plans.check_unchanged(path, document, plan._replace(changes=(), containers={}))
        configuration_from_json(document["origin"].get("configuration"), KINDS)

    return _of_file(data, scratch / "saved.plan", read)


def _show(plan: Plan) -> None:
    documents.plan_lines(plan)
    plan_markdown(plan)
    machine.to_text(machine.plan_document(plan))


def snapshot_file(data: bytes, scratch: Path) -> str:
    """Read, and planned against."""
    file = scratch / "scplan.yaml"
    if not file.exists():
        file.write_text(_CONFIGURATION)

    def read(path: str) -> None:
        snapshot.load(path, KINDS)
        _show(planning.make_plan(scene.Request(state_dir=str(scratch / "none"), files=(str(file),), live=path)))

    return _of_file(data, scratch / "live.json", read)


_CONFIGURATION = """\
version: 1
containers:
  web:
    devices:
      - {source: /dev/loop3, target: /dev/data, mode: "0640", io: {read_bps: 2M, weight: 300}}
      - /dev/vda
    nics: [{name: eth1, bridge: br0, addresses: [10.20.30.5/24], mtu: 1300}]
    routes: [{to: default, via: 10.20.30.2}]
    mounts: [{source: /srv/new, target: /srv/data, create_source: true}]
    cgroup: {pids.max: 7, memory.max: 100M, cpuset.cpus: '0', cpu.max: 50000}
"""


def runtime_state(data: bytes, scratch: Path) -> str:
    """What runc and crun write; the file is named for the one and the other."""
    ended = []
    for runtime in (Runc(), Crun()):
        (scratch / "web").mkdir(exist_ok=True)
        read = runtime.read
        ended.append(_of_file(data, scratch / "web" / runtime.file, lambda _, read=read: read(str(scratch), "web")))  # type: ignore[misc]
    return "valid" if "valid" in ended else "refused"


def _of_file(data: bytes, path: Path, read: Callable[[str], object]) -> str:
    path.write_bytes(data)
    return refused_or_valid(lambda: read(str(path)))


def _golden(*names: str) -> tuple[bytes, ...]:
    return tuple((GOLDEN / name).read_bytes() for name in names)


def _saved_plan() -> bytes:
    """One of the snapshot, with changes of all kinds."""
    with tempfile.TemporaryDirectory() as directory:
        file, saved = Path(directory, "scplan.yaml"), Path(directory, "saved.plan")
        file.write_text(_CONFIGURATION)
        request = scene.Request(state_dir=directory, files=(str(file),), live=str(GOLDEN / "snapshot.json"))
        planning.save_plan(planning.make_plan(request), request, str(saved))
        return saved.read_bytes()


def _without_checksums(lines: bytes) -> bytes:
    return b"\n".join(line.partition(b" ")[2] for line in lines.splitlines())


_JOURNALS = _golden("journal-committed.jsonl", "journal-crashed.jsonl", "journal-rolled-back.jsonl")
_RECORD = _golden("record.json")[0].replace(b'"process"', b'"runc"', 1)
_MOUNTINFO = b"""\
22 27 0:20 / /sys rw,nosuid - sysfs sysfs rw
27 1 254:0 / / rw,relatime shared:1 master:7 - ext4 /dev/root rw
30 27 0:26 /a\\040b /mnt/x\\011y ro,nosuid shared:5 propagate_from:2 unbindable - tmpfs none rw,size=4k
"""


def engine_states(data: bytes, scratch: Path) -> str:
    """What podman and isulad keep, and what the daemons of docker and incus answer."""
    listed = scratch / "overlay-containers" / "containers.json"
    listed.parent.mkdir(exist_ok=True)
    place = scratch / "runc"
    for name in ("web", "db"):
        (place / name).mkdir(parents=True, exist_ok=True)

    def podmans(path: str) -> None:
        for one in podman._names(path):
            podman._facts(one)

    def dockers(_: str) -> None:
        docker._facts(state_files.parse(data, "an answer"), "a socket")

    ended = [
        _of_file(data, listed, podmans),
        _of_file(data, listed, dockers),
        _of_file(
            data, place / "web" / "config.v2.json", lambda _: isulad._facts(ContainerName("web", "web", str(place)))
        ),
        _of_file(
            data,
            place / "db" / "container_state.json",
            lambda _: isulad._facts(ContainerName("db", "db", str(place))),
        ),
    ]
    return "valid" if "valid" in ended else "refused"


TARGETS = {
    "mountinfo": Target(mountinfo, (_MOUNTINFO, Path("/proc/self/mountinfo").read_bytes())),
    "process stat": Target(process_stat, (b"sh", b") R 1 (", b"a b\n) S")),
    "devices.list": Target(devices_list, (bytes(range(64)),)),
    "netlink messages": Target(netlink_messages, (LINK, ADDRESS, ROUTE)),
    "netlink answers": Target(netlink_answers, _ANSWERS),
    "ovsdb answers": Target(ovsdb, (_OVSDB, b'{"method":"echo","params":[],"id":"echo"}' + _OVSDB)),
    "journals": Target(journal, _JOURNALS),
    "journal documents": Target(journal_documents, tuple(map(_without_checksums, _JOURNALS))),
    "records": Target(record, (encode_line(json.loads(_RECORD.partition(b" ")[2])),)),
    "record documents": Target(record_document, (_RECORD.partition(b" ")[2],)),
    "plan files": Target(plan_file, (*_golden("plan.json"), _saved_plan())),
    "snapshots": Target(snapshot_file, _golden("snapshot.json")),
    "runtime states": Target(
        runtime_state,
        (
            b'{"id":"web","init_process_pid":%d,"init_process_start":12,"config":{"labels":["bundle=/x"]}}'
            % os.getpid(),
            b'{"pid":4194999,"process-start-time":7,"cgroup-path":"/x"}',
        ),
    ),
    "engine states": Target(
        engine_states,
        (
            b'[{"id":"c52632d6","names":["web"]},{"id":"ab","names":null}]',
            b'{"Id":"c52632d6","Name":"/web","State":{"Running":true,"Pid":%d,"Paused":false}}' % os.getpid(),
            b'{"CommonConfig":{"Name":"web","id":"web"},"State":{"Running":true,"Pid":%d,"StartTime":7}}' % os.getpid(),
            b'{"Pid":%d,"PPid":1,"StartTime":7,"PStartTime":6,"Paused":true,"Running":true}' % os.getpid(),
        ),
    ),
}
