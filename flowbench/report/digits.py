"""Figures of generated images, unselected: of every class, by way of sampling, block by block."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from flowbench.report import style
from flowbench.report.labels import label, ordered
from flowbench.report.sheets import Sheet, pages

PLAIN, GUIDED, DENOISED, TRAJECTORY = "", "guided", "denoised", "trajectory"
"""Kinds of images of a transform: its draws as they come, and what the key has behind a slash."""
WAYS = {PLAIN: "Plain", GUIDED: "Guided", DENOISED: "Denoised"}
"""Ways to draw from a flow and the same noise."""
_SHOWN = 3  # rows of images of a transform


def of_kind(samples: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The images of one kind, by transform in reading order."""
    pairs = ((key.partition("/"), images) for key, images in samples.items())
    found = {name: images for (name, _, own), images in pairs if own == kind}
    return {name: found[name] for name in ordered(found)}


@style.context()
def digits(samples: Mapping[str, np.ndarray], classes: bool) -> Figure:
    """Images of the classes (columns), in a named sheet for each transform.

    Args:
        samples: Images by transform and kind.
        classes: Whether columns are classes.
    """
    plain = of_kind(samples, PLAIN)
    sheets = [Sheet(images[:_SHOWN], _name(name)) for name, images in plain.items()]
    deep = len(sheets) if len(sheets) <= 4 else -(-len(sheets) // 2)  # four fill a page's height
    columns = [sheets[:deep], sheets[deep:]] if deep < len(sheets) else [sheets]
    return pages(columns, ["Class" if classes else ""] * len(columns), classes)


@style.context()
def sampling(samples: Mapping[str, np.ndarray], classes: bool) -> Figure:
    """The same noise sampled in several ways (columns of sheets) for each transform that has them.

    Args:
        samples: Images by transform and kind.
        classes: Whether columns are classes.
    """
    ways = {way: of_kind(samples, way) for way in WAYS}
    names = ordered([*ways[GUIDED], *ways[DENOISED]])
    shown = {way: found for way, found in ways.items() if set(found) & set(names)}
    columns = []
    for found in shown.values():
        first = found is ways[PLAIN]
        blank = np.full_like(next(iter(found.values()))[:_SHOWN], 255)
        images = {name: found.get(name, blank)[:_SHOWN] for name in names}
        columns.append([Sheet(images[name], _name(name) if first else "") for name in names])
    return pages(columns, [WAYS[way] for way in shown], classes)


@style.context()
def trajectories(samples: Mapping[str, np.ndarray], classes: bool) -> Figure:
    """From noise to image through the blocks (rows), a sheet a transform.

    Args:
        samples: Images by transform and kind.
        classes: Whether columns are classes.
    """
    found = of_kind(samples, TRAJECTORY)
    sheets = [Sheet(steps, _name(name), _steps(len(steps))) for name, steps in found.items()]
    across = min(3, len(sheets))
    columns = [sheets[place::across] for place in range(across)]
    return pages(columns, ["Class" if classes else ""] * across, classes)


def _name(transform: str) -> str:
    return label(transform).replace(" + ", " +\n")


def _steps(count: int) -> list[str]:
    """Names of the noise and of what each block makes of it, the last to be undone first."""
    return ["noise", *(f"{block}" for block in reversed(range(count - 1)))]
