"""A running throwaway container, as tests see it: run something inside, look at its network, mounts and files."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.containers import cgroups
from tests.containers.oci import RUNTIMES

# The kernel takes namespaces down one after the other.
_NAMESPACE_GONE_S = 10.0

Completed = subprocess.CompletedProcess[str]

_JOIN_AND_ENTER = """
for procs in $1; do echo $$ > "$procs" || exit 125; done
shift
exec nsenter "$@"
"""


@dataclass
class Container:
    """`pid` is 0 while it is stopped. `bundle` is there for OCI runtimes only."""

    name: str
    runtime: str
    pid: int
    userns: bool = False
    bundle: Path | None = None

    # life

    def start(self, *, check: bool = True) -> Completed:
        """Starts the bundle; a container that `stop` has stopped starts anew, as its runtime restarts one."""
        assert self.bundle
        pid_file = self.bundle / "pid"
        log = self.bundle / "log"
        command = ("run", "--detach", "--bundle", str(self.bundle), "--pid-file", str(pid_file), self.name)
        with log.open("w") as output:
            # Not captured by pipes: the container inherits them, and they would end with it.
            ended = subprocess.run(
                RUNTIMES[self.runtime].command(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                timeout=60,
            )
        if check and ended.returncode:
            raise RuntimeError(f"{self.runtime} {' '.join(command)}: status {ended.returncode}: {log.read_text()}")
        self.pid = int(pid_file.read_text()) if ended.returncode == 0 else 0
        return subprocess.CompletedProcess(ended.args, ended.returncode, log.read_text(), "")

    def stop(self) -> None:
        """Ends the container as its runtime does, hooks included; the bundle stays."""
        with self.leaving_no_host_ends():
            RUNTIMES[self.runtime].delete(self.name)
        self.pid = 0

    @contextmanager
    def leaving_no_host_ends(self) -> Iterator[None]:
        """Waits until the host's ends of its veths are gone: the kernel takes a namespace down some time later."""
        ends = self._host_ends()
        yield
        deadline = time.monotonic() + _NAMESPACE_GONE_S
        while any(map(_is_link, ends)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _host_ends(self) -> list[int]:
        """Indexes of the other ends of its veths."""
        try:
            names = Path(f"/proc/{self.pid}/net/dev").read_text().count(":") if self.pid else 0
            return [link["link_index"] for link in self.ip("link") if "link_netnsid" in link] if names > 1 else []
        except (OSError, ValueError, subprocess.CalledProcessError):  # it has ended, or has names that are no text
            return []

    def remove(self) -> None:
        assert self.bundle
        self.stop()
        shutil.rmtree(self.bundle)

    # a look inside

    def exec(self, argv: list[str], *, check: bool = False, timeout_s: float = 30) -> Completed:
        """Runs a command of the container's busybox inside, under its device rules and limits."""
        return subprocess.run(self.exec_command(argv), check=check, capture_output=True, text=True, timeout=timeout_s)

    def exec_command(self, argv: list[str]) -> list[str]:
        """What to run on the host to run `argv` inside."""
        if self.runtime in RUNTIMES:
            return RUNTIMES[self.runtime].command("exec", self.name, *argv)
        join = " ".join(str(path / "cgroup.procs") for path in self.cgroups.values() if self.name in path.parts)
        enter = ["--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
        enter += ["--user"] if self.userns else []
        enter += ["--", "/bin/busybox", "env", "-i", "PATH=/bin", *argv]
        return ["sh", "-c", _JOIN_AND_ENTER, "sh", join, *enter]

    def ip(self, *arguments: str) -> Any:
        """The JSON that the host's `ip` prints about the container's network: `ip("-d", "link")`."""
        command = ["nsenter", "--target", str(self.pid), "--net", "ip", "-json", *arguments]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        return json.loads(ended.stdout or "[]")

    def mounts(self) -> list[str]:
        """The lines of the container's mountinfo, parents first."""
        return Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()

    def mount_points(self) -> list[str]:
        return [line.split()[4] for line in self.mounts()]

    def stat(self, path: str) -> dict[str, str] | None:
        """Type, mode, owner and device numbers of a file inside, symlinks not followed; None when it is absent."""
        ended = self.exec(["stat", "-c", "%F|%a|%u|%g|%t:%T|%i", path])
        if ended.returncode:
            return None
        return dict(zip(("type", "mode", "uid", "gid", "rdev", "inode"), ended.stdout.strip().split("|"), strict=True))

    @property
    def cgroups(self) -> dict[str, Path]:
        """Its cgroup in each hierarchy, by controller ("" on version 2)."""
        return cgroups.of_process(self.pid)

    def cgroup_file(self, name: str) -> str:
        """The text of a cgroup file: `memory.limit_in_bytes`, `devices.list`."""
        controllers = self.cgroups
        path = controllers.get("") or controllers[name.partition(".")[0]]
        return (path / name).read_text()


def _is_link(index: int) -> bool:
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True
