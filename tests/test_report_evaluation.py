"""The report's part on the evaluation: statistics, claim, tables and files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import PLANTED, evaluated, tables

from flowbench.errors import UsageError
from flowbench.report import Study, build, load
from flowbench.report import evaluated as figures
from flowbench.report.claims import Claim, claims
from flowbench.report.document import Heading, Paragraph, Picture, Table
from flowbench.report.extractors import extractors
from flowbench.report.files import EVALUATION, Recorded
from flowbench.report.page import page
from flowbench.report.plates import Drawn
from flowbench.report.scores import scores
from flowbench.report.seeds import patch_ratio
from flowbench.report.tables import made, mixed, run_table, summary

STUDY = Study("compare", "Which?", "The spline.", "flowbench sweep")


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return evaluated(tables())


@pytest.fixture(scope="module")
def report(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a whole report, which tests read and leave as it is."""
    out = tmp_path_factory.mktemp("report")
    build(STUDY, recorded, out)
    return out


# Edge against interior


def rated(*ratios: float, seeds: list[int] | None = None) -> pd.DataFrame:
    runs = tables({"affine": PLANTED["affine"]}, seeds=len(ratios)).runs
    runs = runs.assign(**{"patches/ratio": ratios, "patches/ratio_low": 1.1})
    return runs.assign(**{"patches/ratio_high": 1.9, "seed": seeds or runs["seed"]})


def test_the_patch_ratio_is_a_geometric_mean_with_the_t_interval_of_its_logarithm() -> None:
    value = patch_ratio(rated(1.0, np.e, np.e**2), "affine")
    assert (value.mean, value.n) == (pytest.approx(np.e), 3)
    assert np.log([value.low, value.high]) == pytest.approx(
        [1 - 4.302653 / np.sqrt(3), 1 + 4.302653 / np.sqrt(3)], rel=1e-6
    )


def test_a_single_run_has_the_interval_of_its_own_images() -> None:
    value = patch_ratio(rated(1.5), "affine")
    assert (value.mean, value.low, value.high, value.n) == (1.5, 1.1, 1.9, 1)


def test_runs_of_one_seed_give_no_interval_over_seeds() -> None:
    value = patch_ratio(rated(1.0, np.e**2, seeds=[0, 0]), "affine")
    assert (value.mean, value.n) == (pytest.approx(np.e), 1)
    assert np.isnan([value.low, value.high]).all()


def noisier(runs: pd.DataFrame) -> Claim:
    (claim,) = (claim for claim in claims(runs) if "noisier" in claim.text)
    return claim


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.3, "supported"), (0.8, "contradicted"), (1.0, "undecided")]
)
def test_noisier_edges_are_judged_by_the_patch_ratio(ratio: float, verdict: str) -> None:
    claim = noisier(evaluated(tables(), ratio=ratio).runs)
    assert (claim.verdict, claim.rule) == (verdict, "patches")
    assert all(name in claim.measured for name in ("affine", "RQS K=4", "RQS K=8"))


def test_noisier_edges_are_undecided_where_seeds_vary_across_1(recorded: Recorded) -> None:
    ratios = np.tile([0.8, 1.1, 1.5], len(PLANTED))
    assert noisier(recorded.runs.assign(**{"patches/ratio": ratios})).verdict == "undecided"


def test_noisier_edges_are_undecided_where_transforms_disagree_or_are_not_measured(
    recorded: Recorded,
) -> None:
    spline = recorded.runs["transform"] == "rqs-8"
    for other in (0.7, np.nan):
        ratios = recorded.runs["patches/ratio"].where(~spline, other)
        runs = recorded.runs.assign(**{"patches/ratio": ratios})
        assert noisier(runs).verdict == "undecided"
    assert "RQS K=8 –" in noisier(runs).measured


def test_one_seed_is_judged_by_its_own_interval_and_says_so() -> None:
    claim = noisier(evaluated(tables(seeds=1)).runs)
    assert claim.verdict == "supported"
    assert "within the run; n = 1" in claim.measured


def test_an_interval_that_ends_at_1_contradicts_noisier_edges() -> None:
    runs = evaluated(tables(seeds=1), ratio=0.9).runs.assign(**{"patches/ratio_high": 1.0})
    assert noisier(runs).verdict == "contradicted"


def test_noisier_edges_are_undecided_without_an_evaluation() -> None:
    claim = noisier(tables().runs)
    assert (claim.verdict, claim.rule) == ("undecided", "none")


