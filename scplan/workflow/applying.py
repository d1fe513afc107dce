"""From a plan to changed containers: under locks, journaled, and recovered after a crash."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from scplan import observe
from scplan.errors import Diagnostic, ScplanError, UsageError
from scplan.journal import OF_A_START, new_apply_id
from scplan.kinds import KINDS
from scplan.linux.host import Host
from scplan.linux.signals import stop_requests_raise, stop_requests_wait
from scplan.linux.state_dirs import note_state_dir
from scplan.model.change import Plan
from scplan.model.live import ContainerFacts, Status
from scplan.state import State, records_of
from scplan.workflow.confirming import arm_watchdog, undo_overdue
from scplan.workflow.lifecycle import bring_home, give_back
from scplan.workflow.modules import load_modules
from scplan.workflow.planning import left_out_of, plan_scene
from scplan.workflow.recorded import located_again
from scplan.workflow.scene import Request, Scene, scene_of_configuration, set_scene

if TYPE_CHECKING:
    from scplan.config import Configuration
    from scplan.confirmation import Scope
    from scplan.journal import Begin, Journal
    from scplan.model.probe import Probe
    from scplan.model.report import OnEvent, Outcome
    from scplan.recovery import Direction

_MAX_COMMAND_WORDS = 200
_MAX_WORD = 500


@contextmanager
def open_apply(request: Request) -> Iterator[Run]:
    """Takes the locks, then plans: what is planned can't be changed by another scplan until the block ends."""
    from scplan.config import default_paths

    state = State(request.state_dir, KINDS)
    with Host() as host:
        overdue = undo_overdue(state, host, request.lock_timeout_s)
        with locked_scene(set_scene(request, state), request, state, host) as scene:
            made = plan_scene(scene, request, state, host)
            probes = scene.configuration.probes if scene.configuration and not request.destroy else ()
            made = made._replace(diagnostics=(*overdue, *made.diagnostics))
            files = () if request.containers else tuple(map(os.path.abspath, request.files or default_paths()))
            yield Run(made, scene, state, host, request._replace(files=files, probes=(*probes, *request.probes)))


@contextmanager
def open_saved(path: str, request: Request) -> Iterator[Run]:
    """The same for a saved plan. Raises StalePlan when planning again gives other changes."""
    from scplan import planfile
    from scplan.config import configuration_from_json

    with Host() as host:
        document = planfile.load_to_apply(path, host.identity())
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
        with locked_scene(scene, request, state, host) as locked:
            made = plan_scene(locked, request, state, host)
            planfile.check_unchanged(path, document, made)
            planfile.check_as_saved(path, document)
            yield Run(made, locked, state, host, request)


def _check_probes(configuration: Configuration, request: Request) -> None:
    """A plan file can't make scplan run a command: those of its configuration must be given again."""
    given = {probe.command for probe in request.probes}
    missing = [probe.command for probe in configuration.probes if probe.command not in given]
    if missing:
        import shlex

        raise UsageError(
            f"the plan's configuration has {len(configuration.probes)} probes, and a plan file can't bring commands",
            hint="give them again: " + " ".join(f"--probe {shlex.quote(command)}" for command in missing),
        )


