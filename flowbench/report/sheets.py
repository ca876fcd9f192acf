"""Sheets of images, rows and columns of them, laid out on a page under their names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowbench.report import style

_GAP = 2  # white pixels between images
# Inches for a line of a sheet's name, its rows' names, what is above a column, between two sheets,
# a number, a letter.
_NAME, _ROWS, _TOP, _BETWEEN, _TICK, _LETTER = 0.2, 0.33, 0.22, 0.08, 0.14, 0.075


@dataclass(frozen=True)
class Sheet:
    """Images with what is written beside them."""

    images: np.ndarray
    """``[rows, columns, H, W, C]``, uint8; white where there are none."""
    name: str = ""
    """What is written along its left side, in lines."""
    rows: Sequence[str] = ()
    """What is written left of each row of images."""

    @property
    def left(self) -> float:
        """Inches at its left side for what is written there."""
        return _NAME * len(self.name.splitlines()) + _ROWS * bool(self.rows)

    @property
    def length(self) -> float:
        """Inches that its name takes from below to above."""
        return max((_LETTER * len(line) for line in self.name.splitlines()), default=0.0)


def pages(columns: Sequence[Sequence[Sheet]], heads: Sequence[str], numbered: bool) -> Figure:
    """Lay sheets out in columns of equal width.

    Args:
        columns: The sheets of each column from top to bottom.
        heads: What is written above each column.
        numbered: Whether to number the columns of images, from 0, for they are classes.
    """
    lefts = [max(sheet.left for sheet in sheets) for sheets in columns]
    across = style.COLUMN if len(columns) == 1 else style.PAGE
    width = (across - sum(lefts) - _BETWEEN * len(columns)) / len(columns)
    slots = [max(_slot(sheet, width) for sheet in row if sheet) for row in zip_longest(*columns)]
    top = _TOP + _TICK * numbered
    tall = top + sum(slots) + _BETWEEN * len(slots)
    figure = Figure(figsize=(across, tall))
    x = 0.0
    for column, sheets in enumerate(columns):
        x += lefts[column]
        y = tall - top
        for row, (sheet, slot) in enumerate(zip(sheets, slots, strict=False)):
            height = width * _aspect(sheet)
            # A sheet less high than its name is long has room above and below.
            bottom = y - (slot + height) / 2
            axes = figure.add_axes((x / across, bottom / tall, width / across, height / tall))
            _show(axes, sheet)
            if row == 0:
                _head(axes, sheet, heads[column], width if numbered else 0)
            y -= slot + _BETWEEN
        x += width + _BETWEEN
    return figure


def _aspect(sheet: Sheet) -> float:
    rows, columns, height, width, _ = sheet.images.shape
    return float((rows * (height + _GAP) - _GAP) / (columns * (width + _GAP) - _GAP))


def _slot(sheet: Sheet, width: float) -> float:
    return max(width * _aspect(sheet), sheet.length)


def _joined(images: np.ndarray) -> np.ndarray:
    """The images beside and below each other, white between them: ``[height, width, C]``."""
    padding = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = np.pad(images, padding, constant_values=255)
    rows, columns, height, width, channels = padded.shape
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return whole[:-_GAP, :-_GAP]


def _show(axes: Axes, sheet: Sheet) -> None:
    """Draw the images, their names at the left."""
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
