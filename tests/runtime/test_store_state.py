"""What a Pi remembers of its store: an older, other or broken one takes nothing away from its clients."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from runtime import recovery
from runtime.active_model import ActiveModel, ModelHolder, load_active_model, load_state
from runtime.config import RuntimeConfig
from runtime.contract.channels import LAST_SEQUENCE, entry_name
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import ConfigError, PipelineError, StoreMissingError
from runtime.contract.keys import sign_root
from runtime.contract.promotion import Decision, roll_back
from runtime.contract.release import manifest_bytes
from runtime.contract.release_directory import sign_release
from runtime.contract.store import Release
from runtime.key_commands import sign_again
from runtime.release_choice import ReleaseChoice
from runtime.store_state import STATE_NAME
from tests.keys import BUILD, MANAGER, ROOT_KEY, a_root, a_store, key_folder
from tests.moves import NEW, STRANGER, after, an_entry, channel, next_root, published, put, put_entry, tip
from tests.runtime.service import Service
from tests.simulators import ARTIFACT, ReleaseSimulator, flip_bit, running_server

WHY = Decision(actor="Ada", reason="looked at it")


class Pi:
    """A store, a memory, and as many process lives as asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root / "store"
        self.state = root / "state" / STATE_NAME
        self.config = RuntimeConfig(
            release_store=self.root, trust_root=key_folder() / "root.json", state_dir=self.state.parent
        )

    def boot(self) -> ActiveModel:
        """What a new process serves."""
        return load_active_model(self.config)

    def fails(self) -> PipelineError:
        """Why a new process serves nothing."""
        state = load_state(self.config)
        assert isinstance(state, PipelineError)
        return state

    def serves(self, release: Release, alarm: str = "") -> None:
        """A new process serves this one, and shows why it is not another, in all places that show it."""
        service = Service(ModelHolder(self.boot()))
        health = service.client.simulate_get("/healthz")
        assert (health.status_code, health.json["release"]) == (200, release.id)
        shown = health.json["store"]["alarm"]
        assert alarm in shown if alarm else shown is None
        kind = service.holder.alarm_kind
        assert bool(kind) == bool(alarm)
        assert service.sample("hailo_store_alarm", kind=kind) == (1 if alarm else 0)


@pytest.fixture(name="pi")
def a_pi(tmp_path: Path) -> Pi:
    return Pi(tmp_path)


def newer(pi: Pi, **change: object) -> str:
    """Stable names a release whose manifest is another; its id."""
    head = tip(pi.root)
    release = a_store(pi.root).open(head.entry.release)
    data = to_json(json.loads(manifest_bytes(release.manifest)) | change)
    folder = pi.root / "releases" / sha256_bytes(data)
    shutil.copytree(release.directory, folder)
    put(folder / "manifest.json", data)
    put(folder / "manifest.dsse.json", sign_release(data, BUILD))
    put_entry(pi.root, after(head, release=folder.name), MANAGER)
    return folder.name


def test_it_remembers_what_it_saw_and_served(pi: Pi) -> None:
    (release,) = published(pi.root, "v1")
    model = pi.boot()
    assert (model.memory, model.sequence, model.keys) == ("STATE_DIR", 1, "development keys")
    known = json.loads(pi.state.read_bytes())["channels"]["emulator/stable"]
    assert (known["serving"], known["floor"]["sequence"]) == (release.id, 1)
    assert known["floor"]["digest"] == tip(pi.root).digest
    assert pi.state.stat().st_size < 3000
    before = pi.state.stat()
    pi.boot()
    assert pi.state.stat().st_mtime_ns == before.st_mtime_ns


def test_an_older_copy_after_a_reboot_changes_nothing(pi: Pi, tmp_path: Path) -> None:
    published(pi.root, "v1")
    shutil.copytree(channel(pi.root), tmp_path / "old")
    (second,) = published(pi.root, "v2")
    pi.serves(second)
    shutil.rmtree(channel(pi.root))
    shutil.copytree(tmp_path / "old", channel(pi.root))
    for _ in range(2):
        pi.serves(second, "ends at entry 1, entry 2 was seen here")


