"""An undo that fails itself: all of it is told, nothing else may be changed, and `recover` goes on, back or forward."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Ran, Scplan
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import Nic
from tests.containers.session import Session
from tests.e2e import mixed
from tests.e2e.gate import Gate, at_step, run_with_gates
from tests.e2e.mixed import ip, ip_inside, process_in
from tests.e2e.scene import Config, address, of, refused

pytestmark = pytest.mark.needs("cgroup1")
# More than the processes' own memory, which plans compare it with, and less than what the kernel holds for them, too.
# The setting comes after all other creations.
IMPOSSIBLE = {"memory.max": "96k"}


def wanted(web: Container, directory: Path, **cgroup: str) -> Config:
    mounts = [f"{directory}:/srv/one", f"{directory}:/srv/two"]
    return of(web, mounts=mounts, nics=[{"name": "eth7"}], cgroup={"pids.max": "77", **cgroup})


@contextmanager
def half_undone(scplan: Scplan, web: Container, directory: Path) -> Iterator[Ran]:
    """An apply that failed, and could not take back two mounts: processes are in them until the block ends."""
    scplan.write(wanted(web, directory, **IMPOSSIBLE))
    with ExitStack() as busy:

        def move_in() -> None:
            for target in ("/srv/one", "/srv/two"):
                busy.enter_context(process_in(web, target))

        gate = Gate(at_step("failed"), move_in)
        yield run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate])


def test_every_failure_is_told_and_the_rest_is_undone(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    web = process_container
    with half_undone(scplan, web, host_directory) as ran:
        ran.ok(4)
        steps = [(event["step"], event["address"]) for event in ran.events if event["type"] == "step"]
        mounts = {address(web, "mount/srv/one"), address(web, "mount/srv/two")}
        assert {name for step, name in steps if step == "undo_failed"} == mounts
        assert {name for step, name in steps if step == "undone"} >= {
            address(web, "nic/eth7"),
            address(web, "cgroup/pids.max"),
        }
        summary = ran.events[-1]
        assert (summary["result"], summary["exit_code"]) == ("rollback_incomplete", 4)
        told = [one["summary"] for one in summary["diagnostics"]]
        assert {f"{mount} could not be undone" for mount in mounts} <= set(told)
        assert "memory.limit_in_bytes" in told[0]
        (journal,) = (scplan.state_dir / "journal").iterdir()
        assert str(journal) in ran.stderr
        assert "EBUSY" in ran.stderr


def test_until_it_is_recovered_nothing_else_is_changed(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    web = process_container
    scplan("apply", "--auto-approve", config=of(web, cgroup={"cpu.weight": 200})).ok()
    scplan("plan", "--out", "saved.plan", config=of(web, cgroup={"cpu.weight": 300})).ok()
    with half_undone(scplan, web, host_directory):
        writing = (
            ("apply", "--auto-approve"),
            ("apply", "saved.plan"),
            ("destroy", web.name, "--auto-approve"),
            ("undo", "--auto-approve"),
            ("state", "rm", address(web, "cgroup/cpu.weight")),
        )
        left = everything(scplan, web)
        for command in writing:
            assert "scplan recover" in scplan(*command).ok(8).stderr
        # What only reads goes on, and says so.
        assert "scplan recover" in scplan("plan", config=of(web, cgroup={"cpu.weight": 300})).ok().stderr
        scplan("drift").ok()
        scplan("show").ok()
        assert difference(left, everything(scplan, web)) == []


def everything(scplan: Scplan, web: Container) -> dict[str, object]:
    """All but the locks, which name their last holder."""
    picture = fingerprint([web], state_dir=scplan.state_dir)
    picture["state"] = {name: text for name, text in picture["state"].items() if not name.startswith("locks/")}
    return picture


@pytest.mark.parametrize("option", [(), ("--back",)])
def test_recover_tries_again_until_all_is_as_before(
    process_container: Container, scplan: Scplan, host_directory: Path, option: tuple[str, ...]
) -> None:
    web = process_container
    before = fingerprint([web])
    with half_undone(scplan, web, host_directory):
        again = scplan("recover", *option).ok(4)
        assert "/srv/one" in again.stderr
        assert "/srv/two" in again.stderr
        assert len(list((scplan.state_dir / "journal").iterdir())) == 1
    assert "operations undone" in scplan("recover", *option).ok().stdout
    assert difference(before, fingerprint([web])) == []
    assert scplan("state", "list").ok().stdout == ""
    assert "Nothing to recover." in scplan("recover").ok().stdout


def test_recover_forward_that_fails_again_undoes_again(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    web = process_container
    before = fingerprint([web])
    with half_undone(scplan, web, host_directory):
        again = scplan("recover", "--forward").ok(4)
        assert "/srv/one" in again.stderr
        assert "/srv/two" in again.stderr
    refused(scplan("recover", "--forward"), "everything is as before", code=3)
    assert difference(before, fingerprint([web])) == []
    assert scplan("state", "list").ok().stdout == ""


def test_recover_forward_finishes_when_what_was_in_the_way_is_gone(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    """The removals that were put back by the undo are made again, and so is all that was undone."""
    web = process_container
    before = fingerprint([web])
    scplan("apply", "--auto-approve", config=of(web, nics=[{"name": "eth8"}], mounts=[f"{host_directory}:/m"])).ok()
    scplan.write(of(web, mounts=[f"{host_directory}:/srv/one"]))
    with ExitStack() as busy:

        def strike() -> None:
            busy.enter_context(process_in(web, "/m"))
            busy.enter_context(process_in(web, "/srv/one"))

        # Removals come last, the NIC's after the mount's: the mount's fails, and so does the undo of the creation.
        removals = [Gate(lambda text: '"step":"started"' in text and '"action":"delete"' in text, strike)]
        run_with_gates(scplan, ["apply", "--auto-approve", "--json"], removals).ok(4)
    scplan("recover", "--forward").ok()
    scplan("plan", "--detailed-exitcode").ok()
    assert scplan("state", "list").ok().stdout.split() == [address(web, "mount/srv/one")]
    scplan("destroy", web.name, "--auto-approve").ok()
    assert difference(before, fingerprint([web])) == []


def test_replacement_that_is_in_use_is_not_covered_by_what_it_replaced(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    """Until the new mount can go, the old one is not put back: on top of it, nobody could tell them apart."""
    web, one, two = process_container, host_directory / "one", host_directory / "two"
    for directory in (one, two):
        directory.mkdir()
    scplan("apply", "--auto-approve", config=of(web, mounts=[f"{one}:/srv/swap"])).ok()
    before = fingerprint([web])
    scplan.write(of(web, mounts=[f"{two}:/srv/swap"], cgroup=IMPOSSIBLE))
    with ExitStack() as busy:
        gate = Gate(at_step("failed"), lambda: busy.enter_context(process_in(web, "/srv/swap")))
        ran = run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok(4)
        assert "what is in its place could not be taken away" in ran.stderr
        assert web.mount_points().count("/srv/swap") == 1
    scplan("recover").ok()
    assert difference(before, fingerprint([web])) == []
    scplan("plan", "--detailed-exitcode", config=of(web, mounts=[f"{one}:/srv/swap"])).ok()


def test_text_tells_what_was_done_and_undone(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    ran = scplan("apply", "--auto-approve", config=wanted(process_container, host_directory, **IMPOSSIBLE)).ok(3)
    rows = [row.split() for row in ran.stderr.splitlines() if row.startswith("  ")]
    done = [row[0] for row in rows if "done" in row]
    undone = [row[0] for row in rows if "undone" in row]
    (failed,) = [row[0] for row in rows if "failed:" in row]
    assert failed == f"{len(done) + 1}/{len(done) + 1}"
    assert len(done) == 4
    assert [number for number in undone if number != failed] == list(reversed(done))
    assert "everything is as before" in ran.stderr


# a container that ends in the middle

PLACES = range(1, 23, mixed.STRIDE)


@pytest.mark.needs("runc", "loop", "veth", "bridge")
@pytest.mark.parametrize("number", PLACES)
def test_container_that_ends_at_a_place_takes_nothing_of_others_along(
    session: Session, scplan: Scplan, number: int
) -> None:
    """What had been plugged into it went with it. The other container, the host and all records are as before."""
    with mixed.parts(session) as made, session.container("runc") as web, session.container("process") as db:
        both = mixed.before(web, db, made)
        alone = {**both, "containers": {db.name: both["containers"][db.name]}}
        scplan("apply", "--auto-approve", config=alone).ok()
        ip_inside(db, "route", "add", *mixed.ADOPTED)
        before = fingerprint([db])
        scplan("apply", "--auto-approve", config=both).ok()
        records = fingerprint(state_dir=scplan.state_dir / "containers")["state"]
        scplan.write(mixed.after(web, db, made))
        gate = Gate(at_step("started", number), lambda: kill(web))
        ran = run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok(3)
        assert f"container {web.name}" in ran.stderr
        assert fingerprint(state_dir=scplan.state_dir / "containers")["state"] == records
        wait_for_links(before["host"]["links"])
        # The stand-in for a NIC, being a veth, dies with a network namespace; hardware would not.
        stand_in = tuple(f"host.links.{name}:" for name in (made.nic.name, made.nic.peer))
        changes = difference(before, fingerprint([db]))
        assert [change for change in changes if not change.startswith(stand_in)] == []


def kill(container: Container) -> None:
    """Returns when the container's first process has ended."""
    pidfd = os.pidfd_open(container.pid)
    os.kill(container.pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def wait_for_links(names: dict[str, object]) -> None:
    """Waits until there are no other links on the host: the kernel takes a network namespace down a while later."""
    from tests.e2e.conftest import wait_until_gone

    wait_until_gone(set(names))


def test_physical_nic_is_given_back_when_its_container_ends_in_the_middle(
    session: Session, scplan: Scplan, veth_pair: Nic
) -> None:
    """As the kernel does it: the NIC of a container that ends is on the host under the name that it had inside."""
    ip("link", "set", veth_pair.name, "mtu", "1450", "address", "02:5c:95:00:00:09")
    ip("address", "add", "10.55.0.1/24", "dev", veth_pair.name)
    with session.container("process") as web, host_parts.scratch_directory(session) as directory:
        before = fingerprint()
        nic = {"name": "eth7", "type": "physical", "host_name": veth_pair.name, "mtu": 1300}
        scplan.write(of(web, nics=[nic | {"mac": "02:5c:95:00:00:0a"}], mounts=[f"{directory}:/m"]))

        def end() -> None:
            ip_inside(web, "link", "set", "eth7", "netns", str(os.getpid()))
            kill(web)

        gate = Gate(lambda text: '"step":"started"' in text and "/mount/m" in text, end)
        run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok(3)
        assert difference(before, fingerprint()) == []


def test_nothing_is_put_into_what_could_not_be_taken_away(
    process_container: Container, scplan: Scplan, session: Session
) -> None:
    """The mount that lay in the former one would land in the new one, which then could not be taken away any more."""
    web = process_container
    with ExitStack() as stack:
        former, inner, new = (stack.enter_context(host_parts.scratch_directory(session)) for _ in range(3))
        nested = of(web, mounts=[f"{former}:/srv/out", f"{inner}:/srv/out/in"])
        scplan("apply", "--auto-approve", config=nested).ok()
        before = fingerprint([web])
        scplan.write(of(web, mounts=[f"{new}:/srv/out"]))
        with ExitStack() as busy:
            gate = Gate(at_step("done", 3), lambda: busy.enter_context(process_in(web, "/srv/out")) and None)
            run_with_gates(scplan, ["apply", "--auto-approve", "--probe", "false", "--json"], [gate]).ok(4)
            assert os.listdir(new) == []
            scplan("recover").ok(4)
            assert os.listdir(new) == []
        scplan("recover").ok()
        assert difference(before, fingerprint([web])) == []
        scplan("plan", "--detailed-exitcode", config=nested).ok()


def test_what_was_undone_before_something_newer_is_undone_again(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    """The first mount made the directory of both, and could not remove it while the second one was still there."""
    web = process_container
    before = fingerprint([web])
    mounts = [f"{host_directory}:/srv/made/first", f"{host_directory}:/srv/made/second"]
    scplan.write(of(web, mounts=mounts, cgroup=IMPOSSIBLE))
    with ExitStack() as busy:
        gate = Gate(at_step("failed"), lambda: busy.enter_context(process_in(web, "/srv/made/second")) and None)
        run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok(4)
        assert web.stat("/srv/made/first") is None
    ran = scplan("recover").ok()
    assert "1 operations undone" in ran.stdout
    assert web.stat("/srv/made") is None
    assert difference(before, fingerprint([web])) == []
