"""Messages to a service's manager: ready, alive, reloading, stopping. sd_notify(3), systemd.service(5)."""

from __future__ import annotations

import os
import socket
import time


def notify(*words: str) -> None:
    """Send words to the service manager: `notify("READY=1", "STATUS=…")`. Does nothing if no manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        # A leading "@" stands for the NUL byte of an abstract socket name. unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.sendto("\n".join(words).encode(), address)
        except OSError:
            return  # the manager does not listen any more


def reloading() -> None:
    """Notify the manager that scplan reads all files again, until "READY=1". `Type=notify-reload` needs the time."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def sign_of_life_every_s() -> float | None:
    """Seconds between messages WATCHDOG=1: half the manager's limit; None if it has none. sd_watchdog_enabled(3)"""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 2e6


def writes_to_journal(fd: int) -> bool:
    """True if a stream is connected to systemd's journal, which reads priorities before lines. systemd.exec(5)"""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    found = os.fstat(fd)
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
