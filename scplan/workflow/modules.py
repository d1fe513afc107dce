"""Kernel modules that containers need: shown in plans, loaded before an apply, recorded for the next start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from scplan.errors import Diagnostic, PlanError, Severity
from scplan.linux import modules as kernel_modules
from scplan.model.change import Plan
from scplan.store.state import State
from scplan.workflow.scene import Scene


def asked_modules(scene: Scene) -> dict[str, tuple[str, ...]]:
    """Modules that the files name, by the runtime's name of the container; none without files."""
    if scene.configuration is None:
        return {}
    configs = scene.configuration.containers
    return {name: configs[scene.written_as[name]].modules for name in scene.containers if name in scene.written_as}


def new_modules(scene: Scene, state: State, made: Plan) -> dict[str, tuple[str, ...]]:
    """Modules of containers whose records are to be written with other modules than now."""
    changing = {operation.address.container for operation in made.operations}
    new = {}
    for name, modules in asked_modules(scene).items():
        facts = scene.containers[name]
        record = state.read(facts.runtime, name) if modules or name in changing else None
        if (modules and name in changing) or (record is not None and record.modules != modules):
            new[name] = modules
    return new


def load_modules(scene: Scene, made: Plan, new: Mapping[str, tuple[str, ...]]) -> None:
    """Load missing modules of containers that get resources. Raises ScplanError before anything else is changed."""
    growing = _growing(made) | new.keys()
    asked = asked_modules(scene)
    kernel_modules.load(name for container in asked if container in growing for name in asked[container])


def notices(scene: Scene, made: Plan) -> list[Diagnostic]:
    """A notice per module that an apply of the plan would load first."""
    growing = _growing(made)
    return [
        Diagnostic(summary=f"loads kernel module {name} first", detail=container, severity=Severity.NOTICE)
        for container, names in asked_modules(scene).items()
        if container in growing
        for name in kernel_modules.missing(names)
    ]


def _growing(made: Plan) -> set[str]:
    """Names of the containers in which the plan creates, updates or adopts a resource."""
    return {operation.address.container for operation in made.operations if operation.after is not None}


@contextmanager
def missing_said(scene: Scene) -> Iterator[None]:
    """Add a notice about modules that are not loaded to a PlanError: they may provide an absent source."""
    try:
        yield
    except PlanError as error:
        absent = kernel_modules.missing(name for names in asked_modules(scene).values() for name in names)
        if absent:
            said = Diagnostic(
                summary=f"not loaded yet: {', '.join(absent)}",
                detail="kernel modules that the configuration names; an apply loads them once it can be planned",
                hint=f"what is missing may come with them: modprobe -a {' '.join(absent)}, then plan again",
                severity=Severity.NOTICE,
            )
            error.diagnostics = (*error.diagnostics, said)
        raise
