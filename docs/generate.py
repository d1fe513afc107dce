"""Writes the reference pages and schemas that come from the code: `python -m docs.generate`, or `make docs`.

tests/unit/test_docs.py fails when a committed page is not what this writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs import engines
from scplan.cli import typer_app
from scplan.cli.app import COMMANDS
from scplan.cli.parameters import Settings
from scplan.config.schema import configuration_schema
from scplan.kinds import KINDS
from scplan.kinds.cgroup import SETTINGS
from scplan.kinds.kind import Kind
from scplan.model.resource import CONFIGURABLE, Attribute, Attributes, Role
from scplan.runtimes import RUNTIMES

CHECKOUT = Path(__file__).parents[1]
_NOTE = "<!-- Written by docs/generate.py from the code; changes made here are lost. -->\n"
_CHANGES = {
    Role.IDENTITY: "another resource",
    Role.MANAGED: "in place",
    Role.FIXED: "replaces",
    Role.REFERENCE: "replaces, when it is another file or device",
    Role.POLICY: "nothing in the container",
}


def pages() -> dict[str, str]:
    """Text of every generated file, by its path in the checkout."""
    schema = configuration_schema(KINDS)
    return {
        "docs/reference/configuration.md": _configuration(schema),
        "docs/reference/configuration.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        "docs/reference/commands.md": _commands(),
        "docs/reference/compared.md": _compared(),
        "docs/reference/engines.md": _engines(),
        "state/schemas/1.0/resources.schema.json": json.dumps(_resources(), indent=2, ensure_ascii=False) + "\n",
    }


# engines


def _engines() -> str:
    outcomes = engines.results()
    lines = [f"# Engines and cases\n\n{_NOTE}", _ENGINES_HEAD]
    lines.append("| case | " + " | ".join(f"`{engine}`" for engine in engines.ENGINES) + " |")
    lines.append("|---" * (len(engines.ENGINES) + 1) + "|")
    for case in engines.CASES:
        cells = (engines.cell(case, engine, outcomes) for engine in engines.ENGINES)
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    lines.append("\n## The tests\n")
    lines += (f"- {test}: {outcomes.get(test, 'not run')}" for test in engines.tests())
    return "\n".join(lines) + "\n"


_ENGINES_HEAD = """\
The outcome of the last run of each test that tries a case with an engine. `python -m docs.engines REPORT` takes them
from a report of pytest (`--junitxml`) into `docs/reference/engines.json`. "(files)": tried on files and answers as that
engine writes them, without the engine; for isulad that is true of the whole column, since its daemon does not run in
the tests, and for rootless podman, whose namespaces the test makes by itself. "no test of the suite tries it" is a gap,
and no claim either way.
"""


# configuration


def _configuration(schema: Mapping[str, Any]) -> str:
    parts = [f"# Configuration\n\n{_NOTE}", _CONFIGURATION_HEAD]
    parts.append(_keys("## The file\n", schema["properties"]))
    container = schema["$defs"]["container"]["properties"]
    sections = {kind.section for kind in KINDS.values()}
    working = ", ".join(f"`{name}`" for name in RUNTIMES)
    parts.append(
        _keys(
            _CONTAINER_HEAD.format(working=working),
            {name: one for name, one in container.items() if name not in sections},
        )
    )
    parts += [_section(kind) for kind in KINDS.values()]
    return "\n".join(parts)


def _keys(head: str, properties: Mapping[str, Any]) -> str:
    rows = "".join(f"| `{name}` | {_cell(one.get('description', ''))} |\n" for name, one in properties.items())
    return f"{head}\n| key | what it is |\n|---|---|\n{rows}"


def _section(kind: Kind[Any]) -> str:
    title = f"## `{kind.section}:`\n\n{_first_line(kind.record)}\n"
    if kind.section_form == "mapping":
        rows = "".join(f"| `{name}` | {setting.controller} |\n" for name, setting in SETTINGS.items())
        return f"{title}\n{_CGROUP_HEAD}\n| setting | controller |\n|---|---|\n{rows}"
    short = kind.parse_short.__doc__ if type(kind).parse_short is not Kind.parse_short else None
    form = f"\nShort form: {short.strip().splitlines()[0]}\n" if short else "\nAn entry is a mapping.\n"
    head = "| attribute | value | default | changing it | what it is |\n|---|---|---|---|---|\n"
    return f"{title}{form}\n{head}{''.join(_rows(kind.record, ''))}"


# what is compared


def _compared() -> str:
    parts = [f"# What is compared\n\n{_NOTE}", _COMPARED_HEAD]
    for kind in KINDS.values():
        rows = "".join(_compared_rows(kind.record, ""))
        parts.append(f"## `{kind.section}:`\n\n| attribute | compared | what it is |\n|---|---|---|\n{rows}")
    return "\n".join(parts) + f"\n{_COMPARED_TAIL}"


def _compared_rows(record: type[Attributes], prefix: str) -> Iterator[str]:
    for attribute in record.attributes():
        if attribute.record is not None:
            yield from _compared_rows(attribute.record, f"{prefix}{attribute.name}.")
        elif words := _compared_words(attribute):
            yield f"| `{prefix}{attribute.name}` | {words} | {_cell(attribute.doc)} |\n"


def _compared_words(attribute: Attribute) -> str:
    """When live state is compared with an attribute; "" for one that records alone have."""
    match attribute.role:
        case Role.IDENTITY:
            return "always: it is the address"
        case Role.MANAGED | Role.FIXED if attribute.many:
            return "those that are written; others stay"
        case Role.MANAGED | Role.FIXED:
            return "where it is written" if attribute.default is None else "always"
        case Role.REFERENCE:
            return "by the file or device that it leads to"
        case Role.RESOLVED:
            return "always; found on the host"
        case Role.PROMISED:
            return "as scplan set it, or took it over, where the files say nothing"
        case Role.POLICY:
            return "never; it steers scplan"
    return ""


def _rows(record: type[Attributes], prefix: str) -> Iterator[str]:
    for attribute in record.attributes():
        if attribute.role not in CONFIGURABLE:
            continue
        name = f"`{prefix}{attribute.name}`" + "".join(f", `{alias}`" for alias in attribute.aliases)
        if attribute.record is not None:
            yield f"| {name} | mapping | | | {_cell(attribute.doc)} |\n"
            yield from _rows(attribute.record, f"{prefix}{attribute.name}.")
            continue
        cells = [name, _value_words(attribute), _default_words(attribute), _CHANGES[attribute.role]]
        yield f"| {' | '.join([*cells, _cell(attribute.doc)])} |\n"


def _value_words(attribute: Attribute) -> str:
    assert attribute.type is not None
    schema = attribute.type.schema
    words = _enum_words(schema) if "enum" in schema else _type_words(schema)
    examples = attribute.examples or schema.get("examples")
    if isinstance(examples, list | tuple):
        words += f", such as {', '.join(f'`{example}`' for example in examples)}"
    return f"list: {words}" if attribute.many else words


def _enum_words(schema: Mapping[str, Any]) -> str:
    return ", ".join(f"`{word}`" for word in schema["enum"])


def _type_words(schema: Mapping[str, Any]) -> str:
    types = schema.get("type", "string")
    listed = [types] if isinstance(types, str) else [one for one in types if one != "null"]
    words = " or ".join({"string": "text", "integer": "number", "boolean": "true, false"}[one] for one in listed)
    if "minimum" in schema and "maximum" in schema:
        words += f" {schema['minimum']}…{schema['maximum']}"
    if schema.get("pattern") == "^/":
        words = "absolute path"
    if "maxLength" in schema:
        words += f", at most {schema['maxLength']} bytes"
    return words


def _default_words(attribute: Attribute) -> str:
    if attribute.required:
        return "required"
    default = attribute.default
    if default is None or default == "":
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _first_line(record: type[Attributes]) -> str:
    return (record.__doc__ or "").strip().splitlines()[0].partition(". ")[0].removesuffix(".") + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_COMPARED_HEAD = """\
