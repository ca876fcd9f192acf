"""The report's part on trials: the Pareto front, the state of each trial, the figures of both."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from reports import analysis, changed, tables

from flowbench.report import build
from flowbench.report.analysis import Quality
from flowbench.report.figures import FIGURES
from flowbench.report.figures.trials import census
from flowbench.report.files import Recorded, Study, complete, load
from flowbench.report.tables import front
from flowbench.report.text import label
from flowbench.schema import BLOCKS, SECONDS, TRANSFORM

OBJECTIVES = {"val/bpd": "minimize", "seconds_per_epoch": "minimize"}
STUDY = Study("search", "Which?", "This one.", "flowbench sweep", OBJECTIVES)
TIMES = [1.0, 2.0, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0]
BITS = [9.0, 8.5, 8.7, 4.0, 7.0, 3.9, 3.9, 4.5, 3.0]
FRONT = [0, 1, 3, 5, 8]
"""The trials of these values that no other beats in both."""
RATES = [0.001 * (place + 1) for place in range(9)]
PLOTS = {plot.name: plot for plot in FIGURES}


def table(rows: list[tuple[int, int, str, str, float | None, float | None]]) -> pd.DataFrame:
    """Trials of these numbers, places, states, errors and values, kept as text."""
    names = ["trial", "place", "state", "error", *OBJECTIVES]
    made = pd.DataFrame(rows, columns=names, dtype=object)
    made["optim.lr"] = [0.001 * (place + 1) for place in made["place"]]
    made[TRANSFORM] = np.resize(["affine", "rqs-4", "rqs-8"], len(made))
    head = {"retry_of": np.nan, "started": "2026-01-01T00:00:00", "duration": 1.5}
    made = made.assign(**head).replace("", np.nan)
    return made.astype(object).where(made.notna(), np.nan).map(str, na_action="ignore")


TRIALS = table(
    [(at, at, "COMPLETE", "", BITS[at], TIMES[at]) for at in range(8)]
    + [(8, 8, "FAIL", "", None, None)]  # was stopped
    + [(9, 9, "PRUNED", "", 1.0, 9.0)]
    + [(10, 10, "FAIL", "diverged", None, None)]
    + [(11, 11, "RUNNING", "", None, None)]
    + [(12, 8, "COMPLETE", "", BITS[8], TIMES[8])]
)
IMPORTANCES = pd.DataFrame(
    {
        "objective": ["val/bpd", "val/bpd", *["seconds_per_epoch"] * 2],
        "parameter": [TRANSFORM, "seed", "seed", TRANSFORM],
        "importance": ["0.75", "0.10", "0.25", "0.05"],
    }
)


def searched() -> Recorded:
    """Nine trials of one seed, and what else is known of them."""
    plain = tables()
    runs = plain.runs.assign(
        **{SECONDS: TIMES, "val/bpd": BITS, "seed": 0, "workers": 2, "optim.lr": RATES},
        trial=[*range(8), 12],
        **{BLOCKS: [1, 2, 3] * 3},
    )
    search = {"trials": TRIALS, "importances": IMPORTANCES}
    return complete(plain._replace(runs=runs, search=search))


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return searched()


@pytest.fixture(scope="module")
def report(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a whole report, which tests read and leave as it is."""
    out = tmp_path_factory.mktemp("results") / "search"
    build(STUDY, recorded, out)
    return out


# The front


def test_the_front_is_the_planted_one(recorded: Recorded) -> None:
    found = analysis(recorded, OBJECTIVES).front
    assert found[SECONDS].tolist() == TIMES
    assert np.flatnonzero(found["front"]).tolist() == FRONT
    assert found["trials"].tolist() == ["0", "1", "2", "3", "4", "5", "6", "7", "12"]


def test_more_is_better_where_the_study_says_so(recorded: Recorded) -> None:
    found = analysis(recorded, {"val/bpd": "maximize"}).front
    assert np.flatnonzero(found["front"]).tolist() == [0]


def test_the_aim_is_the_first_objective_other_than_a_time(recorded: Recorded) -> None:
    timed = {"images_per_second": "maximize", "fid_digits": "minimize", "val/loss": "minimize"}

    def aim(one: Recorded, objectives: dict[str, str]) -> tuple[str, int]:
        found = analysis(one, objectives).aim
        assert isinstance(found, Quality)
        return found.metric, found.sign

    assert aim(recorded, timed) == ("fid_digits", 1)
    assert aim(recorded, {"recall_digits": "maximize"}) == ("recall_digits", -1)
    assert aim(recorded, {"val/loss": "minimize"}) == ("val/bpd", 1)
    assert aim(changed(recorded, **{"val/bpd": np.nan}), {}) == ("val/loss", 1)