def test_an_older_copy_without_what_was_served_is_named_as_that(pi: Pi, tmp_path: Path) -> None:
    published(pi.root, "v1")
    shutil.copytree(pi.root, tmp_path / "old")
    published(pi.root, "v2")
    pi.boot()
    shutil.rmtree(pi.root)
    shutil.copytree(tmp_path / "old", pi.root)
    assert pi.fails().code == "replayed"
    (third,) = published(pi.root, "v2")
    pi.config = dataclasses.replace(pi.config, state_dir=None)
    pi.serves(third)


@pytest.mark.parametrize("kept", [True, False])
def test_the_metric_names_an_older_copy_whether_or_not_there_is_something_to_serve(
    pi: Pi, tmp_path: Path, kept: bool
) -> None:
    published(pi.root, "v1")
    shutil.copytree(pi.root, tmp_path / "old")
    (second,) = published(pi.root, "v2")
    pi.boot()
    if kept:
        shutil.copytree(second.directory, tmp_path / "old" / "releases" / second.id)
    shutil.rmtree(pi.root)
    shutil.copytree(tmp_path / "old", pi.root)
    service = Service(ModelHolder.load(pi.config))
    assert service.sample("hailo_model_loaded") == kept
    assert service.sample("hailo_store_alarm", kind="replayed") == 1


def test_a_fork_with_nothing_to_serve_is_in_the_metric(pi: Pi) -> None:
    (first,) = published(pi.root, "v1")
    (other,) = published(pi.root, "v2", channels=("canary",))
    pi.boot()
    put_entry(pi.root, an_entry(release=other.id), MANAGER)
    shutil.rmtree(first.directory)
    service = Service(ModelHolder.load(pi.config))
    assert service.sample("hailo_store_alarm", kind="fork") == 1


def test_what_is_not_the_stores_fault_is_no_alarm_of_it(pi: Pi) -> None:
    service = Service(ModelHolder.load(pi.config))
    assert service.sample("hailo_model_loaded") == 0
    assert service.sample("hailo_store_alarm", kind="") == 0


def test_a_damaged_release_is_named_where_the_last_one_is_damaged_too(pi: Pi, tmp_path: Path) -> None:
    (first,) = published(pi.root, "v1")
    pi.boot()
    newer(pi, schema=9)
    flip_bit(first.directory / ARTIFACT)
    error = pi.fails()
    assert (error.code, "schema 9" in str(error)) == ("manifest", True)


def test_within_one_process_no_state_dir_is_needed(pi: Pi, tmp_path: Path) -> None:
    config = dataclasses.replace(pi.config, state_dir=None)
    published(pi.root, "v1")
    shutil.copytree(channel(pi.root), tmp_path / "old")
    (second,) = published(pi.root, "v2")
    choice = ReleaseChoice(config)
    assert load_active_model(config, choice).memory == "this process only: STATE_DIR is not set"
    shutil.rmtree(channel(pi.root))
    shutil.copytree(tmp_path / "old", channel(pi.root))
    model = load_active_model(config, choice)
    assert model.release_id == second.id
    assert "entry 2 was seen here" in model.alarm
    assert load_active_model(config).release_id != second.id  # another life knows nothing


