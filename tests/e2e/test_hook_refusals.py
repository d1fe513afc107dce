"""What hooks are told may be wrong or a lie, and what they need may be missing: nothing is made on the host, ever."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scplan.linux.processes.programs import hook_command
from scplan.store.durable import decode_line, encode_line
from tests.conftest import MakeContainer, Scplan
from tests.containers import host_parts
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk
from tests.containers.oci import RUNTIMES
from tests.containers.session import Session
from tests.e2e.scene import config, nothing_changed, of
from tests.e2e.test_lifecycle import hooks, plan_is_empty, restart

# SCPLAN_STARTS=20 for more of them at once: `make restarts`.
STARTS = int(os.environ.get("SCPLAN_STARTS", "8"))
Ended = subprocess.CompletedProcess[str]


def call(
    scplan: Scplan, stage: str, text: bytes | None, *options: str, environment: dict[str, str] | None = None
) -> Ended:
    """The hook as runtimes call it: no environment, another directory. `text` None: standard input is closed."""
    command = hook_command(str(scplan.state_dir), [*options, *([stage] if stage else [])])
    closing = ["sh", "-c", 'exec "$@" <&-', "sh"] if text is None else []
    ended = subprocess.run(
        [*closing, *command], input=text or b"", capture_output=True, timeout=60, cwd="/", env=environment or {}
    )
    return subprocess.CompletedProcess(command, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


@pytest.fixture
def web(
    scplan: Scplan, make_container: MakeContainer, bridge: str, loop_disk: LoopDisk, host_directory: Path
) -> Container:
    """A container with records, and a new life that the hook was not called for."""
    made = make_container("runc")
    sections: dict[str, Any] = {
        "devices": [{"source": loop_disk.path, "target": "/new/data"}],
        "nics": [{"name": "eth1", "bridge": bridge}],
        "mounts": [f"{host_directory}:/new/mount"],
        "cgroup": {"pids.max": 100},
    }
    scplan("apply", "--auto-approve", config=of(made, **sections)).ok()
    restart(made)
    return made


def state(web: Container, **changes: Any) -> dict[str, Any]:
    assert web.bundle
    about = {"ociVersion": "1.0.2", "id": web.name, "pid": web.pid, "status": "creating", "bundle": str(web.bundle)}
    return {key: value for key, value in (about | changes).items() if value is not None}


NONSENSE: dict[str, bytes | None] = {
    "closed": None,
    "empty": b"",
    "torn": b'{"id": "web", "pid":',
    "a list": b"[]",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "enormous": b'{"id": "' + b"x" * (2 << 20) + b'"}',
}


def as_another(other: Container, web: Container) -> bytes:
    """The state of a container that has the ID of `web`, as a runtime with another root tells it."""
    return json.dumps(state(other, id=web.name)).encode()


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_another_container_of_the_same_id_gets_nothing(
    runtime: str, scplan: Scplan, make_container: MakeContainer
) -> None:
    web, other = make_container(runtime), make_container(runtime)
    scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 100})).ok()
    with nothing_changed(web, other):
        ended = call(scplan, "createRuntime", as_another(other, web), "--runtime", runtime)
    assert ended.returncode == 0, ended.stderr
    assert f"not the {web.name} of scplan's records" in ended.stderr
    plan_is_empty(scplan)


@pytest.mark.parametrize("is_known", [True, False])
def test_container_that_may_be_another_one_is_refused(
    scplan: Scplan, make_container: MakeContainer, is_known: bool
) -> None:
    """The recorded one has ended, and the bundle is another one. Records of before this was kept don't say which."""
    web, other = make_container("runc"), make_container("runc")
    scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 100})).ok()
    (record,) = scplan.state_dir.glob("containers/runc/*.json")
    document = decode_line(record.read_bytes(), "record")
    assert document["container"]["bundle"] == str(web.bundle)
    if not is_known:
        del document["container"]["bundle"]
        record.write_bytes(encode_line(document))
    os.kill(web.pid, signal.SIGKILL)
    ended = call(scplan, "createRuntime", as_another(other, web), "--runtime", "runc")
    # The other one runs: without a doubt it is refused later, since its root can't be entered any more.
    assert ended.returncode == 1
    assert ("may be another one" in ended.stderr) == is_known, ended.stderr
    assert other.cgroup_file("pids.max").strip() == "max"


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("stage", ["createRuntime", "poststop", ""])
def test_state_that_is_none_is_refused(what: str, stage: str, scplan: Scplan) -> None:
    ended = call(scplan, stage, NONSENSE[what])
    assert ended.returncode == 1
    assert ended.stderr.startswith("scplan: not the state of a container: ")
    assert len(ended.stderr) < 1000
    assert "bug" not in ended.stderr


