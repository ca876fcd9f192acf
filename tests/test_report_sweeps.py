"""The report's part on bins, blocks and layers: laws, verdicts, times, figures and files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from mlflow.entities import Metric, Param
from planted_sweeps import EPOCHS, IMAGES, SEEDS, TOKENS, Law, sweep, untrained

from flowbench.report import Study, build, load, sweeps, trained
from flowbench.report import __main__ as main
from flowbench.report.answer import answer
from flowbench.report.blocks import worth
from flowbench.report.claims import Claim, claims
from flowbench.report.configurations import configurations, shown
from flowbench.report.cost import seconds_per_epoch
from flowbench.report.document import Block, Heading, Table
from flowbench.report.files import TIMED, TIMING, Recorded, complete
from flowbench.report.labels import bins
from flowbench.report.page import page
from flowbench.report.plates import Drawn
from flowbench.report.rounds import rounds, standing_for
from flowbench.report.scaling import Fit, best, compute, fits
from flowbench.report.seeds import cost, pace
from flowbench.report.series import series
from flowbench.report.tables import run_table, summary
from flowbench.report.trends import against
from flowbench.tracking.store import PARENT, Store

pytestmark = tiny.LIBRARIES

STUDY = Study("blocks", "How many?", "Few.", "flowbench sweep")
COUNTS = (1, 2, 4, 8)
BOTH = ("affine", "rqs-8")
BLOCKS = [(name, blocks, 1) for name in BOTH for blocks in COUNTS]
LAYERS = [(name, 2, layers) for name in BOTH for layers in COUNTS]
MATCHED = [(name, blocks, 8 // blocks) for name in BOTH for blocks in COUNTS]
BINS = [(name, 8, 1) for name in ("affine", "rqs-2", "rqs-4", "rqs-8", "rqs-16")]
TIMES = [*BLOCKS, *(point for point in BINS if point not in BLOCKS)]
NOTHING = Drawn([], [])


def power(transform: str, blocks: int, layers: int) -> float:
    """A law of its own for each transform, and less loss with more layers."""
    a, b, c = {"affine": (2.0, 2.0, 0.7), "rqs-8": (1.8, 0.6, 1.0)}[transform]
    return a + b * blocks**-c + 0.2 / layers


def halved(transform: str, blocks: int, _: int) -> float:
    """A spline with n blocks is an affine flow with 2n."""
    return 4 - 0.3 * np.log2(blocks if transform == "affine" else 2 * blocks)


def of_bins(gain_4: float, gain_8: float) -> Law:
    """What 16 bins gain over 4 and over 8."""
    losses = {2: 2.5, 4: 2.0 + gain_4, 8: 2.0 + gain_8, 16: 2.0}
    return lambda transform, *_: losses.get(bins(transform), 3.5)


def saying(judged: list[Claim], words: str) -> Claim:
    (claim,) = (claim for claim in judged if words in claim.text)
    return claim


def timed(recorded: Recorded) -> Recorded:
    """The same with the rounds of a study of times."""
    study = untrained(sweep(TIMES, constant))
    table = standing_for(rounds(study.runs, study.history), recorded.runs)
    return recorded._replace(evaluation=recorded.evaluation | {TIMING: table})


def constant(*_: object) -> float:
    """No difference at all."""
    return 1.0


@pytest.fixture(scope="module")
def blocks() -> Recorded:
    return sweep(BLOCKS, power, workers=2)


# Runs that differ in one number


def test_blocks_are_compared_at_equal_layers_or_at_equal_layers_in_all() -> None:
    plain, matched = (series(sweep(points, power).runs, "blocks") for points in (BLOCKS, MATCHED))
    assert plain is not None
    assert matched is not None
    assert plain.fixed == "1 layer a block"
    assert matched.fixed == "8 layers in all"
    assert sorted(matched.runs["x"].unique()) == [*COUNTS]
    assert series(sweep(MATCHED, power).runs, "layers") is None


def test_only_what_differs_in_nothing_else_makes_a_series() -> None:
    runs = sweep(BLOCKS, power).runs
    assert series(runs.assign(lr=1e-3 * runs["blocks"]), "blocks") is None
    assert series(runs, "bins") is None


def test_along_bins_affine_is_beside_the_splines() -> None:
    found = series(sweep(BINS, of_bins(0, 0)).runs, "bins")
    assert found is not None
    assert list(found.lines()) == ["RQS"]
    assert sorted(found.runs["x"].unique()) == [2, 4, 8, 16]
    assert set(found.baseline["transform"]) == {"affine"}
    assert found.fixed == "8 blocks, 1 layer a block"


# Configurations


def test_configurations_are_never_pooled(blocks: Recorded) -> None:
    table = summary(blocks.runs)
    names = [row[0] for row in table.rows]
    assert names == [*configurations(blocks.runs)]
    assert names[:2] == ["affine, 1 block", "affine, 2 blocks"]
    own = blocks.runs.query("transform == 'rqs-8' and blocks == 4")["val/bpd"]
    row = table.rows[names.index("RQS K=8, 4 blocks")]
    assert row[1] == str(SEEDS)
    assert row[table.header.index("val bits/dim")] == f"{own.mean():.3f} ± {own.std():.3f}"


def test_names_are_those_of_transforms_where_nothing_else_varies() -> None:
    runs = sweep(BINS, of_bins(0, 0)).runs
    assert list(configurations(runs))[:2] == ["affine", "RQS K=2"]
    assert len(shown(runs)[0]) == len(runs)


def test_curves_are_those_of_the_best_configuration_of_each_transform(blocks: Recorded) -> None:
    best, names = shown(blocks.runs)
    assert set(best["blocks"]) == {8}
    assert names == {"affine": "affine, 8 blocks", "rqs-8": "RQS K=8, 8 blocks"}
    plate = next(iter(trained.plates(blocks, None)))
    assert "RQS K=8, 8 blocks" in plate.alt
    assert "the configuration with the lowest validation loss" in plate.caption


# Scaling


def laws(recorded: Recorded) -> dict[tuple[str, str], Fit]:
    return {(fit.transform, fit.quantity): fit for fit in fits(recorded, "val/bpd")}


@pytest.mark.parametrize(
    ("transform", "a", "b", "c"), [("affine", 2.2, 2.0, 0.7), ("rqs-8", 2.0, 0.6, 1.0)]
)
def test_a_planted_law_lies_within_its_intervals(
    transform: str, a: float, b: float, c: float
) -> None:
    found = laws(sweep(BLOCKS, power, seeds=8, sd=0.005))[transform, "blocks"]
    assert found.why == ""
    for name, value in {"a": a, "b": b, "c": c}.items():
        interval = found.interval(name)
        assert interval.low <= value <= interval.high
        assert interval.high - interval.low < 0.5
        assert interval.n == 8


def test_the_band_of_a_law_holds_it(blocks: Recorded) -> None:
    found = laws(blocks)["affine", "blocks"]
    x = np.array([1.0, 3.0, 8.0])
    low, high = found.band(x)
    assert found.law is not None
    assert (low < found.law.at(x)).all()
    assert (found.law.at(x) < high).all()


def test_large_numbers_are_fitted_as_well_as_small() -> None:
    x = np.array([1.0, 2, 4, 8]) * 1e14
    law, rest = best(x, 2 + 3 * (x / 1e14) ** -0.5)
    assert (law.a, law.c) == (pytest.approx(2, abs=1e-3), pytest.approx(0.5, abs=1e-3))
    assert law.at(x) == pytest.approx(2 + 3 * np.array([1.0, 2, 4, 8]) ** -0.5)
    assert rest < 1e-9


UNDETERMINED: dict[str, tuple[str, Callable[[], Recorded]]] = {
    "few": ("3 different values", lambda: sweep(BLOCKS[:3], power)),
    "flat": ("a constant", lambda: sweep(BLOCKS, constant, sd=0.02)),
    "rising": ("a constant", lambda: sweep(BLOCKS, lambda _, b, __: 2 + 0.1 * b)),
    "bound": ("at its bound", lambda: sweep(BLOCKS, lambda _, b, __: 2 - np.log(b))),
    "seed": ("one seed", lambda: sweep(BLOCKS, power, seeds=1)),
    "noise": ("c is anywhere", lambda: sweep(BLOCKS, power, sd=0.3)),
}


@pytest.mark.parametrize("name", UNDETERMINED)
def test_what_the_runs_do_not_determine_is_said_to_be_so(name: str) -> None:
    why, planted = UNDETERMINED[name]
    found = laws(planted())["affine", "blocks"]
    assert why in found.why
    assert (found.law, found.resampled) == (None, ())


def test_compute_counts_parameters_tokens_and_images(blocks: Recorded) -> None:
    flops = compute(blocks)
    expected = 6 * blocks.runs["parameters"] * TOKENS * IMAGES * EPOCHS
    assert flops.to_numpy() == pytest.approx(expected.to_numpy())


def test_what_hardly_varies_is_not_fitted() -> None:
    recorded = sweep(MATCHED, power)  # of equal size
    assert {quantity for _, quantity in laws(recorded)} == {"blocks"}
    assert laws(sweep(BINS, of_bins(0, 0))) == {}


def test_models_that_were_trained_otherwise_are_not_scaled(blocks: Recorded) -> None:
    rates = 1e-3 * (1 + np.arange(len(blocks.runs)))
    assert laws(blocks._replace(runs=blocks.runs.assign(lr=rates))) == {}


def test_the_tables_give_the_law_or_why_there_is_none(blocks: Recorded) -> None:
    rows = [row for table in found_tables(blocks) if table.header[0] == "x" for row in table.rows]
    assert [row[:2] for row in rows[:2]] == [["Blocks", "affine"], ["Blocks", "RQS K=8"]]
    assert "0.70 (" in rows[0][4]
    few = [row for table in found_tables(sweep(BLOCKS[:3], power)) for row in table.rows]
    assert few[0][2] == "not determined: 3 different values, where 4 are needed"


def found_tables(recorded: Recorded) -> list[Table]:
    return [block for block in sweeps.blocks(recorded) if isinstance(block, Table)]


# What affine would need


@pytest.mark.parametrize("points", [BLOCKS, MATCHED], ids=["blocks", "matched"])
def test_a_spline_that_is_worth_twice_its_blocks_is_found_to_be(
    points: list[tuple[str, int, int]],
) -> None:
    found = {one.x: one for one in worth(sweep(points, halved, sd=1e-3).runs, "val/bpd", "blocks")}
    assert list(found) == [*COUNTS]
    for count in (1, 2):
        assert found[count].affine == pytest.approx(2 * count, rel=0.02)
        assert found[count].low <= 2 * count <= found[count].high
        assert found[count].factor == "2.0"
    assert found[8].told == "≥ 8 at 95 %"
    assert found[8].factor == "≥ 1.0"


def test_what_is_worse_than_the_smallest_affine_is_worth_no_more() -> None:
    runs = sweep(BLOCKS, lambda name, b, _: 5.0 if name == "rqs-8" else 4 - 0.1 * b).runs
    (one, *_) = worth(runs, "val/bpd", "blocks")
    assert one.told == "≤ 1 at 95 %"


def test_one_seed_gives_a_number_without_an_interval() -> None:
    (one, *_) = worth(sweep(BLOCKS, halved, seeds=1, sd=0).runs, "val/bpd", "blocks")
    assert one.told == "2.0 (one seed, no interval)"


def test_layers_are_weighed_like_blocks() -> None:
    recorded = sweep(LAYERS, lambda name, _, layers: halved(name, layers, 1), sd=1e-3)
    found = worth(recorded.runs, "val/bpd", "layers")
    assert found[0].affine == pytest.approx(2, rel=0.02)
    assert worth(recorded.runs, "val/bpd", "blocks") == []


# Verdicts


@pytest.mark.parametrize(
    ("gains", "sd", "verdict"),
    [
        ((0.1, 0.0), 1e-3, "supported"),
        ((0.1, 0.1), 1e-3, "contradicted"),
        ((0.1, 0.02), 0.02, "undecided"),
    ],
)
def test_few_bins_are_enough_where_more_gain_less_than_the_limit(
    gains: tuple[float, float], sd: float, verdict: str
) -> None:
    claim = saying(claims(sweep(BINS, of_bins(*gains), sd=sd).runs), "bins are enough")
    assert (claim.verdict, claim.rule) == (verdict, "bins")
    assert "in place of K=2 +0." in claim.measured


def test_enough_bins_are_undecided_where_no_more_were_tried() -> None:
    claim = saying(claims(sweep(BINS[:-1], of_bins(0, 0)).runs), "bins are enough")
    assert (claim.verdict, claim.rule) == ("undecided", "none")


@pytest.mark.parametrize(
    ("law", "sd", "verdict"),
    [
        (lambda name, b, _: 4 - np.log2(3 * b if name == "rqs-8" else b), 1e-3, "supported"),
        (lambda name, b, _: (4 if name == "rqs-8" else 3) - 0.05 * b, 1e-3, "contradicted"),
        (lambda name, b, _: 3.0 if name == "rqs-8" else 3.2 - 0.025 * b, 0.05, "undecided"),
    ],
)
def test_fewer_blocks_are_needed_where_a_smaller_spline_is_as_good(
    law: Law, sd: float, verdict: str
) -> None:
    claim = saying(claims(sweep(BLOCKS, law, sd=sd).runs), "fewer blocks")
    assert (claim.verdict, claim.rule) == (verdict, "blocks")
    assert "minus affine's with 8 blocks: 1 block" in claim.measured


def test_fewer_blocks_are_undecided_where_blocks_do_not_vary() -> None:
    claim = saying(claims(sweep(LAYERS, power).runs), "fewer blocks")
    assert (claim.verdict, claim.rule) == ("undecided", "none")


def test_claims_are_judged_for_every_configuration(blocks: Recorded) -> None:
    claim = saying(claims(blocks.runs), "lower total loss")
    assert claim.verdict == "supported"
    assert [f"RQS K=8, {name} −" in claim.measured for name in ("1 block", "8 blocks")] == [
        True
    ] * 2
    mixed = sweep(BLOCKS, lambda name, b, _: 3 + (name == "rqs-8") * (b - 4) * 0.1)
    assert saying(claims(mixed.runs), "lower total loss").verdict == "undecided"


# Seconds


def told(recorded: Recorded) -> str:
    runs = recorded.runs
    timing = sweeps.timing(recorded)
    return answer(runs, claims(runs, timing), timing)


def test_seconds_beside_other_trials_count_nowhere() -> None:
    alone, beside = (sweep(BINS, of_bins(0, 0), workers=workers) for workers in (1, 2))
    assert cost(alone.runs, "rqs-8", "affine").n == SEEDS
    assert cost(beside.runs, "rqs-8", "affine").n == 0
    assert len(rounds(alone.runs, alone.history)) == len(alone.runs) * (EPOCHS - 1)
    assert rounds(beside.runs, beside.history).empty
    place = summary(alone.runs).header.index("s/epoch")
    assert {row[place] for row in summary(beside.runs).rows} == {"–"}
    assert "–" not in {row[place] for row in summary(alone.runs).rows}
    assert "beside one another; make sweep-timing" in saying(claims(beside.runs), "twice").measured
    assert "make sweep-timing" in told(beside)
    assert "times as long as one of affine" in told(alone)
    lacking = {plate.name: plate.lacking for plate in trained.plates(beside, None)}
    assert "make sweep-timing" in lacking["seconds_per_epoch"]


def test_seconds_of_the_runs_that_were_alone_still_count() -> None:
    recorded = sweep(BINS, of_bins(0, 0))
    runs = recorded.runs.assign(workers=1.0)
    runs.loc[runs["seed"] == 0, ["workers", "seconds_per_epoch"]] = [2, 1000.0]
    assert cost(runs, "rqs-8", "affine").n == SEEDS - 1
    (axes,) = seconds_per_epoch(runs).axes
    assert axes.get_xlim()[1] < 100


def test_the_table_of_runs_has_their_workers(blocks: Recorded) -> None:
    table = run_table(blocks.runs)
    assert {row[table.header.index("workers")] for row in table.rows} == {"2"}


def test_only_rounds_of_such_flows_on_such_a_machine_stand_for_others() -> None:
    times = untrained(sweep(TIMES, constant))
    table = rounds(times.runs, times.history)
    recorded = sweep(BLOCKS, power, workers=2)
    assert set(standing_for(table, recorded.runs)["transform"]) == {"affine", "rqs-8"}
    assert list(standing_for(table, recorded.runs).columns) == TIMED
    assert standing_for(table, recorded.runs.assign(device="cuda")).empty
    assert standing_for(table, recorded.runs.assign(width=128)).empty


def test_times_of_rounds_are_compared_round_by_round() -> None:
    times = untrained(sweep(BLOCKS, constant))
    table = rounds(times.runs, times.history)
    table = table.assign(seconds_per_epoch=table["seconds_per_epoch"] * table["epoch"] ** 2)
    ratio = pace(table, "rqs-8", "affine")
    assert (ratio.mean, ratio.n) == (pytest.approx(2, rel=0.05), EPOCHS - 1)
    assert ratio.high / ratio.low < 1.3


def test_rounds_decide_what_trials_beside_one_another_cannot() -> None:
    recorded = timed(sweep(BLOCKS, power, workers=2))
    claim = saying(claims(recorded.runs, sweeps.timing(recorded)), "twice")
    assert claim.verdict == "supported"
    assert "RQS K=8, 1 block" in claim.measured
    assert "multiple of affine's" in told(recorded)


def test_the_panel_of_seconds_says_what_it_lacks(blocks: Recorded) -> None:
    lines = {}
    for name, recorded in {"without": blocks, "with": timed(blocks)}.items():
        (plate,) = (plate for plate in sweeps.plates(recorded) if plate.name == "blocks")
        loss, seconds = plate.draw().axes
        assert len(loss.containers) == 2
        lines[name] = len(seconds.containers)
        texts = "".join(text.get_text() for text in seconds.texts)
        assert ("make sweep-timing" in texts) == (name == "without")
    assert lines == {"without": 0, "with": 2}


# The answer and the page


def test_the_answer_says_what_fewer_blocks_come_to(blocks: Recorded) -> None:
    text = told(blocks)
    assert text.startswith("RQS K=8, 8 blocks has the lowest mean validation loss of 8 config")
    assert "RQS K=8 with 1 block is already" in text
    assert "with 2 blocks as affine with ≥ 8" in text


def test_the_answer_says_what_more_bins_gain() -> None:
    text = told(sweep(BINS, of_bins(0.1, 0.05)))
    assert "With more bins than K=8 (the best: K=16) the validation loss falls by 0.05" in text


def pages(recorded: Recorded) -> list[Block]:
    return list(page(STUDY, recorded, NOTHING, NOTHING, NOTHING, NOTHING))


def test_seconds_have_a_table_with_their_load() -> None:
    (table,) = (t for t in found_tables(timed(sweep(BINS, constant))) if t.header[0] == "flow")
    assert [row[0] for row in table.rows][:2] == ["affine", "RQS K=2"]
    assert {row[-1] for row in table.rows} == {"1.50"}
    assert table.rows[1][3].startswith(("1.9", "2.0"))


def test_only_studies_that_train_have_a_summary_of_losses(blocks: Recorded) -> None:
    times = untrained(sweep(TIMES, constant))
    heads = [
        [block.text for block in pages(recorded) if isinstance(block, Heading)]
        for recorded in (times, blocks)
    ]
    assert ["Summary by transform" in each for each in heads] == [False, True]


# Figures and files


FIGURES = {
    "bins": lambda: timed(sweep(BINS, of_bins(0.1, 0.05), workers=2)),
    "blocks": lambda: sweep(BLOCKS, power),
    "layers": lambda: sweep(LAYERS, power, workers=2),
    "scaling": lambda: sweep(BLOCKS, power),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_name_their_units_and_nothing_is_cut_off(name: str) -> None:
    (plate,) = (plate for plate in sweeps.plates(FIGURES[name]()) if plate.name == name)
    figure = plate.draw()
    figure.draw_without_rendering()
    labels = {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())}
    assert "Validation bits per dimension" in labels
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    page = figure.bbox.padded(0.5)
    for axes in figure.axes:
        inside = axes.get_tightbbox()
        assert page.x0 <= inside.x0 < inside.x1 <= page.x1
        assert page.y0 <= inside.y0 < inside.y1 <= page.y1


def test_every_seed_is_drawn_beside_the_mean() -> None:
    found = series(sweep(BLOCKS, power).runs, "blocks")
    (loss, _) = against(found, "val/bpd", "Loss", None, "nothing").axes
    marks = [line for line in loss.get_lines() if line.get_alpha()]
    assert [len(line.get_ydata()) for line in marks] == [SEEDS * len(COUNTS)] * 2


def test_a_study_of_times_has_a_report(tmp_path: Path) -> None:
    build(STUDY, untrained(sweep(TIMES, constant)), tmp_path)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"bins", "blocks", "seconds_per_epoch", "spline"}
    text = (tmp_path / "report.md").read_text()
    assert "- losses: not drawn" in text
    assert "- layers: not drawn" in text
    assert "Median load average: 1.5" in text
    assert "No finished run has a validation loss" in text


def test_a_report_with_rounds_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    recorded = timed(sweep(BLOCKS, power, workers=2))
    paths = build(STUDY, recorded, tmp_path / "first")
    again = build(STUDY, load(tmp_path / "first"), tmp_path / "again")
    assert {"blocks.png", "scaling.png", "timing.csv"} <= {path.name for path in paths}
    assert [path.name for path in paths] == [path.name for path in again]
    assert [
        p.name for p, q in zip(paths, again, strict=True) if p.read_bytes() != q.read_bytes()
    ] == []
    back = load(tmp_path / "first").evaluation[TIMING]
    pd.testing.assert_frame_equal(
        back, recorded.evaluation[TIMING], check_dtype=False, check_exact=True
    )


def stored(store: Store, study: str, points: list[tuple[str, int, int]], losses: bool) -> None:
    """A study as the store has it, with a run of three epochs for each point."""
    told = {f"flowbench.{name}": name for name in ("question", "expected", "command")}
    parent = store.start(
        study, study, {"flowbench.role": "study", "flowbench.study": study, **told}
    )
    for transform, blocks, layers in points:
        tags = {PARENT: parent, "flowbench.study": study, "flowbench.scale": "quick"}
        tags |= {"flowbench.digest": f"{transform}-{blocks}", "flowbench.workers": "2"}
        run_id = store.start(
            study, transform, tags | ({} if losses else {"flowbench.workers": "1"})
        )
        model = {
            "transform": transform,
            "blocks": blocks,
            "layers": layers,
            "width": 64,
            "patch": 4,
        }
        params = {f"model.{name}": value for name, value in model.items()}
        params |= {"seed": 0, "data.name": "mnist-5k", "data.batch": 128, "device": "CPU"}
        values = {"seconds_per_epoch": 1.0, "images_per_second": 1.0, "load": 0.5}
        values |= {"val/loss": 1.0 / blocks} if losses else {}
        store.client.log_batch(
            run_id,
            params=[Param(key, str(value)) for key, value in params.items()],
            metrics=[Metric(key, v, n, n) for n in (1, 2, 3) for key, v in values.items()],
        )
        store.finish(run_id, "FINISHED")
    store.finish(parent, "FINISHED")


def test_a_report_takes_its_seconds_from_the_newest_study_of_times(tmp_path: Path) -> None:
    store = Store(tiny.results(tmp_path / "results"))
    stored(store, "blocks", BLOCKS, losses=True)
    _, recorded = main._read("blocks", store.results, None)
    assert recorded.evaluation[TIMING].empty
    stored(store, "timing", TIMES, losses=False)
    _, recorded = main._read("blocks", store.results, None)
    found = recorded.evaluation[TIMING]
    assert len(found) == len(BLOCKS) * 2  # the first of three rounds is for warming up
    assert set(found["load"]) == {0.5}
    _, itself = main._read("timing", store.results, None)
    assert itself.evaluation[TIMING].empty
    assert len(sweeps.timing(complete(itself))) == len(TIMES) * 2
