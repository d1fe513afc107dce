"""Cgroup settings of real containers: what was there before comes back exactly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scplan.kinds.cgroup import CgroupKind, CgroupSetting
from scplan.kinds.kind import Target
from scplan.linux.container import Container
from scplan.linux.host import Host
from tests.containers import container as throwaway

KIND = CgroupKind()

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1")


@pytest.fixture
def target(process_container: throwaway.Container) -> Iterator[Target[CgroupSetting]]:
    with Host() as host, Container(process_container.name, process_container.pid, 0, host) as container:
        yield Target(container=container, host=host, peers={})


@pytest.mark.parametrize("shares", ["2", "28", "1000", "1024", "262143", "262144"])
def test_shares_come_back_exactly(
    process_container: throwaway.Container, target: Target[CgroupSetting], shares: str
) -> None:
    file = process_container.cgroups["cpu"] / "cpu.shares"
    file.write_text(shares)
    live = KIND.read(target.container, target.host, {"cpu.weight": CgroupSetting(name="cpu.weight", value="1")})
    after = KIND.capture(target, None, CgroupSetting(name="cpu.weight", value="500"))[1]
    assert after is not None
    KIND.create(target, after)
    assert file.read_text().strip() != shares
    KIND.delete(target, after)
    assert file.read_text().strip() == shares
    assert KIND.is_given_back(after, live["cpu.weight"])


def test_another_weight_is_not_given_back() -> None:
    removed = CgroupSetting(name="cpu.weight", value="500", former="cpu.shares 1000")
    assert KIND.is_given_back(removed, CgroupSetting(name="cpu.weight", value="39"))
    assert not KIND.is_given_back(removed, CgroupSetting(name="cpu.weight", value="40"))


def test_cgroup_of_any_name_is_found(process_container: throwaway.Container, target: Target[CgroupSetting]) -> None:
    own = process_container.cgroups["pids"]
    odd = own / "a\rb\x0bc\u2028d:e"
    odd.mkdir()
    try:
        (odd / "cgroup.procs").write_text(str(process_container.pid))
        assert target.container.cgroup_path("pids") == f"/{own.name}/{odd.name}"
        assert target.container.cgroup_path("memory") == f"/{own.name}"
    finally:
        (own / "cgroup.procs").write_text(str(process_container.pid))
        odd.rmdir()
