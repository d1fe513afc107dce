"""The stepper: it comes back from wherever a step leads it, and holds what its parent has locked until that ends."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from scplan.applying.execute import Executor
from scplan.errors import KernelError, ScplanError
from scplan.kinds import KINDS
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.processes.namespaces import Child
from scplan.linux.processes.steps import Stepper
from scplan.linux.syscalls import CLONE_NEWNS, CLONE_NEWUSER, make_rprivate, unshare
from scplan.model.report import Event
from scplan.model.report import Step as Stage
from scplan.workflow import applying, scene
from tests.conftest import Scplan
from tests.containers import container as throwaway
from tests.e2e.scene import of
from tests.hostile.attacker import MS_BIND, mount

pytestmark = pytest.mark.needs("root", "busybox")


@pytest.fixture
def stepper() -> Iterator[Stepper]:
    with Stepper() as made:
        yield made


@pytest.fixture
def container(process_container: throwaway.Container) -> Iterator[Container]:
    with Host() as host, Container(process_container.name, process_container.pid, 0, host) as opened:
        yield opened


# what steps do


def _surroundings(_: Sequence[int] = ()) -> dict[str, object]:
    root, umask = os.stat("/"), os.umask(0)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "mount namespace": os.readlink("/proc/self/ns/mnt"),
        "root": (root.st_dev, root.st_ino),
        "directory": os.getcwd(),
        "umask": umask,
        "imports": (sys.path[:], list(map(repr, sys.path_hooks)), list(map(repr, sys.meta_path))),
        "fds": _open_files(),
    }


def _open_files(_: Sequence[int] = ()) -> list[str]:
    """What is open besides stdio and the listing itself."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(path for path in found if path != os.devnull)


def _wander(container: Container) -> int:
    """Enters, and leaves everything there as it should not be; the number of entries of the root seen there."""
    container.enter()
    os.chdir("/bin")
    os.open("/", os.O_RDONLY)
    return len(os.listdir("/"))


def _leave_mounts(_: Sequence[int]) -> None:
    unshare(CLONE_NEWNS, name="the mount namespace")


def _lose_the_way(_: Sequence[int]) -> None:
    unshare(CLONE_NEWUSER, name="the user namespace")


def _import(name: str, _: Sequence[int]) -> str:
    return str(__import__(name).__file__)


def _sleep(_: Sequence[int]) -> None:
    time.sleep(60)


def _die(_: Sequence[int]) -> None:
    os._exit(3)


def _fail(error: BaseException, _: Sequence[int]) -> None:
    raise error


