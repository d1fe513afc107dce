"""Device nodes in containers with a user namespace, looked at from inside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from scplan.errors import ScplanError
from scplan.kinds.device import Device, DeviceKind
from scplan.kinds.kind import Target
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.comparison import differences
from tests.conftest import MakeContainer
from tests.containers import container as throwaway
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import LoopDisk

KIND = DeviceKind()

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1", "userns")


@pytest.fixture(params=["process", "runc"])
def inside(request: pytest.FixtureRequest, make_container: MakeContainer) -> throwaway.Container:
    return make_container(request.param, userns=True)


@pytest.fixture
def target(inside: throwaway.Container) -> Iterator[Target[Device]]:
    with Host() as host, Container(inside.name, inside.pid, 0, host) as container:
        yield Target(container=container, host=host, peers={})


def _device(disk: LoopDisk, path: str = "/dev/in/data", **values: object) -> Device:
    device = Device(source=disk.path, target=path, file_type="block", numbers=disk.numbers, mode="0640", uid=0, gid=6)
    return device.replace(**values)


def _captured(target: Target[Device], device: Device) -> Device:
    after = KIND.capture(target, None, device)[1]
    assert after is not None
    return after


def _made(target: Target[Device], device: Device) -> Device:
    device = _captured(target, device)
    KIND.create(target, device)
    assert differences(device, _live(target, device)) == ()
    return device


def _live(target: Target[Device], device: Device) -> Device:
    return KIND.read(target.container, target.host, {"it": device})["it"]


def test_node_opens_for_what_is_granted(
    inside: throwaway.Container, target: Target[Device], loop_disk: LoopDisk
) -> None:
    _made(target, _device(loop_disk, permissions="r"))
    assert inside.exec(["dd", "if=/dev/in/data", "of=/dev/null", "count=1"]).returncode == 0
    assert "not permitted" in inside.exec(["dd", "if=/dev/zero", "of=/dev/in/data", "count=1"]).stderr
    found = inside.stat("/dev/in/data")
    assert found is not None
    assert (found["type"], found["mode"], found["uid"], found["gid"]) == ("block special file", "640", "0", "6")


def test_mode_and_owner_change_in_place(
    inside: throwaway.Container, target: Target[Device], loop_disk: LoopDisk
) -> None:
    before = _made(target, _device(loop_disk))
    host = os.stat(loop_disk.path)
    after = before.replace(mode="0606", uid=7, gid=8, permissions="rw")
    first = inside.stat("/dev/in/data")
    KIND.update(target, before, after)
    found = inside.stat("/dev/in/data")
    assert found is not None
    assert first is not None
    assert (found["mode"], found["uid"], found["gid"]) == ("606", "7", "8")
    assert found["inode"] == first["inode"]
    assert os.stat(loop_disk.path).st_mode == host.st_mode


@pytest.mark.parametrize("in_the_way", ["echo text > {0}", "touch {0}", "mkdir {0}", "ln -s /etc {0}"])
def test_what_is_in_the_way_is_put_back(
    inside: throwaway.Container, target: Target[Device], loop_disk: LoopDisk, in_the_way: str
) -> None:
    inside.exec(["sh", "-c", in_the_way.format("/dev/data")], check=True)
    before, there = fingerprint([inside]), inside.stat("/dev/data")
    device = _made(target, _device(loop_disk, "/dev/data", replace_existing=True))
    KIND.create(target, device)
    KIND.delete(target, device)
    KIND.delete(target, device)
    assert difference(before, fingerprint([inside])) == []
    assert inside.stat("/dev/data") == there


def test_what_is_in_the_way_survives_a_death_before_it_was_moved(
    inside: throwaway.Container, target: Target[Device], loop_disk: LoopDisk
) -> None:
    inside.exec(["mkdir", "/dev/data"], check=True)
    device = _captured(target, _device(loop_disk, "/dev/data", replace_existing=True))
    KIND.delete(target, device)
    assert inside.stat("/dev/data") is not None


def test_what_is_in_the_way_is_an_error_without_replace_existing(
    inside: throwaway.Container, target: Target[Device], loop_disk: LoopDisk
) -> None:
    inside.exec(["mkdir", "/dev/data"], check=True)
    before = fingerprint([inside])
    device = _captured(target, _device(loop_disk, "/dev/data"))
    with pytest.raises(ScplanError, match="something else is there"):
        KIND.create(target, device)
    KIND.delete(target, device)
    assert difference(before, fingerprint([inside])) == []


def test_node_that_is_open_can_be_removed(
    inside: throwaway.Container, target: Target[Device], loop_disk: LoopDisk
) -> None:
    device = _made(target, _device(loop_disk, "/dev/data", permissions="r"))
    command = inside.exec_command(["sh", "-c", "exec < /dev/data; echo open; exec cat /dev/fd/0 | wc -c"])
    with subprocess.Popen(["setsid", *command], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        KIND.delete(target, device)
        assert inside.stat("/dev/data") is None


def test_nodes_of_the_host_that_are_mounted_there_keep_mode_and_owner(target: Target[Device]) -> None:
    host = os.stat("/dev/null")
    wanted = Device(source="/dev/null", target="/dev/null", file_type="char", numbers="1:3")
    before = _captured(target, _live(target, wanted))
    with pytest.raises(ScplanError, match="host's own node"):
        KIND.update(target, before, before.replace(uid=0, gid=0, mode="0600"))
    KIND.update(target, before.replace(uid=0, gid=0, mode="0600"), before)
    now = os.stat("/dev/null")
    assert (now.st_mode, now.st_uid, now.st_gid) == (host.st_mode, host.st_uid, host.st_gid)


def test_an_id_that_is_not_mapped_is_refused_without_a_trace(
    inside: throwaway.Container, target: Target[Device], loop_disk: LoopDisk
) -> None:
    before = fingerprint([inside])
    device = _captured(target, _device(loop_disk, uid=100000))
    with pytest.raises(ScplanError, match="not mapped"):
        KIND.create(target, device)
    KIND.delete(target, device)
    assert difference(before, fingerprint([inside])) == []


def test_nothing_is_left_on_the_host(target: Target[Device], loop_disk: LoopDisk) -> None:
    before = fingerprint([]), sorted(os.listdir("/dev"))
    device = _made(target, _device(loop_disk))
    assert (fingerprint([]), sorted(os.listdir("/dev"))) == before
    KIND.delete(target, device)