A plan and `scplan drift` compare what an entry promises with the kernel: what is written, and what a creation sets by
a documented default. Everything else is not managed: it keeps its live value, and is no drift.
"""
_COMPARED_TAIL = """\
## What is not compared

- **Objects of others on the same resource**: addresses, routes, neighbours, qdiscs, filters and sysctls of a NIC that
  scplan did not set; mounts of others in a mount; rules for other devices; files next to a node. An operation that
  the kernel lets take them along restores them, and the plan says so.
- **Content**: of mounted files, of disks.
- **The cgroups inside a container's own**, and settings that no entry names.
- **A device's access beyond its `permissions`** where a rule for more devices allows it: the plan warns, and `scplan
  show` names it.
- **ACLs, extended attributes and times of nodes and directories**: remembered for an undo.
- **What the host has for others**: ports, addresses and MTU of its bridges, its routes and mounts.

What could not be read is an error of the report, and hides nothing else; see [what
fails](../explanation/failure-modes.md).
"""
_CONFIGURATION_HEAD = """\
One or more YAML files. Every error in them is reported at once, with file, line and column; `scplan validate` looks at
the files alone. `scplan schema` prints the JSON Schema of a file, which is also kept
[here](configuration.schema.json) for editors.

- `-f` takes files and directories (every `*.yaml` and `*.yml` in them, sorted, not hidden), and repeats; `-` is
  standard input. Without it: `scplan.yaml`, else `scplan.d/`, in the working directory.
- Unknown keys are errors. Keys that begin with `x-` are ignored: a place for YAML anchors.
- **An attribute that is not written is not managed**: it keeps the value that it has, and never counts as a difference.
  "Default" below is what a *new* resource gets. One that was written, applied and then taken out of the file goes back
  to what it was before, where scplan remembers that, else to what a new resource gets. The `via` of a route is managed
  all the same: without one there is no next hop.
- Sizes are 1024-based: `10m`, `10mb`, `10MiB` and `10485760` are the same.
- Profiles are fragments of containers. A container's own entry wins over one of the same identity in its profiles, a
  later profile wins over an earlier one. A container that is in two files gets the entries of both; the same identity
  twice in one place is an error.

"Changing it" says what a changed value does to a resource that is there: it is changed in place, or taken out and made
again, or it only steers scplan.

The [examples](../../examples/) show every attribute in use: [full.yaml](../../examples/full.yaml) first.
"""
_CONTAINER_HEAD = (
    "## A container\n\nUnder `containers:`, by its name or unique ID prefix. Profiles take the sections alone.\n"
)
_CGROUP_HEAD = """\
A mapping of the names of cgroup v2 files to values, written as cgroup v2 writes them. On cgroup v1 scplan writes the
equivalent file of the controller. The value that was there before is remembered, and given back when the entry goes.

An entry can be a mapping of its own: `memory.max: {value: 2GiB, required: false}`. With `required: false` a setting
that the kernel would refuse is a warning, in a plan and at a start, and all else goes on. A limit of the runtime that
stands against a setting when the container starts (`docker update --memory` below `memory.max`) is always a warning
there: the start goes on with the runtime's limit, which is the lower one, and the next plan refuses the setting with
the reason.

Settings that depend on each other are set and returned together, as the kernel's own files: `cpu.weight` and
`cpu.idle`, `memory.max` and `memory.swap.max`, the quota and the period of `cpu.max`. On cgroup v1:

- `memory.swap.max` is swap alone, as on v2: the kernel's limit of memory+swap is `memory.max` plus `memory.swap.max`.
  A `memory.max` above the memory+swap limit that a runtime set is refused by the plan, unless `memory.swap.max` is
  written, too.
- `cpu.weight` is not in force while the cgroup is idle. Next to `cpu.idle: 1` it is kept for later; without, an idle
  cgroup is drift. Between two weights there are some 26 `cpu.shares`: a value in between is shown as `cpu.shares 1000`,
  differs from every weight, and returns exactly.
- CPUs and memory nodes that the parent cgroup does not have, or that a cgroup inside the container's needs, are refused
  by the plan; so is a `cpu.max` above the parent's share or below a child's.
"""


# commands


def _commands() -> str:
    parts = [f"# Commands\n\n{_NOTE}", _COMMANDS_HEAD]
    for path, command in commands().items():
        parts.append(_command(path, command))
    return "\n".join(parts)


def commands() -> dict[str, Any]:
    """Every command by its path, `state list`; groups before their members."""
    root = typer_app.build(COMMANDS)
    with root.make_context("scplan", [], obj=Settings(), resilient_parsing=True) as context:
        return dict(_walk(root, context, ""))


def _walk(group: Any, context: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield f"{prefix}{name}", command
        if hasattr(command, "list_commands"):
            yield from _walk(command, context, f"{prefix}{name} ")


def _command(path: str, command: Any) -> str:
    text = "\n\n".join(" ".join(block.split()) for block in (command.help or "").split("\n\n"))
    own = [
        param for param in command.params if param.name not in typer_app.SHARED and not getattr(param, "hidden", False)
    ]
    arguments = [param for param in own if param.param_type_name == "argument"]
    options = [param for param in own if param.param_type_name == "option" and param.name != "help"]
    words = ["scplan", path, *(str(argument.metavar) for argument in arguments), *(["[OPTIONS]"] if options else [])]
    if hasattr(command, "list_commands"):
        words.append("COMMAND")
    parts = [f"## {path}\n\n{text}\n\n```text\n{' '.join(words)}\n```\n"]
    if own:
        rows = "".join(f"| {_param_words(param)} | {_cell(param.help or '')} |\n" for param in arguments + options)
        parts.append(f"| argument or option | what it does |\n|---|---|\n{rows}")
    examples = (command.epilog or "").partition("Examples:\n")[2]
    if examples:
        parts.append("```console\n" + "".join(f"$ {row.strip()}\n" for row in examples.splitlines()) + "```\n")
    return "\n".join(parts)


def _param_words(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar}`"
    metavar = "" if param.is_flag else f" {param.metavar}"
    return ", ".join(f"`{option}{metavar}`" for option in param.opts)


