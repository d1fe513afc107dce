"""A probe: a command that tests the changes of an apply. Exit status 0 means that they work."""

from __future__ import annotations

import re

from scplan.startup.named_tuple import NamedTuple

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 3600.0
MAX_COMMAND = 4096


class Probe(NamedTuple):
    """A command and its time limit. `command` is quoted as in a shell, but is run without one, unless it names one."""

    command: str
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def words(self) -> list[str]:
        """The program and its arguments. Raises ValueError if the quoting is malformed."""
        import shlex

        return shlex.split(self.command)


def probe(command: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Probe:
    """A probe with checked values. Raises ValueError if the command or the time limit is invalid."""
    made = Probe(command, timeout_s)
    if len(command) > MAX_COMMAND or "\0" in command:
        raise ValueError(f"a command has at most {MAX_COMMAND} characters, and no NUL")
    if not made.words:
        raise ValueError("the command is empty")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"a time limit is more than 0 and at most {MAX_TIMEOUT_S / 3600:g} h")
    return made


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `500ms`, `30s`, `2m` or `1h`. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"not a duration: {text!r}; write 500ms, 30s or 2m")
    return float(match[1]) * _SECONDS[match[2]]
