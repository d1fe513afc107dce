"""Races for every target path: what is there is swapped for something else while scplan works on it.

Whatever the container's root does, nothing of the host is touched, and a run ends well, is refused or undone.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer
from tests.containers.container import Container
from tests.hostile.attacker import MNT_DETACH, UMOUNT_NOFOLLOW, Attack, exchange, mount, once, umount
from tests.hostile.canary import Canary
from tests.hostile.ground import RACE_S, Ground

pytestmark = pytest.mark.timeout(60 + 4 * RACE_S)

TARGET = "/srv/a/b/target"


@pytest.fixture(params=["process", "process-userns"])
def container(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    runtime, _, userns = request.param.partition("-")
    return make_container(runtime, userns=bool(userns))


def _prepare(canary: Path) -> None:
    """/srv/a with a directory, beside it everything that could be put in its place."""
    os.makedirs("/srv/a/b")
    os.makedirs("/srv/other/b")
    for name, to in {
        "link": str(canary),
        "root": "/",
        "up": "../../../../../../../.." + str(canary),
        "loop": "loop",
        "nowhere": "/nowhere",
        "magic": "/proc/1/root" + str(canary),
        "self": "/proc/self/root" + str(canary),
    }.items():
        os.symlink(to, f"/srv/{name}")
    os.mkfifo("/srv/fifo")
    os.mkdir("/srv/mounted")
    # The path of the canary exists inside as well: an escape is the only difference between the two.
    os.makedirs(f"{canary}/b")


def _swap(path: str, others: list[str]) -> Callable[[], None]:
    """A step that puts each of the others in the place of `path`, and takes it out again."""

    def step() -> None:
        for other in others:
            exchange(path, other)
            exchange(path, other)

    return step


EVIL = [f"/srv/{name}" for name in ("link", "root", "up", "loop", "nowhere", "magic", "self", "fifo", "other")]
SWAPS = {
    "parent": _swap("/srv/a", EVIL),
    "directory": _swap("/srv/a/b", EVIL),
}


PLANTS: tuple[Callable[[], None], ...] = (
    lambda: os.symlink("/etc", TARGET),
    lambda: os.mkfifo(TARGET),
    lambda: os.mkdir(TARGET),
    lambda: os.symlink("/nowhere", TARGET),
)


def _plant_target() -> None:
    """Files of all kinds at the target itself, whatever is there."""
    for make in PLANTS:
        with contextlib.suppress(OSError):
            make()
        with contextlib.suppress(OSError):
            os.unlink(TARGET)
        with contextlib.suppress(OSError):
            os.rmdir(TARGET)


def _mount_over() -> None:
    """A tmpfs over the directory of the target, and away with it."""
    mount("tmpfs", "/srv/a/b", "tmpfs")
    umount("/srv/a/b", MNT_DETACH)


ATTACKS: dict[str, Callable[[], None]] = {**SWAPS, "target": _plant_target, "mounts": _mount_over}


def _sections(kind: str, canary: Canary) -> dict[str, Any]:
    if kind == "device":
        return {"devices": [{"source": "/dev/null", "target": TARGET, "mode": "0640"}]}
    return {"mounts": [{"source": f"{canary.directory}/below", "target": TARGET, "read_only": True}]}


@pytest.mark.parametrize("kind", ["device", "mount"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_lands_outside(
    attack: str, kind: str, container: Container, tmp_path: Path, host_canary: Canary
) -> None:
    once(container, lambda: _prepare(host_canary.directory))
    ground = Ground(container, tmp_path)
    ground.write(**_sections(kind, host_canary))
    with Attack(container, ATTACKS[attack]) as attacking:
        runs = ground.race()
    ground.verdict(f"{kind} against {attack}", attacking.rounds, runs)
    ground.settle(lambda: once(container, _tidy))


def _tidy() -> None:
    """Whatever the attacker left at the target; /srv/a may be anything, and is made anew."""
    for path in ("/srv/a/b", TARGET):
        # It may have died when one of these led to the container's root.
        with contextlib.suppress(OSError):
            umount(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    for remove in (os.unlink, os.rmdir):
        if os.path.lexists(TARGET) and not stat.S_ISCHR(os.lstat(TARGET).st_mode):
            with contextlib.suppress(OSError):
                remove(TARGET)
    if not all(os.path.isdir(path) and not os.path.islink(path) for path in ("/srv/a", "/srv/a/b")):
        if os.path.lexists("/srv/a"):
            os.rename("/srv/a", f"/srv/was{time.monotonic_ns()}")
        os.makedirs("/srv/a/b")
