"""Many runs at once: each waits for its turn, nothing is lost, and every record fits live state at the end."""

from __future__ import annotations

import os
import platform
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scplan.workflow import planning, scene
from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.e2e.gate import Gate, at_step, run_with_gates
from tests.e2e.mixed import process_in
from tests.e2e.scene import Config, naming, of
from tests.e2e.test_predecessor import killed_at
from tests.tried import TRIED

pytestmark = pytest.mark.needs("cgroup1")
AT_ONCE = 16
RACES = TRIED["races"]


def start(scplan: Scplan, *arguments: str, config: Config | None = None) -> subprocess.Popen[str]:
    """A run in the background, with a configuration file of its own."""
    if config is not None:
        file = scplan.write(config, f"{os.urandom(6).hex()}.yaml")
        arguments = (*arguments, "-f", str(file))
    return scplan.start(*arguments)


def codes(runs: list[subprocess.Popen[str]], allowed: set[int], what: str) -> list[int]:
    """The exit codes of runs that were at work at once; fails with what was said when one is not allowed."""
    found = []
    for run in runs:
        stdout, stderr = run.communicate(timeout=120)
        assert run.returncode in allowed, f"{run.args}: {run.returncode}\n{stdout}{stderr}"
        assert "Traceback" not in stderr
        assert "bug in scplan" not in stderr
        found.append(run.returncode)
    RACES[what] += len(runs)
    return found


def assert_consistent(scplan: Scplan) -> None:
    """Every record is as live state is, and nothing was left lying about."""
    report = scplan("drift", "--json").ok().json
    assert report["drifted"] == []
    left = [path.name for path in scplan.state_dir.rglob("*") if ".tmp" in path.name]
    assert left == []
    assert list((scplan.state_dir / "journal").iterdir()) == []


def changes(scplan: Scplan, config: Config) -> int:
    """How many changes a plan has; made without starting scplan."""
    file = scplan.write(config, "looked-at.yaml")
    request = scene.Request(state_dir=str(scplan.state_dir), files=(str(file),))
    return len(planning.make_plan(request).changes)


def sections(container: Container, number: int, bridge: str, directory: Path) -> dict[str, Any]:
    """A configuration that differs from those of all other numbers, and shares a bridge with them."""
    return {
        **naming(container),
        "nics": [{"name": "eth1", "bridge": bridge, "addresses": [f"10.60.{number}.5/16"]}],
        "routes": [{"to": f"10.{100 + number}.0.0/16", "dev": "eth1"}],
        "mounts": [f"{directory}:/srv/{number}"],
        "cgroup": {"pids.max": 100 + number},
    }


@pytest.mark.needs("bridge")
def test_applies_to_many_containers_that_share_a_bridge(
    make_container: MakeContainer, scplan: Scplan, bridge: str, host_directory: Path
) -> None:
    containers = [make_container("process") for _ in range(AT_ONCE)]
    before = fingerprint(containers[:3])
    asked = {one.name: sections(one, number, bridge, host_directory) for number, one in enumerate(containers)}
    each = [{"version": 1, "containers": {name: entry}} for name, entry in asked.items()]
    codes([start(scplan, "apply", "--auto-approve", config=one) for one in each], {0}, "applies to many containers")
    assert_consistent(scplan)
    scplan("plan", "--detailed-exitcode", config={"version": 1, "containers": asked}).ok()
    names = [one.name for one in containers]
    runs = [start(scplan, "destroy", *names[first::4], "--auto-approve") for first in range(4)]
    codes(runs, {0}, "destroys of many containers")
    assert difference(before, fingerprint(containers[:3])) == []
    assert scplan("state", "list").ok().stdout == ""


