"""What the files beside the weights claim, next to what was measured on the weights.

A claim refuses nothing: what contradicts the window is refused where the normalization is read. What
cannot be measured here says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from assets.normalization import is_one_window
from assets.version_folder import (
    EVALUATION,
    MODEL_CARD,
    MODEL_CONFIG,
    NORMALIZATION,
    WEIGHTS,
)
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE

if TYPE_CHECKING:
    from assets.version_folder import VersionFolder
    from assets.weights import TrainedModel

YES, NO, UNKNOWN = "yes", "no", "unknown"
NOT_STATED: Final = "not stated"
UNREADABLE: Final = "could not be read"
NOT_MEASURED: Final = "not measured here"
_MOST_ROWS: Final = 100
_MOST_CHARACTERS: Final = 160
_DEEPEST: Final = 12
_MOST_DIGITS: Final = 40

Path = tuple[str, ...]
Scalar = str | int | float | bool | None
Leaf = Scalar | list[Scalar]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One line of the table: plain printable text throughout.

    Args:
        what: What is claimed.
        claimed: The claim; ``not stated`` where there is none.
        measured: What was measured, or why nothing was.
        agrees: ``yes``, ``no`` or ``unknown``.
        where: File and path of keys; empty where nothing is claimed.
    """

    what: str
    claimed: str
    measured: str
    agrees: str
    where: str


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What was measured."""

    parameters: dict[str, int]
    blocks: int
    convolutions: int
    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    layers: str
    sizes: Mapping[str, int]
    weights_file: str
    version: str | None
    motifs: tuple[str, ...] | None


_Finding = tuple[str, str, str]
"""What it is about, what was measured, whether it agrees."""
_Rule = Callable[[Leaf, Path, _Facts], _Finding]


def claims_of(folder: VersionFolder, trained: TrainedModel) -> tuple[Claim, ...]:
    """Every claim that is known to matter, and every measured figure, claimed or not.

    Args:
        folder: A version folder, as it was read.
        trained: The same, judged.

    Returns:
        At most 100 rows, in the order of the files; whatever the documents hold.
    """
    facts = _facts(folder, trained)
    rows: list[Claim] = []
    for name in (NORMALIZATION, MODEL_CONFIG, EVALUATION):
        rows += _as_far_as_read(_document_claims(folder.files, name, facts), name)
    rows += _as_far_as_read(_card_claims(folder.card(), facts), MODEL_CARD)
    return tuple([*_as_far_as_read(_unclaimed(rows, facts), ""), *rows][:_MOST_ROWS])


def _as_far_as_read(rows: Iterator[Claim], where: str) -> Iterator[Claim]:
    """The rows of one file; what trips their reader is a row too: the weights are no worse for a claim."""
    try:
        yield from rows
    except Exception as error:  # anything: a claim refuses nothing
        said = f"{type(error).__name__}: {str(error)[:_MOST_CHARACTERS]}"
        yield _claim("claims", (UNREADABLE, where), (said, UNKNOWN))


def _facts(folder: VersionFolder, trained: TrainedModel) -> _Facts:
    blocks = trained.encoder.blocks
    convolutions = [c for b in blocks for c in (b.conv1, b.conv2, b.residual) if c is not None]
    return _Facts(
        parameters={"folded encoder": trained.encoder.parameter_count, "whole file": trained.numbers},
        blocks=len(blocks),
        convolutions=len(convolutions),
        widths=tuple(int(block.conv1.weight.shape[0]) for block in blocks),
        kernels=tuple(sorted({int(b.conv1.weight.shape[2]) for b in blocks})),
        layers=", ".join(f"{count} {kind}" for kind, count in trained.layers.items()),
        sizes={name: len(data) for name, data in folder.files.items() if name.endswith(WEIGHTS)},
        weights_file=trained.weights_file,
        version=folder.named_version(),
        motifs=trained.head.names if trained.head else None,
    )


def _document_claims(files: Mapping[str, bytes], name: str, facts: _Facts) -> Iterator[Claim]:
    try:
        document = json.loads(files[name]) if name in files else {}
    except (ValueError, RecursionError) as error:
        # Only metrics come here unread: the other documents are refused before.
        yield _claim("evaluation", (NOT_STATED, name), (f"the file is not JSON: {error}", UNKNOWN))
        return
    for path, value in _leaves(document, ()):
        rule = _rule_for(path, name, value)
        if rule is not None:
            what, *finding = rule(value, path, facts)
            yield _claim(what, (_text(value), f"{name}: {'.'.join(path)}"), (finding[0], finding[1]))


def _claim(what: str, claimed: tuple[str, str], finding: tuple[str, str]) -> Claim:
    texts = [printable(text) for text in (what, *claimed, *finding)]
    return Claim(what=texts[0], claimed=texts[1], where=texts[2], measured=texts[3], agrees=texts[4])


def printable(text: str) -> str:
    """The text on one line, cut short, with what cannot be shown or encoded written as an escape."""
    cut = text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _text(value: Leaf) -> str:
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value[:20]) + (", ..." if len(value) > 20 else "")
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a very large number"  # Python refuses to print the largest
    return value if isinstance(value, str) else json.dumps(value)


def _leaves(value: object, path: Path) -> Iterator[tuple[Path, Leaf]]:
    """Scalars and lists of scalars, with the keys that lead to them; what lies too deep is left out."""
    if len(path) > _DEEPEST:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    elif value is None or isinstance(value, str | int | float | list):
        yield path, value


def _rule_for(path: Path, document: str, value: Leaf) -> _Rule | None:
    key = path[-1].lower() if path else ""
    if path[:1] == ("files",) and isinstance(value, str) and value.endswith(WEIGHTS):
        return _weights_file
    if path == ("version",):
        return _version
    for pattern, rule in _RULES:
        if re.fullmatch(pattern, key):
            return rule
    if path[-2:] == ("motifs", "names"):
        return _motifs
    if document == EVALUATION and len(path) == 1 and key not in _NO_FIGURES and number_of(value) is not None:
        return _accuracy
    if path[-2:] == ("normalization", "method") or set(path) & _ORIGIN:
        return _origin
    return None


def number_of(value: object) -> int | float | None:
    """A number, also where it is written as text with separators; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _MOST_DIGITS or not re.fullmatch(r"\d{1,3}(,?\d{3})*|\d{1,15}", text):
            return None
        return int(text.replace(",", ""))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _verdict(claimed: object, measured: object) -> str:
    return YES if claimed == measured else NO