# Extractors


def test_an_extractor_is_its_weights_and_its_numbers_of_images(recorded: Recorded) -> None:
    runs = recorded.runs.assign(fid_inception=50.0, status="finished")
    runs.loc[0, "extractor_digits"] = "abcdef01"
    runs.loc[1, "fidelity/samples"] = 10_000
    found = [(each.suffix, each.named, len(each.runs)) for each in extractors(runs)]
    digit = ("digits", "digits, weights 12e45678")
    assert sorted(found) == sorted(
        [
            (*digit, 1),
            (*digit, len(runs) - 2),
            ("digits", "digits, weights abcdef01", 1),
            ("inception", "inception", 1),
            ("inception", "inception", len(runs) - 1),
        ]
    )


def test_scores_of_unfinished_runs_count_nowhere(recorded: Recorded) -> None:
    runs = recorded.runs.assign(status="failed")
    assert extractors(runs) == []
    assert extractors(tables().runs) == []


def test_what_an_extractor_rests_on_is_told(recorded: Recorded) -> None:
    (extractor,) = extractors(recorded.runs)
    assert extractor.told == (
        "digits, weights 12e45678: 1,000 generated and 500 test images a run, the extractor's own "
        "test accuracy 96.80 %, KID over subsets of 500."
    )


# Tables


def found_tables(runs: pd.DataFrame) -> list[Table]:
    return [block for block in scores(runs) if isinstance(block, Table)]


def test_scores_are_means_over_seeds_above_a_row_of_floors(recorded: Recorded) -> None:
    likelihood, fid = found_tables(recorded.runs)
    own = recorded.runs[recorded.runs["transform"] == "affine"]
    cells = dict(zip(fid.header, fid.rows[0], strict=True))
    assert cells["FID"] == f"{own['fid_digits'].mean():.2f} ± {own['fid_digits'].std():.2f}"
    assert cells["class agreement"] == "0.900 ± 0.000"
    assert [row[0] for row in fid.rows] == ["affine", "RQS K=4", "RQS K=8", "floor"]
    assert fid.rows[-1][2:] == ["0.21", "0.0004", "0.930", "0.920", "–"]
    cells = dict(zip(likelihood.header, likelihood.rows[0], strict=True))
    assert cells["test bits/dim"] == f"{own['test/bpd'].mean():.3f} ± {own['test/bpd'].std():.3f}"
    assert cells["standard error over draws"] == "0.0020"
    assert "n = 3" in cells["edge ÷ even noise"]


def test_the_standard_error_is_the_root_mean_square_of_the_runs(recorded: Recorded) -> None:
    runs = recorded.runs.assign(**{"test/bpd_se": 0.0})
    runs.loc[0, "test/bpd_se"] = 0.3
    cells = found_tables(runs)[0]
    assert cells.rows[0][cells.header.index("standard error over draws")] == "0.1732"


def test_what_no_run_has_takes_no_column() -> None:
    likelihood, fid = found_tables(evaluated(tables(), classes=0).runs)
    assert not any("Bayes" in title for title in likelihood.header)
    assert "class agreement" not in fid.header
    assert found_tables(tables().runs) == []


def test_bits_and_nats_are_never_in_one_table(recorded: Recorded) -> None:
    gaussian = evaluated(tables({"rqs-4": PLANTED["rqs-4"]}), noise="gaussian").runs
    one, *_ = found_tables(gaussian)
    assert "test nats/dim" in one.header
    assert not any("bits" in title for title in one.header)
    both = found_tables(pd.concat([recorded.runs, gaussian], ignore_index=True))
    assert ["test bits/dim" in table.header for table in both] == [True, False, False]
    assert ["test nats/dim" in table.header for table in both] == [False, True, False]


