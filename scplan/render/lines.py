"""Styled lines: text with styles, printed with or without colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Style = Literal["plain", "title", "faint", "create", "update", "replace", "delete", "adopt", "good", "warning", "error"]
Segment = tuple[str, Style]
Line = list[Segment]

GAP = 2


def line(*segments: Segment | str) -> Line:
    """A line of these segments. A string is a segment of style `plain`."""
    return [(segment, "plain") if isinstance(segment, str) else segment for segment in segments]


def plain(lines: Iterable[Line]) -> str:
    """The lines as text without styles and trailing spaces, each with a newline."""
    return "".join(f"{''.join(text for text, _ in segments).rstrip()}\n" for segments in lines)


def columns(rows: Sequence[Sequence[Line]], least: Sequence[int] = ()) -> list[Line]:
    """Rows as lines, with the cells aligned in columns. `least` are minimum widths of columns, gap included.

    The last cell of a row that has text does not widen its column.
    """
    widths: list[int] = list(least)
    for row in rows:
        filled = [index for index, cell in enumerate(row) if _width(cell)]
        widths += [0] * (len(row) - len(widths))
        for index in filled[:-1]:
            widths[index] = max(widths[index], _width(row[index]) + GAP)
    return [_joined(row, widths) for row in rows]


def _joined(row: Sequence[Line], widths: Sequence[int]) -> Line:
    joined: Line = []
    for cell, width in zip(row, widths, strict=False):
        joined += cell
        joined.append((" " * (width - _width(cell)), "plain"))
    return joined


def _width(cell: Line) -> int:
    return sum(len(text) for text, _ in cell)


def visible(text: str) -> str:
    """`text` with escapes for characters that could control a terminal or forge a line: `\\x1b`, `\\n`, `\\u202e`.

    Names, paths and labels come from containers, which can choose any characters.
    """
    # Not printable are control characters, and also format characters such as U+202E, which reverses the text after it.
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    match char:
        case "\n":
            return "\\n"
        case "\t":
            return "\\t"
        case _:
            code = ord(char)
            return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