def _parameters(value: Leaf, _path: Path, facts: _Facts) -> _Finding:
    measured = ", ".join(f"{count} ({what})" for what, count in facts.parameters.items())
    number = number_of(value)
    agrees = UNKNOWN if number is None else YES if number in facts.parameters.values() else NO
    return "parameters", measured, agrees


def _depth(value: Leaf, path: Path, facts: _Facts) -> _Finding:
    measured = facts.convolutions if "conv" in path[-1].lower() else facts.blocks
    number = number_of(value)
    text = f"{facts.blocks} blocks, {facts.convolutions} convolutions"
    return "layers", text, UNKNOWN if number is None else _verdict(number, measured)


def _widths(value: Leaf, _path: Path, facts: _Facts) -> _Finding:
    return "channels", _text(list(facts.widths)), _verdict(value, list(facts.widths))


def _kernel(value: Leaf, _path: Path, facts: _Facts) -> _Finding:
    return "kernel", _text(list(facts.kernels)), _verdict([value], list(facts.kernels))


def _latent(value: Leaf, _path: Path, _facts: _Facts) -> _Finding:
    return "latent size", str(LATENT_SIZE), _verdict(number_of(value), LATENT_SIZE)


def _steps(value: Leaf, _path: Path, _facts: _Facts) -> _Finding:
    return "window length", str(WINDOW_SHAPE[0]), _verdict(number_of(value), WINDOW_SHAPE[0])


def _input(value: Leaf, _path: Path, _facts: _Facts) -> _Finding:
    return "input shape", _text([1, *WINDOW_SHAPE]), YES if is_one_window(value) else NO


def _output(value: Leaf, _path: Path, _facts: _Facts) -> _Finding:
    return "output shape", _text([1, LATENT_SIZE]), _verdict(value, [1, LATENT_SIZE])


def _size(value: Leaf, _path: Path, facts: _Facts) -> _Finding:
    """In megabytes of either kind, to as many decimals as the claim has."""
    found = {name: (size / 1e6, size / 2**20) for name, size in facts.sizes.items()}
    measured = ", ".join(f"{mb:.2f} MB = {mib:.2f} MiB ({name})" for name, (mb, mib) in found.items())
    number = number_of(value)
    if number is None or not abs(number) < 1e9:
        return "file size", measured, UNKNOWN
    decimals = len(str(number).partition(".")[2])
    sizes = [round(size, decimals) for pair in found.values() for size in pair]
    return "file size", measured, YES if number in sizes else NO


