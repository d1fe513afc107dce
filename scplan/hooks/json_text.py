"""Adds a member to an object in a JSON text, or removes a member, and keeps all other characters. RFC 8259."""

from __future__ import annotations

import json
import re

from scplan.startup.named_tuple import NamedTuple
from scplan.startup.strict_json import DECODER

_SPACE = re.compile(r"[ \t\r\n]*")
_INDENT = re.compile(r"\n([ \t]+)\S")
_DEFAULT_INDENT = "  "


class _Member(NamedTuple):
    """A member `"key": value` at [key_at, end) of a text; its value begins at value_at."""

    key: str
    key_at: int
    value_at: int
    end: int


def with_member(text: str, path: tuple[str, ...], value: object) -> str:
    """The text with `value` at the end of `path`; objects on the path are created if they are absent.

    `text` must be a JSON object. Raises TypeError if a value on the path is not an object.
    """
    # Indent the new member like the first indented line of the text.
    indent = match.group(1) if (match := _INDENT.search(text)) else _DEFAULT_INDENT
    return _put(text, _skip(text, 0), path, value, indent, 1)


def _put(text: str, at: int, path: tuple[str, ...], value: object, indent: str, depth: int) -> str:
    members = _members(text, at)
    found = next((one for one in members if one.key == path[0]), None)
    if found is not None and len(path) > 1:
        return _put(text, found.value_at, path[1:], value, indent, depth + 1)
    for key in reversed(path[1:]):
        value = {key: value}
    margin = "\n" + indent * depth
    if found is not None:
        return text[: found.value_at] + _written(value, indent, margin) + text[found.end :]
    added = f"{margin}{json.dumps(path[0])}: {_written(value, indent, margin)}"
    if members:
        return f"{text[: members[-1].end]},{added}{text[members[-1].end :]}"
    # White space between the braces is kept behind the new member, so that without_member() restores the text.
    between = text[at + 1 : _skip(text, at + 1)]
    return f"{text[: at + 1]}{added}{between or margin[: len(margin) - len(indent)]}{text[_skip(text, at + 1) :]}"


def _written(value: object, indent: str, margin: str) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False).replace("\n", margin)


def without_member(text: str, path: tuple[str, ...]) -> str:
    """The text without the member at `path` and its comma; unchanged if there is no such member."""
    at = _skip(text, 0)
    for key in path[:-1]:
        found = next((one for one in _members(text, at) if one.key == key), None)
        if found is None:
            return text
        at = found.value_at
    members = _members(text, at)
    for index, one in enumerate(members):
        if one.key == path[-1]:
            if index:
                return text[: members[index - 1].end] + text[one.end :]
            if len(members) > 1:
                return text[: one.key_at] + text[members[1].key_at :]
            return text[: at + 1] + text[_skip(text, one.end) :]
    return text


def _members(text: str, at: int) -> list[_Member]:
    """Members of the object that begins at `at`. Raises TypeError if no object begins there."""
    if text[at : at + 1] != "{":
        raise TypeError("it is not an object")
    members = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        key_at = at
        key, at = DECODER.raw_decode(text, at)
        value_at = _skip(text, _skip(text, at) + 1)
        _, end = DECODER.raw_decode(text, value_at)
        members.append(_Member(key, key_at, value_at, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found
    return found.end()
