"""Collects errors and warnings about the files, with suggestions for misspelt words."""

from __future__ import annotations

from collections.abc import Iterable

from scplan.config.yaml_source import Mark, source_range
from scplan.errors import ConfigurationError, Diagnostic, Severity

MAX_ERRORS = 500
_MAX_GUESSED = 40
_MAX_QUOTED = 80


def quoted(text: str) -> str:
    """A user's text for a message: in quotes, escaped to one line, and cut after 80 characters."""
    if len(text) > _MAX_QUOTED:
        text = text[:_MAX_QUOTED] + "…"
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return f'"{text}"'


class Report:
    """Errors and warnings, in file order."""

    def __init__(self) -> None:
        self.warnings: list[Diagnostic] = []
        self.errors: list[Diagnostic] = []
        self.omitted = 0
        self._file_order: dict[str, int] = {}

    def begins(self, file: str) -> None:
        """Register a file: its diagnostics are sorted after those of the files that were registered before."""
        self._file_order.setdefault(file, len(self._file_order))

    def error(self, summary: str, detail: str, *, hint: str = "", mark: Mark | None = None) -> None:
        if len(self.errors) >= MAX_ERRORS:
            self.omitted += 1
            return
        source = source_range(mark)
        self.errors.append(Diagnostic(summary=summary, detail=detail, hint=hint, source=source))

    def warning(self, summary: str, detail: str, *, hint: str = "", mark: Mark | None = None) -> None:
        if len(self.warnings) < MAX_ERRORS:
            source, severity = source_range(mark), Severity.WARNING
            self.warnings.append(
                Diagnostic(summary=summary, detail=detail, hint=hint, source=source, severity=severity)
            )

    def unknown(self, what: str, detail: str, word: str, known: Iterable[str], mark: Mark | None) -> None:
        """Report an unknown key or word, with the known word that is most similar, or else with all known words."""
        known = list(known)
        guess = self.guess(word, known)
        self.error(f"unknown {what}", detail, hint=guess or f"known: {', '.join(known) or 'none'}", mark=mark)

    def guess(self, word: str, known: Iterable[str]) -> str:
        """A hint such as `did you mean "mtu"?`; "" if no known word is similar."""
        if len(self.errors) >= MAX_ERRORS or len(word) > _MAX_GUESSED:
            return ""
        import difflib

        close = difflib.get_close_matches(word.lower(), known, 1)
        return f'did you mean "{close[0]}"?' if close else ""

    def raise_errors(self) -> None:
        """Raise ConfigurationError with all errors, in file order, if there are any. Warnings are not part of it."""
        if not self.errors:
            return
        diagnostics = self.sorted(self.errors)
        if self.omitted:
            detail = f"{self.omitted} more are not shown"
            diagnostics.append(Diagnostic(summary="too many errors", detail=detail, hint="mend those above first"))
        raise ConfigurationError.of(diagnostics)

    def sorted(self, diagnostics: list[Diagnostic]) -> list[Diagnostic]:
        return sorted(diagnostics, key=self._place)

    def _place(self, diagnostic: Diagnostic) -> tuple[int, int, int]:
        source = diagnostic.source
        if source is None:
            return -1, 0, 0
        return self._file_order.get(source.file, len(self._file_order)), source.line, source.column
