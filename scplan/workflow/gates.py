"""Limits on plans: a plan that exceeds a limit is refused before the user is asked."""

from __future__ import annotations

from scplan.errors import Diagnostic, Refused
from scplan.model.change import Change, Disruption, Plan

_RANKS = {Disruption.NONE: 0, Disruption.BRIEF: 1, Disruption.RECREATE: 2}
_WORDS = {Disruption.BRIEF: "it is interrupted for a moment", Disruption.RECREATE: "it is made again"}


def refuse_disruption(plan: Plan, most: Disruption | None) -> None:
    """Raises Refused, with each such change, if changes interrupt more than `most`. None: no limit.

    A change with irrecoverable losses exceeds every limit. A change that waits for the container's next start
    interrupts nothing.
    """
    if most is None:
        return
    found = [_finding(change, most) for change in plan.changes if _exceeds(change, most)]
    if found:
        raise Refused.of(found)


def _exceeds(change: Change, most: Disruption) -> bool:
    if change.lost:
        return True
    return not change.at_next_start and _RANKS[change.disruption] > _RANKS[most]


def _finding(change: Change, most: Disruption) -> Diagnostic:
    if change.lost:
        why = f"what can't be brought back goes with it: {', '.join(change.lost)}"
    else:
        why = change.effect or _WORDS[change.disruption]
    return Diagnostic(
        summary=f"{change.address} exceeds --max-disruption {most}",
        detail=f"change {change.order}: {why}",
        hint=f"leave it out (--exclude '{change.address}'), or do it in a maintenance window without the limit",
    )
