"""Errors and warnings: where, what, with which object, how to mend it."""

from __future__ import annotations

from scplan.errors import Diagnostic, Severity, SourceRange
from scplan.render.diagnostics import diagnostic_lines
from scplan.render.lines import plain


def text(*diagnostics: Diagnostic) -> str:
    return plain(diagnostic_lines(diagnostics))


def test_error_of_a_file_begins_with_its_place() -> None:
    assert text(
        Diagnostic(
            summary="unknown attribute",
            detail='nic "eth0" has no attribute "mtuu"',
            hint='did you mean "mtu"?',
            source=SourceRange("web.yaml", 12, 5),
        )
    ) == ('web.yaml:12:5: unknown attribute\n  nic "eth0" has no attribute "mtuu"\n  did you mean "mtu"?\n')


def test_error_from_no_file_is_called_one() -> None:
    assert text(Diagnostic(summary="locked")) == "error: locked\n"


def test_warning_is_called_one() -> None:
    assert text(
        Diagnostic(summary="odd", source=SourceRange("a", 1, 2), severity=Severity.WARNING),
        Diagnostic(summary="odder", severity=Severity.WARNING),
    ) == ("a:1:2: warning: odd\nwarning: odder\n")


def test_every_line_of_a_long_explanation_is_indented() -> None:
    assert text(Diagnostic(summary="one\ntwo", detail="three\nfour", hint="five")) == (
        "error: one\n  two\n  three\n  four\n  five\n"
    )


def test_control_characters_are_escaped() -> None:
    assert text(Diagnostic(summary="\x1b[2J", detail="a\rb")) == "error: \\x1b[2J\n  a\n  b\n"
