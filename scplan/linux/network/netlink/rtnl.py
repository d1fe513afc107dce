"""An rtnetlink socket: dumps, single look-ups, changes one by one or in batches. netlink(7), rtnetlink(7)."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import time
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import TypeVar

from scplan.errors import KernelError
from scplan.linux.closing import Closing
from scplan.linux.network.netlink import wire
from scplan.linux.network.netlink.layouts import Malformed
from scplan.linux.network.netlink.raw import RawRoute, parse_raw_route
from scplan.linux.network.netlink.records import Addr, Link, Route
from scplan.linux.network.netlink.requests import Request, Requests
from scplan.linux.network.netlink.wire import HEADER, IFADDR, IFINFO, RTMSG

T = TypeVar("T")

TIMEOUT_S = 5
_TIMEOUT = struct.pack("@ll", TIMEOUT_S, 0)  # struct timeval of SO_RCVTIMEO
_SOCKET_TYPE = int(socket.SOCK_RAW | socket.SOCK_CLOEXEC)
_SOL_NETLINK = 270
_MSG_TRUNC = int(socket.MSG_TRUNC)  # the enum would make an enum of every result
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12
_SIOCGIFNAME = 0x8910
# A dump message of the kernel has at most 32 KiB.
_BUFFER_BYTES = 1 << 16
# A container can fill its own tables; this many entries are more than a full BGP table.
_MAX_ENTRIES = 1 << 21
# The answers to a batch wait in the socket's receive buffer, which holds some 250.
_BATCH_MESSAGES = 64
# SKIP_STATS: links without their counters
_LINK_REQUEST = IFINFO.pack(0, 0, 0, 0, 0) + wire.u32(wire.IFLA_EXT_MASK, wire.RTEXT_FILTER_SKIP_STATS)


def open_socket() -> socket.socket:
    """rtnetlink socket in the network namespace of this thread; the socket stays in this namespace.

    A receive waits at most TIMEOUT_S. With strict checks (Linux 4.20) the kernel filters dumps; older kernels ignore
    filters, and the callers' own filters do the work.
    """
    opened = socket.socket(socket.AF_NETLINK, _SOCKET_TYPE, socket.NETLINK_ROUTE)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        # CAP_ACK: acknowledgements without a copy of the request. EXT_ACK: texts for errors. netlink(7)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            _set_option(opened, option)
    except BaseException:
        opened.close()
        raise
    return opened


def _set_option(opened: socket.socket, option: int) -> None:
    try:
        opened.setsockopt(_SOL_NETLINK, option, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise KernelError.from_os(f"setsockopt(SOL_NETLINK, {option})", error) from None


class Batch(Requests):
    """Changes that are collected, then sent together. Not atomic: all are tried, each on its own."""

    def __init__(self, rtnl: Rtnl) -> None:
        self._rtnl = rtnl
        self._requests: list[Request] = []

    def _submit(self, request: Request) -> None:
        self._requests.append(request)

    def send(self) -> None:
        """Send the collected changes; raise the first KernelError, with the diagnostics of all that failed."""
        requests, self._requests = self._requests, []
        self._rtnl.transact(requests)


class Rtnl(Requests, Closing):
    """rtnetlink in the namespace in which its socket was opened. For one thread at a time."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    # reading

    def links(self) -> list[Link]:
        """All links of the namespace, in the order of their index."""
        return self._dump(wire.RTM_GETLINK, wire.RTM_NEWLINK, _LINK_REQUEST, wire.parse_link, "RTM_GETLINK(dump)")

    def link_messages(self) -> dict[int, bytes]:
        """Bodies of the kernel's messages for all links, by index; `parsed_link` parses such a body."""
        operation = "RTM_GETLINK(dump)"
        return dict(self._dump(wire.RTM_GETLINK, wire.RTM_NEWLINK, _LINK_REQUEST, wire.link_message, operation))

    def parsed_link(self, message: bytes) -> Link:
        """Link from a body of `link_messages`."""
        return _parsed("RTM_GETLINK(dump)", wire.parse_link, message, 0, len(message))

    def nics(self) -> list[Link]:
        """All links but the loopback interface, which is not even parsed: most containers have few other links."""
        return self._dump(wire.RTM_GETLINK, wire.RTM_NEWLINK, _LINK_REQUEST, wire.parse_nic, "RTM_GETLINK(dump)")

    def addresses(self, links: Container[int] | None = None) -> list[Addr]:
        """IPv4 and IPv6 addresses of the namespace, of all links or of those with these indexes."""
        body = IFADDR.pack(0, 0, 0, 0, 0)
        parse = wire.parse_address if links is None else partial(wire.parse_address, links=links)
        return self._dump(wire.RTM_GETADDR, wire.RTM_NEWADDR, body, parse, "RTM_GETADDR(dump)")

    def routes(
        self, *, family: int = 0, type: int = 0, protocol: int = 0, lengths: Container[int] | None = None
    ) -> list[Route]:
        """IPv4 and IPv6 routes of all tables, without cached routes; 0 stands for any family, type or protocol.

        `lengths` are the prefix lengths of their destinations, None for all; the default route has 0.
        """
        body = RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, type, 0)
        parse = wire.parse_route if lengths is None else partial(wire.parse_route, lengths=lengths)
        routes = self._dump(wire.RTM_GETROUTE, wire.RTM_NEWROUTE, body, parse, "RTM_GETROUTE(dump)")
        if family or type or protocol:
            return [
                route
                for route in routes
                if (not family or route.family == family)
                and (not type or route.type == type)
                and (not protocol or route.protocol == protocol)
            ]
        return routes

    def raw_routes(self, family: int = 0, *, table: int = 0, lengths: Container[int] | None = None) -> list[RawRoute]:
        """Routes with the kernel's own messages; routes of the same key in the order in which the kernel tries them.

        0 stands for any family or table; `lengths` as in `routes`.
        """
        body = RTMSG.pack(0, 0, 0, 0, table if table < 256 else 0, 0, 0, 0, 0)
        parse = parse_raw_route if lengths is None else partial(parse_raw_route, lengths=lengths)
        found = self._dump(wire.RTM_GETROUTE, wire.RTM_NEWROUTE, body, parse, "RTM_GETROUTE(dump)")
        return [
            raw
            for raw in found
            if (not family or raw.route.family == family) and (not table or raw.route.table == table)
        ]

    def tables_of_rules(self) -> set[int]:
        """Tables that rules name for packets of any kind. fib_rule_hdr and FRA_TABLE of linux/fib_rules.h"""
        operation = "RTM_GETRULE(dump)"
        found = self.bodies(wire.RTM_GETRULE, wire.RTM_NEWRULE, bytes(12), operation)
        return {_parsed(operation, wire.table_of_rule, body) for body in found}

    def link(self, which: str | int) -> Link | None:
        """Link by name or index; None if there is none."""
        index, name = (which, b"") if isinstance(which, int) else (0, wire.text(wire.IFLA_IFNAME, which))
        body = IFINFO.pack(0, 0, index, 0, 0) + name
        body += wire.u32(wire.IFLA_EXT_MASK, wire.RTEXT_FILTER_SKIP_STATS)
        operation = f"RTM_GETLINK({which})"
        try:
            return self._ask(wire.RTM_GETLINK, wire.RTM_NEWLINK, body, wire.parse_link, operation)
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def bodies(self, number: int, answer: int, body: bytes, operation: str) -> list[bytes]:
        """Bodies of the messages that answer a dump of any other kind of object."""
        return self._dump(number, answer, body, lambda data, start, end: data[start:end], operation)

    def body(self, number: int, answer: int, body: bytes, operation: str) -> bytes:
        """Body of the only answer to a request of a kind that is answered to all listeners: NLM_F_ECHO asks for a copy.

        Raises KernelError ENOENT if there is no answer.
        """
        flags = wire.NLM_F_ECHO | wire.NLM_F_ACK
        return self._ask(number, answer, body, lambda data, start, end: data[start:end], operation, flags=flags)

    def link_name(self, index: int) -> str:
        """Name of a link by index, "" if there is none: many times cheaper than `link`. SIOCGIFNAME, netdevice(7)."""
        try:
            # struct ifreq: a name of 16 bytes, then here the index
            answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, struct.pack("@16si20x", b"", index))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return ""
            raise KernelError.from_os(f"ioctl(SIOCGIFNAME, link {index})", error) from None
        return answer[:16].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")

    def nsid(self, netns_fd: int) -> int:
        """ID of another network namespace in this one, as in Link.peer_nsid; -1 if it has none."""
        body = b"\0\0\0\0" + wire.u32(wire.NETNSA_FD, netns_fd)
        return self._ask(wire.RTM_GETNSID, wire.RTM_NEWNSID, body, wire.parse_nsid, f"RTM_GETNSID(fd {netns_fd})")

    # changing

    def _submit(self, request: Request) -> None:
        self.transact([request])

    def batch(self) -> Batch:
        """New batch of changes, which `Batch.send` sends."""
        return Batch(self)

    def transact(self, requests: Sequence[Request]) -> None:
        """Send requests, as many in one system call as their answers have room for.

        All are tried, in order; raises the first KernelError, with the diagnostics of all that failed.
        """
        errors: list[KernelError] = []
        for start in range(0, len(requests), _BATCH_MESSAGES):
            errors += self._transact(requests[start : start + _BATCH_MESSAGES])
        if errors:
            errors[0].diagnostics = tuple(diagnostic for error in errors for diagnostic in error.diagnostics)
            raise errors[0]

    def _transact(self, requests: Sequence[Request]) -> list[KernelError]:
        first = self._sequence + 1
        flags = wire.NLM_F_REQUEST | wire.NLM_F_ACK
        messages = [self._message(request.number, request.flags | flags, request.body) for request in requests]
        operation = requests[0].operation
        self._send(b"".join(messages), operation)
        waiting = {first + place: request for place, request in enumerate(requests)}
        errors: list[KernelError] = []
        for data, start, end, number, message_flags, sequence in self._messages(operation, lambda: bool(waiting)):
            # Each request has one answer, because of NLM_F_ACK: an NLMSG_ERROR, with errno 0 for success. netlink(7)
            if number != wire.NLMSG_ERROR or sequence not in waiting:
                continue
            request = waiting.pop(sequence)
            code, said = _parsed(request.operation, wire.parse_error, data, start, end, message_flags, done=False)
            if code and code not in request.done_when:
                errors.append(KernelError(request.operation, code, detail=said))
        return errors

    # messages

    def _message(self, number: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return HEADER.pack(HEADER.size + len(body), number, flags, self._sequence, 0) + body

    def _send(self, data: bytes, operation: str) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError.from_os(operation, error) from None

    def _ask(
        self,
        number: int,
        answer: int,
        body: bytes,
        parse: Callable[[bytes, int, int], T],
        operation: str,
        *,
        flags: int = 0,
    ) -> T:
        """The only answer to a request."""
        self._send(self._message(number, wire.NLM_F_REQUEST | flags, body), operation)
        for data, start, end, kind, message_flags, sequence in self._messages(operation, lambda: True):
            if sequence != self._sequence:
                continue
            if kind == answer:
                return _parsed(operation, parse, data, start, end)
            if kind == wire.NLMSG_ERROR:
                code, said = _parsed(operation, wire.parse_error, data, start, end, message_flags, done=False)
                # An acknowledgement instead of an answer: there is no such object.
                raise KernelError(operation, code or errno.ENOENT, detail=said)
        raise AssertionError("the messages of a socket never end; this is a bug in scplan")

    def _dump(
        self, number: int, answer: int, body: bytes, parse: Callable[[bytes, int, int], T | None], operation: str
    ) -> list[T]:
        """All entries of a dump; read again, for TIMEOUT_S at most, if entries changed meanwhile."""
        deadline = 0.0
        while True:
            message = self._message(number, wire.NLM_F_REQUEST | wire.NLM_F_DUMP, body)
            self._send(message, operation)
            entries = self._receive_dump(answer, parse, operation)
            if entries is not None:
                return entries
            # Not a number of tries: a thousand links take 0.1 s, and on a busy host they change many times a second.
            deadline = deadline or time.monotonic() + TIMEOUT_S
            if time.monotonic() > deadline:
                raise KernelError(operation, errno.EAGAIN, detail=f"kept changing for {TIMEOUT_S} s while it was read")

    def _receive_dump(
        self, answer: int, parse: Callable[[bytes, int, int], T | None], operation: str
    ) -> list[T] | None:
        """Entries of the dump in progress; None if they changed meanwhile (NLM_F_DUMP_INTR)."""
        entries: list[T] = []
        interrupted, unpack = 0, HEADER.unpack_from
        # A loop of its own, without `_messages`: for a thousand namespaces it is most of the cost of reading.
        while len(entries) <= _MAX_ENTRIES:
            data = self._receive(operation)
            start, size, mine = 0, len(data), self._sequence
            try:
                while start < size:
                    if size - start < 16:
                        raise Malformed(f"{size - start} bytes where a message should begin")
                    length, kind, flags, sequence, _ = unpack(data, start)
                    body, end = start + 16, start + length
                    if not body <= end <= size:
                        raise Malformed(f"a message of {length} bytes, {size - start} received")
                    if sequence != mine:
                        pass
                    elif kind == answer:
                        interrupted |= flags & wire.NLM_F_DUMP_INTR
                        entry = parse(data, body, end)
                        if entry is not None:
                            entries.append(entry)
                    elif kind in (wire.NLMSG_DONE, wire.NLMSG_ERROR):
                        code, said = wire.parse_error(data, body, end, flags, done=kind == wire.NLMSG_DONE)
                        if code:
                            raise KernelError(operation, code, detail=said)
                        return None if (interrupted or flags & wire.NLM_F_DUMP_INTR) else entries
                    start = (end + 3) & ~3
            except Malformed as error:
                raise _malformed(operation, error) from None
        raise KernelError(operation, errno.E2BIG, detail=f"more than {_MAX_ENTRIES} entries")

    def _messages(self, operation: str, more: Callable[[], bool]) -> Iterator[tuple[bytes, int, int, int, int, int]]:
        """(datagram, start and end of the body, number, flags, sequence) of each message, while `more()`."""
        while more():
            data = self._receive(operation)
            start, size = 0, len(data)
            while start < size:
                length, kind, flags, sequence = _parsed(operation, wire.read_header, data, start, size)
                yield data, start + HEADER.size, start + length, kind, flags, sequence
                start += (length + 3) & ~3

    def _receive(self, operation: str) -> bytes:
        """One datagram of the kernel; others are ignored: a container's root can send to this socket."""
        deadline = 0.0
        while True:
            try:
                data, _, flags, sender = self._socket.recvmsg(_BUFFER_BYTES)
            except BlockingIOError:
                raise KernelError(operation, errno.ETIMEDOUT, detail=f"no answer within {TIMEOUT_S} s") from None
            except OSError as error:
                # ENOBUFS among them: answers were lost, so that the operation's result is unknown.
                raise KernelError.from_os(operation, error) from None
            if flags & _MSG_TRUNC:
                raise KernelError(operation, errno.EMSGSIZE, detail=f"an answer of more than {_BUFFER_BYTES} bytes")
            # Port 0 is the kernel. netlink(7)
            if sender[0] == 0:
                return data
            deadline = deadline or time.monotonic() + TIMEOUT_S
            if time.monotonic() > deadline:
                raise KernelError(operation, errno.ETIMEDOUT, detail="flooded with messages of another process")


def _parsed(operation: str, parse: Callable[..., T], *where: object, **options: object) -> T:
    try:
        return parse(*where, **options)
    except Malformed as error:
        raise _malformed(operation, error) from None


def _malformed(operation: str, what: Malformed) -> KernelError:
    return KernelError(operation, errno.EBADMSG, detail=f"malformed answer: {what}")
