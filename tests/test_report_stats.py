"""Intervals, pairs, ratios, outliers, and the settings that runs must share."""

import numpy as np
import pandas as pd
import pytest
from reports import PLANTED, SEEDS, among, changed, of_runs, tables

from flowbench.report.files import Recorded
from flowbench.report.runs import configurations
from flowbench.report.stats import (
    difference,
    interval,
    over_seeds,
    patch_ratio,
    time_ratio,
    without_outliers,
)
from flowbench.schema import BLOCKS, TRANSFORM


@pytest.fixture
def recorded() -> Recorded:
    return tables()


def test_interval_is_the_textbook_t_interval() -> None:
    value = interval(pd.Series([1.0, 2.0, 3.0]))
    assert value.n == 3
    assert value.mean == pytest.approx(2)
    assert value.high - value.mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert value.mean - value.low == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)


def test_one_seed_gives_no_interval() -> None:
    value = interval(pd.Series([1.0]))
    assert (value.mean, value.n) == (1, 1)
    assert np.isnan([value.low, value.high]).all()


def test_pairing_removes_what_seeds_share(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs["val/loss"] = runs["seed"] * 100.0 + (runs[TRANSFORM] == "rqs-8")
    value = difference(runs, "val/loss", "rqs-8", "affine")
    assert (value.low, value.high) == (pytest.approx(1), pytest.approx(1))


def test_only_runs_of_equal_settings_are_paired(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[(runs[TRANSFORM] == "rqs-8") & (runs["seed"] == 0), BLOCKS] = 8
    assert difference(runs, "val/loss", "rqs-8", "affine").n == SEEDS - 1


def test_runs_of_one_seed_count_once(recorded: Recorded) -> None:
    runs = pd.concat([recorded.runs, recorded.runs, recorded.runs.assign(**{BLOCKS: 8})])
    assert difference(runs, "val/loss", "rqs-8", "affine").n == SEEDS
    assert {over_seeds(one.runs, "val/loss")[2] for one in configurations(runs)} == {SEEDS}


@pytest.mark.parametrize("fact", ["device", "threads", "torch", "precision", "kernels"])
def test_times_of_different_machines_are_not_compared(fact: str, recorded: Recorded) -> None:
    assert time_ratio(recorded.runs, "rqs-8", "affine").mean == pytest.approx(2, rel=0.01)
    other = recorded.runs[fact].astype(object).mask(among(recorded, "rqs-8"), "other")
    runs = recorded.runs.assign(**{fact: other})
    assert time_ratio(runs, "rqs-8", "affine").n == 0
    assert difference(runs, "val/loss", "rqs-8", "affine").n == SEEDS


# Edge against interior


def rated(*ratios: float, seeds: list[int] | None = None) -> pd.DataFrame:
    runs = tables({"affine": PLANTED["affine"]}, seeds=len(ratios)).runs
    runs = runs.assign(**{"patches/ratio": ratios, "patches/ratio_low": 1.1})
    return runs.assign(**{"patches/ratio_high": 1.9, "seed": seeds or runs["seed"]})


def test_the_patch_ratio_is_a_geometric_mean_with_the_t_interval_of_its_logarithm() -> None:
    value = patch_ratio(rated(1.0, np.e, np.e**2))
    assert (value.mean, value.n) == (pytest.approx(np.e), 3)
    assert np.log([value.low, value.high]) == pytest.approx(
        [1 - 4.302653 / np.sqrt(3), 1 + 4.302653 / np.sqrt(3)], rel=1e-6
    )


def test_a_single_run_has_the_interval_of_its_own_images() -> None:
    value = patch_ratio(rated(1.5))
    assert (value.mean, value.low, value.high, value.n) == (1.5, 1.1, 1.9, 1)


def test_runs_of_one_seed_give_no_interval_over_seeds() -> None:
    value = patch_ratio(rated(1.0, np.e**2, seeds=[0, 0]))
    assert (value.mean, value.n) == (pytest.approx(np.e), 1)
    assert np.isnan([value.low, value.high]).all()


# Outliers


@pytest.fixture
def history() -> pd.DataFrame:
    losses = [-1.0, -2.0, -3.0, -1.5, -2.5, -3.5]
    rows = {TRANSFORM: "affine", "seed": [0, 0, 0, 1, 1, 1], "epoch": [1, 2, 3] * 2}
    return pd.DataFrame({**rows, "val/loss": losses})


def test_an_outlier_is_blanked_and_named(history: pd.DataFrame) -> None:
    history.loc[3, "val/loss"] = 6.4e8
    kept, listed = without_outliers(history, ["val/loss"])
    assert kept["val/loss"].isna().tolist() == [False, False, False, True, False, False]
    assert listed == "Not drawn: 1 outlier 6.4e+08 (val/loss, affine seed 1, epoch 1)."
    assert history.loc[3, "val/loss"] == 6.4e8


def test_ordinary_values_are_all_kept(history: pd.DataFrame) -> None:
    kept, listed = without_outliers(history, ["val/loss"])
    pd.testing.assert_frame_equal(kept, history)
    assert listed == ""


# The analysis


def test_the_chosen_run_is_the_best_or_the_one_asked_for(recorded: Recorded) -> None:
    runs = recorded.runs
    assert of_runs(runs).one[0]["val/bpd"] == runs["val/bpd"].min()
    lossy = changed(recorded, **{"val/bpd": np.nan}).runs
    assert of_runs(lossy).one[0]["val/loss"] == runs["val/loss"].min()


def test_maps_are_of_runs_with_the_settings_of_their_transforms_best(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    spline = runs[TRANSFORM] == "rqs-8"
    runs.loc[spline & (runs["seed"] > 0), BLOCKS] = 2
    runs.loc[spline & (runs["seed"] == 2), "val/loss"] = -9.0
    best = of_runs(runs).best
    assert sorted(best.loc[best[TRANSFORM] == "rqs-8", "seed"]) == [1, 2]
    assert (best[TRANSFORM] == "affine").sum() == SEEDS
