"""Processes that the freezer of cgroup v2 has stopped. Kernel documentation, admin-guide/cgroup-v2, cgroup.freeze."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scplan.linux.processes.process import is_frozen_cgroup
from tests.containers.cgroups import v2_mount
from tests.containers.room import until
from tests.containers.session import Session

pytestmark = pytest.mark.needs("cgroup2-mount")


@pytest.fixture
def cgroup(session: Session) -> Iterator[Path]:
    """A cgroup with a process in the one below it."""
    mount = v2_mount()
    assert mount is not None
    made = mount / session.name()
    (made / "inner").mkdir(parents=True)
    process = subprocess.Popen(["sleep", "1000"])
    try:
        (made / "inner/cgroup.procs").write_text(str(process.pid))
        yield made
    finally:
        process.kill()
        (made / "cgroup.freeze").write_text("0")
        process.wait(10)
        assert until(lambda: (made / "inner/cgroup.procs").read_text() == "", 10)
        (made / "inner").rmdir()
        made.rmdir()


@pytest.mark.parametrize("frozen", [".", "inner"], ids=["above", "its own"])
def test_frozen_cgroup_is_known_by_its_events(cgroup: Path, frozen: str) -> None:
    inner = str(cgroup / "inner")
    assert not is_frozen_cgroup(inner)
    (cgroup / frozen / "cgroup.freeze").write_text("1")
    assert until(lambda: is_frozen_cgroup(inner), 10)
    (cgroup / frozen / "cgroup.freeze").write_text("0")
    assert until(lambda: not is_frozen_cgroup(inner), 10)


def test_cgroup_that_is_gone_is_not_frozen(tmp_path: Path) -> None:
    assert not is_frozen_cgroup(str(tmp_path / "gone"))
