"""Rules by which udev tells scplan of the partitions of a disk that come and go. udev(7), systemd-udevd.service(8)."""

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
    """Whether somebody listens where udevd does: itself, or systemd on its behalf."""
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
    """Whether systemd's udevd started this process: it then lacks system calls, and is killed when udevd has time."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
        return "/systemd-udevd.service" in file.read()


def rule_path(*subject: str) -> str:
    """The file of the rule about a subject, the same for the same words."""
    from scplan.startup.digest import sha256_hex

    digest = sha256_hex("\0".join(subject).encode(errors="surrogateescape"))
    return f"{_RULES}/90-scplan-{digest[:16]}.rules"


def rule_text(disk: str, command: Sequence[str]) -> str:
    """The rule that runs a command when a partition of a disk, by its name in the kernel, comes or goes.

    It goes by the path in sysfs, the one thing that is still known when both have been unplugged. Raises ScplanError
    for a command that a rule can't hold.
    """
    if not _DISK.fullmatch(disk):
        raise ScplanError(f"{disk!r} can't be the name of a disk in a udev rule")
    run = " ".join(map(_word, command))
    match = f'ACTION=="add|remove", SUBSYSTEM=="block", ENV{{DEVTYPE}}=="partition", DEVPATH=="*/{disk}/*"'
    return f'# Made by scplan, which removes it when the disk leaves its container.\n{match}, RUN+="{run}"\n'


def _word(word: str) -> str:
    """A word as udev reads it: quoted singly where that is needed, with its substitutions escaped."""
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
    """Puts the rule in place, whole or not at all; does nothing when it is there."""
    if read_rule(path) == text:
        return
    temporary = f"{path}.tmp"  # of another suffix, so that udev does not read it
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
    """The rule; None when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error) from None


def remove_rule(path: str) -> None:
    """Takes the rule away; does nothing when it is gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError.from_os(f"unlink({path})", error) from None
    _reload()


def _reload() -> None:
    """Has udevd read its rules now. Without that it looks itself, but no more often than every three seconds.

    So an udevadm that is missing or refused costs time, and nothing else.
    """
    program = next((path for path in _ADMIN if os.access(path, os.X_OK)), None)
    if program is not None:
        from scplan.linux.processes.programs import run_bounded

        run_bounded([program, "control", "--reload"], {}, timeout_s=_RELOAD_S, output_bytes=1024)
