"""Options that several commands take, and the request that they make up."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from scplan.errors import UsageError

if TYPE_CHECKING:
    from scplan.workflow import Request

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str | float) -> float:
    """Seconds of `500ms`, `30s`, `2m` or `1h`."""
    # The default of an option passes through its parser as well.
    if isinstance(text, float):
        return text
    match = _DURATION.fullmatch(text)
    if not match:
        raise typer.BadParameter(f"not a duration: {text!r}; write 500ms, 30s or 2m")
    return float(match[1]) * _SECONDS[match[2]]


Files = Annotated[
    list[str] | None,
    typer.Option(
        "-f",
        "--file",
        metavar="PATH",
        help="Configuration file, or directory of *.yaml and *.yml; repeatable. Default: scplan.yaml, else scplan.d/.",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="GLOB", help="Only these addresses: web, 'web/nic/*'; repeatable."),
]
Excludes = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="All but these addresses; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
DetailedExitCode = Annotated[
    bool, typer.Option("--detailed-exitcode", help="Exit 2 when there is something to do, 0 when not.")
]
AutoApprove = Annotated[bool, typer.Option("--auto-approve", help="Don't ask.")]
LockTimeout = Annotated[
    float,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        show_default=False,
        help="How long to wait for another scplan that is at work: 500ms, 2m. Default: 30s.",
    ),
]


def request(
    context: typer.Context,
    *,
    files: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    excludes: Sequence[str] | None = None,
    destroy: bool = False,
    containers: Sequence[str] = (),
    live: str | None = None,
    lock_timeout_s: float = 30.0,
) -> Request:
    """The request that the options of a command make up, in the state directory that was chosen."""
    from scplan.workflow import Request

    if not all(files or ()):
        raise UsageError("-f: the path is empty")
    return Request(
        state_dir=_state_dir(context),
        files=tuple(files or ()),
        targets=tuple(targets or ()),
        excludes=tuple(excludes or ()),
        destroy=destroy,
        containers=tuple(containers),
        live=live,
        lock_timeout_s=lock_timeout_s,
    )


def _state_dir(context: typer.Context) -> str:
    from scplan.workflow import default_state_dir

    chosen: str | None = context.obj.state_dir
    return chosen or os.environ.get("SCPLAN_STATE_DIR") or default_state_dir()


def at_most_one(**options: bool) -> None:
    """Raises UsageError when more than one of the options is set; `_` in their names stands for `-`."""
    given = [f"--{name.replace('_', '-')}" for name, is_set in options.items() if is_set]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="choose one of them")
