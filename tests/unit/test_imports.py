"""The import rule of docs/explanation/architecture.md, read from the code's imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "scplan"

# Package → what it may import besides itself; `kinds.kind` is that module alone. Each imports only
# what comes after it here. docs/explanation/architecture.md has the same table.
TABLE: dict[str, set[str]] = {
    "cli": {"hooks", "watch", "workflow", "render", "store", "model", "errors", "startup"},
    "hooks": {
        "workflow",
        "observe",
        "planning",
        "applying",
        "store",
        "kinds",
        "runtimes",
        "model",
        "linux",
        "errors",
        "startup",
    },
    "watch": {"workflow", "applying", "store", "kinds", "runtimes", "model", "linux", "errors", "startup"},
    "workflow": {
        "config",
        "planning",
        "applying",
        "observe",
        "store",
        "kinds",
        "runtimes",
        "model",
        "linux",
        "errors",
        "startup",
    },
    "config": {"kinds.kind", "model", "errors", "startup"},
    "planning": {"kinds.kind", "model", "errors", "startup"},
    "applying": {"observe", "store", "kinds.kind", "model", "linux", "errors", "startup"},
    "observe": {"kinds.kind", "model", "linux", "errors", "startup"},
    "store": {"kinds.kind", "model", "linux", "errors", "startup"},
    "render": {"model", "errors"},
    "kinds": {"model", "linux", "errors", "startup"},
    "runtimes": {"model", "linux", "errors", "startup"},
    "model": {"errors", "startup"},
    "linux": {"errors", "startup"},
    "errors": {"startup"},
    "startup": set(),
}
# The way in: it tells the hook and --version apart before anything heavy is imported.
ENTRY = {"", "__main__"}

# Heavy or low-level modules, and the only places that may import them.
OWNERS: dict[str, tuple[str, ...]] = {
    "ctypes": ("linux",),
    "fcntl": ("linux", "store.locks"),  # locks on scplan's own files
    "termios": ("linux",),
    "rich": ("render.text",),
    "typer": ("cli.typer_app",),
    "click": (),
    "yaml": ("config.yaml_source",),
    "pyroute2": ("linux.network.netlink.rare",),
    "subprocess": ("linux.processes.programs",),
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


def _room(module: str) -> str:
    """The package, or module beside the packages, that a dotted name below scplan is in."""
    return module.split(".")[0]


INSIDE = [
    (found, module)
    for found in ALL
    if found.module.split(".")[0] == "scplan" and (module := found.module.removeprefix("scplan").lstrip("."))
]


def _is_allowed(found: Import, module: str) -> bool:
    room = _room(found.importer)
    return found.importer in ENTRY or _room(module) == room or _below(module, TABLE[room])


def test_every_package_is_in_the_table() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__", "__main__"} == TABLE.keys()


def test_arrows_point_downwards() -> None:
    order = list(TABLE)
    upwards = [
        (room, other) for room in TABLE for other in TABLE[room] if order.index(_room(other)) <= order.index(room)
    ]
    assert upwards == []


def test_every_arrow_of_the_table_is_there() -> None:
    for room, others in TABLE.items():
        for other in others:
            assert any(_room(found.importer) == room and _below(module, {other}) for found, module in INSIDE), (
                f"{room} → {other}"
            )


def test_imports_follow_the_table() -> None:
    assert [str(found) for found, module in INSIDE if not _is_allowed(found, module)] == []


def test_the_table_is_that_of_the_docs() -> None:
    text = (CHECKOUT / "docs/explanation/architecture.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|$", text, re.MULTILINE)
    documented = {room: set(re.findall(r"`([\w.]+)`", others)) for room, others in rows if room in TABLE}
    assert list(documented) == list(TABLE)
    assert documented == TABLE


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
