"""The command line: what it needs, what it tells, and how it ends."""

import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny
import torch
import yaml
from PIL import Image
from plain_flow import wake

from flowbench.__main__ import COMMANDS, main
from flowbench.evaluation.sampling import Sampling, draw_classes
from flowbench.experiment import run
from flowbench.module import FlowModule, build_flow
from flowbench.parsing import build
from flowbench.study import read
from flowbench.tracking.store import Store

pytestmark = tiny.LIBRARIES

IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tiny.results(tmp_path / "results")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Results with one finished run, and its id."""
    results = tiny.results(tmp_path_factory.mktemp("trained"))
    assert main(["train", *tiny.arguments(results)]) == 0
    (run_id,) = tiny.runs(Store(results))
    return results, run_id


def told(
    capsys: pytest.CaptureFixture[str], *arguments: object, results: Path | None = None
) -> str:
    """The one line of an error; beside it nothing is shown, and nothing is recorded."""
    before = tiny.runs(Store(results)) if results else {}
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr().err.splitlines()
    (line,) = [line for line in shown if "loading" not in line]
    assert line.startswith("flowbench: error: ")
    assert (tiny.runs(Store(results)) if results else {}) == before
    return line.removeprefix("flowbench: error: ")


# Help


def python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from flowbench.__main__ import main; main(['--help']); print(*sys.modules)"
    modules = set(python(code).splitlines()[-1].split())
    assert modules.isdisjoint({"torch", "numpy", "lightning", "mlflow", "jsonargparse", "yaml"})


@pytest.mark.slow
def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "flowbench", "--help"], check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main([command, "--help"])
    except SystemExit as left:  # argparse's way
        status = left.code
    assert status == 0
    assert f"usage: flowbench {command}" in capsys.readouterr().out


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in shown


def test_the_short_help_of_train_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 30
    assert any(line.startswith("  --model.transform ") and "[rqs-8]" in line for line in lines)
    assert "--help-all" in lines[-1]


def test_the_whole_help_of_train_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help-all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option, words in {
        "--model.transform": "Elementwise transform: additive, affine, softaffine (clipped)",
        "--data.noise_std": "Standard deviation of the Gaussian noise",
        "--optim.ema": "Decay of a moving average of the weights",
        "--evaluate.draws": "Passes over the test set",
        "--trainer": "Any option of Lightning's Trainer",
        "--resume": "continue this stopped run",
    }.items():
        assert option in shown
        assert words in shown


# What works


def test_train_evaluate_and_sample(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, run_id = trained
    assert main(["evaluate", run_id, "--results", str(results), "--draws", "1"]) == 0
    assert "test/bpd 8." in capsys.readouterr().out
    drawn = tmp_path / "drawn.png"
    checkpoint = Store(results).checkpoint(run_id)
    options = ["--rows", "1", "--out", str(drawn), "--results", str(results)]
    assert main(["sample", str(checkpoint), *options]) == 0
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_a_recorded_configuration_trains_the_same_again(
    trained: tuple[Path, str], tmp_path: Path, results: Path
) -> None:
    store = Store(trained[0])
    config = store.client.download_artifacts(trained[1], "config.yaml", str(tmp_path))
    assert main(["train", "--config", config, "--results", str(results)]) == 0
    (again,) = tiny.runs(Store(results))
    assert tiny.same(tiny.weights(store, trained[1]), tiny.weights(Store(results), again))


def test_a_dry_run_tells_what_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweeps = Path(__file__).parents[1] / "sweeps"
    results = tmp_path / "results"
    dry = ["--dry-run", "--results", str(results)]
    assert main(["sweep", str(sweeps / "compare-affine-rqs.yaml"), *dry]) == 0
    shown = capsys.readouterr()
    points, time, config = shown.out.strip().split("\n\n")
    planned = read(sweeps / "compare-affine-rqs.yaml").points
    assert points.splitlines()[0].startswith("model.transform, ")
    assert "affine" in points.splitlines()[0]
    assert len(points.splitlines()) == len(planned)
    assert time.startswith(f"time: {len(planned)} runs, about")
    assert build(yaml.safe_load(config)) == planned[0].experiment
    assert f"study compare-affine-rqs/quick: {len(planned)} runs" in shown.err
    assert main(["sweep", str(sweeps / "search.yaml"), "--trials", "7", *dry]) == 0
    space = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert space[0].startswith("7 trials by ")
    assert any(line.startswith("model.transform: one of affine, ") for line in space)
    assert any(line.endswith(", by its logarithm") for line in space)
    assert not results.exists()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--budget", "soon"], "'soon' is not valid: a time such as 2h or 1h30min"),
        (["--budget", "0h"], "'0h' is not valid: a time"),
        (["--price", "-1"], "'-1' is not valid: a number above 0"),
        (["--price", "2"], "--price is not valid without --dry-run"),
    ],
)
def test_wrong_budgets_and_prices_are_told(
    given: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "bins", *given, f"--results={tmp_path}"]) == 2
    assert complaint in capsys.readouterr().err


def test_what_a_study_costs_follows_from_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dry = ["sweep", "bins", "--dry-run", "--price", "2", f"--results={tmp_path}"]
    assert main(dry) == 0
    assert "cost: unknown until a trial has run" in capsys.readouterr().out
    monkeypatch.setattr("flowbench.sweep.preview._of_a_trial", lambda *_: (1800.0, 3))
    assert main(dry) == 0
    shown = capsys.readouterr().out
    assert "time: about 9 h 00 min of one worker for 18 trials" in shown
    assert "cost: 9 hours of a worker, 18 at 2 an hour" in shown
    assert re.search(r"compute: \S+ training FLOPs, \S+ at most in a trial; a device that", shown)


# Samples


def written(path: Path, **options: Any) -> str:
    """The checkpoint of a flow that was never trained, the identity."""
    module = FlowModule(tiny.experiment(**options), (1, 28, 28), 10)
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, path)
    return str(path)


def sampled(tmp_path: Path, *arguments: object, **options: Any) -> Any:
    """The array that ``sample`` writes."""
    out = tmp_path / "drawn.npy"
    checkpoint = written(tmp_path / "c.ckpt", **options)
    given = [f"--out={out}", f"--results={tiny.results(tmp_path / 'results')}"]
    assert main(["sample", checkpoint, *given, *map(str, arguments)]) == 0
    return np.load(out)


def test_sample_draws_rows_of_the_classes_that_are_asked_for(tmp_path: Path) -> None:
    whole = sampled(tmp_path, "--rows", 2)
    assert whole.shape == (20, 28, 28, 1)
    assert whole.dtype == np.uint8
    some = sampled(tmp_path, "--rows", 2, "--class", "0,3,7", "--batch", 4)
    assert np.array_equal(some, whole[:6])  # the identity maps noise by noise, whatever the class
    assert not np.array_equal(sampled(tmp_path, "--rows", 2, "--seed", 1), whole)


def test_sample_draws_what_the_classes_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = wake(build_flow(tiny.experiment(), (1, 28, 28), 10), 0.1)
    monkeypatch.setattr("flowbench.module.build_flow", lambda *_: flow)
    expected = draw_classes(flow, 10, 2, Sampling(seed=4))
    assert np.array_equal(sampled(tmp_path, "--rows=2", "--seed=4"), np.concatenate(expected))


def test_sample_writes_a_file_for_each_image(tmp_path: Path, results: Path) -> None:
    checkpoint = written(tmp_path / "c.ckpt")
    directory = f"{tmp_path}/new/each/"
    options = ["--rows", "2", "--class", "3,7", "--out", directory, "--results", str(results)]
    assert main(["sample", checkpoint, *options]) == 0
    names = sorted(path.name for path in Path(directory).iterdir())
    assert names == [f"class{label}-{row:04d}.png" for label in (3, 7) for row in (0, 1)]


def test_sample_shows_how_noise_becomes_an_image(tmp_path: Path) -> None:
    stages = sampled(tmp_path, "--trajectory", "--class", "1,2", model__blocks=3)
    assert stages.shape == (4 * 2, 28, 28, 1)
    assert np.array_equal(stages[:2], sampled(tmp_path, "--rows", 1, "--class", "1,2"))


def test_sample_takes_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = sampled(tmp_path)
    options = ["--guidance=2", "--guidance-schedule=linear", "--attention-temperature=1.5"]
    options += ["--segment=whole", "--tolerance=1e-3", "--iterations=3", "--device=cpu"]
    assert np.array_equal(sampled(tmp_path, *options), plain)  # all the same to the identity
    assert "trained without optim.label_dropout" in capsys.readouterr().err
    assert np.array_equal(sampled(tmp_path, *options, optim__label_dropout=0.1), plain)
    assert "label_dropout" not in capsys.readouterr().err
    cooled = sampled(tmp_path, "--temperature=0.25", "--truncation=2")
    assert 0 < cooled.std() < plain.std() / 2


def test_sample_denoises_what_gaussian_noise_has_trained(tmp_path: Path) -> None:
    options = {"data__noise": "gaussian", "data__noise_std": 0.5}
    plain = sampled(tmp_path, "--temperature=0.3", **options)
    denoised = sampled(tmp_path, "--temperature=0.3", "--denoise", **options)
    # The identity's score is -x: what is left is (1 - 0.5²) x.
    expected = (plain.astype(float) - 127.5) * 0.75 + 127.5
    inside = (plain > 0) & (plain < 255)
    assert np.abs(denoised - expected)[inside].max() <= 1


WRONG_SAMPLES: dict[str, tuple[list[object], dict[str, Any]]] = {
    "argument --class: 'a,b' is not valid: classes such as 0,3,7": (["--class=a,b"], {}),
    "--class 10 is not valid: 0 to 9": (["--class=3,10"], {}),
    "--class 0 is not valid: none, for the flow has none": (
        ["--class=0"],
        {"model__conditional": False},
    ),
    "argument --temperature: 'x' is not valid: a number": (["--temperature=x"], {}),
    "temperature = -1.0 is not valid: a number of at least 0": (["--temperature=-1"], {}),
    "truncation = 0.0 is not valid: a number above 0": (["--truncation=0"], {}),
    "guidance = -1.0 is not valid: a number of at least 0": (["--guidance=-1"], {}),
    "argument --guidance-schedule: invalid choice: 'x' (choose from": (
        ["--guidance-schedule=x"],
        {},
    ),
    "attention temperature = 0.0 is not valid: a number above 0": (
        ["--attention-temperature=0"],
        {},
    ),
    "--attention-temperature is that of guidance: give --guidance above 0 too": (
        ["--attention-temperature=2"],
        {},
    ),
    "guidance of a flow without classes needs an attention temperature other than 1": (
        ["--guidance=1"],
        {"model__conditional": False},
    ),
    "argument --segment: '0' is not valid: an integer of at least 1, or whole": (
        ["--segment=0"],
        {},
    ),
    "tolerance = -1.0 is not valid: a number of at least 0": (["--tolerance=-1"], {}),
    "argument --iterations: '0' is not valid: an integer of at least 1": (["--iterations=0"], {}),
    "argument --seed: '-1' is not valid: an integer of at least 0": (["--seed=-1"], {}),
    "argument --trajectory: not allowed with argument --rows": (["--rows=2", "--trajectory"], {}),
    "--denoise needs a flow of Gaussian noise: data.noise = uniform": (["--denoise"], {}),
    "--device nope is not valid": (["--device=nope"], {}),
    "--out x.jpg is not valid: a .png, a .npy, or a directory": (["--out=x.jpg"], {}),
}


@pytest.mark.parametrize("words", WRONG_SAMPLES)
def test_samples_that_are_not_to_be_had_are_told(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, options = WRONG_SAMPLES[words]
    checkpoint = written(tmp_path / "c.ckpt", **options)
    tiny.results(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert words in told(capsys, "sample", checkpoint, *arguments)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["c.ckpt"]


# Errors: one line, status 2


def test_a_traceback_is_shown_when_asked_for() -> None:
    with pytest.raises(ValueError, match="unknown command"):
        main(["--debug", "trian"])


WRONG: dict[str, list[object]] = {
    "unknown command 'trian': valid are train, evaluate, sample": ["trian"],
    "unknown option model.widht": ["train", "--model.widht=3"],
    "configuration file nowhere.yaml cannot be read": ["train", "--config", "nowhere.yaml"],
    "there is no study file nowhere.yaml": ["sweep", "nowhere.yaml"],
    "the following arguments are required: study": ["sweep"],
    "unrecognized arguments: --nope; see flowbench report": ["report", "x", "--nope"],
    "argument --rows: '0' is not valid: an integer of at least 1": ["sample", "x", "--rows=0"],
    "argument --draws: 'x' is not valid: an integer": ["evaluate", "x", "--draws=x"],
    "nothing is recorded in nowhere": ["ui", "--results=nowhere"],
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_command_is_told(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in told(capsys, *WRONG[words])


WRONG_RUNS: dict[str, dict[str, Any]] = {
    "unknown transform 'nope' in 'nope': valid are": {"model__transform": "nope"},
    "5000": {"model__transform": "rqs-5000"},
    "patch 5 does not divide images of 28x28": {"model__patch": 5},
    "model.heads = 3 is not valid: an integer that divides model.width = 16": {"model__heads": 3},
    "unknown key trainer.nope: valid are accelerator": {"trainer__nope": 1},
    "trainer.max_epochs = -1": {"trainer__max_epochs": -1},
    "data.batch = 0 is not valid": {"data__batch": 0},
}


@pytest.mark.parametrize("words", WRONG_RUNS)
def test_a_wrong_experiment_is_told(
    words: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in told(
        capsys, "train", *tiny.arguments(results, **WRONG_RUNS[words]), results=results
    )


WRONG_FILES: dict[str, dict[str, bytes]] = {
    "train-images-idx3-ubyte: expected an IDX file": {"train-images-idx3": b""},
    "but it has 66": {"train-images-idx3": struct.pack(">4I", 2051, 100, 28, 28) + bytes(50)},
    "found 00 00 08 01": {"train-images-idx3": struct.pack(">4I", 2049, 100, 28, 28)},
    "expected a label for each of the 2 images": {
        "train-images-idx3": struct.pack(">4I", 2051, 2, 28, 28) + bytes(2 * 784),
        "train-labels-idx1": struct.pack(">2I", 2049, 1) + bytes(1),
    },
}


@pytest.mark.parametrize("words", WRONG_FILES)
def test_broken_digits_are_told(
    words: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in IDX:
        (raw / f"{name}-ubyte").write_bytes(WRONG_FILES[words].get(name, b""))
    options = tiny.arguments(results, data__name="mnist", data__root=tmp_path / "data")
    assert words in told(capsys, "train", *options, results=results)


def test_an_unreadable_image_is_named(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        Image.new("RGB", (28, 28)).save(tmp_path / f"{number}.png")
    (tmp_path / "7.png").write_bytes(b"no image")
    options = {"data__name": "folder", "data__root": tmp_path, "data__size": 28}
    assert "7.png" in told(capsys, "train", *tiny.arguments(results, **options), results=results)


@pytest.mark.parametrize("below", ["", "below"])
@pytest.mark.parametrize("command", ["train", "sweep", "report", "evaluate"])
def test_an_unwritable_results_directory_is_told(
    command: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / below
    sweeps = Path(__file__).parents[1] / "sweeps" / "compare-affine-rqs.yaml"
    named = {"train": [], "sweep": [sweeps], "report": ["x"], "evaluate": ["x"]}[command]
    capsys.readouterr()
    assert main([command, *map(str, named), f"--results={directory}"]) == 2
    assert f"results directory {directory} cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_store_that_stays_locked_is_told(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowbench.tracking.database.PATIENCE", 1.0)
    connection = sqlite3.connect(results / "mlflow.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert "mlflow.db cannot be used: database is locked" in told(
        capsys, "train", *tiny.arguments(results)
    )
    assert time.monotonic() - began < 40
    connection.execute("ROLLBACK")
    connection.close()
    assert tiny.runs(Store(results)) == {}


def test_an_unreachable_store_is_told(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be used: " in told(capsys, "train", *tiny.arguments(results))


def test_unknown_runs_and_studies_are_told(
    trained: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    results, run_id = trained
    assert "there is no run 'nope'" in told(capsys, "evaluate", "nope", "--results", results)
    assert "no run 'nope'" in told(capsys, "train", "--resume", "nope", "--results", results)
    assert "is finished" in told(capsys, "train", "--resume", run_id, "--results", results)
    more = told(capsys, "train", "--resume", run_id, "--seed=1", "--results", results)
    assert "give no others" in more
    assert "no study 'nope' is recorded" in told(capsys, "report", "nope", "--results", results)


def test_a_corrupt_checkpoint_is_told_and_the_run_stays_as_it_was(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        tiny.at(patch, "training", 1, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert main(["train", *tiny.arguments(results)]) == 130
    store = Store(results)
    ((run_id, status),) = tiny.runs(store).items()
    assert status == "KILLED"
    path = store.checkpoint(run_id)
    path.write_bytes(path.read_bytes()[:5000])
    line = told(capsys, "train", "--resume", run_id, "--results", results, results=results)
    assert "last.ckpt cannot be read: it is cut short" in line


def test_a_divergence_is_told_and_the_run_has_failed(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = FlowModule.training_step

    def diverges(self: FlowModule, batch: Any, batch_idx: int) -> Any:
        self.flow.blocks[0].network.proj_in.bias.data.fill_(torch.inf)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FlowModule, "training_step", diverges)
    assert "diverged at step 0 (epoch 1): the loss is nan, first in block 0 of 2" in told(
        capsys, "train", *tiny.arguments(results)
    )
    assert list(tiny.runs(Store(results)).values()) == ["FAILED"]


# Signals


def test_a_stopped_run_tells_the_command_that_goes_on(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        tiny.at(patch, "training", 1, 1, lambda: signal.raise_signal(signal.SIGTERM))
        assert main(["train", *tiny.arguments(results)]) == 130
    ((run_id, status),) = tiny.runs(Store(results)).items()
    assert status == "KILLED"
    line = capsys.readouterr().err.splitlines()[-1]
    command = f"flowbench train --resume {run_id} --results {results}"
    assert line.startswith(f"flowbench: run {run_id} stopped; kept: {results}")
    assert line.endswith(f"continue with: {command}")
    assert main(command.split()[1:]) == 0
    assert tiny.runs(Store(results)) == {run_id: "FINISHED"}


def test_a_signal_during_setup_stops_the_command(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = "flowbench.data.module.FlowData.prepare_data"
    monkeypatch.setattr(stop, lambda _: signal.raise_signal(signal.SIGTERM))
    assert main(["train", *tiny.arguments(results)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "flowbench: stopped"
    assert signal.getsignal(signal.SIGTERM) is before
    assert tiny.runs(Store(results)) == {}


class Command:
    """A command in a process of its own, its lines read as they come."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        words = [sys.executable, "-m", "flowbench", *map(str, arguments)]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.lines: list[str] = []

    def read_until(self, words: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if words in line:
                return
        raise AssertionError("\n".join(self.lines))

    def end(self) -> int:
        assert self.process.stdout
        with self.process.stdout:
            self.lines += [line.rstrip() for line in self.process.stdout]
        return self.process.wait(120)


@pytest.fixture
def endless(results: Path) -> list[str]:
    """Options of a run that only a signal ends."""
    return tiny.arguments(results, trainer__max_epochs=100000)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_process_and_keeps_its_run(
    number: int, endless: list[str], results: Path
) -> None:
    command = Command("train", *endless)
    command.read_until("epoch 2/")
    command.process.send_signal(number)
    assert command.end() == 130
    ((run_id, status),) = tiny.runs(Store(results)).items()
    assert status == "KILLED"
    assert f"continue with: flowbench train --resume {run_id}" in command.lines[-1]
    assert "Traceback" not in "\n".join(command.lines)
    assert Store(results).checkpoint(run_id).exists()


# Devices and servers


@pytest.mark.slow
def test_two_processes_make_one_run_that_can_be_stopped(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trainer__devices": 2, "trainer__strategy": "ddp"}
    options |= {"data__batch": 150, "trainer__max_epochs": 12}
    whole, stopped = (tiny.results(tmp_path / name) for name in ("whole", "stopped"))
    command = Command("train", *tiny.arguments(whole, **options))
    assert command.end() == 0, "\n".join(command.lines)
    assert sum("epoch 2/12" in line for line in command.lines) == 1
    ((run_id, status),) = tiny.runs(Store(whole)).items()
    assert status == "FINISHED"
    recorded = Store(whole).client.get_metric_history(run_id, "val/loss")
    assert [point.step for point in recorded] == list(range(1, 13))

    alone = {**options, "trainer__devices": 1, "trainer__strategy": "auto", "data__batch": 300}
    single = run(tiny.experiment(**alone), Store(whole)).run_id
    for measured in ("train/loss", "val/loss"):
        ours, theirs = (
            [point.value for point in Store(whole).client.get_metric_history(own, measured)]
            for own in (run_id, single)
        )
        assert ours == pytest.approx(theirs, rel=1e-3)

    command = Command("train", *tiny.arguments(stopped, **options))
    command.read_until("epoch 3/12")
    command.process.send_signal(signal.SIGTERM)
    assert command.end() == 130
    ((again, status),) = tiny.runs(Store(stopped)).items()
    assert status == "KILLED"
    assert Command("train", "--resume", again, f"--results={stopped}").end() == 0
    assert tiny.runs(Store(stopped)) == {again: "FINISHED"}
    assert tiny.same(tiny.weights(Store(stopped), again), tiny.weights(Store(whole), run_id))
    assert tiny.history(Store(stopped), again) == tiny.history(Store(whole), run_id)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def served(trained: tuple[Path, str], port: int) -> Iterator[Command]:
    command = Command("ui", f"--results={trained[0]}", f"--port={port}")
    yield command
    os.killpg(command.process.pid, signal.SIGTERM)
    command.end()


@pytest.mark.slow
def test_the_pages_are_served_here_by_one_worker(served: Command, port: int) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert answer.read() == b"OK"
            break
        except OSError:
            assert time.monotonic() < deadline, "no answer"
            assert served.process.poll() is None, served.end()
            time.sleep(0.5)
    processes = [psutil.Process(served.process.pid)]
    processes += processes[0].children(recursive=True)
    listening = {c.laddr for p in processes for c in p.net_connections() if c.status == "LISTEN"}
    assert listening == {("127.0.0.1", port)}
    assert len(processes) <= 3


def test_a_port_in_use_is_told(
    trained: tuple[Path, str], port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        line = told(capsys, "ui", f"--results={trained[0]}", f"--port={port}")
    assert f"127.0.0.1:{port}" in line


# Completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flowbench s", {"sample", "show", "submit", "sweep"}),
        ("flowbench sweep --st", {"--storage"}),
        ("flowbench sweep colo", {"colour"}),
        ("flowbench train --model.tr", {"--model.transform"}),
        ("flowbench sweep bins --scale quick --dr", {"--dry-run"}),
    ],
)
def test_a_shell_completes_a_line(line: str, expected: set[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "flowbench"], env=environment, check=True)
    words = (tmp_path / "words").read_text().split("\013")
    assert {word.strip() for word in words} == expected
