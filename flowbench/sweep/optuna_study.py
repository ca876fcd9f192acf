"""A study in Optuna's storage, and its parent run in the store: created once, then found."""

import os
from typing import Any

import optuna
from optuna.study import Study, StudyDirection

from flowbench.errors import UsageError
from flowbench.study import StudyFile
from flowbench.sweep.samplers import pruner, sampler
from flowbench.sweep.storage import Storage
from flowbench.tracking.store import PARENT, Store

DEFINITION, PARENT_RUN = "definition", "parent"


def open_study(file: StudyFile, storage: Storage, store: Store, new_version: bool) -> Study:
    """Find the newest version of a study, or create the first, and its parent run.

    Commands that start at the same time wait for one another here, and find what the first created.
    The run's id is an attribute of Optuna's study, so that both stay together.

    Args:
        file: The study file.
        storage: Optuna's storage.
        store: The store of the runs.
        new_version: Start a new version, ``name@2`` and so on, and keep the earlier ones.

    Raises:
        UsageError: The file has changed, or the store lacks the study's run.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storage.locked():
        with storage.errors():
            known = optuna.get_all_study_names(storage.backend)
            version = max((_version(name, file.name) for name in known), default=0)
            version += new_version or version == 0
            name = file.name if version == 1 else f"{file.name}@{version}"
            study = optuna.create_study(
                study_name=name,
                storage=storage.backend,
                directions=[StudyDirection[name.upper()] for name in file.objectives.values()],
                load_if_exists=True,
            )
            if DEFINITION not in study.user_attrs:
                study.set_user_attr(DEFINITION, file.definition())
        check_same(file, study)
        if PARENT_RUN not in study.user_attrs:
            study.set_user_attr(PARENT_RUN, _parent(file, name, store))
        try:
            store.restore(study.user_attrs[PARENT_RUN])
        except UsageError as error:
            raise UsageError(
                f"study {name} in {storage.place} has its runs in another store ({error}); "
                "move that away, or start a new version with --new-version"
            ) from error
    return study


def load_study(file: StudyFile, storage: Storage, name: str) -> Study:
    """Open an existing study to run its trials with its sampler and pruner.

    Raises:
        UsageError: The file has changed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=name, storage=storage.backend, pruner=pruner(file))
    study.sampler = sampler(file, len(study.get_trials(deepcopy=False)))
    check_same(file, study)
    return study


def check_same(file: StudyFile, study: Study) -> None:
    """Check that a study's file has not changed since the study began.

    Raises:
        UsageError: It has; the message names the changes.
    """
    was, now = study.user_attrs[DEFINITION], file.definition()
    changes = [
        f"{key}: was {_value(was, key)}, is {_value(now, key)}"
        for key in [*was, *(key for key in now if key not in was)]
        if was.get(key) != now.get(key) or (key in was) != (key in now)
    ]
    if not changes and _order(was) != _order(now):  # the order numbers the points and the values
        changes = [f"order: was {', '.join(_order(was))}, is {', '.join(_order(now))}"]
    if changes:
        raise UsageError(
            f"{file.path} has changed since study {study.study_name} began ({'; '.join(changes)}): "
            "change it back, or start a new version with --new-version"
        )


def _order(definition: dict[str, Any]) -> list[str]:
    return [key for key in definition if key.startswith(("space.", "objectives."))]


def _value(definition: dict[str, Any], key: str) -> str:
    return repr(definition[key]) if key in definition else "absent"


def _version(name: str, wanted: str) -> int:
    """Read the version from the name of a study; 0 for another study."""
    base, _, number = name.partition("@")
    if base != wanted:
        return 0
    return int(number) if number.isdecimal() else 1


def _parent(file: StudyFile, name: str, store: Store) -> str:
    """Find the parent run of this study, for instance after its journal was lost, or create one."""
    digest = file.digest()
    for run in store.search(f"tags.`flowbench.study` = '{file.name}'"):
        tags = run.data.tags
        same = (tags.get("optuna.study", file.name), tags["flowbench.digest"]) == (name, digest)
        if same and PARENT not in tags:
            return str(run.info.run_id)
    tags = {
        "flowbench.role": "study",
        "flowbench.study": file.name,
        "flowbench.scale": file.scale,
        "flowbench.digest": digest,
        "flowbench.question": file.question,
        "flowbench.expected": file.expected,
        "flowbench.command": f"flowbench sweep {file.path} --scale {file.scale}",
        "optuna.study": name,
    }
    parent = store.start(file.name, name, tags)
    store.client.log_artifact(parent, os.fspath(file.path))
    return parent
