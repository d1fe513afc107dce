"""A few attributes of messages that have many, in most messages at the same places. netlink(7).

A host has thousands of links, and the kernel writes the attributes of all links of a kind in the same layout. A layout
is analysed once; of further messages only the headers of the attributes are compared with it, all at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

ATTRIBUTE = struct.Struct("=HH")
NUMBER_MASK = 0x3FFF  # NLA_TYPE_MASK: the other bits of an attribute's number are flags
# A container can make the kernel write any number of layouts: further ones are analysed each time.
_MAX_SIZES = 64
_MAX_LAYOUTS = 8


class Malformed(ValueError):
    """A reply in a form that the kernel does not write."""


def places(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, offset of the header, end of the payload) of each attribute, in order.

    Raises Malformed if an attribute reaches beyond `end`.
    """
    header = ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = header(data, start)
        stop = start + length
        if length < 4 or stop > end:
            raise Malformed(f"attribute {kind & NUMBER_MASK} of {length} bytes at offset {start} of {end}")
        yield kind & NUMBER_MASK, start, stop
        # Attributes are aligned to 4 bytes (NLA_ALIGNTO).
        start = (stop + 3) & ~3


class Layouts:
    """Reads the attributes in `wanted`, which maps numbers to forms: "s" for bytes, "I" and "i" for numbers."""

    def __init__(self, wanted: Mapping[int, str]) -> None:
        self._wanted = wanted
        self._known: dict[int, list[_Layout]] = {}

    def read(self, data: bytes, start: int, end: int) -> tuple[Any, ...]:
        """Values in the order of `wanted`; None for a missing attribute, the last value of a repeated attribute.

        Raises Malformed if an attribute reaches beyond `end`, or is too short for its number.
        """
        size = end - start
        for layout in self._known.get(size, ()):
            if layout.headers(data, start) == layout.expected:
                return layout.pick((*layout.payloads(data, start), None))
        layout = _Layout(self._wanted, data, start, end)
        if len(self._known) < _MAX_SIZES or size in self._known:
            alike = self._known.setdefault(size, [])
            if len(alike) < _MAX_LAYOUTS:
                alike.append(layout)
        return layout.pick((*layout.payloads(data, start), None))


class _Layout:
    """Offsets of a message's attributes. Every message for which `headers` is `expected` has the same layout."""

    __slots__ = ("expected", "headers", "payloads", "pick")

    def __init__(self, wanted: Mapping[int, str], data: bytes, start: int, end: int) -> None:
        headers, payloads = _Format(start), _Format(start)
        found: dict[int, int] = {}
        for kind, at, stop in places(data, start, end):
            headers.add("HH", at, 4)
            form = wanted.get(kind)
            if form is None:
                continue
            length = stop - at - 4
            if form != "s" and length < 4:
                raise Malformed(f"attribute {kind} of {length} bytes is not a number")
            found[kind] = payloads.count
            payloads.add(f"{length}s" if form == "s" else form, at + 4, length if form == "s" else 4)
        self.headers = headers.compiled()
        self.expected = self.headers(data, start)
        self.payloads = payloads.compiled()
        # A missing attribute gets the None that `read` puts behind all payloads.
        indexes = [found.get(kind, payloads.count) for kind in wanted]
        self.pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(*indexes)


class _Format:
    """A struct built field by field, from offsets in a message; bytes between the fields are skipped."""

    def __init__(self, start: int) -> None:
        self.count = 0
        self._text = "="
        self._at = start

    def add(self, form: str, offset: int, size: int) -> None:
        self._text += f"{offset - self._at}x{form}"
        self._at = offset + size
        self.count += 1

    def compiled(self) -> Callable[[bytes, int], tuple[Any, ...]]:
        return struct.Struct(self._text).unpack_from
