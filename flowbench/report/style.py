"""One look for every figure: a paper's column widths, colour-blind-safe, readable in grey print."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType, RcKeyType

from flowbench.report.labels import label, ordered

COLUMN, PAGE = 3.4, 7.0
"""Widths in inches of one column and of both."""

GREY = "#666666"
"""Colour of what is beside the data: guides, limits, notes."""

_LOOK: dict[RcKeyType, Any] = {
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
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text that stays text in the publisher's tools
}

# Okabe and Ito's palette, with grey for its yellow: as a line on white paper that cannot be seen.
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

# These keep their place whatever they are compared with, so a reader learns them once.
_RESERVED = ["affine", "rqs-8", "rqs-4", "affine+rqs-8", "additive", "affine+rqs-4"]


@dataclass(frozen=True)
class Look:
    """How one transform is drawn in every figure of a report."""

    colour: str
    line: LineStyleType
    marker: str
    label: str


def looks(transforms: Iterable[str]) -> dict[str, Look]:
    """A distinct look for each transform, in reading order.

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
    """Write a PNG (300 dpi) or PDF whose bytes depend on the figure alone: no dates."""
    undated = {"Software": None} if path.suffix == ".png" else {"CreationDate": None}
    with context():
        figure.savefig(path, metadata=undated)
