"""What changed between two releases: every value of both manifests, in a few sections."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.motifs import MotifHead
from runtime.contract.release import Manifest, manifest_bytes
from runtime.contract.store import Release
from runtime.release_text import origin_text, wrapped

Value = str | int | float | bool | None
_SECTIONS: Final = (
    ("model", ("schema", "target", "model.")),
    ("made from", ("upstream.",)),
    ("calibration", ("calibration.",)),
    ("tools and options", ("toolchain.",)),
    ("normalization", ("input.normalization.",)),
    ("input and output", ("input.", "output.")),
    ("motif head", ("motif_head.",)),
    ("artifacts", ("artifact", "artifacts.")),
    ("golden windows", ("golden.",)),
    ("bounds", ("parity.thresholds.", "parity.ceilings.")),
    ("metrics", ("parity.metrics.",)),
    ("parity", ("parity.",)),
)
_OTHER: Final = "other"
_WEIGHTS: Final = "model_weights"
_WINDOWS: Final = "calibration_set"
_HEADLINES: Final = ("mean_cosine", "sqnr_db", "worst_active_sqnr_db")
_COLUMN: Final = 14
_APART: Final = "each on its own evaluation windows: the sets differ, so small differences mean little"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that differs; None stands for a side that has no such value."""

    name: str
    a: Value
    b: Value

    @property
    def difference(self) -> float | None:
        """b minus a where both are numbers."""
        numbers = [v for v in (self.a, self.b) if isinstance(v, int | float) and not isinstance(v, bool)]
        return float(numbers[1] - numbers[0]) if len(numbers) == 2 else None


@dataclass(frozen=True, kw_only=True)
class ReleaseDiff:
    """Two releases and what differs; every section is there, empty where it is equal."""

    a: Release
    b: Release
    sections: dict[str, tuple[Change, ...]]

    @property
    def same(self) -> bool:
        """Whether they are one release, written the same."""
        return self.a.id == self.b.id

    def document(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {
            "a": self.a.id,
            "b": self.b.id,
            "same": self.same,
            "changes": {
                section: [
                    {"name": change.name, "a": change.a, "b": change.b, "difference": change.difference}
                    for change in changes
                ]
                for section, changes in self.sections.items()
            },
        }

    def lines(self) -> list[str]:
        """All of it for a terminal."""
        lines = [*_titled("a", self.a), *_titled("b", self.b)]
        lines += [] if self.same else self._overview()
        for section, changes in self.sections.items():
            lines.append(section if changes else f"{section:<18} nothing")
            for change in changes:
                lines += _change_lines(change)
        return lines

    def _overview(self) -> list[str]:
        """What is asked first; every value follows."""
        a, b = self.a.manifest, self.b.manifest
        weights = [manifest.upstream.get(_WEIGHTS) for manifest in (a, b)]
        same = "the same" if weights[0] == weights[1] else "others"
        changed = self.sections["metrics"]
        tools = ", ".join(change.name for change in self.sections["tools and options"])
        metrics = [
            f"{change.name} {_brief(change.a)} -> {_brief(change.b)}"
            for change in changed
            if change.name in _HEADLINES
        ]
        lines = [
            *wrapped("weights", same if all(weights) else "not named on both sides", _COLUMN),
            *wrapped("calibrated on", _calibrations(a, b), _COLUMN),
            *wrapped("tools, options", f"differ: {tools}" if tools else "the same", _COLUMN),
            *wrapped("metrics", "; ".join(metrics) or ("see below" if changed else "the same"), _COLUMN),
        ]
        if changed and a.upstream.get(_WINDOWS) != b.upstream.get(_WINDOWS):
            lines += wrapped("", _APART, _COLUMN)
        return ["", *lines, "", "every value that differs"]


def diff_releases(a: Release, b: Release) -> ReleaseDiff:
    """Compare two manifests, value by value: what is named in no section is under ``other``."""
    values = _values(a.manifest), _values(b.manifest)
    sections: dict[str, list[Change]] = {name: [] for name, _ in _SECTIONS}
    for path in sorted(values[0].keys() | values[1].keys()):
        before, after = (side.get(path) for side in values)
        if before != after or type(before) is not type(after):
            section, name = _place(path)
            sections.setdefault(section, []).append(Change(name=name, a=before, b=after))
    far = _head_distance(a.manifest.motif_head, b.manifest.motif_head)
    if far:
        sections["motif head"].append(Change(name="largest difference of a number", a=0.0, b=far))
    return ReleaseDiff(a=a, b=b, sections={name: tuple(found) for name, found in sections.items()})


def _place(path: str) -> tuple[str, str]:
    """Section of a value, and its name there."""
    for section, prefixes in _SECTIONS:
        for prefix in prefixes:
            if path == prefix or (prefix.endswith(".") and path.startswith(prefix)):
                return section, path.removeprefix(prefixes[0]) if len(prefixes) == 1 else path
    return _OTHER, path


def _values(manifest: Manifest) -> dict[str, Value]:
    document = json.loads(manifest_bytes(manifest))
    kinds = [artifact["kind"] for artifact in document["artifacts"]]
    # By kind, so that a file whose name holds the version is not one that went and one that came.
    document["artifacts"] = {
        artifact["kind"] if kinds.count(artifact["kind"]) == 1 else artifact["name"]: artifact
        for artifact in document["artifacts"]
    }
    head, channels = document["motif_head"], document["input"]["channels"]
    numbers = {"weight": head.pop("weight"), "bias": head.pop("bias")}
    head |= {"numbers_sha256": sha256_bytes(to_json(numbers)), "size": len(head["names"])}
    head["names"] = json.dumps(head["names"], ensure_ascii=False)
    normalization = document["input"]["normalization"]
    for name in ("mean", "std"):
        normalization[name] = dict(zip(channels, normalization[name], strict=True))
    found: dict[str, Value] = {}
    _flatten(document, "", found)
    return found


def _flatten(value: Any, path: str, found: dict[str, Value]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{path}.{key}" if path else key, found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _flatten(item, f"{path}[{index}]", found)
    elif value is not None:
        found[path] = value


def _head_distance(a: MotifHead, b: MotifHead) -> float:
    """Largest difference of two heads' numbers; 0 where they cannot be compared."""
    if a.size != b.size:
        return 0.0
    pairs = ((a.weight, b.weight), (a.bias, b.bias))
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in pairs)


def _calibrations(a: Manifest, b: Manifest) -> str:
    if a.calibration == b.calibration:
        return "the same windows"
    sizes = [f"{record.windows or '?'} {record.origin}" for record in (a.calibration, b.calibration)]
    return f"other windows: {sizes[0]} -> {sizes[1]}"


def _brief(value: Value) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _titled(name: str, release: Release) -> list[str]:
    manifest = release.manifest
    model = f"{manifest.model.name} {manifest.model.version}"
    made = f"{manifest.target}, numbers {manifest.output.provenance}"
    return wrapped(name, f"{release.id[:12]}  {model}, {made}, {origin_text(manifest.calibration.origin)}", 1)


def _change_lines(change: Change) -> list[str]:
    if change.a is None:
        return [f"  {change.name}", f"    added    {_shown(change.b)}"]
    if change.b is None:
        return [f"  {change.name}", f"    removed  {_shown(change.a)}"]
    if change.difference is not None:
        values = f"{_shown(change.a):>14} {_shown(change.b):>14} {change.difference:>+12.4g}"
        return [f"  {change.name:<34} {values}"]
    return [f"  {change.name}", f"    a  {_shown(change.a)}", f"    b  {_shown(change.b)}"]


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