@pytest.mark.needs("bridge")
def test_applies_to_one_container_take_turns(
    process_container: Container, scplan: Scplan, bridge: str, host_directory: Path
) -> None:
    """The last one wins, wholly: what the records and the container have is what one of the files says."""
    web = process_container
    before = fingerprint([web])
    asked = [
        {"version": 1, "containers": {web.name: sections(web, number, bridge, host_directory)}}
        for number in range(AT_ONCE)
    ]
    codes([start(scplan, "apply", "--auto-approve", config=one) for one in asked], {0}, "applies to one container")
    assert_consistent(scplan)
    assert [changes(scplan, one) for one in asked].count(0) == 1
    assert len(os.listdir(scplan.state_dir / "history")) == AT_ONCE
    scplan("destroy", web.name, "--auto-approve").ok()
    assert difference(before, fingerprint([web])) == []


@pytest.mark.needs("bridge")
def test_looking_on_while_others_apply_and_destroy(
    make_container: MakeContainer, scplan: Scplan, bridge: str, host_directory: Path
) -> None:
    """What only reads never fails, and never says that something is damaged."""
    containers = [make_container("process") for _ in range(2)]
    before = fingerprint(containers)
    asked = {one.name: sections(one, number, bridge, host_directory) for number, one in enumerate(containers)}
    everything = {"version": 1, "containers": asked}
    scplan("apply", "--auto-approve", config=everything).ok()
    writers, readers = [], []
    for turn in range(2):
        for one in containers:
            # There may be nothing to destroy yet, or any more.
            writers.append(start(scplan, "destroy", one.name, "--auto-approve"))
            changed = sections(one, 10 * turn + 20, bridge, host_directory)
            only = {"version": 1, "containers": {one.name: changed}}
            writers.append(start(scplan, "apply", "--auto-approve", config=only))
        readers += [start(scplan, "plan", config=everything), scplan.start("drift"), scplan.start("state", "list")]
        codes(readers, {0}, "readers next to applies")
        readers.clear()
    codes(writers, {0, 1}, "applies against destroys")
    assert_consistent(scplan)
    scplan("apply", "--auto-approve", config=everything).ok()
    scplan("destroy", *(one.name for one in containers), "--auto-approve").ok()
    assert difference(before, fingerprint(containers)) == []


@pytest.mark.parametrize("command", ["plan", "drift"])
def test_looking_in_the_middle_of_an_apply_is_about_its_end(
    process_container: Container, scplan: Scplan, host_directory: Path, command: str
) -> None:
    """A NIC that is made already, and in no record yet, is not taken for somebody else's."""
    scplan.write(of(process_container, nics=[{"name": "eth1"}], mounts=[f"{host_directory}:/srv/data"]))
    looking: list[subprocess.Popen[str]] = []

    def look() -> None:
        looking.append(scplan.start(command, "--detailed-exitcode"))
        # It has looked, and waits: only then the apply goes on.
        wait_until(lambda: asleep(looking[0].pid))

    gate = Gate(at_step("started", 2), look)
    run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok()
    codes(looking, {0}, "readers next to applies")


def asleep(pid: int) -> bool:
    """Whether a process waits in clock_nanosleep(2), as it does between two looks."""
    number = {"x86_64": "230", "aarch64": "115"}[platform.machine()]
    return Path(f"/proc/{pid}/syscall").read_text().startswith(f"{number} ")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# who holds a lock


@contextmanager
def holder(scplan: Scplan, config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """An apply that holds its locks: it asks on a terminal, and nobody answers."""
    file = scplan.write(config, "holder.yaml")
    ours, theirs = pty.openpty()
    command = scplan.command("apply", "-f", str(file))
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=scplan.directory, env=scplan.environment
    ) as run:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        try:
            yield run
        finally:
            run.send_signal(signal.SIGCONT)
            run.kill()
            os.close(ours)


def test_lock_of_a_killed_holder_is_free_at_once(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, cgroup={"pids.max": 55})
    with holder(scplan, asked) as held:
        held.kill()
        held.wait()
        scplan("apply", "--auto-approve", "--lock-timeout", "0s", config=asked).ok()
    RACES["lock holders killed"] += 1