def test_a_real_server_shows_the_alarm(pi: Pi, tmp_path: Path) -> None:
    (first,) = published(pi.root, "v1")
    settings = {"RELEASE_STORE": str(pi.root), "STATE_DIR": str(pi.state.parent)}
    alarms = []
    for _ in range(2):
        with running_server(tmp_path, **settings) as server:
            health = httpx.get(f"{server.url}/healthz").json()
            metrics = httpx.get(f"{server.url}/metrics").text
        assert (health["ok"], health["release"]) == (True, first.id)
        alarms.append((health["store"]["alarm"], 'hailo_store_alarm{kind="runtime_too_old"} 1.0' in metrics))
        if len(alarms) == 1:
            newer(pi, minimum_runtime="99.0.0")
    assert alarms[0] == (None, False)
    assert "99.0.0" in alarms[1][0]
    assert alarms[1][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"minimum_runtime": "99.0.0"}, "99.0.0"), ({"schema": 9}, "schema 9, this version reads 1, 2, 3")],
)
def test_a_release_for_a_newer_runtime_waits_for_it(
    pi: Pi, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    (first,) = published(pi.root, "v1")
    pi.serves(first)
    shutil.copytree(channel(pi.root), tmp_path / "old")
    newer(pi, **change)
    for _ in range(2):
        pi.serves(first, words)
    # It was seen, although it was not served: the copy from before is an old one.
    shutil.rmtree(channel(pi.root))
    shutil.copytree(tmp_path / "old", channel(pi.root))
    pi.serves(first, "ends at entry 1, entry 2 was seen here")


def test_a_machine_that_never_served_says_what_is_wrong(pi: Pi) -> None:
    published(pi.root, "v1")
    newer(pi, minimum_runtime="99.0.0")
    assert "99.0.0" in str(pi.fails())


def _wrong_role(pi: Pi, other: Release) -> None:
    put_entry(pi.root, after(tip(pi.root), release=other.id), BUILD)


def _unknown_key(pi: Pi, other: Release) -> None:
    put_entry(pi.root, after(tip(pi.root), release=other.id), STRANGER)


def _garbage(pi: Pi, other: Release) -> None:
    put(channel(pi.root) / entry_name(LAST_SEQUENCE), b"[" * 100_000)


def _cut_off(pi: Pi, other: Release) -> None:
    path = put_entry(pi.root, after(tip(pi.root), release=other.id), MANAGER)
    put(path, path.read_bytes()[:200])


def _jump(pi: Pi, other: Release) -> None:
    far = an_entry(sequence=LAST_SEQUENCE, previous_entry="a" * 64, release=other.id)
    put_entry(pi.root, far, MANAGER)


def _fork(pi: Pi, other: Release) -> None:
    put_entry(pi.root, an_entry(release=other.id), MANAGER)


def _gap(pi: Pi, other: Release) -> None:
    put_entry(pi.root, an_entry(sequence=3, previous_entry="a" * 64, release=other.id), MANAGER)


def _no_release(pi: Pi, other: Release) -> None:
    put_entry(pi.root, after(tip(pi.root), release="b" * 64), MANAGER)


def _without(name: str) -> Callable[[Pi, Release], None]:
    def change(pi: Pi, other: Release) -> None:
        (other.directory / name).unlink()
        put_entry(pi.root, after(tip(pi.root), release=other.id), MANAGER)

    return change


def _altered(pi: Pi, other: Release) -> None:
    flip_bit(other.directory / ARTIFACT, 40)
    put_entry(pi.root, after(tip(pi.root), release=other.id), MANAGER)


def _signed_by_nobody(pi: Pi, other: Release) -> None:
    signature = sign_release(manifest_bytes(other.manifest), STRANGER)
    put(other.directory / "manifest.dsse.json", signature)
    put_entry(pi.root, after(tip(pi.root), release=other.id), MANAGER)


def _junk_folder(pi: Pi, other: Release) -> None:
    (channel(pi.root) / entry_name(7)).mkdir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_wrong_role, "this takes a key of role stable"),
        (_unknown_key, "which root 1 does not name"),
        (_garbage, "not JSON"),
        (_cut_off, "not JSON"),
        (_jump, "more than 1000 ahead"),
        (_fork, "says something else at entry 1"),
        (_gap, "00000002.json: is not there yet"),
        (_no_release, "is not there, or not whole; entry 2 of channel stable names it"),
        (_without("manifest.json"), "no manifest.json"),
        (_without("manifest.dsse.json"), "has no signature"),
        (_without(ARTIFACT), "cannot be read"),
        (_altered, "the manifest says"),
        (_signed_by_nobody, "which root 1 does not name"),
        (_junk_folder, "00000007.json: Is a directory"),
    ],
)
def test_whatever_happens_to_the_store_the_last_release_is_served(
    pi: Pi, change: Callable[[Pi, Release], None], words: str
) -> None:
    (first,) = published(pi.root, "v1")
    (other,) = published(pi.root, "v2", channels=("canary",))
    pi.serves(first)
    change(pi, other)
    for _ in range(2):
        pi.serves(first, words)


def test_a_jump_says_what_to_do_where_the_reader_was_away_for_long(pi: Pi) -> None:
    """What it says to do is done here, word for word."""
    (first,) = published(pi.root, "v1")
    (other,) = published(pi.root, "v2", channels=("canary",))
    pi.serves(first)
    _jump(pi, other)
    pi.serves(first, "this reader was away for long: remove store-state.json from its STATE_DIR and restart")
    pi.serves(first, "where they are not, the key was stolen: `releasectl keys rotate`")
    (pi.state.parent / "store-state.json").unlink()
    pi.serves(other)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "an empty disk"])