def test_other_weights_are_in_a_table_of_their_own_and_told(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[runs["transform"] == "rqs-8", "extractor_digits"] = "abcdef01"
    _, first, second = found_tables(runs)
    assert [row[0] for row in first.rows] == ["affine", "RQS K=4", "floor"]
    assert [row[0] for row in second.rows] == ["RQS K=8", "floor"]
    assert "extractor of digits: 12e45678 (6 runs), abcdef01 (3 runs)" in mixed(runs)
    assert mixed(recorded.runs) == []


def test_the_evaluation_stays_out_of_the_tables_of_training(recorded: Recorded) -> None:
    assert summary(recorded.runs).header == summary(tables().runs).header
    assert run_table(recorded.runs).header == run_table(tables().runs).header
    settings = {row[0]: row[1] for row in made(recorded.runs).rows}
    assert settings["extractor of digits"] == "12e45678"
    assert settings["images generated for the fidelity"] == "1000"
    assert "extractor of digits" not in {row[0] for row in made(tables().runs).rows}


# Figures


def plates(recorded: Recorded) -> dict[str, str]:
    return {plate.name: plate.lacking for plate in figures.plates(recorded)}


def test_what_was_not_evaluated_is_not_drawn(recorded: Recorded) -> None:
    assert plates(recorded) == dict.fromkeys(figures.NAMES, "")
    assert plates(evaluated(tables(), classes=0))["bayes"] == "classifications of test images"
    drawn = [name for name, lacking in plates(tables()).items() if not lacking]
    assert drawn == ["digits"]
    failed = recorded._replace(runs=recorded.runs.assign(status="failed"))
    assert all(plates(failed)[name] for name in ("fidelity", "patches", "positions", "bayes"))


# Files


def test_every_digit_of_the_evaluation_survives_the_files(recorded: Recorded, report: Path) -> None:
    back = load(report)
    for name in EVALUATION:
        pd.testing.assert_frame_equal(
            back.evaluation[name], recorded.evaluation[name], check_dtype=False, check_exact=True
        )
    np.testing.assert_equal(back.samples, recorded.samples)
    assert set(back.runs["extractor_digits"]) == {"12e45678"}


def test_a_report_with_evaluation_is_rebuilt_byte_for_byte(report: Path, tmp_path: Path) -> None:
    paths = build(STUDY, load(report), tmp_path)
    assert {f"{name}.csv" for name in EVALUATION} <= {path.name for path in paths}
    assert {f"{name}.png" for name in figures.NAMES} <= {path.name for path in paths}
    assert [p.name for p in paths if p.read_bytes() != (report / p.name).read_bytes()] == []


def test_tables_of_an_earlier_evaluation_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowbench.report.plates.drawn", lambda *_: Drawn([], []))
    stale = {f"{name}.csv" for name in EVALUATION} | {f"{name}.png" for name in figures.NAMES}
    for name in stale:
        (tmp_path / name).touch()
    build(STUDY, tables(), tmp_path)
    assert not stale & {path.name for path in tmp_path.iterdir()}
    assert all(table.empty for table in load(tmp_path).evaluation.values())


def test_an_indispensable_column_of_the_evaluation_is_named(
    recorded: Recorded, tmp_path: Path
) -> None:
    broken = recorded.evaluation["positions"].drop(columns="block")
    evaluation = recorded.evaluation | {"positions": broken}
    with pytest.raises(UsageError, match=r"positions\.csv lacks block: it needs run_id, block"):
        build(STUDY, recorded._replace(evaluation=evaluation), tmp_path)


# Page


def test_the_evaluation_follows_the_training_and_figures_are_numbered_through(
    recorded: Recorded,
) -> None:
    parts = [Drawn([Picture(f"{n}.png", "", n)], []) for n in ("none", "one", "two", "three")]
    blocks = list(page(STUDY, recorded, *parts))
    heads = [block.text for block in blocks if isinstance(block, Heading)]
    assert heads[:3] == ["Summary by transform", "Claims", "Bins, blocks and layers"]
    assert heads[3:7] == ["Training", "Evaluation", "Trials", "Runs"]
    captions = [block.caption for block in blocks if isinstance(block, Picture)]
    assert captions == [
        "Figure 1. none",
        "Figure 2. one",
        "Figure 3. two",
        "Figure 4. three",
    ]


def test_pages_of_mixed_extractors_warn(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[0, "extractor_digits"] = "abcdef01"
    blocks = page(STUDY, recorded._replace(runs=runs), *[Drawn([], [])] * 4)
    (warning,) = (b.text for b in blocks if isinstance(b, Paragraph) and b.lead == "Mixed runs.")
    assert "extractor of digits" in warning
    assert "kept apart" in warning


def test_what_was_skipped_is_told_with_its_reason(recorded: Recorded) -> None:
    skipped = ["no weights of Inception; too few images", "no weights of Inception", *[None] * 7]
    *_, told = scores(recorded.runs.assign(skipped=skipped))
    assert told == Paragraph(
        "no weights of Inception (2 of 9 runs); too few images (1 of 9 runs).",
        lead="Not measured.",
    )
