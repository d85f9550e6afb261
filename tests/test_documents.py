"""Documents: what they tell people to type exists, links lead somewhere, and the runbook's commands run."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.contract.document import to_json
from tests.chain import ROOT
from tests.keys import a_store
from tests.simulators import ReleaseSimulator
from tests.verdicts import an_acceptance, judged_well

pytestmark = pytest.mark.build
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "calib_data/README.md",
        ROOT / "artifacts/README.md",
    ]
)
RELEASECTL = Path(sys.executable).parent / "releasectl"
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def blocks(text: str) -> Iterator[str]:
    """What stands in fences for a shell; continued lines put together."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.M | re.S):
        yield re.sub(r"\\\n\s*", " ", block)


def commands(text: str) -> Iterator[list[str]]:
    """Each command, its comment left away."""
    for block in blocks(text):
        for line in block.splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue  # a quotation over several lines
            if words:
                yield words


@functools.cache
def help_of(*words: str) -> str:
    told = subprocess.run([str(RELEASECTL), *words, "--help"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.parametrize("name", NAMES)
def test_releasectl_knows_what_documents_type(name: str) -> None:
    """In fences, and in the text: command and options."""
    text = (ROOT / name).read_text()
    typed = [words for words in commands(text) if words[0].rpartition("/")[2] == "releasectl"]
    typed += [
        shlex.split(found)
        for found in re.findall(r"`(releasectl [a-z][^`]*)`", text)
        if found.count("'") % 2 == 0
    ]
    for words in typed:
        verb = words[1].partition("|")[0]
        if not re.fullmatch(r"[a-z-]+", verb):
            continue
        path = [verb]
        if verb == "keys" and len(words) > 2 and re.fullmatch(r"[a-z]+", words[2]):
            path.append(words[2])
        assert re.search(rf"^ +{verb}\b", help_of(), re.M), words
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert {each for each in options if each not in help_of(*path)} == set(), words


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_make_targets_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for module in set(re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text)) - {"venv", "http.server"}:
        assert importlib.util.find_spec(module), module
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http:", "https:", "#", "mailto:")):
            assert (document.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_commands_name_are_in_the_checkout(name: str) -> None:
    """What is typed in another folder names the checkout on a Pi, `/opt/hailo-pipeline`."""
    for words in commands((ROOT / name).read_text()):
        found = [word.removeprefix("/opt/hailo-pipeline/") for word in words]
        for path in (word for word in found if word.startswith(("deploy/", "locks/", "scripts/"))):
            assert list(ROOT.glob(path)), words


def test_the_override_is_named_from_the_neighbours_folder() -> None:
    typed = [words for words in commands((ROOT / "docs/pi.md").read_text()) if "edge-infer" in words]
    (words,) = typed
    files = [words[at + 1] for at, word in enumerate(words) if word == "-f"]
    assert files == ["docker-compose.yml", "/opt/hailo-pipeline/deploy/compose.override.yaml"]


def test_memory_limits_say_what_they_need() -> None:
    """Raspberry Pi OS starts with `cgroup_disable=memory`: no limit holds there, and none complains."""
    text = (ROOT / "docs/pi.md").read_text()
    assert "cgroup_enable=memory cgroup_memory=1" in text
    assert "/boot/firmware/cmdline.txt" in text
    # In the words around each promise.
    for promise in re.finditer(r"1 GB\b[^.]*\.", text):
        assert "above" in promise[0], promise[0]


def test_the_runbooks_commands_run(tmp_path: Path) -> None:
    """As they stand there, in order, on a store with a stable and a canary."""
    root = tmp_path / "store"
    stable = ReleaseSimulator(version="v1").publish(root, "canary", "stable")
    canary = ReleaseSimulator(version="v2").publish(root, "canary", judged=False)
    judged_well(a_store(root), canary)
    (tmp_path / "acceptance.json").write_bytes(to_json(an_acceptance(canary)))
    names = {"canary-id": canary.id, "stable-id": stable.id, "bad-id": canary.id}
    environment = {**os.environ, "RELEASE_STORE": str(root)}
    typed = list(commands((ROOT / "docs" / "release-manager.md").read_text()))
    assert len(typed) >= 8
    for words in typed:
        assert words[0] == "releasectl", words
        given = [names.get(word, word) for word in words[1:]]
        if words[1] in ("promote", "rollback", "mark-bad"):
            given.append("--yes")
        ran = subprocess.run(
            [str(RELEASECTL), *given],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, (words, ran.stdout, ran.stderr)
    entry = a_store(root).current("emulator", "stable")
    assert entry is not None
    assert entry.release == stable.id
    assert a_store(root).is_marked_bad(canary) is not None
