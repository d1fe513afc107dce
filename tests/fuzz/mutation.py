"""Damages bytes as disks, networks and adversaries do; JSON also in its values, so that what is read stays JSON."""

from __future__ import annotations

import json
import random
from typing import Any

_WORDS = (
    b"\0",
    b"\xff",
    b"\n",
    b" ",
    b"-1",
    b"0",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"null",
    b"true",
    b"1e999",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**40,
    1.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "/",
    "\0",
    "\ud800",
    "é\n\x1b[2J",
    "a" * 5000,
    "10.0.0.300/99",
    "::/0",
    "../..",
    "web/nic/eth1",
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["x", 1],
)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The data with a few mutations."""
    if chance.random() < 0.5:
        try:
            return _with_other_values(data, chance)
        except (ValueError, RecursionError):
            pass  # not JSON: its bytes are mutated
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        data = _with_other_bytes(data, chance)
    return data


def _with_other_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 64)))
    match chance.randrange(6):
        case 0:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + chance.choice(_WORDS) + data[at:]
        case 3:
            return data[:end] + data[at:]
        case 4:
            return data[:at]
        case _:
            other = chance.randrange(len(data) + 1)
            return data[:at] + data[other : other + end - at] + data[end:]


def _with_other_values(data: bytes, chance: random.Random) -> bytes:
    """One line of JSON, or the whole of it, with some of its values, keys and members other ones."""
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    try:
        document, rest = json.loads(data), None
    except ValueError:
        document, rest = json.loads(lines[place]), place
    for _ in range(chance.choice((1, 1, 2, 3))):
        document = _changed(document, chance)
    text = json.dumps(document).encode()
    if rest is None:
        return text
    return b"\n".join([*lines[:place], text, *lines[place + 1 :]])


def _changed(document: Any, chance: random.Random) -> Any:
    """The document with a value somewhere in it changed, removed, doubled or moved."""
    if isinstance(document, dict) and document and chance.random() < 0.9:
        key = chance.choice(list(document))
        match chance.randrange(8):
            case 0:
                return {name: value for name, value in document.items() if name != key}
            case 1:
                return {**document, str(chance.choice(_VALUES)): document[key]}
            case _:
                return {**document, key: _changed(document[key], chance)}
    if isinstance(document, list) and document and chance.random() < 0.9:
        place = chance.randrange(len(document))
        if chance.random() < 0.2:
            return [*document, document[place]]
        return [*document[:place], _changed(document[place], chance), *document[place + 1 :]]
    return chance.choice(_VALUES)
