"""Supervision of what is owned, as a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from scplan.workflow.scene import Request

if TYPE_CHECKING:
    from scplan.model.report import Notice, Tally


def writes_to_journal(fd: int) -> bool:
    """Whether a stream goes to systemd's journal, where a line may begin with its priority."""
    from scplan.linux import service

    return service.writes_to_journal(fd)


def watch(
    request: Request,
    tell: Callable[[Notice], None],
    count: Callable[[Tally], None],
    *,
    heal: bool,
    check_s: float,
    is_once: bool,
) -> bool:
    """Attends to all containers with records as things happen, until SIGTERM; with `is_once` one time.

    `tell` gets what is done and seen, `count` what there is by now. Returns whether all went well.
    """
    from scplan.watch import supervision

    settings = supervision.Settings(heal=heal, check_s=check_s)
    if is_once:
        return supervision.once(request, settings, tell, count)
    supervision.supervise(request, settings, tell, count)
    return True
