"""A picture of the report: a matplotlib figure as inline SVG in the page's colours, or as a small PNG.

matplotlib is imported inside functions, through its objects and never ``pyplot``: no state is shared, and no
window system is looked for.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = {
    "ink": "#1c2024",
    "muted": "#5d6670",
    "grid": "#d5dae0",
    "accent": "#1f6feb",
    "alarm": "#b93a0a",
    "paper": "#ffffff",
}
"""The light theme's; in SVG each becomes the page's own variable of that name."""
WIDTH: Final = 3.8
"""Inches: drawn for a phone, so that letters stay readable there; a desk shows two beside each other."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture and what it says.

    Args:
        title: A headline.
        says: What is to be seen, in words: the text for those who do not see it.
        draw: Makes the figure.
    """

    title: str
    says: str
    draw: Callable[[], Figure]


def svg(chart: Chart, prefix: str) -> str:
    """The chart as an ``<svg>`` for a page: no namespace, no ids but its own, colours by variable."""
    with _style():
        buffer = io.StringIO()
        chart.draw().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r' (d|x|y|transform)="[^"]*"', _shorten, text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    opening = re.compile(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>")
    return opening.sub(rf'<svg \1 role="img" aria-labelledby="{prefix}-title {prefix}-says">', text, count=1)


def _shorten(attribute: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attribute[0])


def png(chart: Chart) -> bytes:
    """The chart as a PNG of a few colours, small enough for an event log."""
    from PIL import Image

    with _style():
        buffer = io.BytesIO()
        chart.draw().savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    small = io.BytesIO()
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(48, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
            small, format="PNG", optimize=True
        )
    return small.getvalue()


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the machine's matplotlibrc says."""
    import matplotlib as mpl

    ours: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "hailo-pipeline",
        # A name from a file is text, also where it holds a dollar sign.
        "text.parse_math": False,
        # Simplified, a line of no length is no line: charts draw their points as nearly that.
        "path.simplify": False,
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "legend.fontsize": 7.5,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.edgecolor": COLOURS["grid"],
        "axes.titlecolor": COLOURS["ink"],
        "axes.titlelocation": "left",
        "xtick.color": COLOURS["grid"],
        "ytick.color": COLOURS["grid"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["ink"],
        "grid.color": COLOURS["grid"],
        "grid.linewidth": 0.6,
        "axes.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": COLOURS["paper"],
        "axes.facecolor": "none",
        "legend.frameon": False,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        # A letter that the built-in font lacks is drawn by the reader's browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(ours)
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of the report's width; ``height`` in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")
