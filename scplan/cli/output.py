"""Where the commands write: results, messages, questions, files. A reader that went away never fails a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from scplan.errors import Declined, Diagnostic, ExitCode, Severity
from scplan.render.diagnostics import diagnostic_lines
from scplan.render.lines import Line, line
from scplan.render.text import write_lines

if TYPE_CHECKING:
    from scplan.model.report import Event, GoingBack, OnEvent, Probed


def prepare() -> None:
    """Makes both streams usable, whatever the caller handed over."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
            setattr(sys, name, stream)
        # Names that the locale can't spell are printed escaped instead of failing the command.
        stream.reconfigure(errors="backslashreplace")


def results(lines: Iterable[Line]) -> None:
    """Prints lines on standard output."""
    write_lines(lines, sys.stdout)
    # At once: messages on standard error that follow must come after it, and a failure can still be told.
    sys.stdout.flush()


def raw(text: str) -> None:
    """Writes a document for a machine on standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()


def message(text: str) -> None:
    """Prints one line on standard error."""
    messages([line(text)])


def messages(lines: Iterable[Line]) -> None:
    """Prints lines on standard error."""
    write_lines(lines, sys.stderr)


def complain(diagnostics: Iterable[Diagnostic]) -> None:
    """Prints errors and warnings on standard error, each once."""
    try:
        write_lines(diagnostic_lines(dict.fromkeys(diagnostics)), sys.stderr)
    except BrokenPipeError:
        silence()


def code_of(diagnostics: Iterable[Diagnostic]) -> ExitCode:
    """The exit code of a command that reported what it could: ERROR when something could not be read."""
    return ExitCode.ERROR if any(one.severity is Severity.ERROR for one in diagnostics) else ExitCode.OK


def finish() -> bool:
    """Sends out what is still buffered; False when that failed."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        silence()
        return False
    return True


def silence() -> None:
    """Turns both streams to /dev/null: their reader is gone, and what is buffered would fail again at exit."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    os.close(null)


def unfailing(show: OnEvent) -> OnEvent:
    """`show`, except that it goes quiet when its reader is gone: an apply is not rolled back for a closed pipe."""

    def shown(event: Event | Probed | GoingBack) -> None:
        try:
            show(event)
        except BrokenPipeError:
            silence()

    return shown


def approve(question: str) -> None:
    """Asks on the terminal; raises Declined for anything but y or yes, and where there is nobody to ask."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise Declined(
            "nothing was changed: this needs approval, and standard input is not a terminal",
            hint="approve it beforehand with --auto-approve, or save it with 'scplan plan --out FILE' and apply FILE",
        )
    try:
        sys.stderr.write(f"\n{question} [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    if answer.strip().lower() not in ("y", "yes"):
        raise Declined("declined; nothing was changed")
