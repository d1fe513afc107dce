"""The command line: the commands, and the exit codes of errors."""

from __future__ import annotations

import os
from collections.abc import Sequence

from scplan.cli import command_line
from scplan.cli.output import complain, finish, prepare
from scplan.cli.parameters import Call, Group
from scplan.errors import Diagnostic, ExitCode, ScplanError

_COMPLETION = "_SCPLAN_COMPLETE"
_INTERRUPTED = 130
"""Exit code that a shell reports for a program ended by SIGINT: 128 + 2."""


def scplan() -> None:
    """Declare what is plugged into running containers.

    YAML says what devices, NICs, routes, mounts and cgroup settings each container should have; plan shows the
    difference to what the kernel has, and apply makes it so, or undoes it all when one step fails.

    Examples:
      scplan validate -f web.yaml
      scplan plan -f web.yaml
      scplan apply -f web.yaml
    """


_STATE = Group(
    "scplan.cli.state:state",
    {
        "list": "scplan.cli.state:list_owned",
        "show": "scplan.cli.state:show",
        "mv": "scplan.cli.state:move",
        "rm": "scplan.cli.state:forget",
        "history": "scplan.cli.state:history",
    },
)
_HOOK = Group(
    "scplan.cli.hook:hook",
    {
        "spec": "scplan.cli.hook:spec",
        "install": "scplan.cli.hook:install",
        "uninstall": "scplan.cli.hook:uninstall",
    },
)
COMMANDS = Group(
    "scplan.cli.app:scplan",
    {
        "plan": "scplan.cli.plan:plan",
        "apply": "scplan.cli.apply:apply",
        "destroy": "scplan.cli.apply:destroy",
        "drift": "scplan.cli.drift:drift",
        "watch": "scplan.cli.watch:watch",
        "confirm": "scplan.cli.confirm:confirm",
        "undo": "scplan.cli.undo:undo",
        "recover": "scplan.cli.recover:recover",
        "show": "scplan.cli.show:show",
        "import": "scplan.cli.importing:import_container",
        "snapshot": "scplan.cli.snapshot:snapshot",
        "validate": "scplan.cli.validate:validate",
        "schema": "scplan.cli.validate:schema",
        "state": _STATE,
        "hook": _HOOK,
        "doctor": "scplan.cli.doctor:doctor",
    },
)
"""In the order of the help."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Results go to standard output, messages to standard error."""
    prepare()
    code = _invoke(arguments)
    return code if finish() else code or ExitCode.ERROR


def _invoke(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. The only function that turns exceptions into exit codes."""
    try:
        call = _read(arguments)
        return call() if call else ExitCode.OK
    except ScplanError as error:
        complain(error.diagnostics)
        _trace(error)
        return error.exit_code
    except BrokenPipeError:  # the reader of standard output is gone, such as `head`; EPIPE, write(2)
        return ExitCode.ERROR
    except KeyboardInterrupt:
        complain([Diagnostic(summary="interrupted")])
        return _INTERRUPTED
    except OSError as error:
        complain([Diagnostic(summary=_os_error_words(error))])
        _trace(error)
        return ExitCode.ERROR
    except Exception as error:
        summary = f"{type(error).__name__}: {error}; this is a bug in scplan"
        hint = "" if _is_debugged() else "SCPLAN_DEBUG=1 scplan … prints where it happened, for a report"
        complain([Diagnostic(summary=summary, hint=hint)])
        _trace(error)
        return ExitCode.ERROR


def _read(arguments: Sequence[str]) -> Call | None:
    """The command to call, with its values; None if the command line only asks for help."""
    is_completion = _COMPLETION in os.environ
    call = None if is_completion else command_line.read(arguments, COMMANDS)
    if call is not None:
        return call
    from scplan.cli import typer_app

    if not is_completion and _names_a_group(arguments):
        arguments = [*arguments, "--help"]
    if is_completion:
        typer_app.complete(arguments, COMMANDS)
    return typer_app.read(arguments, COMMANDS)


def _names_a_group(arguments: Sequence[str]) -> bool:
    """True for `scplan`, `scplan state` and other groups without a command: their help is printed."""
    group: str | Group = COMMANDS
    for word in arguments:
        if not isinstance(group, Group) or word not in group.members:
            return False
        group = group.members[word]
    return isinstance(group, Group)


def _os_error_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}"


def _is_debugged() -> bool:
    return os.environ.get("SCPLAN_DEBUG", "") not in ("", "0")


def _trace(error: BaseException) -> None:
    if _is_debugged():
        import traceback

        traceback.print_exception(error)