def lies(web: Container, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """States that are of the right form, and wrong about where the container's files or its process are."""
    link, loop = tmp_path / "link", tmp_path / "loop"
    link.symlink_to("/")
    loop.symlink_to(loop)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text('{"root": {"path": "../../../../../../etc"}}')
    fifo = tmp_path / "fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "config.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    return {
        "pid missing": {"pid": None},
        "pid 0": {"pid": 0},
        "pid negative": {"pid": -1},
        "pid a text": {"pid": str(web.pid)},
        "pid true": {"pid": True},
        "pid enormous": {"pid": 1 << 80},
        "pid gone": {"pid": (1 << 22) - 1},
        "process of the host": {"pid": os.getpid()},
        "first process": {"pid": 1},
        "no bundle": {"bundle": None},
        "bundle relative": {"bundle": "rootfs"},
        "bundle absent": {"bundle": "/nonexistent"},
        "bundle a number": {"bundle": 7},
        "bundle a fifo": {"bundle": str(fifo)},
        "bundle without root": {"bundle": str(empty)},
        "bundle that leads out": {"bundle": str(bundle)},
        "root /": {"root": "/"},
        "root //": {"root": "//"},
        "root a link to /": {"root": str(link)},
        "root a loop": {"root": str(loop)},
        "root of the host": {"root": "/etc"},
        "root a mount of the host": {"root": "/proc"},
        "root another directory": {"root": str(tmp_path)},
        "root a number": {"root": 7},
        "root empty": {"root": ""},
        "id a number": {"id": 7},
        "id empty": {"id": ""},
        "id a path": {"id": f"../{web.name}"},
        "id enormous": {"id": web.name * 100},
    }


def test_lies_about_a_container_are_refused_and_make_nothing(web: Container, scplan: Scplan, tmp_path: Path) -> None:
    wrong = lies(web, tmp_path)
    with nothing_changed(web), starting() as pid:
        for what, changes in wrong.items():
            # Of a process that still has the host's root, as at a start, and of one that has the container's.
            for process in (pid, web.pid):
                told = state(web, **{"pid": process, **changes})
                ended = call(scplan, "createRuntime", json.dumps(told).encode())
                assert ended.returncode == 1, what
                assert ended.stderr.startswith("scplan: "), what
                assert "bug" not in ended.stderr, f"{what}: {ended.stderr}"
    assert not Path("/new").exists()


@contextmanager
def starting() -> Iterator[int]:
    """A process with a mount namespace of its own and the host's root, as a container has it while it is started."""
    command = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def test_process_of_another_container_is_refused(web: Container, scplan: Scplan, make_container: MakeContainer) -> None:
    other = make_container("runc")
    assert web.bundle
    with nothing_changed(web, other):
        ended = call(scplan, "createRuntime", json.dumps(state(web, pid=other.pid)).encode())
    assert ended.returncode == 1
    assert "openat2" in ended.stderr or "root directory" in ended.stderr


def test_container_without_records_costs_nothing_and_changes_nothing(scplan: Scplan, runc_container: Container) -> None:
    with nothing_changed(runc_container):
        for stage in ("createRuntime", "prestart", "poststart", "poststop", ""):
            ended = call(scplan, stage, json.dumps(state(runc_container)).encode())
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not scplan.state_dir.exists()


def test_stop_of_a_container_that_runs_takes_nothing_from_it(web: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve").ok()
    with nothing_changed(web):
        ended = call(scplan, "poststop", json.dumps(state(web, status="stopped", pid=None)).encode())
    assert ended.returncode == 0
    assert "runs: nothing of it is given back" in ended.stderr


def test_failure_after_the_start_never_ends_the_container(scplan: Scplan) -> None:
    ended = call(scplan, "poststart", b"{}")
    assert ended.returncode == 0
    assert "no usable id" in ended.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LXC_NAME": "../x", "LXC_PID": "1"},
        {"LXC_NAME": "web"},
        {"LXC_NAME": "web", "LXC_PID": "-1"},
        {"LXC_NAME": "web", "LXC_PID": "1" * 5000},
    ],
    ids=["nothing", "a path", "no pid", "negative", "enormous"],
)
def test_environment_that_is_not_of_lxc_is_refused(environment: dict[str, str], scplan: Scplan) -> None:
    ended = call(scplan, "start-host", b"", "--runtime", "lxc", environment=environment)
    assert ended.returncode == 1
    assert "not the environment of a hook of LXC" in ended.stderr


# what stands in the way of a start


@pytest.fixture
def hooked(scplan: Scplan, make_container: MakeContainer, bridge: str, host_directory: Path) -> Container:
    """A stopped container with the hook, and records that wait for its start."""
    made = make_container("runc", hooks=quick(hooks(scplan, "runc")))
    sections = {"nics": [{"name": "eth1", "bridge": bridge}], "mounts": [f"{host_directory}:/srv/data"]}
    scplan("apply", "--auto-approve", config=of(made, **sections)).ok()
    made.stop()
    return made


def quick(stages: dict[str, Any]) -> dict[str, Any]:
    """The same hooks with less patience."""
    for entries in stages.values():
        args = entries[0]["args"]
        args[args.index("hook") : args.index("hook")] = ["--lock-timeout", "300ms"]
    return stages


