"""Real failures at every place of a large mixed plan: host, containers and records are as before, and it is told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from scplan.model.change import Operation
from scplan.workflow import planning, scene
from tests.conftest import Ran, Scplan
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import Fingerprint, difference, fingerprint
from tests.containers.session import Session
from tests.e2e import mixed
from tests.e2e.gate import Gate, at_step, run_with_gates
from tests.e2e.mixed import ip, ip_inside, process_in, shell_inside
from tests.e2e.test_predecessor import fill
from tests.tried import TRIED

pytestmark = pytest.mark.needs("cgroup1", "runc", "loop", "veth", "bridge")


@dataclass(frozen=True)
class Ground:
    """Two containers as the first configuration has them; the second is in the file, to be applied and to fail."""

    web: Container
    db: Container
    parts: mixed.Parts
    scplan: Scplan
    disk: Path
    operations: tuple[Operation, ...]
    before: Fingerprint

    def picture(self) -> Fingerprint:
        return _picture(self.web, self.db, self.scplan)

    def container_of(self, operation: Operation) -> Container:
        return next(one for one in (self.web, self.db) if one.name == operation.address.container)


def _picture(web: Container, db: Container, scplan: Scplan) -> Fingerprint:
    return fingerprint([web, db], state_dir=scplan.state_dir / "containers")


@pytest.fixture(scope="module")
def ground(session: Session) -> Iterator[Ground]:
    """Made once: every test here must leave it as it was, which is what they are about."""
    with ExitStack() as stack:
        enter = stack.enter_context
        made = enter(mixed.parts(session))
        web, db = enter(session.container("runc")), enter(session.container("process"))
        # The records have a small disk of their own, to be filled.
        disk = enter(host_parts.small_disk(session, size_kib=3 << 10))
        scplan = Scplan(enter(host_parts.scratch_directory(session)), disk / "state")
        scplan("apply", "--auto-approve", config=mixed.before(web, db, made)).ok()
        ip_inside(db, "route", "add", *mixed.ADOPTED)
        before = _picture(web, db, scplan)
        file = scplan.write(mixed.after(web, db, made))
        planned = planning.make_plan(scene.Request(state_dir=str(scplan.state_dir), files=(str(file),)))
        yield Ground(web, db, made, scplan, disk, planned.operations, before)


# what strikes

Struck = AbstractContextManager[None]


class Strike(NamedTuple):
    """`begin(ground, operation)` strikes, and mends at its exit; `where` says which operations it makes fail.

    `lasts`: it stands in the way of the undo as well, unless it is mended before.
    """

    where: Callable[[Operation], bool]
    begin: Callable[[Ground, Operation], Struck]
    lasts: bool = False


def _is(*sorts: str) -> Callable[[Operation], bool]:
    """`_is("create route")`"""
    return lambda operation: f"{operation.action} {operation.address.kind}" in sorts


def _has(sort: str, attribute: str) -> Callable[[Operation], bool]:
    """The same, with a value for an attribute afterwards."""
    return lambda operation: _is(sort)(operation) and bool(operation.after and operation.after.get(attribute))


@contextmanager
def new_gateway_unreachable(ground: Ground, _: Operation) -> Iterator[None]:
    """The addresses of the NIC that the plan has just made are gone."""
    ip_inside(ground.web, "-4", "address", "flush", "dev", "eth4")
    yield


@contextmanager
def gateways_unreachable(ground: Ground, _: Operation) -> Iterator[None]:
    """The NIC of the default route has lost its addresses, and the kernel drops the route with them."""
    there = [one for one in ground.web.ip("-4", "address", "show", "eth1") if one]
    (default,) = ground.web.ip("route", "show", "default")
    ip_inside(ground.web, "-4", "address", "flush", "dev", "eth1")
    yield
    for info in there[0]["addr_info"]:
        ip_inside(ground.web, "address", "add", f"{info['local']}/{info['prefixlen']}", "dev", "eth1")
    ip_inside(ground.web, "route", "add", "default", "via", default["gateway"], "proto", "static")


@contextmanager
def addresses_flushed(ground: Ground, _: Operation) -> Iterator[None]:
    """The same, and nobody gives them back: the undo of the NIC's change does, and then the route can be put back."""
    ip_inside(ground.web, "-4", "address", "flush", "dev", "eth1")
    yield


@contextmanager
def bridge_deleted(ground: Ground, _: Operation) -> Iterator[None]:
    name = ground.parts.spare_bridge
    ip("link", "delete", name)
    yield
    ip("link", "add", name, "address", "02:5c:00:00:00:01", "type", "bridge")
    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    ip("link", "set", name, "up")


@contextmanager
def host_device_gone(ground: Ground, operation: Operation) -> Iterator[None]:
    assert operation.after is not None
    source = operation.after.get("source")
    disk = next(one for one in (ground.parts.disk, ground.parts.spare_disk) if one.path == source)
    with mixed.without_disk(disk):
        yield


