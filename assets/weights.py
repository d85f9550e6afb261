"""A version folder of trained weights: found, read, identified, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from assets.checkpoint import encoder_of, load_checkpoint, motif_head_of
from assets.encoder import EncoderWeights
from assets.normalization import read_statistics
from assets.onnx_source import load_source, read_encoder
from assets.product import Product, Workbench
from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import PipelineError, WeightsError
from runtime.contract.motifs import MotifHead
from runtime.contract.release import ModelIdentity
from runtime.contract.window import ChannelStatistics

NORMALIZATION: Final = "normalization.json"
MODEL_CONFIG: Final = "model_config.json"
MODEL_CARD: Final = "model_card.md"
IDENTITY: Final = "identity.json"
CHECKSUMS: Final = "sha256sum.txt"
DEFAULT_MODEL: Final = "tcn_encoder"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_CARD_CHARACTERS: Final = 20_000
_CHECKPOINTS: Final = (".pth", ".pt")
_WEIGHTS: Final = (*_CHECKPOINTS, ".onnx")
_SEMVER: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What a version folder holds.

    Args:
        source: ``checkpoint`` or ``onnx``: which kind of file the weights came from.
        weights_file: Its name.
        weights_data: Its bytes, for running the source itself.
        encoder: Folded weights.
        head: The checkpoint's motif head; None where the source has none.
        statistics: Normalization, outside the graph.
    """

    source: str
    weights_file: str
    weights_data: bytes
    encoder: EncoderWeights
    head: MotifHead | None
    statistics: ChannelStatistics


def find_version(weights_dir: Path) -> Path:
    """The folder to build from: ``weights_dir`` itself, or the newest ``<model>/<version>`` in it.

    Newest is the highest semantic version, then the name.

    Raises:
        WeightsError: No folder with a weights file.
    """
    if _weights_files(weights_dir):
        return weights_dir
    folders = [folder for folder in weights_dir.glob("*/*") if _weights_files(folder)]
    if not folders:
        raise WeightsError(
            "no <model>/<version>/ folder with a weights file (.pth, .pt or .onnx)",
            where=str(weights_dir),
            hint="put one there, or name a folder with WEIGHTS_DIR",
        )
    return max(folders, key=lambda folder: (_semver(folder.name), folder.parent.name, folder.name))


def _weights_files(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())
    except OSError as error:
        raise WeightsError(f"cannot be read: {error.strerror}", where=str(folder)) from error


def _semver(name: str) -> tuple[Any, ...]:
    """Sorts as semantic versions do; what is none of them comes before them all."""
    match = _SEMVER.fullmatch(name)
    if not match:
        return (-1, -1, -1, False, ())
    parts = (match[4] or "-").removeprefix("-").split(".")
    stage = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
    return (*(int(part) for part in match.groups()[:3]), match[4] is None, stage)


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


def read_files(folder: Path) -> dict[str, bytes]:
    """The files that a build reads: weights, normalization and model configuration, by name.

    Raises:
        WeightsError: No weights file, or one cannot be read.
    """
    paths = _weights_files(folder)
    if not paths:
        raise WeightsError("no weights file (.pth, .pt or .onnx)", where=str(folder))
    paths += [folder / name for name in (NORMALIZATION, MODEL_CONFIG) if (folder / name).exists()]
    try:
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise WeightsError(f"cannot be read: {error.strerror}", where=str(error.filename)) from error


def model_card(folder: Path) -> str:
    """The folder's model card, for people; empty where there is none. It decides nothing."""
    path = folder / MODEL_CARD
    return path.read_text(errors="replace")[:_CARD_CHARACTERS] if path.is_file() else ""