_COMMANDS_HEAD = """\
Results go to standard output, messages and progress to standard error. `--json` prints one JSON document (`apply` and
`destroy`: a JSON object a line) and nothing else; [json.md](json.md) lists the keys. Colour and progress appear on a
terminal only, and `NO_COLOR` is honoured. [Exit codes](exit-codes.md) tell programs how it went.

Every command also takes:

| option | what it does |
|---|---|
| `--state-dir DIR` | Where scplan keeps its records. Default: `$SCPLAN_STATE_DIR`, else see below. |
| `--version` | Print the version. |
| `--help` | Print what the command takes. |

Records are kept in `/var/lib/scplan` for root, in `$XDG_STATE_HOME/scplan` (`~/.local/state/scplan`) for others.

`scplan --install-completion` teaches your shell to complete commands and options. `SCPLAN_DEBUG=1` adds a traceback to
every error, for reports of bugs.
"""


# formats


def _resources() -> dict[str, Any]:
    """Resources as records, journals, plans and snapshots hold them."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:scplan:1.0:resources",
        "title": "resources of scplan, by kind",
        "description": "Unset attributes are left out. Readers ignore keys that they do not know.",
        "$defs": {kind.name: _stored(kind.record) for kind in KINDS.values()},
    }


def _stored(record: type[Attributes]) -> dict[str, Any]:
    required = record.layout.required
    properties = {attribute.name: _stored_value(attribute) for attribute in record.attributes()}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _stored_value(attribute: Attribute) -> dict[str, Any]:
    if attribute.record is not None:
        return {"description": attribute.doc, **_stored(attribute.record)}
    assert attribute.type is not None
    one = {"type": {str: "string", int: "integer", bool: "boolean"}[attribute.type.stored]}
    value = {"type": "array", "items": one} if attribute.many else one
    return {"description": attribute.doc, **value}


def main() -> None:
    """Writes every generated file."""
    for path, text in pages().items():
        target = CHECKOUT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            print(f"written: {path}")


if __name__ == "__main__":
    main()
