"""Looking at records and live state without locks: looked at again when an apply changed both meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from scplan.errors import Diagnostic, ScplanError
from scplan.store.state import State

T = TypeVar("T")
_PATIENCE_S = 5.0
_POLL_S = 0.05
_AT_WORK = Diagnostic(
    summary="an apply is at work: what it has made so far can look like somebody else's",
    hint="look again when it has ended",
)


def settled(state: State, look: Callable[[], T]) -> T:
    """What `look()` returns, or raises, when no apply began, ended or was at work meanwhile.

    In the middle of an apply the records do not fit live state: what it has made looks like somebody else's. Where
    applies never pause, what was seen last counts after some seconds.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        before = state.last_begun_or_ended()
        try:
            found = look()
        except ScplanError as error:
            if is_quiet(state, before):
                raise
            if time.monotonic() > deadline:
                error.diagnostics = (*error.diagnostics, _AT_WORK)
                raise
        else:
            if is_quiet(state, before) or time.monotonic() > deadline:
                return found
        time.sleep(_POLL_S)


def is_quiet(state: State, before: int) -> bool:
    """Whether no apply is at work, and none began or ended since `before`, a time of last_begun_or_ended."""
    if state.has_open_journals():
        from scplan.store.journal import is_at_work

        if is_at_work(state.directory):
            return False
    # Last: one that ends between the two questions is told by the second.
    return state.last_begun_or_ended() == before
