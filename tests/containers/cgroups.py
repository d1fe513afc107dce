"""Cgroups of test containers, straight below the root of each hierarchy; version 1, hybrid and 2."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("devices", "blkio", "memory", "cpu", "cpuset", "pids")

# What every runtime allows: mknod of anything, the harmless character devices, terminals.
DEFAULT_DEVICES = (
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
)


def is_v2() -> bool:
    return (ROOT / "cgroup.controllers").exists()


def v2_mount() -> Path | None:
    """Where version 2 is mounted, on hybrid hosts too; None where it is not."""
    return next((path for path in (ROOT, ROOT / "unified") if (path / "cgroup.subtree_control").exists()), None)


def hierarchies() -> list[Path]:
    """The hierarchies that containers get a cgroup in."""
    if is_v2():
        return [ROOT]
    return [ROOT / name for name in CONTROLLERS if (ROOT / name / "cgroup.procs").exists()]


def all_hierarchies() -> list[Path]:
    """Every mounted hierarchy: runtimes also use those that `hierarchies` leaves out."""
    found = [ROOT, *ROOT.iterdir()] if ROOT.is_dir() else []
    return [path for path in found if (path / "cgroup.procs").exists()]


def create(name: str) -> list[Path]:
    """A cgroup `name` in every hierarchy, with the usual device rules on version 1."""
    made = []
    if is_v2():
        controllers = [word for word in (ROOT / "cgroup.controllers").read_text().split() if word != "cpuset"]
        (ROOT / "cgroup.subtree_control").write_text(" ".join("+" + word for word in controllers))
    for hierarchy in hierarchies():
        path = hierarchy / name
        path.mkdir()
        made.append(path)
        if hierarchy.name == "cpuset":
            _fill_cpuset(hierarchy, path)
        if hierarchy.name == "devices":
            (path / "devices.deny").write_text("a")
            for rule in DEFAULT_DEVICES:
                (path / "devices.allow").write_text(rule)
    return made


def _fill_cpuset(hierarchy: Path, path: Path) -> None:
    # A new cpuset is empty, and a process can't be put into an empty one.
    for file in ("cpuset.cpus", "cpuset.mems"):
        (path / file).write_text((hierarchy / file).read_text())


def create_open(name: str) -> list[Path]:
    """A cgroup `name` in every hierarchy of version 1 that limits nothing, for others to be made in."""
    made = []
    for hierarchy in all_hierarchies():
        if hierarchy.is_symlink() or hierarchy.name == "unified":
            continue
        path = hierarchy / name
        path.mkdir()
        made.append(path)
        if "cpuset" in hierarchy.name.split(","):
            _fill_cpuset(hierarchy, path)
    return made


def join(paths: list[Path], pid: int) -> None:
    for path in paths:
        (path / "cgroup.procs").write_text(str(pid))


def of_process(pid: int) -> dict[str, Path]:
    """The cgroups of a process by controller ("" for version 2), for the controllers that tests look at."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            base = ROOT if controller == "" else ROOT / controller
            if controller in CONTROLLERS or (controller == "" and is_v2()):
                found[controller] = base / path.lstrip("/")
    return found


def remove(name: str, timeout_s: float = 5) -> None:
    """Kills what is in the cgroups of this name and removes them with all below, in every hierarchy."""
    deadline = time.monotonic() + timeout_s
    for top in [path for hierarchy in all_hierarchies() if (path := hierarchy / name).is_dir()]:
        while (error := _try_to_remove(top)) is not None:
            # A killed process leaves its cgroup a little later: EBUSY until then.
            if time.monotonic() > deadline:
                raise TimeoutError(f"{top} can't be removed: {error}") from error
            time.sleep(0.002)


def _try_to_remove(top: Path) -> OSError | None:
    """What stood against it. Looks at all below anew: an engine that is being killed may make more meanwhile."""
    trouble: OSError | None = None
    for directory, _, _ in os.walk(top, topdown=False):
        path = Path(directory)
        try:
            for pid in (path / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            trouble = error
    return trouble
