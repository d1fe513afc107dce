"""Output of the commands: results, messages, questions. A command does not fail because a reader has gone."""

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
    """Make standard output and error usable, even if the caller has closed them or the locale can't encode names."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Python sets it to None if the caller has closed the fd
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
            setattr(sys, name, stream)
        # Characters that the locale's encoding lacks are escaped; otherwise printing them would raise.
        stream.reconfigure(errors="backslashreplace")


def results(lines: Iterable[Line]) -> None:
    """Print lines on standard output."""
    write_lines(lines, sys.stdout)
    # Flushed now, so that later messages on standard error come after the results, and a write error is reported.
    sys.stdout.flush()


def raw(text: str) -> None:
    """Write a document on standard output as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def message(text: str) -> None:
    """Print one line on standard error."""
    messages([line(text)])


def messages(lines: Iterable[Line]) -> None:
    """Print lines on standard error."""
    write_lines(lines, sys.stderr)


def complain(diagnostics: Iterable[Diagnostic]) -> None:
    """Print errors and warnings on standard error, each once."""
    try:
        write_lines(diagnostic_lines(dict.fromkeys(diagnostics)), sys.stderr)
    except BrokenPipeError:
        silence()


def code_of(diagnostics: Iterable[Diagnostic]) -> ExitCode:
    """Exit code of a command that has reported these diagnostics: ERROR if one of them is an error, else OK."""
    return ExitCode.ERROR if any(one.severity is Severity.ERROR for one in diagnostics) else ExitCode.OK


def finish() -> bool:
    """Flush both streams; False if that fails."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        silence()
        return False
    return True


def silence() -> None:
    """Redirect both streams to /dev/null: their reader has gone, and Python would fail to flush them at exit."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    # dup2(2) replaces the file below the stream; the stream keeps its buffer, which then goes to /dev/null.
    for stream in (sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    os.close(null)


def unfailing(show: OnEvent) -> OnEvent:
    """`show`, which stops printing when its reader has gone: an apply is not rolled back because of a closed pipe."""

    def shown(event: Event | Probed | GoingBack) -> None:
        try:
            show(event)
        except BrokenPipeError:
            silence()

    return shown


def approve(question: str) -> None:
    """Ask for approval on the terminal. Raises Declined for an answer other than y or yes, or without a terminal."""
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
