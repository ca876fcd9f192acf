"""The report's part on the trials: what is not beaten, what became of each, how they are drawn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from planted import tables

from flowbench.report import Study, build, load, searched
from flowbench.report.attempts import census
from flowbench.report.document import Paragraph, Table
from flowbench.report.files import Recorded, complete
from flowbench.report.front import Quality, configurations, measured, quality
from flowbench.report.importances import importances
from flowbench.report.labels import label
from flowbench.report.pareto import pareto
from flowbench.report.trials import trials

OBJECTIVES = {"val/bpd": "minimize", "seconds_per_epoch": "minimize"}
STUDY = Study("search", "Which?", "This one.", "flowbench sweep", OBJECTIVES)
SECONDS = [1.0, 2.0, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0]
BITS = [9.0, 8.5, 8.7, 4.0, 7.0, 3.9, 3.9, 4.5, 3.0]
FRONT = [0, 1, 3, 5, 8]
"""The trials of these values that no other beats in both."""


def table(rows: list[tuple[int, int, str, str, float | None, float | None]]) -> pd.DataFrame:
    """Trials of these numbers, places, states, errors and values, as they are kept: as text."""
    names = ["trial", "place", "state", "error", *OBJECTIVES]
    made = pd.DataFrame(rows, columns=names, dtype=object)
    made["optim.lr"] = [0.001 * (place + 1) for place in made["place"]]
    made["model.transform"] = np.resize(["affine", "rqs-4", "rqs-8"], len(made))
    head = {"retry_of": np.nan, "started": "2026-01-01T00:00:00", "duration": 1.5}
    made = made.assign(**head).replace("", np.nan)
    return made.astype(object).where(made.notna(), np.nan).map(str, na_action="ignore")


TRIALS = table(
    [(at, at, "COMPLETE", "", BITS[at], SECONDS[at]) for at in range(8)]
    + [(8, 8, "FAIL", "", None, None)]  # was stopped
    + [(9, 9, "PRUNED", "", 1.0, 9.0)]
    + [(10, 10, "FAIL", "diverged", None, None)]
    + [(11, 11, "RUNNING", "", None, None)]
    + [(12, 8, "COMPLETE", "", BITS[8], SECONDS[8])]
)
IMPORTANCES = pd.DataFrame(
    {
        "objective": ["val/bpd", "val/bpd", *["seconds_per_epoch"] * 2],
        "parameter": ["model.transform", "seed", "seed", "model.transform"],
        "importance": ["0.75", "0.10", "0.25", "0.05"],
    }
)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """Nine trials of one seed, and what else is known of them."""
    plain = tables()
    runs = plain.runs.assign(
        **{"seconds_per_epoch": SECONDS, "val/bpd": BITS, "seed": 0, "workers": 2},
        trial=[*range(8), 12],
        blocks=[1, 2, 3] * 3,
    )
    search = {"trials": TRIALS, "importances": IMPORTANCES}
    return complete(plain._replace(runs=runs, search=search))


@pytest.fixture(scope="module")
def report(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a whole report, which tests read and leave as it is."""
    out = tmp_path_factory.mktemp("report")
    build(STUDY, recorded, out)
    return out


def found(recorded: Recorded, objectives: dict[str, str] = OBJECTIVES) -> pd.DataFrame:
    aim = quality(objectives, recorded.runs)
    return configurations(measured(aim, objectives, recorded), aim)


def told(recorded: Recorded) -> list[Paragraph | Table]:
    return list(searched.told(OBJECTIVES, recorded))


def captions(recorded: Recorded) -> dict[str, str]:
    return {plate.name: plate.caption for plate in searched.plates(OBJECTIVES, recorded)}


# What is not beaten


def test_the_front_is_the_planted_one(recorded: Recorded) -> None:
    table = found(recorded)
    assert table["seconds_per_epoch"].tolist() == SECONDS
    assert np.flatnonzero(table["front"]).tolist() == FRONT
    assert table["trials"].tolist() == ["0", "1", "2", "3", "4", "5", "6", "7", "12"]


def test_more_is_better_where_the_study_says_so(recorded: Recorded) -> None:
    table = found(recorded, {"val/bpd": "maximize"})
    assert np.flatnonzero(table["front"]).tolist() == [0]


def test_quality_is_the_first_objective_that_is_no_time(recorded: Recorded) -> None:
    runs = recorded.runs
    timed = {"images_per_second": "maximize", "fid_digits": "minimize", "val/loss": "minimize"}
    assert quality(timed, runs) == Quality("fid_digits", 1)
    assert quality({"recall_digits": "maximize"}, runs) == Quality("recall_digits", -1)
    assert quality({"val/loss": "minimize"}, runs) == Quality("val/bpd", 1)
    assert quality({}, runs.assign(**{"val/bpd": np.nan})) == Quality("val/loss", 1)


