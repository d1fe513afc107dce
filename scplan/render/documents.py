"""Results of commands as styled lines for people: plans, events, drift, owned resources, findings of `doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scplan.model.change import Action, Change, Disruption, Plan
from scplan.model.comparison import differences
from scplan.model.live import ContainerFacts
from scplan.model.report import (
    Drifted,
    DriftReport,
    Ended,
    Event,
    Finding,
    GoingBack,
    Moved,
    Outcome,
    Owned,
    Past,
    Probed,
    Step,
    Support,
)
from scplan.model.resource import Resource
from scplan.render.lines import Line, Style, columns, line, visible
from scplan.render.words import (
    AT_NEXT_START,
    SYMBOLS,
    change_words,
    container_words,
    counted,
    difference_words,
    duration_words,
    effect_words,
    module_words,
    moment_words,
    plan_summary_words,
    probe_words,
    resource_name,
    resource_words,
    side_effect_words,
)

_NAME_WIDTH, _WORDS_WIDTH = 30, 37
STYLES: Mapping[Action, Style] = {
    Action.CREATE: "create",
    Action.UPDATE: "update",
    Action.REPLACE: "replace",
    Action.DELETE: "delete",
    Action.ADOPT: "adopt",
    Action.RELEASE: "adopt",
}
_SUPPORT: Mapping[Support, tuple[str, Style]] = {
    Support.YES: ("yes", "good"),
    Support.NO: ("no", "error"),
    Support.UNKNOWN: ("unknown", "warning"),
}
_ENDED: Mapping[Ended, Style] = {
    Ended.COMMITTED: "good",
    Ended.ROLLED_BACK: "warning",
    Ended.UNDONE: "faint",
    Ended.AWAITING: "warning",
    Ended.RUNNING: "plain",
    Ended.NEEDS_RECOVERY: "error",
    Ended.UNREADABLE: "error",
}
RUNNING = frozenset({Step.STARTED, Step.UNDOING})
"""Steps that have begun and not ended."""
_UNDOING = frozenset({Step.UNDOING, Step.UNDONE, Step.UNDO_FAILED})


def plan_lines(plan: Plan) -> list[Line]:
    """The changes by container, in the order of execution, and the summary. Without the plan's warnings."""
    lines = [*_changes(plan), *_orders(plan)]
    return [*lines, line((plan_summary_words(plan), "title"))]


def _orders(plan: Plan) -> list[Line]:
    """Lines for the kernel modules that an apply of the plan records, and the probes that it runs."""
    texts = [module_words(name, names) for name, names in plan.new_modules.items()]
    if plan.has_changes:
        texts += [probe_words(probe) for probe in plan.probes]
    return [*(line(text) for text in texts), []] if texts else []


def saved_plan_lines(plan: Plan) -> list[Line]:
    """A saved plan with everything on which its apply depends: `plan_lines`, and all kernel modules."""
    texts = [
        f"{visible(name)}: needs kernel modules {visible(', '.join(names))}" for name, names in plan.modules.items()
    ]
    return [*plan_lines(plan), *(line(text) for text in texts)]


def _changes(plan: Plan) -> list[Line]:
    digits = len(str(max((change.order for change in plan.changes), default=0)))
    rows = iter(columns([_change_row(change, digits) for change in plan.changes], (_NAME_WIDTH, _WORDS_WIDTH)))
    by_change = {id(change): row for change, row in zip(plan.changes, rows, strict=True)}
    lines: list[Line] = []
    for container, changes in plan.by_container():
        lines.append(_header(container, plan.containers.get(container)))
        for change in changes:
            lines.append(by_change[id(change)])
            lines += [line((f"  {' ' * digits}   {text}", "warning")) for text in side_effect_words(change)]
        lines.append([])
    return lines


def _header(container: str, facts: ContainerFacts | None) -> Line:
    name, rest = container_words(container, facts)
    return line((name, "title"), (f"  {rest}", "faint")) if rest else line((name, "title"))


def _change_row(change: Change, digits: int) -> list[Line]:
    name = resource_name(change.address, change.after or change.before)
    interrupts: Style = "warning" if change.disruption is not Disruption.NONE else "faint"
    return [
        line((f"  {change.order:>{digits}} ", "faint"), (f"{SYMBOLS[change.action]} {name}", STYLES[change.action])),
        line(change_words(change)),
        line((effect_words(change), interrupts)),
    ]


