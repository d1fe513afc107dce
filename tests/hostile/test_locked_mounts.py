"""What is mounted into a container with a user namespace stays as it was mounted, whatever its root tries."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from scplan.errors import ApplyFailed, ScplanError
from scplan.kinds.kind import Target
from scplan.kinds.mount import BindMount, MountKind
from scplan.linux.container import Container as Opened
from scplan.linux.devices.loose_node import make_loose_node
from scplan.linux.host import Host
from scplan.linux.mounts import bind
from scplan.workflow import applying
from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk
from tests.e2e.scene import nothing_changed, of
from tests.hostile.attacker import (
    MNT_DETACH,
    MS_BIND,
    MS_REC,
    MS_REMOUNT,
    check,
    enter,
    mount,
    once,
    succeeds,
    umount,
)
from tests.hostile.canary import Canary
from tests.hostile.ground import Ground

pytestmark = pytest.mark.timeout(60)

_libc = ctypes.CDLL(None, use_errno=True)
_NR_MOUNT_SETATTR, _NR_OPEN_TREE, _NR_MOVE_MOUNT = 442, 428, 429
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000


@pytest.fixture(params=["process-userns", "runc-userns"])
def container(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    runtime, _, _ = request.param.partition("-")
    return make_container(runtime, userns=True)


@pytest.fixture
def tree(host_directory: Path) -> Iterator[Path]:
    """A directory with a file that a mount covers: the secret."""
    (host_directory / "file").write_text("as it was")
    (host_directory / "file").chmod(0o666)
    covered = host_directory / "covered"
    covered.mkdir(mode=0o755)
    (covered / "secret").write_text("not for containers")
    mount("tmpfs", str(covered), "tmpfs")
    yield host_directory
    umount(str(covered), MNT_DETACH)


def _write() -> None:
    with open("/data/file", "a") as file:
        file.write("x")


def _clear_by_setattr(path: str = "/data") -> None:
    attributes = struct.pack("QQQQ", 0, 1, 0, 0)
    check(_libc.syscall(_NR_MOUNT_SETATTR, -100, os.fsencode(path), 0x8000, attributes, 32))


def _bind_elsewhere_and_clear() -> None:
    mount("/data", "/mnt", flags=MS_BIND | MS_REC)
    try:
        mount("", "/mnt", flags=MS_REMOUNT | MS_BIND)
    finally:
        umount("/mnt", MNT_DETACH)


def _clone_and_clear() -> None:
    tree = check(_libc.syscall(_NR_OPEN_TREE, -100, b"/data", 1 | 0x8000))
    attributes = struct.pack("QQQQ", 0, 1, 0, 0)
    check(_libc.syscall(_NR_MOUNT_SETATTR, tree, b"", 0x1000, attributes, 32))


def _clear_in_a_namespace_below() -> None:
    check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    mount("", "/data", flags=MS_REMOUNT | MS_BIND)


def _uncover() -> None:
    umount("/data/covered", MNT_DETACH)


def _clone_without_what_covers() -> None:
    check(_libc.syscall(_NR_OPEN_TREE, -100, b"/data", 1))


def _bind_without_what_covers() -> None:
    mount("/data", "/mnt", flags=MS_BIND)
    umount("/mnt", MNT_DETACH)


ATTEMPTS: dict[str, Callable[[], None]] = {
    "write": _write,
    "remount": lambda: mount("", "/data", flags=MS_REMOUNT | MS_BIND),
    "mount_setattr": _clear_by_setattr,
    "bind and remount": _bind_elsewhere_and_clear,
    "open_tree and mount_setattr": _clone_and_clear,
    "a user namespace below": _clear_in_a_namespace_below,
    "unmount what covers": _uncover,
    "open_tree without what covers": _clone_without_what_covers,
    "bind without what covers": _bind_without_what_covers,
}


def test_attempts_are_sound(container: Container, tree: Path) -> None:
    """A mount that is attached directly can be opened up by all but one of them: else the tests below show nothing."""

    def attach() -> None:
        cloned = check(_libc.syscall(_NR_OPEN_TREE, -100, os.fsencode(tree), 1 | 0x8000))
        attributes = struct.pack("QQQQ", 1, 0, 1 << 18, 0)
        check(_libc.syscall(_NR_MOUNT_SETATTR, cloned, b"", 0x1000 | 0x8000, attributes, 32))
        pinned = os.open(f"/proc/{container.pid}/root", os.O_PATH | os.O_DIRECTORY)
        namespace = os.open(f"/proc/{container.pid}/ns/mnt", os.O_RDONLY)
        check(_libc.setns(namespace, _CLONE_NEWNS))
        target = os.open("data", os.O_PATH, dir_fd=pinned)
        check(_libc.syscall(_NR_MOVE_MOUNT, cloned, b"", target, b"", 0x44))

    once(container, lambda: os.mkdir("/data"))
    pid = os.fork()
    if pid == 0:
        try:
            attach()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not succeeds(container, _write)
    assert succeeds(container, ATTEMPTS["remount"])
    assert succeeds(container, _write)
    assert succeeds(container, _uncover)
    assert succeeds(container, lambda: os.stat("/data/covered/secret"))


def test_read_only_can_not_be_lifted_nor_what_is_covered_revealed(
    container: Container, tree: Path, scplan: Scplan
) -> None:
    scplan("apply", "--auto-approve", config=of(container, mounts=[f"{tree}:/data:ro"])).ok()
    assert [name for name, attempt in ATTEMPTS.items() if succeeds(container, attempt)] == []
    assert (tree / "file").read_text() == "as it was"
    assert not succeeds(container, lambda: os.stat("/data/covered/secret"))
    scplan("plan", "--detailed-exitcode").ok()
    scplan("destroy", "--auto-approve", container.name).ok()
    assert "/data" not in container.mount_points()


def test_what_becomes_read_only_later_is_locked_too(container: Container, tree: Path, scplan: Scplan) -> None:
    with nothing_changed(container):
        scplan("apply", "--auto-approve", config=of(container, mounts=[f"{tree}:/data"])).ok()
        once(container, _write)
        assert [name for name in ATTEMPTS if "cover" in name and succeeds(container, ATTEMPTS[name])] == []
        scplan("apply", "--auto-approve", config=of(container, mounts=[f"{tree}:/data:ro"])).ok()
        assert [name for name, attempt in ATTEMPTS.items() if succeeds(container, attempt)] == []
        scplan("apply", "--auto-approve", config=of(container, mounts=[f"{tree}:/data:rw"])).ok()
        once(container, _write)
        scplan("destroy", "--auto-approve", container.name).ok()


@pytest.mark.parametrize("propagation", ["private", "rslave", "rshared"])
def test_propagation_is_as_it_was_asked_for(
    container: Container, host_directory: Path, scplan: Scplan, propagation: str
) -> None:
    mount(str(host_directory), str(host_directory), flags=MS_BIND)
    try:
        mount("", str(host_directory), flags=1 << 20)  # MS_SHARED
        (host_directory / "later").mkdir()
        scplan("apply", "--auto-approve", config=of(container, mounts=[f"{host_directory}:/data:{propagation}"])).ok()
        scplan("plan", "--detailed-exitcode").ok()
        mount("tmpfs", str(host_directory / "later"), "tmpfs")
        assert ("/data/later" in container.mount_points()) == (propagation != "private")
        # What the container mounts there is its own: a user namespace never reaches the host.
        succeeds(container, lambda: mount("tmpfs", "/data/later", "tmpfs"))
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert points.count(str(host_directory / "later")) == 1
    finally:
        umount(str(host_directory), MNT_DETACH)


def test_file_is_locked_as_directories_are(container: Container, tree: Path, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(container, mounts=[f"{tree}/file:/data:ro"])).ok()
    assert not succeeds(container, lambda: mount("", "/data", flags=MS_REMOUNT | MS_BIND))
    assert not succeeds(container, lambda: os.truncate("/data", 0))
    scplan("destroy", "--auto-approve", container.name).ok()


def test_nothing_is_mounted_where_it_would_show_on_the_host(
    process_container: Container, host_directory: Path, host_canary: Canary, tmp_path: Path
) -> None:
    """The container bends the target into a mount that it shares with the host."""
    mount(str(host_directory), str(host_directory), flags=MS_BIND)
    try:
        mount("", str(host_directory), flags=1 << 20)
        (host_directory / "in").mkdir()
        ground = Ground(process_container, tmp_path)
        ground.write(mounts=[f"{host_directory}:/data:rshared"])
        assert ground.apply() == 0, ground.said
        once(process_container, lambda: os.symlink("/data", "/srv/link"))
        ground.write(mounts=[f"{host_directory}:/data:rshared", f"{host_canary.directory}:/srv/link/in"])
        assert ground.apply() == 1
        assert f"{ground.file}:1:" in ground.last
        assert "/srv/link/in to /data/in" in ground.last
        once(process_container, _unbend)
        with applying.open_apply(ground.request) as run:
            # After the last look of the plan.
            once(process_container, lambda: (os.rename("/srv/link", "/srv/away"), os.symlink("/data", "/srv/link")))
            with pytest.raises(ApplyFailed, match="shares with the host"):
                run.execute(lambda _: None)
        ground.write(mounts=[])
        assert ground.apply() == 0, ground.said
    finally:
        umount(str(host_directory), MNT_DETACH)


def _unbend() -> None:
    os.unlink("/srv/link")
    os.makedirs("/srv/link/in")


def test_no_node_is_mounted_where_it_would_show_on_the_host(process_container: Container, host_directory: Path) -> None:
    """The mount namespace that the node is made in shares nothing with the host's: that is looked at before."""
    mount(str(host_directory), str(host_directory), flags=MS_BIND)
    try:
        mount("", str(host_directory), flags=1 << 20)
        (host_directory / "null").touch()
        pid = process_container.pid
        with Host() as host, Opened(process_container.name, pid, 0, host) as opened:
            data = BindMount(source=str(host_directory), target="/data", propagation="rshared", made=("/data",))
            MountKind().create(Target(opened, host, {}), data)
            making = partial(make_loose_node, "null", stat.S_IFCHR | 0o600, os.makedev(1, 3), 0, 0)
            with pytest.raises(ScplanError, match="shares with the host"):
                bind.attach(opened, making, "/data/null", source="/dev/null", missing=bind.Missing((), False))
        assert (host_directory / "null").is_file()
    finally:
        umount(str(host_directory), MNT_DETACH)


