"""The figures of the report's part on the evaluation: what they show, and that all is legible."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from planted import PLANTED, SEEDS, evaluated, tables

from flowbench.report.bayes import bayes, over_bins, over_labels
from flowbench.report.digits import digits, of_kind, sampling, trajectories
from flowbench.report.extractors import extractors
from flowbench.report.fidelity import fidelity
from flowbench.report.files import Recorded
from flowbench.report.heat import GROWING, SIGNED, shades
from flowbench.report.patches import over_patches, patches
from flowbench.report.positions import over_positions, positions
from flowbench.report.seeds import alike, patch_ratio


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return evaluated(tables())


def with_transform(recorded: Recorded, name: str) -> pd.DataFrame:
    return recorded.evaluation[name].merge(recorded.runs[["run_id", "transform"]], on="run_id")


# What maps and matrices are made of


def test_maps_are_of_runs_with_the_settings_of_their_transforms_best(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    spline = runs["transform"] == "rqs-8"
    runs.loc[spline & (runs["seed"] > 0), "blocks"] = 2
    runs.loc[spline & (runs["seed"] == 2), "val/loss"] = -9.0
    kept = alike(runs)
    assert sorted(kept.loc[kept["transform"] == "rqs-8", "seed"]) == [1, 2]
    assert (kept["transform"] == "affine").sum() == SEEDS


def test_maps_are_means_over_runs(recorded: Recorded) -> None:
    table = with_transform(recorded, "patches")
    values = table[(table["transform"] == "rqs-4") & (table["row"] == 2) & (table["column"] == 5)]
    assert over_patches(table, "rqs-4", "distance")[2, 5] == values["distance"].mean()
    table = with_transform(recorded, "positions")
    values = table[
        (table["transform"] == "rqs-4") & (table["block"] == 3) & (table["position"] == 7)
    ]
    found = over_positions(table, "rqs-4")
    assert found.shape == (4, 49)
    assert found[3, 7] == values["logdet"].mean()


def test_bins_of_several_runs_are_weighted_by_their_images() -> None:
    rows = [("affine", 0.62, 0.5, 10), ("affine", 0.65, 0.8, 30), ("affine", 0.99, 1.0, 5)]
    rows += [("affine", np.nan, np.nan, 0), ("rqs-4", 0.62, 0.0, 99), ("affine", 1.0, 0.4, 5)]
    table = pd.DataFrame(rows, columns=["transform", "confidence", "accuracy", "count"])
    bins = over_bins(table, "affine")
    assert bins["count"].tolist() == [40, 10]
    assert bins["confidence"].tolist() == pytest.approx([(6.2 + 19.5) / 40, 0.995])
    assert bins["accuracy"].tolist() == pytest.approx([(5 + 24) / 40, 0.7])


def test_confusion_matrices_are_sums_over_runs_and_have_every_class() -> None:
    rows = [("affine", 0, 0, 3), ("affine", 0, 0, 4), ("affine", 0, 2, 1), ("rqs-4", 1, 1, 9)]
    table = pd.DataFrame(rows, columns=["transform", "label", "predicted", "count"])
    assert over_labels(table, "affine").tolist() == [[7, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_a_far_off_value_does_not_flatten_the_shades() -> None:
    values = np.linspace(1, 2, 100)
    plain = shades([values])
    assert (plain.name, plain.norm.vmin, plain.norm.vmax) == (GROWING, 1, 2)
    assert plain.extend == "neither"
    spiked = shades([values, np.array([1e6, np.nan])])
    assert spiked.norm.vmax < 10
    assert spiked.extend == "max"
    assert shades([np.array([5.0, 0, 0, 0, 0])]).norm.vmax == 5


def test_shades_of_values_of_both_signs_have_0_in_the_middle() -> None:
    signed = shades([np.linspace(-1, 3, 50)])
    assert signed.name == SIGNED
    assert signed.norm(0.0) == pytest.approx(0.5)


# Figures


DRAWN: dict[str, Callable[[Recorded], Figure]] = {
    "fidelity": lambda r: fidelity(extractors(r.runs)),
    "patches": lambda r: patches(with_transform(r, "patches"), r.runs),
    "positions": lambda r: positions(with_transform(r, "positions")),
    "bayes": lambda r: bayes(with_transform(r, "calibration"), with_transform(r, "confusion")),
    "digits": lambda r: digits(r.samples, classes=True),
    "sampling": lambda r: sampling(r.samples, classes=True),
    "trajectories": lambda r: trajectories(r.samples, classes=True),
}
FIVE = dict.fromkeys(["additive", "affine", "rqs-4", "rqs-8", "affine+rqs-16"], (0.5, 2.7, 10.0))
SHAPES: dict[str, Callable[[], Recorded]] = {
    "three": lambda: evaluated(tables()),
    "one run": lambda: evaluated(tables({"affine": PLANTED["affine"]}, seeds=1)),
    "five, eight blocks": lambda: evaluated(tables(FIVE), blocks=8),
    "few patches": lambda: evaluated(tables(seeds=2), side=2, blocks=1),
    "many classes": lambda: evaluated(tables(seeds=2), classes=100),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_off_or_overlaps(name: str, shape: str) -> None:
    figure = DRAWN[name](SHAPES[shape]())
    figure.draw_without_rendering()
    page = figure.bbox.padded(0.5)
    panels = [axes for axes in figure.findobj(match=type(figure.axes[0])) if axes.get_visible()]
    boxes = [axes.get_tightbbox() for axes in panels]
    for box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
    inner = [axes.get_window_extent().padded(-1) for axes in panels]
    for at, box in enumerate(boxes):
        assert not any(box.padded(-1).overlaps(other) for n, other in enumerate(inner) if n != at)


UNITS = {
    "patches": {"Grey levels", "Bits per dimension", "Edge ÷ even noise (ratio)"},
    "positions": {"Mean log-slope (nats per dimension)"},
    "bayes": {"Share of the label's images", "Confidence", "Accuracy"},
    "fidelity": {"FID (digits)", "KID (digits)", "Recall (digits)", "Precision (digits)"},
}


@pytest.mark.parametrize("name", UNITS)
def test_figures_name_their_units(name: str, recorded: Recorded) -> None:
    panels = DRAWN[name](recorded).axes
    assert UNITS[name] <= {label for p in panels for label in (p.get_xlabel(), p.get_ylabel())}


def test_nats_are_mapped_where_there_are_no_bits() -> None:
    figure = DRAWN["patches"](evaluated(tables(), noise="gaussian"))
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert "Nats per dimension" in labels
    assert "Bits per dimension" not in labels


def test_every_ratio_is_shown_with_its_whole_interval(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[runs["transform"] == "rqs-8", "patches/ratio"] = [0.4, 1.0, 2.5]
    figure = patches(with_transform(recorded, "patches"), runs)
    value = patch_ratio(runs, "rqs-8")
    (panel,) = (axes for axes in figure.axes if "ratio" in axes.get_xlabel())
    low, high = panel.get_xlim()
    assert low < value.low < value.high < high


def test_each_extractor_has_its_own_panels(recorded: Recorded) -> None:
    scores = {"fid_inception": 50.0, "kid_inception": 0.1, "fid_inception_floor": 4.0}
    figure = fidelity(extractors(recorded.runs.assign(**scores)))
    labels = [axes.get_xlabel() for axes in figure.axes if axes.get_visible()]
    assert labels == [
        *("FID (digits)", "KID (digits)", "Recall (digits)"),
        *("FID (inception)", "KID (inception)"),
    ]
    panel = figure.axes[3]
    floors = [line for line in panel.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in floors] == [4.0]


def test_wide_scores_are_drawn_on_a_logarithmic_axis_unless_a_floor_is_negative(
    recorded: Recorded,
) -> None:
    runs = recorded.runs.copy()
    runs.loc[0, ["fid_digits", "kid_digits"]] = [4000.0, 40.0]
    runs["kid_digits_floor"] = -0.001
    fid, kid, _ = fidelity(extractors(runs)).axes
    assert (fid.get_xscale(), kid.get_xscale()) == ("log", "linear")
    assert kid.get_xlim()[0] <= -0.001


def test_images_are_found_by_kind() -> None:
    samples = {"rqs-8": 1, "affine": 2, "affine/guided": 3, "affine+rqs-8/guided": 4}
    assert list(of_kind(samples, "").items()) == [("affine", 2), ("rqs-8", 1)]
    assert list(of_kind(samples, "guided").items()) == [("affine", 3), ("affine+rqs-8", 4)]


def test_a_way_of_sampling_that_a_transform_lacks_is_white(recorded: Recorded) -> None:
    samples = {key: images for key, images in recorded.samples.items() if key != "rqs-4/denoised"}
    figure = sampling(samples, classes=True)
    heads = {axes.get_xlabel() for axes in figure.axes}
    assert heads == {"Plain", "Guided", "Denoised", ""}
    sheets = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [bool((sheet == 255).all()) for sheet in sheets] == [False] * 7 + [True, False]


def test_only_ways_of_sampling_that_some_run_has_are_shown(recorded: Recorded) -> None:
    samples = {key: images for key, images in recorded.samples.items() if "denoised" not in key}
    heads = [axes.get_xlabel() for axes in sampling(samples, classes=True).axes]
    assert [head for head in heads if head] == ["Plain", "Guided"]


def test_trajectories_name_the_blocks_as_they_are_undone(recorded: Recorded) -> None:
    panel, *others = trajectories(recorded.samples, classes=True).axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["noise", "3", "2", "1", "0"]
    assert len(others) == 2


def test_images_of_no_class_are_not_numbered(recorded: Recorded) -> None:
    figure = digits(recorded.samples, classes=False)
    assert not any(axes.get_xlabel() or len(axes.get_xticks()) for axes in figure.axes)


def test_many_classes_are_numbered_as_closely_as_they_fit() -> None:
    wide = {"affine": np.zeros((1, 100, 8, 8, 1), dtype=np.uint8)}
    (panel,) = digits(wide, classes=True).axes
    shown = [int(tick.get_text()) for tick in panel.get_xticklabels()]
    assert shown[0] == 0
    assert set(np.diff(shown)) == {5}
