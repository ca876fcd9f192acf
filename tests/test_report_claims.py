"""The verdicts, and what they rest on: series, scaling laws, equal counts, seconds."""

from collections.abc import Callable

import numpy as np
import pytest
from reports import EPOCHS, PLANTED, SEEDS, among, analysis, changed, of_runs, sweep, tables

from flowbench.bench.planted import IMAGES, SIDE, Law, evaluated, untrained
from flowbench.report.analysis import Analysis
from flowbench.report.claims import Claim, claims
from flowbench.report.files import TIMING, Recorded
from flowbench.report.laws import Fit, best
from flowbench.report.page import answer
from flowbench.report.runs import rounds, series, standing_for
from flowbench.report.stats import time_ratio
from flowbench.report.tables import equivalents, run_table, scaling_laws, seconds, summary
from flowbench.report.text import bins
from flowbench.schema import BLOCKS, LAYERS, SECONDS, TRANSFORM, WIDTH

COUNTS = (1, 2, 4, 8)
BOTH = ("affine", "rqs-8")
OF_BLOCKS = [(name, blocks, 1) for name in BOTH for blocks in COUNTS]
OF_LAYERS = [(name, 2, layers) for name in BOTH for layers in COUNTS]
MATCHED = [(name, blocks, 8 // blocks) for name in BOTH for blocks in COUNTS]
OF_BINS = [(name, 8, 1) for name in ("affine", "rqs-2", "rqs-4", "rqs-8", "rqs-16")]
TIMED = [*OF_BLOCKS, *(point for point in OF_BINS if point not in OF_BLOCKS)]


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


def constant(*_: object) -> float:
    """No difference at all."""
    return 1.0


def timed(recorded: Recorded) -> Recorded:
    """The same with the rounds of a timing study."""
    study = untrained(sweep(TIMED, constant))
    table = standing_for(rounds(study.runs, study.history), recorded.runs)
    return recorded._replace(evaluation={**recorded.evaluation, TIMING: table})


def saying(one: Analysis, words: str) -> Claim:
    (claim,) = (claim for claim in claims(one) if words in claim.text)
    return claim


def verdicts(recorded: Recorded) -> list[str]:
    return [claim.verdict for claim in claims(analysis(recorded))]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return tables()


@pytest.fixture(scope="module")
def blocks() -> Recorded:
    return sweep(OF_BLOCKS, power, workers=2)


# Differences and ratios


def test_claims_are_supported_by_numbers_on_their_side(recorded: Recorded) -> None:
    assert verdicts(recorded)[:3] == ["supported"] * 3
    assert verdicts(recorded)[6] == "contradicted"  # prior gains less than logdet loses


def test_claims_are_contradicted_by_numbers_on_the_other_side() -> None:
    values = {"affine": (0.4, 2.0, 10.0), "rqs-4": (0.5, 2.6, 9.0), "rqs-8": (0.5, 2.7, 30.0)}
    assert verdicts(tables(values))[:3] == ["contradicted"] * 3
    assert verdicts(tables(values))[6] == "supported"


def test_each_claim_is_judged_by_its_own_term() -> None:
    values = {"affine": (0.5, 2.6, 9.0), "rqs-4": (0.4, 2.7, 9.0), "rqs-8": (0.4, 2.8, 9.0)}
    wanted = ["contradicted", "supported", "contradicted", *["undecided"] * 3, "supported"]
    assert verdicts(tables(values)) == wanted


def test_claims_are_undecided_when_seeds_vary_more_than_transforms() -> None:
    assert set(verdicts(tables(sd=0.5))) == {"undecided"}


def test_claims_are_undecided_when_splines_disagree() -> None:
    assert verdicts(tables(PLANTED | {"rqs-4": (0.6, 3.5, 15.0)}))[:2] == ["undecided"] * 2


def test_a_ratio_across_the_edge_is_undecided() -> None:
    one = tables(PLANTED | {"rqs-8": (0.49, 2.6, 25.0)}, sd=0.01)
    value = time_ratio(one.runs, "rqs-8", "affine")
    assert value.low < 2.5 < value.high
    assert verdicts(one)[2] == "undecided"


def test_one_seed_decides_nothing() -> None:
    judged = claims(analysis(tables(seeds=1)))
    assert {claim.verdict for claim in judged} == {"undecided"}
    assert "n = 1, no interval" in judged[0].number


def test_unfinished_runs_decide_nothing(recorded: Recorded) -> None:
    status = recorded.runs["status"].mask(among(recorded, "rqs-8"), "failed")
    judged = claims(analysis(changed(recorded, status=status)))
    assert "K=8" not in judged[0].detail
    assert (judged[2].verdict, judged[2].rule) == ("undecided", "")


def test_composed_transforms_are_judged_on_their_own(recorded: Recorded) -> None:
    assert len(claims(analysis(recorded))) == 7
    more = tables(PLANTED | {"affine+rqs-8": (0.4, 3.5, 22.0)})
    assert verdicts(more)[6:] == ["contradicted", "supported"]


def test_the_number_of_a_claim_is_the_one_with_the_weakest_evidence(recorded: Recorded) -> None:
    claim = claims(analysis(recorded))[0]
    assert claim.number.startswith("RQS K=4: −0.20")
    assert claim.number.endswith(", weakest of 2")
    assert "RQS K=4 −0.20" in claim.detail
    assert "RQS K=8 −0.30" in claim.detail


def test_claims_are_judged_for_every_configuration(blocks: Recorded) -> None:
    claim = saying(analysis(blocks), "lower total loss")
    assert claim.verdict == "supported"
    assert [f"RQS K=8, {name} −" in claim.detail for name in ("1 block", "8 blocks")] == [True] * 2
    mixed = sweep(OF_BLOCKS, lambda name, b, _: 3 + (name == "rqs-8") * (b - 4) * 0.1)
    assert saying(analysis(mixed), "lower total loss").verdict == "undecided"


# Patches


def noisier(recorded: Recorded) -> Claim:
    return saying(analysis(recorded), "noisier")


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.3, "supported"), (0.8, "contradicted"), (1.0, "undecided")]
)
def test_noisier_edges_are_judged_by_the_patch_ratio(
    ratio: float, verdict: str, recorded: Recorded
) -> None:
    claim = noisier(evaluated(recorded, ratio=ratio))
    assert (claim.verdict, claim.rule) == (verdict, "patches")
    assert all(name in claim.detail for name in ("affine", "RQS K=4", "RQS K=8"))


