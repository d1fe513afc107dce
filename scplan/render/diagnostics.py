"""Errors and warnings as styled lines: position, summary, details, hint."""

from __future__ import annotations

from collections.abc import Iterable

from scplan.errors import Diagnostic, Severity
from scplan.render.lines import Line, Style, line, visible


def diagnostic_lines(diagnostics: Iterable[Diagnostic]) -> list[Line]:
    """Lines of the diagnostics, in the given order, without blank lines between them."""
    return [row for diagnostic in diagnostics for row in _paragraph(diagnostic)]


def _paragraph(diagnostic: Diagnostic) -> list[Line]:
    place = f"{visible(str(diagnostic.source))}: " if diagnostic.source else ""
    summary, *rest = diagnostic.summary.splitlines() or [""]
    first = line((place, "title"), _label(diagnostic), visible(summary))
    details = [*rest, *diagnostic.detail.splitlines(), *diagnostic.hint.splitlines()]
    return [first, *(line(f"  {visible(detail)}") for detail in details)]


def _label(diagnostic: Diagnostic) -> tuple[str, Style]:
    if diagnostic.severity is Severity.WARNING:
        return "warning: ", "warning"
    if diagnostic.severity is Severity.NOTICE:
        return "notice: ", "plain"
    # A position at the start of the line shows already that this is an error in a file.
    return ("", "plain") if diagnostic.source else ("error: ", "error")
