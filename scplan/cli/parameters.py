"""What a command takes, as its signature declares it: read by `command_line`, and by Typer for all that people ask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

from scplan.startup.named_tuple import NamedTuple

Form = Literal["flag", "one", "many"]


class Option(NamedTuple):
    """An option, in the Annotated type of a command's parameter. Without `flags` it is called as the parameter is.

    `parser` makes the value of the text, or raises ValueError; `least` is the smallest int.
    """

    flags: tuple[str, ...] = ()
    metavar: str = ""
    help: str = ""
    parser: Callable[[str], object] | None = None
    least: int | None = None


class Argument(NamedTuple):
    """A word that is known by its place, in the Annotated type of a command's parameter."""

    metavar: str
    help: str


class Settings:
    """What the options that all commands share were set to."""

    def __init__(self) -> None:
        self.state_dir: str | None = None


class Parameter(NamedTuple):
    """One parameter of a command. `type` is that of a value; what has no default is `required`."""

    name: str
    declared: Option | Argument
    type: type
    form: Form
    default: object
    required: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """How it is written; () for an argument."""
        if isinstance(self.declared, Argument):
            return ()
        return self.declared.flags or (f"--{self.name.replace('_', '-')}",)

    def value(self, text: str) -> object:
        """What a text stands for; raises ValueError when it is none of its values."""
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
    """The command's parameters, in their order. By its code object: to import `inspect` takes longer than to plan."""
    names = command.__code__.co_varnames[: command.__code__.co_argcount]
    defaults = command.__defaults__ or ()
    by_name = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    scope = vars(sys.modules[command.__module__])
    return [
        _parameter(name, eval(command.__annotations__[name], scope), by_name)  # of scplan's own source
        for name in names
        if name != "settings"
    ]


def _parameter(name: str, annotated: Any, defaults: Mapping[str, object]) -> Parameter:
    (declared,) = annotated.__metadata__
    # `list[str] | None`: what is not given is None.
    origin = annotated.__origin__
    wanted = getattr(origin, "__args__", (origin,))[0] if type(None) in getattr(origin, "__args__", ()) else origin
    form: Form = "flag" if wanted is bool else "one"
    if getattr(wanted, "__origin__", None) is list:
        form, wanted = "many", wanted.__args__[0]
    return Parameter(name, declared, wanted, form, defaults.get(name), name not in defaults)


class Group(NamedTuple):
    """A command that others stand behind. `entry` is MODULE:FUNCTION, as that of each command in `members`."""

    entry: str
    members: Mapping[str, str | Group]


def load(entry: str) -> Command:
    """The function of a MODULE:FUNCTION; only that command's module is imported."""
    module, _, function = entry.partition(":")
    found: Command = getattr(import_module(module), function)
    return found


class Call(NamedTuple):
    """A command with all that it is to be called with."""

    command: Command
    settings: Settings
    values: Mapping[str, object]

    def __call__(self) -> int:
        before: Sequence[object] = [self.settings] if takes_settings(self.command) else []
        return int(self.command(*before, **self.values) or 0)