def test_noisier_edges_are_undecided_where_seeds_vary_across_1(recorded: Recorded) -> None:
    ratios = np.tile([0.8, 1.1, 1.5], len(PLANTED))
    one = changed(evaluated(recorded), **{"patches/ratio": ratios})
    assert noisier(one).verdict == "undecided"


def test_noisier_edges_are_undecided_where_transforms_disagree_or_are_not_measured(
    recorded: Recorded,
) -> None:
    one = evaluated(recorded)
    for other in (0.7, np.nan):
        ratios = one.runs["patches/ratio"].mask(among(one, "rqs-8"), other)
        claim = noisier(changed(one, **{"patches/ratio": ratios}))
        assert claim.verdict == "undecided"
    assert "RQS K=8 –" in claim.detail


def test_one_seed_decides_nothing_and_says_what_its_own_interval_is() -> None:
    claim = noisier(evaluated(tables(seeds=1)))
    assert claim.verdict == "undecided"
    assert "within the run; n = 1" in claim.detail


def test_an_interval_that_ends_at_1_contradicts_noisier_edges() -> None:
    one = changed(evaluated(tables()), **{"patches/ratio": 1.0})
    assert noisier(one).verdict == "contradicted"


def test_edges_less_noisy_in_every_seed_contradict() -> None:
    assert noisier(evaluated(tables(), ratio=0.9)).verdict == "contradicted"


