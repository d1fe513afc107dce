"""One contract for all kinds, on real containers.

Create then read is equal; update; replace; delete; the second plan is empty; a failure undoes everything; a death at
any operation is recovered.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from scplan.errors import ApplyFailed
from scplan.kinds import KINDS as ALL_KINDS
from scplan.model.change import Action
from scplan.model.probe import Probe
from scplan.model.report import Event, Step
from scplan.store.state import State
from scplan.workflow import applying, planning, scene
from tests.conftest import MakeContainer
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.session import Session
from tests.e2e.scene import Config, of

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1", "runc", "crun", "userns", "veth", "bridge", "loop")

Sections = dict[str, Any]
KINDS = ("device", "nic", "physical-nic", "route", "mount", "cgroup")
TARGETS = [
    *(("runc", kind) for kind in KINDS),
    *(("crun", kind) for kind in KINDS),
    *(("process", kind) for kind in KINDS),
    *(("process-userns", kind) for kind in KINDS),
    ("runc-userns", "device"),
    ("runc-userns", "mount"),
]


class Ground:
    """A container with a configuration file of its own, and parts of the host that its resources can use."""

    def __init__(self, container: Container, directory: Path, parts: dict[str, str]) -> None:
        self.container = container
        self.parts = parts
        self.file = directory / "scplan.yaml"
        self.request = scene.Request(state_dir=str(directory / "state"), files=(str(self.file),), lock_timeout_s=5)

    def configuration(self, sections: Any) -> Config:
        return of(self.container, **sections)

    def write(self, sections: Any) -> None:
        self.file.write_text(yaml.safe_dump(self.configuration(sections)))

    def actions(self) -> list[str]:
        return [str(change.action) for change in planning.make_plan(self.request).changes]

    def apply(self, on_event: Callable[[Any], None] = lambda _: None, probes: tuple[Probe, ...] = ()) -> None:
        with applying.open_apply(self.request._replace(probes=probes)) as run:
            run.execute(on_event)

    def reach(self, sections: Any) -> list[str]:
        """Applies a configuration; the plan after it must be empty. Returns the actions that it took."""
        self.write(sections)
        actions = self.actions()
        self.apply()
        assert self.actions() == []
        return actions

    def picture(self) -> dict[str, Any]:
        return fingerprint([self.container])


@pytest.fixture(params=TARGETS, ids=lambda target: "-".join(target))
def ground_and_kind(
    request: pytest.FixtureRequest, make_container: MakeContainer, session: Session
) -> Iterator[tuple[Ground, str]]:
    name, kind = request.param
    runtime, _, userns = name.partition("-")
    container = make_container(runtime, userns=bool(userns))
    with _parts(session) as parts, host_parts.scratch_directory(session) as directory:
        yield Ground(container, directory, parts), kind


@contextmanager
def _parts(session: Session) -> Iterator[dict[str, str]]:
    with (
        host_parts.loop_disk(session) as disk,
        host_parts.bridge(session) as bridge,
        host_parts.nic(session) as nic,
        host_parts.scratch_directory(session) as one,
        host_parts.scratch_directory(session) as two,
    ):
        (one / "file").write_text("one")
        yield {"disk": disk.path, "bridge": bridge, "nic": nic.name, "one": str(one), "two": str(two)}


def _states(kind: str, parts: dict[str, str]) -> tuple[Sections, Sections, Sections]:
    """Three configurations of one kind: to begin with, changed in place, and replaced."""
    match kind:
        case "device":
            disk, null = (
                {"source": parts["disk"], "target": "/dev/in/data"},
                {"source": "/dev/null", "target": "/dev/n"},
            )
            return (
                {"devices": [disk | {"permissions": "rw", "io": {"read_bps": "10m", "write_iops": 100}}, null]},
                {"devices": [disk | {"permissions": "r", "mode": "0640", "gid": 6, "io": {"read_bps": "5m"}}, null]},
                {"devices": [disk | {"permissions": "rwm"}, {"source": "/dev/zero", "target": "/dev/n"}]},
            )
        case "nic":
            nic = {"name": "eth7", "bridge": parts["bridge"], "addresses": ["10.93.0.5/24", "fd93::5/64"]}
            return (
                {"nics": [nic, {"name": "eth8"}]},
                {
                    "nics": [
                        nic | {"mtu": 1400, "mac": "02:00:5e:93:00:01", "addresses": ["10.93.0.6/24"]},
                        {"name": "eth8"},
                    ]
                },
                {
                    "nics": [
                        {"name": "eth7", "type": "physical", "host_name": parts["nic"]},
                        {"name": "eth8", "qlen": 50},
                    ]
                },
            )
        case "physical-nic":
            nic = {"name": "eth7", "type": "physical", "host_name": parts["nic"]}
            return (
                {"nics": [nic | {"addresses": ["10.93.0.5/24"]}]},
                {"nics": [nic | {"addresses": ["fd93::5/64"], "mtu": 1300, "mac": "02:00:5e:93:00:02"}]},
                {"nics": [{"name": "eth7", "addresses": ["10.93.0.5/24"]}]},
            )
        case "route":
            nics = {"nics": [{"name": "eth7", "addresses": ["10.93.0.5/24", "fd93::5/64"]}]}
            six = {"to": "fd94::/64", "via": "fd93::1", "metric": 77}
            return (
                nics
                | {"routes": [{"to": "10.94.0.0/16", "via": "10.93.0.1"}, {"to": "default", "via": "10.93.0.1"}, six]},
                nics | {"routes": [{"to": "10.94.0.0/16", "via": "10.93.0.2"}, {"to": "default", "dev": "eth7"}, six]},
                nics | {"routes": [{"to": "10.94.0.0/16", "via": "10.93.0.2", "metric": 5, "table": 100}]},
            )
        case "mount":
            one, two = parts["one"], parts["two"]
            return (
                {"mounts": [f"{one}:/mnt/deep/one:ro", f"{one}/file:/mnt/file", f"{two}:/mnt/two"]},
                {"mounts": [f"{one}:/mnt/deep/one:rw,private", f"{one}/file:/mnt/file:ro", f"{two}:/mnt/two"]},
                {"mounts": [f"{two}:/mnt/deep/one", f"{one}/file:/mnt/file"]},
            )
        case "cgroup":
            return (
                {"cgroup": {"memory.max": "256m", "pids.max": 50, "cpu.max": "50000 100000", "cpu.weight": 50}},
                {"cgroup": {"memory.max": "128m", "pids.max": "max", "cpu.max": "max", "cpuset.cpus": "0"}},
                {"cgroup": {"cpu.idle": 1, "memory.max": "512m", "memory.swap.max": "64m", "cpu.weight": 70}},
            )
    raise AssertionError(kind)


# What is tried last, when all is made, and fails.
_IMPOSSIBLE = (Probe("false"),)


def test_every_state_is_reached_from_every_other(ground_and_kind: tuple[Ground, str]) -> None:
    ground, kind = ground_and_kind
    before = ground.picture()
    first, changed, replaced = _states(kind, ground.parts)
    assert set(ground.reach(first)) <= {"create"}
    pictured = without_random_addresses(ground.picture())
    assert "update" in ground.reach(changed)
    ground.reach(replaced)
    ground.reach(first)
    assert difference(pictured, without_random_addresses(ground.picture())) == []
    ground.reach({})
    assert difference(before, ground.picture()) == []


def without_random_addresses(picture: dict[str, Any]) -> dict[str, Any]:
    """The kernel makes up a MAC for each new veth that was given none."""
    for side in picture.values():
        for link in side["links"].values():
            if link.get("linkinfo", {}).get("info_kind") == "veth":
                link.pop("address")
    return picture


def test_a_failure_after_it_undoes_every_change(ground_and_kind: tuple[Ground, str]) -> None:
    ground, kind = ground_and_kind
    states = _states(kind, ground.parts)
    at_rest: Sections = {}
    for wanted in (*states, states[0]):
        before = ground.picture()
        ground.write(wanted)
        with pytest.raises(ApplyFailed):
            ground.apply(probes=_IMPOSSIBLE)
        assert difference(before, ground.picture()) == []
        ground.write(at_rest)
        assert ground.actions() == []
        ground.reach(wanted)
        at_rest = wanted


def test_a_failed_removal_is_put_back(ground_and_kind: tuple[Ground, str]) -> None:
    """Deletions come last, so a removal is undone when a later one fails: here of a mount that is in use."""
    ground, kind = ground_and_kind
    first = _states(kind, ground.parts)[0]
    busy = {"mounts": [*first.get("mounts", []), f"{ground.parts['two']}:/busy"]}
    ground.reach(first | busy)
    with _process_in(ground.container, "/busy"):
        before = ground.picture()
        ground.write({})
        with pytest.raises(ApplyFailed, match="umount2"):
            ground.apply()
        assert difference(before, ground.picture()) == []
        ground.write(first | busy)
        assert ground.actions() == []


@contextmanager
def _process_in(container: Container, directory: str) -> Iterator[None]:
    inside = subprocess.Popen(
        container.exec_command(["sh", "-c", f"cd {directory} && echo in && exec sleep 1000"]), stdout=subprocess.PIPE
    )
    assert inside.stdout is not None
    assert inside.stdout.readline() == b"in\n"
    try:
        yield
    finally:
        inside.kill()
        inside.wait()
        container.exec(["pkill", "-f", "sleep 1000$"])
        inside.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_undoes_every_change(
    make_container: MakeContainer, session: Session, number: signal.Signals
) -> None:
    with _parts(session) as parts, host_parts.scratch_directory(session) as directory:
        ground = Ground(make_container("process"), directory, parts)
        before = ground.picture()
        ground.write(_states("nic", parts)[0] | _states("mount", parts)[0])

        def stop(event: Any) -> None:
            # Who is impatient asks again while it is undone.
            if isinstance(event, Event) and (event.step, event.number) in ((Step.STARTED, 4), (Step.UNDOING, 2)):
                signal.raise_signal(number)

        former = signal.signal(number, signal.SIG_DFL)
        try:
            with pytest.raises(ApplyFailed, match="interrupted"):
                ground.apply(stop)
            assert signal.getsignal(number) is signal.SIG_DFL
        finally:
            signal.signal(number, former)
        assert difference(before, ground.picture()) == []


@pytest.mark.parametrize("step", [Step.STARTED, Step.DONE])
def test_a_death_at_every_operation_is_recovered(ground_and_kind: tuple[Ground, str], step: Step) -> None:
    ground, kind = ground_and_kind
    first, changed, replaced = _states(kind, ground.parts)
    ground.reach(first)
    for wanted in (changed, replaced, {}):
        number = 1
        while _dies_at(ground, wanted, step, number):
            number += 1
        assert number > 1
        ground.reach(wanted)


def _dies_at(ground: Ground, wanted: Sections, step: Step, number: int) -> bool:
    """Applies in a child that kills itself at an operation, recovers, and compares; False when it had not so many."""
    before = ground.picture()
    at_rest = ground.file.read_text()
    ground.write(wanted)
    if not killed_while_applying(ground, step, number):
        return False
    lines: list[str] = []
    applying.recover(ground.request, "auto", lambda _: None, lines.append)
    assert len(lines) == 1
    assert difference(before, ground.picture()) == []
    ground.file.write_text(at_rest)
    assert ground.actions() == []
    return True


def killed_while_applying(ground: Ground, step: Step, number: int) -> bool:
    def die(event: Event) -> None:
        if isinstance(event, Event) and (event.step, event.number) == (step, number):
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            ground.apply(die)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_what_is_there_is_adopted_and_kept(ground_and_kind: tuple[Ground, str]) -> None:
    ground, kind = ground_and_kind
    first = _states(kind, ground.parts)[0]
    ground.reach(first)
    before = ground.picture()
    for runtime, name in State(ground.request.state_dir, ALL_KINDS).names():
        os.unlink(f"{ground.request.state_dir}/containers/{runtime}/{name}.json")
    assert set(ground.actions()) == {str(Action.ADOPT)}
    ground.apply()
    assert ground.actions() == []
    assert difference(before, ground.picture()) == []