def test_seeds_of_a_configuration_are_averaged(recorded: Recorded) -> None:
    runs = recorded.runs.assign(seed=[0, 1, 2] * 3, trial=range(9))
    own = TRIALS[:9].assign(**{"model.transform": runs["transform"], "seed": ["0", "1", "2"] * 3})
    own = own.drop(columns="optim.lr")
    table = found(recorded._replace(runs=runs, search={**recorded.search, "trials": own}))
    assert table["runs"].tolist() == [3, 3, 3]
    assert table["trials"].tolist() == ["0, 1, 2", "3, 4, 5", "6, 7, 8"]
    assert table["val/bpd"].tolist() == pytest.approx(np.reshape(BITS, (3, 3)).mean(axis=1))


def test_where_trials_are_not_recorded_settings_tell_runs_apart() -> None:
    plain = tables()
    assert found(plain)["runs"].tolist() == [3, 3, 3]
    assert found(plain, {})["trials"].tolist() == [""] * 3
    blocks = plain.runs["blocks"].where(plain.runs["seed"] > 0, 8)
    assert sorted(found(plain._replace(runs=plain.runs.assign(blocks=blocks)))["runs"]) == [
        *(1, 1, 1),
        *(2, 2, 2),
    ]


def test_unfinished_runs_are_on_no_front(recorded: Recorded) -> None:
    status = ["failed" if at == 3 else "finished" for at in range(9)]
    table = found(recorded._replace(runs=recorded.runs.assign(status=status)))
    assert table.loc[table["front"], "trials"].tolist() == ["0", "1", "4", "5", "12"]


def test_the_table_has_the_parameters_and_values_of_the_front(recorded: Recorded) -> None:
    _, lead, table = told(recorded)
    assert isinstance(table, Table)
    assert ": 5 of 9 configurations." in lead.text
    assert table.header == [
        *("model.transform", "optim.lr", "val/bpd", "s/epoch", "runs", "trials"),
    ]
    rows = [
        [
            *(
                label(TRIALS["model.transform"][at]),
                f"{0.001 * (TRIALS['place'].astype(int)[at] + 1):.4g}",
            ),
            *(f"{BITS[row]:.3f}", f"{SECONDS[row]:.2f}", "1", str(at)),
        ]
        for row, at in zip(FRONT, [0, 1, 3, 5, 12], strict=True)
    ]
    assert table.rows == rows


# What became of the trials


def test_trials_are_counted_by_their_last_attempt() -> None:
    assert census(TRIALS) == (
        "12 trials: 9 complete, 1 pruned, 1 failed, 1 not over. "
        "1 earlier attempts at them failed or were interrupted."
    )
    assert census(TRIALS[:4]) == "4 trials: 4 complete, 0 pruned, 0 failed."


def test_the_best_so_far_is_of_complete_trials() -> None:
    left, right = trials(TRIALS, {**OBJECTIVES, "seconds_per_epoch": "maximize"}).axes
    best = {}
    for name, axes in {"left": left, "right": right}.items():
        (line,) = (line for line in axes.get_lines() if line.get_drawstyle() == "steps-post")
        assert line.get_xdata().tolist() == [*range(8), 12]
        best[name] = line.get_ydata().tolist()
    assert best == {"left": [9.0, 8.5, 8.5, 4.0, 4.0, 3.9, 3.9, 3.9, 3.0], "right": SECONDS}


def drawn_at(axes: Axes, marker: str) -> list[int]:
    lines = (line for line in axes.get_lines() if line.get_marker() == marker)
    return [int(x) for line in lines for x in line.get_xdata()]


def test_pruned_and_failed_trials_are_marked_at_their_numbers() -> None:
    figure = trials(TRIALS, OBJECTIVES)
    for axes in figure.axes:
        assert (drawn_at(axes, "v"), drawn_at(axes, "x")) == ([9], [10])
        assert drawn_at(axes, "o") == [*range(8), 12]
        (foot,) = (line for line in axes.get_lines() if line.get_marker() == "x")
        (complete,) = (line for line in axes.get_lines() if line.get_marker() == "o")
        boxes = [line.get_window_extent() for line in (foot, complete)]
        assert boxes[0].y1 < boxes[1].y0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["complete", "best so far", "pruned", "failed"]
    plain = [text.get_text() for text in trials(TRIALS[:4], OBJECTIVES).legends[0].get_texts()]
    assert plain == ["complete", "best so far"]


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        ([1.0] * 9, "No two trials ran at a time."),
        ([1.0] * 8 + [4.0], "Up to 4 trials ran at a time on a machine: their seconds compare"),
        ([1.0] * 8 + [np.nan], "not recorded of every run how many ran at a time"),
    ],
)
def test_the_caption_says_what_the_seconds_are_worth(
    recorded: Recorded, workers: list[float], sentence: str
) -> None:
    runs = recorded.runs.assign(workers=workers)
    assert sentence in captions(recorded._replace(runs=runs))["pareto"]


def test_the_caption_counts_what_is_not_drawn(recorded: Recorded) -> None:
    assert "9 complete, 1 pruned, 1 failed, 1 not over" in captions(recorded)["pareto"]
    assert "its area: the number of blocks" in captions(recorded)["pareto"]
    same = recorded._replace(runs=recorded.runs.assign(blocks=8))
    assert "all have 8 blocks" in captions(same)["pareto"]


# Figures


