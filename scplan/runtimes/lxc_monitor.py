"""Queries the monitor of a running container of LXC, incus or lxd for the first process. lxc(7), unix(7)."""

from __future__ import annotations

import errno
import os
import re
import struct

from scplan.errors import EngineUnreachable, KernelError, RecordDamaged
from scplan.linux.local_socket import ask

# struct lxc_cmd_req and lxc_cmd_rsp: command or result, length of data, a pointer; in the response it holds the PID.
_MESSAGE = struct.Struct("@iiP")
# LXC_CMD_GET_INIT_PID. Send no other command: with an empty payload, some stop the container or end its monitor.
_GET_INIT_PID = 4
# sun_path has 108 bytes, of which an abstract name uses the first for its NUL. unix(7)
_MAX_ADDRESS_BYTES = 107
# PID_MAX_LIMIT, include/linux/threads.h.
_MAX_PID = 1 << 22
_NEGATIVE = 1 << 8 * struct.calcsize("P") - 1
_FNV_BASIS, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def init_pid(directory: str) -> int:
    """PID of the first process of the container in LXCPATH/NAME; 0 if it does not run, so that no monitor listens."""
    address = socket_name(directory)
    try:
        answer = ask(f"\0{address}", _MESSAGE.pack(_GET_INIT_PID, 0, 0), answer_bytes=_MESSAGE.size)
    except KernelError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
            return 0  # there is no monitor, or it is ending
        if error.errno != errno.ETIMEDOUT:
            raise
        raise EngineUnreachable.at("the monitor of LXC", f"@{address}", error.said, error.errno) from None
    if len(answer) < _MESSAGE.size:
        return 0  # the monitor is ending
    result, _, pid = _MESSAGE.unpack(answer)
    if result == 0 and pid >= _NEGATIVE:
        return 0  # a negative errno: the container is starting
    if result < 0 or pid > _MAX_PID:
        raise RecordDamaged(f"@{address}: the monitor of the container names no process")
    return int(pid)


def payload_cgroup(name: str) -> str:
    """Regular expression for the name of a container's cgroup; LXC appends a number if the name is taken."""
    return rf"lxc\.payload\.{re.escape(name)}(-[0-9]+)?"


def monitor_title(lxcpath: str, name: str) -> str:
    """Command line of the monitor of a container that was started in the background."""
    return f"[lxc monitor] {lxcpath} {name}"


def socket_name(directory: str) -> str:
    """Name of the monitor's abstract socket, with a hash (FNV-1a, 64 bits) in place of a long path."""
    address = f"{directory}/command"
    if len(os.fsencode(address)) < _MAX_ADDRESS_BYTES:
        return address
    value = _FNV_BASIS
    for byte in os.fsencode(directory):
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return f"lxc/{value:016x}/command"
