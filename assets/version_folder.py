"""A version folder of trained weights: found, read once, named, and held against its checksums.

Nothing here looks into a weights file, so that watching a folder costs no import of torch or onnx.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import WeightsError
from runtime.contract.files import read_bounded
from runtime.contract.release import ModelIdentity

NORMALIZATION: Final = "normalization.json"
MODEL_CONFIG: Final = "model_config.json"
MOTIF_HEAD: Final = "motif_head.json"
EVALUATION: Final = "eval_metrics.json"
MODEL_CARD: Final = "model_card.md"
CHECKSUMS: Final = "sha256sum.txt"
IDENTITY: Final = "identity.json"
DEFAULT_MODEL: Final = "tcn_encoder"
CHECKPOINTS: Final = (".pth", ".pt")
GRAPHS: Final = (".onnx",)
WEIGHTS: Final = (*CHECKPOINTS, *GRAPHS)
ANY_WEIGHTS: Final = (*WEIGHTS, ".safetensors", ".ckpt", ".h5", ".tflite")
"""Suffixes, in lower case, of what somebody may mean as weights; all but ``WEIGHTS`` are refused by name."""
DECIDING: Final = (NORMALIZATION, MODEL_CONFIG, MOTIF_HEAD)
"""What shapes a release, beside the weights: part of the product, and so of its data version."""
TELLING: Final = (CHECKSUMS, EVALUATION, MODEL_CARD)
"""What only says something about the others: read and judged, no part of the product."""
_MEANT: Final = (*DECIDING, CHECKSUMS, MODEL_CARD)
"""What makes a folder one that somebody meant as a version, also where its weights cannot be read."""
_CARD_CHARACTERS: Final = 20_000
MOST_WEIGHTS: Final = 2 << 30
MOST_WORDS: Final = 4 << 20
"""Bytes of a weights file and of any other: far beyond a real one, and this is held in memory."""
_GIVE: Final = "give one checkpoint, one ONNX encoder, or both of one training"
_RIGHTS: Final = "check the folder's rights"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SEMVER: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")
_SUM: Final = re.compile(r"\\?([0-9a-fA-F]{64})\s+\*?(.+)")
_BSD_SUM: Final = re.compile(r"SHA256 \((.+)\) = ([0-9a-fA-F]{64})")


@dataclass(frozen=True, kw_only=True)
class VersionFolder:
    """A version folder as it was at one moment; its content is not judged.

    Args:
        path: Where it lies.
        weights_dir: Where it was looked for; the same where it was named itself.
        files: Name to bytes of every file that says something here, each read once.
    """

    path: Path
    weights_dir: Path
    files: Mapping[str, bytes]

    def identity(self) -> ModelIdentity:
        """The model and version that it holds.

        Raises:
            WeightsError: As ``identify`` does.
        """
        return identify(self.path, self.weights_dir, stated_version(self.files))

    def named_version(self) -> str | None:
        """The version as the folder's name says it; None where the name is nobody's business."""
        name = self.path.absolute().name
        return None if self.path == self.weights_dir and not _SEMVER.fullmatch(name) else name

    def content(self) -> dict[str, bytes]:
        """The files that decide what a release is, and its name: what a product keeps.

        The name is a file of its own, so another name is another content. Model card, metrics and
        checksums are left out: another word about the same weights makes no other release.
        """
        return {**deciding(self.files), IDENTITY: to_json(self.identity())}

    def card(self) -> str:
        """The model card, for people; empty where there is none. It decides nothing."""
        return self.files.get(MODEL_CARD, b"").decode(errors="replace")[:_CARD_CHARACTERS]


def deciding(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of a version folder's files that shape a release."""
    return {name: data for name, data in files.items() if name.endswith(WEIGHTS) or name in DECIDING}


def find_version(weights_dir: Path) -> Path:
    """The folder to build from: ``weights_dir`` itself, or the newest ``<model>/<version>`` in it.

    Newest is the highest semantic version, then the name. A folder that was meant as a version is one
    without weights that can be read, too: it is refused then, and no older one taken for it.

    Raises:
        WeightsError: No such folder.
    """
    if _weights_files(weights_dir):
        return weights_dir
    try:
        folders = [
            folder
            for folder in weights_dir.glob("*/*")
            if not folder.name.startswith(".") and not folder.parent.name.startswith(".")
            if _is_meant(folder)
        ]
    except OSError as error:
        raise WeightsError(
            f"cannot be read: {error.strerror}", where=str(weights_dir), hint=_RIGHTS
        ) from error
    if not folders:
        is_file = weights_dir.is_file()
        raise WeightsError(
            "is a file, expected a folder"
            if is_file
            else "no <model>/<version>/ folder with a weights file (.pth, .pt or .onnx)",
            where=str(weights_dir),
            hint="name the folder that holds it"
            if is_file
            else "put one there, or name a folder with WEIGHTS_DIR",
        )
    return max(folders, key=lambda folder: (_semver(folder.name), folder.parent.name, folder.name))


