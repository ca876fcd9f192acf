"""Figure of samples: every class from every transform, unselected."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from flowbench.report import style
from flowbench.report.labels import label, ordered

_GAP = 2  # white pixels between images
_LEFT, _TOP, _BETWEEN = 0.25, 0.36, 0.08  # inches, for a group's name, the classes, two groups


@style.context()
def digits(samples: Mapping[str, np.ndarray]) -> Figure:
    """Samples of the classes (columns), in a labelled group of rows for each transform.

    Args:
        samples: For each transform an array ``[rows, classes, H, W, C]`` of uint8, of one shape.
    """
    names = ordered(samples)
    columns = 1 if len(names) <= 4 else 2  # more than four would not fit the height of a page
    deep = -(-len(names) // columns)
    _, classes, _, pixels, _ = samples[names[0]].shape
    sheets = [_sheet(samples[name]) for name in names]
    width = style.COLUMN - _LEFT - 0.03
    height = width * sheets[0].shape[0] / sheets[0].shape[1]
    page = (columns * style.COLUMN, _TOP + deep * (height + _BETWEEN))
    figure = Figure(figsize=page)
    for place, (name, sheet) in enumerate(zip(names, sheets, strict=True)):
        column, row = divmod(place, deep)
        x, y = column * style.COLUMN + _LEFT, page[1] - _TOP - row * (height + _BETWEEN) - height
        axes = figure.add_axes((x / page[0], y / page[1], width / page[0], height / page[1]))
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axes.set(ylabel=label(name), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        if row == 0:
            axes.set_xticks([(pixels + _GAP) * c + pixels / 2 - 0.5 for c in range(classes)])
            axes.set_xticklabels([str(c) for c in range(classes)])
            axes.tick_params(length=0, pad=1, top=True, labeltop=True, labelbottom=False)
            axes.set_xlabel("Class")
            axes.xaxis.set_label_position("top")
    return figure


def _sheet(images: np.ndarray) -> np.ndarray:
    """The images beside and below each other, white between them: ``[height, width, C]``."""
    padding = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = np.pad(images, padding, constant_values=255)
    rows, classes, height, width, channels = padded.shape
    sheet = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, classes * width, channels)
    return sheet[:-_GAP, :-_GAP]