def test_device_of_the_host_keeps_its_owner(
    userns_container: Container, loop_disk: LoopDisk, host_directory: Path, tmp_path: Path
) -> None:
    """/dev of the host is mounted in a container, whose root bends the target of a device there."""
    node = host_directory / "disk"
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(loop_disk.major, loop_disk.minor))
    ground = Ground(userns_container, tmp_path)
    ground.write(mounts=[f"{host_directory}:/hostdev"])
    assert ground.apply() == 0, ground.said
    once(userns_container, lambda: os.symlink("/hostdev", "/srv/dev"))
    ground.write(
        mounts=[f"{host_directory}:/hostdev"],
        devices=[{"source": loop_disk.path, "target": "/srv/dev/disk", "mode": "0666"}],
    )
    assert ground.apply() in (1, 3)
    found = node.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)


def test_device_in_a_user_namespace(container: Container, loop_disk: LoopDisk, scplan: Scplan) -> None:
    """It can be read, with the mode and owner that were asked for, and its access is what was asked for."""
    wanted = {"source": loop_disk.path, "target": "/dev/data", "permissions": "r", "mode": "0640", "gid": 6}
    scplan("apply", "--auto-approve", config=of(container, devices=[wanted])).ok()
    found = container.stat("/dev/data")
    assert found is not None
    assert (found["type"], found["mode"], found["uid"], found["gid"]) == ("block special file", "640", "0", "6")
    assert container.exec(["head", "-c", "16", "/dev/data"]).returncode == 0
    assert container.exec(["sh", "-c", "echo x > /dev/data"]).returncode != 0
    scplan("plan", "--detailed-exitcode").ok()