def event_line(event: Event | Probed | GoingBack) -> Line:
    """A line for a step or probe that begins or has ended: `  2/4 ~ nic eth1  done in 0.02 s`."""
    if isinstance(event, GoingBack):
        count = counted(event.operations, "operation")
        return line((f"{visible(event.reason)}: undoing {count} …", "warning"))
    if isinstance(event, Probed):
        return _probe_line(event)
    operation = event.operation
    digits = len(str(event.total))
    resource = resource_name(operation.address, operation.after or operation.before)
    name = f"{visible(operation.address.container)}: {resource}"
    return line(
        (f"  {event.number:>{digits}}/{event.total} ", "faint"),
        (f"{_event_symbol(event)} {name}", STYLES[operation.action]),
        "  ",
        _event_ending(event),
    )


def _probe_line(event: Probed) -> Line:
    endings: Mapping[Step, tuple[str, Style]] = {
        Step.STARTED: ("…", "faint"),
        Step.DONE: (f"passed in {event.seconds:.2f} s", "faint"),
        Step.FAILED: (f"failed: {visible(event.error)}", "error"),
    }
    number = f"  {event.number:>{len(str(event.total))}}/{event.total} "
    return line((number, "faint"), (f"? {visible(event.probe.command)}", "title"), "  ", endings[event.step])


def _event_symbol(event: Event) -> str:
    if event.step in _UNDOING:
        return "↶"
    return SYMBOLS[event.operation.action]


def _event_ending(event: Event) -> tuple[str, Style]:
    match event.step:
        case Step.STARTED:
            return "…", "faint"
        case Step.UNDOING:
            return "undoing …", "warning"
        case Step.DONE if event.operation.at_next_start and not event.operation.at_once:
            return "recorded, at next start", "faint"
        case Step.DONE:
            return f"done in {event.seconds:.2f} s", "faint"
        case Step.UNDONE:
            return f"undone in {event.seconds:.2f} s", "warning"
        case Step.FAILED:
            return f"failed: {visible(event.error)}", "error"
        case Step.UNDO_FAILED:
            return f"not undone: {visible(event.error)}", "error"


def outcome_lines(outcome: Outcome) -> list[Line]:
    """Summary of an apply: `Done: 1 added, 2 changed in 0.12 s.`"""
    done = {
        Action.CREATE: "added",
        Action.UPDATE: "changed",
        Action.REPLACE: "replaced",
        Action.DELETE: "removed",
        Action.ADOPT: "adopted",
        Action.RELEASE: "released",
    }
    parts = [f"{outcome.summary[action]} {word}" for action, word in done.items() if outcome.summary.get(action)]
    text = f"Done: {', '.join(parts) or 'nothing to change'} in {outcome.seconds:.2f} s"
    waiting = f", {outcome.at_next_start} of them at next start" if outcome.at_next_start else ""
    return [line((f"{text}{waiting}.", "good"))]


def awaiting_lines(outcome: Outcome) -> list[Line]:
    """Instructions to confirm the apply; empty for an apply that needs no confirmation."""
    if outcome.confirm_within_s is None:
        return []
    return [
        line((f"It is undone in {duration_words(outcome.confirm_within_s)}, unless you confirm it.", "warning")),
        line("  `scplan confirm` keeps it, `scplan undo` undoes it at once"),
    ]


def drift_lines(report: DriftReport) -> list[Line]:
    """Lines of a drift report: owned resources that differ from their records, then changes not applied yet."""
    lines = _drifted(report)
    if not report.pending.has_changes:
        return [*lines, line("Nothing pending in what could be planned." if report.problems else "Nothing pending.")]
    lines.append(line(("Pending: what the files ask for and is not applied.", "title")))
    return lines + plan_lines(report.pending)


def _drifted(report: DriftReport) -> list[Line]:
    checked = counted(report.checked, "owned resource")
    if report.problems and not report.checked:
        return [line("Nothing could be checked.")]
    if report.waiting:
        checked = f"{checked}, {len(report.waiting)} of them at next start,"
    if not report.drifted and report.problems:
        return [line(f"No drift in what could be read: {checked} checked.")]
    if not report.drifted:
        return [line((f"No drift. {checked} checked.", "good"))]
    lines = [line((f"Drift: {len(report.drifted)} of {checked} not as scplan left it.", "title"))]
    rows = iter(columns([_drifted_row(drifted) for drifted in report.drifted], (_NAME_WIDTH,)))
    container = None
    for drifted, row in zip(report.drifted, rows, strict=True):
        if drifted.address.container != container:
            container = drifted.address.container
            lines.append(_header(container, report.containers.get(container)))
        lines.append(row)
    return [*lines, []]


def _drifted_row(drifted: Drifted) -> list[Line]:
    name = resource_name(drifted.address, drifted.recorded)
    if drifted.live is None:
        return [line((f"  - {name}", "delete")), line("is gone")]
    return [
        line((f"  ~ {name}", "update")),
        line(difference_words(drifted.changed, drifted.recorded, drifted.live)),
    ]


