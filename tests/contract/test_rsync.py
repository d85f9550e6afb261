"""A store that is copied while it moves: a reader of the copy sees known releases, in order."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime.contract.promotion import Decision, promote, roll_back
from tests.keys import MANAGER, a_store, key_folder
from tests.moves import published
from tests.requirements import program
from tests.simulators import ROOT, wait_for

WHY = Decision(actor="Ada", reason="looked at it")
ROUNDS = 6
READER = """
import json, sys
from collections import Counter
from pathlib import Path
from runtime.config import RuntimeConfig
from runtime.contract.errors import PipelineError
from runtime.release_choice import ReleaseChoice
store, root, folder = map(Path, sys.argv[1:4])
choice = ReleaseChoice(RuntimeConfig(release_store=store, trust_root=root))
reads, served, kept = 0, [], Counter()
while not (folder / "stop").exists():
    reads += 1
    try:
        chosen = choice.find()
        chosen.release.verify()
    except PipelineError as error:
        kept[error.code] += 1
        last = choice.last(error)
        last.release.verify()
        if last.release.id != served[-1][1]:
            raise SystemExit(f"kept {last.release.id}, served {served[-1]}")
    else:
        choice.serves(chosen)
        if [chosen.sequence, chosen.release.id] not in served[-1:]:
            served.append([chosen.sequence, chosen.release.id])
            (folder / "sequence").write_text(str(chosen.sequence))
(folder / "seen.json").write_text(json.dumps({"reads": reads, "served": served, "kept": kept}))
"""


def write(store: Path) -> None:
    """Publish, promote and roll back, again and again: stable moves twice a round."""
    for number in range(ROUNDS):
        (release,) = published(store, f"w{number}", channels=("canary",))
        promote(a_store(store), "emulator", release.id, WHY, MANAGER)
        roll_back(a_store(store), "emulator", "stable", WHY, MANAGER)


def copy(store: Path, to: Path, mode: list[str]) -> None:
    command = [str(program("rsync")), "-a", "--exclude=.*", *mode, f"{store}/", f"{to}/"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode in (0, 24), found.stderr  # 24: a file was gone before it was copied


def follow(tmp_path: Path, mode: list[str]) -> dict[str, Any]:
    """What a looping reader saw of a copy of a store that moves meanwhile."""
    store, to = tmp_path / "store", tmp_path / "copy"
    published(store, "v1", "v2")
    copy(store, to, mode)
    arguments = [str(to), str(key_folder() / "root.json"), str(tmp_path)]
    reader = subprocess.Popen([sys.executable, "-c", READER, *arguments], cwd=ROOT)
    try:
        place = tmp_path / "sequence"
        wait_for(place.exists, "a first read")
        writer = threading.Thread(target=write, args=(store,))
        writer.start()
        while writer.is_alive():
            copy(store, to, mode)
        writer.join()
        copy(store, to, mode)
        newest = len(a_store(store).history("emulator", "stable"))
        wait_for(lambda: place.read_text() == str(newest) or reader.poll() is not None, "the newest entry")
        (tmp_path / "stop").touch()
        assert reader.wait(30) == 0
    finally:
        reader.kill()
    found: dict[str, Any] = json.loads((tmp_path / "seen.json").read_text())
    return found


@pytest.mark.needs("rsync")
@pytest.mark.parametrize(
    "mode", ["", "--delay-updates", "--inplace", "--inplace --whole-file --bwlimit=2000"]
)
def test_a_reader_of_a_copy_sees_known_releases_in_order(tmp_path: Path, mode: str) -> None:
    seen = follow(tmp_path, mode.split())
    print(f"{mode or 'plain'}: {seen['reads']} reads, {len(seen['served'])} served, kept: {seen['kept']}")
    history = a_store(tmp_path / "store").history("emulator", "stable")
    assert len(history) == 2 + 2 * ROUNDS
    known = {entry.sequence: entry.release for entry in history}
    sequences = [sequence for sequence, _ in seen["served"]]
    assert sequences == sorted(set(sequences))
    assert all(known[sequence] == release for sequence, release in seen["served"])
    assert sequences[-1] == len(history)
    # While a file is missing or short; never that somebody signed otherwise.
    assert set(seen["kept"]) <= {"not_there_yet", "no_manifest", "unsigned", "digest_mismatch", "manifest"}
