"""How the commands are called, and what they do when they are called wrongly. Needs no container and no root."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scplan import __version__

CHECKOUT = Path(__file__).parents[2]
COMMANDS = [
    "plan",
    "apply",
    "destroy",
    "drift",
    "watch",
    "confirm",
    "undo",
    "recover",
    "show",
    "import",
    "snapshot",
    "validate",
    "schema",
    "state",
    "state list",
    "state show",
    "state rm",
    "state mv",
    "state history",
    "hook",
    "hook spec",
    "hook install",
    "hook uninstall",
    "doctor",
]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and state directory, a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("SCPLAN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("SCPLAN_DEBUG", raising=False)


def scplan(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scplan", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, timeout=60, **streams)  # type: ignore[call-overload, no-any-return]


# version and help


@pytest.mark.parametrize(
    "arguments", [["--version"], ["plan", "--version"], ["--version", "plan"], ["state", "list", "--version"]]
)
def test_version_is_printed_wherever_it_is_asked_for(arguments: list[str]) -> None:
    ended = scplan(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"scplan {__version__}\n", "")


def test_version_imports_nothing_that_it_does_not_need() -> None:
    program = (
        "import sys; sys.argv[1:] = ['--version']\n"
        "before = set(sys.modules)\n"
        "from scplan.__main__ import main\n"
        "main()\n"
        "sys.stderr.write(' '.join(sorted(set(sys.modules) - before)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stderr.split() == ["__future__", "scplan", "scplan.__main__"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_fits_80_columns(command: str) -> None:
    ended = scplan(*command.split(), "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(rf"^  Examples:\n    scplan {command}", ended.stdout, re.MULTILINE)
    assert max(len(row) for row in ended.stdout.splitlines()) <= 80
    assert "\x1b" not in ended.stdout
    assert "\\[" not in ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_options_that_all_share(command: str) -> None:
    text = scplan(*command.split(), "--help").stdout
    assert "--state-dir DIR" in text
    assert "--version" in text


def test_help_lists_every_command_with_a_whole_sentence() -> None:
    listed = re.findall(r"^  ([a-z]+) +(.*)$", scplan("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert {name for name, _ in listed} == {command.split()[0] for command in COMMANDS}
    assert [text for _, text in listed if not text.endswith(".") or text.endswith("...")] == []


def test_completion_script_is_printed() -> None:
    ended = scplan(env={**os.environ, "_SCPLAN_COMPLETE": "source_bash"})
    assert (ended.returncode, "complete -o default -F _scplan_completion scplan" in ended.stdout) == (0, True)


def test_completion_knows_the_commands() -> None:
    words = {"_SCPLAN_COMPLETE": "complete_bash", "COMP_WORDS": "scplan d", "COMP_CWORD": "1"}
    assert scplan(env={**os.environ, **words}).stdout.split() == ["destroy", "drift", "doctor"]


# wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("plam", "no such command: plam; did you mean plan?"),
        ("state lst", "no such command: lst; did you mean list?"),
        ("frobnicate", "no such command: frobnicate\n"),
        ("apply -auto-approve", "did you mean --auto-approve?"),
        ("plan --jsn", "did you mean --json?"),
        ("--jsn", "no such option: --jsn"),
        ("schema stray", "unexpected extra argument"),
        ("plan --target", "--target"),
        ("state show", "missing argument 'ADDR'"),
        ("state rm", "missing argument 'ADDR...'"),
        ("state show eth1", "an address is CONTAINER/KIND/IDENTITY: web/nic/eth1"),
        ("destroy web -f x.yaml", "containers or -f"),
        ("plan --json --markdown", "--json and --markdown exclude each other"),
        ("recover --forward --back", "--forward and --back exclude each other"),
        ("apply --lock-timeout soon", "not a duration: 'soon'; write 500ms, 30s or 2m"),
        ("apply web.plan --target web", "a saved plan takes no -f, --target or --exclude"),
    ],
)
def test_wrong_usage_says_what_is_wrong(arguments: str, said: str) -> None:
    ended = scplan(*arguments.split())
    assert (ended.returncode, ended.stdout) == (64, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", ["", "-h", "state", "state -h", "plan -h"])
def test_what_can_only_ask_for_help_gets_it(arguments: str) -> None:
    ran = scplan(*arguments.split())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Usage: scplan")


@pytest.mark.parametrize("command", ["validate", "plan", "apply", "drift"])
def test_file_that_is_not_there_has_no_place_in_it(command: str, tmp_path: Path) -> None:
    ran = scplan(command, str(tmp_path / "nofile.yaml"), "--state-dir", str(tmp_path / "state"))
    assert ran.returncode == 1
    assert f"{tmp_path}/nofile.yaml: No such file or directory" in ran.stderr
    assert ":1:1" not in ran.stderr


def test_files_are_plain_arguments_too(tmp_path: Path) -> None:
    good, wrong = tmp_path / "a.conf", tmp_path / "b.yaml"
    good.write_text("version: 1\ncontainers: {web: {cgroup: {pids.max: 10}}}\n")
    wrong.write_text("version: 1\ncontainers: {db: {cgroup: {pids.maxx: 10}}}\n")
    assert "1 container, 1 resource" in scplan("validate", str(good)).stdout
    for command in ("validate", "plan", "apply"):
        assert "pids.maxx" in scplan(command, str(good), str(wrong), "--state-dir", str(tmp_path / "state")).stderr


def test_plan_is_known_by_its_content(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    plan, files = tmp_path / "web.yaml", tmp_path / "web.plan"
    plan.write_text('{"format_version": "1.0", "changes": []}')
    files.write_text("version: 1\ncontainers: {web: {cgroup: {pids.maxx: 10}}}\n")
    assert "has no origin" in scplan("apply", str(plan), *state).stderr
    assert "pids.maxx" in scplan("apply", str(files), *state).stderr
    assert "it is applied alone" in scplan("apply", str(files), str(plan), *state).stderr


def test_empty_path_is_not_the_current_directory() -> None:
    ended = scplan("validate", "-f", "")
    assert (ended.returncode, ended.stderr) == (64, "error: -f: the path is empty\n")


def test_control_characters_in_arguments_are_escaped() -> None:
    assert "\\x1b[2J" in scplan("\x1b[2J").stderr


# output


def test_schema_is_one_document() -> None:
    import json

    ended = scplan("schema")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["type"] == "object"


def test_errors_of_the_files_are_in_the_document(tmp_path: Path) -> None:
    import json

    (tmp_path / "scplan.yaml").write_text("version: 1\ncontainers: {web: {nisc: []}}\n")
    ended = scplan("validate", "--json")
    document = json.loads(ended.stdout)
    assert (ended.returncode, ended.stderr, document["valid"]) == (1, "", False)
    assert document["diagnostics"][0]["source"]["line"] == 2


def test_errors_of_the_files_are_told_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "scplan.yaml").write_text("version: 1\ncontainers: {web: {nisc: []}}\n")
    ended = scplan("validate")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("scplan.yaml:2:")


def test_valid_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "scplan.yaml").write_text("version: 1\ncontainers: {web: {mounts: [/srv:/srv]}}\n")
    ended = scplan("validate")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Valid: 1 container, 1 resource.\n", "")


def test_state_directory_may_stand_before_and_after_the_command() -> None:
    for arguments in (["--state-dir", "here", "state", "list"], ["state", "list", "--state-dir", "here"]):
        ended = scplan(*arguments)
        assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


@pytest.mark.parametrize("command", ["--version", "--help", "schema"])
def test_reader_that_went_away_is_no_news(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = scplan(command, stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("command", ["--version", "--help", "schema"])
def test_full_disk_is_an_error(command: str) -> None:
    with open("/dev/full", "w") as full:
        ended = scplan(command, stdout=full)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["--version", "schema", "plam"])
def test_closed_streams_are_no_reason_to_crash(command: str) -> None:
    shell = f'exec "$0" -m scplan {command} >&- 2>&-'
    ended = subprocess.run(["/bin/sh", "-c", shell, sys.executable], timeout=60)
    assert ended.returncode == (64 if command == "plam" else 1 if command == "--version" else 0)


def test_names_beyond_the_locale_are_escaped() -> None:
    ended = scplan("plän", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, "pl\\xe4n" in ended.stderr) == (64, True)


# asking


def ask(answer: bytes) -> tuple[int, str]:
    """The exit code of a program that asks on a terminal and gets this answer, and what the terminal showed."""
    program = "from scplan.cli.output import approve; approve('Apply these changes?')"
    pid, terminal = pty.fork()
    if pid == 0:
        # A shell ignores it in what it runs in the background, and that is inherited.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", program])
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, answer)
    try:
        while more := os.read(terminal, 1024):
            shown += more
    except OSError:  # EIO: the program ended
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.mark.parametrize("answer", [b"y\n", b"yes\n", b"YES\n"])
def test_yes_is_consent(answer: bytes) -> None:
    code, shown = ask(answer)
    assert code == 0
    assert "Apply these changes? [y/N] " in shown


@pytest.mark.parametrize("answer", [b"\n", b"n\n", b"yep\n", b"\x04", b"\x03"], ids=["empty", "n", "yep", "^D", "^C"])
def test_anything_else_declines(answer: bytes) -> None:
    code, shown = ask(answer)
    assert code == 1
    assert "Declined: declined; nothing was changed" in shown
