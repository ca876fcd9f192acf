"""Figures with what is said of them: drawn where their data are there, else named and why."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from flowbench.report import style
from flowbench.report.document import Picture
from flowbench.report.labels import label, ordered

Format = Literal["png", "pdf"]


@dataclass(frozen=True)
class Plate:
    """A figure that there may be."""

    name: str
    """Its file's name without the suffix."""
    draw: Callable[[], Figure]
    alt: str
    """What it shows, for those who cannot see it."""
    caption: str
    lacking: str = ""
    """What would be needed to draw it, where that is not there."""


class Drawn(NamedTuple):
    """What has become of some plates."""

    pictures: list[Picture]
    left_out: list[str]
    """A sentence for each figure that could not be drawn."""


def drawn(plates: Iterable[Plate], directory: Path, format: Format) -> Drawn:
    """Draw what can be drawn, each figure as PNG and, where wanted, as PDF besides.

    Args:
        plates: The figures in their order.
        directory: Where to put the files.
        format: pdf for figures in both formats.
    """
    pictures, left_out = [], []
    for plate in list(plates):  # an error in making them is told before any is drawn
        if plate.lacking:
            left_out.append(f"{plate.name}: not drawn, for there are no {plate.lacking}.")
            continue
        for suffix in dict.fromkeys(["png", format]):
            # Saving lays a figure out for its format and leaves a trace of that in it.
            style.save(plate.draw(), directory / f"{plate.name}.{suffix}")
        pictures.append(Picture(f"{plate.name}.png", plate.alt, plate.caption))
    return Drawn(pictures, left_out)


def counts(runs: pd.DataFrame) -> str:
    """How many runs a figure rests on, by transform."""
    found = runs.groupby("transform")["run_id"].nunique()
    return f"Runs: {', '.join(f'{label(name)} {found[name]}' for name in ordered(found.index))}."
