"""Starts containers made of bare namespaces, and cleans up when whoever asked for them is gone.

Run as `python -m tests.containers.keeper OWNER_PID`. Reads requests from standard input, a JSON object a line, and
answers each with one. At the end of input, which also comes when the owner is killed, it removes all that the owner's
session made. Its own death takes the containers with it (PR_SET_PDEATHSIG). Works in a user namespace too.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import stat
import sys
from fcntl import ioctl
from pathlib import Path
from typing import NoReturn

from tests.containers import cgroups
from tests.containers.naming import directory_of
from tests.containers.oci import SLEEP_FOREVER, USERNS_FIRST_ID, USERNS_IDS
from tests.containers.rootfs import DIRECTORIES
from tests.containers.sweep import sweep

_SYS_CLONE, _SYS_PIVOT_ROOT = {"x86_64": (56, 155), "aarch64": (220, 41)}[platform.machine()]
_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # mnt, uts, ipc, pid, net
_CLONE_NEWUSER = 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

# PyDLL keeps the interpreter's lock, so that the child of clone() holds it too.
_libc = ctypes.PyDLL(None, use_errno=True)


def main() -> None:
    owner = int(sys.argv[1])
    keeper = Keeper(directory_of(owner))
    try:
        _serve(keeper)
    finally:
        keeper.stop_all()
        troubles = sweep(owner)
    for trouble in troubles:
        print(f"left behind: {trouble}", file=sys.stderr)
    sys.exit(1 if troubles else 0)


def _serve(keeper: Keeper) -> None:
    """Answers requests until there are no more, or nobody who wants the answer."""
    for line in sys.stdin:
        try:
            answer = keeper.answer(json.loads(line))
        except OSError as error:
            answer = {"error": str(error)}
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:
            # Nor may the interpreter try to flush it at exit.
            os.dup2(os.open("/dev/null", os.O_WRONLY), sys.stdout.fileno())
            return


class Keeper:
    """The parent of all namespace containers of one session."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.mount_point = directory / "mnt"
        self.pids: dict[str, int] = {}
        self.cgroups: dict[str, list[Path]] = {}
        self.namespaces: set[int] = set()

    def answer(self, request: dict[str, object]) -> dict[str, object]:
        name = str(request["name"])
        match request["do"]:
            case "start":
                return {"pid": self.start(name, request)}
            case "stop":
                self.stop(name)
                return {}
        raise ValueError(f"unknown request {request}")

    def start(self, name: str, request: dict[str, object]) -> int:
        """The PID of a new container, running its own process by now."""
        userns = bool(request.get("userns"))
        paths = cgroups.create(name) if request.get("cgroups", True) else []
        self.cgroups[name] = paths
        go_read, go_write = os.pipe()
        ready_read, ready_write = os.pipe()
        pid = _clone(_NAMESPACES | (_CLONE_NEWUSER if userns else 0))
        if pid == 0:
            os.close(go_write)
            _child(self, name, userns=userns, go=go_read, ready=ready_write)
        os.close(go_read)
        os.close(ready_write)
        self.pids[name] = pid
        if os.geteuid() == 0:  # whom scplan may lend physical NICs for
            self.namespaces.add(Path(f"/proc/{pid}/ns/net").stat().st_ino)
        if userns:
            mapping = f"0 {USERNS_FIRST_ID} {USERNS_IDS}\n"
            Path(f"/proc/{pid}/uid_map").write_text(mapping)
            Path(f"/proc/{pid}/gid_map").write_text(mapping)
        cgroups.join(paths, pid)
        os.write(go_write, b"!")
        os.close(go_write)
        with os.fdopen(ready_read) as ready:
            # Closed by a successful exec; an error is written to it before.
            if trouble := ready.read():
                self.stop(name)
                raise OSError(f"container {name}: {trouble}")
        return pid

    def stop(self, name: str) -> None:
        if pid := self.pids.pop(name, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if self.cgroups.pop(name, None):
            cgroups.remove(name)

    def stop_all(self) -> None:
        # All killed before the first is waited for: the kernel takes its time to tear down a network namespace.
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        for name in list(self.cgroups):
            self.stop(name)
        for namespace in self.namespaces:
            _unpin(namespace)


def _unpin(namespace: int) -> None:
    """Lets go of what scplan keeps for a NIC that was lent when its container ended, and nobody brought home."""
    for path in Path("/run/scplan/netns").glob(f"{namespace}.*"):
        _libc.umount2(os.fsencode(path), _MNT_DETACH)
        path.unlink(missing_ok=True)


def _child(keeper: Keeper, name: str, *, userns: bool, go: int, ready: int) -> NoReturn:
    try:
        _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        if os.read(go, 1) != b"!":
            os._exit(1)  # the keeper failed to set the container up, and says why
        if userns:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.setsid()
        # The keeper's standard input must end when its owner does, not when the last container does.
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        socket.sethostname(name)
        _loopback_up()
        _make_root(str(keeper.mount_point), str(keeper.bin), bind_devices=userns or not _can_mknod())
        os.execve(SLEEP_FOREVER[0], SLEEP_FOREVER, {"PATH": "/bin"})
    except OSError as error:
        os.write(ready, f"{error}".encode())
    os._exit(1)


def _make_root(root: str, bin_directory: str, *, bind_devices: bool) -> None:
    """A tmpfs with busybox, /proc, /sys and /dev becomes the root; nothing of the host's tree stays visible."""
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID, "mode=755")
    for directory in DIRECTORIES:
        os.mkdir(f"{root}/{directory}")
    os.chmod(f"{root}/tmp", 0o1777)
    for file, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")):
        Path(f"{root}/etc/{file}").write_text(text)
    _mount(bin_directory, f"{root}/bin", None, _MS_BIND)
    _mount("proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("tmpfs", f"{root}/dev", "tmpfs", _MS_NOSUID, "mode=755,size=65536k")
    for device, minor in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)):
        node = f"{root}/dev/{device}"
        if bind_devices:
            os.close(os.open(node, os.O_CREAT | os.O_WRONLY, 0o666))
            _mount(f"/dev/{device}", node, None, _MS_BIND)
        else:
            os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            os.chmod(node, 0o666)
    if not bind_devices:
        _mount("sysfs", f"{root}/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    os.chdir(root)
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2 of the old root")
    os.chdir("/")


def _can_mknod() -> bool:
    """Whether this is the initial user namespace: in any other one mknod is refused."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = ioctl(sock, _SIOCGIFFLAGS, b"lo".ljust(40, b"\0"))
        flags = int.from_bytes(request[16:18], sys.byteorder) | _IFF_UP
        ioctl(sock, _SIOCSIFFLAGS, request[:16] + flags.to_bytes(2, sys.byteorder) + bytes(22))


def _clone(flags: int) -> int:
    # fork() can't make namespaces, and unshare() of a PID namespace would want a second fork.
    return _check(_libc.syscall(_SYS_CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0), "clone")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount {source} on {target}")


def _check(result: int, operation: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{operation}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main()