def _weights_file(value: Leaf, _path: Path, facts: _Facts) -> _Finding:
    """Whether the folder holds the file that is named; of one that is elsewhere nothing is known."""
    name = str(value)
    kind = "checkpoint" if not name.endswith(".onnx") else "ONNX"
    others = [n for n in facts.sizes if n.endswith(".onnx") == name.endswith(".onnx")]
    if name in facts.sizes:
        return "weights file", f"{name} is here", YES
    if others:
        return "weights file", f"{others[0]} is here instead", NO
    return "weights file", f"no {kind} here; read from {facts.weights_file}", UNKNOWN


def _version(value: Leaf, _path: Path, facts: _Facts) -> _Finding:
    if facts.version is None:
        return "version", "the folder's name says none: this one is taken", UNKNOWN
    same = str(value).removeprefix("v") == facts.version.removeprefix("v")
    return "version", f"the folder is named {facts.version}", YES if same else NO


def _motifs(value: Leaf, _path: Path, facts: _Facts) -> _Finding:
    if facts.motifs is None:
        return "motifs", "no motif head here", UNKNOWN
    return "motifs", _text(list(facts.motifs)), _verdict(value, list(facts.motifs))


def _accuracy(_value: Leaf, path: Path, _facts: _Facts) -> _Finding:
    return path[-1] if path else "figure", NOT_MEASURED, UNKNOWN


def _origin(value: Leaf, path: Path, _facts: _Facts) -> _Finding:
    what = "normalization" if set(path) & _NORMALIZATION_ORIGIN or path[-1] == "method" else "training"
    if isinstance(value, str) and re.search(r"estimat|guess|assum|invent|placeholder", value, re.IGNORECASE):
        return what, "the file itself says that nothing was measured", UNKNOWN
    return what, f"{NOT_MEASURED}: the training windows are not in the folder", UNKNOWN


_NORMALIZATION_ORIGIN: Final = frozenset({"generated", "datasets_used", "computed_from"})
_NO_FIGURES: Final = ("schema", "seed")
_ORIGIN: Final = _NORMALIZATION_ORIGIN | {"training_details"}
_RULES: Final[tuple[tuple[str, _Rule], ...]] = (
    (r"(num_|n_|total_|trainable_)?param(eter)?s?(_count)?", _parameters),
    (r"(num_|n_)?(blocks|conv\w*|tcn_layers|layers)(_count)?", _depth),
    (r"(hidden_(dims|sizes|channels)|num_channels|tcn_channels)", _widths),
    (r"kernel(_size)?", _kernel),
    (r"latent_(dim|dims|dimension|dimensions|size)", _latent),
    (r"window_size|window_length|sequence_length", _steps),
    (r"input_shape", _input),
    (r"output_shape", _output),
    (r"(model_)?size_mb", _size),
    (r".*(accuracy|f1|top_?1|improvement).*", _accuracy),
)


def _card_claims(card: str, facts: _Facts) -> Iterator[Claim]:
    """The few figures of a model card that have a form of their own."""
    for match in re.finditer(r"(\d[\d,]{2,14})\s+(?:\w+\s+)?param", card, re.IGNORECASE):
        what, measured, agrees = _parameters(match[1].rstrip(","), (), facts)
        yield _claim(what, (match[1], MODEL_CARD), (measured, agrees))
    if named := re.search(r"[^\n]{0,60}batch[ -]?norm[^\n]{0,60}", card, re.IGNORECASE):
        agrees = YES if "BatchNorm" in facts.layers else NO
        yield _claim("layers", (named[0].strip(), MODEL_CARD), (facts.layers, agrees))
    for match in list(re.finditer(r"[^\n]{0,60}(?:accuracy|top-1)[^\n]{0,60}\d%", card, re.IGNORECASE))[:5]:
        yield _claim("accuracy", (match[0].strip(), MODEL_CARD), (NOT_MEASURED, UNKNOWN))


def _unclaimed(rows: list[Claim], facts: _Facts) -> Iterator[Claim]:
    """A row for each measured figure that no file claims."""
    stated = {row.what for row in rows}
    nothing: Leaf = None
    for rule, path in ((_parameters, ()), (_depth, ("blocks",)), (_latent, ()), (_input, ())):
        what, measured, _ = rule(nothing, path, facts)
        if what not in stated:
            yield _claim(what, (NOT_STATED, ""), (measured, UNKNOWN))
