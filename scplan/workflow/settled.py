"""Consistent reads of records and live state without locks: repeated if an apply changed both meanwhile."""

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
    """The result, or error, of a `look()` during which no apply began, ended or was at work.

    During an apply the records do not match live state: resources that it has made look like foreign ones. If
    applies never pause, the last result is returned after _PATIENCE_S.
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
    """True if no apply is at work, and none began or ended since `before`, a time of last_begun_or_ended."""
    if state.has_open_journals():
        from scplan.store.journal import is_at_work

        if is_at_work(state.directory):
            return False
    # In this order: an apply that ends between the two checks is noticed by the second.
    return state.last_begun_or_ended() == before
