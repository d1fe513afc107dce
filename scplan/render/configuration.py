"""An imported configuration as YAML, to be edited by people: one entry per line, omitted resources as comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from scplan.model.report import Imported
from scplan.render.lines import visible

_PLAIN = re.compile(r"[A-Za-z0-9/._][A-Za-z0-9/._-]*", re.ASCII)
_NULLS = ("null", "~")


def configuration_text(imported: Imported) -> str:
    """The configuration as YAML text that `scplan validate` accepts, with comments for omitted resources."""
    return "\n".join(_lines(imported)) + "\n"


def configuration_document(imported: Imported) -> dict[str, Any]:
    """The configuration as JSON, which is YAML, too. Omitted resources are in a key that configurations ignore."""
    left_out = [{"section": section, "what": what, "why": why} for section, what, why in imported.left_out]
    return {**imported.document, "x-left-out": left_out}


def _lines(imported: Imported) -> Iterator[str]:
    facts = imported.facts
    yield f"# What container {visible(facts.name)} ({facts.runtime}) had when it was imported."
    yield f"version: {imported.document['version']}"
    yield "containers:"
    for name, container in imported.document["containers"].items():
        yield f"  {_scalar(name)}:"
        about_it = [key for key in container if key not in imported.sections]
        for section in (*about_it, *imported.sections):
            yield from _section(section, container.get(section), imported)


def _section(section: str, entries: Any, imported: Imported) -> Iterator[str]:
    if isinstance(entries, list):
        yield f"    {section}:"
        yield from (f"      - {_flow(entry)}" for entry in entries)
    elif isinstance(entries, dict):
        yield f"    {section}:"
        yield from (f"      {_scalar(name)}: {_flow(value)}" for name, value in entries.items())
    elif entries is not None:
        yield f"    {section}: {_flow(entries)}"
    for of_section, what, why in imported.left_out:
        if of_section == section:
            yield f"    # {section}, left out: {visible(what)}: {visible(why)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_flow(one)}' for name, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _scalar(value) if isinstance(value, str) else str(value)


def _scalar(text: str) -> str:
    """A text as a YAML scalar: plain if it has only harmless characters, else in double quotes with escapes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NULLS:
        return text
    return f'"{"".join(_escaped(text))}"'


def _escaped(text: Iterable[str]) -> Iterator[str]:
    for char in text:
        if char in '"\\':
            yield f"\\{char}"
        elif char.isprintable():
            yield char
        else:
            # An escape of double-quoted scalars. YAML 1.2.2, 5.7.
            yield f"\\U{ord(char):08X}"