def test_noisier_edges_are_not_measured_without_an_evaluation(recorded: Recorded) -> None:
    claim = noisier(recorded)
    assert (claim.verdict, claim.rule) == ("undecided", "")


# Bins and blocks


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
    claim = saying(analysis(sweep(OF_BINS, of_bins(*gains), sd=sd)), "bins are enough")
    assert (claim.verdict, claim.rule) == (verdict, "bins")
    assert "over K=2" in claim.detail
    assert "over K=8" in claim.detail


def test_enough_bins_are_not_measured_where_no_more_were_tried() -> None:
    claim = saying(analysis(sweep(OF_BINS[:-1], of_bins(0, 0))), "bins are enough")
    assert (claim.verdict, claim.rule) == ("undecided", "")


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
    claim = saying(analysis(sweep(OF_BLOCKS, law, sd=sd)), "fewer blocks")
    assert (claim.verdict, claim.rule) == (verdict, "blocks")
    assert "minus affine's with 8 blocks: 1 block" in claim.detail


def test_fewer_blocks_are_not_measured_where_blocks_do_not_vary() -> None:
    claim = saying(analysis(sweep(OF_LAYERS, power)), "fewer blocks")
    assert (claim.verdict, claim.rule) == ("undecided", "")


# Runs that differ in one number


def test_blocks_are_compared_at_equal_layers_or_at_equal_layers_in_all() -> None:
    plain, matched = (series(sweep(p, power).runs, BLOCKS) for p in (OF_BLOCKS, MATCHED))
    assert plain is not None
    assert matched is not None
    assert plain.fixed == "1 layer per block"
    assert matched.fixed == "8 layers in all"
    assert sorted(matched.runs["x"].unique()) == [*COUNTS]
    assert series(sweep(MATCHED, power).runs, LAYERS) is None


def test_only_runs_that_differ_in_nothing_else_make_a_series() -> None:
    runs = sweep(OF_BLOCKS, power).runs
    assert series(runs.assign(**{"optim.lr": 1e-3 * runs[BLOCKS]}), BLOCKS) is None
    assert series(runs.assign(**{"optim.ema": 1e-3 * runs[BLOCKS]}), BLOCKS) is None
    assert series(runs, "bins") is None


def test_along_bins_affine_is_the_baseline_of_the_splines() -> None:
    found = series(sweep(OF_BINS, of_bins(0, 0)).runs, "bins")
    assert found is not None
    assert list(found.lines()) == ["RQS"]
    assert sorted(found.runs["x"].unique()) == [2, 4, 8, 16]
    assert set(found.baseline[TRANSFORM]) == {"affine"}
    assert found.fixed == "8 blocks, 1 layer per block"


# Scaling


def laws(recorded: Recorded) -> dict[tuple[str, str], Fit]:
    return {(fit.transform, fit.quantity): fit for fit in analysis(recorded).fits}


@pytest.mark.parametrize(
    ("transform", "a", "b", "c"), [("affine", 2.2, 2.0, 0.7), ("rqs-8", 2.0, 0.6, 1.0)]
)
def test_a_planted_law_lies_within_its_intervals(
    transform: str, a: float, b: float, c: float
) -> None:
    found = laws(sweep(OF_BLOCKS, power, seeds=12, sd=0.005))[transform, BLOCKS]
    assert found.why == ""
    for name, value in {"a": a, "b": b, "c": c}.items():
        interval = found.interval(name)
        assert interval.low <= value <= interval.high
        assert interval.high - interval.low < 0.5
        assert interval.n == 12


def test_the_band_of_a_law_holds_it(blocks: Recorded) -> None:
    found = laws(blocks)["affine", BLOCKS]
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
    "few": ("3 different values", lambda: sweep(OF_BLOCKS[:3], power)),
    "flat": ("a constant", lambda: sweep(OF_BLOCKS, constant, sd=0.02)),
    "rising": ("a constant", lambda: sweep(OF_BLOCKS, lambda _, b, __: 2 + 0.1 * b)),
    "bound": ("at its bound", lambda: sweep(OF_BLOCKS, lambda _, b, __: 2 - np.log(b))),
    "seed": ("one seed", lambda: sweep(OF_BLOCKS, power, seeds=1)),
    "noise": ("c is anywhere", lambda: sweep(OF_BLOCKS, power, sd=0.1)),
}