def _stat(fds: Sequence[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


# the way back


def test_step_inside_a_container_leaves_the_process_as_it_was(container: Container) -> None:
    stepper = container.host.stepper
    before = stepper.take(_surroundings, [], what="look")
    assert container.bounded(_wander, what="wander") > 0
    assert stepper.take(_surroundings, [], what="look") == before
    assert before["mount namespace"] == os.readlink("/proc/self/ns/mnt")


def test_step_is_inside(container: Container, process_container: throwaway.Container) -> None:
    process_container.exec(["mkdir", "/srv/only-here"], check=True)
    assert container.bounded(_entries_of_srv, what="list") == ["only-here"]


def _entries_of_srv(container: Container) -> list[str]:
    container.enter()
    return os.listdir("/srv")


def test_modules_can_be_imported_again_outside(container: Container) -> None:
    with pytest.raises(ScplanError, match="ModuleNotFoundError"):
        container.bounded(_import_inside, what="import")
    assert "/colorsys.py" in container.host.stepper.take(partial(_import, "colorsys"), [], what="import")


def _import_inside(container: Container) -> None:
    container.enter()
    import colorsys  # noqa: F401


def test_step_that_made_a_mount_namespace_leaves_it(stepper: Stepper) -> None:
    before = stepper.take(_surroundings, [], what="look")
    stepper.take(_leave_mounts, [], what="leave")
    assert stepper.take(_surroundings, [], what="look") == before


def test_root_of_a_scplan_in_a_chroot_is_found_again(tmp_path: Path) -> None:
    """It is not that of its mount namespace, which entering one leads to."""

    def look_twice() -> list[dict[str, object]]:
        unshare(CLONE_NEWNS, name="the mount namespace")
        make_rprivate("/")
        for name in ("dev", "proc"):
            (tmp_path / name).mkdir()
            mount(f"/{name}", str(tmp_path / name), flags=MS_BIND)
        os.chroot(tmp_path)
        with Stepper() as stepper:
            before = stepper.take(_surroundings, [], what="look")
            stepper.take(_leave_mounts, [], what="leave")
            return [before, stepper.take(_surroundings, [], what="look")]

    root = os.stat(tmp_path)
    before, after = Child(look_twice, what="look twice").result()
    assert after == before
    assert before["root"] == (root.st_dev, root.st_ino)


def test_process_that_finds_no_way_back_takes_no_other_step(stepper: Stepper) -> None:
    before = stepper.take(_surroundings, [], what="look")
    with pytest.raises(ScplanError, match=r"setns.*EPERM"):
        stepper.take(_lose_the_way, [], what="lose the way")
    now = stepper.take(_surroundings, [], what="look")
    assert now["pid"] != before["pid"]
    assert now["mount namespace"] == before["mount namespace"]


def test_each_step_sees_the_container_as_it_is_then(container: Container) -> None:
    assert container.bounded(_mount_points, what="read mounts") == container.bounded(_mount_points, what="read mounts")
    inside = ["nsenter", f"--target={container.pid}", "--mount", "/bin/busybox"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "x", "/srv"], check=True)
    assert "/srv" in container.bounded(_mount_points, what="read mounts")


def _mount_points(container: Container) -> list[str]:
    return [mount.point for mount in container.mounts()]


# what goes wrong in a step


def test_errors_come_back_as_what_they_were_and_the_process_goes_on(stepper: Stepper) -> None:
    stepper.take(_open_files, [], what="look")
    pid = stepper.pid
    with pytest.raises(FileNotFoundError):
        stepper.take(partial(_fail, FileNotFoundError(errno.ENOENT, "gone", "/x")), [], what="fail")
    with pytest.raises(ScplanError, match="refused") as caught:
        stepper.take(partial(_fail, ScplanError("refused", hint="try again")), [], what="fail")
    assert caught.value.diagnostics[0].hint == "try again"
    with pytest.raises(ScplanError, match="bug in scplan") as caught:
        stepper.take(partial(_fail, KeyError("x")), [], what="stumble")
    assert "test_steps.py" in caught.value.diagnostics[0].detail
    assert stepper.pid == pid


def test_one_that_hangs_is_killed_in_time_and_the_next_step_works(stepper: Stepper) -> None:
    stepper.take(_open_files, [], what="look")
    pid = stepper.pid
    assert pid is not None
    began = time.monotonic()
    with pytest.raises(KernelError, match=r"sleep: ETIMEDOUT: .* took over 0.2 s"):
        stepper.take(_sleep, [], what="sleep", timeout_s=0.2)
    assert time.monotonic() - began < 5
    assert not os.path.exists(f"/proc/{pid}")
    assert stepper.take(_open_files, [], what="look")


def test_death_is_told_at_once_and_the_next_step_works(stepper: Stepper) -> None:
    began = time.monotonic()
    with pytest.raises(KernelError, match="died") as caught:
        stepper.take(_die, [], what="die")
    assert caught.value.errno == errno.ECHILD
    assert "took over" not in str(caught.value)
    assert time.monotonic() - began < 5
    assert stepper.take(_open_files, [], what="look")


def test_one_that_was_killed_while_it_was_idle_is_told(stepper: Stepper) -> None:
    stepper.take(_open_files, [], what="look")
    assert stepper.pid is not None
    os.kill(stepper.pid, signal.SIGKILL)
    with pytest.raises(KernelError, match="died"):
        stepper.take(_open_files, [], what="look")
    assert stepper.take(_open_files, [], what="look")


def test_interrupted_step_does_not_go_on(stepper: Stepper) -> None:
    """What it would answer is not taken for the answer of the next one."""
    former = signal.signal(signal.SIGUSR1, lambda *_: _fail(KeyboardInterrupt(), ()))
    try:
        stepper.take(_open_files, [], what="look")
        pid = stepper.pid
        subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -USR1 {os.getpid()}"])
        with pytest.raises(KeyboardInterrupt):
            stepper.take(_sleep, [], what="sleep")
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert not os.path.exists(f"/proc/{pid}")
    assert stepper.take(partial(_import, "os"), [], what="look") == os.__file__


def test_requests_to_stop_are_for_its_parent(stepper: Stepper) -> None:
    stepper.take(_open_files, [], what="look")
    pid = stepper.pid
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert stepper.take(_open_files, [], what="look")
    assert stepper.pid == pid


def test_requests_and_answers_may_be_large(stepper: Stepper) -> None:
    large = "x" * (8 << 20)
    with pytest.raises(ScplanError) as caught:
        stepper.take(partial(_fail, ScplanError(large)), [], what="fail")
    assert caught.value.diagnostics[0].summary == large


# what it holds


def test_it_holds_what_is_locked_and_nothing_else(stepper: Stepper, tmp_path: Path) -> None:
    locked, other = tmp_path / "locked", tmp_path / "other"
    reader, writer = os.pipe()
    with locked.open("w") as one, other.open("w"):
        fcntl.flock(one, fcntl.LOCK_EX)
        held = stepper.take(_open_files, [], what="look")
    os.close(reader)
    os.close(writer)
    assert str(locked) in held
    assert [path for path in held if path not in (str(locked), "/")] == [
        f"/proc/{stepper.pid}",
        next(path for path in held if path.startswith("mnt:")),
        next(path for path in held if path.startswith("socket:")),
    ]


def test_new_one_holds_what_was_locked_meanwhile(stepper: Stepper, tmp_path: Path) -> None:
    with (tmp_path / "one").open("w") as one, (tmp_path / "two").open("w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        stepper.take(_open_files, [], what="look")
        fcntl.flock(two, fcntl.LOCK_EX)
        stepper.close()
        held = stepper.take(_open_files, [], what="look")
    assert {str(tmp_path / "one"), str(tmp_path / "two")} <= set(held)


def test_fds_that_come_along_are_closed_after_the_step(stepper: Stepper, tmp_path: Path) -> None:
    before = stepper.take(_open_files, [], what="look")
    with (tmp_path / "file").open("w") as file:
        assert stepper.take(_stat, [file.fileno()], what="look") == [os.fstat(file.fileno()).st_ino]
        assert stepper.take(_open_files, [], what="look") == before


def test_garbage_of_its_parent_closes_nothing_of_a_step(stepper: Stepper, tmp_path: Path) -> None:
    """A file object that was garbage when it was started has the number of a fd that is another one's by then."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        garbage: list[object] = [(tmp_path / "garbage").open("w")]
        garbage.append(garbage)
        del garbage
        with (tmp_path / "file").open("w") as file:
            found = stepper.take(_collect_and_stat, [file.fileno()] * 40, what="look")
            assert found == [os.fstat(file.fileno()).st_ino] * 40
    finally:
        if enabled:
            gc.enable()
        with pytest.warns(ResourceWarning):
            gc.collect()


def _collect_and_stat(fds: Sequence[int]) -> list[int]:
    gc.collect()
    return _stat(fds)


def test_executor_begins_with_none(tmp_path: Path) -> None:
    """One from before would not hold its journal."""
    with Host() as host:
        host.stepper.take(_open_files, [], what="look")
        Executor(host=host, containers={}, kinds=KINDS, owned={}, state_dir=str(tmp_path), elsewhere=dict, apply_id="")
        assert host.stepper.pid is None


_PARENT = """
import fcntl, sys, time
from scplan.linux.processes.steps import Stepper
from tests.kernel.test_steps import _open_files, _sleep

lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
stepper = Stepper()
stepper.take(_open_files, [], what="look")
print(stepper.pid, flush=True)
if sys.argv[2] == "busy":
    stepper.take(_sleep, [], what="sleep")
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_it_is_gone_and_its_locks_are_free_when_its_parent_was_killed(state: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    checkout = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(path), state], stdout=subprocess.PIPE, text=True, cwd=checkout
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    with path.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.3)  # until it is busy
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + 1
        while not _is_over(pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert _is_over(pid)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_over(pid: int) -> bool:
    """Gone, or about to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# an apply


def test_stepper_of_an_apply_holds_its_journal_and_locks(
    process_container: throwaway.Container, host_directory: Path, tmp_path: Path
) -> None:
    file, state_dir = tmp_path / "scplan.yaml", tmp_path / "state"
    file.write_text(json.dumps(of(process_container, mounts=[f"{host_directory}:/srv/data"])))
    request = scene.Request(state_dir=str(state_dir), files=(str(file),))
    seen: list[set[str]] = []

    def look(event: Event) -> None:
        if event.step is Stage.DONE:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            seen.extend(_files_below(state_dir, int(child)) for child in children)

    with applying.open_apply(request) as run:
        run.execute(look)
    (journal,) = (state_dir / "history").iterdir()
    assert {f"journal/{journal.name}", f"locks/process.{process_container.name}.lock"} in seen
    with applying.open_apply(request._replace(destroy=True)) as run:
        run.execute(lambda _: None)


def _files_below(directory: Path, pid: int) -> set[str]:
    """Paths of what a process has open there, relative to it."""
    fds = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return {str(Path(path).relative_to(directory)) for path in fds if path.startswith(f"{directory}/")}


def test_all_steps_of_an_apply_are_taken_by_one_process(
    process_container: throwaway.Container, scplan: Scplan, host_directory: Path, tmp_path: Path
) -> None:
    mounts = [f"{host_directory}:/srv/{number}" for number in range(3)]
    scplan.write(of(process_container, devices=["/dev/null:/srv/null", "/dev/zero:/srv/zero"], mounts=mounts))
    trace = tmp_path / "trace"
    calls = "trace=clone,clone3,fork,vfork,mknod,mknodat,move_mount"
    strace = ["strace", "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", str(trace)]
    for arguments in (("apply", "--auto-approve"), ("destroy", "--auto-approve", process_container.name)):
        command = [*strace, *scplan.command(*arguments)]
        ended = subprocess.run(command, cwd=scplan.directory, env=scplan.environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        lines = trace.read_text().splitlines()
        made = [line.split()[0] for line in lines if "mknod" in line or "move_mount" in line]
        # What is taken out is kept for the undo: a tmpfs, and a clone of each mount.
        assert len(made) == (5 if arguments[0] == "apply" else 1 + len(mounts))
        assert len(set(made)) <= 1
        # The other one looks at paths that the kernel does not have in its cache.
        assert sum("clone" in line or "fork" in line for line in lines) <= 2
