"""Parameters of commands, as declared by their signatures: for `command_line`, and through `typer_app` for Typer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

from scplan.startup.named_tuple import NamedTuple

Form = Literal["flag", "one", "many"]


class Option(NamedTuple):
    """An option, in the Annotated type of a command's parameter. Without `flags` its flag is the parameter's name.

    `parser` returns the value of a text, or raises ValueError. `least` is the minimum of an int.
    """

    flags: tuple[str, ...] = ()
    metavar: str = ""
    help: str = ""
    parser: Callable[[str], object] | None = None
    least: int | None = None


class Argument(NamedTuple):
    """A positional argument, in the Annotated type of a command's parameter."""

    metavar: str
    help: str


class Settings:
    """Values of the options that all commands share."""

    def __init__(self) -> None:
        self.state_dir: str | None = None


class Parameter(NamedTuple):
    """A parameter of a command. `type` is the type of one value. `required` is True if it has no default."""

    name: str
    declared: Option | Argument
    type: type
    form: Form
    default: object
    required: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """The option's flags on the command line; () for a positional argument."""
        if isinstance(self.declared, Argument):
            return ()
        return self.declared.flags or (f"--{self.name.replace('_', '-')}",)

    def value(self, text: str) -> object:
        """The value of a text on the command line. Raises ValueError if the text is not valid."""
        if isinstance(self.declared, Option):
            if self.declared.parser is not None:
                return self.declared.parser(text)
            if self.type is int:
                number = int(text)
                if self.declared.least is not None and number < self.declared.least:
                    raise ValueError(f"{text} is less than {self.declared.least}")
                return number
        return text


Command = Callable[..., Any]
"""A command: its parameters are annotated with Option or Argument, but for `settings`, which comes first if at all."""


def takes_settings(command: Command) -> bool:
    return command.__code__.co_varnames[: command.__code__.co_argcount][:1] == ("settings",)


def parameters(command: Command) -> list[Parameter]:
    """Parameters of a command, in order. Read from its code object: importing `inspect` takes longer than planning."""
    names = command.__code__.co_varnames[: command.__code__.co_argcount]
    defaults = command.__defaults__ or ()
    by_name = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    scope = vars(sys.modules[command.__module__])
    return [
        # Annotations are texts, by `from __future__ import annotations`; only scplan's own source is evaluated.
        _parameter(name, eval(command.__annotations__[name], scope), by_name)
        for name in names
        if name != "settings"
    ]


def _parameter(name: str, annotated: Any, defaults: Mapping[str, object]) -> Parameter:
    (declared,) = annotated.__metadata__
    # In a union with None, such as `list[str] | None`, None stands for a parameter that is not given.
    origin = annotated.__origin__
    wanted = getattr(origin, "__args__", (origin,))[0] if type(None) in getattr(origin, "__args__", ()) else origin
    form: Form = "flag" if wanted is bool else "one"
    if getattr(wanted, "__origin__", None) is list:
        form, wanted = "many", wanted.__args__[0]
    return Parameter(name, declared, wanted, form, defaults.get(name), name not in defaults)


class Group(NamedTuple):
    """A group of commands, such as `scplan state`. `entry`, and each command in `members`, is MODULE:FUNCTION."""

    entry: str
    members: Mapping[str, str | Group]


def load(entry: str) -> Command:
    """The function that MODULE:FUNCTION names. Imports only the module of that command."""
    module, _, function = entry.partition(":")
    found: Command = getattr(import_module(module), function)
    return found


class Call(NamedTuple):
    """A command and the values of its parameters."""

    command: Command
    settings: Settings
    values: Mapping[str, object]

    def __call__(self) -> int:
        before: Sequence[object] = [self.settings] if takes_settings(self.command) else []
        return int(self.command(*before, **self.values) or 0)
