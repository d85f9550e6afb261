"""A version folder of trained weights, judged: what it holds, or why it is refused.

``python -m assets.weights FOLDER`` prints the same judgement without Dagster.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.agreement import check_agreement, check_function, check_structure
from assets.checkpoint import (
    check_tensors,
    encoder_of,
    folded_tensors,
    load_checkpoint,
    motif_head_of,
    parameter_count,
)
from assets.encoder import EncoderWeights
from assets.motif_head import HeadOrigin, parse_head
from assets.normalization import read_statistics
from assets.product import Product, Workbench
from assets.version_folder import (
    IDENTITY,
    MODEL_CONFIG,
    MOTIF_HEAD,
    NORMALIZATION,
    VersionFolder,
    check_sums,
    choose_weights,
    find_version,
    identify,
    read_files,
    read_object,
    read_version,
)
from runtime.contract.document import from_json
from runtime.contract.errors import PipelineError, WeightsError
from runtime.contract.motifs import MotifHead
from runtime.contract.release import ModelIdentity
from runtime.contract.window import ChannelStatistics

if TYPE_CHECKING:
    from assets.checkpoint import State
    from assets.onnx_source import EncoderParts

__all__ = [
    "TrainedModel",
    "find_version",
    "identify",
    "keep_weights",
    "make_model_weights",
    "parse_model",
    "read_files",
    "read_model",
]


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What a version folder holds.

    Args:
        source: ``checkpoint`` or ``onnx``: which kind of file the weights came from.
        weights_file: Its name.
        weights_data: Its bytes, for running the source itself.
        agrees_with: Name of the ONNX file beside a checkpoint, whose weights are the same; None where
            there is none.
        encoder: Folded weights.
        numbers: How many the weights file holds, those of training included.
        layers: Kinds of layer and how many there are, as the source has them.
        head: The checkpoint's motif head or that of ``motif_head.json``; None where there is none.
        head_origin: How the head of a file came about.
        statistics: Normalization, outside the graph.
        verified: Names of the files that ``sha256sum.txt`` was held against.
    """

    source: str
    weights_file: str
    weights_data: bytes
    agrees_with: str | None
    encoder: EncoderWeights
    numbers: int
    layers: dict[str, int]
    head: MotifHead | None
    head_origin: HeadOrigin | None
    statistics: ChannelStatistics
    verified: tuple[str, ...]


def parse_model(files: Mapping[str, bytes], version: str = "") -> TrainedModel:
    """Judge a version folder's files, in this order: the weights files themselves, their agreement where
    there are two, tensors, checksums, normalization, motif head.

    Args:
        files: As ``read_files`` gives them.
        version: Name of their folder, for a list of checksums that names several.

    Raises:
        WeightsError: What is wrong, in which file and tensor, and what to do.
    """
    try:
        return _parse(files, version)
    except PipelineError:
        raise
    except Exception as error:
        # Whatever a reader trips over, it is the files' fault and must be said as such.
        raise WeightsError(
            f"cannot be read: {type(error).__name__}: {error}",
            where=", ".join(sorted(files)),
            hint="the files are damaged, or of a layout that is not known",
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The weights as they came, before tensors are judged: one or both."""

    checkpoint: str | None
    state: State | None
    graph: str | None
    parts: EncoderParts | None


def _parse(files: Mapping[str, bytes], version: str) -> TrainedModel:
    source = _load(files)
    if source.checkpoint and source.state is not None:
        encoder = _checkpoint_encoder(source)
        _check_graph(files, source, encoder)
        name, kind, numbers = source.checkpoint, "checkpoint", parameter_count(source.state)
        layers = _checkpoint_layers(encoder)
    else:
        from assets.onnx_source import layer_counts, number_count, validated

        assert source.graph is not None
        assert source.parts is not None
        name, kind = source.graph, "onnx"
        encoder = validated(source.parts, name)
        _check_graph(files, source, encoder)
        numbers, layers = number_count(files[name]), layer_counts(files[name])
    verified = check_sums(files, version)
    config = read_object(files, MODEL_CONFIG)
    statistics = read_statistics({NORMALIZATION: read_object(files, NORMALIZATION), MODEL_CONFIG: config})
    head, head_origin = _head(files, source, config)
    return TrainedModel(
        source=kind,
        weights_file=name,
        weights_data=files[name],
        agrees_with=source.graph if source.checkpoint else None,
        encoder=encoder,
        numbers=numbers,
        layers=layers,
        head=head,
        head_origin=head_origin,
        statistics=statistics,
        verified=verified,
    )


def _load(files: Mapping[str, bytes]) -> _Source:
    """The weights files themselves, and that they are one training where there are two."""
    checkpoint, graph = choose_weights(files)
    for name in (checkpoint, graph):
        if name:
            _check_is_weights(files[name], name)
    state = load_checkpoint(files[checkpoint], checkpoint) if checkpoint else None
    parts = None
    if graph:
        from assets.onnx_source import load_source, read_parts

        parts = read_parts(load_source(files[graph], graph), graph)
    if checkpoint and state is not None and graph and parts:
        check_agreement(folded_tensors(state), parts.tensors(), (checkpoint, graph))
    return _Source(checkpoint=checkpoint, state=state, graph=graph, parts=parts)


def _check_is_weights(data: bytes, name: str) -> None:
    if data.startswith(b"version https://git-lfs"):
        raise WeightsError("is a Git LFS pointer, not the file", where=name, hint="git lfs pull")
    if not data:
        raise WeightsError("is empty", where=name, hint="copy it again")
    text = _text_at_start(data)
    if text:
        raise WeightsError(
            f"is a text file that begins {text[:40]!r}", where=name, hint="put the weights there"
        )


def _text_at_start(data: bytes) -> str:
    """The file's first characters where it is text; empty where it is not."""
    try:
        # Incremental: the last character may be cut in two.
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:512])
    except UnicodeDecodeError:
        return ""
    return text if all(c.isprintable() or c in "\t\n\r" for c in text) else ""


