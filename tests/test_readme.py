"""The tasks of the README, done as it says: its files are written, and its commands are run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowbench.config import Data
from flowbench.data import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def task(name: str) -> dict[str, str]:
    """The blocks of a task by their language: the one that begins with these words in bold."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Tasks\n")[2]
    text = section.partition(f"**{name}")[2].partition("\n**")[0].partition("\n## ")[0]
    return dict(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))


def do(commands: str, directory: Path, **environment: str) -> str:
    """Run commands in a directory as a shell does that stops at the first failure."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=directory,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which two transforms were compared on images of two classes."""
    directory = tmp_path_factory.mktemp("tasks")
    digits = load(Data("mnist-5k")).train
    for number, (image, label) in enumerate(zip(digits.pixels[:400], digits.labels, strict=False)):
        place = directory / "my-images" / ("low" if label < 5 else "high")
        place.mkdir(parents=True, exist_ok=True)
        grey = np.repeat(image.permute(1, 2, 0).numpy(), 3, axis=2)
        Image.fromarray(grey).save(place / f"{number}.png")
    blocks = task("Compare two transforms on your own images")
    (directory / "mine.yaml").write_text(blocks["yaml"])
    said = do(blocks["sh"], directory)
    assert said.count("mine/quick") >= 4
    return directory


def test_two_transforms_are_compared_on_ones_own_images(compared: Path) -> None:
    report = (compared / "results/mine/quick/report.md").read_text()
    assert "has the lowest loss" in report
    assert "4 recorded: 4 finished." in report


def test_a_trained_flow_is_used(compared: Path) -> None:
    said = do(task("Use a trained flow")["sh"], compared)
    assert "models:/mine-quick@best" in said
    with Image.open(compared / "sevens.png") as picture:
        assert picture.size[0] > 28


def test_the_clusters_commands_are_those_that_exist(compared: Path) -> None:
    """sbatch is not here: what it would start is run by the tests of clusters."""
    commands = task("Sweep on a cluster")["sh"]
    assert "sbatch --array=0-7 sweeps/slurm.sh bins full" in commands
    assert (ROOT / "sweeps/slurm.sh").exists()
    known = do("flowbench submit --help", compared)
    for option in re.findall(r"flowbench submit (.*)", commands)[0].split():
        assert not option.startswith("--") or option in known
    do("flowbench submit mine.yaml --jobs 2 --cluster local", compared)


def test_a_transform_is_added(tmp_path: Path) -> None:
    for name in ("flowbench", "tests", "sweeps"):
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.so"),
        )  # fmt: skip
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    blocks = task("Add a transform")
    file = blocks["python"].splitlines()[0].removeprefix("# ")
    (tmp_path / file).write_text(blocks["python"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table, bounds = '"kink": ("kink", Kink),', '"kink": (-2.0, 2.0),'
    assert table in readme
    assert bounds in readme
    _insert(
        tmp_path / "flowbench/transforms/__init__.py",
        {
            '    "loft":': f'    {table}\n    "loft":',
            "\n\n__all__": "\nfrom flowbench.transforms.kink import Kink\n\n__all__",
        },
    )
    _insert(
        tmp_path / "tests/test_transforms.py",
        {
            "NAMES = [\n": 'NAMES = [\n    "kink",\n',
            "documented = {\n": f"documented = {{\n        {bounds}\n",
        },
    )
    commands = blocks["sh"].replace(".venv/bin/python", sys.executable)
    small = "--trainer.limit_train_batches 4 --evaluate.samples 0 --evaluate.samples_every 0"
    commands = commands.rstrip() + f" {small} --evaluate.bayes 0 --evaluate.draws 1\n"
    commands = commands.replace("flowbench train", f"{sys.executable} -m flowbench train")
    said = do(commands, tmp_path, PYTHONPATH=str(tmp_path))
    assert re.search(r"\d\d+ passed", said)
    assert "test/bpd" in said


def _insert(file: Path, changes: dict[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
