"""What a container can keep waiting: file systems that never answer, processes that are stopped or gone."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from scplan.errors import KernelError
from scplan.linux.container import Container as Opened
from scplan.linux.host import Host
from scplan.linux.paths.lookup import LOOKUP_TIMEOUT_S
from scplan.linux.paths.rooted_path import open_in_root
from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.e2e.scene import config, of, refused
from tests.hostile.attacker import mount, once, stopped
from tests.hostile.fuse import hanging

pytestmark = pytest.mark.timeout(120)

_COMMANDS = (
    ("plan",),
    ("drift",),
    ("show",),
    ("snapshot",),
    ("apply", "--auto-approve"),
    ("destroy", "--auto-approve", "-f", "scplan.yaml"),
)

_MANY_MOUNTS = 10_000


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


@pytest.mark.needs("fuse")
def test_file_system_that_does_not_take_requests(process_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    sections = {"devices": ["/dev/null:/mnt/null"], "mounts": [f"{tmp_path}:/mnt/below"], "cgroup": {"pids.max": 99}}
    scplan.write(of(process_container, **sections))
    with hanging(process_container, "/mnt", reads=False), _within(LOOKUP_TIMEOUT_S + 5):
        refused(scplan("plan"), "did not answer within", process_container.name, "fuse")
    scplan("apply", "--auto-approve").ok()


@pytest.mark.needs("fuse")
def test_file_system_of_a_user_namespace(userns_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    """The kernel keeps those outside away from it, so that nothing waits."""
    scplan.write(of(userns_container, mounts=[f"{tmp_path}:/mnt/below"]))
    with hanging(userns_container, "/mnt", reads=True), _within(LOOKUP_TIMEOUT_S):
        refused(scplan("plan"), "EACCES", userns_container.name)
    scplan("apply", "--auto-approve").ok()


@pytest.mark.needs("fuse")
def test_every_command_ends_when_a_file_system_hangs(process_container: Container, scplan: Scplan) -> None:
    """What is there already hangs, and later answers again: nothing that scplan owns was forgotten."""
    once(process_container, lambda: os.mkdir("/mnt/in"))
    scplan.write(of(process_container, devices=[{"source": "/dev/null", "target": "/mnt/in/null"}]))
    scplan("apply", "--auto-approve").ok()
    with hanging(process_container, "/mnt", reads=True):
        running = [scplan.start(*arguments) for arguments in _COMMANDS]
        with _within(4 * LOOKUP_TIMEOUT_S + 5):
            for one in running:
                said = "".join(one.communicate(timeout=60))
                assert "did not answer within" in said
                assert "Traceback" not in said
    scplan("plan", "--detailed-exitcode").ok()
    scplan("destroy", "--auto-approve", process_container.name).ok()


@pytest.mark.needs("fuse")
def test_one_that_hangs_among_many(make_container: MakeContainer, scplan: Scplan) -> None:
    """Many containers are read by several processes; all of them end."""
    several = [make_container("process", with_cgroups=False) for _ in range(3)]
    sections = {"mounts": ["/etc/hostname:/mnt/name"]}
    with hanging(several[1], "/mnt", reads=True), _within(3 * LOOKUP_TIMEOUT_S + 5):
        refused(scplan("plan", config=config(*((one, sections) for one in several))), "did not answer", several[1].name)
        left_out = scplan("plan", "--exclude", several[1].name).ok()
        assert several[1].name not in left_out.stdout
        assert left_out.stdout.count("mount /mnt/name") == 2
        assert scplan("apply", "--auto-approve", "--target", several[0].name).ok().stderr.count("done") == 1


@pytest.mark.needs("fuse")
def test_write_that_hangs_is_undone(process_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    """It hangs after the plan was made: what was made before is taken back, and nothing stays locked."""
    other = tmp_path / "source"
    other.mkdir()
    scplan.write(of(process_container, cgroup={"pids.max": 77}, mounts=[f"{other}:/mnt/a/b"]))
    before = process_container.cgroup_file("pids.max")
    running = scplan.start("apply", "--auto-approve", "--json")
    assert running.stdout
    with ExitStack() as stack:
        for line in running.stdout:
            if "/mount/" in line and "started" in line:
                break
        stack.enter_context(hanging(process_container, "/mnt", reads=True))
        _, said = running.communicate(timeout=90)
    # The mount was quicker than the file system, or it was undone.
    assert running.returncode in (0, 3, 4), said
    if running.returncode == 3:
        assert process_container.cgroup_file("pids.max") == before
    if running.returncode == 4:
        scplan("recover").ok()
    scplan("apply", "--auto-approve", "--lock-timeout", "1s").ok()


@pytest.mark.needs("fuse")
def test_step_that_not_even_a_kill_ends_is_given_up(process_container: Container, tmp_path: Path) -> None:
    """The next one is taken by another process; and what it holds can be unlocked all the same."""
    with (
        hanging(process_container, "/mnt", reads=True),
        Host() as host,
        Opened(process_container.name, process_container.pid, 0, host) as opened,
        (tmp_path / "lock").open("w") as lock,
        (tmp_path / "lock").open() as other,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _within(5), pytest.raises(KernelError, match="ETIMEDOUT"):
            host.stepper.take(partial(_open, "/mnt/in"), [opened.root_fd], what="open", timeout_s=0.5)
        with _within(1):
            host.stepper.take(partial(_open, "/srv"), [opened.root_fd], what="open")
            host.stepper.close()
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lock, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open(path: str, fds: Sequence[int]) -> None:
    open_in_root(fds[0], path)


def test_first_process_that_is_stopped(any_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    scplan.write(of(any_container, mounts=[f"{tmp_path}:/mnt/a:ro"], nics=[{"name": "eth9"}], cgroup={"pids.max": 50}))
    with stopped(any_container.pid):
        scplan("apply", "--auto-approve").ok()
        scplan("plan", "--detailed-exitcode").ok()
        scplan("destroy", "--auto-approve", any_container.name).ok()


def test_first_process_that_is_killed_during_an_apply(
    make_container: MakeContainer, scplan: Scplan, tmp_path: Path
) -> None:
    """At moments from the first millisecond on: it ends by itself, with an error, and the next plan knows."""
    for delay_s in (0.0, 0.15, 0.25, 0.35):
        container = make_container("process")
        mounts = [f"{tmp_path}:/mnt/{number}" for number in range(12)]
        scplan.write(of(container, mounts=mounts, cgroup={"pids.max": 50}))
        running = scplan.start("apply", "--auto-approve")
        time.sleep(delay_s)
        os.kill(container.pid, signal.SIGKILL)
        _, said = running.communicate(timeout=60)
        assert running.returncode in (0, 1, 3), said
        assert "Traceback" not in said
        assert "bug in scplan" not in said
        assert scplan("plan").code in (0, 1)


def test_process_id_that_was_taken_again(make_container: MakeContainer, scplan: Scplan, tmp_path: Path) -> None:
    """A saved plan is about a process, not about its number."""
    import json

    container = make_container("process")
    scplan.write(of(container, mounts=[f"{tmp_path}:/mnt/a"]))
    scplan("plan", "--out", "saved.plan").ok()
    path = scplan.directory / "saved.plan"
    document = json.loads(path.read_text())
    document["containers"][container.name]["start_time"] -= 100
    path.write_text(json.dumps(document))
    refused(scplan("apply", "--auto-approve", "saved.plan"), "another process", code=5)
    assert "/mnt/a" not in container.mount_points()


def test_ten_thousand_mounts(process_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    def fill() -> None:
        mount("tmpfs", "/mnt", "tmpfs")
        os.mkdir("/mnt/m")
        for _ in range(_MANY_MOUNTS):
            mount("/bin", "/mnt/m", flags=4096)

    once(process_container, fill)
    assert len(process_container.mounts()) > _MANY_MOUNTS
    scplan.write(of(process_container, mounts=[f"{tmp_path}:/srv/a"], devices=["/dev/null:/srv/null"]))
    with _within(60):
        scplan("apply", "--auto-approve").ok()
        scplan("plan", "--detailed-exitcode").ok()
        scplan("destroy", "--auto-approve", process_container.name).ok()


def test_full_file_system_is_undone(process_container: Container, scplan: Scplan, tmp_path: Path) -> None:
    def fill() -> None:
        mount("tmpfs", "/mnt", "tmpfs", options="size=16k,nr_inodes=4")
        with open("/mnt/full", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        os.mkdir("/mnt/a")
        os.mkdir("/mnt/b")

    once(process_container, fill)
    before = process_container.cgroup_file("pids.max")
    scplan.write(
        of(process_container, cgroup={"pids.max": 50}, mounts=[f"{tmp_path}:/mnt/c"], devices=["/dev/null:/mnt/null"])
    )
    refused(scplan("apply", "--auto-approve"), "ENOSPC", code=3)
    assert process_container.cgroup_file("pids.max") == before
    assert "/mnt/c" not in process_container.mount_points()


def test_mounts_over_dev_and_proc(any_container: Container, scplan: Scplan) -> None:
    """What is plugged in goes where the container's paths lead now; nothing is read from a /proc of the container's."""

    def cover() -> None:
        mount("tmpfs", "/dev", "tmpfs")
        mount("tmpfs", "/proc", "tmpfs")
        os.makedirs("/proc/self/fd")
        os.symlink("/etc", "/proc/1")

    once(any_container, cover)
    scplan.write(of(any_container, devices=["/dev/null:/dev/n:rw"], mounts=["/etc/hostname:/proc2/name:ro"]))
    scplan("apply", "--auto-approve").ok()
    scplan("plan", "--detailed-exitcode").ok()
    scplan("destroy", "--auto-approve", any_container.name).ok()
