"""A few attributes out of messages with many, most of which are laid out alike. netlink(7).

A host has thousands of links, and the kernel writes the attributes of all of one kind in the same places. These are
found out once for each layout; of a message like it just the headers of the attributes are compared, all at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

ATTRIBUTE = struct.Struct("=HH")
NUMBER_MASK = 0x3FFF  # NLA_TYPE_MASK: the other bits of an attribute's number are flags
# A container can have the kernel write as many layouts as it likes: those beyond are found out each time.
_MAX_SIZES = 64
_MAX_LAYOUTS = 8


class Malformed(ValueError):
    """A reply that is not as the kernel writes them."""


def places(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, offset, end) of each attribute's header and payload, in order; the offset is that of the header.

    Raises Malformed when one of them reaches beyond the end.
    """
    header = ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = header(data, start)
        stop = start + length
        if length < 4 or stop > end:
            raise Malformed(f"attribute {kind & NUMBER_MASK} of {length} bytes at offset {start} of {end}")
        yield kind & NUMBER_MASK, start, stop
        start = (stop + 3) & ~3


class Layouts:
    """Reads these attributes. `wanted` maps numbers to their form: "s" for bytes, "I" and "i" for numbers."""

    def __init__(self, wanted: Mapping[int, str]) -> None:
        self._wanted = wanted
        self._known: dict[int, list[_Layout]] = {}

    def read(self, data: bytes, start: int, end: int) -> tuple[Any, ...]:
        """Their values in the order of `wanted`; None for those that are not there. Of one that is twice, the last.

        Raises Malformed when an attribute reaches beyond the end, or has no room for its number.
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
    """Where the attributes of a message are: `headers` is `expected` for all that are laid out so."""

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
        # What is not there is the None behind all payloads.
        indexes = [found.get(kind, payloads.count) for kind in wanted]
        self.pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(*indexes)


class _Format:
    """A struct that is made field by field, of offsets in a message; what is between the fields is skipped."""

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