class Run:
    """A plan with the locks that it needs, ready to be executed once.

    `undoes` is the apply that it takes back. `is_start` says that nobody asked for it, but a container starts, or a
    disk was partitioned: it does not go into the history.
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

    def execute(self, on_event: OnEvent) -> Outcome:
        """Makes the changes. Raises ApplyFailed (all undone) or RollbackIncomplete (the journal is kept)."""
        from scplan.model.report import Outcome

        begun = time.monotonic()
        apply_id = new_apply_id(self._state.directory) + (OF_A_START if self._is_start else "")
        if self.plan.operations or self.changes_records:
            self._refuse_started()
            self._execute(apply_id, on_event)
        return Outcome(
            apply_id=apply_id,
            summary=self.plan.summary(),
            seconds=time.monotonic() - begun,
            confirm_within_s=self._confirm_within_s,
            at_next_start=sum(change.at_next_start for change in self.plan.changes),
        )

    @property
    def changes_records(self) -> bool:
        """Whether there is something to record even if nothing changes in the kernel."""
        return bool(self.plan.refreshed or self.plan.new_modules or self._scene.renamed)

    @property
    def _confirm_within_s(self) -> float | None:
        """Where nothing changes in the kernel there is nothing to confirm."""
        return self._request.confirm_within_s if self._changes_kernel else None

    @property
    def _changes_kernel(self) -> bool:
        return any(not operation.at_next_start for operation in self.plan.operations)

    def _refuse_started(self) -> None:
        """Raises ScplanError when a container was started while the plan was looked at: it lacks then what is new."""
        for name in dict.fromkeys(one.address.container for one in self.plan.operations if one.at_next_start):
            if located_again(self._scene.containers[name]).status is not Status.STOPPED:
                raise ScplanError(f"container {name} was started meanwhile; nothing was changed", hint="apply again")

    def _execute(self, apply_id: str, on_event: OnEvent) -> None:
        from scplan.apply import Assurance, apply
        from scplan.execute import Executor, release_ended
        from scplan.journal import Journal, Refreshed, open_ids
        from scplan.recovery import elsewhere

        note_state_dir(self._state.directory)
        release_ended(KINDS, self._state.directory, partial(open_ids, self._state.directory))
        modules = self.plan.new_modules
        load_modules(self._scene, self.plan, modules)
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
            # As long as the journal is open no request to stop may end scplan otherwise than by undoing.
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
        from scplan.journal import Begin

        request, configuration = self._request, self._scene.configuration
        return Begin(
            apply_id=apply_id,
            boot_id=self._host.boot_id,
            user=_user(),
            containers=touched,
            uid=os.getuid(),
            command=tuple(word[:_MAX_WORD] for word in request.command[:_MAX_COMMAND_WORDS]),
            files=request.files,
            configuration=_digest(configuration) if configuration else "",
            undoes=self._undoes,
            confirm_within_s=self._confirm_within_s,
            operations=self.plan.operations,
            modules=self.plan.new_modules,
        )

    def _arm(self, journal: Journal, apply_id: str) -> None:
        """Before the first change: from here on what this process does is undone even if it is never heard of again."""
        try:
            with stop_requests_raise():
                arm_watchdog(self._state, apply_id)
        except BaseException:
            journal.close("rolled_back", "the watchdog did not start")
            raise

    def _probe(self, apply_id: str, on_event: OnEvent) -> None:
        probes: tuple[Probe, ...] = self._request.probes if self._changes_kernel else ()
        if probes:
            from scplan.probes import run_probes

            run_probes(probes, apply_id, on_event)


@contextmanager
def locked_scene(scene: Scene, request: Request, state: State, host: Host) -> Iterator[Scene]:
    """Locks the scene's containers, and the host when NICs are concerned; then reads the records again."""
    kinds = {address.kind for address in (*scene.desired, *scene.owned)}
    of_host = any(KINDS[kind].of_host for kind in kinds)
    containers = list(scene.containers.values())
    with state.locked(containers, host=of_host, timeout_s=request.lock_timeout_s):
        if state.has_open_journals():
            from scplan.journal import sweep
            from scplan.recovery import refuse_if_needed

            sweep(state.directory)
            refuse_if_needed(state, KINDS, host, _scope(scene, request))
        now = scene.located_again()  # one may have ended, or have been started, while this waited
        now.refuse_stale()
        returned: list[Diagnostic] = []
        for name in dict.fromkeys(address.container for address in now.lost):
            facts = now.containers[name]
            record = state.read(facts.runtime, name)
            assert record is not None
            returned += give_back(record, facts, state, host)
        yield now.saying(returned) if now.lost else now


def _scope(scene: Scene, request: Request) -> Scope:
    """What of the scene an apply may change: containers that the selection leaves out altogether are not touched."""
    from scplan.confirmation import Scope

    known = [*scene.desired.items(), *scene.owned.items()]
    left_out = left_out_of(scene.containers, (address for address, _ in known), request)
    containers = [facts for name, facts in scene.containers.items() if name not in left_out]
    return Scope(containers, [(address, one) for address, one in known if address.container not in left_out])


def _user() -> str:
    """Who it was: the one who became root by sudo(8), else the name of this process's user, else its number."""
    import pwd

    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _digest(configuration: Configuration) -> str:
    """The same for all files that say the same."""
    import json

    from scplan.digest import sha256_hex

    text = json.dumps(configuration.to_json(), sort_keys=True, separators=(",", ":"))
    return f"sha256:{sha256_hex(text.encode())}"


def recover(request: Request, direction: Direction, on_event: OnEvent, tell: Callable[[str], None]) -> None:
    """Undo, or finish, what a crash left half done, and return to the host what containers that ended had of it.

    `tell` gets a line about each apply and each thing. Goes on after a failure, and raises all of them.
    """
    from scplan import recovery

    with Host() as host:
        asked = recovery.Recovery(State(request.state_dir, KINDS), KINDS, host, request.lock_timeout_s, on_event)
        try:
            recovery.recover(asked, direction, tell)
        finally:
            for line in bring_home(asked.state, host, request.lock_timeout_s):
                tell(line)


def accept_live(request: Request, tell: Callable[[str], None]) -> None:
    """Accept live state as the outcome of every apply that did not end; `tell` gets a line per difference.

    An apply that can still be confirmed is left alone. Goes on after a failure, and raises all of them.
    """
    from scplan import acceptance, confirmation, journal, recovery

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
