"""Events of links, addresses and routes: sockets that are members of rtnetlink's groups. rtnetlink(7)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from scplan.errors import KernelError
from scplan.linux.network.netlink import wire
from scplan.linux.network.netlink.layouts import Malformed
from scplan.linux.network.netlink.wire import HEADER

# RTMGRP_* of linux/rtnetlink.h
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x40, 0x400
OF_A_CONTAINER = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE
OF_THE_HOST = _RTMGRP_LINK
# Small: in a flood, the kernel drops the rest (ENOBUFS), which counts as an event as well.
_BUFFER_BYTES = 16 << 10
_DATAGRAM_BYTES = 1 << 16


def open_listener(groups: int) -> socket.socket:
    """Socket in this thread's network namespace that becomes readable when an object of `groups` changes."""
    opened = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        opened.bind((0, groups))
    except OSError as error:
        opened.close()
        raise KernelError.from_os(f"bind(AF_NETLINK, groups {groups:#x})", error) from None
    return opened


def drain(listener: socket.socket) -> None:
    """Discard the events so far: at most as many as the buffer holds."""
    for _ in range(_BUFFER_BYTES):
        try:
            listener.recv(1, socket.MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise KernelError.from_os("recv(AF_NETLINK)", error) from None


def changed_links(listener: socket.socket) -> tuple[set[str], bool]:
    """(names of links that changed or went, True if events were lost) since the last call."""
    names: set[str] = set()
    lost = False
    for _ in range(_BUFFER_BYTES):
        try:
            data, _, _, sender = listener.recvmsg(_DATAGRAM_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise KernelError.from_os("recv(AF_NETLINK)", error) from None
            lost = True
            continue
        if sender[0] == 0:  # port 0 is the kernel: any process could send to the socket
            names.update(_names_in(data))
    return names, lost


def _names_in(data: bytes) -> Iterator[str]:
    start = 0
    while start < len(data):
        try:
            length, kind, _, _ = wire.read_header(data, start, len(data))
            if kind in (wire.RTM_NEWLINK, wire.RTM_DELLINK):
                yield wire.parse_link(data, start + HEADER.size, start + length).name
        except Malformed:
            return  # events are hints only: the next check of all finds the change
        start += (length + 3) & ~3
