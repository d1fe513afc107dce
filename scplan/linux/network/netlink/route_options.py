"""Options of a route, all but its key, next hops and source, as words: `mtu lock 1300 initcwnd 20`. ip-route(8)"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from scplan.linux.network.netlink import wire
from scplan.linux.network.netlink.layouts import ATTRIBUTE, places
from scplan.linux.network.netlink.raw import RawRoute, does_expire
from scplan.linux.network.netlink.wire import RTMSG, U32

# linux/rtnetlink.h
_METRICS, _FLOW, _PREF, _ENCAP_TYPE, _ENCAP = 8, 11, 20, 21, 22
# Attributes of the key, the next hops and the source; state; nexthop objects, whose content is listed as well.
_NO_OPTIONS = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 15, 17, 18, 23, 24, 25, 30))
_LOCK, _CC_ALGO = 1, 16
_METRIC_NAMES = {
    2: "mtu",
    3: "window",
    4: "rtt",
    5: "rttvar",
    6: "ssthresh",
    7: "cwnd",
    8: "advmss",
    9: "reordering",
    10: "hoplimit",
    11: "initcwnd",
    12: "features",
    13: "rto_min",
    14: "initrwnd",
    15: "quickack",
    _CC_ALGO: "congctl",
    17: "fastopen_no_cookie",
}
_METRIC_NUMBERS = {name: number for number, name in _METRIC_NAMES.items()}
_PREFERENCES = {1: "high", 3: "low"}
_PREFERENCE_NUMBERS = {name: number for number, name in _PREFERENCES.items()}
_EXPIRES = "expires"


def options_of(raw: RawRoute) -> str:
    """Options of a route that the kernel listed, "" for none; `expires` is an option, without the remaining time."""
    return _options(raw.body)


@lru_cache(maxsize=1024)  # most routes of a host's containers are alike
def _options(body: bytes) -> str:
    attributes = list(_inside(body, RTMSG.size))
    found = {kind: payload for kind, payload in attributes if kind not in _NO_OPTIONS}
    words = list(_metric_words(found.pop(_METRICS, b"")))
    if flow := U32.unpack(found.pop(_FLOW, bytes(4)))[0]:
        words.append(f"realms {flow >> 16}/{flow & 0xFFFF}")
    if preference := found.pop(_PREF, b"\0")[0]:
        words.append(f"pref {_PREFERENCES.get(preference, preference)}")
    encap_type = found.pop(_ENCAP_TYPE, None)
    if encap_type is not None:
        words.append(f"encap {struct.unpack('=H', encap_type)[0]}:{found.pop(_ENCAP, b'').hex()}")
    words += [f"attribute{kind} {payload.hex()}" for kind, payload in sorted(found.items())]
    return " ".join(words + ([_EXPIRES] if does_expire(attributes) else []))


def _metric_words(metrics: bytes) -> Iterator[str]:
    # RTAX_LOCK is a mask of the metrics that are locked.
    found = dict(_inside(metrics, 0))
    locked = U32.unpack(found.pop(_LOCK, bytes(4)))[0]
    for number, payload in sorted(found.items()):
        name = _METRIC_NAMES.get(number, f"metric{number}")
        value = payload.rstrip(b"\0").decode("ascii", "replace") if number == _CC_ALGO else U32.unpack(payload)[0]
        yield f"{name} lock {value}" if locked >> number & 1 else f"{name} {value}"


def _inside(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    for kind, at, stop in places(data, start, len(data)):
        yield kind, data[at + ATTRIBUTE.size : stop]


def option_attributes(text: str) -> bytes:
    """Attributes that request a route with these options. Raises ValueError for other texts.

    An expiry is not requested, because the text does not have its time.
    """
    words = text.split()
    attributes, metrics, locked = b"", b"", 0
    while words:
        name = words.pop(0)
        if name == _EXPIRES and not words:
            break
        is_locked = bool(words) and words[0] == "lock"
        values = words[1:2] if is_locked else words[:1]
        if not values:
            raise ValueError(f"not the options of a route: {text!r}")
        words = words[1 + is_locked :]
        number = _METRIC_NUMBERS.get(name) or (int(name[6:]) if name.startswith("metric") else 0)
        if number:
            metrics += wire.text(number, values[0]) if number == _CC_ALGO else wire.u32(number, int(values[0]))
            locked |= is_locked << number
        else:
            attributes += _attribute(name, values[0])
    metrics += wire.u32(_LOCK, locked) if locked else b""
    return attributes + (wire.attribute(_METRICS, metrics) if metrics else b"")


def _attribute(name: str, value: str) -> bytes:
    if name == "realms":
        high, _, low = value.partition("/")
        return wire.u32(_FLOW, int(high) << 16 | int(low))
    if name == "pref":
        return wire.attribute(_PREF, bytes([_PREFERENCE_NUMBERS.get(value) or int(value)]))
    if name == "encap":
        kind, _, payload = value.partition(":")
        return wire.attribute(_ENCAP_TYPE, struct.pack("=H", int(kind))) + wire.attribute(
            _ENCAP, bytes.fromhex(payload)
        )
    if name.startswith("attribute"):
        return wire.attribute(int(name[9:]), bytes.fromhex(value))
    raise ValueError(f"not an option of a route: {name!r}")