def test_a_store_that_is_not_mounted_is_no_older_copy(pi: Pi, tmp_path: Path, left: str) -> None:
    (release,) = published(pi.root, "v1")
    choice = ReleaseChoice(pi.config)
    service = Service(ModelHolder(load_active_model(pi.config, choice)))
    pi.root.rename(tmp_path / "unmounted")
    if left != "nothing":
        pi.root.mkdir()
    if left == "an empty disk":
        (pi.root / "lost+found").mkdir()
    # Who serves goes on; who begins, or has to open it anew, says what is missing.
    assert service.client.simulate_get("/healthz").json["release"] == release.id
    again = load_state(pi.config, choice=choice)
    for error in (pi.fails(), again):
        assert isinstance(error, StoreMissingError)
        assert "is its disk mounted?" in str(error)
        assert isinstance(error, recovery._MAY_COME)
    assert Service(ModelHolder(pi.fails())).sample("hailo_store_alarm", kind="replayed") is None
    if left == "an empty disk":
        (pi.root / "lost+found").rmdir()
    if left != "nothing":
        pi.root.rmdir()
    (tmp_path / "unmounted").rename(pi.root)
    pi.serves(release)


def test_a_roll_back_is_followed(pi: Pi) -> None:
    first, second = published(pi.root, "v1", "v2")
    pi.serves(second)
    roll_back(a_store(pi.root), "emulator", "stable", WHY, MANAGER)
    pi.serves(first)


def test_an_emptied_channel_serves_nothing_older(pi: Pi) -> None:
    published(pi.root, "v1")
    pi.config = dataclasses.replace(pi.config, release_channel="canary")
    pi.boot()
    roll_back(a_store(pi.root), "emulator", "canary", WHY, BUILD)
    assert pi.fails().code == "no_release"


@pytest.mark.parametrize("holder", ["build", "release-manager"])
def test_rotated_keys_are_followed_and_never_taken_back(pi: Pi, tmp_path: Path, holder: str) -> None:
    (release,) = published(pi.root, "v1")
    pi.serves(release)
    shutil.copytree(pi.root, tmp_path / "old")
    store = a_store(pi.root)
    store.add_root(next_root(build=NEW) if holder == "build" else next_root(manager=NEW))
    assert sign_again(store, holder, NEW, "Ada")[1] == []
    pi.serves(release)
    assert len(json.loads(pi.state.read_bytes())["roots"]) == 1
    if holder == "release-manager":
        # The old key, which may be stolen, and a store that hides the new root.
        shutil.rmtree(pi.root)
        shutil.copytree(tmp_path / "old", pi.root)
        (other,) = published(pi.root, "v2", channels=("canary",))
        put_entry(pi.root, after(tip(pi.root), release=other.id), MANAGER)
        pi.serves(release, "entry 2 was seen here")


def test_another_anchor_makes_what_was_seen_void(pi: Pi, tmp_path: Path) -> None:
    published(pi.root, "v1", "v2")
    pi.boot()
    anchor = put(tmp_path / "root.json", sign_root(a_root(development=False), [ROOT_KEY]))
    pi.config = dataclasses.replace(pi.config, trust_root=anchor)
    shutil.rmtree(channel(pi.root))
    put_entry(pi.root, an_entry(release=a_store(pi.root).identifiers()[0]), MANAGER)
    assert (pi.boot().keys, pi.boot().sequence) == ("own keys", 1)


def test_a_folder_that_cannot_be_written_is_said_and_serving_goes_on(pi: Pi) -> None:
    (release,) = published(pi.root, "v1")
    pi.config = dataclasses.replace(pi.config, state_dir=Path("/proc/hailo-pipeline"))
    model = pi.boot()
    assert model.release_id == release.id
    assert model.memory.startswith("STATE_DIR cannot be written: ")
    health = Service(ModelHolder(model)).client.simulate_get("/healthz")
    assert health.json["store"]["memory"] == model.memory


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-40],
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b'"schema": 1', b'"schema": 2'),
        lambda data: data.replace(b'"roots": []', b'"roots": ["nothing"]'),
        lambda data: data.replace(b'"roots": []', b'"roots": ["\\ud800"]'),
        lambda data: data.replace(b'"sequence": 1', b'"sequence": "1"'),
        lambda data: data.replace(b'"serving": "', b'"serving": "../'),
    ],
)
def test_a_damaged_memory_is_never_guessed_at(pi: Pi, damage: Callable[[bytes], bytes]) -> None:
    published(pi.root, "v1")
    pi.boot()
    damaged = damage(pi.state.read_bytes())
    put(pi.state, damaged)
    with pytest.raises(ConfigError, match="remove it to begin anew"):
        pi.boot()
    assert pi.fails().code == "config"
    assert pi.state.read_bytes() == damaged
    pi.state.unlink()
    pi.boot()


