"""Checks at intervals that the engines of the watched containers answer. READ supervision.py first.

Containers keep running without their engine, so nothing else shows that an engine is down until a container has to be
located again. A child does the check, since a query of a daemon that hangs takes seconds to time out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from scplan.errors import Diagnostic, EngineUnreachable, ScplanError
from scplan.linux.closing import Closing
from scplan.linux.processes.namespaces import Child
from scplan.linux.processes.signals import ask_to_stop_ends
from scplan.runtimes import RUNTIMES
from scplan.watch.poller import Poller
from scplan.watch.rest import Rest
from scplan.watch.watched import Inventory

_AGAIN_S, _TIME_S = 2.0, 60.0
_CHORE = "ask engines"
Place = tuple[str, str]
"""Runtime and place of containers."""
Silent = dict[Place, tuple[Diagnostic, ...]]


class Engines(Closing):
    """Checks engines every `every_s` seconds, and soon again after a silence, which is reported if it lasts.

    `held` returns the fds that the child closes.
    """

    def __init__(
        self, poller: Poller, rest: Rest, inventory: Inventory, every_s: float, held: Callable[[], list[int]]
    ) -> None:
        self._poller, self._rest, self._inventory, self._every_s, self._held = poller, rest, inventory, every_s, held
        self._child: Child[Silent] | None = None
        self._suspected: Silent = {}

    def close(self) -> None:
        if self._child is not None:
            self._child.abandon()

    def ask(self) -> None:
        """Starts a check of the engines of all watched containers; the result is reported later."""
        watched = self._inventory.containers.values()
        places = {(one.key[0], one.facts.place) for one in watched if one.facts is not None}
        held = self._held()

        def work() -> Silent:
            ask_to_stop_ends()
            for fd in held:
                os.close(fd)
            return silent_among(places)

        self._child = child = Child(work, what="ask engines", timeout_s=_TIME_S)
        self._poller.add(child.fd, self._finish)
        self._rest.after(_TIME_S, _CHORE, self._finish)

    def _finish(self) -> None:
        child, self._child = self._child, None
        assert child is not None
        self._poller.remove(child.fd)
        try:
            silent = child.result()
        except (ScplanError, OSError):
            silent = self._suspected  # the check failed: the last result stays
        lasting = {place: said for place, said in silent.items() if place in self._suspected}
        self._suspected = silent
        self._inventory.take_engines(lasting)
        is_new = lasting.keys() != silent.keys()
        self._rest.after(min(_AGAIN_S, self._every_s) if is_new else self._every_s, _CHORE, self.ask)


def silent_among(places: Collection[Place]) -> Silent:
    """Engines that do not answer, with the reasons."""
    found: Silent = {}
    for runtime, place in sorted(places):
        if runtime in RUNTIMES:
            try:
                RUNTIMES[runtime].check_reachable(place)
            except EngineUnreachable as error:
                found[runtime, place] = error.diagnostics
    return found
