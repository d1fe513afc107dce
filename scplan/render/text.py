"""Styled lines on a stream, and the progress of an apply; in colour on a terminal. The only importer of rich."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from scplan.model.report import Event, Step
from scplan.render.documents import STYLES
from scplan.render.lines import Line, Style, line, plain, visible
from scplan.render.words import SYMBOLS, resource_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

_COLOURS: dict[Style, str] = {
    "plain": "",
    "title": "bold",
    "faint": "dim",
    "create": "green",
    "update": "yellow",
    "replace": "magenta",
    "delete": "red",
    "adopt": "cyan",
    "good": "green",
    "warning": "yellow",
    "error": "bold red",
}
_UNDOING = frozenset({Step.UNDOING, Step.UNDONE, Step.UNDO_FAILED})
_FAILED = frozenset({Step.FAILED, Step.UNDO_FAILED})


def is_terminal(stream: TextIO) -> bool:
    """Whether someone watches the stream on a terminal that can do more than print lines."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def write_lines(lines: Iterable[Line], stream: TextIO) -> None:
    """Prints the lines; in colour when the stream is a terminal and NO_COLOR is not set."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        stream.write(plain(lines))
        return
    console = _console(stream)
    for segments in lines:
        console.print(_rich_text(segments), soft_wrap=True)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _live(stream: TextIO) -> Live:
    from rich.live import Live

    # No thread that animates it: an apply forks and enters namespaces, which takes a process of one thread.
    return Live(
        console=_console(stream), auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    )


def _rich_text(segments: Line) -> Text:
    from rich.text import Text

    text = Text()
    for words, style in segments:
        text.append(words, _COLOURS[style])
    text.rstrip()
    return text


def event_line(event: Event) -> Line:
    """`  2/4 ~ nic eth1  done in 0.02 s`, of a step that ended or begins."""
    operation = event.operation
    digits = len(str(event.total))
    resource = resource_name(operation.address, operation.after or operation.before)
    name = f"{visible(operation.address.container)}: {resource}"
    return line(
        (f"  {event.number:>{digits}}/{event.total} ", "faint"),
        (f"{_symbol(event)} {name}", STYLES[operation.action]),
        "  ",
        _ending(event),
    )


def _symbol(event: Event) -> str:
    if event.step in _UNDOING:
        return "↶"
    return SYMBOLS[event.operation.action]


def _ending(event: Event) -> tuple[str, Style]:
    match event.step:
        case Step.STARTED:
            return "…", "faint"
        case Step.UNDOING:
            return "undoing …", "warning"
        case Step.DONE:
            return f"done in {event.seconds:.2f} s", "faint"
        case Step.UNDONE:
            return f"undone in {event.seconds:.2f} s", "warning"
        case Step.FAILED:
            return f"failed: {visible(event.error)}", "error"
        case Step.UNDO_FAILED:
            return f"not undone: {visible(event.error)}", "error"


class Progress:
    """Shows the events of an apply as they come: a line for each step that ended, and on a terminal the running one.

    Used as a context manager; `show` is an OnEvent.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if is_terminal(self._stream):
            self._live = _live(self._stream)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Prints one event."""
        running = event.step in (Step.STARTED, Step.UNDOING)
        if self._live is None:
            if not running:
                self._stream.write(plain([event_line(event)]))
                self._stream.flush()
            return
        text = _rich_text(event_line(event))
        if running:
            text.no_wrap = True
            self._live.update(text, refresh=True)
        else:
            self._live.update("")
            self._live.console.print(text, soft_wrap=True)
