"""udev rules that run scplan when partitions of a disk appear or go. udev(7), systemd-udevd.service(8)."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence

from scplan.errors import KernelError, ScplanError

_CONTROL = "/run/udev/control"
_RULES = "/run/udev/rules.d"
"""Gone after a boot, as what the rules are about: partitions plugged into containers that run."""
_ADMIN = ("/usr/bin/udevadm", "/bin/udevadm", "/sbin/udevadm", "/usr/sbin/udevadm")
_RELOAD_S = 5.0
_PLAIN = re.compile(r"[A-Za-z0-9/._+:@,=-]+", re.ASCII)
_DISK = re.compile(r"[A-Za-z0-9!._:-]+", re.ASCII)
_UNWRITABLE = re.compile(r"['\"\\]")


def is_running() -> bool:
    """True if a process listens on udevd's socket: udevd itself, or systemd on its behalf."""
    if not os.path.exists(_CONTROL):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.connect(_CONTROL)
        except ConnectionRefusedError:
            return False
        except OSError as error:
            raise KernelError.from_os(f"connect({_CONTROL})", error) from None
    return True


def is_parent() -> bool:
    """True if systemd's udevd started this process, which then lacks system calls, and is killed once udevd is idle."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
        return "/systemd-udevd.service" in file.read()


def rule_path(*subject: str) -> str:
    """Path of the file for the rule about a subject: the same words give the same path."""
    from scplan.startup.digest import sha256_hex

    digest = sha256_hex("\0".join(subject).encode(errors="surrogateescape"))
    return f"{_RULES}/90-scplan-{digest[:16]}.rules"


def rule_text(disk: str, command: Sequence[str]) -> str:
    """Rule that runs a command when a partition of a disk appears or goes; `disk` is the disk's name in the kernel.

    The rule matches the path in sysfs, the only property still known after disk and partition were unplugged. Raises
    ScplanError for a command that a rule can't hold.
    """
    if not _DISK.fullmatch(disk):
        raise ScplanError(f"{disk!r} can't be the name of a disk in a udev rule")
    run = " ".join(map(_word, command))
    match = f'ACTION=="add|remove", SUBSYSTEM=="block", ENV{{DEVTYPE}}=="partition", DEVPATH=="*/{disk}/*"'
    return f'# Made by scplan, which removes it when the disk leaves its container.\n{match}, RUN+="{run}"\n'


def _word(word: str) -> str:
    """A word in udev's syntax: in single quotes where necessary, with udev's substitutions escaped."""
    if _PLAIN.fullmatch(word):
        return word
    if _UNWRITABLE.search(word) or not word.isprintable():
        raise ScplanError(
            f"a udev rule can't hold {word!r}",
            detail="it has quotes, backslashes or control characters",
            hint="rename it, or leave out `partitions: true`",
        )
    return "'" + word.replace("$", "$$").replace("%", "%%") + "'"


def write_rule(path: str, text: str) -> None:
    """Write a rule, whole or not at all; does nothing if it is in place."""
    if read_rule(path) == text:
        return
    temporary = f"{path}.tmp"  # not *.rules, so that udev does not read it
    try:
        os.makedirs(_RULES, mode=0o755, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(temporary, path)
    except OSError as error:
        raise KernelError.from_os(f"write({path})", error) from None
    _reload()


def read_rule(path: str) -> str | None:
    """Text of a rule; None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error) from None


def remove_rule(path: str) -> None:
    """Remove a rule; does nothing if it is gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError.from_os(f"unlink({path})", error) from None
    _reload()


def _reload() -> None:
    """Make udevd read its rules now. By itself it checks them no more often than every three seconds.

    A missing or refused udevadm costs this time, and nothing else.
    """
    program = next((path for path in _ADMIN if os.access(path, os.X_OK)), None)
    if program is not None:
        from scplan.linux.processes.programs import run_bounded

        run_bounded([program, "control", "--reload"], {}, timeout_s=_RELOAD_S, output_bytes=1024)
