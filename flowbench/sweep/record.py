"""A study's trials recorded in its parent run, so that a report needs no Optuna."""

import datetime
import json
from typing import Any

import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from flowbench.space import parts
from flowbench.sweep.planned import ERROR, INDEX, RETRY_OF, PlannedTrials, has_failed, params_of
from flowbench.terminal import say
from flowbench.tracking.store import Store
from flowbench.tracking.tables import IMPORTANCES, OBJECTIVES, TRIALS

LEAST = 8
"""Complete trials that a regression on their parameters needs."""
MOST = 16
"""Values of one parameter above which fANOVA, whose time grows with their powers, takes minutes."""


def record(planned: PlannedTrials, store: Store, parent: str) -> None:
    """Write ``trials.csv`` and, where it can be computed, ``importances.csv`` as artifacts.

    Args:
        planned: The planned trials.
        store: Where the study's runs are recorded.
        parent: Id of its parent run.
    """
    store.tag(parent, {OBJECTIVES: json.dumps(planned.study.objectives)})
    store.text(parent, TRIALS, trials(planned).to_csv(index=False))
    found = importances(planned)
    if len(found):
        store.text(parent, IMPORTANCES, found.to_csv(index=False))


def trials(planned: PlannedTrials) -> pd.DataFrame:
    """Make a row per attempt at a planned trial, in the order in which they were queued.

    Returns:
        Columns ``trial``, ``place`` (index of the planned trial), ``state`` as in Optuna,
        ``retry_of``, ``started`` (UTC),
        ``duration`` in seconds; every parameter by its dotted key, coupled ones apart; the value
        of every objective, for a pruned trial the last one before it was stopped; ``error``, where
        the planned trial ended without a result.
    """
    objectives = list(planned.study.objectives)
    parameters = [part for key in planned.study.space for part in parts(key)]
    parameters += ["seed"] if planned.study.points else []
    head = ["trial", "place", "state", "retry_of", "started", "duration"]
    rows = []
    for attempt in planned.all_attempts():
        own = _head(attempt) | _parameters(attempt)
        own |= dict(zip(objectives, attempt.values or [], strict=False))
        if has_failed(attempt):
            own["error"] = attempt.user_attrs.get(ERROR, "its processes died")
        rows.append(own)
    columns = [*head, *parameters, *objectives, "error"]
    return pd.DataFrame(
        rows, columns=columns, dtype=object
    )  # else missing values would turn integers into floats


def _head(attempt: FrozenTrial) -> dict[str, Any]:
    started, taken = attempt.datetime_start, attempt.duration
    utc = started.astimezone(datetime.UTC).replace(tzinfo=None) if started else None
    return {
        "trial": attempt.number,
        "place": attempt.user_attrs[INDEX],
        "state": attempt.state.name,
        "retry_of": attempt.user_attrs.get(RETRY_OF),
        "started": utc.isoformat(timespec="seconds") if utc else None,
        "duration": round(taken.total_seconds(), 3) if taken else None,
    }


def _parameters(attempt: FrozenTrial) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in params_of(attempt).items():
        coupled = parts(key)
        values |= zip(coupled, json.loads(value) if len(coupled) > 1 else [value], strict=True)
    return values


def _values(of: BaseDistribution) -> int:
    """Count the values of a list; 1 for a range, which fANOVA cuts into few parts."""
    return len(of.choices) if isinstance(of, CategoricalDistribution) else 1


def importances(planned: PlannedTrials) -> pd.DataFrame:
    """Compute the share of each objective's variance that each parameter explains, by fANOVA.

    The seed of a grid is a parameter like the others: its share measures chance. The shares sum to
    1 with the effects of parameters together. Where they cannot be computed, one line says why.

    Returns:
        Rows of ``objective parameter importance``, the greatest importance of an objective first.

    References:
        Hutter et al., *An Efficient Approach for Assessing Hyperparameter Importance* (2014),
        https://proceedings.mlr.press/v32/hutter14.html
    """
    columns = ["objective", "parameter", "importance"]
    complete = [t for t in planned.last_attempts() if t.state == TrialState.COMPLETE]
    if len(complete) < LEAST:
        say(f"no importances of parameters: {len(complete)} complete trials, of {LEAST} needed")
        return pd.DataFrame(columns=columns)
    if many := [key for key, values in complete[0].distributions.items() if _values(values) > MOST]:
        say(f"no importances of parameters: {many[0]} has over {MOST} values, too many for fANOVA")
        return pd.DataFrame(columns=columns)
    varied = [key for key, values in complete[0].distributions.items() if not values.single()]
    if len(varied) < 2:
        say(f"no importances of parameters: {len(varied)} varies, of 2 needed")
        return pd.DataFrame(columns=columns)
    rows: list[tuple[str, str, float]] = []
    for at, objective in enumerate(planned.study.objectives):

        def value(trial: FrozenTrial, at: int = at) -> float:
            return trial.values[at]

        evaluator = FanovaImportanceEvaluator(seed=0)
        try:
            found = evaluator.evaluate(planned.trials, varied, target=value)
        except RuntimeError:  # the forest found no variance
            say(f"no importances of parameters for {objective}: all trials have the same value")
            continue
        shares = sorted(found.items(), key=lambda share: -share[1])
        rows += [(objective, key, float(share)) for key, share in shares]
    return pd.DataFrame(rows, columns=columns)