def check_sums(folder: Path, files: Mapping[str, bytes]) -> None:
    """Hold the files against ``sha256sum.txt``, where the folder has one.

    Raises:
        WeightsError: A file that is listed there holds other bytes.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return
    lines = [line.split(maxsplit=1) for line in path.read_text(errors="replace").splitlines()]
    sums = {PurePosixPath(rest[0].removeprefix("*")).name: digest for digest, *rest in lines if rest}
    weights = _choose_weights(files)
    if weights not in sums:
        raise WeightsError(f"does not list {weights}", where=str(path), hint="list it, or remove the list")
    for name, digest in sums.items():
        if name in files and sha256_bytes(files[name]) != digest.lower():
            raise WeightsError(
                f"is not the file whose sha256 {CHECKSUMS} lists",
                where=str(folder / name),
                hint="copy the folder again, or correct the list",
            )


def parse_model(files: Mapping[str, bytes]) -> TrainedModel:
    """Read a version folder's files.

    Args:
        files: As ``read_files`` gives them.

    Raises:
        WeightsError: What is wrong, in which file and tensor, and what to do.
    """
    try:
        return _parse(files)
    except PipelineError:
        raise
    except Exception as error:
        # Whatever a reader trips over, it is the files' fault and must be said as such.
        raise WeightsError(
            f"cannot be read: {type(error).__name__}: {error}",
            where=", ".join(sorted(files)),
            hint="the files are damaged, or of a layout that is not known",
        ) from error


def _parse(files: Mapping[str, bytes]) -> TrainedModel:
    name = _choose_weights(files)
    data = files[name]
    _check_is_weights(data, name)
    config = _json_object(files, MODEL_CONFIG)
    head = None
    if name.endswith(_CHECKPOINTS):
        state = load_checkpoint(data, name)
        encoder, head = encoder_of(state, name), motif_head_of(state, _motif_names(config), name)
    else:
        encoder = read_encoder(load_source(data, name), name)
    return TrainedModel(
        source="checkpoint" if name.endswith(_CHECKPOINTS) else "onnx",
        weights_file=name,
        weights_data=data,
        encoder=encoder,
        head=head,
        statistics=read_statistics({NORMALIZATION: _json_object(files, NORMALIZATION), MODEL_CONFIG: config}),
    )


def _choose_weights(files: Mapping[str, bytes]) -> str:
    names = sorted(name for name in files if name.endswith(_WEIGHTS))
    if len(names) != 1:
        raise WeightsError(
            f"{len(names)} weights files ({', '.join(names)}), expected one",
            hint="keep the file that the release shall be made from; nothing here says which is right",
        )
    return names[0]


def _check_is_weights(data: bytes, name: str) -> None:
    if data.startswith(b"version https://git-lfs"):
        raise WeightsError("is a Git LFS pointer, not the file", where=name, hint="git lfs pull")
    start = data[:512]
    if not start:
        raise WeightsError("is empty", where=name)
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        raise WeightsError(
            f"is a text file that begins {start[:40].decode()!r}", where=name, hint="put the weights there"
        )


def _json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"not JSON: {error}", where=name) from error
    if not isinstance(value, dict):
        raise WeightsError(f"holds a {type(value).__name__}, expected an object", where=name)
    return value


def _motif_names(config: dict[str, Any]) -> tuple[str, ...] | None:
    motifs = config.get("motifs")
    names = motifs.get("names") if isinstance(motifs, dict) else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError("motifs.names is not a list of names", where=MODEL_CONFIG)
    return tuple(names)


def make_model_weights(bench: Workbench, weights_dir: Path) -> tuple[Product, TrainedModel]:
    """Read the newest version folder, judge it, and keep its files.

    Raises:
        WeightsError: The folder is refused; says why and what to do.
    """
    folder = find_version(weights_dir)
    files = read_files(folder)
    check_sums(folder, files)
    trained = parse_model(files)
    stated = _json_object(files, NORMALIZATION).get("version")
    identity = identify(folder, weights_dir, stated if isinstance(stated, str) else None)
    facts = {"model": identity.name, "version": identity.version, "folder": str(folder)}
    # A file of its own: the name is part of what is released, so another name is another content.
    product = bench.put("model_weights", {**files, IDENTITY: to_json(identity)}, facts=facts)
    return product, trained


def read_model(bench: Workbench, product: Product) -> tuple[ModelIdentity, TrainedModel]:
    """Take up what ``make_model_weights`` kept, verified."""
    identity = from_json(ModelIdentity, bench.read(product, IDENTITY), IDENTITY)
    files = bench.read_all(product)
    return identity, parse_model({name: data for name, data in files.items() if name != IDENTITY})
