import pandas as pd
import pytest

from flowbench.report.spikes import without_spikes


@pytest.fixture
def history() -> pd.DataFrame:
    losses = [-1.0, -2.0, -3.0, -1.5, -2.5, -3.5]
    rows = {"transform": "affine", "seed": [0, 0, 0, 1, 1, 1], "epoch": [1, 2, 3] * 2}
    return pd.DataFrame({**rows, "val/loss": losses})


def test_a_far_off_value_is_blanked_and_told(history: pd.DataFrame) -> None:
    history.loc[3, "val/loss"] = 6.4e8
    drawn, told = without_spikes(history, ["val/loss"])
    assert drawn["val/loss"].isna().tolist() == [False, False, False, True, False, False]
    assert told == "Off the scale and not drawn: 6.4e+08 (val/loss, affine seed 1, epoch 1)."
    assert history.loc[3, "val/loss"] == 6.4e8


def test_ordinary_values_are_all_drawn(history: pd.DataFrame) -> None:
    drawn, told = without_spikes(history, ["val/loss"])
    pd.testing.assert_frame_equal(drawn, history)
    assert told == ""
