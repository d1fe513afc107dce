"""Applies: plans executed under locks and journaled, and recovered after a crash."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from scplan import observe
from scplan.errors import (
    ApplyFailed,
    ApplyOvertaken,
    ContainerNotFound,
    Diagnostic,
    EngineUnreachable,
    ScplanError,
    Severity,
    UsageError,
)
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.linux.processes.process import start_of
from scplan.linux.processes.signals import stop_requests_raise, stop_requests_wait
from scplan.linux.state_dirs import note_state_dir
from scplan.model.change import Plan
from scplan.model.live import ContainerFacts, Status
from scplan.store.journal import OF_A_START, new_apply_id
from scplan.store.state import State, records_of
from scplan.workflow.confirming import arm_watchdog, undo_overdue
from scplan.workflow.lifecycle import bring_home
from scplan.workflow.locking import made_under_locks
from scplan.workflow.modules import load_modules
from scplan.workflow.planning import plan_scene
from scplan.workflow.recorded import is_plugged_in, located_again
from scplan.workflow.scene import Request, Scene, scene_of_configuration, set_scene

if TYPE_CHECKING:
    from scplan.applying.recovery import Direction
    from scplan.config import Configuration
    from scplan.model.probe import Probe
    from scplan.model.report import OnEvent, Outcome
    from scplan.store.journal import Begin, Journal

_MAX_COMMAND_WORDS = 200
_MAX_WORD = 500
_STARTING_S, _RESTART_S, _POLL_S = 5.0, 3.0, 0.1


@contextmanager
def open_apply(request: Request) -> Iterator[Run]:
    """Lock the containers, then plan: no other scplan can change them until the block ends."""
    from scplan.config import default_paths

    state = State(request.state_dir, KINDS)
    with Host() as host:
        overdue = undo_overdue(state, host, request.lock_timeout_s)
        found = set_scene(request, state)

        def make(scene: Scene) -> Run:
            made = plan_scene(scene, request, state, host)
            made = made._replace(diagnostics=(*overdue, *made.diagnostics))
            probes = scene.configuration.probes if scene.configuration and not request.destroy else ()
            # Absolute paths for the history, which is read from any working directory.
            files = () if request.containers else tuple(map(os.path.abspath, request.files or default_paths()))
            asked = request._replace(files=files, probes=(*probes, *request.probes))
            return Run(made, scene, state, host, asked)

        with run_under_locks(found, request, state, host, make) as run:
            yield run


@contextmanager
def open_saved(path: str, request: Request) -> Iterator[Run]:
    """`open_apply` for a saved plan. Raises StalePlan if planning again gives other changes."""
    from scplan.config import configuration_from_json
    from scplan.store import saved_plans

    with Host() as host:
        document = saved_plans.load_to_apply(path, host.identity())
    origin = document["origin"]
    request = request._replace(
        targets=tuple(map(str, origin.get("targets", ()))),
        excludes=tuple(map(str, origin.get("excludes", ()))),
        destroy=bool(origin.get("destroy")),
    )
    configuration = configuration_from_json(origin.get("configuration"), KINDS)
    if not request.destroy:
        _check_probes(configuration, request)
    state = State(request.state_dir, KINDS)
    with Host() as host:
        undo_overdue(state, host, request.lock_timeout_s)
        scene = scene_of_configuration(configuration, request, state)

        def make(scene: Scene) -> Run:
            made = plan_scene(scene, request, state, host)
            saved_plans.check_unchanged(path, document, made)
            saved_plans.check_as_saved(path, document)
            return Run(made, scene, state, host, request)

        with run_under_locks(scene, request, state, host, make) as run:
            yield run


@contextmanager
def run_under_locks(
    scene: Scene, request: Request, state: State, host: Host, make: Callable[[Scene], Run]
) -> Iterator[Run]:
    """The run that `make` returns for the scene under its locks, which are held until the block ends.

    After the locks are released, engines are asked about containers that ended or started meanwhile. Raises
    ApplyOvertaken if the apply failed because a container ended, and the container runs again.
    """
    run: Run | None = None
    try:
        with made_under_locks(scene, request, state, host, make) as run:
            yield run
    except ApplyFailed as error:
        if run is not None and run.runs_again():
            raise ApplyOvertaken.of(error.diagnostics) from error
        raise
    # Only now: no engine may be asked under the locks (locking.py).
    run.see_to_started()


def _check_probes(configuration: Configuration, request: Request) -> None:
    """Raises UsageError unless the probes of a saved plan are given again: a plan file must not run commands."""
    given = {probe.command for probe in request.probes}
    missing = [probe.command for probe in configuration.probes if probe.command not in given]
    if missing:
        import shlex

        raise UsageError(
            f"the plan's configuration has {len(configuration.probes)} probes, and a plan file can't bring commands",
            hint="give them again: " + " ".join(f"--probe {shlex.quote(command)}" for command in missing),
        )


class Run:
    """A plan under the locks that it needs, to be executed once.

    `undoes` is the ID of the apply that the plan undoes. `is_start`: no user asked for the run, but a container
    starts or a disk was partitioned; such a run is not kept in the history.
    """

    def __init__(
        self,
        made: Plan,
        scene: Scene,
        state: State,
        host: Host,
        request: Request,
        *,
        undoes: str = "",
        is_start: bool = False,
    ) -> None:
        self.plan = made
        self._scene = scene
        self._state = state
        self._host = host
        self._request = request
        self._undoes = undoes
        self._is_start = is_start
        self._waiting: tuple[str, ...] = ()
        self.afterwards: list[Diagnostic] = []
        """Findings after the locks were released."""

    def execute(self, on_event: OnEvent) -> Outcome:
        """Make the changes. Raises ApplyFailed (all undone) or RollbackIncomplete (the journal is kept)."""
        from scplan.model.report import Outcome

        begun = time.monotonic()
        apply_id = new_apply_id(self._state.directory) + (OF_A_START if self._is_start else "")
        if self.plan.operations or self.changes_records:
            self._execute(apply_id, on_event)
            waiting = (one.address.container for one in self.plan.operations if one.at_next_start)
            self._waiting = tuple(dict.fromkeys(waiting))
        return Outcome(
            apply_id=apply_id,
            summary=self.plan.summary(),
            seconds=time.monotonic() - begun,
            confirm_within_s=self._confirm_within_s,
            at_next_start=sum(change.waits for change in self.plan.changes),
        )

    @property
    def changes_records(self) -> bool:
        """True if records change even without an operation."""
        return bool(self.plan.refreshed or self.plan.new_modules or self._scene.renamed)

    @property
    def _confirm_within_s(self) -> float | None:
        """Seconds for the confirmation; None if nothing changes in the kernel, so that nothing has to be confirmed."""
        return self._request.confirm_within_s if self._changes_kernel else None

    @property
    def _changes_kernel(self) -> bool:
        return any(not operation.at_next_start for operation in self.plan.operations)

    def runs_again(self) -> bool:
        """True if containers that the plan changes have ended, and all of these run again within _RESTART_S."""
        names = {one.address.container for one in self.plan.operations if not one.at_next_start}
        changed = [self._scene.containers[name] for name in names]
        # PID and start time identify a process within one boot.
        ended = [facts for facts in changed if start_of(facts.pid) != facts.start_time]
        deadline = time.monotonic() + _RESTART_S
        for facts in ended:
            while not _is_running(facts):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_S)
        return bool(ended)

    def see_to_started(self) -> None:
        """Attach resources that wait for a start, if the container was started meanwhile without its hook doing so.

        Adds a notice per container to `afterwards`.
        """
        for name in self._waiting:
            done = self._plugged_into_started(self._scene.containers[name])
            if done:
                summary = f"container {name} was started meanwhile: {done} resources plugged in"
                self.afterwards.append(Diagnostic(summary=summary, severity=Severity.NOTICE))

    def _plugged_into_started(self, then: ContainerFacts) -> int:
        """Number of resources attached to a container that was started since; 0 if it is stopped or has them."""
        from scplan.workflow import plugging

        deadline = time.monotonic() + _STARTING_S
        while True:
            try:
                facts = located_again(then)
            except (ContainerNotFound, EngineUnreachable):
                return 0  # no container to attach to; the next command reports it
            record = self._state.read(then.runtime, then.name)
            is_waiting = record is not None and not is_plugged_in(record, self._host.boot_id)
            if facts.status is Status.STOPPED or not is_waiting:
                return 0
            try:
                return plugging.start(facts, self._state, self._host, self._request).changed
            except ScplanError:
                # The container may be starting, with its hook at work, or ending: look again.
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def _execute(self, apply_id: str, on_event: OnEvent) -> None:
        """Load modules, then make the operations under a new journal. Raises as `execute`."""
        from scplan.applying.apply import Assurance, apply
        from scplan.applying.execute import Executor, release_ended
        from scplan.applying.recovery import elsewhere
        from scplan.store.journal import Journal, Refreshed, open_ids

        # Applies with another state directory find the owners of shared resources by this note (sharing.py).
        note_state_dir(self._state.directory)
        release_ended(KINDS, self._state.directory, partial(open_ids, self._state.directory))
        modules = self.plan.new_modules
        load_modules(self._scene, self.plan, modules)
        # Also containers whose records change without an operation.
        names = {address.container for address in self.plan.refreshed} | modules.keys() | self._scene.renamed
        names |= {operation.address.container for operation in self.plan.operations}
        touched = {name: facts for name, facts in self._scene.containers.items() if name in names}
        before = self._scene.owned
        refreshed = {address: Refreshed(before.get(address), one) for address, one in self.plan.refreshed.items()}
        with ExitStack() as stack:
            opened = stack.enter_context(observe.OpenContainers(touched, self._host))
            executor = Executor(
                host=self._host,
                containers=opened,
                kinds=KINDS,
                owned={**before, **self.plan.refreshed},
                state_dir=self._state.directory,
                elsewhere=partial(elsewhere, self._state, KINDS, self._host.boot_id, touched.values()),
                apply_id=apply_id,
            )
            # While the journal is open, signals that ask scplan to stop wait, or interrupt the apply to undo it.
            stack.enter_context(stop_requests_wait())
            journal = stack.enter_context(Journal(self._state.directory, self._begin(apply_id, touched), refreshed))
            if self._confirm_within_s is not None:
                self._arm(journal, apply_id)
            apply(
                self.plan.operations,
                executor,
                journal,
                lambda owned: self._state.prepare(records_of(touched, owned, self._host.boot_id, modules)),
                on_event,
                Assurance(lambda: self._probe(apply_id, on_event), self._confirm_within_s),
            )

    def _begin(self, apply_id: str, touched: Mapping[str, ContainerFacts]) -> Begin:
        """First entry of the journal."""
        from scplan.store.journal import Begin

        request, configuration = self._request, self._scene.configuration
        return Begin(
            apply_id=apply_id,
            boot_id=self._host.boot_id,
            user=_user(),
            containers=touched,
            uid=os.getuid(),
            # A command line can have megabytes: keep its beginning. execve(2), "Limits on size of arguments".
            command=tuple(word[:_MAX_WORD] for word in request.command[:_MAX_COMMAND_WORDS]),
            files=request.files,
            configuration=_digest(configuration) if configuration else "",
            undoes=self._undoes,
            confirm_within_s=self._confirm_within_s,
            operations=self.plan.operations,
            modules=self.plan.new_modules,
        )

    def _arm(self, journal: Journal, apply_id: str) -> None:
        """Start the watchdog before the first change: it undoes the apply even if this process dies or is cut off."""
        try:
            with stop_requests_raise():
                arm_watchdog(self._state, apply_id)
        except BaseException:
            journal.close("rolled_back", "the watchdog did not start")
            raise

    def _probe(self, apply_id: str, on_event: OnEvent) -> None:
        """Run the probes if anything changed in the kernel. Raises ScplanError if a probe fails."""
        probes: tuple[Probe, ...] = self._request.probes if self._changes_kernel else ()
        if probes:
            from scplan.applying.probes import run_probes

            run_probes(probes, apply_id, on_event)


def _is_running(then: ContainerFacts) -> bool:
    """True if the container runs, even as another process than before."""
    try:
        return located_again(then).status is not Status.STOPPED
    except (ContainerNotFound, EngineUnreachable):
        return False


def _user() -> str:
    """User of this apply: the name in SUDO_USER (sudo(8)), else the name of this process's user, else its UID."""
    import pwd

    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _digest(configuration: Configuration) -> str:
    """SHA-256 of the configuration; equal for files with equal content, in any form of YAML."""
    import json

    from scplan.startup.digest import sha256_hex

    # Sorted: the order of keys in the files does not change the digest.
    text = json.dumps(configuration.to_json(), sort_keys=True, separators=(",", ":"))
    return f"sha256:{sha256_hex(text.encode())}"