def test_a_memory_that_is_a_folder_is_damaged_too(pi: Pi) -> None:
    published(pi.root, "v1")
    pi.state.mkdir(parents=True)
    assert pi.fails().code == "config"


def test_each_channel_has_its_own_memory(pi: Pi) -> None:
    (first,) = published(pi.root, "v1")
    (second,) = published(pi.root, "v2", channels=("canary",))
    pi.serves(first)
    canary = dataclasses.replace(pi.config, release_channel="canary")
    assert load_active_model(canary).release_id == second.id
    assert set(json.loads(pi.state.read_bytes())["channels"]) == {"emulator/canary", "emulator/stable"}
    pi.serves(first)


@pytest.mark.parametrize("place", ["trust", "trust/2.root.json", "channels", "channels/emulator/stable"])
@pytest.mark.parametrize("kind", ["file", "folder", "circle"])
def test_what_is_in_a_folders_or_files_place_takes_nothing_away(pi: Pi, place: str, kind: str) -> None:
    (release,) = published(pi.root, "v1")
    pi.serves(release)
    path = pi.root / place
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    if kind == "file":
        path.write_bytes(b"junk")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name)
    assert pi.boot().release_id == release.id


def test_a_target_that_somebody_adds_takes_nothing_away(pi: Pi) -> None:
    (release,) = published(pi.root, "v1")
    pi.serves(release)
    put(channel(pi.root, target="hailo8") / entry_name(1), b"junk")
    pi.serves(release)
    aside = channel(pi.root).parent.rename(pi.root / "aside")
    pi.serves(release, "ends at entry 0")
    aside.rename(channel(pi.root).parent)
    pi.state.unlink()
    pi.serves(release)
    pi.state.unlink()
    ReleaseSimulator(target="hailo8").publish(pi.root, "canary", judged=False)
    pi.serves(release)


def test_a_root_in_another_encoding_takes_nothing_away(pi: Pi) -> None:
    """Its signature holds for its payload, however the envelope around it is written."""
    (release,) = published(pi.root, "v1")
    pi.serves(release)
    after_it = sign_root(a_root(version=2), [ROOT_KEY])
    place = pi.root / "trust" / "2.root.json"
    put(place, after_it.decode().encode("utf-16"))
    pi.serves(release, alarm="2.root.json")
    put(place, after_it)
    pi.serves(release)


def test_what_a_stranger_adds_to_a_root_is_not_remembered(pi: Pi) -> None:
    (release,) = published(pi.root, "v1")
    document = json.loads(sign_root(a_root(version=2), [ROOT_KEY]))
    document["signatures"].append({"keyid": "x" * 100_000, "sig": "AAAA"})
    put(pi.root / "trust" / "2.root.json", to_json(document))
    pi.serves(release)
    assert len(pi.state.read_bytes()) < 10_000
    pi.serves(release)


def test_a_mistake_of_ours_on_the_new_release_leaves_the_last(
    pi: Pi, monkeypatch: pytest.MonkeyPatch
) -> None:
    (release,) = published(pi.root, "v1")
    pi.serves(release)
    found = ReleaseChoice.find

    def fails(self: ReleaseChoice) -> object:
        found(self)
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "ours")

    monkeypatch.setattr(ReleaseChoice, "find", fails)
    pi.serves(release, alarm="ours")


def test_a_store_of_another_target_only_is_followed(pi: Pi) -> None:
    published(pi.root, "v1")
    pi.boot()
    shutil.rmtree(channel(pi.root).parent)
    put_entry(pi.root, an_entry(target="hailo8", release="b" * 64), MANAGER)
    assert pi.fails().code == "not_there_yet"
