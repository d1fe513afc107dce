"""The commands for Typer, which does help, shell completion, and errors in command lines."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, cast

import typer
import typer.core
import typer.main

from scplan.cli.parameters import Argument, Call, Command, Group, Option, Parameter, Settings, load, parameters
from scplan.errors import UsageError

# Newer releases of Typer include their own Click, so `click` is never imported by name.
TyperCommand = typer.core.TyperCommand | typer.core.TyperGroup

PROGRAM = "scplan"
SHARED = ("state_dir", "version")
"""Names of the options that all commands take."""
_EXAMPLES = "Examples:\n"
_HELP_OPTIONS: dict[Any, Any] = {"help_option_names": ["-h", "--help"]}


def complete(words: Sequence[str], root: Group) -> None:
    """Print completions for the shell, which passes its request in the environment. Exits the process if it has."""
    build(root).main(args=list(words), prog_name=PROGRAM)


def read(words: Sequence[str], root: Group) -> Call | None:
    """The call that the words of a command line make; None after printing help or the version, if they ask for it.

    Raises UsageError for an invalid command line.
    """
    try:
        with build(root).make_context(PROGRAM, list(words), obj=Settings()) as context:
            # Each Typer command only returns its Call (see _calling).
            return cast("Call | None", context.command.invoke(context))
    except typer.Exit:  # by --help, --version
        return None
    except _WrongUsage as error:
        raise _usage_error(error, words) from None


_WrongUsage: type[Any] = typer.BadParameter.__mro__[1]
"""UsageError of the Click that this Typer uses, be it its own or the package."""


def _usage_error(error: Any, words: Sequence[str]) -> UsageError:
    path = error.ctx.command_path if error.ctx else PROGRAM
    flags = {flag for param in error.ctx.command.params for flag in param.opts} if error.ctx else set()
    for word in words:
        # After a single dash each letter is an option: -auto-approve is read as -a -u …
        if word.startswith("-") and len(word) > 2 and f"-{word.partition('=')[0]}" in flags:
            return UsageError(f"{path}: no such option: {word}", hint=f"did you mean -{word}?")
    possible = sorted(getattr(error, "possibilities", None) or ())
    message = str(error.message if possible else error.format_message()).rstrip(".")
    hints = [f"did you mean {' or '.join(possible)}?"] if possible else []
    return UsageError(
        f"{path}: {message[:1].lower()}{message[1:]}", hint="\n".join([*hints, f"'{path} --help' says what it takes"])
    )


def _remember_state_dir(context: typer.Context, value: str | None) -> str | None:
    # The option may be given before and after the command; the later one wins.
    if value is not None:
        context.ensure_object(Settings).state_dir = value
    return value


def _print_version(wanted: bool) -> None:
    if wanted:
        from scplan import __version__

        sys.stdout.write(f"scplan {__version__}\n")
        raise typer.Exit


def _shared(
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
    """Declares the options of the root command, which every command accepts, too."""


class _PlainHelp:
    """Mixin: help without Rich's markup."""

    def get_help(self, ctx: Any) -> str:
        # Typer escapes brackets for Rich even when the help is plain.
        text: str = super().get_help(ctx)  # type: ignore[misc]
        return text.replace("\\[", "[")


class _OneCommand(_PlainHelp, typer.core.TyperCommand):
    """A command with plain help."""


class _Commands(_PlainHelp, typer.core.TyperGroup):
    """A group that imports a command's module when the command is looked up."""

    members: Mapping[str, str | Group] = {}  # set for each group

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.members)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.members:
            return None
        if cmd_name not in self.commands:
            command = _built(cmd_name, self.members[cmd_name])
            command.params += [param for param in ctx.find_root().command.params if param.name in SHARED]
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.members:
            close = get_close_matches(args[0], self.members)
            ctx.fail(f"no such command: {args[0]}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
        return super().resolve_command(ctx, args)


def build(root: Group) -> TyperCommand:
    """Typer's command for the root group, with all commands."""
    return _built(PROGRAM, root, _shared, completion=True)


def _built(
    name: str, entry: str | Group, signature: Callable[..., None] | None = None, *, completion: bool = False
) -> TyperCommand:
    """Typer's command for a command or group. Help and examples are from the docstring of its function."""
    function = load(entry.entry if isinstance(entry, Group) else entry)
    text, _, examples = (function.__doc__ or "").partition(_EXAMPLES)
    # Click does not rewrap a paragraph that begins with a line of \b alone.
    epilog = f"\b\n{_EXAMPLES}{_outdented(examples)}"
    # Plain help: the import of Rich takes time, and colours add nothing here.
    app = typer.Typer(
        name=name,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_HELP_OPTIONS,
    )
    if isinstance(entry, Group):
        app.callback(cls=_Commands, help=text.strip(), epilog=epilog, context_settings=_HELP_OPTIONS)(
            signature or (lambda: None)
        )
    else:
        app.command(name, cls=_OneCommand, help=text.strip(), epilog=epilog, context_settings=_HELP_OPTIONS)(
            _calling(function)
        )
    built = cast(TyperCommand, typer.main.get_command(app))
    if isinstance(built, _Commands) and isinstance(entry, Group):
        built.members = entry.members
    return built


def _calling(command: Command) -> Callable[..., Call]:
    """A function for Typer with the command's parameters in its signature; it returns a Call with their values."""

    def call(context: typer.Context, **values: object) -> Call:
        return Call(command, context.obj, values)

    any_place = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter(
            one.name,
            any_place,
            annotation=Annotated[_type(one), _declared(one)],
            default=inspect.Parameter.empty if one.required else one.default,
        )
        for one in parameters(command)
    ]
    context = inspect.Parameter("context", any_place, annotation=typer.Context)
    call.__signature__ = inspect.Signature([context, *own])  # type: ignore[attr-defined]  # inspect.signature(3)
    call.__annotations__ = {}
    return call


def _type(parameter: Parameter) -> Any:
    one = list[parameter.type] if parameter.form == "many" else parameter.type  # type: ignore[name-defined]
    return one if parameter.required or parameter.form == "flag" else one | None


def _declared(parameter: Parameter) -> Any:
    declared = parameter.declared
    if isinstance(declared, Argument):
        return typer.Argument(metavar=declared.metavar, help=declared.help)
    if parameter.form == "flag":
        return typer.Option(*parameter.flags, help=declared.help)
    return typer.Option(
        *parameter.flags,
        metavar=declared.metavar,
        help=declared.help,
        min=declared.least,
        parser=_parser(declared) if declared.parser else None,
        show_default=False,
    )


def _parser(declared: Option) -> Callable[[Any], object]:
    def parse(text: Any) -> object:
        # The default of an option passes through its parser as well.
        if not isinstance(text, str):
            return text
        assert declared.parser is not None
        try:
            return declared.parser(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def _outdented(examples: str) -> str:
    return "\n".join(f"  {row.strip()}" for row in examples.strip().splitlines())