def recover(request: Request, direction: Direction, on_event: OnEvent, tell: Callable[[str], None]) -> None:
    """Undo or finish applies that did not end, and return things of the host from containers that ended.

    `tell` gets a line per apply and per thing. All are tried before failures are raised together.
    """
    from scplan.applying import recovery

    with Host() as host:
        asked = recovery.Recovery(State(request.state_dir, KINDS), KINDS, host, request.lock_timeout_s, on_event)
        try:
            recovery.recover(asked, direction, tell)
        finally:
            # Return things of the host even if an apply can't be recovered.
            for line in bring_home(asked.state, host, request.lock_timeout_s):
                tell(line)


def accept_live(request: Request, tell: Callable[[str], None]) -> None:
    """Accept live state as the outcome of every apply that did not end; `tell` gets a line per difference.

    Applies that can still be confirmed are ignored. All are tried before failures are raised together.
    """
    from scplan.applying import acceptance, recovery
    from scplan.store import confirmation, journal

    state = State(request.state_dir, KINDS)
    with Host() as host:
        asked = acceptance.Acceptance(state, KINDS, host, request.lock_timeout_s)
        journal.sweep(state.directory)
        waiting = {
            one.path: one.left_s
            for one in confirmation.all_left_behind(state.directory, KINDS, host.boot_id)
            if one.left_s
        }

        def settle(path: str) -> None:
            if path in waiting:
                tell(f"{os.path.basename(path).removesuffix('.jsonl')}: awaits confirmation; `scplan confirm` keeps it")
                return
            for line in acceptance.accept_live(path, asked):
                tell(line)

        recovery.for_each_left(state, settle)