def _weights_files(folder: Path) -> list[Path]:
    """A folder's weights files, readable or not; folders of such a name are nobody's."""
    return [path for path in _visible(folder) if path.suffix in WEIGHTS and not path.is_dir()]


def _is_meant(folder: Path) -> bool:
    """Whether this was meant as a version, by its weights (of any kind) or by the files beside them."""
    return any(path.name in _MEANT or path.suffix.lower() in ANY_WEIGHTS for path in _visible(folder))


def _visible(folder: Path) -> list[Path]:
    """What a folder holds; hidden files (what a copy has not finished) are nobody's."""
    try:
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise WeightsError(f"cannot be read: {error.strerror}", where=str(folder), hint=_RIGHTS) from error


def _semver(name: str) -> tuple[Any, ...]:
    """Sorts as semantic versions do; what is none of them comes before them all."""
    match = _SEMVER.fullmatch(name)
    if not match:
        return (-1, -1, -1, False, ())
    parts = (match[4] or "-").removeprefix("-").split(".")
    stage = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
    return (*(int(part) for part in match.groups()[:3]), match[4] is None, stage)


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file of a version folder that says something here, by name, each read once.

    Those are the weights files, ``DECIDING`` and ``TELLING``. What is judged afterwards is these
    bytes, whatever happens to the folder meanwhile.

    Raises:
        WeightsError: No weights file, or a file that cannot be read, is no file, is too large, or is gone
            since it was listed.
    """
    paths = _weights_files(folder)
    if not paths:
        found = ", ".join(repr(path.name)[1:-1] for path in _visible(folder)[:8])
        raise WeightsError(
            f"no weights file that is read (.pth, .pt or .onnx); here are: {found or 'no files'}",
            where=str(folder),
            hint=f"{_GIVE}; while the folder is still being copied, try again",
        )
    strange = [path.name for path in paths if not path.name.isprintable()]
    if strange:
        raise WeightsError(f"a file is named {strange[0]!r}", where=str(folder), hint="rename it")
    paths += [folder / name for name in (*DECIDING, *TELLING) if os.path.lexists(folder / name)]
    return {path.name: _read(path) for path in paths}


def _read(path: Path) -> bytes:
    """One file; what is no file, or too large to be one of these, neither waits nor fills the memory."""
    limit = MOST_WEIGHTS if path.name.endswith(WEIGHTS) else MOST_WORDS
    try:
        data = read_bounded(path, limit)
    except FileNotFoundError as error:
        link = path.is_symlink()
        raise WeightsError(
            f"cannot be read: {error.strerror}" + " where the link leads" * link,
            where=str(path),
            hint="fetch the content that it stands for (git annex get, dvc pull)"
            if link
            else "while the folder is still being copied, try again",
        ) from error
    except OSError as error:  # a pipe, a device, a directory, no rights
        raise WeightsError(
            f"cannot be read: {error.strerror}", where=str(path), hint=f"expected a file; {_RIGHTS}"
        ) from error
    if len(data) > limit:
        raise WeightsError(
            f"is larger than {limit >> 20} MiB",
            where=str(path),
            hint="put the file there that its name promises",
        )
    return data


def read_version(weights_dir: Path) -> VersionFolder:
    """Find the version folder and read it.

    Raises:
        WeightsError: No folder, or a file that cannot be read.
    """
    path = find_version(weights_dir)
    return VersionFolder(path=path, weights_dir=weights_dir, files=read_files(path))


def stated_version(files: Mapping[str, bytes]) -> str | None:
    """The version that ``normalization.json`` states; None where it states none that is text."""
    try:
        stated = read_object(files, NORMALIZATION).get("version")
    except WeightsError:
        return None  # refused by name, in its turn, by whoever reads the normalization
    return stated if isinstance(stated, str) else None


def identify(folder: Path, weights_dir: Path, stated: str | None) -> ModelIdentity:
    """Model and version: the folder names ``<model>/<version>``.

    Where ``weights_dir`` is itself the version folder, its names only count when it is named as a
    semantic version; any other folder's place on this machine is nobody's business, and its version is
    what ``normalization.json`` states.

    Raises:
        WeightsError: No version is known, or a name cannot be part of a file name.
    """
    place = folder.absolute()  # not resolved: a link's own name is what it was given
    name, version = place.parent.name, place.name
    if folder == weights_dir and not _SEMVER.fullmatch(version):
        if not stated:
            raise WeightsError(
                "does not say which version it is",
                where=str(folder),
                hint=f"name the folder <model>/v1.2.3, or state `version` in {NORMALIZATION}",
            )
        name, version = DEFAULT_MODEL, stated
    for what, text in (("model", name), ("version", version)):
        if not _NAME.fullmatch(text):
            raise WeightsError(
                f"{text!r} cannot name a {what}",
                where=str(folder),
                hint="letters, digits, dot, dash, plus and underscore, 64 at most",
            )
    return ModelIdentity(name=name, version=version)


def choose_weights(files: Mapping[str, bytes]) -> tuple[str | None, str | None]:
    """Names of the checkpoint and of the ONNX encoder; None for one that is not there.

    Raises:
        WeightsError: Neither, or more than one of a kind; names them.
    """
    chosen = []
    for kind, suffixes in (("checkpoints", CHECKPOINTS), ("ONNX files", GRAPHS)):
        names = sorted(name for name in files if name.endswith(suffixes))
        if len(names) > 1:
            raise WeightsError(
                f"{len(names)} {kind} ({', '.join(names)}), expected one",
                hint="keep the file that the release shall be made from; nothing here says which is right",
            )
        chosen.append(names[0] if names else None)
    if chosen == [None, None]:
        raise WeightsError("no weights file (.pth, .pt or .onnx)", hint=_GIVE)
    return chosen[0], chosen[1]


def check_sums(files: Mapping[str, bytes], version: str = "") -> tuple[str, ...]:
    """Hold the files against ``sha256sum.txt``, where there is one.

    Args:
        files: As ``read_files`` gives them.
        version: Name of their folder: of a list of several folders, its lines count.

    Returns:
        Names of the files that were verified. A listed file that is not here is no fault: a release's
        list names more than a version folder holds.

    Raises:
        WeightsError: A line that is no checksum, a weights file that is not listed, two digests for one
            name, or a file that holds other bytes than the list says.
    """
    if CHECKSUMS not in files:
        return ()
    sums = _sums(files, version)
    for name in (name for name in choose_weights(files) if name):
        if name not in sums:
            raise WeightsError(f"does not list {name}", where=CHECKSUMS, hint="list it, or remove the list")
    for name in sums:
        found = sha256_bytes(files[name])
        if found != sums[name]:
            raise WeightsError(
                f"is not the file whose sha256 {CHECKSUMS} lists: it has {found[:12]}, "
                f"expected {sums[name][:12]}",
                where=name,
                hint="copy the folder again, or correct the list",
            )
    return tuple(sums)


def _sums(files: Mapping[str, bytes], version: str) -> dict[str, str]:
    """The digest that is listed for each of the files, sorted by name.

    The list itself is left out: no list can hold its own digest, and ``sha256sum *`` puts one there.
    """
    lines = list(_sum_lines(files[CHECKSUMS]))
    sums: dict[str, str] = {}
    for name in sorted(files.keys() - {CHECKSUMS}):
        listed = [line for line in lines if line[1].name == name]
        # A path may lead here in two ways; where none does, folders are nobody's.
        here = [line for line in listed if line[1].parent.name in ("", version)]
        for number, _, digest in here or listed:
            if sums.setdefault(name, digest) != digest:
                raise WeightsError(
                    f"line {number} gives {name!r} a second digest", where=CHECKSUMS, hint="keep one of them"
                )
    return sums


def _sum_lines(data: bytes) -> Iterator[tuple[int, PurePosixPath, str]]:
    """Number, path and digest of each line, as coreutils and BSD write them."""
    for number, text in enumerate(data.decode(errors="replace").splitlines(), start=1):
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        match, other = _SUM.fullmatch(line), _BSD_SUM.fullmatch(line)
        if not match and not other:
            raise WeightsError(
                f"line {number} is {line[:60]!r}, expected 64 hexadecimal digits and a file's name",
                where=CHECKSUMS,
                hint="write it with sha256sum",
            )
        digest, path = (match[1], match[2]) if match else (other[2], other[1]) if other else ("", "")
        yield number, PurePosixPath(path.strip()), digest.lower()


def read_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A file's JSON object, empty where there is no such file.

    Raises:
        WeightsError: Not JSON, not an object, or a key that is there twice.
    """
    if name not in files:
        return {}
    try:
        value = json.loads(files[name], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"not JSON: {error}", where=name, hint="write it again, with one value for each key"
        ) from error
    if not isinstance(value, dict):
        raise WeightsError(
            f"holds a {type(value).__name__}, expected an object", where=name, hint="write it again as {...}"
        )
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: of two values nobody knows which was meant."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key!r} is there twice")
        result[key] = value
    return result
