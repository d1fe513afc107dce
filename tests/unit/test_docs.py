"""The documentation agrees with the code: generated pages, links, commands, exit codes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate
from scplan.errors import ExitCode
from scplan.kinds import KINDS
from scplan.runtimes import RUNTIMES

CHECKOUT = Path(__file__).parents[2]
REFERENCE = CHECKOUT / "docs/reference"
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PAGE = re.compile(r"\b(?:docs|examples|tests)/[\w/-]+\.(?:md|yaml|py)\b")
_SCPLAN = re.compile(r"^(?:[$#] )?scplan (.*)$", re.MULTILINE)


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [CHECKOUT / name for name in listed.stdout.splitlines() if (CHECKOUT / name).exists()]
    # A tree without git: everything that is not hidden.
    return [path for path in CHECKOUT.rglob("*.md") if not any(part[0] == "." for part in relative(path).parts)]


def relative(path: Path) -> Path:
    return path.relative_to(CHECKOUT)


PAGES = pages()


# generated pages


@pytest.mark.parametrize("path", generate.pages())
def test_generated_page_is_up_to_date(path: str) -> None:
    written = (CHECKOUT / path).read_text()
    assert written == generate.pages()[path], f"{path} is not what the code says now: run `python -m docs.generate`"


# links


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCED.sub("", text))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(relative(page)))
def test_links_inside_the_checkout_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_of_the_documentation_is_reachable_from_its_index() -> None:
    waiting, seen = [CHECKOUT / "docs/index.md"], set()
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(without_code(page.read_text())))
        waiting += [(page.parent / link).resolve() for link in links if link and ":" not in link]
    assert sorted(str(relative(page)) for page in PAGES if relative(page).parts[0] == "docs" and page not in seen) == []


def test_files_that_the_code_names_are_there() -> None:
    named = {
        (str(relative(path)), name)
        for path in sorted((CHECKOUT / "scplan").rglob("*.py"))
        for name in _PAGE.findall(path.read_text())
    }
    assert [pair for pair in sorted(named) if not (CHECKOUT / pair[1]).exists()] == []


# commands


def shown_commands(page: Path) -> Iterator[str]:
    """What follows `scplan` in the examples of a page."""
    for language, block in _FENCED.findall(page.read_text()):
        if language in ("console", "sh"):
            yield from _SCPLAN.findall(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(relative(page)))
def test_commands_in_examples_exist_with_their_options(page: Path) -> None:
    commands = generate.commands()
    wrong = []
    for line in shown_commands(page):
        words = line.partition(" >")[0].partition(" &&")[0].partition(" #")[0].split()
        path = " ".join(words[:2]) if " ".join(words[:2]) in commands else words[0]
        if path not in commands:
            wrong.append(line)
            continue
        known = {option for param in commands[path].params for option in param.opts} | {"--help"}
        wrong += [line for word in words if word.startswith("-") and word not in known]
    assert wrong == []


def test_every_command_is_in_the_reference() -> None:
    reference = (REFERENCE / "commands.md").read_text()
    assert [path for path in generate.commands() if f"\n## {path}\n" not in reference] == []


def test_readme_names_the_two_commands_to_begin_with() -> None:
    readme = (CHECKOUT / "README.md").read_text()
    makefile = (CHECKOUT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/reference/exit-codes.md"])
def test_every_exit_code_is_explained(page: str) -> None:
    rows = re.findall(r"^\| (\d+) \|", (CHECKOUT / page).read_text(), re.MULTILINE)
    assert {str(int(code)) for code in ExitCode} <= set(rows)


# what is named


def test_every_kind_and_runtime_is_named() -> None:
    addresses = (REFERENCE / "addresses.md").read_text()
    assert [name for name in KINDS if f"\n| {name} |" not in addresses] == []
    readme = (CHECKOUT / "README.md").read_text()
    assert [name for name in RUNTIMES if name not in readme] == []


def test_unit_that_the_how_to_shows_is_the_one_that_is_shipped() -> None:
    page = (CHECKOUT / "docs/how-to/confirm-within.md").read_text()
    (shown,) = (block for language, block in _FENCED.findall(page) if language == "ini")
    assert shown.partition("\n")[2] == (CHECKOUT / "examples/systemd/scplan-recover.service").read_text()


def test_every_decision_is_listed_and_told_in_full() -> None:
    directory = CHECKOUT / "docs/decisions"
    index = (directory / "README.md").read_text()
    for path in sorted(directory.glob("[0-9]*.md")):
        text = path.read_text()
        title = text.splitlines()[0].removeprefix("# ")
        assert f"[{title}]({path.name})" in index
        for part in ("Context", "Decision", "Rejected", "Consequences"):
            assert f"**{part}.**" in text, f"{path.name} has no {part}"
