"""Times of checks: at once after a quiet time, less and less often while hints keep coming. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from scplan.startup.named_tuple import NamedTuple

K = TypeVar("K", bound=Hashable)


class Gaps(NamedTuple):
    """Seconds between two checks caused by hints of one sort: after a quiet time, and at most.

    `settle_s` delays a check, so that one check covers hints that belong together.
    """

    shortest_s: float
    longest_s: float
    settle_s: float = 0.0


class _Turn:
    """Turn of a key: the time when it is due, the time when it was last taken, the gap after that by sort of hint."""

    __slots__ = ("due_s", "gaps_s", "sorts", "taken_s")

    def __init__(self) -> None:
        self.due_s: float | None = None
        self.taken_s = float("-inf")
        self.gaps_s: dict[Gaps, float] = {}
        self.sorts: set[Gaps] = set()


class Schedule(Generic[K]):
    """Turns of keys, with their times, which are of any clock that never goes back."""

    def __init__(self) -> None:
        self._turns: dict[K, _Turn] = {}
        self._queue: list[tuple[float, int, K]] = []
        self._count = 0

    def hint(self, key: K, now: float, gaps: Gaps) -> None:
        """Schedules a turn soon, but not before the gap for this sort of hint has passed."""
        turn = self._turns.setdefault(key, _Turn())
        turn.sorts.add(gaps)
        self._set(key, turn, max(now + gaps.settle_s, turn.taken_s + turn.gaps_s.get(gaps, gaps.shortest_s)))

    def at(self, key: K, when: float) -> None:
        """Schedules a turn for `when`, unless an earlier turn is scheduled."""
        self._set(key, self._turns.setdefault(key, _Turn()), when)

    def postpone(self, key: K, when: float) -> None:
        """Schedules a turn for `when` and cancels an earlier turn; later hints count again."""
        turn = self._turns.setdefault(key, _Turn())
        turn.due_s = None
        self._set(key, turn, when)

    def take(self, now: float, limit: int) -> list[K]:
        """Keys whose turn is due, at most `limit`, longest due first."""
        taken: list[K] = []
        while self._queue and self._queue[0][0] <= now and len(taken) < limit:
            due, _, key = heapq.heappop(self._queue)
            turn = self._turns.get(key)
            if turn is None or turn.due_s != due:
                continue  # forgotten or rescheduled
            turn.due_s = None
            for gaps in turn.sorts:
                gap = turn.gaps_s.get(gaps, gaps.shortest_s)
                # After a quiet time the gap is shortest again, so that the next hint counts at once.
                rested = now - turn.taken_s > 4 * gap
                turn.gaps_s[gaps] = gaps.shortest_s if rested else min(2 * gap, gaps.longest_s)
            turn.sorts.clear()
            turn.taken_s = now
            taken.append(key)
        return taken

    def forget(self, key: K) -> None:
        self._turns.pop(key, None)

    def next_s(self) -> float | None:
        """Time of the next turn; None if no turn is scheduled."""
        while self._queue:
            due, _, key = self._queue[0]
            turn = self._turns.get(key)
            if turn is not None and turn.due_s == due:
                return due
            heapq.heappop(self._queue)
        return None

    def __len__(self) -> int:
        """Number of entries in the queue, including stale entries of rescheduled turns."""
        return len(self._queue)

    def _set(self, key: K, turn: _Turn, due: float) -> None:
        if turn.due_s is not None and turn.due_s <= due:
            return
        turn.due_s = due
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, key))
        if len(self._queue) > 4 * len(self._turns) + 64:
            # Drop stale entries: a flood of hints must not make the queue grow without limit.
            due_ones = [(one.due_s, key) for key, one in self._turns.items()]
            self._queue = [
                (at, self._count + number, key) for number, (at, key) in enumerate(due_ones) if at is not None
            ]
            heapq.heapify(self._queue)
            self._count += len(due_ones)
