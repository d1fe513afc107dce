"""Options that several commands share, and the request that is made of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from scplan.cli.parameters import Argument, Option, Settings
from scplan.errors import UsageError

if TYPE_CHECKING:
    from scplan.model.change import Disruption
    from scplan.model.probe import Probe
    from scplan.workflow.scene import Request

_LIMITS = ("none", "brief")
_LONGEST_CONFIRM_S = 7 * 24 * 3600.0


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `500ms`, `30s`, `2m` or `1h`. Raises ValueError."""
    from scplan.model import probe

    return probe.parse_duration(text)


def parse_confirm_within(text: str) -> float:
    """Seconds of a duration from 1 s to 7 days, in which a person can confirm an apply. Raises ValueError."""
    seconds = parse_duration(text)
    if not 1 <= seconds <= _LONGEST_CONFIRM_S:
        raise ValueError(f"{text} is not between 1s and {_LONGEST_CONFIRM_S / 3600:g}h")
    return seconds


def parse_probe(text: str) -> Probe:
    """The probe of a command, with the default time limit. Raises ValueError."""
    from scplan.model import probe

    try:
        return probe.probe(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def parse_disruption(text: str) -> Disruption:
    """The strongest interruption that a plan may cause, "none" or "brief". Raises ValueError."""
    from scplan.model.change import Disruption

    if text not in _LIMITS:
        raise ValueError(f"{text!r} is none of {', '.join(_LIMITS)}")
    return Disruption(text)


Files = Annotated[
    list[str] | None,
    Option(
        ("-f", "--file"),
        metavar="PATH",
        help="Configuration file, or directory of *.yaml and *.yml; repeatable. Default: scplan.yaml, else scplan.d/.",
    ),
]
Paths = Annotated[
    list[str] | None, Argument(metavar="[FILE]...", help="Configuration files and directories, as after -f.")
]
Targets = Annotated[
    list[str] | None,
    Option(("--target",), metavar="GLOB", help="Only these addresses: web, 'web/nic/*'; repeatable."),
]
Excludes = Annotated[
    list[str] | None, Option(("--exclude",), metavar="GLOB", help="All but these addresses; repeatable.")
]
MaxDisruption = Annotated[
    Any,
    Option(
        ("--max-disruption",),
        parser=parse_disruption,
        metavar="LEVEL",
        help="Refuse a plan that interrupts more, or loses something for good: none, brief. Exit 10.",
    ),
]
Json = Annotated[bool, Option(("--json",), help="One JSON document, for programs.")]
DetailedExitCode = Annotated[
    bool, Option(("--detailed-exitcode",), help="Exit 2 when there is something to do, 0 when not.")
]
AutoApprove = Annotated[bool, Option(("--auto-approve",), help="Don't ask.")]
LockTimeout = Annotated[
    float,
    Option(
        parser=parse_duration,
        metavar="DURATION",
        help="How long to wait for another scplan that is at work: 500ms, 2m. Default: 30s.",
    ),
]
ConfirmWithin = Annotated[
    float | None,
    Option(
        parser=parse_confirm_within,
        metavar="DURATION",
        help="Undo everything unless 'scplan confirm' comes within this time: 60s, 5m.",
    ),
]
Probes = Annotated[
    list[Any] | None,
    Option(
        ("--probe",),
        parser=parse_probe,
        metavar="CMD",
        help="Run this afterwards, and undo everything when it fails; repeatable. No shell takes part.",
    ),
]


def request(
    settings: Settings,
    *,
    files: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    excludes: Sequence[str] | None = None,
    destroy: bool = False,
    containers: Sequence[str] = (),
    live: str | None = None,
    lock_timeout_s: float = 30.0,
    probes: Sequence[Probe] | None = None,
    confirm_within_s: float | None = None,
) -> Request:
    """The request of a command's options, with the state directory of --state-dir, SCPLAN_STATE_DIR or the default.

    Raises UsageError if a path is empty.
    """
    from scplan.workflow.scene import Request

    if not all(files or ()):
        raise UsageError("-f: the path is empty")
    return Request(
        state_dir=_state_dir(settings),
        files=tuple(files or ()),
        targets=tuple(targets or ()),
        excludes=tuple(excludes or ()),
        destroy=destroy,
        containers=tuple(containers),
        live=live,
        lock_timeout_s=lock_timeout_s,
        probes=tuple(probes or ()),
        confirm_within_s=confirm_within_s,
        command=("scplan", *sys.argv[1:]),
    )


def _state_dir(settings: Settings) -> str:
    from scplan.store.durable import default_state_dir

    return settings.state_dir or os.environ.get("SCPLAN_STATE_DIR") or default_state_dir()


def at_most_one(**options: bool) -> None:
    """Raise UsageError if more than one of these options is set. `_` in their names stands for `-`."""
    given = [f"--{name.replace('_', '-')}" for name, is_set in options.items() if is_set]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="choose one of them")
