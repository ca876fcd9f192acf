"""The figures of the evaluation: which there are and what their captions say."""

from collections.abc import Iterable, Iterator
from functools import partial

import pandas as pd

from flowbench.report.bayes import bayes
from flowbench.report.configurations import shown
from flowbench.report.digits import (
    DENOISED,
    GUIDED,
    PLAIN,
    TRAJECTORY,
    digits,
    of_kind,
    sampling,
    trajectories,
)
from flowbench.report.extractors import extractors
from flowbench.report.fidelity import fidelity
from flowbench.report.files import Recorded
from flowbench.report.labels import label, ordered
from flowbench.report.numbers import number
from flowbench.report.patches import patches
from flowbench.report.plates import Plate, counts
from flowbench.report.positions import positions
from flowbench.report.seeds import alike, finished

NAMES = ["fidelity", "digits", "sampling", "trajectories", "patches", "positions", "bayes"]
"""Every figure there may be, each a file of this name."""

_BEST = "One run a transform, its best in validation; images unselected."
_ALIKE = "Mean over the runs of a transform with the settings of its best."
_SCALE = "An arrow at the end of a scale: values lie beyond it."


def plates(recorded: Recorded) -> Iterator[Plate]:
    """The figures of the evaluation.

    Args:
        recorded: The tables and images.
    """
    yield _fidelity(recorded)
    yield from _images(recorded)
    yield _patches(recorded)
    yield _positions(recorded)
    yield _bayes(recorded)


def _fidelity(recorded: Recorded) -> Plate:
    best, _ = shown(finished(recorded.runs))
    found = extractors(best)
    runs = pd.concat([extractor.runs for extractor in found] or [recorded.runs[:0]])
    return Plate(
        "fidelity",
        partial(fidelity, found),
        f"FID, KID, precision and recall of {_names(runs)}, beside the floor.",
        "Generated against test images in the features of an extractor (one row of panels each, "
        "for their values do not compare). A mark: one run; a bar or a filled mark: the mean over "
        "the runs, without an interval; where blocks or layers vary the runs are those with the "
        "settings of the transform's best in validation; floor: training images in place of "
        "generated ones. FID and "
        "KID are better the lower; an axis is logarithmic where values differ more than "
        f"thirtyfold. {' '.join(extractor.told for extractor in found)} "
        f"{counts(runs)}",
        lacking="" if found else "scores of generated images",
    )


def _images(recorded: Recorded) -> Iterator[Plate]:
    samples = recorded.samples
    classes = not (finished(recorded.runs)["classes"] == 0).all()
    columns = "by class (columns)" if classes else "of no class"
    kinds = {kind: of_kind(samples, kind) for kind in (PLAIN, GUIDED, DENOISED, TRAJECTORY)}
    ways = [*kinds[GUIDED], *kinds[DENOISED]]
    yield Plate(
        "digits",
        partial(digits, samples, classes),
        f"Generated images from {_listed(kinds[PLAIN])}.",
        f"Samples {columns}, the first drawn from each transform. {_BEST}",
        lacking="" if kinds[PLAIN] else "samples",
    )
    yield Plate(
        "sampling",
        partial(sampling, samples, classes),
        f"Images from {_listed(ways)}, sampled in several ways from the same noise.",
        f"Samples {columns}; left to right the same noise drawn as it comes, with guidance, with "
        f"denoising along the score, each where the run has it. {_BEST}",
        lacking="" if ways else "guided or denoised samples",
    )
    yield Plate(
        "trajectories",
        partial(trajectories, samples, classes),
        f"Images between the blocks of {_listed(kinds[TRAJECTORY])}, from noise to image.",
        f"From noise to image, {columns}: the noise, and below it what each block makes of the row "
        "above; the rows have the number of the block undone, 0 being the nearest to the data. "
        f"{_BEST}",
        lacking="" if kinds[TRAJECTORY] else "images between the blocks",
    )


def _patches(recorded: Recorded) -> Plate:
    table = _of_alike(recorded, "patches")
    floor = number(table["floor"].mean(), 1)
    return Plate(
        "patches",
        partial(patches, table, shown(finished(recorded.runs))[0]),
        f"Maps over the patches, and a ratio of the edge to even noise, for {_names(table)}.",
        "Patch by patch: Wasserstein distance of the high-frequency amplitude in generated from "
        f"that in test images (training images: {floor} on average), and the patch's share of the "
        f"negative log-likelihood of test images. {_ALIKE} Outlined: the first and last two "
        "patches in raster order. Right: (distance + 1) / (distance of training images + 1) of the "
        "outlined patches, divided by what that is in real images with even noise as strong as "
        "the other patches'; mark: geometric mean over seeds; line: its 95 % t interval over "
        "seeds, a single run's own over groups of images. "
        f"{_SCALE} {counts(table)}",
        lacking="" if len(table) else "evaluations by patch",
    )


def _positions(recorded: Recorded) -> Plate:
    table = _of_alike(recorded, "positions")
    return Plate(
        "positions",
        partial(positions, table),
        f"Maps of the log-slope over blocks and positions for {_names(table)}.",
        "Mean log-slope on test images by block (0 is the nearest to the data) and by position in "
        "that block's own order: how much the density gains there. The first position of a block "
        f"is passed through unchanged. {_ALIKE} {_SCALE} {counts(table)}",
        lacking="" if len(table) else "log-slopes by position",
    )


def _bayes(recorded: Recorded) -> Plate:
    calibration, confusion = (_of_alike(recorded, name) for name in ("calibration", "confusion"))
    return Plate(
        "bayes",
        partial(bayes, calibration, confusion),
        f"Reliability and confusion matrices of {_names(confusion)} as classifiers.",
        "Test images classified by the likelihood under each class, equal priors. First panel: "
        "accuracy against mean confidence in 15 bins, the area of a mark growing with the bin's "
        "share of the images; dashed: as sure as right. Others: what the images of a label are "
        "taken for, on a logarithmic scale. All runs of a transform with the settings of its best "
        f"together, no intervals. {counts(confusion)}",
        lacking="" if len(calibration) and len(confusion) else "classifications of test images",
    )


def _of_alike(recorded: Recorded, name: str) -> pd.DataFrame:
    """A table of the evaluation, with ``transform``, of the runs that it can be averaged over."""
    table = recorded.evaluation[name]
    return table.merge(alike(recorded.runs)[["run_id", "transform"]], on="run_id")


def _names(table: pd.DataFrame) -> str:
    return _listed(table["transform"])


def _listed(transforms: Iterable[str]) -> str:
    return ", ".join(map(label, ordered(transforms)))