def test_seeds_of_a_configuration_are_averaged() -> None:
    runs = {"seed": [0, 1, 2] * 3, "trial": range(9), SECONDS: TIMES, "val/bpd": BITS}
    found = analysis(changed(tables(), **runs), OBJECTIVES).front
    assert found["runs"].tolist() == [3, 3, 3]
    assert found["trials"].tolist() == ["0, 1, 2", "3, 4, 5", "6, 7, 8"]
    assert found["val/bpd"].tolist() == pytest.approx(np.reshape(BITS, (3, 3)).mean(axis=1))


def test_settings_tell_runs_apart() -> None:
    plain = tables()
    assert analysis(plain).front["trials"].tolist() == [""] * 3
    blocks = plain.runs[BLOCKS].where(plain.runs["seed"] > 0, 8)
    found = analysis(changed(plain, **{BLOCKS: blocks}), OBJECTIVES).front
    assert sorted(found["runs"]) == [1, 1, 1, 2, 2, 2]


def test_unfinished_runs_are_on_no_front(recorded: Recorded) -> None:
    status = ["failed" if at == 3 else "finished" for at in range(9)]
    found = analysis(changed(recorded, status=status), OBJECTIVES).front
    assert found.loc[found["front"], "trials"].tolist() == ["0", "1", "4", "5", "12"]


def test_the_table_has_the_settings_and_values_of_the_front(recorded: Recorded) -> None:
    found = front(analysis(recorded, OBJECTIVES))
    assert found.header == [
        *("transform", "blocks", "learning rate", "val bits/dim", "s/epoch", "runs", "trials")
    ]
    runs = recorded.runs
    assert found.rows == [
        [
            *(label(runs[TRANSFORM][row]), str(runs[BLOCKS][row]), f"{RATES[row]:.4g}"),
            *(f"{BITS[row]:.3f}", f"{TIMES[row]:.2f}", "1", str(at)),
        ]
        for row, at in zip(FRONT, [0, 1, 3, 5, 12], strict=True)
    ]


# The trials


def test_trials_are_counted_by_their_last_attempt() -> None:
    assert census(TRIALS) == (
        "12 trials: 9 complete, 1 pruned, 1 failed, 1 unfinished. "
        "1 earlier attempts failed or were interrupted."
    )
    assert census(TRIALS[:4]) == "4 trials: 4 complete, 0 pruned, 0 failed."


def test_the_best_so_far_is_of_complete_trials(recorded: Recorded) -> None:
    objectives = {**OBJECTIVES, SECONDS: "maximize"}
    left, right = PLOTS["trials"].draw(analysis(recorded, objectives)).axes
    best = {}
    for name, axes in {"left": left, "right": right}.items():
        (line,) = (line for line in axes.get_lines() if line.get_drawstyle() == "steps-post")
        assert line.get_xdata().tolist() == [*range(8), 12]
        best[name] = line.get_ydata().tolist()
    assert best == {"left": [9.0, 8.5, 8.5, 4.0, 4.0, 3.9, 3.9, 3.9, 3.0], "right": TIMES}


def drawn_at(axes: Axes, marker: str) -> list[int]:
    lines = (line for line in axes.get_lines() if line.get_marker() == marker)
    return [int(x) for line in lines for x in line.get_xdata()]


def test_pruned_and_failed_trials_are_marked_at_their_numbers(recorded: Recorded) -> None:
    figure = PLOTS["trials"].draw(analysis(recorded, OBJECTIVES))
    for axes in figure.axes:
        assert (drawn_at(axes, "v"), drawn_at(axes, "x")) == ([9], [10])
        assert drawn_at(axes, "o") == [*range(8), 12]
        (foot,) = (line for line in axes.get_lines() if line.get_marker() == "x")
        (whole,) = (line for line in axes.get_lines() if line.get_marker() == "o")
        boxes = [line.get_window_extent() for line in (foot, whole)]
        assert boxes[0].y1 < boxes[1].y0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["complete", "best so far", "pruned", "failed"]
    four = recorded._replace(search={**recorded.search, "trials": TRIALS[:4]})
    figure = PLOTS["trials"].draw(analysis(four, OBJECTIVES))
    plain = [text.get_text() for text in figure.legends[0].get_texts()]
    assert plain == ["complete", "best so far"]


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        ([1.0] * 9, "No two trials ran at a time."),
        ([1.0] * 8 + [4.0], "Up to 4 trials shared the machine: compare times here only."),
        ([1.0] * 8 + [np.nan], "How many trials ran at a time is not recorded."),
    ],
)
def test_the_caption_says_what_the_seconds_are_worth(
    recorded: Recorded, workers: list[float], sentence: str
) -> None:
    assert sentence in PLOTS["pareto"].caption(analysis(changed(recorded, workers=workers)))


