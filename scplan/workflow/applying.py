"""From a plan to changed containers: under locks, journaled, and recovered after a crash."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from scplan import observe
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Plan
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.state import Record, State
from scplan.workflow.planning import plan_scene
from scplan.workflow.scene import Request, Scene, scene_of_configuration, set_scene

if TYPE_CHECKING:
    from scplan.model.report import OnEvent, Outcome
    from scplan.recovery import Direction


@contextmanager
def open_apply(request: Request) -> Iterator[Run]:
    """Takes the locks, then plans: what is planned can't be changed by another scplan until the block ends."""
    state = State(request.state_dir, KINDS)
    with Host() as host, _locked_scene(set_scene(request, state), request, state) as scene:
        yield Run(plan_scene(scene, request, state, host), scene, state, host)


@contextmanager
def open_saved(path: str, request: Request) -> Iterator[Run]:
    """The same for a saved plan. Raises StalePlan when planning again gives other changes."""
    from scplan import planfile
    from scplan.config import configuration_from_json

    document = planfile.load(path)
    origin = document["origin"]
    request = request._replace(
        targets=tuple(map(str, origin.get("targets", ()))),
        excludes=tuple(map(str, origin.get("excludes", ()))),
        destroy=bool(origin.get("destroy")),
    )
    configuration = configuration_from_json(origin.get("configuration"), KINDS)
    state = State(request.state_dir, KINDS)
    scene = scene_of_configuration(configuration, request, state)
    with Host() as host, _locked_scene(scene, request, state) as locked:
        made = plan_scene(locked, request, state, host)
        planfile.check_unchanged(path, document, made)
        yield Run(made, locked, state, host)


class Run:
    """A plan with the locks that it needs, ready to be executed once."""

    def __init__(self, made: Plan, scene: Scene, state: State, host: Host) -> None:
        self.plan = made
        self._scene = scene
        self._state = state
        self._host = host

    def execute(self, on_event: OnEvent) -> Outcome:
        """Makes the changes. Raises ApplyFailed (all undone) or RollbackIncomplete (the journal is kept)."""
        from scplan.apply import apply
        from scplan.execute import Executor
        from scplan.journal import Begin, Journal
        from scplan.model.report import Outcome

        begun = time.monotonic()
        apply_id = _new_apply_id()
        if self.plan.operations or self.plan.refreshed:
            names = {address.container for address in self.plan.refreshed}
            names |= {operation.address.container for operation in self.plan.operations}
            touched = {name: facts for name, facts in self._scene.containers.items() if name in names}
            begin = Begin(apply_id=apply_id, boot_id=self._host.boot_id, user=_user(), containers=touched)
            with ExitStack() as stack:
                opened = stack.enter_context(observe.OpenContainers(touched, self._host))
                owned = {**self._scene.owned, **self.plan.refreshed}
                executor = Executor(host=self._host, containers=opened, kinds=KINDS, owned=owned)
                journal = stack.enter_context(Journal(self._state.directory, begin, self.plan.refreshed))
                apply(
                    self.plan.operations,
                    executor,
                    journal,
                    lambda owned: self._state.prepare(_new_records(touched, owned)),
                    on_event,
                )
        return Outcome(apply_id=apply_id, summary=self.plan.summary(), seconds=time.monotonic() - begun)


@contextmanager
def _locked_scene(scene: Scene, request: Request, state: State) -> Iterator[Scene]:
    """Locks the scene's containers, and the host when NICs are concerned; then reads the records again."""
    kinds = {address.kind for address in (*scene.desired, *scene.owned)}
    of_host = any(KINDS[kind].of_host for kind in kinds)
    with state.locked(list(scene.containers.values()), host=of_host, timeout_s=request.lock_timeout_s):
        if state.has_open_journals():
            from scplan.recovery import refuse_if_needed

            refuse_if_needed(state.directory)
        yield scene.only(scene.containers.keys())


def _new_records(touched: Mapping[str, ContainerFacts], owned: Mapping[Address, Resource]) -> list[Record]:
    by_container: dict[str, dict[Address, Resource]] = {name: {} for name in touched}
    for address, resource in owned.items():
        if address.container in by_container:
            by_container[address.container][address] = resource
    return [
        Record(name=name, runtime=facts.runtime, id=facts.id, resources=by_container[name])
        for name, facts in touched.items()
    ]


def _new_apply_id() -> str:
    """Sorts by time; unique on the host."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.{time.time_ns() % 10**9:09d}-{os.getpid()}"


def _user() -> str:
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.getuid())


def recover(request: Request, direction: Direction, on_event: OnEvent) -> list[str]:
    """Undoes, or finishes, what a crash left half done; returns a line about each apply."""
    from scplan import recovery

    with Host() as host:
        state = State(request.state_dir, KINDS)
        return recovery.recover(state, KINDS, host, direction, request.lock_timeout_s, on_event)
