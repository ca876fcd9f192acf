"""What an option of the flow changes: effects of planted size are found, and judged."""

import numpy as np
import pandas as pd
import pytest
from reports import analysis, complete, sweep

from flowbench.report.analysis import Analysis
from flowbench.report.claims import Verdict, claims
from flowbench.report.files import Recorded
from flowbench.report.options import ORDER, START, usual
from flowbench.report.page import answer
from flowbench.report.tables import effects
from flowbench.schema import LAYERS, LAYERS_LISTED, SECONDS, TRANSFORM

POINTS = [("rqs-8", 2, 1), ("softaffine", 2, 1)]


def law(transform: str, blocks: int, layers: int) -> float:  # noqa: ARG001 - a Law's signature
    return {"softaffine": 3.0}.get(transform, 1.5)


def varied(option: str, usual_value: str, gains: dict[str, float], **factors: float) -> Analysis:
    """Runs with the usual value of an option, and with others whose loss is lower by a gain."""
    recorded = sweep(POINTS, law)
    first = recorded.runs.assign(**{option: usual_value, "patches/ratio": 0.9})
    tables = [first]
    noise = np.random.default_rng(0)
    for value, gain in gains.items():
        own = first.assign(**{option: value, "run_id": first["run_id"] + value})
        own["val/bpd"] = own["val/bpd"] - gain + 0.001 * noise.standard_normal(len(own))
        for name, factor in factors.items():
            column = {"edge": "patches/ratio", "time": SECONDS}[name]
            own[column] = own[column] * factor * np.exp(0.01 * noise.standard_normal(len(own)))
        tables.append(own)
    runs = pd.concat(tables, ignore_index=True)
    return analysis(complete(Recorded(runs, recorded.history, recorded.samples)))


def verdict(one: Analysis, words: str) -> Verdict:
    return next(claim.verdict for claim in claims(one) if words in claim.text)


def test_a_planted_gain_is_found_with_its_interval() -> None:
    one = varied(START, "identity", {"learned": 0.1, "token": 0.2}, edge=0.5)
    found = {effect.name: effect for effect in one.effects if effect.option == START}
    assert set(found) == {
        f"{start}, {transform}"
        for start in ("learned", "token")
        for transform in ("RQS K=8", "softaffine")
    }
    for name, effect in found.items():
        gain = 0.2 if name.startswith("token") else 0.1
        assert effect.loss.low < effect.loss.mean < effect.loss.high
        assert effect.loss.mean == pytest.approx(-gain, abs=0.005)
        assert effect.edge.mean == pytest.approx(0.5, rel=0.05)
        assert effect.base == "identity"
    assert "First patch token, " in answer(one)
    assert "instead of identity: −0.2" in answer(one)


@pytest.mark.parametrize(
    ("edge", "expected"), [(0.5, "supported"), (2.0, "contradicted"), (1.0, "undecided")]
)
def test_the_first_patch_is_judged_by_the_edge_noise(edge: float, expected: Verdict) -> None:
    one = varied(START, "identity", {"token": 0.1}, edge=edge)
    assert verdict(one, "first patch as it is") == expected


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"snake": 0.1, "raster": -0.1}, "supported"),
        ({"snake": -0.1, "raster": -0.1}, "contradicted"),
        ({"snake": 0.0, "raster": -0.1}, "undecided"),
    ],
)
def test_orders_are_judged_by_the_best(gains: dict[str, float], expected: Verdict) -> None:
    assert verdict(varied(ORDER, "flip", gains), "Other orders") == expected


def test_nothing_is_said_of_an_option_that_does_not_vary() -> None:
    one = analysis(sweep([("affine", 2, 1), ("rqs-8", 2, 1)], law))
    assert one.effects == []
    assert not list(effects(one))
    assert not any("first patch as it is" in claim.text for claim in claims(one))


def test_an_option_without_its_usual_value_has_no_effect_to_show() -> None:
    one = varied(ORDER, "columns", {"snake": 0.1})
    assert not [effect for effect in one.effects if effect.option == ORDER]
    assert verdict(one, "Other orders") == "undecided"


def test_layers_by_block_are_compared_with_equal_ones() -> None:
    assert usual(LAYERS_LISTED, "1-1-6-4") == "3-3-3-3"
    one = varied(LAYERS_LISTED, "3-3", {"1-5": 0.1, "5-1": -0.1})
    one.recorded.runs[LAYERS] = 3.0
    found = {effect.name: effect.loss.mean for effect in one.effects if effect.base == "3-3"}
    assert found["1-5, RQS K=8"] == pytest.approx(-0.1, abs=0.005)
    assert found["5-1, RQS K=8"] == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize(
    ("gain", "time", "expected"),
    [
        (0.1, 1.0, "supported"),
        (0.1, 2.0, "contradicted"),
        (-0.5, 1.0, "contradicted"),
        (0.1, 1.1, "undecided"),
    ],
)
def test_functions_are_judged_by_loss_and_time(gain: float, time: float, expected: str) -> None:
    one = varied(TRANSFORM, "rqs-8", {"quadratic-8": gain, "softaffine": -1, "crat": -1.0}, time=1)
    runs = one.recorded.runs
    runs = runs[~runs["run_id"].duplicated()].copy()
    own = runs[TRANSFORM] == "quadratic-8"
    runs.loc[own, SECONDS] *= time
    runs.loc[runs[TRANSFORM] == "crat", SECONDS] *= 3
    runs = runs.drop_duplicates([TRANSFORM, "seed"])
    one = analysis(one.recorded._replace(runs=runs))
    assert verdict(one, "Some other function") == expected
