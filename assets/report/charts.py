"""The report's charts: what they show, and how that is said in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from assets.report.content import IDENTICAL_DB, active_rows, strata_rows
from assets.report.picture import COLOURS, Chart, new_figure
from runtime.contract.parity import LayerNoise, ParityEvidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Wide = npt.NDArray[np.float64]

MOST_POINTS: Final = 600
"""Windows drawn in a scatter; of more, evenly spaced ones and the worst."""
PANELS: Final = 9
WORST: Final = 12
_LONGEST: Final = 22
_WIDE_RANGE: Final = 30.0
"""From this ratio of largest to smallest on an axis is logarithmic."""


def _labels(names: list[str]) -> list[str]:
    """Names that fit beside an axis, cut where they stay different; a table has them in full."""
    half = _LONGEST // 2
    for head, tail in ((half, half - 1), (_LONGEST - 1, 0), (0, _LONGEST - 1)):
        short = [
            name if len(name) <= _LONGEST else f"{name[:head]}…{name[len(name) - tail :]}" for name in names
        ]
        if len(set(short)) == len(set(names)):
            break
    return short


def strata_chart(evidence: ParityEvidence) -> Chart | None:
    """SQNR and centred cosine of each stratum, worst first; None without strata."""
    rows = [row for row in strata_rows(evidence) if "sqnr_db" in row.metrics]
    if not rows:
        return None

    def draw() -> Figure:
        figure = new_figure(0.85 + 0.2 * len(rows))
        axes = figure.subplots(1, 2, sharey=True)
        for axis, name, title in zip(
            axes, ("sqnr_db", "centred_cosine_p5"), ("SQNR, dB", "centred cosine, p5"), strict=True
        ):
            _dots(axis, evidence, [row.metrics.get(name) for row in rows], name)
            axis.set_title(title)
        axes[0].set_yticks(range(len(rows)), _labels([row.name for row in rows]))
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        return figure

    worst, best = rows[0], rows[-1]
    return Chart(
        title="By stratum, worst first",
        says=f"Lowest SQNR: {worst.name}, {worst.metrics['sqnr_db']:.1f} dB. Highest: {best.name}, "
        f"{best.metrics['sqnr_db']:.1f} dB. Line: the bound for all windows together, dashed: their value.",
        draw=draw,
    )


def _dots(axis: Axes, evidence: ParityEvidence, values: list[float | None], name: str) -> None:
    bound, overall = evidence.result.thresholds.get(name), evidence.result.metrics.get(name)
    for row, value in enumerate(values):
        if value is not None:
            low = bound is not None and value < bound
            axis.plot(value, row, "o", ms=5, color=COLOURS["alarm" if low else "accent"])
    axis.grid(axis="y")
    axis.tick_params(length=0)
    if bound is not None:
        axis.axvline(bound, color=COLOURS["alarm"], lw=1)
    if overall is not None:
        axis.axvline(overall, color=COLOURS["muted"], lw=1, ls=(0, (3, 2)))
    axis.margins(x=0.12)


def errors_chart(latents: Latents, strata: npt.NDArray[Any], evidence: ParityEvidence) -> Chart:
    """Every window's error by stratum, longest tail first: what an average hides."""
    names = np.unique(strata)
    tails = {str(name): float(np.percentile(latents.errors[strata == name], 95)) for name in names}
    order = sorted(tails, key=lambda name: (-tails[name], name))
    ceiling = evidence.result.ceilings.get("p99_error_sd")
    drawn = latents.drawn()

    def draw() -> Figure:
        figure = new_figure(0.85 + 0.2 * len(order))
        axis = figure.subplots()
        for row, name in enumerate(order):
            mine = latents.errors[drawn][strata[drawn] == name]
            _points(axis, mine, np.full(len(mine), float(row)), "accent", 2.4)
            axis.plot([tails[name]] * 2, [row - 0.32, row + 0.32], color=COLOURS["ink"], lw=1.4)
        if ceiling is not None:
            axis.axvline(ceiling, color=COLOURS["alarm"], lw=1)
        axis.set_yticks(range(len(order)), _labels(order))
        axis.set_ylim(len(order) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.set_title("largest error of an active dimension, sd")
        axis.grid(axis="y")
        axis.tick_params(length=0)
        return figure

    bound = f" Line: the bound of the 99th percentile over all windows, {ceiling:g} sd." if ceiling else ""
    return Chart(
        title="Error of each window",
        says=f"A dot is a window, a tick the 95th percentile. Longest tail: {order[0]}, "
        f"{tails[order[0]]:.2f} sd.{bound}",
        draw=draw,
    )


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Both sides' latents in the active dimensions, in full_precision's standard deviations.

    Args:
        index: Number of each active dimension, worst SQNR first.
        reference: float64 (N, active).
        found: Likewise.
    """

    index: tuple[int, ...]
    reference: Wide
    found: Wide

    @classmethod
    def of(cls, evidence: ParityEvidence, reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> Latents:
        """Take the active dimensions; there must be some, and windows too."""
        index = tuple(each.index for each in active_rows(evidence))
        wide = reference.astype(np.float64)[:, index]
        mean, sd = wide.mean(axis=0), wide.std(axis=0)
        sd[sd == 0] = 1.0
        return cls(index=index, reference=(wide - mean) / sd, found=(found[:, index] - mean) / sd)

    @property
    def errors(self) -> Wide:
        """Largest error of an active dimension for each window, sd."""
        errors: Wide = np.abs(self.found - self.reference).max(axis=1)
        return errors

    def drawn(self) -> npt.NDArray[np.intp]:
        """Which windows to draw."""
        count = len(self.reference)
        if count <= MOST_POINTS:
            return np.arange(count)
        return np.union1d(np.linspace(0, count - 1, MOST_POINTS).astype(np.intp), self.worst())

    def worst(self) -> npt.NDArray[np.intp]:
        """The windows with the largest errors."""
        return np.argsort(self.errors, kind="stable")[::-1][:WORST]

    def plane(self) -> tuple[Wide, Wide, float]:
        """Both sides on full_precision's two principal axes, and the share of variance that these show."""
        if len(self.index) < 2:
            return self.reference[:, [0, 0]], self.found[:, [0, 0]], 1.0
        values, axes = np.linalg.eigh(self.reference.T @ self.reference)
        axes = axes[:, ::-1][:, :2]
        # An axis has no sign of its own: its largest part is made positive.
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
        share = float(values[::-1][:2].sum() / max(float(values.sum()), 1e-30))
        return self.reference @ axes, self.found @ axes, share


def _points(axis: Axes, x: Wide, y: Wide, colour: str, size: float) -> None:
    # Lines of next to no length with round ends: one path, a tenth of the bytes of markers.
    gap = np.full(len(x), np.nan)
    across, up = np.column_stack([x, x + 1e-4, gap]), np.column_stack([y, y, gap])
    axis.plot(across.ravel(), up.ravel(), lw=size, color=COLOURS[colour], solid_capstyle="round", snap=False)


def _arrows(axis: Axes, start: Wide, end: Wide, colour: str, width: float) -> None:
    gap = np.full(len(start), np.nan)
    x = np.column_stack([start[:, 0], end[:, 0], gap]).ravel()
    y = np.column_stack([start[:, 1], end[:, 1], gap]).ravel()
    axis.plot(x, y, lw=width, color=COLOURS[colour], solid_capstyle="butt")


def latents_chart(latents: Latents) -> Chart:
    """Where each window lies, and where the artifact puts it."""
    before, after, share = latents.plane()
    drawn, worst = latents.drawn(), latents.worst()
    rest = np.setdiff1d(drawn, worst)

    def draw() -> Figure:
        figure = new_figure(3.7)
        axis = figure.subplots()
        _points(axis, before[rest, 0], before[rest, 1], "grid", 4)
        _arrows(axis, before[rest], after[rest], "accent", 0.7)
        _points(axis, after[rest, 0], after[rest, 1], "accent", 2)
        _points(axis, before[worst, 0], before[worst, 1], "muted", 4)
        _arrows(axis, before[worst], after[worst], "alarm", 1.2)
        _points(axis, after[worst, 0], after[worst, 1], "alarm", 3.2)
        axis.set_xlabel("principal axis 1, sd")
        axis.set_ylabel("principal axis 2, sd")
        axis.tick_params(length=0)
        axis.grid()
        axis.set_aspect("equal", adjustable="datalim")
        _legend(figure, {"full_precision": "muted", "artifact": "accent", f"{len(worst)} worst": "alarm"})
        return figure

    return Chart(
        title="Latents: from full_precision to the artifact",
        says=f"{len(drawn)} of {len(before)} windows on full_precision's two principal axes "
        f"({share:.0%} of the variance of {len(latents.index)} active dimensions). A line leads from where "
        "full_precision puts a window to where the artifact does. "
        f"Largest error: {latents.errors.max():.2f} sd.",
        draw=draw,
    )


def _legend(figure: Figure, entries: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", ms=4, color=COLOURS[colour], label=label)
        for label, colour in entries.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.2)


def dimensions_chart(latents: Latents) -> Chart:
    """full_precision against the artifact, dimension by dimension; the diagonal is agreement."""
    shown = latents.index[:PANELS]
    drawn = latents.drawn()
    rows = -(-len(shown) // 3)

    def draw() -> Figure:
        figure = new_figure(0.45 + 1.3 * rows)
        panels = figure.subplots(rows, min(3, len(shown)), squeeze=False, sharex=True, sharey=True).ravel()
        both = np.concatenate([latents.reference[drawn], latents.found[drawn]])
        low, high = float(both.min()), float(both.max())
        for column, (axis, index) in enumerate(zip(panels, shown, strict=False)):
            axis.plot([low, high], [low, high], color=COLOURS["muted"], lw=0.8)
            _points(axis, latents.reference[drawn, column], latents.found[drawn, column], "accent", 1.8)
            axis.set_title(f"dimension {index}")
            axis.tick_params(length=0)
            axis.grid()
        for axis in panels[len(shown) :]:
            axis.set_visible(False)
        figure.supxlabel("full_precision, sd", fontsize=8, color=COLOURS["muted"])
        figure.supylabel("artifact, sd", fontsize=8, color=COLOURS["muted"])
        return figure

    return Chart(
        title="Active dimensions, worst first",
        says=f"full_precision against the artifact in {len(shown)} of {len(latents.index)} active ones: "
        "they agree on the diagonal. A flat end is a range that clips, another slope a wrong gain.",
        draw=draw,
    )


def activity_chart(evidence: ParityEvidence) -> Chart:
    """SQNR of the active dimensions above the spread of all, on one axis."""
    active = [each for each in evidence.dimensions if each.active and each.sqnr_db is not None]
    bound = evidence.result.thresholds.get("worst_active_sqnr_db")
    sd = [each.sd for each in evidence.dimensions]
    colours = [COLOURS["accent" if each.active else "muted"] for each in evidence.dimensions]

    def draw() -> Figure:
        figure = new_figure(2.9)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for each in active:
            low = bound is not None and (each.sqnr_db or 0.0) < bound
            upper.bar(
                each.index, each.sqnr_db or 0.0, width=0.85, color=COLOURS["alarm" if low else "accent"]
            )
        upper.axhline(0, color=COLOURS["muted"], lw=0.8)
        if bound is not None:
            upper.axhline(bound, color=COLOURS["alarm"], lw=1)
        upper.set_title("SQNR of the active dimensions, dB")
        lower.bar([each.index for each in evidence.dimensions], sd, width=0.85, color=colours)
        if max(sd) > _WIDE_RANGE * min(sd) > 0:
            lower.set_yscale("log")
            lower.yaxis.set_major_formatter("{x:g}")
            lower.yaxis.set_minor_formatter("")
        lower.set_title("standard deviation in full_precision")
        lower.set_xlabel("latent dimension")
        lower.set_xlim(-1, len(sd))
        for axis in (upper, lower):
            axis.grid(axis="y")
            axis.tick_params(length=0)
        return figure

    worst = min(active, key=lambda each: each.sqnr_db or 0.0, default=None)
    told = f"Worst: dimension {worst.index}, {worst.sqnr_db:.1f} dB." if worst else ""
    others = "" if evidence.active == len(sd) else "The others hardly vary and are not judged one by one. "
    return Chart(
        title=f"{evidence.active} of {len(sd)} dimensions are active",
        says=others + told,
        draw=draw,
    )


def layers_chart(noise: LayerNoise, most: int = 1000) -> Chart | None:
    """Noise of each activation alone, and of all up to it, in the graph's order; None without layers.

    Of more than ``most``, those that are noisiest alone.
    """
    by_noise = sorted(noise.layers, key=lambda layer: layer.only_on_db)
    worst, shown = by_noise[:3], by_noise[:most]
    layers = [layer for layer in noise.layers if layer in shown]
    if not layers:
        return None

    def draw() -> Figure:
        figure = new_figure(0.85 + 0.165 * len(layers))
        panels = figure.subplots(1, 2, sharey=True)
        for axis, title, values in (
            (panels[0], "this one alone", [layer.only_on_db for layer in layers]),
            (panels[1], "all up to here", [layer.up_to_db for layer in layers]),
        ):
            longest = max((value for value in values if value < IDENTICAL_DB), default=1.0)
            for row, (layer, value) in enumerate(zip(layers, values, strict=True)):
                alarm = layer in worst and axis is panels[0]
                length = min(value, longest)
                axis.barh(row, length, height=0.66, color=COLOURS["alarm" if alarm else "accent"])
                axis.annotate(
                    f"{value:.1f}" if value < IDENTICAL_DB else "∞",
                    (max(length, 0.0), row),
                    (2, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
            axis.set_title(title)
            axis.set_xlim(min(0.0, *values), max(1.0, longest) * 1.28)
            axis.tick_params(length=0)
        figure.supxlabel("SQNR, dB: longer is better", fontsize=8, color=COLOURS["muted"])
        panels[0].set_yticks(range(len(layers)), _labels([layer.name for layer in layers]))
        panels[0].set_ylim(len(layers) - 0.4, -0.6)
        return figure

    names = ", ".join(f"{layer.name} ({layer.only_on_db:.1f} dB)" for layer in worst)
    return Chart(
        title="Noise by layer",
        says="Left: SQNR at the output, only this one quantized. Right: SQNR here, all up to here quantized. "
        f"Most noise of its own: {names}.",
        draw=draw,
    )