@pytest.mark.parametrize("name", UNDETERMINED)
def test_a_law_that_the_runs_do_not_determine_is_said_to_be_so(name: str) -> None:
    why, planted = UNDETERMINED[name]
    found = laws(planted())["affine", BLOCKS]
    assert why in found.why
    assert (found.law, found.resampled) == (None, ())


def test_compute_counts_parameters_tokens_and_images(blocks: Recorded) -> None:
    points = laws(blocks)["affine", "compute"].points
    own = blocks.runs[among(blocks, "affine")]
    expected = 6 * own["parameters"] * SIDE**2 * IMAGES * EPOCHS
    assert sorted(points["x"]) == pytest.approx(sorted(expected))


def test_what_hardly_varies_is_not_fitted() -> None:
    assert {quantity for _, quantity in laws(sweep(MATCHED, power))} == {BLOCKS}
    assert laws(sweep(OF_BINS, of_bins(0, 0))) == {}


def test_models_that_were_trained_otherwise_are_not_scaled(blocks: Recorded) -> None:
    rates = 1e-3 * (1 + np.arange(len(blocks.runs)))
    assert laws(changed(blocks, **{"optim.lr": rates})) == {}


def test_the_table_gives_the_law_or_why_there_is_none(blocks: Recorded) -> None:
    table, _ = scaling_laws(analysis(blocks))
    assert [row[:2] for row in table.rows[:2]] == [["Blocks", "affine"], ["Blocks", "RQS K=8"]]
    assert "0.70 (" in table.rows[0][4]
    table, _ = scaling_laws(analysis(sweep(OF_BLOCKS[:3], power)))
    assert table.rows[0][2] == "not determined: 3 different values, where 4 are needed"


# How many of affine's


@pytest.mark.parametrize("points", [OF_BLOCKS, MATCHED], ids=["blocks", "matched"])
def test_a_spline_that_equals_twice_its_blocks_is_found_to(
    points: list[tuple[str, int, int]],
) -> None:
    one = analysis(sweep(points, halved, sd=1e-3))
    found = {each.x: each for each in one.equivalents[BLOCKS]}
    assert list(found) == [*COUNTS]
    for count in (1, 2):
        assert found[count].affine == pytest.approx(2 * count, rel=0.02)
        assert found[count].low <= 2 * count <= found[count].high
        assert found[count].factor == "2.0"
    assert found[8].words == "≥ 8 at 95 %"
    assert found[8].factor == "≥ 1.0"
    table, _ = equivalents(one)
    assert table.rows[0][3] == found[1].words


def test_what_is_worse_than_the_smallest_affine_equals_no_more() -> None:
    one = sweep(OF_BLOCKS, lambda name, b, _: 5.0 if name == "rqs-8" else 4 - 0.1 * b)
    assert analysis(one).equivalents[BLOCKS][0].words == "≤ 1 at 95 %"


def test_one_seed_gives_a_number_without_an_interval() -> None:
    one = analysis(sweep(OF_BLOCKS, halved, seeds=1, sd=0))
    assert one.equivalents[BLOCKS][0].words == "2.0 (one seed, no interval)"


def test_layers_are_weighed_like_blocks() -> None:
    one = analysis(sweep(OF_LAYERS, lambda n, _, layers: halved(n, layers, 1), sd=1e-3))
    assert one.equivalents[LAYERS][0].affine == pytest.approx(2, rel=0.02)
    assert one.equivalents[BLOCKS] == []


# Seconds