def test_the_captions_say_what_marks_are_and_count_the_trials(recorded: Recorded) -> None:
    one = analysis(recorded, OBJECTIVES)
    assert "9 complete, 1 pruned, 1 failed, 1 unfinished" in PLOTS["trials"].caption(one)
    assert "area: the number of blocks" in PLOTS["pareto"].caption(one)
    same = analysis(changed(recorded, **{BLOCKS: 8}), OBJECTIVES)
    assert "all have 8 blocks" in PLOTS["pareto"].caption(same)


# Figures


def test_the_line_joins_the_front_and_areas_grow_with_blocks(recorded: Recorded) -> None:
    (axes,) = PLOTS["pareto"].draw(analysis(recorded, OBJECTIVES)).axes
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [TIMES[at] for at in FRONT]
    assert line.get_ydata().tolist() == [BITS[at] for at in FRONT]
    points = np.concatenate([marks.get_offsets() for marks in axes.collections])
    assert sorted(map(tuple, points.tolist())) == sorted(zip(TIMES, BITS, strict=True))
    areas = np.concatenate([marks.get_sizes() for marks in axes.collections])
    assert len({*areas.tolist()}) == 3


def test_every_run_is_a_dot_where_a_mark_is_a_mean() -> None:
    plain = tables()
    (axes,) = PLOTS["pareto"].draw(analysis(plain)).axes
    dots = [line for line in axes.get_lines() if line.get_marker() == "."]
    drawn = sorted(float(x) for line in dots for x in line.get_xdata())
    assert drawn == pytest.approx(sorted(plain.runs[SECONDS]))


def test_bars_are_the_importances_and_chance_is_grey(recorded: Recorded) -> None:
    left, right = PLOTS["importances"].draw(analysis(recorded)).axes
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names == ["transform", "seed"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in (left, right)]
    assert widths == [[0.75, 0.10], [0.05, 0.25]]
    assert len({bar.get_facecolor() for bar in left.patches}) == 2
    assert left.get_title() == "Validation bits per dimension"


# Files


@pytest.mark.slow
def test_the_report_of_a_search_is_redrawn_from_its_files(report: Path, tmp_path: Path) -> None:
    paths = build(Study.load(report), load(report), tmp_path / "again")
    names = {path.name for path in paths}
    drawn = {"pareto.png", "trials.png", "importances.png"}
    assert drawn | {"trials.csv", "importances.csv"} <= names
    assert [p.name for p in paths if p.read_bytes() != (report / p.name).read_bytes()] == []
    text = (report / "report.md").read_text()
    assert text.index("(pareto.png)") < text.index("## Claims")
    assert "| affine | 1 | 0.001 | 9.000 | 1.00 | 1 | 0 |" in text


def test_the_tables_of_a_search_are_kept_as_they_were(report: Path) -> None:
    back = load(report).search
    pd.testing.assert_frame_equal(back["trials"], TRIALS, check_dtype=False)
    assert back["importances"]["importance"].tolist() == ["0.75", "0.10", "0.25", "0.05"]
    assert Study.load(report).objectives == OBJECTIVES


def test_a_report_without_trials_removes_the_files_of_an_earlier_one(tmp_path: Path) -> None:
    stale = [f"{name}{kind}" for name in ("trials", "importances") for kind in (".csv", ".png")]
    out = tmp_path / "a"
    out.mkdir()
    for name in stale:
        (out / name).touch()
    text = '{"name": "a", "question": "b", "expected": "c", "command": "d"}'
    (out / "study.json").write_text(text)
    paths = build(Study.load(out), tables(), out)
    assert (out / "pareto.png").exists()
    assert not {*stale} & {path.name for path in (*paths, *out.iterdir())}
    written = (out / "report.md").read_text()
    assert "No data for the figures" in written
    assert "trials" in written[written.index("No data for the figures") :].partition(".")[0]
    assert "and time per epoch: 1 of 3." in written
