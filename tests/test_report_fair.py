"""Comparisons that give each transform its own: its learning rate, affine more width or time."""

from pathlib import Path

import pandas as pd
import pytest
from reports import SEEDS, among, analysis, changed, tables

from flowbench.report.analysis import Analysis, analyses
from flowbench.report.files import Recorded, Study, complete
from flowbench.report.page import drawn
from flowbench.report.runs import tuned
from flowbench.report.tables import fair, variations

RATES = {"affine": 2e-3, "rqs-4": 4e-3, "rqs-8": 8e-3}


def own_rates(recorded: Recorded) -> Recorded:
    return changed(recorded, **{"optim.lr": recorded.runs["model.transform"].map(RATES)})


def test_each_transforms_own_learning_rate_separates_no_runs() -> None:
    same = changed(tables(), **{"optim.lr": 2e-3})
    own = own_rates(tables())
    assert analysis(complete(own)).differences == analysis(complete(same)).differences
    assert analysis(complete(own)).differences["val/bpd"]["RQS K=8"].n == SEEDS
    assert [one.name for one in analysis(own).configurations] == ["affine", "RQS K=4", "RQS K=8"]


def test_own_learning_rates_are_told() -> None:
    (told,) = variations(analysis(complete(own_rates(tables()))))
    assert told == (
        "learning rate, of each transform its own: affine 0.002, RQS K=4 0.004, RQS K=8 0.008"
    )


def test_rates_that_vary_within_a_transform_and_other_settings_are_not_its_own() -> None:
    recorded = own_rates(tables())
    assert set(tuned(recorded.runs)) == {"optim.lr"}
    recorded.runs.loc[recorded.runs.index[0], "optim.lr"] = 1e-2
    assert tuned(recorded.runs) == {}
    widths = recorded.runs["model.transform"].map({"affine": 64, "rqs-4": 32, "rqs-8": 16})
    assert tuned(recorded.runs.assign(**{"model.width": widths, "optim.lr": 1e-3})) == {}


def with_more(key: str, value: int, shift: float) -> Analysis:
    """The planted runs, and affine's again with more of a setting and a loss that much lower."""
    recorded = changed(tables(), **{"model.width": 64, "trainer.max_epochs": 4})
    more = recorded.runs[among(recorded, "affine")].copy()
    more[key] = value
    more["run_id"] = more["run_id"] + "-more"
    for name in ("val/loss", "val/bpd"):
        more[name] -= shift
    return analysis(complete(recorded._replace(runs=pd.concat([recorded.runs, more]))))


@pytest.mark.parametrize(
    ("key", "given"),
    [("model.width", "at least as large"), ("trainer.max_epochs", "trained at least as long")],
)
def test_affine_given_more_is_compared_beside(key: str, given: str) -> None:
    one = with_more(key, 100, shift=0.25)
    assert set(one.fair) == {given}
    metric = one.quality.metric
    for name, gap in one.fair[given].items():
        assert gap.n == SEEDS
        assert gap.mean == pytest.approx(one.differences[metric][name].mean + 0.25)
    (table,) = fair(one)
    assert table.header[1:] == [
        "minus affine of the same settings",
        f"minus affine {given}",
    ]
    assert len(table.rows) == 2


def test_without_such_runs_there_is_no_such_table() -> None:
    assert analysis(complete(tables())).fair == {}
    assert not list(fair(analysis(complete(tables()))))


def test_samples_are_shown_of_the_flows_that_can_be_denoised(tmp_path: Path) -> None:
    uniform, gaussian = tables(), tables()
    gaussian.runs["data.noise"] = "gaussian"
    gaussian.runs[[name for name in gaussian.runs if name.endswith("bpd")]] = float("nan")
    for part in (gaussian.runs, gaussian.history):
        part["run_id"] = part["run_id"] + "-g"
    samples = {
        f"{name}|{noise}": images
        for noise, part in (("uniform", uniform), ("gaussian", gaussian))
        for name, images in part.samples.items()
    }
    runs = pd.concat([uniform.runs, gaussian.runs], ignore_index=True)
    history = pd.concat([uniform.history, gaussian.history], ignore_index=True)
    found = analyses(Study("a", "b", "c", "d"), complete(Recorded(runs, history, samples)))
    assert [one.denoised for one in found] == [False, True]
    pictures, _ = drawn(found, tmp_path)
    assert "noise gaussian" in pictures["digits"].caption
    assert "denoised" in pictures["digits"].caption
    assert "digits-2" not in pictures
    assert "noise uniform" in pictures["losses"].caption
    assert "noise gaussian" in pictures["losses-2"].caption


def test_a_splines_own_kernel_does_not_keep_its_times_from_affines() -> None:
    kernels = {"affine": "layer", "rqs-4": "layer rqs", "rqs-8": "layer rqs"}
    recorded = tables()
    names = recorded.runs["model.transform"].map(kernels)
    one = analysis(complete(changed(recorded, kernels=names)))
    assert one.time_ratios["RQS K=8"].n == SEEDS
    assert one.time_ratios["RQS K=8"].mean == pytest.approx(2, rel=0.01)
    names[among(recorded, "affine")] = "none"
    other = analysis(complete(changed(recorded, kernels=names)))
    assert not any(ratio.n for ratio in other.time_ratios.values())
