"""The wheel, installed where no checkout is: studies, pretrained flows and kernels come with it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with flowbench alone; everything else comes from this environment."""
    built, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source")  # building writes there, from several processes
    for name in ("flowbench", "sweeps"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(built), str(source)]
    subprocess.run(wheel, check=True)
    made = next(built.glob("flowbench-*.whl"))
    assert zipfile.ZipFile(made).testzip() is None
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(made)], check=True)
    return target


def python(
    installed: Path, empty: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(installed), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def flowbench(installed: Path, empty: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(installed, empty, "-m", "flowbench", *arguments)


def test_it_is_the_wheels_package_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import flowbench; print(flowbench.__file__)"
    done = python(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))


def test_a_shipped_study_is_found_by_its_name(installed: Path, tmp_path: Path) -> None:
    done = flowbench(installed, tmp_path, "sweep", "compare-affine-rqs", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "6 runs" in done.stdout
    unknown = flowbench(installed, tmp_path, "sweep", "compare", "--dry-run")
    assert unknown.returncode == 2
    assert "with flowbench come bins, blocks" in unknown.stderr


def test_a_pretrained_flow_draws_digits(installed: Path, tmp_path: Path) -> None:
    done = flowbench(installed, tmp_path, "sample", "mnist-rqs-8", "--rows", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_kernels_are_built_from_the_sources_in_it(installed: Path, tmp_path: Path) -> None:
    code = (
        "import torch; from flowbench import Flow; "
        "print(Flow((1, 28, 28), transform='rqs-8', blocks=1, layers=1, width=32).kernels())"
    )
    done = python(installed, tmp_path, "-c", code, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() in (["layer", "rqs"], ["none"])  # none: no compiler here
