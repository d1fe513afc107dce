"""Plans made under scplan's locks. No engine is asked while the locks are held.

An engine that starts a container answers no query about it until scplan's hook has ended, and the hook waits for these
locks: a query under the locks would be a deadlock. So only processes and records are read under the locks. If these
have changed, the locks are released and the engine is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from scplan.errors import ContainerGone, Diagnostic, Locked, PlanError, RecoveryNeeded, ScplanError
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.linux.processes.process import start_of
from scplan.model.live import Status
from scplan.store.state import State
from scplan.workflow.lifecycle import give_back
from scplan.workflow.planning import left_out_of
from scplan.workflow.recorded import is_plugged_in
from scplan.workflow.scene import Request, Scene

if TYPE_CHECKING:
    from scplan.store.confirmation import Scope

T = TypeVar("T")
_ATTEMPTS, _POLL_S, _ENDING_S = 20, 0.1, 0.05
"""Each takes a container that ended or started meanwhile."""


@contextmanager
def made_under_locks(
    scene: Scene, request: Request, state: State, host: Host, make: Callable[[Scene], T]
) -> Iterator[T]:
    """The result of `make` for the scene under its locks, which are held until the block ends.

    Locks the scene's containers, and the host if NICs are concerned. If a container ended or started before or during
    `make`, it is called again with new locks.
    """
    for left in reversed(range(_ATTEMPTS)):
        scene.ask_about_starts()
        with ExitStack() as stack:
            try:
                locked = stack.enter_context(_locked(scene, request, state, host))
                # The last attempt is made without this check, and reports the error that it meets.
                changed = () if not left else tuple(_changed(scene, state, host))
                made = None if changed else make(_settled(locked, state, host))
            except (Locked, RecoveryNeeded):
                raise
            except (ScplanError, OSError) as error:
                # A container that ends while it is read can cause any error.
                is_gone = isinstance(error, ContainerGone) or _is_changing(scene, state, host, error)
                if not left or not is_gone:
                    raise
                made = None
            if made is not None:
                yield made
                return
        # A runtime may write its state files a moment after the hook has run.
        time.sleep(_POLL_S)
        host.forget()
        scene = scene.located_again()


@contextmanager
def _locked(scene: Scene, request: Request, state: State, host: Host) -> Iterator[Scene]:
    """The scene with its records read again, under its locks. Raises Locked, or RecoveryNeeded for an open journal."""
    kinds = {address.kind for address in (*scene.desired, *scene.owned)}
    of_host = any(KINDS[kind].of_host for kind in kinds)
    with state.locked(list(scene.containers.values()), host=of_host, timeout_s=request.lock_timeout_s):
        if state.has_open_journals():
            from scplan.applying.recovery import refuse_if_needed
            from scplan.store.journal import sweep

            sweep(state.directory)
            refuse_if_needed(state, KINDS, host, _scope(scene, request))
        # A new scene, whose records are read under the locks.
        yield scene.only(scene.containers.keys())


def _settled(scene: Scene, state: State, host: Host) -> Scene:
    """The scene after things of ended containers are returned to the host. Needs the locks."""
    scene.refuse_stale()
    returned: list[Diagnostic] = []
    for name in dict.fromkeys(address.container for address in scene.lost):
        facts = scene.containers[name]
        record = state.read(facts.runtime, name)
        assert record is not None
        returned += give_back(record, facts, state, host)
    return scene.saying(returned) if scene.lost else scene


def _is_changing(scene: Scene, state: State, host: Host, error: ScplanError | OSError) -> bool:
    """True if the error may come from an ending container.

    An exiting process leaves its namespaces before it becomes a zombie: exit_task_namespaces() comes before
    exit_notify() in the kernel's do_exit(). So look again after a moment.
    """
    if any(True for _ in _changed(scene, state, host)):
        return True
    if isinstance(error, PlanError):
        return False
    time.sleep(_ENDING_S)
    return any(True for _ in _changed(scene, state, host))


def _changed(scene: Scene, state: State, host: Host) -> Iterator[str]:
    """Names of containers that ended or started since they were located, by their processes and records alone."""
    for name, facts in scene.containers.items():
        if facts.status is not Status.STOPPED:
            # Another start time: the process has ended, and its PID may be reused.
            if start_of(facts.pid) != facts.start_time:
                yield name
            continue
        record = state.read(facts.runtime, name)
        if record is not None and is_plugged_in(record, host.boot_id):
            yield name


def _scope(scene: Scene, request: Request) -> Scope:
    """Containers and resources that an apply may change: without containers that the selection leaves out."""
    from scplan.store.confirmation import Scope

    known = [*scene.desired.items(), *scene.owned.items()]
    left_out = left_out_of(scene.containers, (address for address, _ in known), request)
    containers = [facts for name, facts in scene.containers.items() if name not in left_out]
    return Scope(containers, [(address, one) for address, one in known if address.container not in left_out])
