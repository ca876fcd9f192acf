"""One look for every figure: a paper's column widths, colour-blind-safe, readable in grey print."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.typing import LineStyleType
from PIL import Image

from flowbench.report.analysis import Analysis
from flowbench.report.stats import fences
from flowbench.report.text import label, ordered

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

COLUMN, PAGE = 3.4, 7.0
"""Widths in inches of one column and of both."""
DPI = 200
"""Pixels per inch of a PNG; PDFs are for print."""

GREY = "#666666"
"""Colour of guides, limits and notes."""
TRAINING, VALIDATION = "#0072b2", "#d55e00"

_LOOK: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.title_fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,  # text that stays text in the publisher's tools
}

# Okabe and Ito's palette, with grey for its yellow, which cannot be seen as a line on white paper.
_COLOURS = ["#000000", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a8a8a"]
_LINES: list[LineStyleType] = [
    "solid",
    (0, (6, 1.5)),
    (0, (3, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5, 1, 1.5)),
]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*"]

# These look the same whatever they are compared with, so a reader learns them once.
_RESERVED = ["affine", "rqs-8", "rqs-4", "affine+rqs-8", "additive", "affine+rqs-4"]

Section = Literal["original", "results", "appendix"]
"""Part of the page: the original's figures, further results, or the appendix."""


@dataclass(frozen=True)
class Plot:
    """A figure of a report: one file, listed once.

    Attributes:
        name: Stem of its file.
        section: Part of the page that shows it.
        draw: Draws it.
        caption: Says in at most 50 words what is seen.
        missing: Names the data that it lacks; empty where it can be drawn.
        samples: Whether it shows generated images or their scores. Of a study with both noises it
            is drawn for the flows trained with Gaussian noise, whose samples can be denoised.
        expected: Whether a report says so where it cannot be drawn.
    """

    name: str
    section: Section
    draw: Callable[[Analysis], Figure]
    caption: Callable[[Analysis], str]
    missing: Callable[[Analysis], str]
    samples: bool = False
    expected: bool = True


@dataclass(frozen=True)
class Look:
    """How one transform is drawn in every figure of a report."""

    colour: str
    line: LineStyleType
    marker: str
    label: str


def looks(transforms: Iterable[str]) -> dict[str, Look]:
    """Give each transform a distinct look, in reading order.

    Colours, lines and markers run in cycles of different lengths, so that hundreds of looks are
    distinct.
    """
    names = ordered(transforms)
    places = {name: _RESERVED.index(name) for name in names if name in _RESERVED}
    taken = set(places.values())
    free = (place for place in count() if place not in taken)
    places |= {name: next(free) for name in names if name not in _RESERVED}
    return {
        name: Look(
            colour=_COLOURS[places[name] % len(_COLOURS)],
            line=_LINES[places[name] % len(_LINES)],
            marker=_MARKERS[places[name] % len(_MARKERS)],
            label=label(name),
        )
        for name in names
    }


@contextmanager
def context() -> Iterator[None]:
    """Draw with this look, whatever the user's own matplotlib settings are; also a decorator."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK)
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or PDF whose bytes depend on the figure alone: no dates.

    A PNG keeps 256 colours, which these figures do not exceed visibly, at a third of the size.
    """
    undated = {"Software": None} if path.suffix == ".png" else {"CreationDate": None}
    with context():
        figure.savefig(path, metadata=undated)
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def legend_below(figure: Figure, columns: int = 4, title: str | None = None) -> None:
    """Put one legend with every label of the panels below them, in as many columns as fit."""
    known: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    width = 0.5 + 0.065 * max(map(len, known))  # inches of the longest entry
    figure.legend(
        list(known.values()),
        list(known),
        loc="outside lower center",
        ncols=max(1, min(columns, len(known), int(figure.get_figwidth() / width))),
        title=title,
    )


# Maps

GROWING, SIGNED = "cividis", "PuOr_r"
"""Colour maps that the colour-blind can read; the first in grey print too."""
BAR = 0.07
"""Height in inches of the panel of a colour scale."""
_ABSENT = "#d9d9d9"


@dataclass(frozen=True)
class Shades:
    """The colour of each value, in all maps that share a scale.

    Attributes:
        name: The colour map.
        norm: From values to the colour map.
        extend: The ends of the scale beyond which values lie: neither, min, max or both.
    """

    name: str
    norm: Normalize
    extend: str


def shades(maps: Iterable[np.ndarray]) -> Shades:
    """Choose a scale for several maps: growing with the value, or away from 0 both ways.

    Outliers have the colour of the end of the scale that they lie beyond.
    """
    values = pd.Series(np.concatenate([np.ravel(each) for each in maps])).dropna()
    least, most = values.min(), values.max()
    low, high = fences(values)
    if low == high:  # half of all values are equal: their spread measures nothing
        low, high = least, most
    extend = {(1, 0): "min", (0, 1): "max", (1, 1): "both"}.get((least < low, most > high))
    low, high = max(low, least), min(high, most)
    if low < 0 < high:
        return Shades(SIGNED, CenteredNorm(0, max(-low, high)), extend or "neither")
    return Shades(GROWING, Normalize(low, high), extend or "neither")


def heat(axes: Axes, values: np.ndarray, shared: Shades) -> None:
    """Draw a map ``[rows, columns]`` with the first row on top; NaN is grey."""
    colours = matplotlib.colormaps[shared.name].with_extremes(bad=_ABSENT)
    axes.imshow(values, cmap=colours, norm=shared.norm, interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def scale(figure: Figure, place: SubplotSpec, shared: Shades, label: str) -> None:
    """Draw the colour scale, with an arrow where values lie beyond its end."""
    axes = figure.add_subplot(place)
    axes.grid(visible=False)
    bar = figure.colorbar(
        ScalarMappable(shared.norm, shared.name),
        cax=axes,
        orientation="horizontal",
        label=label,
        extend=shared.extend,
    )
    bar.outline.set_visible(False)
