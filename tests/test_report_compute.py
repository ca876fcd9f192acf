"""What a report says of fixed compute: planted best sizes, exponents and splits are found."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from reports import sweep

from flowbench.report import compute, laws
from flowbench.report.analysis import Analysis
from flowbench.report.claims import claims
from flowbench.report.compute_tables import budgets
from flowbench.report.document import Table, markdown
from flowbench.report.figures.compute import COMPUTE
from flowbench.report.files import Recorded, Study, complete
from flowbench.report.overview import _foretold
from flowbench.report.page import answer
from flowbench.schema import BLOCKS, BUDGET, LAYERS, SEED, TRAIN_IMAGES, TRANSFORM, WIDTH

BUDGETS = [1e11, 2e11, 4e11, 8e11, 1.6e12]
EXPONENT = 0.45
METRIC = "val/bpd"
Loss = Callable[[float, float], float]


def best_size(flops: float) -> float:
    """Where the planted loss is least."""
    return float(2e4 * (flops / 1e11) ** EXPONENT)


def planted_loss(parameters: float, flops: float) -> float:
    """A bowl in the logarithm of the size, ever lower with the budget: 1 + 2 (C / 1e11)^−0.5."""
    far = math.log(parameters / best_size(flops))
    return 1.0 + 2.0 * (flops / 1e11) ** -0.5 + 0.3 * far**2


def runs(loss: Loss, noise: float = 0.0, seeds: int = 3, sizes: int = 5) -> pd.DataFrame:
    """A row per budget, size and seed, the sizes half as large again from one to the next."""
    draw = np.random.default_rng(0)
    rows = []
    for flops, place, seed in itertools.product(BUDGETS, range(sizes), range(seeds)):
        parameters = best_size(flops) * 1.5 ** (place - sizes // 2 + 0.3)
        value = loss(parameters, flops) + noise * draw.standard_normal()
        row = {BUDGET: flops, WIDTH: 10 + place, "parameters": parameters, SEED: seed}
        rows.append({**row, METRIC: value, BLOCKS: 2, LAYERS: 2, TRAIN_IMAGES: "None"})
    table = pd.DataFrame(rows).assign(**{TRANSFORM: "rqs-8"})
    return table.assign(run_id=[f"run{number}" for number in table.index])


def patches(table: pd.DataFrame) -> pd.DataFrame:
    """49 patches of every run."""
    return pd.DataFrame(itertools.product(table["run_id"], range(49)), columns=["run_id", "patch"])


def found(table: pd.DataFrame) -> list[compute.Curve]:
    return compute.curves(table, patches(table), METRIC)


def test_planted_best_sizes_and_their_exponent_are_found() -> None:
    curves = found(runs(planted_loss, noise=0.002))
    assert [one.flops for one in curves] == BUDGETS
    for one in curves:
        assert one.best is not None
        assert one.best.mean == pytest.approx(best_size(one.flops), rel=0.02)
        assert one.best.low <= one.best.mean <= one.best.high
        assert len(one.near) == 9
        assert one.patches == 49
    (exponent,) = compute.exponents(curves)
    assert exponent.value is not None
    assert exponent.value.mean == pytest.approx(EXPONENT, abs=0.02)
    assert exponent.value.low <= exponent.value.mean <= exponent.value.high
    assert exponent.at(3.2e12) == pytest.approx(best_size(3.2e12), rel=0.05)


def test_a_parabola_is_not_fitted_to_sizes_far_from_the_best() -> None:
    """A size that diverged must not move the vertex."""
    table = runs(planted_loss)
    far = table.groupby(BUDGET)["parameters"].transform("max") == table["parameters"]
    table.loc[far, METRIC] += 100
    for one in found(table):
        assert one.best is not None
        assert one.best.mean == pytest.approx(best_size(one.flops), rel=1e-6)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (runs(lambda size, _: math.log(size)), "the smallest is the best"),
        (runs(lambda size, _: -math.log(size)), "the largest is the best"),
        (runs(planted_loss, sizes=2), "2 sizes, where 3 are needed"),
        (runs(planted_loss, seeds=1), "one seed"),
        (runs(lambda *_: 1.0, noise=0.1), "best"),
    ],
)
def test_what_the_runs_do_not_determine_is_said(table: pd.DataFrame, why: str) -> None:
    curves = found(table)
    assert len(curves) == len(BUDGETS)
    assert any(one.best is None and why in one.why for one in curves)
    (exponent,) = compute.exponents(curves)
    assert exponent.value is None
    assert exponent.line is None
    assert exponent.why


def test_seeds_that_disagree_determine_no_best_size() -> None:
    """The losses of one seed fall with the size, those of the others are a bowl."""
    table = runs(planted_loss, seeds=3)
    falling = table[SEED] == 0
    table.loc[falling, METRIC] = 8 - table.loc[falling, "parameters"].map(math.log)
    for one in found(table):
        assert one.best is None or math.isfinite(one.best.high)


def test_the_loss_at_the_best_sizes_follows_a_law_that_foresees_the_largest_budget() -> None:
    (fit,) = compute.frontier(found(runs(planted_loss, noise=0.001)))
    assert fit.law is not None
    assert fit.quantity == "frontier"
    assert fit.law.c == pytest.approx(0.5, abs=0.05)
    forecast = laws.forecast(fit)
    assert forecast is not None
    assert forecast.x == BUDGETS[-1]
    assert forecast.foreseen.mean == pytest.approx(forecast.trained.mean, abs=0.02)


def test_a_law_without_enough_other_budgets_foresees_nothing() -> None:
    table = runs(planted_loss, noise=0.001)
    (fit,) = compute.frontier(found(table[table[BUDGET] < BUDGETS[-1]]))
    assert fit.law is not None
    assert laws.forecast(fit) is None


def with_affine(gap: float) -> pd.DataFrame:
    """The same runs of an affine flow, whose losses are higher by a gap."""
    table = runs(planted_loss, noise=0.001)
    other = table.assign(**{TRANSFORM: "softaffine", METRIC: table[METRIC] + gap})
    other["run_id"] += "affine"
    return pd.concat([table, other], ignore_index=True)


def test_transforms_are_compared_at_their_best_sizes() -> None:
    gaps = compute.advantages(found(with_affine(0.4)), "softaffine")
    assert list(gaps) == ["rqs-8"]
    assert list(gaps["rqs-8"]) == BUDGETS
    for gap in gaps["rqs-8"].values():
        assert gap.mean == pytest.approx(-0.4, abs=1e-9)
        assert gap.n == 3


def splits(leads: dict[tuple[int, int], float]) -> pd.DataFrame:
    """Runs of one width that differ in their split of four layers."""
    rows = [
        {BLOCKS: blocks, LAYERS: layers, SEED: seed, METRIC: value + 0.001 * seed, WIDTH: 24}
        for (blocks, layers), value in leads.items()
        for seed in range(3)
    ]
    table = pd.DataFrame(rows).assign(**{TRANSFORM: "rqs-8", BUDGET: 1e12, "parameters": 5e4})
    return table.assign(run_id=table.index.map(str))


def test_splits_of_the_layers_are_ranked() -> None:
    (one,) = compute.alternatives(splits({(2, 2): 2.0, (4, 1): 1.9, (1, 4): 2.5}), METRIC, "split")
    assert list(one.losses) == ["4 × 1", "2 × 2", "1 × 4"]
    assert one.lead.mean == pytest.approx(-0.1)
    # Another number of layers in all is another budget of depth: no split of the same.
    assert not compute.alternatives(splits({(2, 2): 2.0, (2, 1): 1.9}), METRIC, "split")


def test_numbers_of_training_images_are_ranked() -> None:
    table = splits({(2, 2): 2.0})
    parts = []
    for images, more in (("None", 0.0), ("1000", 0.2), ("2000", 0.1)):
        parts.append(table.assign(**{TRAIN_IMAGES: images, METRIC: table[METRIC] + more}))
    (one,) = compute.alternatives(pd.concat(parts, ignore_index=True), METRIC, "data")
    assert list(one.losses) == [math.inf, 2000, 1000]


def test_runs_without_budgets_have_no_curves() -> None:
    table = runs(planted_loss)
    assert not found(table.drop(columns=BUDGET))
    assert not found(table.assign(**{BUDGET: math.nan}))
    assert not found(table.assign(**{BUDGET: "None"}))
    assert laws.budgets(table.assign(**{BUDGET: "None"})).isna().all()


def recorded(gap: float, flops: Sequence[float] = BUDGETS, **changes: object) -> Analysis:
    """Runs of some budgets as a report reads them, with everything else that it wants."""
    table = with_affine(gap)
    table = table[table[BUDGET].isin(flops)].reset_index(drop=True)
    own = sweep([("rqs-8", 2, 2)], lambda *_: 2.0, seeds=1).runs.iloc[[0]]
    rest = own.drop(columns=[name for name in own if name in table])
    every = table.merge(rest, how="cross").assign(**{"test/bpd": table[METRIC]})
    every = every.assign(**changes)
    history = pd.DataFrame(columns=["run_id", "epoch"])
    made = complete(Recorded(every, history, {}))
    made.evaluation["patches"] = patches(table)
    return Analysis(Study("scaling/quick", "How?", "So.", "make"), made)


def foretold(*studies: Analysis) -> list[list[str]]:
    """The rows of what the laws of some studies foresee for others."""
    return [row for part in _foretold(studies) if isinstance(part, Table) for row in part.rows]


def test_a_studys_law_is_tried_at_the_budgets_of_a_larger_study() -> None:
    small, large = recorded(0.4, BUDGETS[:-1]), recorded(0.4, BUDGETS[-1:])
    rows = foretold(large, small)
    assert [row[2:4] for row in rows] == [
        ["RQS K=8", "1.6e12"],
        ["softaffine", "1.6e12"],
    ]
    for row in rows:
        foreseen, trained = (float(cell.split()[0]) for cell in row[4:])
        assert foreseen == pytest.approx(trained, abs=0.02)
    later = recorded(0.4, BUDGETS[-1:], **{"capture": "False"})
    assert foretold(small, later) == rows  # an option that the earlier study could not have
    assert not foretold(small, recorded(0.4, BUDGETS[-1:], **{"optim.lr": 1.0}))
    few = foretold(recorded(0.4, BUDGETS[:3]), large)
    assert {row[4] for row in few} == {"not determined: 3 different values, where 4 are needed"}


@pytest.mark.parametrize(("gap", "verdict"), [(0.4, "supported"), (-0.4, "contradicted")])
def test_the_page_shows_budgets(gap: float, verdict: str) -> None:
    analysis = recorded(gap)
    blocks = list(budgets(analysis))
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [len(table.rows) for table in tables] == [10, 2, 5]
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    text = markdown("Budgets", blocks)
    assert "| RQS K=8 | 0.45 (0.4" in text
    assert "1.6e12" in text
    assert COMPUTE.missing(analysis) == ""
    assert len(COMPUTE.draw(analysis).axes) == 2
    assert "star: its least loss" in COMPUTE.caption(analysis)
    (claim,) = [one for one in claims(analysis) if one.rule == "compute"]
    assert claim.verdict == verdict
    said = answer(analysis)
    assert "RQS K=8's best size grows as FLOPs^0.45 (0.4" in said
    assert f"RQS K=8 differs from softaffine by {-gap:+.3f} bits/dim".replace("-", "−") in said
    assert "at 1e11" in said
    assert "at 1.6e12" in said