def _checkpoint_encoder(source: _Source) -> EncoderWeights:
    assert source.checkpoint is not None
    assert source.state is not None
    check_tensors(source.state, source.checkpoint)
    encoder = encoder_of(source.state, source.checkpoint)
    if source.graph and source.parts:
        check_structure(encoder.blocks, source.parts.blocks, (source.checkpoint, source.graph))
    return encoder


def _check_graph(files: Mapping[str, bytes], source: _Source, encoder: EncoderWeights) -> None:
    """That the ONNX file, where there is one, computes what the weights mean."""
    if source.graph:
        from assets.onnx_child import trial_windows
        from assets.onnx_source import trial_latents

        found = trial_latents(files[source.graph], source.graph)
        check_function(encoder, trial_windows(), found, source.graph)


def _checkpoint_layers(encoder: EncoderWeights) -> dict[str, int]:
    shortcuts = sum(block.residual is not None for block in encoder.blocks)
    return {"Conv1d": shortcuts, "Conv1d with weight norm": 2 * len(encoder.blocks), "Linear": 1}


def _head(
    files: Mapping[str, bytes], source: _Source, config: dict[str, Any]
) -> tuple[MotifHead | None, HeadOrigin | None]:
    """The one motif head that the folder gives; None where one is to be fitted."""
    head = None
    if source.checkpoint and source.state is not None:
        head = motif_head_of(source.state, _motif_names(config), source.checkpoint)
    if MOTIF_HEAD not in files:
        return head, None
    if head:
        raise WeightsError(
            f"{source.checkpoint} has a motif head of its own (activity_classifier, {head.size} motifs)",
            where=MOTIF_HEAD,
            hint="remove one of them: nothing here says which is right",
        )
    return parse_head(files[MOTIF_HEAD], MOTIF_HEAD)


def _motif_names(config: dict[str, Any]) -> tuple[str, ...] | None:
    motifs = config.get("motifs")
    names = motifs.get("names") if isinstance(motifs, dict) else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(
            "motifs.names is not a list of names", where=MODEL_CONFIG, hint="one name for each motif"
        )
    return tuple(names)


@contextmanager
def said_of(folder: VersionFolder) -> Iterator[None]:
    """Let a refusal name the folder besides the file in it."""
    try:
        yield
    except WeightsError as error:
        if error.where.startswith(str(folder.path)):
            raise
        place = f"{folder.path}/{error.where}" if error.where else str(folder.path)
        raise WeightsError(error.what, where=place, hint=error.hint) from error


def keep_weights(bench: Workbench, folder: VersionFolder) -> Product:
    """Keep a version folder's deciding files; judge them before.

    Returns:
        The product ``model_weights``, whose digest is the data version. Its facts are ``model``,
        ``version`` and ``folder``.

    Raises:
        WeightsError: The folder has no name.
        StoreError: It cannot be written.
    """
    identity = folder.identity()
    place = str(folder.path).encode(errors="backslashreplace").decode()
    facts = {"model": identity.name, "version": identity.version, "folder": place}
    return bench.put("model_weights", folder.content(), facts=facts)


def make_model_weights(bench: Workbench, weights_dir: Path) -> tuple[Product, TrainedModel]:
    """Read the newest version folder, judge it, and keep its files.

    Raises:
        WeightsError: The folder is refused; says why and what to do.
    """
    folder = read_version(weights_dir)
    with said_of(folder):
        trained = parse_model(folder.files, folder.path.absolute().name)
        return keep_weights(bench, folder), trained


def read_model(bench: Workbench, product: Product) -> tuple[ModelIdentity, TrainedModel]:
    """Take up what ``make_model_weights`` kept, verified."""
    identity = from_json(ModelIdentity, bench.read(product, IDENTITY), IDENTITY)
    files = bench.read_all(product)
    return identity, parse_model({name: data for name, data in files.items() if name != IDENTITY})


if __name__ == "__main__":
    from assets.judgement import main

    sys.exit(main())
