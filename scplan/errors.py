"""Diagnostics, exceptions and exit codes: the form of every error and warning."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from enum import IntEnum, StrEnum

from scplan.startup.named_tuple import NamedTuple


class ExitCode(IntEnum):
    """Exit status of the process. The values are a contract with users (docs/reference/exit-codes.md)."""

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
    USAGE = 64  # EX_USAGE of sysexits.h


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
    """An error or warning: problem (`summary`), object (`detail`), way to repair it (`hint`), place in the files."""

    summary: str
    detail: str = ""
    hint: str = ""
    source: SourceRange | None = None
    severity: Severity = Severity.ERROR

    @property
    def line(self) -> str:
        """Summary, detail and hint in one line, for logs."""
        return "; ".join(" ".join(part.split()) for part in (self.summary, self.detail, self.hint) if part)

    def __str__(self) -> str:
        place = f"{self.source}: " if self.source else ""
        label = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        lines = [f"{place}{label}{self.summary}", self.detail, self.hint]
        return "\n  ".join(line for part in lines if part for line in part.splitlines())


def in_file_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Diagnostics sorted by place: diagnostics without a place first, then by file in the order of first appearance."""
    given = list(diagnostics)
    files = {file: rank for rank, file in enumerate(dict.fromkeys(one.source.file for one in given if one.source), 1)}

    def place(one: Diagnostic) -> tuple[int, int, int]:
        return (files[one.source.file], one.source.line, one.source.column) if one.source else (0, 0, 0)

    # sorted() is stable: diagnostics of one place keep their order.
    return sorted(given, key=place)


class ScplanError(Exception):
    """An error that the user can act on. `exit_code` is the exit status of the command."""

    exit_code = ExitCode.ERROR

    def __init__(self, summary: str, *, detail: str = "", hint: str = "", source: SourceRange | None = None) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = (
            Diagnostic(summary=summary, detail=detail, hint=hint, source=source),
        )
        super().__init__(summary)

    @classmethod
    def of(cls, diagnostics: tuple[Diagnostic, ...] | list[Diagnostic]) -> ScplanError:
        """One error with all of these diagnostics, in this order."""
        error = cls(diagnostics[0].summary)
        error.diagnostics = tuple(diagnostics)
        return error

    def __str__(self) -> str:
        return "\n".join(str(diagnostic) for diagnostic in self.diagnostics)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors of child processes are pickled. Exception.__reduce__ would call the class with self.args, but
        # subclasses take other arguments.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[ScplanError], args: tuple[object, ...], state: dict[str, object]) -> ScplanError:
    """The unpickled error, made without calling the `__init__` of its class."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(ScplanError):
    """The files are wrong; the diagnostics are all of their errors, in file order."""


class PlanError(ScplanError):
    """The files are right but can't be planned on this host."""


class ContainerNotFound(ScplanError):
    """No runtime knows the name, or more than one does."""


class NoSuchContainer(ContainerNotFound):
    """No runtime that was asked knows the name."""


class ContainerReplaced(ContainerNotFound):
    """Another container than the recorded one has the name."""


class ContainerRenamed(ContainerNotFound):
    """The container is recorded, under its former name."""


class ContainerElsewhere(ContainerReplaced):
    """The environment selects another place than the recorded one, and another container there has the name."""


class EngineUnreachable(ScplanError):
    """An engine did not answer, so it is unknown if it has the container. Never handled as "not found" or "gone".

    `errno` is the cause: ENOENT if there is no socket (the engine may not be installed), 0 for an invalid answer.
    """

    errno = 0

    @classmethod
    def at(cls, engine: str, place: str, why: str, code: int = 0) -> EngineUnreachable:
        """The error for an engine at a socket or directory, equal for all of its containers."""
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
    """The container's process ended; its PID may belong to another process now."""


class RecordDamaged(ScplanError):
    """A file that scplan wrote (state, journal, plan, snapshot) is damaged, foreign or of a newer version."""


class StalePlan(ScplanError):
    """Planning again gives other changes than the saved plan."""

    exit_code = ExitCode.STALE_PLAN


class Locked(ScplanError):
    """Another scplan process holds a lock, and did not release it in time."""

    exit_code = ExitCode.LOCKED


class Declined(ScplanError):
    """The user did not approve the plan, or could not be asked."""

    exit_code = ExitCode.DECLINED


class RecoveryNeeded(ScplanError):
    """An apply that shares containers or things of the host did not end: recover it first."""

    exit_code = ExitCode.RECOVERY_NEEDED


class AwaitingConfirmation(RecoveryNeeded):
    """An apply awaits confirmation; until it ends, no other apply may change its containers and things of the host."""


class Refused(ScplanError):
    """The plan exceeds a limit (--max-disruption); nothing was changed."""

    exit_code = ExitCode.REFUSED


class UsageError(ScplanError):
    """The arguments of the command are wrong."""

    exit_code = ExitCode.USAGE


class ApplyFailed(ScplanError):
    """A step failed and everything was rolled back."""

    exit_code = ExitCode.ROLLED_BACK


class ApplyOvertaken(ApplyFailed):
    """A container ended during its apply, and runs again; everything was rolled back, and can be planned again."""


class RollbackIncomplete(ScplanError):
    """Changes could not be undone, or their records not be written; the journal is kept."""

    exit_code = ExitCode.ROLLBACK_INCOMPLETE


class KernelError(ScplanError):
    """The kernel refused an operation. Keeps `errno`, so that callers can distinguish causes.

    `operation` is the call with its object and decoded flags: `mount_setattr(/srv/data, MOUNT_ATTR_RDONLY)`.
    `said` is the `detail`, such as the message of a netlink answer, or else the text of strerror(3).
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