def drawn_pareto(recorded: Recorded) -> Figure:
    runs = measured(Quality("val/bpd", 1), OBJECTIVES, recorded)
    return pareto(configurations(runs, Quality("val/bpd", 1)), runs, "val/bpd")


FIVE = np.resize(["affine", "rqs-8", "affine+rqs-8", "rqs-16", "affine+rqs-16"], 9)
DRAWN: dict[str, Callable[[Recorded], Figure]] = {
    "pareto": drawn_pareto,
    "pareto over seeds": lambda _: drawn_pareto(tables()),
    "pareto of five": lambda r: drawn_pareto(r._replace(runs=r.runs.assign(transform=FIVE))),
    "pareto of wide times": lambda r: drawn_pareto(
        r._replace(runs=r.runs.assign(seconds_per_epoch=np.geomspace(0.4, 14, 9)))
    ),
    "trials": lambda r: trials(r.search["trials"], OBJECTIVES),
    "one objective": lambda r: trials(r.search["trials"], {"val/bpd": "minimize"}),
    "three objectives": lambda r: trials(
        r.search["trials"].assign(fid_digits=r.search["trials"]["val/bpd"]),
        {**OBJECTIVES, "fid_digits": "minimize"},
    ),
    "importances": lambda r: importances(r.search["importances"]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_off_or_overlaps(name: str, recorded: Recorded) -> None:
    figure = DRAWN[name](recorded)
    figure.draw_without_rendering()
    page = figure.bbox.padded(0.5)
    boxes = [part.get_tightbbox() for part in (*figure.axes, *figure.legends)]
    for at, box in enumerate(boxes):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
        others = (other for n, other in enumerate(boxes) if n != at)
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in others)
    labels = [axes.get_xlabel() + axes.get_ylabel() + axes.get_title() for axes in figure.axes]
    assert all(labels)
    widths = [axes.get_window_extent().width for axes in figure.axes]
    assert sum(widths) > 0.5 * figure.bbox.width


def test_the_line_joins_the_front_and_areas_grow_with_blocks(recorded: Recorded) -> None:
    (axes,) = drawn_pareto(recorded).axes
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [SECONDS[at] for at in FRONT]
    assert line.get_ydata().tolist() == [BITS[at] for at in FRONT]
    points = np.concatenate([marks.get_offsets() for marks in axes.collections])
    assert sorted(map(tuple, points.tolist())) == sorted(zip(SECONDS, BITS, strict=True))
    areas = np.concatenate([marks.get_sizes() for marks in axes.collections])
    assert len({*areas.tolist()}) == 3


def test_every_run_is_a_dot_where_a_mark_is_a_mean() -> None:
    recorded = tables()
    (axes,) = drawn_pareto(recorded).axes
    dots = [line for line in axes.get_lines() if line.get_marker() == "."]
    drawn = sorted(float(x) for line in dots for x in line.get_xdata())
    assert drawn == pytest.approx(sorted(recorded.runs["seconds_per_epoch"]))


def test_bars_are_the_importances_and_chance_is_grey() -> None:
    left, right = importances(IMPORTANCES).axes
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names == ["transform", "seed"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in (left, right)]
    assert widths == [[0.75, 0.10], [0.05, 0.25]]
    colours = [bar.get_facecolor() for bar in left.patches]
    assert len({*colours}) == 2
    assert left.get_title() == "Validation bits per dimension"


# Files


def test_the_report_of_a_search_is_redrawn_from_its_files(report: Path, tmp_path: Path) -> None:
    paths = build(Study.load(report), load(report), tmp_path)
    names = {path.name for path in paths}
    assert {f"{name}.png" for name in searched.NAMES} | {"trials.csv", "importances.csv"} <= names
    assert [p.name for p in paths if p.read_bytes() != (report / p.name).read_bytes()] == []
    text = (report / "report.md").read_text()
    assert "## Trials" in text
    assert "| affine | 0.001 | 9.000 | 1.00 | 1 | 0 |" in text


def test_the_tables_of_a_search_are_kept_as_they_were(report: Path) -> None:
    back = load(report).search
    pd.testing.assert_frame_equal(back["trials"], TRIALS, check_dtype=False)
    assert back["importances"]["importance"].tolist() == ["0.75", "0.10", "0.25", "0.05"]
    assert Study.load(report).objectives == OBJECTIVES


def test_a_report_of_a_recording_without_trials_says_so_and_removes_old_files(
    tmp_path: Path,
) -> None:
    stale = [f"{name}{kind}" for name in ("trials", "importances") for kind in (".csv", ".png")]
    for name in stale:
        (tmp_path / name).touch()
    text = '{"name": "a", "question": "b", "expected": "c", "command": "d"}'
    (tmp_path / "study.json").write_text(text)
    paths = build(Study.load(tmp_path), tables(), tmp_path)
    assert (tmp_path / "pareto.png").exists()
    assert not {*stale} & {path.name for path in (*paths, *tmp_path.iterdir())}
    told = (tmp_path / "report.md").read_text()
    assert "trials: not drawn, for there are no records of the trials." in told
    assert ": 1 of 3 configurations, means over their seeds." in told
