"""Damages bytes as disks, networks and adversaries do; JSON also in its values, so that what is read stays JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
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


def substituted(data: bytes) -> Iterator[bytes]:
    """The JSON, or each of its lines that is JSON, with every one of the `_VALUES` in the place of every value."""
    texts = data.split(b"\n") if _parsed(data) is None else [data]
    for line, text in enumerate(texts):
        for put in _places(_parsed(text)):
            for value in _VALUES:
                yield b"\n".join([*texts[:line], json.dumps(put(value)).encode(), *texts[line + 1 :]])


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _places(document: Any) -> Iterator[Callable[[Any], Any]]:
    """For each value in the document, what puts another one there."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield lambda new, key=key: {**document, key: new}
            for put in _places(value):
                yield lambda new, key=key, put=put: {**document, key: put(new)}
    elif isinstance(document, list):
        for place, value in enumerate(document):
            before, after = document[:place], document[place + 1 :]
            yield lambda new, before=before, after=after: [*before, new, *after]
            for put in _places(value):
                yield lambda new, before=before, after=after, put=put: [*before, put(new), *after]


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