def test_container_whose_root_is_no_mount_point(
    process_container: Container, host_directory: Path, loop_disk: LoopDisk, scplan: Scplan
) -> None:
    """A process that was only chrooted: its root is a directory like any other, in a mount namespace of its own."""
    (host_directory / "file").write_text("as it was")

    def confine() -> None:
        for name in ("bin", "dev", "proc", "srv"):
            os.makedirs(f"/jail/{name}")
        mount("/bin", "/jail/bin", flags=MS_BIND)
        mount("/proc", "/jail/proc", flags=MS_BIND | MS_REC)

    once(process_container, confine)
    ready, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            enter(process_container)
            os.chroot("/jail")
            os.chdir("/")
            if os.fork() == 0:
                os.close(ready)
                os.execv("/bin/busybox", ["busybox", "sleep", "300"])
            os.wait()
        finally:
            os._exit(1)
    os.close(writer)
    child = _child_of(pid)
    try:
        config = {
            "version": 1,
            "containers": {
                "jail": {
                    "runtime": "process",
                    "pid": child,
                    "devices": [{"source": loop_disk.path, "target": "/dev/data"}],
                    "mounts": [f"{host_directory}:/srv/data:ro"],
                }
            },
        }
        scplan("apply", "--auto-approve", config=config).ok()
        assert Path(f"/proc/{child}/root/srv/data/file").read_text() == "as it was"
        assert stat.S_ISBLK(os.stat(f"/proc/{child}/root/dev/data").st_mode)
        scplan("plan", "--detailed-exitcode").ok()
        scplan("destroy", "--auto-approve", "jail").ok()
        assert not os.path.exists(f"/proc/{child}/root/dev/data")
        assert not os.path.exists(f"/proc/{child}/root/srv/data")
    finally:
        os.kill(child, 9)
        os.waitpid(pid, 0)
        os.close(ready)


def _child_of(pid: int) -> int:
    import time

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children and "sleep" in Path(f"/proc/{children[0]}/cmdline").read_text():
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError("the chrooted process did not start")


def test_source_that_becomes_a_symlink_is_not_followed(
    process_container: Container, host_directory: Path, host_canary: Canary, tmp_path: Path
) -> None:
    """The source lies where a container can write: it is absent when it is planned, and a symlink when it is made."""
    source = host_directory / "new"
    ground = Ground(process_container, tmp_path)
    ground.write(mounts=[{"source": str(source), "target": "/data", "create_source": True}])
    with applying.open_apply(ground.request) as run:
        source.symlink_to(host_canary.directory)
        with pytest.raises(ApplyFailed, match="a directory on the way was replaced by a symlink"):
            run.execute(lambda _: None)
    assert "/data" not in process_container.mount_points()
