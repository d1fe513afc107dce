"""The monitor of a running LXC container, which also incus and lxd use: it knows the first process. lxc(7), unix(7)."""

from __future__ import annotations

import errno
import os
import re
import struct

from scplan.errors import EngineUnreachable, KernelError, RecordDamaged
from scplan.linux.local_socket import ask

# struct lxc_cmd_req and lxc_cmd_rsp: command or result, length of data, a pointer that holds the PID of an answer.
_MESSAGE = struct.Struct("@iiP")
# With an empty payload others stop the container, or end its monitor: this is the only one that is ever sent.
_GET_INIT_PID = 4
_MAX_ADDRESS_BYTES = 107
_MAX_PID = 1 << 22
_NEGATIVE = 1 << 8 * struct.calcsize("P") - 1
_FNV_BASIS, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def init_pid(directory: str) -> int:
    """The first process of the container in LXCPATH/NAME; 0 when it does not run, and nobody listens (any more)."""
    address = socket_name(directory)
    try:
        answer = ask(f"\0{address}", _MESSAGE.pack(_GET_INIT_PID, 0, 0), answer_bytes=_MESSAGE.size)
    except KernelError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
            return 0  # nobody listens, or the monitor is just ending
        if error.errno != errno.ETIMEDOUT:
            raise
        raise EngineUnreachable.at("the monitor of LXC", f"@{address}", error.said, error.errno) from None
    if len(answer) < _MESSAGE.size:
        return 0  # it is just ending
    result, _, pid = _MESSAGE.unpack(answer)
    if result == 0 and pid >= _NEGATIVE:
        return 0  # a negative errno: it is just starting
    if result < 0 or pid > _MAX_PID:
        raise RecordDamaged(f"@{address}: the monitor of the container names no process")
    return int(pid)


def payload_cgroup(name: str) -> str:
    """A regular expression for the name of the cgroup of a container's processes: LXC numbers those of one name."""
    return rf"lxc\.payload\.{re.escape(name)}(-[0-9]+)?"


def monitor_title(lxcpath: str, name: str) -> str:
    """The command line of the monitor of a container that was started in the background."""
    return f"[lxc monitor] {lxcpath} {name}"


def socket_name(directory: str) -> str:
    """The name of the monitor's abstract socket; for long paths LXC hashes them (FNV-1a, 64 bits)."""
    address = f"{directory}/command"
    if len(os.fsencode(address)) < _MAX_ADDRESS_BYTES:
        return address
    value = _FNV_BASIS
    for byte in os.fsencode(directory):
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return f"lxc/{value:016x}/command"
