"""Programs that scplan starts on the host: the watchdog of a confirmation, and probes. execve(2), setsid(2)."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import scplan
from scplan.errors import KernelError
from scplan.linux.processes.signals import hear_stop_requests, stop_requests_wait
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    import subprocess

_SERVICE_START_S = 20.0
_ENTRY = "import sys; sys.path.append(sys.argv.pop(1)); from scplan.__main__ import run; run()"


class Ended(NamedTuple):
    """Result of a program: its exit status (negative: the signal that ended it; None: its time was up).

    `output` is the end of its standard output and error, at most as many bytes as were asked for.
    """

    status: int | None
    output: bytes
    seconds: float


def scplan_command(arguments: Sequence[str], options: Sequence[str] = ("-P",)) -> list[str]:
    """Command line that runs exactly this version of scplan, whatever the working directory and environment are.

    `options` are Python's.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(scplan.__file__)))
    return [sys.executable, *options, "-c", _ENTRY, root, *arguments]


def hook_command(state_dir: str, arguments: Sequence[str]) -> list[str]:
    """Command line for a runtime, which gives hooks no environment. A hook needs no site packages: -I and -S."""
    return scplan_command(["--state-dir", os.path.abspath(state_dir), "hook", *arguments], ("-I", "-S"))


def start_detached(command: Sequence[str]) -> None:
    """Start a program that outlives this process, its terminal and its connection.

    The program has a session of its own, no terminal, and none of scplan's fds.
    """
    import subprocess

    try:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            preexec_fn=hear_stop_requests,
        )
    except OSError as error:
        raise KernelError.from_os(f"execve({command[0]})", error) from None


def start_service(name: str, command: Sequence[str], *, private_mounts: bool = False) -> bool:
    """Start a program as a transient service of systemd, which restarts it when it is killed. systemd-run(1).

    Returns False if systemd does not run, is in other namespaces than scplan, or refuses. With `private_mounts` the
    mount namespaces may differ: a service of systemd often has its own.
    """
    kinds = ("net", "pid", "user", "cgroup") if private_mounts else ("mnt", "net", "pid", "user", "cgroup")
    if not os.path.isdir("/run/systemd/system") or not _in_namespaces_of_init(kinds):
        return False
    import subprocess

    # --collect: systemd forgets the unit even if it failed. systemd-run(1)
    options = ["--quiet", "--collect", f"--unit={name}", "--property=Restart=on-failure", "--property=RestartSec=1"]
    try:
        ended = subprocess.run(
            ["systemd-run", *options, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SERVICE_START_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0


def _in_namespaces_of_init(kinds: Sequence[str]) -> bool:
    """True if a service, which PID 1 starts, sees the same host as scplan."""
    try:
        return all(os.stat(f"/proc/1/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds)
    except OSError:
        return False


def run_bounded(
    command: Sequence[str], environment: Mapping[str, str], *, timeout_s: float, output_bytes: int
) -> Ended:
    """Run a program to its end, in a process group of its own, of which no process is left afterwards.

    Output is read continuously, and only its end is kept. Raises KernelError if the program can't be started.
    """
    begun = time.monotonic()
    process: subprocess.Popen[bytes] | None = None
    try:
        # A request to stop between the fork and this assignment would leave a running program that nobody knows of.
        with stop_requests_wait():
            process = _started(command, environment)
        assert process.stdout
        output, is_over = _output_of(process.pid, process.stdout.fileno(), begun + timeout_s, output_bytes)
    finally:
        if process is not None:
            status = _ended(process)
    return Ended(status if is_over else None, output, time.monotonic() - begun)


def _started(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that leads a session of its own. Raises KernelError."""
    import subprocess

    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=hear_stop_requests,
        )
    except (OSError, ValueError) as error:
        code = error if isinstance(error, OSError) else OSError(22, str(error))
        raise KernelError.from_os(f"execve({command[0]})", code) from None


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Kill the program and all that it left running in its group; return its exit status."""
    # Before waitpid(2): until the program is reaped, the kernel gives the group's ID to no other group.
    os.killpg(process.pid, signal.SIGKILL)
    if process.stdout:
        process.stdout.close()
    return process.wait()


def _output_of(pid: int, pipe: int, deadline: float, keep_bytes: int) -> tuple[bytes, bool]:
    """(end of the output, True if the process ended by `deadline`)"""
    kept = b""
    pidfd = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as waiting:
            waiting.register(pipe, selectors.EVENT_READ)
            waiting.register(pidfd, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in waiting.select(max(0.0, deadline - time.monotonic()))}
                if pipe in ready:
                    chunk = os.read(pipe, 1 << 16)
                    kept = (kept + chunk)[-keep_bytes:]
                    if chunk:
                        if time.monotonic() >= deadline:
                            return kept, False
                        continue
                    waiting.unregister(pipe)
                # By now, the output from before the end has been read.
                if pidfd in ready:
                    return kept, True
                if not ready:
                    return kept, False
    finally:
        os.close(pidfd)
