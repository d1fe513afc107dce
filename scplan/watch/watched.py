"""A supervisor's memory of each container: its reports about the container, and its sources of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from scplan.errors import Diagnostic
from scplan.kinds.kind import Hears
from scplan.linux.processes.life import Life
from scplan.model.live import ContainerFacts
from scplan.model.report import Drifted, Notice, Occasion, Tally
from scplan.runtimes.runtime import Signs
from scplan.watch.attend import Key, Seen, WorkDone


class Watched:
    """One container. Bounded in size: reports are remembered as a hash, drift as a number.

    `heard_of` identifies the life that `life` listens to, and its sources of events. `hinted_s` is the time of the
    first hint that no check has covered yet, `looked_for_s` that of the first hint for the current check. `is_unheard`
    is true if some events cannot be received.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.id = ""
        self.facts: ContainerFacts | None = None
        self.life: Life | None = None
        self.signs = Signs()
        self.hears: frozenset[Hears] = frozenset()
        self.host_links: frozenset[str] = frozenset()
        self.owned = 0
        self.drifted = 0
        self.problems = 0
        self.had_problems = False
        self.heard_of: tuple[int, int, frozenset[Hears], frozenset[str]] | None = None
        self.hinted_s: float | None = None
        self.looked_for_s: float | None = None
        self.busy_times = 0
        self.pause_s = 0.0
        self.is_unheard = False
        self._drift_told = 0
        self._problems_told = 0

    def learn(self, seen: Seen) -> None:
        """Takes over the facts in a result, as far as they are known."""
        if seen.owned:
            self.signs, self.hears, self.host_links = seen.signs, seen.hears, seen.host_links
            self.owned = seen.owned
        if seen.facts is not None:
            self.id = seen.facts.id
        if not seen.failed and not seen.busy:
            self.facts = seen.facts

    def notices(self, seen: Seen, seconds: float) -> list[Notice]:
        """Notices for a result that differs from the last reports."""
        found: list[Notice] = []
        if seen.gave_back:
            found.append(self._notice(Occasion.STOPPED))
        for occasion, work in ((Occasion.STARTED, seen.started), (Occasion.HEALED, seen.healed)):
            if work is not None and (work.changed or work.lines):
                found.append(self._done(occasion, work, seconds))
        if not seen.failed and not seen.busy:
            found += self._drift(seen.drifted)
        if not seen.busy:
            found += self._trouble(seen.problems)
        return found

    def _done(self, occasion: Occasion, work: WorkDone, seconds: float) -> Notice:
        return self._notice(occasion)._replace(resources=work.changed, seconds=seconds, lines=work.lines)

    def _drift(self, drifted: tuple[Drifted, ...]) -> list[Notice]:
        self.drifted = len(drifted)
        told = hash(tuple((str(one.address), one.changed, repr(one.live)) for one in drifted)) if drifted else 0
        if told == self._drift_told:
            return []
        self._drift_told = told
        if not drifted:
            return [self._notice(Occasion.RESTORED)]
        return [self._notice(Occasion.DRIFTED)._replace(drifted=drifted)]

    def _trouble(self, problems: tuple[Diagnostic, ...]) -> list[Notice]:
        self.problems = len(problems)
        told = hash(problems) if problems else 0
        if told == self._problems_told:
            return []
        if problems and not self.had_problems:
            return []  # the container may be starting or ending: the next check, which comes soon, decides
        self._problems_told = told
        if not problems:
            return [self._notice(Occasion.SOLVED)]
        return [self._notice(Occasion.PROBLEM)._replace(diagnostics=problems)]

    def _notice(self, occasion: Occasion) -> Notice:
        runtime, name = self.key
        return Notice(occasion, name, runtime)


class Inventory:
    """All watched containers, and their counts."""

    def __init__(self, tell: Callable[[Notice], None], *, is_patient: bool) -> None:
        """`is_patient`: a problem is reported only if the next check finds it again."""
        self._is_patient = is_patient
        self.containers: dict[Key, Watched] = {}
        self.tell = tell
        self._engines: dict[tuple[str, str], tuple[Diagnostic, ...]] = {}
        self._starts = 0
        self._heals = 0

    def take(self, seen: Seen, seconds: float) -> Watched:
        """Reports the news in a result; returns the container."""
        one = self.containers.setdefault(seen.key, Watched(seen.key))
        one.had_problems = one.problems > 0 or not self._is_patient
        one.learn(seen)
        self._starts += seen.started is not None
        self._heals += seen.healed is not None and seen.healed.changed > 0
        for notice in one.notices(seen, seconds):
            self.tell(notice)
        return one

    def take_engines(self, silent: Mapping[tuple[str, str], tuple[Diagnostic, ...]]) -> None:
        """Reports engines, by runtime and place, that became unreachable, and that are reachable again: once each."""
        for engine in silent.keys() - self._engines.keys():
            self.tell(Notice(Occasion.PROBLEM, runtime=engine[0], diagnostics=silent[engine]))
        for engine in self._engines.keys() - silent.keys():
            self.tell(Notice(Occasion.SOLVED, runtime=engine[0], lines=(engine[1],) if engine[1] else ()))
        self._engines = dict(silent)

    def tally(self) -> Tally:
        containers = self.containers.values()
        # Problems of an engine itself have an empty container name.
        of_engines = Counter((runtime, "") for runtime, _ in self._engines)
        return Tally(
            drifted={one.key: one.drifted for one in containers},
            problems={one.key: one.problems for one in containers} | of_engines,
            owned=sum(one.owned for one in containers),
            starts=self._starts,
            heals=self._heals,
        )
