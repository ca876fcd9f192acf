"""What a study leaves of its trials: a row an attempt, and which parameters matter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import studies
import tiny
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from flowbench.errors import Interrupted
from flowbench.sweep import parent
from flowbench.sweep.parent import sweep
from flowbench.sweep.planned import DIED, END, ERROR, STOPPED, TRY, PlannedTrials
from flowbench.sweep.record import LEAST, importances, trials
from flowbench.sweep.samplers import suggest
from flowbench.sweep.storage import Storage
from flowbench.tracking import tables
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES

SPACE: dict[str, Any] = {
    "model.transform": ["affine", "rqs-4"],
    "model.blocks, model.layers": [[1, 8], [2, 4]],
    "optim.lr": {"low": 0.01, "high": 1.0},
}


def made(directory: Path, **options: Any) -> PlannedTrials:
    """The planned of a study, of which none has been claimed."""
    return studies.planned(studies.study(directory, **options), Storage(str(directory / "a.log")))


def search(directory: Path, count: int, **options: Any) -> PlannedTrials:
    options = {"space": SPACE, "sampler": "random", "trials": count, **options}
    return made(directory, **options)


def attempt(
    planned: PlannedTrials,
    values: list[float] | None,
    state: TrialState = TrialState.COMPLETE,
    **attributes: Any,
) -> None:
    """Claim the next trial, and tell that it came to this."""
    trial = planned.claim()
    assert trial
    suggest(trial, planned.study.space)
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    if state == TrialState.PRUNED:
        trial.report(7.5, 1)
    planned.trials.tell(trial, values, state=state)


def completed(
    planned: PlannedTrials, function: Callable[[dict[str, Any]], list[float]]
) -> PlannedTrials:
    """Run every trial by a function of its values, which are the same in every run of the tests."""
    planned.trials.sampler = RandomSampler(seed=0)
    while trial := planned.claim():
        values = suggest(trial, planned.study.space)
        if planned.study.points:
            values["seed"] = trial.suggest_categorical("seed", planned.study.seeds)
        planned.trials.tell(trial, function(values))
    return planned


def test_every_attempt_has_a_row_that_agrees_with_optuna(tmp_path: Path) -> None:
    planned = search(tmp_path, 6)
    attempt(planned, [1.5])
    attempt(planned, None, TrialState.FAIL, **{END: STOPPED})
    attempt(planned, [2.5])  # at the place of the one that was stopped
    attempt(planned, None, TrialState.FAIL, **{ERROR: "diverged"})
    attempt(planned, None, TrialState.PRUNED)
    attempt(planned, None, TrialState.FAIL, **{END: DIED, TRY: 3})
    assert planned.claim()
    table = trials(planned)
    known = planned.trials.trials
    assert table["trial"].tolist() == [trial.number for trial in known] == list(range(7))
    assert table["state"].tolist() == [trial.state.name for trial in known]
    assert table["state"].tolist() == [
        *("COMPLETE", "FAIL", "FAIL", "PRUNED", "FAIL"),
        *("RUNNING", "COMPLETE"),
    ]
    assert table["place"].tolist() == [0, 1, 2, 3, 4, 5, 1]
    assert table["retry_of"].tolist() == [*[None] * 6, 1]
    values = [1.5, None, None, 7.5, None, None, 2.5]
    assert [None if pd.isna(value) else value for value in table["val/loss"]] == values
    errors = [None if pd.isna(error) else error for error in table["error"]]
    assert errors == [None, None, "diverged", None, "its processes died", None, None]
    assert table["optim.lr"].tolist()[:5] == [trial.params["optim.lr"] for trial in known[:5]]
    assert table["optim.lr"][6] == known[1].params["optim.lr"]
    assert {*zip(table["model.blocks"][:5], table["model.layers"][:5], strict=True)} <= {
        *((1, 8), (2, 4))
    }
    assert (table["duration"][:5] >= 0).all()
    assert table["started"].notna().all()


def test_what_waits_has_the_values_that_it_was_queued_with(tmp_path: Path) -> None:
    planned = made(tmp_path)  # a grid
    assert planned.claim()
    table = trials(planned)
    assert table["state"].tolist() == ["RUNNING", *["WAITING"] * 3]
    assert table["model.transform"].tolist() == ["affine", "additive"] * 2
    assert table["seed"].tolist() == [0, 0, 1, 1]
    assert table["started"].notna().tolist() == [True, *[False] * 3]


def test_integers_stay_integers_in_the_file(tmp_path: Path) -> None:
    planned = search(tmp_path, 2)
    attempt(planned, None, TrialState.FAIL, **{END: STOPPED})
    attempt(planned, [1.0])
    assert trials(planned).to_csv(index=False).splitlines()[3].startswith("2,0,COMPLETE,0,")


def test_the_parameter_that_matters_is_the_first_of_each_objective(tmp_path: Path) -> None:
    objectives = {"val/bpd": "minimize", "seconds_per_epoch": "minimize"}
    planned = completed(
        search(tmp_path, 20, objectives=objectives),
        lambda v: [
            v["optim.lr"] + 0.01 * v["model.blocks, model.layers"][0],
            10.0 * v["model.blocks, model.layers"][0] + v["optim.lr"],
        ],
    )
    table = importances(planned)
    assert list(table.columns) == ["objective", "parameter", "importance"]
    first = table.drop_duplicates("objective").set_index("objective")
    assert first["parameter"].to_dict() == {
        "val/bpd": "optim.lr",
        "seconds_per_epoch": "model.blocks, model.layers",
    }
    assert (first["importance"] > 0.8).all()
    assert (table.groupby("objective")["importance"].sum() <= 1).all()
    pd.testing.assert_frame_equal(importances(planned), table, check_exact=True)


def test_chance_is_the_importance_of_the_seed(tmp_path: Path) -> None:
    space = {"model.transform": ["affine", "additive", "rqs-4"]}
    planned = completed(
        made(tmp_path, space=space, seeds=[0, 1, 2]),
        lambda v: [
            {"affine": 3.0, "additive": 2.0, "rqs-4": 1.0}[v["model.transform"]] + 0.1 * v["seed"]
        ],
    )
    shares = importances(planned).set_index("parameter")["importance"]
    assert 0 < shares["seed"] < 0.1 < 0.8 < shares["model.transform"]


@pytest.mark.parametrize(
    ("count", "options", "why"),
    [
        (LEAST - 1, {}, f"{LEAST - 1} complete trials, of {LEAST} needed"),
        (LEAST, {"space": studies.SEARCH["space"]}, "1 varies, of 2 needed"),
        (LEAST, {}, "all trials have the same value"),
    ],
)
def test_why_there_are_no_importances_is_told_on_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
    options: dict[str, Any],
    why: str,
) -> None:
    planned = completed(search(tmp_path, count, **options), lambda _: [1.0])
    assert importances(planned).empty
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_a_sweep_leaves_both_also_where_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tiny.results(tmp_path / "results"))
    which = studies.study(tmp_path, seeds=[0])
    planned = studies.run(which, store)

    def interrupted(*_: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("flowbench.sweep.record.LEAST", 2)
    monkeypatch.setattr(parent, "_run", interrupted)
    with pytest.raises(Interrupted):
        sweep(which, store)
    run = tables.study_parent(store, "which/quick")
    assert run.info.status == "KILLED"
    found = tables.search(store, run)
    assert found["trials"]["state"].tolist() == ["COMPLETE"] * 2
    values = [attempt.values[0] for attempt in planned.last_attempts()]
    assert found["trials"]["val/loss"].tolist() == [str(value) for value in values]
    assert "importances" not in found  # one seed, so that one parameter varies
    assert tables.objectives(run) == {"val/loss": "minimize"}
    runs, _ = tables.read(store, tables.children(store, run.info.run_id))
    assert dict(zip(runs["model.transform"], runs["trial"], strict=True)) == {
        "affine": 0,
        "additive": 1,
    }
    assert set(runs["workers"]) == {1}


def test_studies_that_left_no_trials_have_none(tmp_path: Path) -> None:
    store = Store(tiny.results(tmp_path / "results"))
    tags = {"flowbench.role": "study", "flowbench.study": "old"}
    run = store.get(store.start("old", "old", tags))
    assert tables.search(store, run) == {}
    assert tables.objectives(run) == {}
    store.text(run.info.run_id, "trials.csv", "trial,optim.lr\n0,0.10\n")
    assert tables.search(store, run)["trials"].to_dict("list") == {
        "trial": ["0"],
        "optim.lr": ["0.10"],
    }
