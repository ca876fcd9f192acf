"""Heat maps of one look: shades that print in grey, on a scale that no far-off value flattens."""

from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from flowbench.report.spikes import fences

GROWING, SIGNED = "cividis", "PuOr_r"
"""Shades told apart by the colour-blind; the first in grey print too."""
BAR = 0.07
"""Height in inches of the panel of a scale."""
_ABSENT = "#d9d9d9"


@dataclass(frozen=True)
class Shades:
    """Which shade a value has, in all maps that share them."""

    name: str
    norm: Normalize
    extend: str
    """The ends of the scale beyond which values lie: neither, min, max or both."""


def shades(maps: Iterable[np.ndarray]) -> Shades:
    """Shades for maps that share a scale: growing with the value, or away from 0 both ways.

    Far-off values share the shade of the end that they lie beyond.
    """
    values = pd.Series(np.concatenate([np.ravel(each) for each in maps])).dropna()
    least, most = values.min(), values.max()
    low, high = fences(values)
    if low == high:  # half of all values are equal: nothing to measure the others by
        low, high = least, most
    extend = {(1, 0): "min", (0, 1): "max", (1, 1): "both"}.get((least < low, most > high))
    low, high = max(low, least), min(high, most)
    if low < 0 < high:
        return Shades(SIGNED, CenteredNorm(0, max(-low, high)), extend or "neither")
    return Shades(GROWING, Normalize(low, high), extend or "neither")


def heat(axes: Axes, values: np.ndarray, shared: Shades) -> None:
    """Draw a map ``[rows, columns]`` with the first row on top; what is NaN stays grey."""
    colours = matplotlib.colormaps[shared.name].with_extremes(bad=_ABSENT)
    axes.imshow(values, cmap=colours, norm=shared.norm, interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def scale(figure: Figure, place: SubplotSpec, shared: Shades, label: str) -> None:
    """Draw the scale of the shades, an arrow where values lie beyond its end."""
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