def test_seconds_of_runs_that_shared_the_machine_count_nowhere() -> None:
    single, shared = (analysis(sweep(OF_BINS, of_bins(0, 0), workers=n)) for n in (1, 2))
    assert single.time_ratios["RQS K=8"].n == SEEDS
    assert all(ratio.n == 0 for ratio in shared.time_ratios.values())
    assert len(single.own_rounds) == len(single.runs) * (EPOCHS - 1)
    assert shared.own_rounds.empty
    assert "s/epoch" in summary(single).header
    assert "s/epoch" not in summary(shared).header
    assert "shared the machine; make sweep-timing" in saying(shared, "twice").detail
    assert "make sweep-timing" in answer(shared)
    assert "times affine's" in answer(single)


def test_seconds_of_the_runs_that_were_alone_still_count() -> None:
    runs = sweep(OF_BINS, of_bins(0, 0)).runs.assign(workers=1.0)
    runs.loc[runs["seed"] == 0, ["workers", SECONDS]] = [2, 1000.0]
    one = of_runs(runs)
    assert one.time_ratios["RQS K=8"].n == SEEDS - 1
    assert max(part.runs[SECONDS].max() for part in one.timed_configurations) < 100


def test_the_table_of_runs_has_their_workers(blocks: Recorded) -> None:
    table = run_table(blocks.runs)
    assert {row[table.header.index("workers")] for row in table.rows} == {"2"}


def test_only_rounds_of_such_flows_on_such_a_machine_stand_for_others() -> None:
    times = untrained(sweep(TIMED, constant))
    table = rounds(times.runs, times.history)
    runs = sweep(OF_BLOCKS, power, workers=2).runs
    assert set(standing_for(table, runs)[TRANSFORM]) == {"affine", "rqs-8"}
    assert list(standing_for(table, runs).columns) == list(table.columns)
    assert len(standing_for(table, runs.assign(**{"optim.lr": 1.0}))) > 0
    for column, value in {"device": "cuda", WIDTH: 128, "optim.ema": 0.9, "kernels": "x"}.items():
        assert standing_for(table, runs.assign(**{column: value})).empty


def test_times_of_rounds_are_compared_round_by_round() -> None:
    times = untrained(sweep(OF_BLOCKS, constant))
    table = rounds(times.runs, times.history)
    table = table.assign(**{SECONDS: table[SECONDS] * table["epoch"] ** 2})
    ratio = time_ratio(table, "rqs-8", "affine", unit="epoch")
    assert (ratio.mean, ratio.n) == (pytest.approx(2, rel=0.05), EPOCHS - 1)
    assert ratio.high / ratio.low < 1.3


def test_rounds_decide_what_trials_on_a_shared_machine_cannot(blocks: Recorded) -> None:
    one = analysis(timed(blocks))
    claim = saying(one, "twice")
    assert claim.verdict == "supported"
    assert "RQS K=8, 1 block" in claim.detail
    assert "times affine's" in answer(one)


def test_seconds_have_a_table_with_their_load() -> None:
    table, _ = seconds(analysis(timed(sweep(OF_BINS, constant))))
    assert [row[0] for row in table.rows][:2] == ["affine", "RQS K=2"]
    assert {row[-1] for row in table.rows} == {"1.50"}
    assert table.rows[1][3].startswith(("1.9", "2.0"))


# The answer


def test_the_answer_has_at_most_80_words(blocks: Recorded) -> None:
    shapes = [blocks, timed(blocks), sweep(MATCHED, power), sweep(OF_LAYERS, power)]
    shapes += [sweep(OF_BINS, of_bins(0.1, 0.05)), untrained(sweep(TIMED, constant)), tables()]
    assert max(len(answer(analysis(one)).split()) for one in shapes) <= 80


def test_the_answer_says_what_fewer_blocks_reach(blocks: Recorded) -> None:
    text = answer(analysis(blocks))
    assert text.startswith("RQS K=8, 8 blocks has the lowest loss: ")
    assert "RQS K=8 with 1 block is already" in text


def test_the_answer_says_what_more_bins_gain() -> None:
    text = answer(analysis(sweep(OF_BINS, of_bins(0.1, 0.05))))
    assert "K=16 gains 0.05" in text
    assert "bits/dim over K=8" in text
