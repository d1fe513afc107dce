"""Parses valid command lines without Typer, whose import takes longer than most commands.

Other command lines, and those that ask for help, are left to Typer, which reports the errors. Both parsers use the same
declarations. If this one accepts a command line, its result is that of Typer (tests/unit/test_command_line.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scplan.cli.parameters import Argument, Call, Command, Group, Parameter, Settings, load, parameters

_STATE_DIR = "--state-dir"


def read(words: Sequence[str], root: Group) -> Call | None:
    """The call that the words of a command line make; None if they are left to Typer."""
    settings = Settings()
    left = list(words)
    found: str | Group = root
    while isinstance(found, Group):
        rest = _without_state_dir(left, settings)
        if not rest or rest[0] not in found.members:
            return None
        found, left = found.members[rest[0]], rest[1:]
    command = load(found)
    values = _values(left, command, settings)
    return None if values is None else Call(command, settings, values)


def _without_state_dir(words: list[str], settings: Settings) -> list[str]:
    """The words after any leading --state-dir options, whose value is stored in `settings`."""
    while words:
        flag, equals, value = words[0].partition("=")
        if flag != _STATE_DIR or not (equals or _is_value(words[1:2])):
            break
        settings.state_dir = value if equals else words[1]
        words = words[1 if equals else 2 :]
    return words


def _is_value(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("-")


def _values(words: list[str], command: Command, settings: Settings) -> Mapping[str, object] | None:
    known = parameters(command)
    by_flag = {flag: one for one in known for flag in one.flags}
    given: dict[str, Any] = {}
    arguments: list[str] = []
    while words := _without_state_dir(words, settings):
        word, *words = words
        if not word.startswith("-"):
            arguments.append(word)
            continue
        flag, equals, text = word.partition("=")
        option = by_flag.get(flag)
        # A flag with a value, and `=` after a short option, are left to Typer.
        if option is None or (equals and (option.form == "flag" or not flag.startswith("--"))):
            return None
        if option.form == "flag":
            given[option.name] = True
            continue
        if not equals:
            if not _is_value(words):
                return None
            text, *words = words
        if not _take(option, text, given):
            return None
    return _with_arguments(known, arguments, given)


def _take(parameter: Parameter, text: str, given: dict[str, Any]) -> bool:
    try:
        value = parameter.value(text)
    except ValueError:
        return False
    if parameter.form == "many":
        given.setdefault(parameter.name, []).append(value)
    else:
        given[parameter.name] = value
    return True


def _with_arguments(
    known: Sequence[Parameter], arguments: list[str], given: dict[str, Any]
) -> Mapping[str, object] | None:
    for parameter in known:
        if isinstance(parameter.declared, Argument):
            taken = arguments if parameter.form == "many" else arguments[:1]
            arguments = arguments[len(taken) :]
            for text in taken:
                _take(parameter, text, given)
        if parameter.name not in given:
            if parameter.required:
                return None
            given[parameter.name] = parameter.default
    return None if arguments else given
