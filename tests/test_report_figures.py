"""Figures: what they show, that they name their units, and that nothing overlaps or is cut off."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reports import EPOCHS, PLANTED, RUN, SEEDS, among, analysis, changed, sweep, tables
from test_report_claims import OF_BINS, OF_BLOCKS, OF_LAYERS, of_bins, power, timed
from test_report_search import OBJECTIVES, searched

from flowbench.bench.planted import evaluated
from flowbench.flow import STARTS
from flowbench.orders import ORDERS
from flowbench.report.analysis import Analysis
from flowbench.report.figures import FIGURES, style
from flowbench.report.figures.bayes import over_bins, over_labels
from flowbench.report.figures.curves import over_seeds
from flowbench.report.figures.images import of_kind
from flowbench.report.figures.maps import over_patches, over_positions
from flowbench.report.figures.spline import KNOTS_X, KNOTS_Y, SLOPES, evaluate, spline
from flowbench.report.figures.style import GROWING, SIGNED, looks, shades
from flowbench.report.files import Recorded
from flowbench.report.stats import patch_ratio
from flowbench.schema import BLOCKS, SECONDS, TRANSFORM

pytestmark = tiny.LIBRARIES
PLOTS = {plot.name: plot for plot in FIGURES}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return evaluated(tables())


def drawn(name: str, recorded: Recorded, objectives: dict[str, str] | None = None) -> Figure:
    return PLOTS[name].draw(analysis(recorded, objectives))


# Every figure on every shape of data


def with_options(recorded: Recorded) -> Recorded:
    """The same runs, with orders of the patches and first patches in turn."""
    names = {"model.order": [*ORDERS, "random-0"], "model.start": STARTS}
    del names["model.order"][names["model.order"].index("hilbert")]
    columns = {name: np.resize(values, len(recorded.runs)) for name, values in names.items()}
    return changed(recorded, **columns)


FIVE = dict.fromkeys(["additive", "affine", "rqs-4", "rqs-8", "affine+rqs-16"], (0.5, 2.7, 10.0))
SHAPES: dict[str, Callable[[], Analysis]] = {
    "three transforms": lambda: analysis(evaluated(tables())),
    "one run": lambda: analysis(evaluated(tables({"affine": PLANTED["affine"]}, seeds=1))),
    "five transforms": lambda: analysis(evaluated(tables(FIVE))),
    "few patches": lambda: analysis(evaluated(tables(seeds=2), side=2)),
    "many classes": lambda: analysis(evaluated(tables(seeds=2), classes=100)),
    "no bits": lambda: analysis(evaluated(tables(), noise="gaussian")),
    "bins": lambda: analysis(timed(sweep(OF_BINS, of_bins(0.1, 0.05), workers=2))),
    "blocks": lambda: analysis(sweep(OF_BLOCKS, power)),
    "layers": lambda: analysis(sweep(OF_LAYERS, power, workers=2)),
    "a search": lambda: analysis(searched(), OBJECTIVES),
    "a search for one": lambda: analysis(searched(), {"val/bpd": "minimize"}),
    "orders": lambda: analysis(with_options(evaluated(tables(seeds=8)))),
    "wide times": lambda: analysis(changed(searched(), **{SECONDS: np.geomspace(0.4, 14, 9)})),
}


@cache
def of_shape(shape: str) -> Analysis:
    return SHAPES[shape]()


@pytest.mark.parametrize("shape", SHAPES)
def test_no_figure_is_cut_off_overlaps_or_lacks_labels(shape: str) -> None:
    one = of_shape(shape)
    plots = [plot for plot in FIGURES if not plot.missing(one)]
    assert plots
    for plot in plots:
        figure = plot.draw(one)
        figure.draw_without_rendering()
        page = figure.bbox.padded(0.5)
        panels = [axes for axes in figure.findobj(match=Axes) if axes.get_visible()]
        boxes = [part.get_tightbbox() for part in (*panels, *figure.legends)]
        for box in boxes:
            assert page.x0 <= box.x0 < box.x1 <= page.x1, plot.name
            assert page.y0 <= box.y0 < box.y1 <= page.y1, plot.name
        inner = [axes.get_window_extent().padded(-1) for axes in panels]
        for at, box in enumerate(boxes):
            others = [other for n, other in enumerate(inner) if n != at]
            assert not any(box.padded(-1).overlaps(other) for other in others), plot.name


@pytest.mark.parametrize("shape", SHAPES)
def test_captions_have_at_most_50_words(shape: str) -> None:
    one = of_shape(shape)
    captions = {plot.name: plot.caption(one) for plot in FIGURES if not plot.missing(one)}
    lengths = {name: len(caption.split()) for name, caption in captions.items()}
    assert max(lengths.values()) <= 50, lengths
    assert all(caption.strip().endswith(".") for caption in captions.values())


UNITS = {
    "run_losses": {"Nats per dimension", "Epoch"},
    "losses": {"Nats per dimension", "Normalised to [0, 1]", "Epoch"},
    "bpd": {"Validation bits per dimension", "Training time (s)", "Epoch"},
    "seconds_per_epoch": {"Time per epoch (s)"},
    "pareto": {"Validation bits per dimension", "Time per epoch (s)"},
    "patches": {"Grey levels", "Bits per dimension", "Edge ÷ even noise (ratio)"},
    "positions": {"Mean log-slope (nats per dimension)"},
    "bayes": {"Share of the label's images", "Confidence", "Accuracy"},
    "fidelity": {"FID (digits)", "KID (digits)", "Recall (digits)", "Precision (digits)"},
}


@pytest.mark.parametrize("name", UNITS)
def test_figures_name_their_units(name: str, recorded: Recorded) -> None:
    panels = drawn(name, recorded).axes
    assert UNITS[name] <= {label for p in panels for label in (p.get_xlabel(), p.get_ylabel())}


# Curves


def test_bits_are_never_drawn_where_there_are_none() -> None:
    label = drawn("bpd", evaluated(tables(), noise="gaussian")).axes[0].get_ylabel()
    assert "nats" in label
    assert "bits" not in label


def test_normalised_curves_span_0_to_1() -> None:
    lines = [line.get_ydata() for line in drawn("losses", tables(seeds=1)).axes[3].get_lines()]
    values = np.concatenate([np.asarray(line) for line in lines])
    assert (values.min(), values.max()) == (pytest.approx(0), pytest.approx(1))


def test_a_mean_has_the_same_seeds_in_every_epoch(recorded: Recorded) -> None:
    history = analysis(recorded).history
    last = (history["run_id"] == RUN) & (history["epoch"] == EPOCHS)
    table = over_seeds(history[~last], "val/loss", "affine")
    assert table.shape == (EPOCHS - 1, SEEDS)


def test_one_seed_has_no_band() -> None:
    one, three = (drawn("losses", tables(seeds=seeds)).legends[0] for seeds in (1, 3))
    assert "no bands" in one.get_title().get_text()
    assert "n = 3 seeds" in three.get_title().get_text()


def test_curves_are_those_of_the_best_configuration_of_each_transform() -> None:
    one = analysis(sweep(OF_BLOCKS, power, workers=2))
    assert set(one.best[BLOCKS]) == {8}
    assert one.names == {"affine": "affine, 8 blocks", "rqs-8": "RQS K=8, 8 blocks"}
    labels = {text.get_text() for text in PLOTS["losses"].draw(one).legends[0].get_texts()}
    assert labels == set(one.names.values())
    assert "The best configuration of each transform" in PLOTS["losses"].caption(one)


def test_figures_show_finished_runs_only(recorded: Recorded) -> None:
    status = recorded.runs["status"].mask(among(recorded, "rqs-8"), "failed")
    one = analysis(changed(recorded, status=status))
    for name in ("losses", "bpd", "seconds_per_epoch", "fidelity"):
        figure = PLOTS[name].draw(one)
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        texts += [tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()]
        assert any("K=4" in text for text in texts)
        assert not any("K=8" in text for text in texts)


# Along a number


def test_the_panel_of_seconds_says_what_it_lacks() -> None:
    blocks = sweep(OF_BLOCKS, power, workers=2)
    lines = {}
    for name, one in {"without": blocks, "with": timed(blocks)}.items():
        loss, seconds = drawn("blocks", one).axes
        assert len(loss.containers) == 2
        lines[name] = len(seconds.containers)
        texts = "".join(text.get_text() for text in seconds.texts)
        assert ("make sweep-timing" in texts) == (name == "without")
    assert lines == {"without": 0, "with": 2}


def test_every_seed_is_drawn_next_to_the_mean() -> None:
    loss, _ = drawn("blocks", sweep(OF_BLOCKS, power)).axes
    marks = [line for line in loss.get_lines() if line.get_alpha()]
    assert [len(line.get_ydata()) for line in marks] == [SEEDS * 4] * 2


# Maps and matrices


def test_maps_are_means_over_runs(recorded: Recorded) -> None:
    table = analysis(recorded).evaluated["patches"]
    values = table[(table[TRANSFORM] == "rqs-4") & (table["row"] == 2) & (table["column"] == 5)]
    assert over_patches(table, "rqs-4", "distance")[2, 5] == values["distance"].mean()
    table = analysis(recorded).evaluated["positions"]
    place = (table[TRANSFORM] == "rqs-4") & (table["block"] == 3) & (table["position"] == 7)
    found = over_positions(table, "rqs-4")
    assert found.shape == (4, 49)
    assert found[3, 7] == table.loc[place, "logdet"].mean()


def test_bins_of_several_runs_are_weighted_by_their_images() -> None:
    rows = [("affine", 0.62, 0.5, 10), ("affine", 0.65, 0.8, 30), ("affine", 0.99, 1.0, 5)]
    rows += [("affine", np.nan, np.nan, 0), ("rqs-4", 0.62, 0.0, 99), ("affine", 1.0, 0.4, 5)]
    table = pd.DataFrame(rows, columns=[TRANSFORM, "confidence", "accuracy", "count"])
    bins = over_bins(table, "affine")
    assert bins["count"].tolist() == [40, 10]
    assert bins["confidence"].tolist() == pytest.approx([(6.2 + 19.5) / 40, 0.995])
    assert bins["accuracy"].tolist() == pytest.approx([(5 + 24) / 40, 0.7])


def test_confusion_matrices_are_sums_over_runs_and_have_every_class() -> None:
    rows = [("affine", 0, 0, 3), ("affine", 0, 0, 4), ("affine", 0, 2, 1), ("rqs-4", 1, 1, 9)]
    table = pd.DataFrame(rows, columns=[TRANSFORM, "label", "predicted", "count"])
    assert over_labels(table, "affine").tolist() == [[7, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_an_outlier_does_not_flatten_the_shades() -> None:
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


def test_nats_are_mapped_where_there_are_no_bits() -> None:
    figure = drawn("patches", evaluated(tables(), noise="gaussian"))
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert "Nats per dimension" in labels
    assert "Bits per dimension" not in labels


def test_every_ratio_is_shown_with_its_whole_interval(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[runs[TRANSFORM] == "rqs-8", "patches/ratio"] = [0.4, 1.0, 2.5]
    figure = drawn("patches", recorded._replace(runs=runs))
    value = patch_ratio(runs[runs[TRANSFORM] == "rqs-8"])
    (panel,) = (axes for axes in figure.axes if "ratio" in axes.get_xlabel())
    low, high = panel.get_xlim()
    assert low < value.low < value.high < high


# Scores


def test_each_extractor_has_its_own_panels(recorded: Recorded) -> None:
    scores = {"fid_inception": 50.0, "kid_inception": 0.1, "fid_inception_floor": 4.0}
    figure = drawn("fidelity", changed(recorded, **scores))
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
    fid, kid, _ = drawn("fidelity", recorded._replace(runs=runs)).axes
    assert (fid.get_xscale(), kid.get_xscale()) == ("log", "linear")
    assert kid.get_xlim()[0] <= -0.001


# Images


def test_images_are_found_by_kind() -> None:
    samples = {"rqs-8": 1, "affine": 2, "affine/guided": 3, "affine+rqs-8/guided": 4}
    assert list(of_kind(samples, "").items()) == [("affine", 2), ("rqs-8", 1)]
    assert list(of_kind(samples, "guided").items()) == [("affine", 3), ("affine+rqs-8", 4)]


def test_digits_are_labelled_by_class_and_transform(recorded: Recorded) -> None:
    figure = drawn("digits", recorded)
    assert [axes.get_ylabel() for axes in figure.axes] == ["affine", "RQS K=4", "RQS K=8"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == [str(digit) for digit in range(10)]


def test_a_way_of_sampling_that_a_transform_lacks_is_white(recorded: Recorded) -> None:
    samples = {key: images for key, images in recorded.samples.items() if key != "rqs-4/denoised"}
    figure = drawn("sampling", recorded._replace(samples=samples))
    heads = {axes.get_xlabel() for axes in figure.axes}
    assert heads == {"Plain", "Guided", "Denoised", ""}
    sheets = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [bool((sheet == 255).all()) for sheet in sheets] == [False] * 7 + [True, False]


def test_only_ways_of_sampling_that_some_run_has_are_shown(recorded: Recorded) -> None:
    samples = {key: images for key, images in recorded.samples.items() if "denoised" not in key}
    figure = drawn("sampling", recorded._replace(samples=samples))
    heads = [axes.get_xlabel() for axes in figure.axes]
    assert [head for head in heads if head] == ["Plain", "Guided"]


def test_trajectories_name_the_blocks_in_the_order_of_their_inversion(recorded: Recorded) -> None:
    panel, *others = drawn("trajectories", recorded).axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["noise", "3", "2", "1", "0"]
    assert len(others) == 2


def test_images_of_no_class_are_not_numbered(recorded: Recorded) -> None:
    figure = drawn("digits", changed(recorded, classes=0))
    assert not any(axes.get_xlabel() or len(axes.get_xticks()) for axes in figure.axes)


def test_many_classes_are_numbered_as_closely_as_they_fit(recorded: Recorded) -> None:
    wide = {"affine": np.zeros((1, 100, 8, 8, 1), dtype=np.uint8)}
    (panel,) = drawn("digits", recorded._replace(samples=wide)).axes
    shown = [int(tick.get_text()) for tick in panel.get_xticklabels()]
    assert shown[0] == 0
    assert set(np.diff(shown)) == {5}


# Which figures there are


def test_what_was_not_evaluated_is_not_drawn(recorded: Recorded) -> None:
    names = ["fidelity", "digits", "sampling", "trajectories", "patches", "positions", "bayes"]

    def missing(one: Recorded) -> dict[str, str]:
        return {name: PLOTS[name].missing(analysis(one)) for name in names}

    assert missing(recorded) == dict.fromkeys(names, "")
    assert missing(evaluated(tables(), classes=0))["bayes"] == "classifications of test images"
    plain = missing(
        tables()._replace(
            evaluation={
                "patches": recorded.evaluation["patches"][:0],
                "positions": recorded.evaluation["positions"][:0],
                "confusion": recorded.evaluation["confusion"][:0],
                "calibration": recorded.evaluation["calibration"][:0],
            }
        )
    )
    assert [name for name, lacking in plain.items() if not lacking] == ["digits"]
    assert PLOTS["latents"].missing(analysis(recorded)) == ""
    assert PLOTS["latents"].missing(analysis(tables())) == "latents (evaluate.latents)"
    failed = missing(changed(recorded, status="failed"))
    assert all(failed[name] for name in ("fidelity", "patches", "positions", "bayes"))


# The look


def test_the_spline_goes_through_its_knots_with_its_slopes() -> None:
    z, slope = evaluate(np.array(KNOTS_X))
    assert z.tolist() == [*KNOTS_Y]
    assert slope.tolist() == pytest.approx([*SLOPES])
    x = np.linspace(-3.9, 3.9, 50)
    numeric = (evaluate(x + 1e-6)[0] - evaluate(x - 1e-6)[0]) / 2e-6
    assert evaluate(x)[1] == pytest.approx(numeric, rel=1e-5)
    (line,) = (x for x in spline().axes[0].get_lines() if x.get_label() == "spline, K = 3")
    at, values = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    np.testing.assert_allclose(np.interp(KNOTS_X, at, values), KNOTS_Y, atol=1e-6)


def test_the_drawn_spline_is_that_of_zuko() -> None:
    zuko = pytest.importorskip("zuko")
    oracle = zuko.transforms.MonotonicRQSTransform(torch.zeros(3), torch.zeros(3), torch.zeros(2))
    knots = (torch.tensor(values, dtype=torch.float64) for values in (KNOTS_X, KNOTS_Y, SLOPES))
    oracle.horizontal, oracle.vertical, oracle.derivatives = knots
    x = torch.linspace(-5, 5, 1000, dtype=torch.float64)
    z, log_slope = oracle.call_and_ladj(x)
    own_z, own_slope = evaluate(x.numpy())
    np.testing.assert_allclose(own_z, z, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.log(own_slope), log_slope, rtol=0, atol=1e-12)


def test_looks_are_distinct_and_known_transforms_keep_theirs() -> None:
    many = looks(["affine", "rqs-8", *(f"rqs-{2 * bins}" for bins in range(5, 60))])
    shown = {(look.colour, str(look.line), look.marker) for look in many.values()}
    assert len(shown) == len(many)
    assert many["affine"] == looks(["affine"])["affine"]
    assert many["rqs-8"] == looks(["rqs-8", "additive"])["rqs-8"]


def test_every_figure_has_a_name_and_a_section_of_its_own() -> None:
    assert len(PLOTS) == len(FIGURES)
    assert {plot.section for plot in FIGURES} == {"original", "results", "appendix"}
    assert style.COLUMN < style.PAGE
