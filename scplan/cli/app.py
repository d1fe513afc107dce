"""The command line: which commands there are, options that all share, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, ClassVar, cast

import typer
import typer.core
import typer.main

from scplan.cli.output import complain, finish, prepare
from scplan.errors import Diagnostic, ExitCode, ScplanError

# Newer releases of Typer carry their own Click, so the package is never imported by name.
Command = typer.core.TyperCommand | typer.core.TyperGroup

_PROGRAM = "scplan"
_COMPLETION = "_SCPLAN_COMPLETE"
_SHARED = ("state_dir", "version")
_EXAMPLES = "Examples:\n"
_INTERRUPTED = 130
"""What a shell reports for a program that SIGINT ended: 128 + 2."""


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. Results go to standard output, messages to standard error."""
    prepare()
    root = _root()
    if _COMPLETION in os.environ:
        root.main(args=list(arguments), prog_name=_PROGRAM)
    code = _invoke(root, arguments)
    return code if finish() else code or ExitCode.ERROR


def _invoke(root: Command, arguments: Sequence[str]) -> int:
    """The only place where exceptions become exit codes."""
    try:
        with root.make_context(_PROGRAM, list(arguments), obj=Settings()) as context:
            return int(root.invoke(context) or ExitCode.OK)
    except typer.Exit as ended:  # by --help, --version
        return int(ended.exit_code)
    except ScplanError as error:
        complain(error.diagnostics)
        _trace(error)
        return error.exit_code
    except BrokenPipeError:  # the reader has read enough
        return ExitCode.ERROR
    except KeyboardInterrupt:
        complain([Diagnostic(summary="interrupted")])
        return _INTERRUPTED
    except _WrongUsage as error:
        complain([_usage_diagnostic(error)])
        return ExitCode.USAGE
    except OSError as error:
        complain([Diagnostic(summary=_os_error_words(error))])
        _trace(error)
        return ExitCode.ERROR
    except Exception as error:
        summary = f"{type(error).__name__}: {error}; this is a bug in scplan"
        hint = "" if _is_debugged() else f"SCPLAN_DEBUG=1 {_PROGRAM} … prints where it happened, for a report"
        complain([Diagnostic(summary=summary, hint=hint)])
        _trace(error)
        return ExitCode.ERROR


_WrongUsage: type[Any] = typer.BadParameter.__mro__[1]
"""UsageError of the Click that this Typer uses, be it its own or the package."""


def _usage_diagnostic(error: Any) -> Diagnostic:
    path = error.ctx.command_path if error.ctx else _PROGRAM
    possible = sorted(getattr(error, "possibilities", None) or ())
    message = str(error.message if possible else error.format_message()).rstrip(".")
    hints = [f"did you mean {' or '.join(possible)}?"] if possible else []
    return Diagnostic(
        summary=f"{path}: {message[:1].lower()}{message[1:]}",
        hint="\n".join([*hints, f"'{path} --help' says what it takes"]),
    )


def _os_error_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}"


def _is_debugged() -> bool:
    return os.environ.get("SCPLAN_DEBUG", "") not in ("", "0")


def _trace(error: BaseException) -> None:
    if _is_debugged():
        import traceback

        traceback.print_exception(error)


class Settings:
    """What the options that all commands share were set to."""

    def __init__(self) -> None:
        self.state_dir: str | None = None


def _remember_state_dir(context: typer.Context, value: str | None) -> str | None:
    # The option may stand before and after the command; the later one, which is the more particular, wins.
    if value is not None:
        context.ensure_object(Settings).state_dir = value
    return value


def _print_version(wanted: bool) -> None:
    if wanted:
        from scplan import __version__

        sys.stdout.write(f"scplan {__version__}\n")
        raise typer.Exit


def scplan(
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            expose_value=False,
            callback=_remember_state_dir,
            help="Where scplan keeps its records. Default: $SCPLAN_STATE_DIR, else /var/lib/scplan for root.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Declare what is plugged into running containers.

    YAML says what devices, NICs, routes, mounts and cgroup settings each container should have; plan shows the
    difference to what the kernel has, and apply makes it so, or undoes it all when one step fails.

    Examples:
      scplan validate -f web.yaml
      scplan plan -f web.yaml
      scplan apply -f web.yaml
    """


class PlainHelp:
    """Help without Rich's markup."""

    def get_help(self, ctx: Any) -> str:
        # Typer escapes brackets for Rich even when the help is plain.
        text: str = super().get_help(ctx)  # type: ignore[misc]
        return text.replace("\\[", "[")


class OneCommand(PlainHelp, typer.core.TyperCommand):
    """A command."""


class Commands(PlainHelp, typer.core.TyperGroup):
    """A group that imports a command when it is asked for: starting one does not pay for the others."""

    entries: ClassVar[Mapping[str, str]]
    """MODULE:FUNCTION of each command or group, by name, in the order of the help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.entries:
            return None
        if cmd_name not in self.commands:
            command = _load(cmd_name, self.entries[cmd_name])
            command.params += [param for param in ctx.find_root().command.params if param.name in _SHARED]
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.entries:
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.entries)
            ctx.fail(f"no such command: {args[0]}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
        return super().resolve_command(ctx, args)


class RootCommands(Commands):
    entries: ClassVar = {
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
        "state": "scplan.cli.state:state",
        "hook": "scplan.cli.hook:hook",
        "doctor": "scplan.cli.doctor:doctor",
    }


class StateCommands(Commands):
    entries: ClassVar = {
        "list": "scplan.cli.state:list_owned",
        "show": "scplan.cli.state:show",
        "mv": "scplan.cli.state:move",
        "rm": "scplan.cli.state:forget",
        "history": "scplan.cli.state:history",
    }


class HookCommands(Commands):
    entries: ClassVar = {
        "spec": "scplan.cli.hook:spec",
        "install": "scplan.cli.hook:install",
        "uninstall": "scplan.cli.hook:uninstall",
    }


_GROUPS: Mapping[str, type[Commands]] = {
    "scplan.cli.state:state": StateCommands,
    "scplan.cli.hook:hook": HookCommands,
}


def _root() -> Command:
    return _built(scplan, _PROGRAM, RootCommands, completion=True)


def _load(name: str, entry: str) -> Command:
    module, _, function = entry.partition(":")
    return _built(getattr(import_module(module), function), name, _GROUPS.get(entry))


def _built(
    function: Callable[..., object], name: str, group: type[Commands] | None, *, completion: bool = False
) -> Command:
    """The command that `function` is, its help and examples taken from its docstring."""
    text, _, examples = (function.__doc__ or "").partition(_EXAMPLES)
    # A line of \b alone keeps the lines below it as they are.
    epilog = f"\b\n{_EXAMPLES}{_outdented(examples)}"
    # Plain help: Rich's would cost its import, and colours tell nothing here.
    app = typer.Typer(name=name, add_completion=completion, rich_markup_mode=None, pretty_exceptions_enable=False)
    if group:
        app.callback(cls=group, help=text.strip(), epilog=epilog)(function)
    else:
        app.command(name, cls=OneCommand, help=text.strip(), epilog=epilog)(function)
    return cast(Command, typer.main.get_command(app))


def _outdented(examples: str) -> str:
    return "\n".join(f"  {row.strip()}" for row in examples.strip().splitlines())
