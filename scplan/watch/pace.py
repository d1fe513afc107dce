"""When to look: at once after quiet, ever less often while hints keep coming. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from scplan.startup.named_tuple import NamedTuple

K = TypeVar("K", bound=Hashable)


class Gaps(NamedTuple):
    """Seconds between two looks that hints of one sort brought: after quiet, and at most.

    `settle_s` lets hints come together that belong together.
    """

    shortest_s: float
    longest_s: float
    settle_s: float = 0.0


class _Turn:
    """One thing's turn: when it is due, when it was taken, and how long it must rest after that, by sort of hint."""

    __slots__ = ("due_s", "gaps_s", "sorts", "taken_s")

    def __init__(self) -> None:
        self.due_s: float | None = None
        self.taken_s = float("-inf")
        self.gaps_s: dict[Gaps, float] = {}
        self.sorts: set[Gaps] = set()


class Schedule(Generic[K]):
    """Whose turn it is when. Times are those of any clock that never goes back."""

    def __init__(self) -> None:
        self._turns: dict[K, _Turn] = {}
        self._queue: list[tuple[float, int, K]] = []
        self._count = 0

    def hint(self, key: K, now: float, gaps: Gaps) -> None:
        """Something may have happened: its turn comes soon, or once it has rested as such hints have it rest."""
        turn = self._turns.setdefault(key, _Turn())
        turn.sorts.add(gaps)
        self._set(key, turn, max(now + gaps.settle_s, turn.taken_s + turn.gaps_s.get(gaps, gaps.shortest_s)))

    def at(self, key: K, when: float) -> None:
        """Its turn comes then, unless it comes before."""
        self._set(key, self._turns.setdefault(key, _Turn()), when)

    def postpone(self, key: K, when: float) -> None:
        """Its turn comes then and not before; hints that come later count again."""
        turn = self._turns.setdefault(key, _Turn())
        turn.due_s = None
        self._set(key, turn, when)

    def take(self, now: float, limit: int) -> list[K]:
        """Whose turn it is, at most `limit`, longest due first."""
        taken: list[K] = []
        while self._queue and self._queue[0][0] <= now and len(taken) < limit:
            due, _, key = heapq.heappop(self._queue)
            turn = self._turns.get(key)
            if turn is None or turn.due_s != due:
                continue  # forgotten, or put to another time
            turn.due_s = None
            for gaps in turn.sorts:
                gap = turn.gaps_s.get(gaps, gaps.shortest_s)
                # Quiet for a while: the next hint is answered at once again.
                rested = now - turn.taken_s > 4 * gap
                turn.gaps_s[gaps] = gaps.shortest_s if rested else min(2 * gap, gaps.longest_s)
            turn.sorts.clear()
            turn.taken_s = now
            taken.append(key)
        return taken

    def forget(self, key: K) -> None:
        self._turns.pop(key, None)

    def next_s(self) -> float | None:
        """When the next turn is; None when there is none."""
        while self._queue:
            due, _, key = self._queue[0]
            turn = self._turns.get(key)
            if turn is not None and turn.due_s == due:
                return due
            heapq.heappop(self._queue)
        return None

    def __len__(self) -> int:
        """How many entries it keeps, those of turns that were put to another time among them."""
        return len(self._queue)

    def _set(self, key: K, turn: _Turn, due: float) -> None:
        if turn.due_s is not None and turn.due_s <= due:
            return
        turn.due_s = due
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, key))
        if len(self._queue) > 4 * len(self._turns) + 64:
            # A flood must not make old entries pile up.
            due_ones = [(one.due_s, key) for key, one in self._turns.items()]
            self._queue = [
                (at, self._count + number, key) for number, (at, key) in enumerate(due_ones) if at is not None
            ]
            heapq.heapify(self._queue)
            self._count += len(due_ones)
