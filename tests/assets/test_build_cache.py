"""The cache of the long steps: the same work is done once, and nothing else is taken for it."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from assets import build_cache
from assets.build_cache import BuildCache, main
from assets.onnx_model import canonical_graph
from assets.toolchain import Built, emulator, source_digest
from assets.toolchain.emulator import EmulatorToolchain
from runtime.contract.errors import StoreError, ToolchainError
from runtime.contract.release import ToolchainRecord
from tests.assets.test_onnx_model import small_encoder
from tests.chain import ROOT

pytestmark = pytest.mark.build
INPUTS = {"onnx_model": "a" * 64, "windows": "b" * 64}


class Toolchain(EmulatorToolchain):
    """One whose record a test changes."""

    changes: ClassVar[Mapping[str, Any]] = {}

    def record(self) -> ToolchainRecord:
        return replace(super().record(), **self.changes)


class Bench:
    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0
        self.said: list[str] = []
        self.toolchain = Toolchain()
        self.facts: dict[str, str] = {"log": "line"}

    def make(self) -> Built:
        self.made += 1
        return Built(
            stage="quantized",
            kind="har",
            suffix=".har",
            data=b"bytes" * 100,
            record=self.toolchain.record(),
            facts=self.facts,
        )

    def cache(self, *, use: bool = True) -> BuildCache:
        return BuildCache(self.root, use=use, say=self.said.append)

    def run(self, *, step: str = "optimize", use: bool = True, **inputs: str) -> tuple[Built, str]:
        cache = self.cache(use=use)
        return cache.through(step, self.toolchain, {**INPUTS, **inputs}, self.make), cache.told


@pytest.fixture(name="bench")
def a_bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


def test_the_same_work_is_done_once_and_a_hit_says_so(bench: Bench) -> None:
    first, told = bench.run()
    assert told.startswith("made now in ")
    again, told = bench.run()
    assert told.startswith("hit: made 20")
    assert (again, bench.made, bench.said) == (first, 1, [])


def test_everything_that_shapes_the_bytes_is_in_the_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    bench.run(step="compile")
    bench.run(windows="c" * 64)
    record = EmulatorToolchain().record()
    for changes in (
        {"id": "other"},
        {"tools": {**record.tools, "onnxruntime": "0.0"}},
        {"options": {**record.options, "one": "more"}},
        {"hardware": True},
    ):
        monkeypatch.setattr(Toolchain, "changes", changes)
        bench.run()
    monkeypatch.setattr(Toolchain, "changes", {})
    bench.toolchain.target = "hailo8"
    bench.run()
    monkeypatch.setattr(build_cache, "CODE_VERSION", "newer")
    bench.run()
    monkeypatch.setattr(Toolchain, "sources", "of other code")
    bench.run()
    assert bench.made == 10
    assert len(bench.cache().entries()) == 10


def test_without_it_the_step_is_done_and_replaces_what_is_kept(bench: Bench) -> None:
    bench.run()
    bench.facts = {"log": "another"}
    built, told = bench.run(use=False)
    assert (bench.made, told) == (2, build_cache.NOT_USED)
    assert bench.run()[0] == built


@pytest.mark.parametrize("name", ["data", "entry.json"])
@pytest.mark.parametrize("data", [b"", b"{}", None])
def test_what_is_damaged_is_made_anew_and_said(bench: Bench, name: str, data: bytes | None) -> None:
    first, _ = bench.run()
    ((folder, *_),) = bench.cache().entries()
    path = folder / name
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    again, told = bench.run()
    assert (again, bench.made) == (first, 2)
    assert told.startswith("made now")
    assert len(bench.said) == 1
    assert bench.run()[1].startswith("hit")


def test_an_entry_under_another_ones_name_is_not_taken(bench: Bench) -> None:
    bench.run()
    ((folder, *_),) = bench.cache().entries()
    bench.run(windows="c" * 64)
    (other,) = (path for path, *_ in bench.cache().entries() if path != folder)
    shutil.rmtree(other)
    shutil.copytree(folder, other)
    assert bench.run(windows="c" * 64)[1].startswith("made now")
    assert "from other inputs" in bench.said[-1]


def test_a_hit_is_held_against_the_toolchains_checks_as_a_new_result_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept by an earlier version, or on a machine whose kernels were others."""
    toolchain, windows = EmulatorToolchain(), np.ones((4, 100, 9), np.float32)
    parsed = toolchain.parse(canonical_graph(small_encoder()))
    quantized = toolchain.optimize(parsed, windows)
    compiled = toolchain.compile(quantized)
    poser = replace(compiled, data=parsed.data, stand_in=b"")  # float throughout, and says int8

    def through(make: Callable[[], Built]) -> tuple[Built, str]:
        cache = bench.cache()
        return cache.through("compile", toolchain, {"quantized_har": "a" * 64}, make), cache.told

    through(lambda: poser)
    built, told = through(lambda: toolchain.compile(quantized))
    assert told.startswith("made now")
    assert built.data == compiled.data
    assert "not integer kernels only" in bench.said[-1]
    assert through(lambda: poser)[1].startswith("hit")
    # What is made now fails as it always did.
    monkeypatch.setattr(emulator, "_INTEGER_KERNELS", frozenset({"QLinearConv"}))
    with pytest.raises(ToolchainError, match="not integer kernels only"):
        through(lambda: toolchain.compile(quantized))


