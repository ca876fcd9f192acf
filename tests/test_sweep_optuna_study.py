"""A study and its parent run are made once; a changed file is another study, if it is asked for."""

import threading
from pathlib import Path

import pytest
import studies
import tiny

from flowbench.errors import UsageError
from flowbench.study import StudyFile
from flowbench.sweep.optuna_study import PARENT_RUN, load_study, open_study
from flowbench.sweep.parent import journal
from flowbench.sweep.storage import Storage
from flowbench.tracking.store import Store
from flowbench.tracking.tables import study_parent

pytestmark = tiny.LIBRARIES


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tiny.results(tmp_path / "results"))


def opened(which: StudyFile, store: Store, new_version: bool = False) -> tuple[str, str]:
    """Open a study; give its name and its parent run."""
    found = open_study(which, Storage(journal(which, store.results)), store, new_version)
    return found.study_name, found.user_attrs[PARENT_RUN]


def test_a_study_is_found_again(store: Store, tmp_path: Path) -> None:
    which = studies.study(tmp_path)
    name, parent = opened(which, store)
    assert opened(which, store) == (name, parent)
    run = store.get(parent)
    assert (name, run.info.run_name) == ("which/quick", "which/quick")
    assert run.data.tags["flowbench.question"] == "Which?"
    assert [found.path for found in store.client.list_artifacts(parent)] == ["which.yaml"]


def test_commands_that_start_together_make_one_study(store: Store, tmp_path: Path) -> None:
    which = studies.study(tmp_path)
    together = threading.Barrier(3)
    found = []

    def start() -> None:
        own = Store(store.results)
        together.wait()
        found.append(opened(which, own))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(store.search("")) == 1


def test_a_changed_file_is_refused_with_what_has_changed(store: Store, tmp_path: Path) -> None:
    opened(studies.study(tmp_path), store)
    scales = {"quick": {"optim": {"lr": 0.5}, "trainer": {"precision": 16}}}
    changed = studies.study(tmp_path, scales=scales, seeds=[0, 1, 2])
    changes = (
        r"which.yaml has changed since study which/quick began \(.*optim.lr: was 0.002, is 0.5;.*"
        r"seeds: was \[0, 1\], is \[0, 1, 2\];.*trainer.precision: was absent, is 16.*\): "
        "change it back, or start a new version with --new-version"
    )
    with pytest.raises(UsageError, match=changes) as error:
        opened(changed, store)
    assert "width" not in str(error.value)
    with pytest.raises(UsageError, match="has changed"):
        load_study(changed, Storage(journal(changed, store.results)), "which/quick")
    assert len(store.search("")) == 1


def test_another_order_is_a_change(store: Store, tmp_path: Path) -> None:
    """Points are numbered in the order of the space, and values in that of the objectives."""
    space = {"model.transform": ["affine"], "model.blocks": [1, 2]}
    opened(studies.study(tmp_path, space=space), store)
    turned = studies.study(tmp_path, space=dict(reversed(space.items())))
    with pytest.raises(UsageError, match=r"order: was space.model.transform.*, is space.model.bl"):
        opened(turned, store)


def test_a_new_version_is_a_study_of_its_own(store: Store, tmp_path: Path) -> None:
    first = opened(studies.study(tmp_path), store)
    changed = studies.study(tmp_path, seeds=[7])
    second = opened(changed, store, new_version=True)
    assert (first[0], second[0]) == ("which/quick", "which/quick@2")
    assert first[1] != second[1]
    assert opened(changed, store) == second
    assert study_parent(store, "which/quick").info.run_id == second[1]
    with pytest.raises(UsageError, match="has changed since study which/quick@2 began"):
        opened(studies.study(tmp_path), store)
    assert (
        opened(changed, store, new_version=True)[0] == "which/quick@3"
    )  # the very same, once more


def test_the_number_of_trials_is_no_change(store: Store, tmp_path: Path) -> None:
    before = opened(studies.study(tmp_path, **studies.SEARCH), store)
    more = {**studies.SEARCH, "trials": 9}
    assert opened(studies.study(tmp_path, **more), store) == before


def test_the_runs_are_found_again_where_the_journal_is_lost(store: Store, tmp_path: Path) -> None:
    which = studies.study(tmp_path)
    before = opened(which, store)
    Path(journal(which, store.results)).unlink()
    assert opened(which, store) == before
    Path(journal(which, store.results)).unlink()
    assert opened(studies.study(tmp_path, seeds=[7]), store) != before


def test_trials_without_their_runs_are_told(store: Store, tmp_path: Path) -> None:
    which = studies.study(tmp_path)
    opened(which, store)
    other = Store(tiny.results(tmp_path / "other"))
    storage = Storage(journal(which, store.results))
    with pytest.raises(UsageError, match=r"has its runs in another store .*there is no run"):
        open_study(which, storage, other, new_version=False)
