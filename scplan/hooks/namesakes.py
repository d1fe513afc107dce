"""A container that was made again under its name: its records are about the one before, and it starts without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scplan.errors import ScplanError
from scplan.hooks.state import Told
from scplan.kinds import KINDS
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes import RUNTIMES
from scplan.state import State
from scplan.workflow.recorded import is_about, replaced


def lines(told: Told, named: Mapping[str, Sequence[str]], state_dir: str) -> list[str]:
    """A line about each record that has the starting container's name; `named` are the names of records by runtime."""
    state = State(state_dir, KINDS)
    return [line for runtime, names in named.items() for line in _lines(told, runtime, names, state)]


def _lines(told: Told, runtime: str, names: Sequence[str], state: State) -> list[str]:
    """Never an error: nothing of the records is for this container, which starts as it would without scplan."""
    try:
        name = RUNTIMES[runtime].name_of(told.id, told.bundle)
        record = state.read(runtime, name) if name in names else None
    except ScplanError as error:
        return [
            f"container {told.id}: not known whether {runtime} has records for its name: {error.diagnostics[0].line}"
        ]
    facts = ContainerFacts(name, runtime, told.id, Status.RUNNING)
    if record is None or is_about(record.id, record.place, facts):
        return []
    return [f"{replaced(record, facts).diagnostics[0].line}; it starts without what is recorded"]
