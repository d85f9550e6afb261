"""``docs/commands.md`` and each ``--help`` say the same; whatever documents name as a command has one."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.chain import ROOT
from tests.test_documents import DOCUMENTS, RELEASECTL, commands

pytestmark = pytest.mark.build
PAGE: Final = ROOT / "docs" / "commands.md"
OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
EVERYWHERE: Final = {"--help"}
OF_THE_STORE: Final = {"--json", "--store"}
NOT_OURS: Final = {"venv", "http.server"}
NEEDS_AN_ARGUMENT_FIRST: Final = {"assets.build_cache"}
"""Whose verb comes after its folder."""


@functools.cache
def help_of(*words: str) -> str:
    """What a command says of itself: ``releasectl VERB``, or a module and its verb."""
    command = [str(RELEASECTL)] if words[0] == "releasectl" else [sys.executable, "-m", words[0]]
    told = subprocess.run(
        [*command, *words[1:], "--help"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, (words, told.stdout, told.stderr)
    return told.stdout


def verbs_of(*words: str) -> set[str]:
    """The verbs that its help lists."""
    listed = re.search(r"^positional arguments:\n(.*?)(?:\n\n|\Z)", help_of(*words), re.M | re.S)
    found = set(re.findall(r"^    ([a-z][a-z-]*)(?: |$)", listed[1], re.M) if listed else ())
    # Verbs that are the values of an argument, and not parsers of their own.
    for values in re.findall(r"^  \{([a-z,-]+)\}$", listed[1], re.M) if listed else ():
        found |= set(values.split(","))
    return found


def rows() -> dict[tuple[str, ...], set[str]]:
    """The page: command and verb to the options that stand beside it."""
    found: dict[tuple[str, ...], set[str]] = {}
    for line in PAGE.read_text().splitlines():
        if not line.startswith("| `"):
            continue
        _, first, options, _, _ = re.split(r"(?<!\\)\|", line)
        given = set(OPTION.findall(options))
        command, *verbs = re.findall(r"`([^`]+)`", first)
        words = [word for word in shlex.split(command) if re.fullmatch(r"[a-z][a-z_.-]*", word)]
        # Further verbs of the same row have the same options.
        for verb in (words[-1], *(each.partition(" ")[0] for each in verbs)):
            found[(*words[:-1], verb)] = given
    return found


ROWS: Final = rows()
MODULES: Final = sorted(
    {
        module
        for document in DOCUMENTS
        for module in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", document.read_text())
    }
    | {f"bench.{path.stem}" for path in ROOT.glob("bench/*.py") if "ArgumentParser(" in path.read_text()}
    - {"bench.__main__"}
    | {words[0] for words in ROWS if "." in words[0]}
)


def options_of(words: tuple[str, ...]) -> set[str]:
    """The options that its help lists."""
    if words[0] == "releasectl" and words[1] == "keys":
        words = words[:2]
    elif words[0] in NEEDS_AN_ARGUMENT_FIRST:
        words = (words[0], "folder", words[1])
    return set(OPTION.findall(re.sub(r"\A.*?^options:", "", help_of(*words), flags=re.M | re.S)))


@pytest.mark.parametrize("words", sorted(ROWS), ids=" ".join)
def test_the_page_has_the_options_that_help_lists(words: tuple[str, ...]) -> None:
    common = EVERYWHERE | (OF_THE_STORE if words[0] == "releasectl" else set())
    assert ROWS[words] == options_of(words) - common


def test_the_page_has_every_command_and_verb() -> None:
    assert {words[1] for words in ROWS if words[0] == "releasectl"} == verbs_of("releasectl")
    assert {words[2] for words in ROWS if words[:2] == ("releasectl", "keys")} == verbs_of(
        "releasectl", "keys"
    )
    for module in {words[0] for words in ROWS} - {"releasectl"}:
        assert {words[1] for words in ROWS if words[0] == module and len(words) > 1} == verbs_of(module)


def test_every_module_of_ours_that_takes_options_is_on_the_page() -> None:
    """The others are started by ours."""
    asked = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for package in ("assets", "orchestration", "sample")
        for path in (ROOT / package).rglob("*.py")
        if "__main__" in path.read_text() and re.search(r'prog="python -m ', path.read_text())
    }
    assert asked <= {words[0] for words in ROWS}


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=pytest.mark.slow if module.startswith("bench") else ())
        for module in MODULES
        if module not in NOT_OURS
    ],
)
def test_what_documents_name_explains_itself_and_does_nothing_else(module: str) -> None:
    assert help_of(module).startswith(f"usage: python -m {module} ")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_have_the_options_that_documents_type(document: Path) -> None:
    """In fences, and in the text; measurements apart, which take long to import."""
    text = document.read_text()
    typed = [" ".join(words) for words in commands(text)] + re.findall(r"`([^`\n]*python -m [^`]*)`", text)
    for line in typed:
        for module, rest in re.findall(r"python -m ([a-z_.]+)([^|;&]*)", line):
            if module.partition(".")[0] in ("assets", "orchestration", "sample"):
                known = {each for words in ROWS if words[0] == module for each in ROWS[words]}
                assert set(OPTION.findall(rest)) <= known, line


def test_help_names_no_file_that_is_not_there() -> None:
    for words in ROWS:
        if words[0] == "releasectl":
            for page in re.findall(r"docs/[a-z-]+\.md", help_of(*words[:2])):
                assert Path(ROOT / page).is_file(), (words, page)
