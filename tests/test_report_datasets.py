"""What a report says of several data sets: planted advantages are found, and judged."""

import numpy as np
import pandas as pd
import pytest
from reports import complete, sweep

from flowbench.report.analysis import Analysis, analyses
from flowbench.report.claims import Verdict, claims, judged
from flowbench.report.datasets import advantages, tellings
from flowbench.report.document import Table
from flowbench.report.files import Recorded, Study
from flowbench.report.page import answer
from flowbench.report.runs import told_apart
from flowbench.report.tables import advantages as advantage_table
from flowbench.report.tables import tellings as telling_table
from flowbench.schema import DATA, IMAGES, SPREAD, TRANSFORM

POINTS = [("rqs-8", 2, 1), ("softaffine", 2, 1)]


def law(transform: str, blocks: int, layers: int) -> float:  # noqa: ARG001 - a Law's signature
    return 2.0


def planted(gaps: dict[str, float]) -> list[Analysis]:
    """Runs on data sets of ever larger spread; the spline's loss is lower by a gap."""
    recorded = sweep(POINTS, law)
    noise, tables = np.random.default_rng(0), []
    for place, (name, gap) in enumerate(gaps.items()):
        own = recorded.runs.assign(**{DATA: name, SPREAD: 0.5 + 0.1 * place})
        own["run_id"] += name
        spline = own[TRANSFORM] == "rqs-8"
        own["val/bpd"] = own["val/bpd"] - gap * spline + 0.001 * noise.standard_normal(len(own))
        tables.append(own)
    runs = pd.concat(tables, ignore_index=True)
    made = complete(Recorded(runs, recorded.history, recorded.samples))
    return analyses(Study("colour/quick", "Does it grow?", "It does.", ""), made)


def test_planted_advantages_are_found_the_least_spread_set_first() -> None:
    found = advantages(planted({"mnist-5k": 1.0, "photo-crops": 1.5}))
    assert [one.data for one in found] == ["mnist-5k", "photo-crops"]
    for one, gap in zip(found, (1.0, 1.5), strict=True):
        assert one.gap.mean == pytest.approx(gap, abs=0.005)
        assert one.gap.low < one.gap.mean < one.gap.high
        assert one.losses[0] - one.losses[1] == pytest.approx(one.gap.mean)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((1.0, 1.5, 2.0), "supported"),
        ((2.0, 1.5, 1.0), "contradicted"),
        ((1.0, 2.0, 1.5), "undecided"),
    ],
)
def test_growth_is_judged_over_all_data_sets_once(
    gaps: tuple[float, ...], expected: Verdict
) -> None:
    found = planted(dict(zip(("mnist-5k", "digits-on-photos", "photo-crops"), gaps, strict=True)))
    verdicts = [
        claim.verdict for _, own in judged(found) for claim in own if claim.rule == "variance"
    ]
    assert verdicts == [expected]
    assert any(isinstance(block, Table) for block in advantage_table(found))


def test_one_data_set_has_no_such_claim() -> None:
    found = planted({"mnist-5k": 1.0})
    assert not advantages(found)
    assert not list(advantage_table(found))
    assert all(claim.rule != "variance" for _, own in judged(found) for claim in own)


def test_tellings_are_changes_from_the_affine_flow_by_seed() -> None:
    one = planted({"mnist-5k": 1.0})[0]
    runs = one.recorded.runs
    spline = runs[TRANSFORM] == "rqs-8"
    random = np.random.default_rng(0)
    for score in ("auroc", "auroc_png", "auroc_typical"):
        runs[f"{score}_kmnist"] = 0.3 + 0.2 * spline + 0.001 * random.standard_normal(len(runs))
    found = {(each.transform, each.score): each for each in tellings(one)}
    change = found["rqs-8", "auroc"].change
    assert change.low < change.mean < change.high
    assert change.mean == pytest.approx(0.2, abs=0.005)
    assert found["softaffine", "auroc"].change.n == 0
    table = next(block for block in telling_table(one) if isinstance(block, Table))
    assert [row[:2] for row in table.rows] == [["kmnist", "RQS K=8"], ["kmnist", "softaffine"]]


@pytest.mark.parametrize(
    ("gain", "expected"), [(0.1, "supported"), (-0.1, "contradicted"), (0.0, "undecided")]
)
def test_telling_is_judged_by_the_likelihoods_change(gain: float, expected: Verdict) -> None:
    one = planted({"mnist-5k": 1.0})[0]
    runs = one.recorded.runs
    random = np.random.default_rng(0)
    for score in ("auroc", "auroc_png", "auroc_typical"):
        spline = gain * (runs[TRANSFORM] == "rqs-8")
        runs[f"{score}_kmnist"] = 0.3 + spline + 0.001 * random.standard_normal(len(runs))
    verdicts = [claim.verdict for claim in claims(one) if claim.rule == "telling"]
    assert verdicts == [expected]
    more = "finds kmnist more likely than its own images (AUROC 0."
    assert more in answer(one)


def test_sets_of_one_name_with_other_images_are_told_apart() -> None:
    runs = pd.DataFrame({DATA: ["folder"] * 3 + ["mnist"], IMAGES: ["a", "b", None, "c"]})
    assert told_apart(runs)[DATA].tolist()[:3] == [
        "folder a",
        "folder b",
        "folder of unknown images",
    ]
    assert told_apart(runs)[DATA].tolist()[3] == "mnist"
    assert told_apart(runs[[DATA]]).equals(runs[[DATA]])
