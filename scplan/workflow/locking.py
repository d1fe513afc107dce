"""Plans made under scplan's locks. No engine is asked while they are held.

An engine that starts a container answers no question about it until scplan's hook has ended, and the hook waits for
these locks. Under them only processes and records are looked at; where these are others than before, the locks are
released, and the engine is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from scplan.errors import Diagnostic, ScplanError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.linux.process import start_of
from scplan.model.live import ContainerFacts, Status
from scplan.state import Record, State
from scplan.workflow.lifecycle import give_back
from scplan.workflow.planning import left_out_of
from scplan.workflow.recorded import is_plugged_in
from scplan.workflow.scene import Request, Scene

if TYPE_CHECKING:
    from scplan.confirmation import Scope

T = TypeVar("T")
_ATTEMPTS = 20
"""Each takes a container that ended or started meanwhile."""
Lives = dict[str, tuple[str, int]]
"""By container, the life in which its record's resources were plugged in: boot ID and start time."""


@contextmanager
def made_under_locks(
    scene: Scene, request: Request, state: State, host: Host, make: Callable[[Scene], T]
) -> Iterator[T]:
    """What `make` returns for the scene as it is under its locks, which are held until the block ends.

    Locks the scene's containers, and the host when NICs are concerned. `make` is called again, with new locks, when a
    container ended or started before or while it was at work.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        scene.ask_about_starts()
        lives = _lives(scene, state)
        with ExitStack() as stack:
            try:
                locked = stack.enter_context(_locked(scene, lives, request, state, host))
                made = make(locked) if locked is not None else None
            except (ScplanError, OSError):
                # What ends while it is read fails in many ways.
                if attempt == _ATTEMPTS or not _has_changed(scene, lives, state, host):
                    raise
                locked = made = None
            if locked is not None and made is not None:
                yield made
                return
        host.forget()
        scene = scene.located_again()
    names = ", ".join(name for name in scene.containers if name in _changed(scene, _lives(scene, state), state, host))
    raise ScplanError(
        f"containers start and end faster than they can be planned for: {names or ', '.join(scene.containers)}",
        hint="apply again when they run",
    )


@contextmanager
def _locked(scene: Scene, lives: Lives, request: Request, state: State, host: Host) -> Iterator[Scene | None]:
    """The scene under its locks, its records read again; None where one of its containers ended or started."""
    kinds = {address.kind for address in (*scene.desired, *scene.owned)}
    of_host = any(KINDS[kind].of_host for kind in kinds)
    with state.locked(list(scene.containers.values()), host=of_host, timeout_s=request.lock_timeout_s):
        if state.has_open_journals():
            from scplan.journal import sweep
            from scplan.recovery import refuse_if_needed

            sweep(state.directory)
            refuse_if_needed(state, KINDS, host, _scope(scene, request))
        if _has_changed(scene, lives, state, host):
            yield None
            return
        now = scene.only(scene.containers.keys())
        now.refuse_stale()
        returned: list[Diagnostic] = []
        for name in dict.fromkeys(address.container for address in now.lost):
            facts = now.containers[name]
            record = state.read(facts.runtime, name)
            assert record is not None
            returned += give_back(record, facts, state, host)
        yield now.saying(returned) if now.lost else now


def _lives(scene: Scene, state: State) -> Lives:
    return {name: _life(facts, state) for name, facts in scene.containers.items() if facts.status is Status.STOPPED}


def _life(facts: ContainerFacts, state: State) -> tuple[str, int]:
    record = state.read(facts.runtime, facts.name) or Record(facts.name, facts.runtime, facts.id, {})
    return record.boot_id, record.start_time


def _has_changed(scene: Scene, lives: Lives, state: State, host: Host) -> bool:
    return any(True for _ in _changed(scene, lives, state, host))


def _changed(scene: Scene, lives: Lives, state: State, host: Host) -> Iterator[str]:
    """Containers whose process is another one than was located: it has ended, or the hook has seen a start."""
    for name, facts in scene.containers.items():
        if facts.status is not Status.STOPPED:
            if start_of(facts.pid) != facts.start_time:
                yield name
        elif _life(facts, state) != lives.get(name):
            record = state.read(facts.runtime, name)
            if record is not None and is_plugged_in(record, host.boot_id):
                yield name


def _scope(scene: Scene, request: Request) -> Scope:
    """What of the scene an apply may change: containers that the selection leaves out altogether are not touched."""
    from scplan.confirmation import Scope

    known = [*scene.desired.items(), *scene.owned.items()]
    left_out = left_out_of(scene.containers, (address for address, _ in known), request)
    containers = [facts for name, facts in scene.containers.items() if name not in left_out]
    return Scope(containers, [(address, one) for address, one in known if address.container not in left_out])
