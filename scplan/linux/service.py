"""A service as its manager sees it: that it is ready, alive, reloading, stopping. sd_notify(3), systemd.service(5)."""

from __future__ import annotations

import os
import socket
import time


def notify(*words: str) -> None:
    """Tells the manager: `notify("READY=1", "STATUS=…")`. Does nothing where none waits, or it went away."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.sendto("\n".join(words).encode(), address)
        except OSError:
            return  # nobody there to be told


def reloading() -> None:
    """Tells the manager that everything is read again, until "READY=1". `Type=notify-reload` wants the time."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def sign_of_life_every_s() -> float | None:
    """How often the manager wants to hear WATCHDOG=1: twice as often as it must; None when it does not."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 2e6


def writes_to_journal(fd: int) -> bool:
    """Whether a stream is connected to systemd's journal, which takes priorities in front of lines. systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    found = os.fstat(fd)
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