def test_waiting_for_a_stopped_holder_is_bounded_and_tells_who_it_is(
    process_container: Container, scplan: Scplan
) -> None:
    asked = of(process_container, cgroup={"pids.max": 55})
    with holder(scplan, asked) as held:
        held.send_signal(signal.SIGSTOP)
        for command in (("apply", "--auto-approve"), ("apply", "--auto-approve", "--json")):
            begun = time.monotonic()
            ran = scplan(*command, "--lock-timeout", "300ms", config=asked).ok(6)
            assert 0.3 <= time.monotonic() - begun < 5
            assert f"process {held.pid}" in ran.stderr
        # It holds others up, not those who only look.
        scplan("plan").ok()
        scplan("drift").ok()
    RACES["lock holders stopped"] += 1


def test_one_that_waits_goes_on_when_the_holder_is_done(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    """Its plan is made after the wait, so that it sees what the other one has made."""
    web = process_container
    first = of(web, cgroup={"pids.max": 55}, mounts=[f"{host_directory}:/srv/data"])
    second = of(web, cgroup={"pids.max": 55})
    waiting: list[subprocess.Popen[str]] = []

    def start_second() -> None:
        waiting.append(start(scplan, "apply", "--auto-approve", "--json", config=second))

    scplan.write(first)
    gate = Gate(at_step("started", 1), start_second)
    run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok()
    stdout, stderr = waiting[0].communicate(timeout=60)
    assert waiting[0].returncode == 0, stderr
    assert '"action":"delete"' in stdout
    assert "/srv/data" not in web.mount_points()
    assert_consistent(scplan)
    RACES["waits for a running apply"] += 1


# recovering next to an apply


def test_recover_leaves_the_journal_of_a_running_apply_alone(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    asked = of(process_container, cgroup={"pids.max": 55}, mounts=[f"{host_directory}:/srv/{n}" for n in range(3)])
    scplan.write(asked)

    def recover() -> None:
        (journal,) = (scplan.state_dir / "journal").iterdir()
        written = journal.read_bytes()
        for option in ((), ("--back",), ("--forward",)):
            assert "Nothing to recover." in scplan("recover", "--lock-timeout", "200ms", *option).ok().stdout
        assert journal.read_bytes() == written
        # And it does not make anyone believe in a crash.
        other = scplan("apply", "--auto-approve", "--lock-timeout", "200ms").ok(6)
        assert "recover" not in other.stderr
        RACES["recovers next to an apply"] += 3

    gates = [Gate(at_step("started", number), recover) for number in (1, 3)]
    run_with_gates(scplan, ["apply", "--auto-approve", "--json"], gates).ok()
    scplan("plan", "--detailed-exitcode").ok()
    assert_consistent(scplan)


@pytest.mark.needs("strace")
def test_recovers_at_once_do_it_once(process_container: Container, scplan: Scplan, host_directory: Path) -> None:
    before = fingerprint([process_container])
    asked = of(process_container, nics=[{"name": "eth1"}], mounts=[f"{host_directory}:/srv/data"])
    assert killed_at(scplan, asked, "fdatasync", 3)
    codes([scplan.start("recover") for _ in range(4)], {0}, "recovers at once")
    assert difference(before, fingerprint([process_container])) == []
    assert len(os.listdir(scplan.state_dir / "history")) == 1
    assert_consistent(scplan)


def test_recovers_at_once_that_can_not_do_it_keep_the_journal(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    web = process_container
    before = fingerprint([web])
    asked = of(web, mounts=[f"{host_directory}:/srv/one"], cgroup={"memory.max": "96k"})
    scplan.write(asked)
    with ExitStack() as busy:
        gate = Gate(at_step("failed"), lambda: busy.enter_context(process_in(web, "/srv/one")))
        run_with_gates(scplan, ["apply", "--auto-approve", "--json"], [gate]).ok(4)
        # One that finds another at work on it leaves it to that.
        assert 4 in codes([scplan.start("recover") for _ in range(3)], {0, 4}, "recovers that can't")
        assert len(list((scplan.state_dir / "journal").iterdir())) == 1
    codes([scplan.start("recover") for _ in range(3)], {0}, "recovers at once")
    assert difference(before, fingerprint([web])) == []
    assert_consistent(scplan)
