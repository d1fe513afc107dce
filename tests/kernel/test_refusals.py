"""What `create` refuses without an effect, `delete` takes back without a word: an undo is not refused as well.

The container is this process itself, which shares all that is the host's; or others made something there meanwhile.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scplan.errors import ScplanError
from scplan.kinds import KINDS
from scplan.kinds.cgroup import CgroupSetting
from scplan.kinds.device import Device
from scplan.kinds.kind import Target
from scplan.kinds.mount import BindMount
from scplan.kinds.nic import Nic
from scplan.kinds.route import Route
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.resource import Resource
from tests.containers import container as throwaway
from tests.containers.fingerprint import difference, fingerprint
from tests.containers.host_parts import Nic as Pair

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1")


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


@pytest.fixture
def inside(process_container: throwaway.Container, host: Host) -> Iterator[Target[Any]]:
    with Container(process_container.name, process_container.pid, 0, host) as container:
        yield Target(container=container, host=host, peers={})


_NULL = Device(
    source="/dev/null",
    target="/dev/scplan-test",
    file_type="char",
    numbers="1:3",
    prior_access="",
    mode="0600",
    made=(),
)


@pytest.mark.parametrize(
    ("kind", "resource"),
    [
        ("device", _NULL),
        ("mount", BindMount(source="/srv", target="/mnt/scplan-test", made=("/mnt/scplan-test",), made_source=())),
        ("nic", Nic(name="eth77", host_name="sct-none")),
        ("nic", Nic(name="eth77", type="physical", host_name="sct-none")),
        ("route", Route(to="10.249.0.0/16", via="10.248.0.1")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_host_namespaces(host: Host, kind: str, resource: Resource) -> None:
    before = fingerprint([])
    with Container("self", os.getpid(), 0, host) as container:
        target: Target[Any] = Target(container=container, host=host, peers={})
        for refused in (KINDS[kind].create, lambda target, one: KINDS[kind].capture(target, None, one)):
            with pytest.raises(ScplanError, match="shares the host's"):
                refused(target, resource)
        KINDS[kind].delete(target, resource)
    assert difference(before, fingerprint([])) == []
    assert not os.path.lexists(getattr(resource, "target", "/none"))


def test_source_that_a_refused_mount_did_not_make_stays(host: Host, host_directory: Path) -> None:
    absent = host_directory / "absent"
    mount = BindMount(
        source=str(absent), target="/mnt/scplan-test", create_source=True, made=(), made_source=(str(absent),)
    )
    with Container("self", os.getpid(), 0, host) as container:
        target: Target[Any] = Target(container=container, host=host, peers={})
        with pytest.raises(ScplanError, match="mount namespace"):
            KINDS["mount"].create(target, mount)
        assert not absent.exists()
        KINDS["mount"].delete(target, mount)


def test_shared_cgroup(host: Host) -> None:
    with Container("self", os.getpid(), 0, host) as container:
        target: Target[Any] = Target(container=container, host=host, peers={})
        now = Path(f"{host.cgroup_mount('cpu')}{container.cgroup_path('cpu')}/cpu.shares").read_text()
        setting = CgroupSetting(name="cpu.weight", value="77", former="78")
        with pytest.raises(ScplanError, match="no cpu cgroup of its own"):
            KINDS["cgroup"].create(target, setting)
        KINDS["cgroup"].delete(target, setting)
        assert Path(f"{host.cgroup_mount('cpu')}{container.cgroup_path('cpu')}/cpu.shares").read_text() == now


def test_refused_setting(inside: Target[Any]) -> None:
    setting = KINDS["cgroup"].capture(inside, None, CgroupSetting(name="cpuset.cpus", value="4095"))[1]
    with pytest.raises(ScplanError, match="cpuset"):
        KINDS["cgroup"].create(inside, setting)
    KINDS["cgroup"].delete(inside, setting)


def test_mount_of_others_at_the_target(
    inside: Target[Any], process_container: throwaway.Container, host_directory: Path
) -> None:
    """It came after the plan, and is a file where a directory is to be mounted."""
    found = host_directory.stat()
    mount = BindMount(
        source=str(host_directory), target="/srv/it", source_identity=f"{found.st_dev}:{found.st_ino}", made=()
    )
    script = "touch /srv/it /srv/other && mount --bind /srv/other /srv/it"
    subprocess.run(["nsenter", "-t", str(process_container.pid), "-a", "/bin/busybox", "sh", "-c", script], check=True)
    before = fingerprint([process_container])
    with pytest.raises(ScplanError, match="is a directory, but /srv/it in the container is a file"):
        KINDS["mount"].create(inside, mount)
    KINDS["mount"].delete(inside, mount)
    assert difference(before, fingerprint([process_container])) == []


def test_mount_of_others_over_ours_is_not_taken_for_it(
    inside: Target[Any], process_container: throwaway.Container, host_directory: Path
) -> None:
    found = host_directory.stat()
    wanted = BindMount(source=str(host_directory), target="/srv/it", source_identity=f"{found.st_dev}:{found.st_ino}")
    mount = KINDS["mount"].capture(inside, None, wanted)[1]
    KINDS["mount"].create(inside, mount)
    enter = ["nsenter", "-t", str(process_container.pid), "-a", "/bin/busybox"]
    subprocess.run([*enter, "mount", "-t", "tmpfs", "other", "/srv/it"], check=True)
    with pytest.raises(ScplanError, match="others have mounted something on top of it"):
        KINDS["mount"].delete(inside, mount)
    subprocess.run([*enter, "umount", "/srv/it"], check=True)
    KINDS["mount"].delete(inside, mount)


@pytest.mark.needs("veth")
def test_nic_whose_name_another_one_took_inside(
    inside: Target[Any], process_container: throwaway.Container, veth_pair: Pair
) -> None:
    """The other one is of the same kind: it must not be taken for the host's, and moved there."""
    subprocess.run(
        ["nsenter", "-t", str(process_container.pid), "-n", "sh", "-c", "ip link add eth7 type veth peer name eth8"],
        check=True,
    )
    nic = KINDS["nic"].capture(inside, None, Nic(name="eth7", type="physical", host_name=veth_pair.name))[1]
    before = fingerprint([process_container])
    with pytest.raises(ScplanError, match="EEXIST"):
        KINDS["nic"].create(inside, nic)
    KINDS["nic"].delete(inside, nic)
    assert difference(before, fingerprint([process_container])) == []


@pytest.mark.needs("veth")
def test_route_in_whose_place_another_one_is(inside: Target[Any], process_container: throwaway.Container) -> None:
    script = """
        ip link add eth7 type veth peer name eth8; ip link set eth7 up; ip link set eth8 up
        ip address add 10.93.0.5/24 dev eth7; ip route add 10.94.0.0/16 via 10.93.0.1
    """
    subprocess.run(["nsenter", "-t", str(process_container.pid), "-n", "sh", "-ec", script], check=True)
    wanted = Route(to="10.94.0.0/16", via="10.93.0.2", metric=0, table=254)
    route = KINDS["route"].capture(inside, None, wanted)[1]
    before = fingerprint([process_container])
    with pytest.raises(ScplanError, match="EEXIST"):
        KINDS["route"].create(inside, route)
    KINDS["route"].delete(inside, route)
    assert difference(before, fingerprint([process_container])) == []