def imported(path: Path) -> set[Path]:
    """Files of ``assets`` that a file imports when it is imported, or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("assets."):
            place = ROOT / str(node.module).replace(".", "/")
            files = [place / f"{name.name}.py" for name in node.names] if place.is_dir() else []
            files = [file for file in files if file.is_file()]
            found |= set(files or [place / "__init__.py" if place.is_dir() else place.with_suffix(".py")])
    return found


@pytest.mark.parametrize("name", ["emulator", "hailo_dfc"])
def test_the_digest_of_a_toolchains_source_holds_what_it_is_made_of(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of this package that its modules reach, and what these import of ``assets``."""
    package = ROOT / "assets" / "toolchain"
    needed, waiting = set(), [package / f"{name}.py", package / "__init__.py"]
    if name == "hailo_dfc":
        waiting.append(package / "dfc_worker.py")  # run, not imported
    while waiting:
        path = waiting.pop()
        if path not in needed:
            needed.add(path)
            # The package's own file only names the adapters; what is outside is one step.
            if path.parent == package and path.name != "__init__.py":
                waiting += imported(path)
    named: list[str] = []

    def noted(*patterns: str) -> str:
        named.extend(patterns)
        return ""

    monkeypatch.setattr("assets.toolchain.source_digest", noted)
    spec = importlib.util.spec_from_file_location("again", package / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    held = {path for pattern in named for path in (ROOT / "assets").glob(pattern)}
    assert needed <= held, sorted(needed - held)


def test_the_digest_of_source_changes_with_any_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assets.toolchain._ASSETS", tmp_path)
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("one")
    seen = {source_digest("*.py")}
    (tmp_path / "b.py").write_text("another")
    seen.add(source_digest("*.py"))
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    seen.add(source_digest("*.py"))
    assert len(seen) == 3


def test_what_went_worse_than_asked_is_not_taken_for_whole(bench: Bench) -> None:
    bench.facts = {"degradations": "no_gpu: level 0"}
    assert bench.run()[1].endswith("not kept: degraded")
    bench.run()
    assert bench.made == 2
    bench.facts = {"degradations": "none"}
    bench.run()
    assert bench.run()[1].startswith("hit")


def test_a_step_that_fails_leaves_nothing(bench: Bench) -> None:
    def broken() -> Built:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.cache().through("optimize", bench.toolchain, INPUTS, broken)
    assert not bench.root.exists()


def test_what_cannot_be_kept_stops_no_build(bench: Bench) -> None:
    bench.root.write_text("a file in the folder's place")
    built, _ = bench.run()
    assert built.data
    assert "not kept in the cache" in bench.said[-1]


def test_only_what_it_made_itself_is_taken_away(bench: Bench) -> None:
    bench.run()
    for name in (".ssh", ".git", ".venv"):
        folder = bench.root / name
        folder.mkdir()
        (folder / "somebodys").write_bytes(b"own")
        os.utime(folder, (0, 0))
    assert main([str(bench.root), "prune", "--days", "0"]) == 0
    assert {path.name for path in bench.root.iterdir()} == {".ssh", ".git", ".venv"}


DAMAGES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "no description": (lambda folder: emptied(folder, "entry.json"), "has no entry.json"),
    "another schema": (
        lambda folder: rewrite(folder, b'"schema": 1', b'"schema": 2'),
        "schema 2, this version reads 1",
    ),
    "no JSON": (lambda folder: rewrite(folder, b"{", b"["), "not JSON"),
    "of a later version": (lambda folder: rewrite(folder, b'"step"', b'"stride"'), "stride"),
    "empty": (lambda folder: emptied(folder), "has no entry.json"),
}


