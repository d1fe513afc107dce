"""A plan as Markdown, for comments that CI writes: tables of changes, and the values in folded blocks."""

from __future__ import annotations

import json
import re

from scplan.model.change import Change, Plan
from scplan.model.plan_json import change_to_json
from scplan.render.diagnostics import diagnostic_lines
from scplan.render.lines import plain, visible
from scplan.render.words import (
    SYMBOLS,
    change_words,
    container_words,
    effect_words,
    module_words,
    plan_summary_words,
    probe_words,
    resource_name,
    side_effect_words,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~@&])")
# GitHub takes @name for a mention even after a backslash; an empty HTML comment between "@" and the name prevents it.
_HARMLESS = {"&": "&amp;", "<": "&lt;", "@": "@<!-- -->"}


def plan_markdown(plan: Plan) -> str:
    """The plan as GitHub-flavoured Markdown: summary, a table per container, warnings, values before and after."""
    parts = [f"**{plan_summary_words(plan)}**\n"]
    for container, changes in plan.by_container():
        name, rest = container_words(container, plan.containers.get(container))
        parts.append(f"### {_code(name)} {_text(rest)}".rstrip() + "\n\n" + _table(changes))
    if orders := _orders(plan):
        parts.append(orders)
    if plan.diagnostics:
        parts.append(_folded("Warnings", _block("", plain(diagnostic_lines(plan.diagnostics)))))
    if plan.changes:
        parts.append(_folded("Before and after", "\n".join(_values(change) for change in plan.changes)))
    return "\n".join(parts)


def _table(changes: list[Change]) -> str:
    rows = ["| # | | resource | change | interrupts |\n|--:|:-:|---|---|---|\n"]
    for change in changes:
        cells = [
            str(change.order),
            f"`{SYMBOLS[change.action]}`",
            _code(resource_name(change.address, change.after or change.before)),
            _code(change_words(change)),
            "<br>".join(_text(text) for text in (effect_words(change), *side_effect_words(change)) if text),
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)


def _orders(plan: Plan) -> str:
    """A list of the kernel modules that an apply records and the probes that it runs; "" if there are none."""
    texts = [module_words(name, names) for name, names in plan.new_modules.items()]
    if plan.has_changes:
        texts += [probe_words(probe) for probe in plan.probes]
    return "".join(f"- {_text(text)}\n" for text in texts)


def _values(change: Change) -> str:
    document = change_to_json(change)
    values = {side: document[side] for side in ("before", "after")}
    title = f"{_code(visible(str(change.address)))} {change.action}: {_text(visible(change.reason))}"
    return f"**{change.order}.** {title}\n\n{_block('json', json.dumps(values, indent=2) + chr(10))}"


def _block(language: str, text: str) -> str:
    # The fence is longer than any run of backquotes in the text, so that no value can end the block.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text}{fence}\n"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n</details>\n"


def _code(text: str) -> str:
    """`text` as a code span for a table cell. Markup, links and mentions in a code span have no effect."""
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def _text(text: str) -> str:
    """`text` with escapes for Markdown, HTML and mentions: names come from containers and may have any characters."""
    return _SPECIAL.sub(lambda match: _HARMLESS.get(match[1], f"\\{match[1]}"), text)
