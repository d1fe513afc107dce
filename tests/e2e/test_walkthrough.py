"""The README's five minutes and the tutorial after them, typed as they stand there: they print what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.conftest import Scplan
from tests.containers.container import Container
from tests.containers.session import CHECKOUT

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r"\S+\.yaml:\d+:\d+: ")
_PROMPT = "# "
_AND_SO_ON = "…"


class Typed(NamedTuple):
    """A command and the lines that are shown below it; None where the page leaves out what its commands print."""

    command: str
    shown: list[str] | None


class Walk:
    """A shell in which a page's commands are typed. What they call `hello` is a container and a bridge of the test."""

    def __init__(self, container: Container, bridge: str, scplan: Scplan) -> None:
        self._names = {"hello0": bridge, "hello": container.name}
        self._pid = container.pid
        self._scplan = scplan
        self._code = 0
        program = scplan.directory / "bin" / "scplan"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m scplan "$@"\n')
        program.chmod(0o755)
        self._environment = {**scplan.environment, "PATH": f"{program.parent}:{scplan.environment['PATH']}"}

    def follow(self, page: str, begin: str = "", end: str = "") -> int:
        """Does what the blocks between two places of a page say, and returns how many commands that were."""
        text = (CHECKOUT / page).read_text()
        text = text[text.index(begin) : text.index(end) if end else None]
        count = 0
        for language, block in _BLOCK.findall(text):
            match language:
                case "yaml":
                    self._scplan.write(self._translated(block))
                case "sh":
                    assert self._type(block) == []
                    assert self._code == 0
                case "console":
                    for typed in _typed(block):
                        self._compare(typed)
                        count += 1
        return count

    def _compare(self, typed: Typed) -> None:
        printed = self._type(typed.command)
        fails = any(line.startswith("error: ") or _PLACE.match(line) for line in typed.shown or ())
        assert (self._code != 0) is fails, printed
        if typed.shown is not None:
            assert [_cut(line, shown) for line, shown in zip(printed, typed.shown, strict=False)] == typed.shown
            assert len(printed) == len(typed.shown), printed

    def _type(self, command: str) -> list[str]:
        """What the command prints to the terminal, with the page's names."""
        if command == "echo $?":
            code, self._code = self._code, 0
            return [str(code)]
        command = re.sub(r"/proc/\d+/", f"/proc/{self._pid}/", self._translated(command))
        ended = subprocess.run(
            ["sh", "-c", command],
            cwd=self._scplan.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        self._code = ended.returncode
        text = ended.stdout
        for shown, name in self._names.items():
            text = text.replace(name, shown)
        return _normal(text)

    def _translated(self, text: str) -> str:
        for shown, name in self._names.items():
            text = re.sub(rf"\b{shown}\b(?!\.)", name, text)
        return text


def _typed(block: str) -> Iterator[Typed]:
    commands = [
        (first, rest)
        for first, *rest in (part.splitlines() for part in re.split(rf"^{_PROMPT}", block, flags=re.MULTILINE)[1:])
    ]
    shows = any(rest for _, rest in commands)
    for command, rest in commands:
        yield Typed(command, _normal("\n".join(rest)) if shows else None)


def _normal(text: str) -> list[str]:
    """Lines without what is another each time: PIDs, how long it took, and how wide a name makes a column."""
    text = re.sub(r"pid \d+", "pid N", text)
    text = re.sub(r"in \d+\.\d+ s\b", "in N s", text)
    return [re.sub(r"(?<=\S) {2,}", "  ", line.rstrip()) for line in text.splitlines()]


def _cut(line: str, shown: str) -> str:
    """The line as far as the page shows it."""
    if shown.endswith(_AND_SO_ON) and line.startswith(shown.removesuffix(_AND_SO_ON)):
        return shown
    return line


@pytest.mark.needs("root", "busybox", "runc", "bridge", "veth")
def test_readme_and_tutorial_print_what_they_show(runc_container: Container, bridge: str, scplan: Scplan) -> None:
    walk = Walk(runc_container, bridge, scplan)
    # The container and the bridge are there; to remove them is left to the test, too.
    assert walk.follow("README.md", "What it should have, in `scplan.yaml`", "Take it all out again") == 6
    assert walk.follow("docs/tutorial/first-plan.md") == 12
