"""The next hops of a route as one text: "", a gateway, several next hops, or the type of a route that is not unicast.

Users write a gateway or nothing. Routes of others may have several next hops or another type (`blackhole`); scplan
reads such routes, and an undo restores them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from scplan.model.resource import ValueType
from scplan.model.values import IP
from scplan.startup.named_tuple import NamedTuple

_WAY = re.compile(r"(?:([0-9a-f.:]+) )?dev ([^ ]+)(?: weight (\d{1,3}))?( onlink)?, ", re.ASCII)
UNICAST = 1
# RTN_… of include/uapi/linux/rtnetlink.h, rtnetlink(7); the words are those of ip-route(8).
TYPES = {
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
    10: "nat",
}
_TYPE_NUMBERS = {word: number for number, word in TYPES.items()}


class Way(NamedTuple):
    """One of several next hops. `gateway` is "" if the destination is on the link of `dev`. `weight` is 1 to 256.

    `onlink` is RTNH_F_ONLINK: the kernel does not check that an address of `dev` reaches the gateway. ip-route(8).
    """

    gateway: str
    dev: str
    weight: int = 1
    onlink: bool = False


def text_of(ways: Iterable[Way]) -> str:
    """The text of several next hops, in the words of ip-route(8): `10.0.0.1 dev eth1, 10.1.0.1 dev eth2 weight 2`."""
    return ", ".join(
        f"{way.gateway} dev {way.dev}".lstrip()
        + (f" weight {way.weight}" if way.weight != 1 else "")
        + (" onlink" if way.onlink else "")
        for way in ways
    )


def type_of(text: str) -> int:
    """RTN_… number of the route's type: of the word, if the text is one of TYPES, else UNICAST."""
    return _TYPE_NUMBERS.get(text, UNICAST)


def ways_of(text: str) -> tuple[Way, ...]:
    """Next hops of a text that has several; () for a single gateway, a type, or "". Raises ValueError."""
    if " " not in text:
        return ()
    ways: list[Way] = []
    # Not split at commas: the kernel allows commas in the names of links, though no spaces (dev_valid_name()).
    rest = f"{text}, "
    while rest:
        found = _WAY.match(rest)
        if found is None:
            raise ValueError(f"not a next hop: {rest!r}")
        gateway, dev, weight, onlink = found.groups("")
        IP.check(gateway)
        # The kernel's field is one byte, and is weight - 1: rtnh_hops of struct rtnexthop, linux/rtnetlink.h.
        if not 1 <= int(weight or 1) <= 256:
            raise ValueError(f"{found[0]!r}: the weight is a number from 1 to 256")
        ways.append(Way(gateway, dev, int(weight or 1), bool(onlink)))
        rest = rest[found.end() :]
    return tuple(ways)


def is_address(text: str) -> bool:
    """True if the text is a single gateway."""
    return bool(text) and " " not in text and text not in _TYPE_NUMBERS


def _check(text: str) -> None:
    if text not in _TYPE_NUMBERS and not ways_of(text):
        IP.check(text)


NEXT_HOP = ValueType(IP.parse, stored=str, schema=IP.schema, check=_check)