def is_aborted(web: Container, *said: str) -> None:
    before = fingerprint([])
    failed = web.start(check=False)
    assert failed.returncode
    for words in said:
        assert words in failed.stdout, failed.stdout
    assert difference(before, fingerprint([])) == []


def test_lock_that_is_held_too_long_aborts_the_start(hooked: Container, scplan: Scplan) -> None:
    with (scplan.state_dir / "locks/host.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_aborted(hooked, "host is locked by another apply")
    hooked.start()
    plan_is_empty(scplan)


def test_record_that_can_not_be_read_aborts_the_start_and_is_named(hooked: Container, scplan: Scplan) -> None:
    path = scplan.state_dir / "containers/runc" / f"{hooked.name}.json"
    good = path.read_bytes()
    for damaged in (good[:-20], b"", b"\0" * len(good)):
        path.write_bytes(damaged)
        is_aborted(hooked, str(path))
    path.write_bytes(good)
    hooked.start()
    plan_is_empty(scplan)


def test_hook_that_the_runtime_kills_leaves_nothing_half_done(hooked: Container, scplan: Scplan) -> None:
    """At any moment of it, by SIGKILL, as for a hook that takes longer than its timeout."""
    assert hooked.bundle
    path = hooked.bundle / "config.json"
    usual = path.read_text()
    outcomes = []
    began = time.monotonic()
    hooked.start()
    took_s = time.monotonic() - began
    hooked.stop()
    for delay_s in (took_s * (number + 0.3) / STARTS for number in range(0, STARTS, 3)):
        document = json.loads(usual)
        (entry,) = document["hooks"]["createRuntime"]
        entry |= {"path": "/usr/bin/timeout", "args": ["timeout", "-s", "KILL", str(delay_s), *entry["args"]]}
        path.write_text(json.dumps(document))
        started = hooked.start(check=False)
        outcomes.append(started.returncode)
        if started.returncode == 0:
            plan_is_empty(scplan)
            hooked.stop()
        path.write_text(usual)
        hooked.start()
        plan_is_empty(scplan)
        hooked.stop()
    assert any(outcomes), "none was killed in time"


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_state_directory_that_can_not_be_written_aborts_the_start(hooked: Container, scplan: Scplan) -> None:
    with read_only(scplan.state_dir):
        is_aborted(hooked, "EROFS")
    hooked.start()
    plan_is_empty(scplan)


@pytest.fixture
def disk_of_pages(session: Session) -> Iterator[Path]:
    """It has room for the records of a start."""
    with host_parts.small_disk(session, size_kib=128) as path:
        yield path


def fills(path: Path) -> bool:
    """Adds to a file; False when nothing fits any more."""
    try:
        with path.open("ab", buffering=0) as file:
            return file.write(b"x" * 512) > 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


def test_full_disk_aborts_the_start(
    make_container: MakeContainer, scplan: Scplan, disk_of_pages: Path, bridge: str, host_directory: Path
) -> None:
    scplan.state_dir = disk_of_pages / "state"
    scplan.environment["SCPLAN_STATE_DIR"] = str(scplan.state_dir)
    web = make_container("runc", hooks=hooks(scplan, "runc"))
    sections = {"nics": [{"name": "eth1", "bridge": bridge}], "mounts": [f"{host_directory}:/srv/data"]}
    scplan("apply", "--auto-approve", config=of(web, **sections)).ok()
    web.stop()
    filling = disk_of_pages / "filling"
    filling.write_bytes(b"")
    while fills(filling):
        pass
    is_aborted(web, "ENOSPC")
    filling.unlink()
    web.start()
    plan_is_empty(scplan)
    web.stop()


def test_many_containers_start_at_once(session: Session, scplan: Scplan, bridge: str, host_directory: Path) -> None:
    with ExitStack() as stack:
        found = hooks(scplan, "runc")
        all_of = [stack.enter_context(session.container("runc", hooks=found)) for _ in range(STARTS)]
        sections = [
            {
                "nics": [{"name": "eth1", "bridge": bridge, "addresses": [f"10.97.0.{number}/24"]}],
                "mounts": [f"{host_directory}:/srv/data"],
            }
            for number in range(2, 2 + STARTS)
        ]
        scplan("apply", "--auto-approve", config=config(*zip(all_of, sections, strict=True))).ok()
        for web in all_of:
            web.stop()
        started = [_begin(web) for web in all_of]
        deadline = time.monotonic() + 60
        for web, process in zip(all_of, started, strict=True):
            assert process.wait(timeout=max(1, deadline - time.monotonic())) == 0, _log(web)
        plan_is_empty(scplan)


def _begin(web: Container) -> subprocess.Popen[bytes]:
    assert web.bundle
    command = ("run", "--detach", "--bundle", str(web.bundle), web.name)
    with (web.bundle / "log").open("w") as log:
        return subprocess.Popen(RUNTIMES["runc"].command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _log(web: Container) -> str:
    assert web.bundle
    return (web.bundle / "log").read_text()
