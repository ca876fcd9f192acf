"""Figures of generated images, unselected: of every class, by way of sampling, block by block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.text import label, ordered

PLAIN, GUIDED, DENOISED, TRAJECTORY = "", "guided", "denoised", "trajectory"
"""Kinds of images of a transform: plain draws, and the kinds that a key names after a slash."""
WAYS = {PLAIN: "Plain", GUIDED: "Guided", DENOISED: "Denoised"}
"""Ways to draw from a flow and the same noise."""
SHOWN = 3
"""Rows of images of a transform."""
_GAP = 2  # white pixels between images
# Inches for a line of a sheet's name, its rows' names, the head of a column, the gap between two
# sheets, a number, a letter.
_NAME, _ROWS, _TOP, _BETWEEN, _TICK, _LETTER = 0.2, 0.33, 0.22, 0.08, 0.14, 0.075


@dataclass(frozen=True)
class Sheet:
    """Images in rows and columns, with their names.

    Attributes:
        images: ``[rows, columns, H, W, C]``, uint8; white where there are none.
        name: Text along the left side, in lines.
        rows: Text left of each row of images.
    """

    images: np.ndarray
    name: str = ""
    rows: Sequence[str] = ()

    @property
    def left(self) -> float:
        """Inches at its left side for the texts there."""
        return _NAME * len(self.name.splitlines()) + _ROWS * bool(self.rows)

    @property
    def aspect(self) -> float:
        """Height of its images divided by their width."""
        rows, columns, height, width, _ = self.images.shape
        return float((rows * (height + _GAP) - _GAP) / (columns * (width + _GAP) - _GAP))

    def slot(self, width: float) -> float:
        """Return the inches that it takes from top to bottom: its images', or its name's."""
        name = max((_LETTER * len(line) for line in self.name.splitlines()), default=0.0)
        return max(width * self.aspect, name)


def of_kind(samples: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Select the images of one kind, by transform in reading order."""
    pairs = ((key.partition("/"), images) for key, images in samples.items())
    found = {name: images for (name, _, own), images in pairs if own == kind}
    return {name: found[name] for name in ordered(found)}


def has_classes(analysis: Analysis) -> bool:
    """Return whether the columns of images are classes."""
    return not (analysis.runs["classes"] == 0).all()