@contextmanager
def physical_nic_vanished(ground: Ground, _: Operation) -> Iterator[None]:
    nic = ground.parts.nic
    ip("link", "delete", nic.peer)
    yield
    one, other = ("address", "02:5c:95:00:00:01"), ("address", "02:5c:95:00:00:02")
    ip("link", "add", nic.name, *one, "type", "veth", "peer", "name", nic.peer, *other)
    ip("link", "set", nic.peer, "up")


@contextmanager
def host_nic_renamed(ground: Ground, _: Operation) -> Iterator[None]:
    name = ground.parts.nic.name
    ip("link", "set", name, "name", "elsewhere0")
    yield
    ip("link", "set", "elsewhere0", "name", name)


@contextmanager
def nic_renamed_inside(ground: Ground, operation: Operation) -> Iterator[None]:
    container, name = ground.container_of(operation), operation.address.identity
    # Not down for it: that would take its routes along.
    ip_inside(container, "link", "set", name, "name", "hidden0")
    yield
    ip_inside(container, "link", "set", "hidden0", "name", name)


@contextmanager
def name_taken_on_host(_: Ground, operation: Operation) -> Iterator[None]:
    assert operation.after is not None
    name = operation.after.get("host_name")
    ip("link", "add", name, "type", "veth", "peer", "name", "scptaken0")
    yield
    ip("link", "delete", name)


@contextmanager
def source_gone(_: Ground, operation: Operation) -> Iterator[None]:
    assert operation.after is not None
    source = Path(operation.after.get("source"))
    aside = source.rename(f"{source}.aside")
    yield
    aside.rename(source)


@contextmanager
def target_busy(ground: Ground, operation: Operation) -> Iterator[None]:
    with process_in(ground.container_of(operation), f"/{operation.address.identity}"):
        yield


@contextmanager
def file_open_on_target(ground: Ground, operation: Operation) -> Iterator[None]:
    """A process of the container has a file below the target open."""
    assert operation.before is not None
    held = Path(operation.before.get("source"), "held")
    held.touch()
    with shell_inside(ground.container_of(operation), f"exec 3</{operation.address.identity}/held"):
        yield
    held.unlink()


@contextmanager
def mounted_over(ground: Ground, operation: Operation) -> Iterator[None]:
    container, target = ground.container_of(operation), f"/{operation.address.identity}"
    container.exec(["mount", "-t", "tmpfs", "none", target], check=True)
    yield
    container.exec(["umount", target], check=True)


@contextmanager
def dev_read_only(ground: Ground, operation: Operation) -> Iterator[None]:
    container = ground.container_of(operation)
    _remount_dev(container, "ro")
    yield
    _remount_dev(container, "rw")


def _remount_dev(container: Container, word: str) -> None:
    (options,) = [line.split()[5] for line in container.mounts() if line.split()[4] == "/dev"]
    flags = ",".join([word, *(flag for flag in options.split(",") if flag not in ("ro", "rw"))])
    # From outside: a container of runc may not.
    command = ["nsenter", "--target", str(container.pid), "--mount", "/bin/busybox", "mount", "-o", f"remount,{flags}"]
    subprocess.run([*command, "-t", "tmpfs", "tmpfs", "/dev"], check=True)


@contextmanager
def memory_in_use(ground: Ground, operation: Operation) -> Iterator[None]:
    """More than the new limit, in a file of a tmpfs, which can't be reclaimed."""
    container = ground.container_of(operation)
    container.exec(["dd", "if=/dev/zero", "of=/dev/fill", "bs=1M", "count=44"], check=True)
    yield
    container.exec(["rm", "/dev/fill"], check=True)


@contextmanager
def child_group_has_more(ground: Ground, operation: Operation) -> Iterator[None]:
    """The kernel lets no group have less than its children."""
    child = ground.container_of(operation).cgroups["cpu"] / "child"
    child.mkdir()
    (child / "cpu.cfs_quota_us").write_text("200000")
    yield
    child.rmdir()


@contextmanager
def adopted_thing_gone(ground: Ground, operation: Operation) -> Iterator[None]:
    container = ground.container_of(operation)
    ip_inside(container, "route", "del", mixed.ADOPTED[0])
    yield
    ip_inside(container, "route", "add", *mixed.ADOPTED)


@contextmanager
def records_disk_full(ground: Ground, _: Operation) -> Iterator[None]:
    filler = ground.disk / "filler"
    fill(filler, leave_bytes=0)
    yield
    filler.unlink()


