"""Requests to a daemon of this host over its socket: one request, one answer, bounded in time and size. unix(7)."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from scplan.errors import EngineUnreachable, KernelError, ScplanError

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 << 20
_MAX_HEAD_BYTES = 64 << 10
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def ask(address: str, request: bytes, *, answer_bytes: int | None = None, timeout_s: float | None = None) -> bytes:
    """Answer to a request: everything until the daemon closes the connection, or just the first `answer_bytes`.

    `address` is the path of a socket, or a NUL byte with the name of an abstract socket. Raises KernelError if no
    process answers within `timeout_s` (else TIMEOUT_S), or if the listener is neither root nor this user: anybody can
    take an abstract name, or leave a socket in a directory of their own.

    The request carries this process's credentials. Without them, a daemon that sets SO_PASSCRED only after the request
    has arrived would receive none.
    """
    name = address.replace("\0", "@")
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(timeout_s)
            connection.connect(address)
            _check_owner(connection, name)
            who = _CREDENTIALS.pack(os.getpid(), os.geteuid(), os.getegid())
            sent = connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
            if sent < len(request):
                connection.sendall(request[sent:])
            return _receive(connection, name, deadline, answer_bytes)
    except TimeoutError:
        raise KernelError(
            f"recv({name})", errno.ETIMEDOUT, detail=f"no answer within {timeout_s:g} s", hint="is its daemon stuck?"
        ) from None
    except OSError as error:
        raise KernelError.from_os(f"connect({name})", error) from None


def process_behind(address: str) -> int | None:
    """PID of the process that listens at a socket: 0 if not in this PID namespace; None if no process listens.

    Source: unix(7), SO_PEERCRED: the process that called listen(2).
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(address)
            pid, _, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            return int(pid)
    except OSError:
        return None


def http_get(address: str, target: str, *, timeout_s: float | None = None) -> tuple[int, bytes]:
    """Status and body of an HTTP server's answer at a socket; errors as in `ask`. RFC 9112."""
    answer = ask(address, _get(target), timeout_s=timeout_s)
    head, found, body = answer.partition(b"\r\n\r\n")
    words = head[:_MAX_HEAD_BYTES].split(None, 2)
    if not found or not head.startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        raise EngineUnreachable(f"{address}: the answer to GET {target} is not HTTP")
    return int(words[1][:3]), body


def open_stream(address: str, target: str) -> socket.socket:
    """Connection over which an HTTP server at a socket keeps answering one request; it does not block.

    Raises OSError if no process listens, KernelError if the listener is neither root nor this user.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        connection.connect(address)
        _check_owner(connection, address)
        connection.send(_get(target))
    except BaseException:
        connection.close()
        raise
    return connection


def _get(target: str) -> bytes:
    # HTTP/1.0: the answer has no chunks, and ends with the connection.
    return f"GET {target} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n".encode()


def _check_owner(connection: socket.socket, name: str) -> None:
    # SO_PEERCRED: the ids with which the daemon called listen(2). unix(7)
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid not in (0, os.geteuid()):
        raise KernelError(
            f"connect({name})", errno.EPERM, detail=f"user {uid} listens there, neither root nor the user of scplan"
        )


def _receive(connection: socket.socket, name: str, deadline: float, size: int | None) -> bytes:
    parts: list[bytes] = []
    received = 0
    while size is None or received < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(1 << 20 if size is None else size - received)
        if not part:
            break
        parts.append(part)
        received += len(part)
        if received > MAX_ANSWER_BYTES:
            raise ScplanError(f"{name}: an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
    return b"".join(parts)
