"""A configuration as YAML that people go on with: an entry a line, and what is left out as comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from scplan.model.report import Imported
from scplan.render.lines import visible

_PLAIN = re.compile(r"[A-Za-z0-9/._][A-Za-z0-9/._-]*", re.ASCII)
_NULLS = ("null", "~")


def configuration_text(imported: Imported) -> str:
    """The document with its remarks; `scplan validate` finds nothing wrong with it."""
    return "\n".join(_lines(imported)) + "\n"


def configuration_document(imported: Imported) -> dict[str, Any]:
    """The same as JSON, which YAML contains: what is left out is under a key that configurations ignore."""
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
    """Plain where no reader can take it for something else; else with double quotes, in which all can be escaped."""
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
            yield f"\\U{ord(char):08X}"
