"""The container's own cgroup is the one that its runtime made, wherever in it the first process is by now."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scplan.linux.container import Container as Opened
from scplan.linux.host import Host
from scplan.linux.processes.process import common_end
from scplan.runtimes.crun import Crun
from scplan.runtimes.runc import Runc
from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk
from tests.e2e.scene import of

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1")

CONTROLLERS = ("devices", "pids", "blkio")


@contextmanager
def in_a_child(container: Container, *names: str) -> Iterator[dict[str, Path]]:
    """Its first process sits in a cgroup below, as systemd does; the block gets the cgroups that were its own."""
    own = {controller: container.cgroups[controller] for controller in CONTROLLERS}
    with ExitStack() as stack:
        for path in own.values():
            inner = path
            for name in names:
                inner = inner / name
                inner.mkdir()
                stack.callback(inner.rmdir)
            (inner / "cgroup.procs").write_text(str(container.pid))
            stack.callback((path / "cgroup.procs").write_text, str(container.pid))
        yield own


@pytest.mark.parametrize("runtime", ["runc", "crun"])
@pytest.mark.parametrize("names", [("init.scope",), ("{0}",), ("a", "{0}")], ids="/".join)
def test_rules_and_limits_are_the_whole_containers(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk, runtime: str, names: tuple[str, ...]
) -> None:
    web = make_container(runtime)
    before = fingerprint([web])
    device = {"source": loop_disk.path, "target": "/dev/data", "permissions": "rw", "io": {"read_bps": "1m"}}
    config = of(web, devices=[device], cgroup={"pids.max": 50})
    with in_a_child(web, *(name.format(web.name) for name in names)) as own:
        scplan("apply", "--auto-approve", config=config).ok()
        assert (own["pids"] / "pids.max").read_text() == "50\n"
        assert f"b {loop_disk.numbers} rw" in (own["devices"] / "devices.list").read_text()
        assert "1048576" in (own["blkio"] / "blkio.throttle.read_bps_device").read_text()
        assert web.cgroup_file("pids.max") == "max\n"
        assert scplan("plan", config=config).ok().stdout.strip() == "No changes."
        scplan("drift", "--detailed-exitcode", config=config).ok()
        scplan("apply", "--auto-approve", "--probe", "false", config=of(web)).ok(3)
        assert (own["pids"] / "pids.max").read_text() == "50\n"
        scplan("undo", "--auto-approve").ok()
    assert difference(before, fingerprint([web])) == []


@pytest.mark.parametrize("runtime", [Runc(), Crun()], ids=lambda one: one.name)
def test_state_names_the_cgroup(make_container: MakeContainer, runtime: Runc | Crun) -> None:
    web = make_container(runtime.name)
    (facts,) = runtime.find(web.name, None, None)
    assert facts.cgroup.split("/")[-1] == web.name


def test_root_of_the_cgroup_namespace(process_container: Container) -> None:
    """Without a runtime that knows: the process has a cgroup namespace of its own, and has moved since."""
    own = process_container.cgroups["pids"]
    inner = own / "deep" / "inner"
    inner.mkdir(parents=True)
    command = f"echo $$ > {own}/cgroup.procs; exec unshare --cgroup sleep 1000"
    with subprocess.Popen(["sh", "-c", command]) as process, Host() as host:
        try:
            _until_unshared(process.pid)
            (inner / "cgroup.procs").write_text(str(process.pid))
            with Opened("it", process.pid, 0, host) as opened:
                assert opened.cgroup_path("pids") == f"/{own.name}"
            # This process is in its own namespace again.
            with Opened("self", process_container.pid, 0, host) as opened:
                assert opened.cgroup_path("pids") == f"/{own.name}"
        finally:
            process.kill()
            process.wait()
            time.sleep(0.05)
            inner.rmdir()
            inner.parent.rmdir()


def _until_unshared(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("paths", "end"),
    [
        (["/sys/fs/cgroup/pids/web", "/sys/fs/cgroup/memory/a/web"], "web"),
        (["/docker/4f", "/docker/4f"], "docker/4f"),
        (["/web", "/"], ""),
        (["/", "/"], ""),
        ([], ""),
    ],
)
def test_what_paths_have_in_common(paths: list[str], end: str) -> None:
    assert common_end(paths) == end