def emptied(folder: Path, *names: str) -> None:
    for name in names or ("entry.json", "data"):
        (folder / name).unlink()


def rewrite(folder: Path, old: bytes, new: bytes) -> None:
    path = folder / "entry.json"
    data = path.read_bytes()
    assert old in data
    path.unlink()
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_listed_with_why_and_goes_by_its_age(
    bench: Bench, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run()
    bench.run(windows="c" * 64)
    (kept, *_), (folder, *_) = bench.cache().entries()
    spoil, why = DAMAGES[damage]
    spoil(folder)
    os.utime(folder)
    assert main([str(bench.root), "list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(folder.name[:12]))
    assert "cannot be read: " in line
    assert why in line
    assert main([str(bench.root), "prune", "--days", "2"]) == 0
    assert "0 entries taken away, 1 kept, 1 that cannot be read stay" in capsys.readouterr().out
    long_ago = time.time() - 3 * 86400
    os.utime(folder, (long_ago, long_ago))
    assert main([str(bench.root), "prune", "--days", "2"]) == 0
    assert "1 entries taken away, 1 kept\n" in capsys.readouterr().out
    assert [path.name for path in bench.root.iterdir()] == [kept.name]


def test_what_has_an_entrys_name_and_another_content_is_left_alone(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run()
    ((folder, *_),) = bench.cache().entries()
    (folder / "entry.json").unlink()
    (folder / "somebodys").write_bytes(b"own")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (bench.root / ("d" * 64)).symlink_to(elsewhere)
    (bench.root / "abc").mkdir()
    for path in (folder, elsewhere, bench.root / "abc"):
        os.utime(path, (0, 0))
    assert main([str(bench.root), "prune", "--days", "0"]) == 0
    assert main([str(bench.root), "list"]) == 0
    assert "somebodys is no part of an entry: left alone" in capsys.readouterr().out
    bench.run()  # and what cannot be read is no hit
    assert (bench.made, "made anew" in bench.said[0]) == (2, True)
    bench.run(use=False)
    assert (folder / "somebodys").read_bytes() == b"own"
    assert {path.name for path in bench.root.iterdir()} == {folder.name, "d" * 64, "abc"}


def test_an_entry_that_cannot_be_pruned_fails_no_build(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(cache: BuildCache, *_: object) -> list[Path]:
        raise StoreError("Permission denied", where="another user's entry")

    monkeypatch.setattr(BuildCache, "prune", refused)
    assert bench.run()[0].data
    assert "another user's entry" in bench.said[-1]


def test_the_longest_unused_go_first(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        bench.run(windows=str(number) * 64)
    now = time.time()
    for age, (folder, *_) in enumerate(
        sorted(bench.cache().entries(), key=lambda each: each[1].inputs["windows"])
    ):
        os.utime(folder, (now - 86400 * age, now - 86400 * age))
    sizes = [size for _, _, size, _ in bench.cache().entries()]
    assert len(bench.cache().prune(days=2.5)) == 1
    bench.run(windows="2" * 64)  # used again
    assert bench.made == 4
    assert len(bench.cache().prune(most_bytes=sizes[0] + sizes[1])) == 1
    kept = {entry.inputs["windows"][0] for _, entry, _, _ in bench.cache().entries()}
    assert kept == {"0", "2"}
    assert main([str(bench.root), "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([str(bench.root), "prune", "--days", "0"]) == 0
    assert "2 entries taken away, 0 kept" in capsys.readouterr().out


def test_what_a_killed_process_left_is_taken_away(bench: Bench) -> None:
    bench.run()
    left = bench.root / ".incoming-x"
    left.mkdir()
    bench.cache().prune()
    assert left.exists()  # perhaps somebody is at it
    os.utime(left, (0, 0))
    bench.cache().prune()
    assert not left.exists()
