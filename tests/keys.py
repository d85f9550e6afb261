"""Keys for tests: always the same ones, and the files that settings name."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

from runtime.contract.channels import ENTRY_TYPE
from runtime.contract.document import to_json
from runtime.contract.keys import HOLDERS, ROOT_FILE, PrivateKey, make_root, sign_root
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import Root, SigningKey, Trust, sign


def a_key(name: str) -> PrivateKey:
    """The key of that name: the same in every process."""
    return PrivateKey.from_seed(hashlib.sha256(f"hailo-pipeline test key {name}".encode()).digest())


ROOT_KEY: Final = a_key("root")
BUILD: Final = a_key("build")
MANAGER: Final = a_key("release-manager")
KEY_OF: Final = {"canary": BUILD, "stable": MANAGER}


def a_root(
    *,
    version: int = 1,
    root: PrivateKey = ROOT_KEY,
    build: PrivateKey = BUILD,
    manager: PrivateKey = MANAGER,
    development: bool = True,
) -> Root:
    """A root of these keys."""
    holders = {"root": [root.public], "build": [build.public], "release-manager": [manager.public]}
    return make_root(holders, version=version, development=development)


TRUST_ROOT: Final = sign_root(a_root(), [ROOT_KEY])


def a_trust() -> Trust:
    """What the tests' own root of trust says."""
    return Trust(TRUST_ROOT, "test root")


def a_store(root: Path, *, accepts_doubles: bool = False) -> ReleaseStore:
    """A store of the tests' own keys."""
    return ReleaseStore(root, a_trust(), _accepts_doubles=accepts_doubles)


def entry_payload(path: Path) -> dict[str, Any]:
    """What a channel's entry says, whoever signed it."""
    payload: dict[str, Any] = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
    return payload


def write_entry(root: Path, entry: dict[str, Any], key: SigningKey | None = None) -> Path:
    """Sign an entry, whatever it says, and write it where it says that it belongs.

    Args:
        root: The store.
        entry: The payload.
        key: Who signs; None for the one whose role it is.
    """
    path = root.joinpath("channels", entry["target"], entry["channel"], f"{entry['sequence']:08}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(sign(to_json(entry), ENTRY_TYPE, [key or KEY_OF[entry["channel"]]]))
    return path


def resign(path: Path, key: SigningKey, **changes: object) -> None:
    """Change what an entry says, where it lies, and sign it again."""
    document = sign(to_json(entry_payload(path) | changes), ENTRY_TYPE, [key])
    path.unlink()
    path.write_bytes(document)


@cache
def key_folder() -> Path:
    """A folder with the tests' keys, for processes that read them from files; as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="hailo-pipeline-test-keys-"))
    (folder / ROOT_FILE).write_bytes(TRUST_ROOT)
    for holder, key in (("root", ROOT_KEY), ("build", BUILD), ("release-manager", MANAGER)):
        path = folder / HOLDERS[holder]
        path.touch(0o600)
        path.write_bytes(key.pem())
    return folder


def use_test_keys() -> None:
    """Let this process, and those that it starts, trust and sign with the tests' keys."""
    folder = key_folder()
    os.environ["TRUST_ROOT"] = str(folder / ROOT_FILE)
    os.environ["CANARY_KEY_FILE"] = str(folder / HOLDERS["build"])
    os.environ["RELEASE_KEY_FILE"] = str(folder / HOLDERS["release-manager"])
