"""Answers that no kernel would send: every one ends in a KernelError, never in a crash, a hang or a wrong value."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scplan.errors import KernelError
from scplan.linux.network.netlink import Addr, Link, Route, Rtnl, wire
from scplan.linux.network.netlink.layouts import Layouts, Malformed, places
from scplan.linux.network.netlink.wire import HEADER, IFADDR, IFINFO, RTMSG, attribute, u32

PARSERS = (wire.parse_link, wire.parse_address, wire.parse_route, wire.parse_nsid)

LINK = IFINFO.pack(0, 1, 7, 1, 0) + attribute(3, b"eth1\0") + u32(4, 1500) + attribute(1, bytes.fromhex("02005e100001"))
LINK += attribute(18, attribute(1, b"veth\0"))
ADDRESS = IFADDR.pack(2, 24, 0x80, 0, 7) + attribute(1, bytes((10, 0, 0, 6))) + attribute(2, bytes((10, 0, 0, 5)))
ROUTE = RTMSG.pack(2, 16, 0, 0, 254, 4, 0, 1, 0) + attribute(1, bytes((10, 1, 0, 0))) + u32(4, 7)


def parse(parser: Callable[..., Any], data: bytes) -> Any:
    return parser(data, 0, len(data))


def test_whole_messages_are_understood() -> None:
    link: Link = parse(wire.parse_link, LINK)
    assert (link.index, link.name, link.kind, link.mtu, link.mac, link.up) == (
        7,
        "eth1",
        "veth",
        1500,
        "02:00:5e:10:00:01",
        True,
    )
    addr: Addr = parse(wire.parse_address, ADDRESS)
    assert (addr.address, addr.peer, addr.index) == ("10.0.0.5/24", "10.0.0.6", 7)
    route: Route = parse(wire.parse_route, ROUTE)
    assert (route.dst, route.oif) == ("10.1.0.0/16", 7)


@pytest.mark.parametrize(
    ("parser", "message"), [(wire.parse_link, LINK), (wire.parse_address, ADDRESS), (wire.parse_route, ROUTE)]
)
def test_a_message_cut_off_anywhere_is_malformed_or_lacks_what_was_cut(
    parser: Callable[..., Any], message: bytes
) -> None:
    whole = parse(parser, message)
    for length in range(len(message)):
        with contextlib.suppress(Malformed):
            assert parse(parser, message[:length]) != whole


@pytest.mark.parametrize("length", [0, 1, 2, 3, 0xFFFF])
@pytest.mark.parametrize("parser", [wire.parse_link, wire.parse_address, wire.parse_route])
def test_attributes_of_impossible_lengths_are_malformed(parser: Callable[..., Any], length: int) -> None:
    fixed = {wire.parse_link: LINK[:16], wire.parse_address: ADDRESS[:8], wire.parse_route: ROUTE[:12]}[parser]
    with pytest.raises(Malformed):
        parse(parser, fixed + struct.pack("=HH", length, 3) + bytes(12))


@pytest.mark.parametrize("size", [0, 1, 3, 5, 15, 17])
def test_addresses_of_impossible_sizes_are_malformed(size: int) -> None:
    with pytest.raises(Malformed):
        parse(wire.parse_address, IFADDR.pack(10, 64, 0, 0, 7) + attribute(1, bytes(size)))
    with pytest.raises(Malformed):
        parse(wire.parse_route, RTMSG.pack(2, 16, 0, 0, 254, 4, 0, 1, 0) + attribute(1, bytes(size)))


def test_next_hops_without_an_end_are_malformed() -> None:
    for length in (0, 4, 7, 200):
        hops = struct.pack("=HBBi", length, 0, 0, 7)
        with pytest.raises(Malformed):
            parse(wire.parse_route, ROUTE + attribute(9, hops))


def test_other_families_are_left_out() -> None:
    assert parse(wire.parse_route, RTMSG.pack(28, 20, 0, 0, 254, 4, 0, 1, 0)) is None
    assert parse(wire.parse_address, IFADDR.pack(28, 20, 0, 0, 7)) is None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PARSERS), st.binary(max_size=200))
def test_garbage_is_malformed_or_has_a_value(parser: Callable[..., Any], data: bytes) -> None:
    with contextlib.suppress(Malformed):
        parse(parser, data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([(wire.parse_link, LINK), (wire.parse_route, ROUTE), (wire.parse_address, ADDRESS)]), st.data())
def test_a_flipped_byte_is_malformed_or_has_a_value(
    case: tuple[Callable[..., Any], bytes], data: st.DataObject
) -> None:
    parser, message = case
    place = data.draw(st.integers(0, len(message) - 1))
    changed = bytearray(message)
    changed[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Malformed):
        parse(parser, bytes(changed))


WANTED = {1: "s", 3: "s", 4: "I", 37: "i"}
ATTRIBUTES = st.lists(
    st.tuples(st.sampled_from((1, 2, 3, 4, 4 | 0x8000, 37, 40)), st.binary(max_size=9)).map(
        lambda one: attribute(*one)
    ),
    max_size=6,
).map(b"".join)


def plainly_read(data: bytes, start: int) -> tuple[object, ...] | None:
    """One attribute after the other; None for what is malformed."""
    try:
        found = wire.split(data, start, len(data))
        forms = {"s": lambda payload: payload, "I": lambda payload: struct.unpack_from("=I", payload)[0]}
        forms["i"] = lambda payload: struct.unpack_from("=i", payload)[0]
        return tuple(forms[form](found[kind]) if kind in found else None for kind, form in WANTED.items())
    except (Malformed, struct.error):
        return None


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.lists(ATTRIBUTES, min_size=1, max_size=4), st.binary(max_size=3), st.data())
def test_layouts_that_are_known_change_nothing(messages: list[bytes], rest: bytes, data: st.DataObject) -> None:
    layouts = Layouts(WANTED)
    for message in [*messages, *messages]:
        changed = bytearray(b"head" + message + rest)
        if message and data.draw(st.booleans()):
            changed[data.draw(st.integers(4, len(changed) - 1))] = data.draw(st.integers(0, 255))
        whole = bytes(changed)
        try:
            found = layouts.read(whole, 4, len(whole))
        except Malformed:
            # One that is twice must have room each time; read plainly, the last one counts.
            assert plainly_read(whole, 4) is None or len(set(kinds_of(whole))) < len(kinds_of(whole))
        else:
            assert found == plainly_read(whole, 4)


def kinds_of(data: bytes) -> list[int]:
    return [kind for kind, _, _ in places(data, 4, len(data))]


def test_more_layouts_than_are_kept_are_read_all_the_same() -> None:
    layouts = Layouts(WANTED)
    for size in range(300):
        message = attribute(3, bytes(size)) + u32(4, size)
        assert layouts.read(message, 0, len(message)) == (None, bytes(size), size, None)
    for kind in range(40, 80):
        message = u32(kind, 1) + u32(4, kind)
        assert layouts.read(message, 0, len(message)) == (None, None, kind, None)


# whole answers, over a socket pair in the place of the kernel's end


class Scripted:
    """A socket that answers each request with the next of some datagrams, sent as the kernel (port 0)."""

    def __init__(self, *datagrams: bytes, sender: int = 0) -> None:
        self.datagrams = iter(datagrams)
        self.sender = sender

    def send(self, data: bytes) -> int:
        return len(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        data = next(self.datagrams, None)
        if data is None:
            raise BlockingIOError(errno.EAGAIN, "timed out")
        return data[:size], [], socket.MSG_TRUNC if len(data) > size else 0, (self.sender, 0)


def rtnl(*datagrams: bytes, sender: int = 0) -> Rtnl:
    return Rtnl(Scripted(*datagrams, sender=sender))  # type: ignore[arg-type]


def message(kind: int, body: bytes, *, flags: int = 2, sequence: int = 1) -> bytes:
    return HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


DONE = message(3, bytes(4))


def test_a_dump_ends_with_its_last_message() -> None:
    assert [link.name for link in rtnl(message(16, LINK) + message(16, LINK), DONE).links()] == ["eth1", "eth1"]


@pytest.mark.parametrize(
    "datagrams",
    [
        [b""],
        [b"\0"],
        [bytes(16)],
        [bytes(15)],
        [HEADER.pack(15, 16, 2, 1, 0) + bytes(20)],
        [HEADER.pack(4000, 16, 2, 1, 0) + bytes(20)],
        [message(16, LINK)[:-30]],
        [message(16, LINK[:10])],
        [message(2, b"")],
        [message(3, b"\0")],
        [message(2, struct.pack("=i", -(2**31)) + bytes(16))],
        [message(3, struct.pack("=i", -4096))],
        [message(3, struct.pack("=i", 7))],
        [b"x" * 70000],
        [message(16, LINK, sequence=9), message(3, bytes(4), sequence=9)],
        [message(16, LINK)],
    ],
)
def test_broken_answers_are_errors(datagrams: list[bytes]) -> None:
    with pytest.raises(KernelError) as caught:
        rtnl(*datagrams).links()
    assert caught.value.errno in (errno.EBADMSG, errno.ETIMEDOUT, errno.EMSGSIZE)
    with pytest.raises(KernelError):
        rtnl(*datagrams).delete_link(7)
    with pytest.raises(KernelError):
        rtnl(*[datagram for datagram in datagrams if datagram != message(16, LINK)]).link(7)


def test_a_dump_that_changed_meanwhile_is_read_again() -> None:
    first = message(16, LINK, flags=2 | 0x10) + DONE
    again = message(16, LINK, sequence=2) + message(3, bytes(4), sequence=2)
    assert len(rtnl(first, again).links()) == 1


def test_a_dump_that_never_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scplan.linux.network.netlink.rtnl.TIMEOUT_S", 0.01)
    answers = [message(3, bytes(4), flags=2 | 0x10, sequence=number) for number in range(1, 100_000)]
    with pytest.raises(KernelError, match="EAGAIN: kept changing"):
        rtnl(*answers).links()


def test_an_error_at_the_end_of_a_dump_is_an_error() -> None:
    body = struct.pack("=i", -errno.EPERM) + attribute(1, b"you may not\0")
    with pytest.raises(KernelError, match=r"RTM_GETLINK\(dump\): EPERM: you may not"):
        rtnl(message(3, body, flags=2 | 0x200)).links()


@pytest.mark.parametrize("capped", [True, False])
def test_what_the_kernel_says_about_an_error_is_told(capped: bool) -> None:
    request = HEADER.pack(16 + 8, 17, 5, 1, 0) + (b"" if capped else bytes(8))
    body = struct.pack("=i", -errno.EBUSY) + request + attribute(1, b"in use\0")
    flags = 0x200 | (0x100 if capped else 0)
    with pytest.raises(KernelError, match=r"RTM_DELLINK\(link 7\): EBUSY: in use"):
        rtnl(message(2, body, flags=flags)).delete_link(7)


def test_answers_of_other_senders_time_out() -> None:
    with pytest.raises(KernelError, match="ETIMEDOUT"):
        rtnl(*[DONE] * 20, sender=4711).links()
