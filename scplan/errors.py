"""Diagnostics, exceptions and exit codes: how everything that goes wrong is said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from enum import IntEnum, StrEnum

from scplan.startup.named_tuple import NamedTuple


class ExitCode(IntEnum):
    """What the shell sees. The table is part of the contract with users (docs/reference/exit-codes.md)."""

    OK = 0
    ERROR = 1
    CHANGES = 2
    ROLLED_BACK = 3
    ROLLBACK_INCOMPLETE = 4
    STALE_PLAN = 5
    LOCKED = 6
    DECLINED = 7
    RECOVERY_NEEDED = 8
    REFUSED = 10
    USAGE = 64


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


class SourceRange(NamedTuple):
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Diagnostic(NamedTuple):
    """What is wrong (`summary`), with which object (`detail`), how to mend it (`hint`), and where it was written."""

    summary: str
    detail: str = ""
    hint: str = ""
    source: SourceRange | None = None
    severity: Severity = Severity.ERROR

    @property
    def line(self) -> str:
        """All of it in one line, for logs."""
        return "; ".join(" ".join(part.split()) for part in (self.summary, self.detail, self.hint) if part)

    def __str__(self) -> str:
        place = f"{self.source}: " if self.source else ""
        label = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        lines = [f"{place}{label}{self.summary}", self.detail, self.hint]
        return "\n  ".join(line for part in lines if part for line in part.splitlines())


def in_file_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Diagnostics by their places: those without one first, then file by file as the files appear."""
    given = list(diagnostics)
    files = {file: rank for rank, file in enumerate(dict.fromkeys(one.source.file for one in given if one.source), 1)}

    def place(one: Diagnostic) -> tuple[int, int, int]:
        return (files[one.source.file], one.source.line, one.source.column) if one.source else (0, 0, 0)

    return sorted(given, key=place)


class ScplanError(Exception):
    """An error that the user can act on. `exit_code` is what the command returns for it."""

    exit_code = ExitCode.ERROR

    def __init__(self, summary: str, *, detail: str = "", hint: str = "", source: SourceRange | None = None) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = (
            Diagnostic(summary=summary, detail=detail, hint=hint, source=source),
        )
        super().__init__(summary)

    @classmethod
    def of(cls, diagnostics: tuple[Diagnostic, ...] | list[Diagnostic]) -> ScplanError:
        """One error that carries several diagnostics, in the order given."""
        error = cls(diagnostics[0].summary)
        error.diagnostics = tuple(diagnostics)
        return error

    def __str__(self) -> str:
        return "\n".join(str(diagnostic) for diagnostic in self.diagnostics)

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses take other arguments than Exception; this form crosses from a child process unharmed.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[ScplanError], args: tuple[object, ...], state: dict[str, object]) -> ScplanError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(ScplanError):
    """The files are wrong; all that is wrong in them, in file order."""


class PlanError(ScplanError):
    """The files are right but can't be planned on this host."""


class ContainerNotFound(ScplanError):
    """No runtime knows the name, or more than one does."""


class NoSuchContainer(ContainerNotFound):
    """No runtime that was asked knows the name."""


class ContainerReplaced(ContainerNotFound):
    """The name is that of another container than the one that the records are about."""


class ContainerRenamed(ContainerNotFound):
    """The records are about the container, under a name that it had before."""


class ContainerElsewhere(ContainerReplaced):
    """The environment chooses another place than the record's, and a container there has the recorded one's name."""


class EngineUnreachable(ScplanError):
    """An engine did not answer: whether it has the container is not known. Never "not found", and never "gone".

    `errno` is why: ENOENT where there is no socket, as of an engine that is not installed; 0 for a wrong answer.
    """

    errno = 0

    @classmethod
    def at(cls, engine: str, place: str, why: str, code: int = 0) -> EngineUnreachable:
        """The error about an engine at a socket or directory, the same for all of its containers."""
        ways = ["start it", "name the socket that the environment does not"]
        if os.geteuid() != 0:
            ways.append("run scplan as root")
        error = cls(
            f"{engine} can't be reached{f' at {place}' if place else ''}: {why}",
            hint=f"its containers may be running: {', '.join(ways[:-1])}, or {ways[-1]}",
        )
        error.errno = code
        return error


class ContainerGone(ScplanError):
    """The container's process ended, or its PID belongs to another process now."""


class RecordDamaged(ScplanError):
    """A file that scplan wrote (state, journal, plan, snapshot) is damaged, foreign or of a newer version."""


class StalePlan(ScplanError):
    exit_code = ExitCode.STALE_PLAN


class Locked(ScplanError):
    exit_code = ExitCode.LOCKED


class Declined(ScplanError):
    exit_code = ExitCode.DECLINED


class RecoveryNeeded(ScplanError):
    exit_code = ExitCode.RECOVERY_NEEDED


class AwaitingConfirmation(RecoveryNeeded):
    """An apply awaits confirmation; until then nothing else may change anything."""


class Refused(ScplanError):
    """The plan does more than a gate (--max-disruption) allows; nothing was changed."""

    exit_code = ExitCode.REFUSED


class UsageError(ScplanError):
    exit_code = ExitCode.USAGE


class ApplyFailed(ScplanError):
    """A step failed and everything was rolled back."""

    exit_code = ExitCode.ROLLED_BACK


class ApplyOvertaken(ApplyFailed):
    """A container ended while it was changed, and everything was rolled back: it can be planned for again."""


class RollbackIncomplete(ScplanError):
    exit_code = ExitCode.ROLLBACK_INCOMPLETE


class KernelError(ScplanError):
    """The kernel refused an operation. Keeps `errno`, so that callers can tell refusals apart.

    `operation` is the call with its object and decoded flags: `mount_setattr(/srv/data, MOUNT_ATTR_RDONLY)`;
    `said` is what the kernel, or else the C library, says about it.
    """

    def __init__(self, operation: str, code: int, *, detail: str = "", hint: str = "") -> None:
        self.operation = operation
        self.errno = code
        self.said = detail or os.strerror(code)
        name = errno.errorcode.get(code, str(code))
        super().__init__(f"{operation}: {name}: {self.said}", hint=hint)

    @classmethod
    def from_os(cls, operation: str, error: OSError, *, detail: str = "", hint: str = "") -> KernelError:
        return cls(operation, error.errno or 0, detail=detail, hint=hint)
