"""Removes what a session left: containers, cgroups, links, loop devices, mounts, files; finds it all by its name."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.containers import cgroups, naming
from tests.containers.oci import RUNTIMES


def sweep_dead_sessions() -> list[str]:
    """Cleans up after every session whose owner is gone. Returns what could not be removed; never raises over it."""
    owners = {pid for name in _names() if (pid := naming.owner_of(name)) is not None}
    return [trouble for pid in sorted(owners) if not naming.is_alive(pid) for trouble in sweep(pid)]


def sweep(pid: int) -> list[str]:
    """Removes all that the session with this PID made. Returns what could not be removed, one message each."""
    prefix = naming.owner_prefix(pid)
    troubles: list[str] = []
    steps = (
        _remove_containers,
        _remove_cgroups,
        _remove_links,
        _remove_loops,
        _remove_mounts,
        _remove_parked,
        _remove_files,
    )
    for step in steps:
        try:
            step(prefix)
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or ""
            troubles.append(f"{step.__name__[1:].replace('_', ' ')} of {prefix}*: {error} {output}".strip())
    return troubles


def traces(pid: int) -> list[str]:
    """Everything of the session with this PID that is there, its directory included."""
    prefix = naming.owner_prefix(pid)
    backing_files = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    mount_points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    paths = [path for path in backing_files + mount_points if path.startswith(f"/tmp/{prefix}")]
    return sorted([*paths, *(name for name in _names() if name.startswith(prefix))])


def _names() -> Iterator[str]:
    """The names of everything that a session may have left."""
    yield from (name for _, name in socket.if_nameindex())
    places = [Path("/tmp"), *cgroups.all_hierarchies()]
    places += [runtime.state_directory for runtime in RUNTIMES.values()]
    for place in places:
        yield from (entry.name for entry in _entries(place, naming.PREFIX))


def _remove_containers(prefix: str) -> None:
    for runtime in RUNTIMES.values():
        for state in _entries(runtime.state_directory, prefix):
            runtime.delete(state.name)


def _remove_cgroups(prefix: str) -> None:
    for name in {path.name for hierarchy in cgroups.all_hierarchies() for path in _entries(hierarchy, prefix)}:
        cgroups.remove(name)


def _remove_links(prefix: str) -> None:
    for _, name in socket.if_nameindex():
        # The peer of a veth goes with it, so a link of the list may be gone already.
        if name.startswith(prefix) and has_link(name):
            _run("ip", "link", "delete", name)


def has_link(name: str) -> bool:
    """Whether this network namespace has the link. Not asked of /sys, which may show another namespace's."""
    return name in (there for _, there in socket.if_nameindex())


def _remove_loops(prefix: str) -> None:
    if os.geteuid() != 0:
        return
    listed = json.loads(_run("losetup", "--json", "--list", "--output", "NAME,BACK-FILE") or '{"loopdevices": []}')
    for device in listed["loopdevices"]:
        if (device["back-file"] or "").startswith(f"/tmp/{prefix}"):
            if any(Path("/sys/block", Path(device["name"]).name).glob("loop*p*")):
                _run("partx", "--delete", device["name"])
            _run("losetup", "--detach", device["name"])


def _remove_mounts(prefix: str) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"/tmp/{prefix}")]):
        _run("umount", "--lazy", point)


def _remove_parked(prefix: str) -> None:
    """Clones of mounts that a killed scplan kept for an undo: they are named after the inode of its records."""
    parked = Path("/run/scplan/parked")
    if not os.access(parked, os.R_OK | os.X_OK):
        return
    tops = _entries(Path("/tmp"), prefix)
    inodes = {os.stat(directory).st_ino for top in tops for directory, _, _ in os.walk(top)}
    for path in parked.iterdir():
        if int(path.name.partition(".")[0].partition(":")[2]) in inodes:
            _run("mount", "--make-rprivate", str(path))
            _run("umount", "--lazy", str(path))
            path.rmdir()


def _remove_files(prefix: str) -> None:
    for path in _entries(Path("/tmp"), prefix):
        # Never across a mount point: a bind mount that is still there shows files of the host.
        _run("rm", "-rf", "--one-file-system", str(path))


def _entries(place: Path, prefix: str) -> list[Path]:
    """What begins with `prefix` there; nothing where this user may not look, and so can't have left anything."""
    if not os.access(place, os.R_OK | os.X_OK):
        return []
    return [path for path in place.iterdir() if path.name.startswith(prefix)]


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
