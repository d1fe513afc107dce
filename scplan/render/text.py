"""Prints styled lines and the progress of an apply, in colour on a terminal. The only module that imports rich."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from scplan.render.lines import Line, Style, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from scplan.model.report import Event, GoingBack, Probed

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


def is_terminal(stream: TextIO) -> bool:
    """True if the stream is a terminal that can do more than print lines: TERM is not "dumb"."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def write_lines(lines: Iterable[Line], stream: TextIO) -> None:
    """Print the lines, in colour if the stream is a terminal and NO_COLOR is not set."""
    # no-color.org: any value but the empty one turns colours off.
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

    # auto_refresh starts a thread. An apply forks and enters namespaces, and setns(2) refuses user and mount namespaces
    # to a process with several threads.
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


class Progress:
    """Shows the events of an apply: a line for each step that has ended, and on a terminal the running step.

    A context manager; `show` is an OnEvent.
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

    def show(self, event: Event | Probed | GoingBack) -> None:
        """Print an event."""
        from scplan.model.report import GoingBack
        from scplan.render.documents import RUNNING, event_line

        running = not isinstance(event, GoingBack) and event.step in RUNNING
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
