"""What the terminal shows of runs and of the machine."""

import math
from pathlib import Path

import pytest
import tiny

from flowbench import inspection
from flowbench.__main__ import main
from flowbench.errors import UsageError
from flowbench.experiment import run
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results")
    for seed in (0, 1):
        run(tiny.experiment(seed=seed, model__transform="rqs-4"), Store(directory))
    return directory


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 2.0, 1.0, 1.0], "█▅▁▁"),
        ([1.0], "▁"),
        ([1.0, math.nan, 2.0, math.inf], "▁×█×"),
        ([math.nan], "×"),
    ],
)
def test_curves_are_as_high_as_their_values(values: list[float], expected: str) -> None:
    assert inspection.curve(values) == expected


def test_a_long_curve_keeps_its_ends() -> None:
    drawn = inspection.curve([float(-n) for n in range(1000)])
    assert len(drawn) == inspection.WIDTH
    assert (drawn[0], drawn[-1]) == ("█", "▁")


def test_runs_are_listed_newest_first(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", f"--results={results}"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "study", "transform", "seed"]
    assert [row.split()[3] for row in rows] == ["1", "0"]
    assert all("rqs-4" in row and "finished" in row for row in rows)
    assert main(["runs", "--count=1", f"--results={results}"]) == 0
    assert "1 older: --count 2 shows them" in capsys.readouterr().out


def test_no_runs_say_how_to_make_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", f"--results={tmp_path}"]) == 0
    assert "flowbench train" in capsys.readouterr().out


def test_a_run_is_shown_with_what_makes_it_unusual(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(results)
    newest = store.search("")[0]
    assert main(["show", newest.info.run_id, f"--results={results}"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()}
    assert lines["model.transform"] == ["rqs-4"]
    assert lines["seed"] == ["1"]
    assert "data.noise" not in lines
    assert float(lines["test/bpd"][0]) == pytest.approx(newest.data.metrics["test/bpd"], rel=1e-3)
    assert "in 2 epochs" in shown
    assert Path(lines["checkpoint"][0]).exists()


def test_a_missing_run_is_named(results: Path) -> None:
    with pytest.raises(UsageError, match="no run 'nothing'"):
        inspection.run(Store(results), "nothing")


def test_the_doctor_names_what_is_here_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("flowbench.kernels.build.library", lambda _: None)
    monkeypatch.setitem(inspection.PACKAGES, "no-such-package", "for nothing")
    found = {name: (there, words) for name, there, words in inspection.doctor(tmp_path, tmp_path)}
    assert found["torch"][0]
    assert found["no-such-package"] == (False, "for nothing")
    assert found["kernel rqs"][0] is False
    assert "C compiler" in found["kernel rqs"][1]
    assert found["GPU"][0] is False
    assert found["store"] == (True, f"0 runs in sqlite:///{tmp_path / 'mlflow.db'}")
    assert found["data mnist"] == (False, f"downloaded to {tmp_path} at the first use")


def test_the_doctor_goes_on_where_the_store_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    found = {name: there for name, there, _ in inspection.doctor(tmp_path / "file", tmp_path)}
    assert found["store"] is False
    assert "pretrained flows" in found