@style.context()
def digits(analysis: Analysis) -> Figure:
    """Draw images of the classes (columns), in a named sheet for each transform.

    Those of flows trained with Gaussian noise are denoised.
    """
    samples = analysis.recorded.samples
    images = {**of_kind(samples, PLAIN), **of_kind(samples, DENOISED)}
    sheets = [Sheet(images[name][:SHOWN], _name(name)) for name in ordered(images)]
    deep = len(sheets) if len(sheets) <= 4 else -(-len(sheets) // 2)  # four fill a page's height
    columns = [sheets[:deep], sheets[deep:]] if deep < len(sheets) else [sheets]
    return _pages(columns, [_class(analysis)] * len(columns), has_classes(analysis))


@style.context()
def sampling(analysis: Analysis) -> Figure:
    """Draw the same noise in several ways (columns of sheets) for each transform that has them."""
    ways = {way: of_kind(analysis.recorded.samples, way) for way in WAYS}
    names = ordered([*ways[GUIDED], *ways[DENOISED]])
    shown = {way: found for way, found in ways.items() if set(found) & set(names)}
    columns = []
    for found in shown.values():
        first = found is ways[PLAIN]
        blank = np.full_like(next(iter(found.values()))[:SHOWN], 255)
        images = {name: found.get(name, blank)[:SHOWN] for name in names}
        columns.append([Sheet(images[name], _name(name) if first else "") for name in names])
    return _pages(columns, [WAYS[way] for way in shown], has_classes(analysis))


@style.context()
def trajectories(analysis: Analysis) -> Figure:
    """Draw the way from noise to image through the blocks (rows), a sheet per transform."""
    found = of_kind(analysis.recorded.samples, TRAJECTORY)
    sheets = [Sheet(steps, _name(name), _steps(len(steps))) for name, steps in found.items()]
    across = min(3, len(sheets))
    columns = [sheets[place::across] for place in range(across)]
    return _pages(columns, [_class(analysis)] * across, has_classes(analysis))


def _name(transform: str) -> str:
    return label(transform).replace(" + ", " +\n")


def _class(analysis: Analysis) -> str:
    return "Class" if has_classes(analysis) else ""


def _steps(count: int) -> list[str]:
    """Name the noise, and the image after each block, whose numbers fall to 0."""
    return ["noise", *(f"{block}" for block in reversed(range(count - 1)))]


def _pages(columns: Sequence[Sequence[Sheet]], heads: Sequence[str], numbered: bool) -> Figure:
    """Lay sheets out in columns of equal width.

    Args:
        columns: The sheets of each column from top to bottom.
        heads: The text above each column.
        numbered: Whether to number the columns of images, from 0, because they are classes.
    """
    lefts = [max(sheet.left for sheet in sheets) for sheets in columns]
    across = style.COLUMN if len(columns) == 1 else style.PAGE
    width = (across - sum(lefts) - _BETWEEN * len(columns)) / len(columns)
    slots = [max(sheet.slot(width) for sheet in row if sheet) for row in zip_longest(*columns)]
    top = _TOP + _TICK * numbered
    tall = top + sum(slots) + _BETWEEN * len(slots)
    figure = Figure(figsize=(across, tall))
    x = 0.0
    for column, sheets in enumerate(columns):
        x += lefts[column]
        y = tall - top
        for row, (sheet, slot) in enumerate(zip(sheets, slots, strict=False)):
            height = width * sheet.aspect
            # A sheet less high than its name is long has room above and below.
            bottom = y - (slot + height) / 2
            axes = figure.add_axes((x / across, bottom / tall, width / across, height / tall))
            _show(axes, sheet)
            if row == 0:
                _head(axes, sheet, heads[column], width if numbered else 0)
            y -= slot + _BETWEEN
        x += width + _BETWEEN
    return figure


def _joined(images: np.ndarray) -> np.ndarray:
    """Join the images in rows and columns with white gaps: ``[height, width, C]``."""
    padding = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = np.pad(images, padding, constant_values=255)
    rows, columns, height, width, channels = padded.shape
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return whole[:-_GAP, :-_GAP]


def _show(axes: Axes, sheet: Sheet) -> None:
    axes.imshow(
        _joined(sheet.images),
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        aspect="auto",
    )
    pixels = sheet.images.shape[2]
    at = [(pixels + _GAP) * row + pixels / 2 - 0.5 for row in range(len(sheet.rows))]
    axes.set(ylabel=sheet.name, xticks=[])
    axes.set_yticks(at, sheet.rows)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)


def _head(axes: Axes, sheet: Sheet, head: str, width: float) -> None:
    """Write the head, and the numbers of the classes as close as a width in inches allows."""
    _, classes, _, pixels, _ = sheet.images.shape
    axes.set_xlabel(head)
    axes.xaxis.set_label_position("top")
    if width:
        shown = range(0, classes, math.ceil(classes * _TICK / width))
        axes.set_xticks([(pixels + _GAP) * c + pixels / 2 - 0.5 for c in shown], map(str, shown))
        axes.tick_params(length=0, pad=1, top=True, labeltop=True, labelbottom=False)


def _by(analysis: Analysis) -> str:
    return " by class (columns)" if has_classes(analysis) else ""


DIGITS = Plot(
    "digits",
    "original",
    digits,
    lambda analysis: (
        f"Generated images{_by(analysis)}{', denoised' * analysis.denoised}, the first drawn, "
        f"unselected; of each transform the run with the lowest validation loss."
    ),
    lambda analysis: "" if of_kind(analysis.recorded.samples, PLAIN) else "samples",
    samples=True,
)
SAMPLING = Plot(
    "sampling",
    "results",
    sampling,
    lambda analysis: (
        f"Generated images{_by(analysis)} from the same noise: plain, guided, and denoised along "
        "the score, where the run has them. Unselected."
    ),
    lambda analysis: (
        ""
        if any(of_kind(analysis.recorded.samples, way) for way in (GUIDED, DENOISED))
        else "guided or denoised samples"
    ),
)
TRAJECTORIES = Plot(
    "trajectories",
    "appendix",
    trajectories,
    lambda analysis: (
        f"From noise to image{_by(analysis)}: each row shows the images after one more block is "
        "inverted; block 0 is the nearest to the data."
    ),
    lambda analysis: (
        "" if of_kind(analysis.recorded.samples, TRAJECTORY) else "images between the blocks"
    ),
    samples=True,
)