def owned_lines(owned: Sequence[Owned]) -> list[Line]:
    """A table of owned resources: address, live state compared with the record, recorded attributes."""
    if not owned:
        return [line("scplan owns nothing here.")]
    rows = [[line(("RESOURCE", "faint")), line(("LIVE", "faint")), line(("AS RECORDED", "faint"))]]
    rows += [
        [line(visible(str(one.address))), line(owned_state(one)), line(resource_words(one.recorded))] for one in owned
    ]
    return columns(rows)


def owned_state(owned: Owned) -> tuple[str, Style]:
    """Live state of an owned resource: `as recorded`, `gone`, `at next start`, the differences, or a read error."""
    if owned.problem:
        return visible(owned.problem), "warning"
    if owned.at_next_start:
        return AT_NEXT_START, "plain"
    if owned.live is None:
        return "gone", "error"
    changed = differences(owned.recorded, owned.live)
    if changed:
        return difference_words(changed, owned.recorded, owned.live), "warning"
    if remark := owned.live.remark():
        return visible(f"as recorded; {remark}"), "warning"
    return "as recorded", "good"


def moved_lines(moved: Moved) -> list[Line]:
    """The addresses of moved resources, and a summary with both containers."""
    target = f"{moved.target.name} ({moved.target.runtime}, {moved.target.id})"
    source = f"{moved.source} ({moved.source_id})"
    head = f"Moved: {counted(len(moved.addresses), 'resource')} of {source} to {target}."
    return [line(f"  {visible(str(new))}") for _, new in moved.addresses] + [line((visible(head), "good"))]


def record_lines(owned: Owned) -> list[Line]:
    """The record of one resource, one attribute per line."""
    container = f"{owned.address.container} ({owned.runtime}, {owned.container_id})"
    rows = [[line(("container", "faint")), line(visible(container))]]
    rows += [[line((path, "faint")), line(text)] for path, text in _shown(owned.recorded)]
    return [line((visible(str(owned.address)), "title")), *(line("  ", *row) for row in columns(rows))]


def _shown(resource: Resource) -> Iterable[tuple[str, str]]:
    for path, attribute, value in resource.leaves():
        if value is not None:
            yield path, visible(attribute.show(value))


def history_lines(history: Sequence[Past]) -> list[Line]:
    """A table of applies, newest first."""
    if not history:
        return [line("No apply yet.")]
    head: list[Line] = [line((word, "faint")) for word in ("APPLY", "TIME", "USER", "OUTCOME", "OPERATIONS", "COMMAND")]
    return columns([head, *(_past_row(past) for past in history)])


def _past_row(past: Past) -> list[Line]:
    when = moment_words(past.begun) if past.begun else ""
    user = past.user if past.uid in (None, 0) else f"{past.user} (uid {past.uid})"
    counts = ", ".join(f"{count} {action}" for action, count in past.counts.items() if count)
    command = " ".join(past.command) if past.command else ""
    return [
        line(visible(past.apply_id)),
        line(when),
        line(visible(user)),
        line((_ended_words(past), _ENDED[past.outcome])),
        line(counts),
        line(visible(command)),
    ]


def _ended_words(past: Past) -> str:
    words = str(past.outcome).replace("_", " ")
    if past.outcome is Ended.AWAITING:
        return f"{words} ({past.left_s:.0f} s left)"
    return visible(f"{words}: {past.reason or past.problem}" if past.reason or past.problem else words)


def address_lines(owned: Iterable[Owned]) -> list[Line]:
    """The addresses alone, one per line, for scripts."""
    return [line(visible(str(one.address))) for one in owned]


def doctor_lines(findings: Sequence[Finding]) -> list[Line]:
    """Findings by topic, in the given order. The line of a missing feature says what needs it."""
    rows = iter(columns([_finding_row(finding) for finding in findings]))
    lines: list[Line] = []
    topic = None
    for finding, row in zip(findings, rows, strict=True):
        if finding.topic != topic:
            lines += [[]] * bool(lines) + [line((visible(finding.topic), "title"))]
            topic = finding.topic
        lines.append(row)
    return lines


def _finding_row(finding: Finding) -> list[Line]:
    detail = visible(finding.detail)
    if finding.support is not Support.YES and finding.needed_for:
        needed = f"needed for {visible(finding.needed_for)}"
        detail = f"{detail}; {needed}" if detail else needed
    return [line(f"  {visible(finding.subject)}"), line(_SUPPORT[finding.support]), line(detail)]