STRIKES = {
    "gateway unreachable": Strike(_has("create route", "via"), new_gateway_unreachable),
    "old and new gateway unreachable": Strike(_has("update route", "via"), gateways_unreachable, lasts=True),
    "addresses flushed": Strike(_has("update route", "via"), addresses_flushed),
    "bridge deleted": Strike(_has("create nic", "bridge"), bridge_deleted),
    "physical NIC vanished": Strike(_has("create nic", "device"), physical_nic_vanished),
    "host NIC renamed": Strike(_has("create nic", "device"), host_nic_renamed),
    "NIC renamed inside": Strike(_is("update nic"), nic_renamed_inside, lasts=True),
    "name taken on the host": Strike(_has("create nic", "bridge"), name_taken_on_host),
    "host device gone": Strike(
        lambda operation: _has("create device", "source")(operation) and "loop" in operation.after.get("source"),
        host_device_gone,
    ),
    "limited device gone": Strike(_has("update device", "io"), host_device_gone, lasts=True),
    "source gone": Strike(_is("create mount"), source_gone, lasts=True),
    "target busy": Strike(_is("delete mount"), target_busy),
    "file open on target": Strike(_is("delete mount"), file_open_on_target),
    "mounted over": Strike(_is("update mount", "delete mount"), mounted_over, lasts=True),
    "/dev read-only": Strike(_is("create device", "delete device"), dev_read_only, lasts=True),
    "memory in use": Strike(
        lambda operation: _is("update cgroup")(operation) and operation.address.identity == "memory.max", memory_in_use
    ),
    "children have more": Strike(
        lambda operation: _is("create cgroup")(operation) and operation.address.identity == "cpu.max",
        child_group_has_more,
    ),
    "adopted thing gone": Strike(_is("adopt route"), adopted_thing_gone),
}


@pytest.mark.parametrize("name", STRIKES)
def test_a_failure_at_each_place_leaves_all_as_before(ground: Ground, name: str) -> None:
    strike = STRIKES[name]
    places = [number for number, one in enumerate(ground.operations, 1) if strike.where(one)]
    assert places
    for number in places:
        ran = struck_at(ground, number, strike)
        assert_undone(ground, ran, number)
        TRIED["failures struck"][name] += 1


def struck_at(ground: Ground, number: int, strike: Strike) -> Ran:
    """An apply that is struck when it has said that it begins an operation."""
    operation = ground.operations[number - 1]
    with ExitStack() as struck:
        gates = [Gate(at_step("started", number), lambda: struck.enter_context(strike.begin(ground, operation)))]
        if strike.lasts:
            gates.append(Gate(at_step("failed"), struck.close))
        return run_with_gates(ground.scplan, ["apply", "--auto-approve", "--json"], gates)


def assert_undone(ground: Ground, ran: Ran, failed_at: int, *, exactly: bool = True) -> None:
    """Exit code 3, an account of every operation, and nothing that differs.

    Not exactly: the operation that was struck may have been made, and a later one failed.
    """
    ran.ok(3)
    assert "Traceback" not in ran.stderr
    assert "bug in scplan" not in ran.stderr
    steps = [(event["step"], event["number"]) for event in ran.events if event["type"] == "step"]
    (failed,) = [number for step, number in steps if step == "failed"]
    assert failed == failed_at if exactly else failed >= failed_at, ran.stderr
    assert [number for step, number in steps if step == "done"] == list(range(1, failed))
    undone = [number for step, number in steps if step == "undone"]
    # The one that failed was begun, unless it was refused before anything was touched.
    newest_first = sorted(undone, reverse=True)
    assert newest_first in (list(range(failed, 0, -1)), list(range(failed - 1, 0, -1)))
    tries = [number for step, number in steps if step == "undoing"]
    assert undone == newest_first or len(tries) > len(undone)
    assert "undo_failed" not in dict(steps)
    summary = ran.events[-1]
    assert (summary["type"], summary["result"], summary["exit_code"]) == ("summary", "rolled_back", 3)
    assert summary["diagnostics"][-1]["summary"].endswith("everything is as before")
    assert difference(ground.before, ground.picture()) == []
    assert os.listdir(ground.scplan.state_dir / "journal") == []


def test_a_full_disk_at_every_place_leaves_all_as_before(ground: Ground) -> None:
    for number in range(1, len(ground.operations) + 1, mixed.STRIDE):
        assert_full_disk_is_survived(ground, number)


def assert_full_disk_is_survived(ground: Ground, number: int) -> None:
    operation = ground.operations[number - 1]
    with ExitStack() as struck:
        gate = Gate(at_step("started", number), lambda: struck.enter_context(records_disk_full(ground, operation)))
        ran = run_with_gates(ground.scplan, ["apply", "--auto-approve", "--json"], [gate])
    ran.ok(3)
    assert "ENOSPC" in ran.stderr
    TRIED["failures struck"]["records' disk full"] += 1
    assert difference(ground.before, ground.picture()) == []
    assert os.listdir(ground.scplan.state_dir / "journal") == []
