"""The import rule of docs/explanation/architecture.md, read from the code's imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "scplan"

RECORDS = {"planfile", "journal", "state", "snapshot"}
STAGES = {"observe", "apply", "rollback"}

# The table, row by row. Area → what it may import besides itself; an entry covers everything below it.
TABLE: dict[str, set[str]] = {
    "named_tuple": set(),
    "digest": set(),
    "ip_text": set(),
    "strict_json": set(),
    "errors": set(),
    "model": {"errors"},
    "linux": {"errors"},
    "runtimes": {"linux.container", "errors"},
    "kinds": {"model", "linux", "errors"},
    "yaml_source": {"errors"},
    **{name: {"model", "errors"} for name in RECORDS},
    **{name: {"model", "errors", "kinds.kind"} for name in ("config", "plan")},
    **{name: {"model", "errors", "kinds.kind", "journal", "state", "linux.container"} for name in STAGES},
    "render": {"model", "errors"},
    "cli": {"workflow", "render", "errors"},
}

# Modules that were split off those of the table: what they may import, and who may import them.
SPLIT_OFF: dict[str, set[str]] = {
    "records": {"errors", "linux.process"},  # how records are read and written
    "execute": TABLE["apply"] | {"linux.host"},  # one operation, as apply and rollback carry it out
    "recovery": TABLE["rollback"] | {"linux.host", "execute", "observe", "rollback", "confirmation"},
    "confirmation": {"model", "errors", "kinds.kind", "journal"},  # which journals await one
    # records follow live state where an apply can be neither undone nor finished
    "acceptance": TABLE["rollback"] | {"linux.host", "linux.signals", "linux.process", "observe"},
    "watchdog": TABLE["rollback"] | {"confirmation", "recovery", "records"},  # undoes what was not confirmed
    "history": {"model", "errors", "kinds.kind", "journal", "confirmation", "records"},
    "probes": {"model", "errors", "linux.programs"},
    "doctor": {"model", "errors", "linux"},
}

# Where the code took a better boundary than the table: each keeps the direction of the data.
BEYOND_THE_TABLE: dict[str, set[str]] = {
    **{name: {"records", "kinds.kind"} for name in RECORDS},  # the codec asks the kinds for the records' classes
    "journal": {"records", "kinds.kind", "linux.process"},  # whether who holds one lives
    "state": {"records", "kinds.kind", "linux.process"},
    "observe": {"linux.host"},  # the host's facts are observed beside the containers'
    # an apply that fails or is stopped is rolled back, and one may have to be confirmed
    "apply": {"execute", "rollback", "linux.signals", "confirmation"},
    "rollback": {"execute"},
    # an apply that is finished goes on where it was; what is taken back is not interrupted
    "recovery": {"apply", "linux.signals"},
    "config": {"yaml_source"},  # the values with places that it turns into resources
    # ContainerFacts; the things that a runtime puts into a container; how an engine's daemon is asked; and whether a
    # recorded process lives
    "runtimes": {"model.live", "model.provided", "linux.local_socket", "linux.process"},
    "cli": {"model"},  # the types of what workflow returns and render takes
}
# in place of what would take too long to import, or believe too much
EVERYWHERE = {"named_tuple", "digest", "strict_json", "ip_text"}
MAY_IMPORT = {
    area: TABLE.get(area, set()) | SPLIT_OFF.get(area, set()) | BEYOND_THE_TABLE.get(area, set())
    for area in TABLE.keys() | SPLIT_OFF.keys()
}
# These may import everything but what is named.
MAY_NOT_IMPORT: dict[str, set[str]] = {area: {"cli", "render"} for area in ("workflow", "hooks", "watch")}
# The way in: it tells the hook and --version apart before anything heavy is imported.
ENTRY = {"", "__main__"}

# Heavy or low-level modules, and the only places that may import them.
OWNERS: dict[str, tuple[str, ...]] = {
    "ctypes": ("linux",),
    "fcntl": ("linux", "state", "journal", "watchdog"),  # locks on scplan's own files
    "termios": ("linux",),
    "rich": ("render.text",),
    "typer": ("cli.typer_app",),
    "click": (),
    "yaml": ("yaml_source",),
    "pyroute2": ("linux.netlink.rare",),
    "subprocess": ("linux.programs",),
    "multiprocessing": (),
    "pty": (),
}
# Too heavy for start-up: imported in the function that needs them, never at the top of a module but of those named.
SELF_LAZY = {"render.text", "cli.typer_app"}  # themselves imported only to print to people
LAZY = ("hashlib", "typer", "inspect", "deepdiff", "pyroute2", "rich", "tempfile", "argparse", "asyncio", "jsonschema")


@dataclass(frozen=True)
class Import:
    """`module` is dotted; `top` tells whether it is imported whenever the file is."""

    importer: str
    module: str
    line: int
    top: bool

    def __str__(self) -> str:
        return f"scplan/{self.importer.replace('.', '/') or '__init__'}:{self.line} imports {self.module}"


def imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        tree = ast.parse(path.read_text(), str(path))
        yield from _imports_of(name, path.name == "__init__.py", tree, top=True)


def _imports_of(name: str, is_package: bool, tree: ast.AST, *, top: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(name, module, node.lineno, top) for module in _modules(name, is_package, node))
        else:
            inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports_of(name, is_package, node, top=top and not inner and not _for_types_only(node))


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _modules(name: str, is_package: bool, node: ast.ImportFrom) -> Iterator[str]:
    """The modules that a from-import names: `from scplan import errors` is scplan.errors."""
    base = node.module or ""
    if node.level:
        package = ["scplan", *name.split(".")] if name else ["scplan"]
        ups = node.level - (1 if is_package else 0)
        base = ".".join([*package[: len(package) - ups], *([base] if base else [])])
    for alias in node.names:
        path = CHECKOUT.joinpath(*base.split("."))
        is_module = base.startswith("scplan") and ((path / alias.name).is_dir() or (path / f"{alias.name}.py").exists())
        yield f"{base}.{alias.name}" if is_module else base


ALL = list(imports())


def _below(module: str, places: tuple[str, ...] | set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _area(module: str) -> str:
    """The row of the table that a module belongs to: that of plan for plan_order, which was split off it."""
    first = module.split(".")[0]
    known = MAY_IMPORT.keys() | MAY_NOT_IMPORT.keys()
    return first if first in known or first.split("_")[0] not in known else first.split("_")[0]


def _is_allowed(found: Import) -> bool:
    area = _area(found.importer)
    module = found.module.removeprefix("scplan").lstrip(".")
    if found.importer in ENTRY or module == "" or _area(module) == area:
        return True
    if area in MAY_NOT_IMPORT:
        return not _below(module, MAY_NOT_IMPORT[area])
    return _below(module, MAY_IMPORT.get(area, set()) | EVERYWHERE)


def test_every_module_is_in_the_table() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    areas = {_area(name) for name in names} - {"__init__", "__main__"}
    assert areas - MAY_IMPORT.keys() - MAY_NOT_IMPORT.keys() == set()


def test_every_exception_is_needed() -> None:
    inside = [(_area(found.importer), found.module.removeprefix("scplan.")) for found in ALL]
    for area, modules in BEYOND_THE_TABLE.items():
        for module in modules:
            assert any(one == area and _below(other, {module}) for one, other in inside), f"{area} → {module}"


def test_imports_follow_the_table() -> None:
    inside = [found for found in ALL if found.module.split(".")[0] == "scplan"]
    assert [str(found) for found in inside if not _is_allowed(found)] == []


@pytest.mark.parametrize("module", OWNERS)
def test_module_is_imported_by_its_owners_only(module: str) -> None:
    found = [one for one in ALL if _below(one.module, (module,))]
    assert [str(one) for one in found if not _below(one.importer, OWNERS[module])] == []


def test_netlink_sockets_are_opened_in_linux_only() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "linux" not in path.relative_to(PACKAGE).parts:
            assert "AF_NETLINK" not in path.read_text(), path


@pytest.mark.parametrize("module", LAZY)
def test_heavy_module_is_imported_where_it_is_needed(module: str) -> None:
    found = [one for one in ALL if one.top and _below(one.module, (module,))]
    assert [str(one) for one in found if one.importer not in SELF_LAZY] == []


def test_package_itself_imports_nothing() -> None:
    assert [str(found) for found in ALL if found.importer == "" and found.module != "__future__"] == []


def test_only_workflow_hooks_and_watch_read_the_registries() -> None:
    registries = ("scplan.kinds", "scplan.runtimes")
    found = [one for one in ALL if one.module in registries and one.importer.split(".")[0] not in ("kinds", "runtimes")]
    assert [str(one) for one in found if one.importer.split(".")[0] not in ("workflow", "hooks", "watch")] == []


def test_modules_postpone_annotations() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        if len(tree.body) > 1 and path.parent != PACKAGE:
            assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body), path
