"""What a trial's values are drawn from: everything in the space, and never the same twice."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import studies

from flowbench.sweep.samplers import as_params, pruner, sampler, suggest

SPACE: dict[str, Any] = {
    "model.transform": ["affine", "rqs-4"],
    "model.blocks, model.layers": [[1, 8], [2, 4], [8, 1]],
    "model.width": {"low": 16, "high": 64, "step": 16},
    "optim.weight_decay": {"low": 0.0, "high": 1.0, "step": 0.25},
    "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
}
SAMPLERS = ["random", "tpe", "nsga2"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_whole_space_is_drawn_from(tmp_path: Path, name: str) -> None:
    which = studies.study(tmp_path, space=SPACE, sampler=name, trials=60)
    trials = optuna.create_study(sampler=sampler(which, 0))
    drawn = []
    for _ in range(which.trials):
        trial = trials.ask()
        drawn.append(suggest(trial, which.space))
        which.experiment(drawn[-1], seed=0)
        trials.tell(trial, drawn[-1]["optim.lr"])
    assert {values["model.transform"] for values in drawn} == {"affine", "rqs-4"}
    coupled = {tuple(values["model.blocks, model.layers"]) for values in drawn}
    assert coupled == {(1, 8), (2, 4), (8, 1)}
    assert {values["model.width"] for values in drawn} == {16, 32, 48, 64}
    assert {values["optim.weight_decay"] for values in drawn} == {0, 0.25, 0.5, 0.75, 1}
    rates = [values["optim.lr"] for values in drawn]
    assert 1e-4 <= min(rates) < 1e-3 < max(rates) <= 1e-2


def test_queued_values_come_back_as_they_were(tmp_path: Path) -> None:
    which = studies.study(tmp_path, space=SPACE, sampler="random", trials=1)
    values = {
        "model.transform": "rqs-4",
        "model.blocks, model.layers": [2, 4],
        "model.width": 48,
        "optim.weight_decay": 0.25,
        "optim.lr": 3e-3,
    }
    trials = optuna.create_study()
    trials.enqueue_trial(as_params(values))
    assert suggest(trials.ask(), which.space) == values


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_start_repeats_the_draws_of_another(tmp_path: Path, name: str) -> None:
    which = studies.study(tmp_path, **{**studies.SEARCH, "sampler": name})
    drawn = set()
    for _ in range(5):
        trials = optuna.create_study(sampler=sampler(which, 0))
        for _ in range(4):
            drawn.add(suggest(trials.ask(), which.space)["optim.lr"])
    assert len(drawn) == 20


@pytest.mark.parametrize("name", ["none", "median", "hyperband"])
def test_every_pruner_can_be_asked(tmp_path: Path, name: str) -> None:
    which = studies.study(tmp_path, **studies.SEARCH, pruner=name)
    # Hyperband puts a trial in a bracket by its number and the study's name.
    trials = optuna.create_study(study_name="search", pruner=pruner(which))
    stopped = []
    for value in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0):
        trial = trials.ask()
        for epoch in range(1, 10):
            trial.report(value, epoch)
            if trial.should_prune():
                stopped.append((value, epoch))
                break
        trials.tell(trial, value)
    assert (name == "none") == (stopped == [])
    if name == "median":
        assert stopped == [(9.0, 1)]
