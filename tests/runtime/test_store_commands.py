"""``releasectl``'s moves: what they print, sign and refuse, and what their exit code says."""

from __future__ import annotations

import getpass
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import main
from runtime.contract.keys import KeyFolder, load_key
from runtime.contract.promotion import Decision, mark_bad, promote
from runtime.contract.requests import MoveRequest, pending_requests, write_request
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import Trust
from tests.keys import BUILD, MANAGER, a_store, key_folder
from tests.moves import floor_of, published
from tests.simulators import ReleaseSimulator
from tests.verdicts import judged_well

Capture = pytest.CaptureFixture[str]
REASON = ("--reason", "looked at it")


def run(capsys: Capture, store: Path, verb: str, *arguments: str) -> tuple[int, str, str]:
    code = main([verb, "--store", str(store), *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys: Capture, store: Path, verb: str, *arguments: str) -> Any:
    code, out, err = run(capsys, store, verb, *arguments, "--json")
    assert code == 0, out + err
    return json.loads(out)


def failure(capsys: Capture, store: Path, verb: str, *arguments: str) -> dict[str, str]:
    code, out, _ = run(capsys, store, verb, *arguments, "--json")
    assert code != 0
    found: dict[str, str] = json.loads(out)
    return found


@pytest.fixture(name="releases")
def two_canaries(tmp_path: Path) -> list[Release]:
    """The first of them is judged as what canary names now."""
    releases = published(tmp_path, "v1", "v2", channels=("canary",))
    judged_well(a_store(tmp_path), releases[0])
    return releases


def test_promote_roll_back_and_mark(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    for release in releases:
        judged_well(a_store(tmp_path), release)
        moved = answer(capsys, tmp_path, "promote", release.id[:16], "--yes", "--by", "Ada", *REASON)
        assert (moved["release"], moved["action"], moved["actor"]) == (release.id, "promote", "Ada")
    back = answer(capsys, tmp_path, "rollback", "emulator", "stable", "--yes", *REASON)
    assert (back["release"], back["previous"]) == (releases[0].id, releases[1].id)
    assert back["actor"] == getpass.getuser()
    mark = answer(capsys, tmp_path, "mark-bad", releases[1].id, "--yes", *REASON)
    assert (mark["action"], mark["marked"], mark["channel"]) == ("mark_bad", releases[1].id, "stable")
    to = ("--to", releases[1].id)
    error = failure(capsys, tmp_path, "rollback", "emulator", "stable", *to, "--yes", *REASON)
    assert error["error"] == "promotion_refused"
    forced = answer(capsys, tmp_path, "rollback", "emulator", "stable", *to, "--yes", "--force", *REASON)
    assert len(forced["overridden"]) == 1
    told = answer(capsys, tmp_path, "history", "emulator", "stable")
    assert [each["action"] for each in told] == ["promote", "promote", "roll_back", "mark_bad", "roll_back"]
    assert {tuple(each["signed_by"]) for each in told} == {(MANAGER.keyid,)}
    (second,) = answer(capsys, tmp_path, "history", "emulator", "stable", "--at", "2")
    assert second["release"] == releases[1].id
    assert failure(capsys, tmp_path, "history", "--at", "99")["error"] == "no_release"
    code, out, err = run(capsys, tmp_path, "history")
    assert (code, len(out.splitlines()), err) == (0, 7, "")


def test_a_history_that_does_not_hold_is_told(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    (tmp_path / "channels/emulator/canary/00000001.json").unlink()
    code, _, err = run(capsys, tmp_path, "history")
    assert code == 1
    assert "00000001.json is missing" in err


def test_a_history_says_from_where_on_what_and_by_which_key(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    first, second = (release.id for release in releases)
    store = a_store(tmp_path)
    store.add_evidence(releases[1], "parity", "json", b"{}")
    store.add_evidence(releases[1], "parity", "html", b"<p>")
    for release in releases:
        for path in store.evidence(release.id):
            if path.name.startswith("verdict-"):
                path.unlink()
        judged_well(store, release)
        answer(capsys, tmp_path, "promote", release.id, "--yes", "--by", "Ada", *REASON)
    one, two = run(capsys, tmp_path, "history", "emulator", "stable")[1].splitlines()
    assert (
        f"promote nothing -> {first[:12]}  Ada: looked at it  evidence: verdict  key {MANAGER.keyid[:12]}"
        in one
    )
    assert f"promote {first[:12]} -> {second[:12]}  Ada: looked at it  evidence: parity, verdict  key" in two


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("No username set"), ImportError("pwd")])
def test_who_has_no_name_is_asked_for_it(
    tmp_path: Path,
    releases: list[Release],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def nobody() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", nobody)
    told = failure(capsys, tmp_path, "promote", releases[0].id, "--yes", *REASON)
    assert told["error"] == "config"
    assert "--by" in json.dumps(told)
    answer(capsys, tmp_path, "promote", releases[0].id, "--yes", "--by", "Ada", *REASON)


def test_a_mark_of_the_build_host(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    arguments = (releases[0].id, "--channel", "canary", "--yes", *REASON)
    assert answer(capsys, tmp_path, "mark-bad", *arguments)["channel"] == "canary"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--yes",), "promotion_refused", "reason: must be said"),
        (("--yes", *REASON, "--by", " "), "promotion_refused", "actor: must be said"),
        (REASON, "not_confirmed", "nobody was there to confirm it"),
        (("--yes", *REASON, "--key", "nowhere.pem"), "key_file", "cannot be read"),
        (("--yes", *REASON, "--key", "{keys}/build.pem"), "wrong_role", "this takes a key of role stable"),
        (("--yes", *REASON, "--key", "{keys}/root.json"), "key_file", "others may read it"),
    ],
)
def test_what_is_not_signed(
    tmp_path: Path,
    releases: list[Release],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: str,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    given = [each.format(keys=key_folder()) for each in arguments]
    error = failure(capsys, tmp_path, "promote", releases[0].id, *given)
    assert error["error"] == code
    assert words in json.dumps(error)
    assert a_store(tmp_path).history("emulator", "stable") == []


def test_without_a_key_it_says_which_variable_names_one(
    tmp_path: Path, releases: list[Release], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RELEASE_KEY_FILE")
    code, _, err = run(capsys, tmp_path, "promote", releases[0].id, "--yes", *REASON)
    assert code != 0
    assert "RELEASE_KEY_FILE: no key to sign for stable" in err


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "moves"), [("y\n", 1), ("\n", 0), ("no\n", 0)])
def test_a_person_is_asked_and_sees_what_they_sign(
    tmp_path: Path,
    releases: list[Release],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    moves: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    code, _, err = run(capsys, tmp_path, "promote", releases[0].id, "--by", "Ada", "--force", *REASON)
    assert (code == 0) == bool(moves)
    for words in (releases[0].id[:16], "Ada", "looked at it", "forced", "development keys"):
        assert words in err
    assert len(a_store(tmp_path).history("emulator", "stable")) == moves


class Slow(Terminal):
    """Somebody who says yes after something happened."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__("y\n")
        self._happens = happens

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # as io.StringIO's own
        self._happens()
        return super().readline(size)


def test_a_roll_back_goes_where_it_was_shown_to_go(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build key's mark that comes while the prompt waits stops it, and does not steer it elsewhere."""
    first, second, third = published(tmp_path, "v1", "v2", "v3")
    store = a_store(tmp_path)

    def steer() -> None:
        mark_bad(store, second.id, "canary", Decision(actor="CI", reason="steers"), BUILD)

    monkeypatch.setattr(sys, "stdin", Slow(steer))
    code, _, err = run(capsys, tmp_path, "rollback", "emulator", "stable", *REASON)
    assert code != 0
    for words in (f"to {second.id}", "v2", "parity  passed", f"now     {third.id}, entry 3, test: simulated"):
        assert words in err
    assert "marked bad by CI" in err
    assert first.id not in err
    assert store.resolve("emulator", "stable").id == third.id


def test_what_a_requested_roll_back_comes_to_is_shown(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    name = ask(a_store(tmp_path), "", action="roll_back")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    _, _, err = run(capsys, tmp_path, "promote", "--request", name, "--by", "Ada")
    assert f"roll back emulator/stable to {first.id}" in err


@pytest.mark.parametrize("verb", ["promote", "rollback", "mark-bad"])
def test_a_move_made_while_the_prompt_waits_is_told(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    published(tmp_path, "v1", "v2")
    (other,) = published(tmp_path, "v3", channels=("canary",))
    store = a_store(tmp_path)

    def move() -> None:
        promote(store, "emulator", other.id, Decision(actor="Bob", reason="quick"), MANAGER)

    monkeypatch.setattr(sys, "stdin", Slow(move))
    arguments = ("emulator", "stable") if verb == "rollback" else (other.id,)
    code, _, err = run(capsys, tmp_path, verb, *arguments, *REASON)
    assert code != 0
    assert f"Bob moved it first to {other.id[:12]}: quick" in err
    assert len(store.history("emulator", "stable")) == 3


def test_what_a_release_says_of_itself_moves_no_cursor(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = ReleaseSimulator(version="\x1b[2Jv1").place(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    err = run(capsys, tmp_path, "mark-bad", release.id, *REASON)[2]
    assert "?[2Jv1" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("stdin", "arguments", "left"),
    [
        (Terminal("y\n"), (), 1),
        (Terminal("\n"), (), 2),
        (Terminal(""), (), 2),
        (Terminal(""), ("--yes",), 1),
        (Terminal(""), ("--dry-run",), 2),
        (io.StringIO(""), (), 1),
    ],
)
def test_a_person_is_asked_before_anything_is_removed(
    tmp_path: Path,
    releases: list[Release],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    stdin: io.StringIO,
    arguments: tuple[str, ...],
    left: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, err = run(capsys, tmp_path, "prune", "--keep", "1", "--json", *arguments)
    refused = left == 2 and not arguments
    assert (code, len(a_store(tmp_path).identifiers())) == (1 if refused else 0, left)
    assert ("not_confirmed" in out) == refused
    assert json.loads(out)
    assert ("would remove 1 releases" in err) == (stdin.isatty() and not arguments)


def test_a_key_that_others_may_read_is_refused(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    key = tmp_path / "manager.pem"
    key.write_bytes(MANAGER.pem())
    key.chmod(0o640)
    error = failure(capsys, tmp_path, "promote", releases[0].id, "--yes", *REASON, "--key", str(key))
    assert error["error"] == "key_file"
    assert "others may read it (mode 0640)" in json.dumps(error)


@pytest.mark.parametrize(
    ("terminal", "word", "code"),
    [(True, "open", ""), (True, "wrong", "key_file"), (False, "open", "not_confirmed")],
)
def test_an_encrypted_key_asks_for_its_passphrase(
    tmp_path: Path,
    releases: list[Release],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    word: str,
    code: str,
) -> None:
    key = tmp_path / "manager.pem"
    key.touch(0o600)
    key.write_bytes(MANAGER.pem(b"open"))
    monkeypatch.setattr(sys, "stdin", Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(getpass, "getpass", lambda prompt: word)
    arguments = ("promote", releases[0].id, "--yes", *REASON, "--key", str(key))
    if code:
        assert failure(capsys, tmp_path, *arguments)["error"] == code
    else:
        assert answer(capsys, tmp_path, *arguments)["release"] == releases[0].id


# Requests.


def ask(store: ReleaseStore, release: str, **changes: Any) -> str:
    head = store.head("emulator", "stable")
    fields: dict[str, Any] = {
        "schema": 1,
        "action": "promote",
        "target": "emulator",
        "channel": "stable",
        "release": release,
        "approved_by": "Bob",
        "reason": "it passed",
        "force": False,
        "origin": "run 1",
        "seen": head.signed.digest if head else "",
        "at": "2026-11-27T10:00:00+00:00",
    }
    return write_request(store, MoveRequest(**(fields | changes)))


def test_a_request_is_shown_signed_and_gone(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    name = ask(a_store(tmp_path), releases[0].id)
    (shown,) = answer(capsys, tmp_path, "requests")
    assert (shown["name"], shown["release"], shown["approved_by"]) == (name, releases[0].id, "Bob")
    assert "Bob: it passed" in run(capsys, tmp_path, "requests")[1]
    moved = answer(capsys, tmp_path, "promote", "--request", name[:12], "--yes", "--by", "Ada")
    assert (moved["release"], moved["actor"]) == (releases[0].id, "Ada")
    assert moved["reason"] == "it passed (requested by Bob, run 1)"
    assert answer(capsys, tmp_path, "requests") == []
    assert "no move waits" in run(capsys, tmp_path, "requests")[1]


@pytest.mark.parametrize("action", ["promote", "roll_back"])
def test_a_request_is_signed_by_whoever_signs_not_by_whom_it_names(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    store = a_store(tmp_path)
    before = store.history("emulator", "stable")
    name = ask(store, first.id if action == "promote" else "", action=action)
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    error = failure(capsys, tmp_path, "promote", "--request", name, "--yes")
    assert error["error"] == "config"
    for words in ("nobody vouches for 'Bob'", "--by NAME"):
        assert words in json.dumps(error)
    assert store.history("emulator", "stable") == before
    assert list(pending_requests(store)) == [name]


def test_a_requested_roll_back_is_signed(tmp_path: Path, capsys: Capture) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    name = ask(a_store(tmp_path), "", action="roll_back")
    assert (
        answer(capsys, tmp_path, "promote", "--request", name, "--yes", "--by", "Ada")["release"] == first.id
    )
    assert pending_requests(a_store(tmp_path)) == {}


def test_a_request_about_what_was_is_refused(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    store = a_store(tmp_path)
    name = ask(store, releases[0].id)
    promote(store, "emulator", releases[1].id, Decision(actor="Ada", reason="newer"), MANAGER)
    error = failure(capsys, tmp_path, "promote", "--request", name, "--yes", "--by", "Ada")
    assert error["error"] == "channel_moved"
    assert "moved since this was asked for: Ada: newer" in json.dumps(error)
    assert list(pending_requests(store)) == [name]
    assert answer(capsys, tmp_path, "requests", "--drop", name[:8]) == []


def test_only_who_signs_may_force(
    tmp_path: Path, releases: list[Release], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request is anybody's word: its ``force`` is shown, and counts for nothing."""
    store = a_store(tmp_path)
    mark_bad(store, releases[0].id, "canary", Decision(actor="Ada", reason="too hot"), BUILD)
    name = ask(store, releases[0].id, force=True)
    error = failure(capsys, tmp_path, "promote", "--request", name, "--yes", "--by", "Ada")
    assert error["error"] == "promotion_refused"
    assert store.history("emulator", "stable") == []
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, err = run(capsys, tmp_path, "promote", "--request", name, "--force", "--by", "Ada")
    assert code == 0
    assert "AGAINST marked bad by Ada" in err
    assert "takes your own --force" in err
    assert "OVERRODE: marked bad by Ada" in out


def test_a_request_for_what_must_not_be_stays(tmp_path: Path, capsys: Capture) -> None:
    (release,) = published(tmp_path, "v1", channels=())
    name = ask(a_store(tmp_path), release.id)
    error = failure(capsys, tmp_path, "promote", "--request", name, "--yes", "--by", "Ada")
    assert error["error"] == "promotion_refused"
    assert list(pending_requests(a_store(tmp_path))) == [name]
    assert failure(capsys, tmp_path, "promote", "--request", "f" * 12, "--yes")["error"] == "no_release"


# Keys.


def test_keys_are_shown(tmp_path: Path, capsys: Capture) -> None:
    shown = answer(capsys, tmp_path, "keys", "show")
    assert (shown["version"], shown["development"]) == (1, True)
    assert shown["roles"]["stable"] == {"keys": [MANAGER.keyid], "threshold": 1}
    out = run(capsys, tmp_path, "keys", "show")[1]
    assert "all keys lie on one machine: they separate nobody" in out
    assert BUILD.keyid[:16] in out


def test_keys_are_made_once(tmp_path: Path, capsys: Capture) -> None:
    made = answer(capsys, tmp_path, "keys", "init", str(tmp_path / "keys"))
    root = Trust.load(Path(made["TRUST_ROOT"])).root
    assert (root.kind, root.version) == ("own keys", 1)
    assert load_key(Path(made["RELEASE_KEY_FILE"])).keyid in root.roles["stable"].keyids
    error = failure(capsys, tmp_path, "keys", "init", str(tmp_path / "keys"))
    assert "holds a root of trust already" in json.dumps(error)


@pytest.mark.parametrize("holder", ["build", "release-manager", "root"])
def test_a_key_is_rotated_and_who_saw_the_store_before_follows(
    tmp_path: Path, capsys: Capture, holder: str
) -> None:
    store = tmp_path / "store"
    (release,) = published(store, "v1")
    floors = {name: floor_of(store, name) for name in ("canary", "stable")}
    new = tmp_path / "new.pem"
    arguments = ("keys", "rotate", str(key_folder()), "--holder", holder, "--new", str(new))
    shown = answer(capsys, store, *arguments)
    again = {"build": [release.id, "emulator/canary"], "release-manager": ["emulator/stable"], "root": []}
    assert (shown["version"], shown["signed_again"]) == (2, again[holder])
    for name, floor in floors.items():
        assert a_store(store).follow("emulator", name, floor).release.id == release.id
    code, out, _ = run(capsys, store, "verify")
    assert code == 0, out
    error = failure(capsys, store, *arguments)
    assert error["error"] == ("unknown_key" if holder == "root" else "key_file")
    if holder == "release-manager":
        error = failure(capsys, store, "mark-bad", release.id, "--yes", *REASON)
        assert error["error"] == "unknown_key"
        arguments = ("mark-bad", release.id, "--yes", *REASON, "--key", str(new))
        assert answer(capsys, store, *arguments)["marked"] == release.id


@pytest.mark.parametrize("by", ["Ada", None])
def test_who_rotated_is_told_and_kept(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, by: str | None
) -> None:
    """Without --by it is the user's name, in a container root's: shown, so that nobody finds it later."""
    store, new = tmp_path / "store", tmp_path / "new.pem"
    published(store, "v1")
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    named = ("--by", by) if by else ()
    rotate = ("rotate", str(key_folder()), "--holder", "release-manager", "--new", str(new), *named)
    code, out, _ = run(capsys, store, "keys", *rotate)
    assert (code, f"signed again: emulator/stable, by {by or 'root'}" in out) == (0, True)
    resign = ("resign", "--holder", "release-manager", "--new", str(new), *named)
    assert answer(capsys, store, "keys", *resign)["by"] == (by or "root")
    assert a_store(store).history("emulator", "stable")[-1].actor == (by or "root")


@pytest.mark.parametrize("by", [" ", "A\nB", None])
def test_who_cannot_be_named_rotates_nothing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, by: str | None
) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    named = ("--by", by) if by else ()
    new = tmp_path / "new.pem"
    rotate = ("rotate", str(key_folder()), "--holder", "build", "--new", str(new), *named)
    error = failure(capsys, tmp_path / "store", "keys", *rotate)
    assert error["error"] == ("promotion_refused" if by else "config")
    assert not new.exists()


def test_a_rotation_that_was_cut_off_is_finished(tmp_path: Path, capsys: Capture) -> None:
    store, new = tmp_path / "store", tmp_path / "new.pem"
    (release,) = published(store, "v1")
    entry = store / "channels/emulator/stable/00000002.json"
    rotate = ("rotate", str(key_folder()), "--holder", "release-manager", "--new", str(new))
    answer(capsys, store, "keys", *rotate)
    entry.unlink()
    resign = ("resign", "--holder", "release-manager", "--new", str(new))
    assert answer(capsys, store, "keys", *resign)["signed_again"] == ["emulator/stable"]
    assert a_store(store).resolve("emulator", "stable").id == release.id


@pytest.mark.parametrize("what", ["init", "rotate", "resign"])
def test_keys_say_what_they_need(tmp_path: Path, capsys: Capture, what: str) -> None:
    assert failure(capsys, tmp_path, "keys", what)["error"] == "config"


def test_a_folder_with_something_else_is_no_key_folder(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes").touch()
    error = failure(capsys, tmp_path, "keys", "init", str(tmp_path))
    assert error["error"] == "key_file"
    assert not KeyFolder(tmp_path).root.exists()


def test_a_mark_moves_no_channel_for_show_either(tmp_path: Path, capsys: Capture) -> None:
    """Since when, and by whom, a channel names a release is what its move said."""
    (release,) = published(tmp_path, "v1")
    mark_bad(a_store(tmp_path), release.id, "stable", Decision(actor="Bob", reason="hot"), MANAGER)
    _, out, _ = run(capsys, tmp_path, "show", release.id, "--json")
    channels = {entry["channel"]: entry for entry in json.loads(out)["channels"]}
    assert (channels["stable"]["sequence"], channels["stable"]["reason"]) == (1, "simulated")
    assert json.loads(out)["marked_bad"][0]["actor"] == "Bob"


def test_an_export_is_written_over_another_file_with_force_only(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    path = tmp_path / "release.tar"
    path.write_bytes(b"somebody's")
    error = failure(capsys, tmp_path, "export", releases[0].id, str(path))
    assert error["error"] == "export_file"
    assert "--force" in json.dumps(error)
    assert path.read_bytes() == b"somebody's"
    assert answer(capsys, tmp_path, "export", releases[0].id, str(path), "--force")["file"] == str(path)
    assert path.stat().st_size > 1024
