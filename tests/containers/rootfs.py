"""A root file system of nothing but busybox."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

DIRECTORIES = ("bin", "dev", "etc", "mnt", "proc", "root", "run", "srv", "sys", "tmp", "var")


def build(root: Path, *, owner: int = 0) -> None:
    """Makes the tree at `root`; its files belong to `owner`."""
    root.mkdir(mode=0o755)
    for name in DIRECTORIES:
        (root / name).mkdir(mode=0o1777 if name == "tmp" else 0o755)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    fill_bin(root / "bin")
    if owner:
        for directory, _, files in os.walk(root):
            for path in (directory, *(os.path.join(directory, file) for file in files)):
                os.chown(path, owner, owner, follow_symlinks=False)


def fill_bin(directory: Path) -> None:
    """Busybox and a symlink for each of its commands."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox is not installed; on Debian: apt-get install busybox-static")
    # mkdir's mode is subject to the umask; containers with a user namespace have to get in.
    directory.chmod(0o755)
    shutil.copy(busybox, directory / "busybox")
    for command in _commands(busybox):
        if command != "busybox":
            (directory / command).symlink_to("busybox")


@cache
def _commands(busybox: str) -> tuple[str, ...]:
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True, timeout=10)
    return tuple(listed.stdout.split())
