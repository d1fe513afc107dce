"""Command lines that are read without Typer mean the same as when Typer reads them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scplan.cli import command_line, typer_app
from scplan.cli.app import COMMANDS
from scplan.cli.parameters import Argument, Call, Group, load, parameters
from scplan.errors import UsageError


def _paths(group: Group, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, member in group.members.items():
        if isinstance(member, Group):
            yield from _paths(member, (*before, name))
        else:
            yield (*before, name), member


PATHS = dict(_paths(COMMANDS))
_FLAGS = sorted(
    {flag for entry in PATHS.values() for one in parameters(load(entry)) for flag in one.flags} | {"--state-dir"}
)
_VALUES = ("web", "web/nic/*", "2m", "500ms", "0", "3", "-1", "", "x=y", "-", "--", "ä", "true", "'a b'", "80 %", "+7")
_WORDS = st.one_of(
    st.sampled_from(_FLAGS),
    st.sampled_from(_VALUES),
    st.builds("{}={}".format, st.sampled_from(_FLAGS), st.sampled_from(_VALUES)),
    st.sampled_from(("-fweb", "--fil", "--help", "--version", "-h", "--no-json", "plan", "list")),
    st.text(max_size=5),
)
_STATE_DIRS = st.sampled_from(((), ("--state-dir", "/a"), ("--state-dir=/b",), ("--state-dir", "")))


@st.composite
def _lines(draw: st.DrawFn) -> list[str]:
    """A command and words that it could take, with others strewn in, and the state directory anywhere."""
    path = draw(st.sampled_from(list(PATHS)))
    line: list[str] = []
    for name in path:
        line += [*draw(_STATE_DIRS), name]
    own = parameters(load(PATHS[path]))
    for parameter in draw(st.lists(st.sampled_from(own), max_size=5)) if own else []:
        flag = [draw(st.sampled_from(parameter.flags))] if parameter.flags else []
        value = [] if parameter.form == "flag" else [draw(st.sampled_from(_VALUES))]
        line += ["=".join(flag + value)] if draw(st.booleans()) else flag + value
    return [*line, *draw(_STATE_DIRS), *draw(st.lists(_WORDS, max_size=2))]


def _meaning(call: Call) -> tuple[object, str | None, Mapping[str, object]]:
    # What is not given is None or an empty list, and commands take both.
    values = {name: None if value == [] else value for name, value in call.values.items()}
    return call.command, call.settings.state_dir, values


@pytest.mark.slow
@given(_lines())
@example(["plan", "-f", "a.yaml", "-f", "b.yaml", "--target", "web", "--json"])
@example(["apply", "web.plan", "--lock-timeout=2m", "--probe", "./check web", "--confirm-within", "60s"])
@example(["--state-dir", "/a", "state", "--state-dir=/b", "history", "--limit", "3", "--state-dir", "/c"])
@example(["destroy", "web", "--auto-approve", "db"])
@example(["state", "mv", "old", "--json", "new"])
@example(["import", "app", "--runtime", "process", "--pid", "0"])
@settings(max_examples=600, deadline=None)
def test_what_is_understood_is_understood_as_typer_does(line: list[str]) -> None:
    quick = command_line.read(line, COMMANDS)
    if quick is not None:
        told = typer_app.read(line, COMMANDS)
        assert told is not None
        assert _meaning(quick) == _meaning(told)


@pytest.mark.parametrize(
    "line",
    [
        "plan -f web.yaml --target web --exclude web/nic/* --detailed-exitcode",
        "plan --out web.plan",
        "apply web.plan",
        "apply --auto-approve --confirm-within 60s --probe ./check --lock-timeout 2m",
        "destroy web db --auto-approve",
        "drift --json --metrics /tmp/metrics",
        "--state-dir /a state --state-dir=/b list",
        "state mv web new",
        "state history --limit 5",
        "import app --runtime process --pid 4242",
        "hook install --runtime podman --dry-run",
        "validate -f a -f b",
        "doctor",
    ],
)
def test_what_people_write_is_understood(line: str) -> None:
    assert command_line.read(line.split(), COMMANDS) is not None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "state",
        "plam",
        "plan --help",
        "plan --version",
        "schema web",
        "plan -f",
        "plan --json=1",
        "plan --fil web.yaml",
        "show one two",
        "apply --lock-timeout soon",
        "state history --limit 0",
        "state mv web",
        "state rm",
        "import",
        "import app --pid 0",
    ],
)
def test_what_is_wrong_or_asks_is_left_to_typer(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.read(line.split(), COMMANDS) is None
    if "--help" in line or "--version" in line:
        assert typer_app.read(line.split(), COMMANDS) is None
        assert capsys.readouterr().out
    else:
        with pytest.raises(UsageError):
            typer_app.read(line.split(), COMMANDS)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_parameter_is_declared(path: tuple[str, ...]) -> None:
    for parameter in parameters(load(PATHS[path])):
        assert parameter.declared.help
        assert parameter.form == "flag" or parameter.declared.metavar
        assert parameter.flags or isinstance(parameter.declared, Argument)


def test_a_plain_command_does_not_import_typer() -> None:
    code = "import sys; from scplan.cli.app import run; run(['schema']); sys.exit('typer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
