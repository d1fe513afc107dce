"""A room: a host within the host, for engines that want /run, /var/lib and the network to themselves.

It has namespaces of its own (mounts, network, processes, cgroups), an empty /run, /var/lib, /var/log and /var/cache, a
copy of /etc: everything in it uses its usual paths. All of it, daemons and their containers too, ends with the
process that made it, even if that is killed: the kernel kills what is in a PID namespace with its first process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.containers import cgroups
from tests.containers.session import CHECKOUT, Session

Completed = subprocess.CompletedProcess[str]

_JOIN = 'for group in $1; do echo $$ >"$group/cgroup.procs" || exit 125; done; shift; exec "$@"'
_NAMESPACES = ("--mount", "--net", "--pid", "--cgroup")
_FURNISH = """
set -e
mount -t proc proc /proc
if mountpoint -q /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified; fi
for name in "$@"; do
  umount -l /sys/fs/cgroup/$name
  case $name in systemd) options=none,name=systemd ;; *) options=$name ;; esac
  mount -t cgroup -o $options cgroup /sys/fs/cgroup/$name
done
for place in /run /var/lib /var/log /var/cache; do mount -t tmpfs -o mode=755 room $place; done
mkdir -p /run/lock /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work etc /etc
ip link set lo up
echo furnished
# Ignored across exec: then the kernel itself takes away the orphans that end in this first process's care.
trap '' CHLD
exec sleep 2000000000
"""


class Room:
    """Use it in a `with` block."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.name = session.name()
        self.directory = session.directory / self.name
        self.directory.mkdir()
        self.cgroups = cgroups.create_open(self.name)
        # The keeper of the session removes what is left of the cgroups, wherever this ends.
        unshare = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--propagation", "private", "sh", "-c", _FURNISH]
        hierarchies = [path.parent.name for path in self.cgroups]
        self._unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self._joined(*unshare, "sh", *hierarchies)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._unshare.stdout
        if self._unshare.stdout.readline() != "furnished\n":
            raise RuntimeError(f"the room ended with status {self._unshare.wait(timeout=10)}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        (self.pid,) = map(int, children.split())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all that runs in it."""
        self._unshare.kill()
        self._unshare.wait(timeout=10)
        assert self._unshare.stdout
        self._unshare.stdout.close()
        cgroups.remove(self.name, timeout_s=20)

    def _joined(self, *command: str) -> list[str]:
        return ["sh", "-c", _JOIN, "sh", " ".join(map(str, self.cgroups)), *command]

    def command(self, *command: str, directory: Path = CHECKOUT) -> list[str]:
        """What to run outside to run `command` inside."""
        enter = ["nsenter", "--target", str(self.pid), *_NAMESPACES, f"--wd={directory}", "--"]
        return self._joined(*enter, *command)

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> Completed:
        """Runs a command inside. What it leaves running must not keep the standard output."""
        ended = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,  # a signal that goes astray stays inside
        )
        if check and ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {ended.returncode}: {ended.stdout}{ended.stderr}")
        return ended

    def sh(self, script: str, *arguments: str, check: bool = True) -> str:
        """What a shell script prints inside."""
        return self.run("sh", "-c", script, "sh", *arguments, check=check).stdout

    def python(self, code: str, *arguments: str) -> str:
        """What Python code prints inside; the checkout can be imported."""
        return self.run(sys.executable, "-c", code, *arguments).stdout

    def start(self, *command: str, log: str) -> None:
        """Starts a daemon inside, which stays until the room ends. Its output goes to a file in the room's files."""
        with (self.directory / log).open("w") as output:
            subprocess.Popen(self.command("setsid", *command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def until_works(self, *command: str, log: str, timeout_s: float = 30) -> None:
        """Waits until a command succeeds; raises TimeoutError, with the end of a daemon's log, when it does not."""
        ended: Sequence[Completed] = ()

        def works() -> bool:
            nonlocal ended
            ended = [self.run(*command, check=False)]
            return ended[0].returncode == 0

        if not until(works, timeout_s):
            tail = (self.directory / log).read_text()[-2000:]
            raise TimeoutError(f"{' '.join(command)}: {ended[0].stderr}\n{log}: {tail}")


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
