"""The report as files and pages: exact both ways, well formed, short, and safe to write."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from mlflow.entities import Metric, Param
from reports import PLANTED, RUN, among, analysis, changed, of_runs, sweep, tables
from test_report_claims import OF_BLOCKS, TIMED, constant, power, timed

from flowbench import schema
from flowbench.bench.planted import evaluated, untrained
from flowbench.errors import UsageError
from flowbench.report import __main__ as main
from flowbench.report import build, overview
from flowbench.report.analysis import analyses
from flowbench.report.document import (
    Code,
    Folded,
    Heading,
    Paragraph,
    Table,
    html,
    link,
    markdown,
)
from flowbench.report.figures import FIGURES
from flowbench.report.files import EVALUATION, TIMING, Recorded, Study, complete, load, write
from flowbench.report.page import page
from flowbench.report.runs import extractors
from flowbench.report.tables import fidelity, likelihood, made, run_table, skipped, summary
from flowbench.schema import BLOCKS, TRANSFORM
from flowbench.tracking.store import PARENT, Store

pytestmark = tiny.LIBRARIES

STUDY = Study(
    name="compare <quick>",
    question="Is a spline better than a line, at |x| < B & beyond?",
    expected="It is, at twice the cost.",
    command="python -m flowbench.report compare",
)
PLAIN = {"bins", "run_losses", "losses", "bpd", "seconds_per_epoch", "digits", "pareto", "patches"}
"""The figures of runs that were not evaluated; their patches are counted, not measured."""


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return evaluated(tables())


@pytest.fixture(scope="module")
def report(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a whole report, which tests read and leave as it is."""
    out = tmp_path_factory.mktemp("results") / "report"
    build(STUDY, recorded, out, format="pdf")
    return out


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing, which takes seconds."""
    monkeypatch.setattr("flowbench.report.page.drawn", lambda *_: ({}, {}))
    monkeypatch.setattr("flowbench.report.figures.style.save", lambda *_: None)


# Tables


def test_summary_gives_mean_and_deviation_over_seeds(recorded: Recorded) -> None:
    table = summary(analysis(recorded))
    values = recorded.runs.loc[among(recorded, "affine"), "val/bpd"]
    assert table.rows[0][:2] == ["affine", "3"]
    place = list(table.header).index("val bits/dim")
    assert table.rows[0][place] == f"{values.mean():.3f} ± {values.std():.3f}"
    assert [row[-2] for row in table.rows] == ["1", "1.50", "2.00"]


def test_configurations_are_never_pooled() -> None:
    blocks = sweep(OF_BLOCKS, power)
    one = analysis(blocks)
    rows = summary(one).rows
    assert [row[0] for row in rows] == [part.name for part in one.configurations]
    assert rows[0][0] == "affine, 1 block"
    own = blocks.runs.query(f"`{TRANSFORM}` == 'rqs-8' and `{BLOCKS}` == 4")["val/bpd"]
    row = next(row for row in rows if row[0] == "RQS K=8, 4 blocks")
    assert row[summary(one).header.index("val bits/dim")] == f"{own.mean():.3f} ± {own.std():.3f}"


def test_unknown_metrics_follow_under_their_own_names(recorded: Recorded) -> None:
    runs = recorded.runs.drop(columns=["parameters"]).assign(loops=3.25)
    whole = complete(recorded._replace(runs=runs))
    table = summary(analysis(whole))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["loops"] == "3.250 ± 0.000"
    assert "parameters" not in row
    assert run_table(whole.runs).header[-1] == "loops"


def test_a_metric_that_some_seeds_lack_says_how_many_have_it(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[0, "val/bpd"] = np.nan
    cells = summary(of_runs(runs)).rows[0]
    assert sum("(n = 2)" in cell for cell in cells) == 1


def test_scores_are_means_over_seeds_above_a_row_of_floors(recorded: Recorded) -> None:
    one = analysis(recorded)
    (extractor,) = one.extractors
    table = fidelity(extractor)
    own = recorded.runs[among(recorded, "affine")]
    cells = dict(zip(table.header, table.rows[0], strict=True))
    fid = own["fid_digits"]
    assert cells["FID (digits)"] == f"{fid.mean():.2f} ± {fid.std():.2f}"
    assert cells["class agreement (digits)"] == "0.900 ± 0.000"
    assert [row[0] for row in table.rows] == ["affine", "RQS K=4", "RQS K=8", "floor"]
    assert table.rows[-1][2:] == ["0.21", "0.0004", "0.930", "0.920", "–"]
    (bits,) = likelihood(one)
    cells = dict(zip(bits.header, bits.rows[0], strict=True))
    bpd = own["test/bpd"]
    assert cells["test bits/dim"] == f"{bpd.mean():.3f} ± {bpd.std():.3f}"
    assert cells["standard error of test bits/dim"] == "0.0020"
    assert "n = 3" in cells["edge ÷ even noise"]


def test_the_standard_error_is_the_root_mean_square_of_the_runs(recorded: Recorded) -> None:
    runs = recorded.runs.assign(**{"test/bpd_se": 0.0})
    runs.loc[0, "test/bpd_se"] = 0.3
    (table,) = likelihood(of_runs(runs))
    assert table.rows[0][table.header.index("standard error of test bits/dim")] == "0.1732"


def test_metrics_that_no_run_has_take_no_column() -> None:
    one = analysis(evaluated(tables(), classes=0))
    (table,) = likelihood(one)
    assert not any("Bayes" in title for title in table.header)
    assert not any("agreement" in title for title in fidelity(one.extractors[0]).header)
    assert list(extractors(tables().runs)) == []


def test_nats_have_a_table_without_bits() -> None:
    gaussian = evaluated(tables({"rqs-4": PLANTED["rqs-4"]}), noise="gaussian")
    (table,) = likelihood(analysis(gaussian))
    assert "test nats/dim" in table.header
    assert not any("bits" in title for title in table.header)


def test_an_extractor_is_its_weights_and_its_numbers_of_images(recorded: Recorded) -> None:
    runs = recorded.runs.assign(fid_inception=50.0)
    runs.loc[0, "extractor_digits"] = "abcdef01"
    runs.loc[1, "fidelity/samples"] = 10_000
    found = [(each.suffix, each.name, len(each.runs)) for each in extractors(runs)]
    digit = ("digits", "digits, weights 12e45678")
    assert sorted(found) == sorted(
        [
            (*digit, 1),
            (*digit, len(runs) - 2),
            ("digits", "digits, weights abcdef01", 1),
            ("inception", "inception", 1),
            ("inception", "inception", len(runs) - 1),
        ]
    )
    (extractor,) = extractors(recorded.runs)
    assert extractor.description == (
        "digits, weights 12e45678: 1,000 generated and 500 test images per run, the extractor's "
        "own test accuracy 96.80 %, KID over subsets of 500."
    )
    assert analysis(changed(recorded, status="failed")).extractors == []


def test_other_weights_have_a_table_of_their_own(recorded: Recorded) -> None:
    runs = recorded.runs.copy()
    runs.loc[runs[TRANSFORM] == "rqs-8", "extractor_digits"] = "abcdef01"
    first, second = (fidelity(one) for one in of_runs(runs).extractors)
    assert [row[0] for row in first.rows] == ["affine", "RQS K=4", "floor"]
    assert [row[0] for row in second.rows] == ["RQS K=8", "floor"]


def test_the_settings_of_the_runs_are_listed_with_the_facts(recorded: Recorded) -> None:
    rows = {row[0]: row[1] for row in made(analysis(recorded)).rows}
    assert rows["extractor of digits"] == "12e45678"
    assert rows["images generated for FID"] == "1000"
    labels = {schema.find(name).label for name in recorded.runs if schema.is_setting(name)}
    assert labels <= set(rows)


def test_what_was_skipped_is_said_with_its_reason(recorded: Recorded) -> None:
    reasons = ["no weights of Inception; too few images", "no weights of Inception", *[None] * 7]
    assert skipped(analysis(changed(recorded, skipped=reasons))) == (
        "no weights of Inception (2 of 9 runs); too few images (1 of 9 runs)"
    )


# Files


def test_every_digit_survives_the_files(recorded: Recorded, tmp_path: Path) -> None:
    write(recorded, tmp_path)
    back = load(tmp_path)
    pd.testing.assert_frame_equal(
        back.history[list(recorded.history)], recorded.history, check_dtype=False, check_exact=True
    )
    whole = recorded.runs.dropna(axis="columns", how="all")
    pd.testing.assert_frame_equal(
        back.runs[list(whole)], whole, check_dtype=False, check_exact=True
    )
    facts = ["commit", "torch", "precision", "extractor_digits"]
    assert list(back.runs.loc[0, facts]) == ["12e4567", "2.10", "32-true", "12e45678"]
    np.testing.assert_equal(back.samples, recorded.samples)
    for name in EVALUATION:
        pd.testing.assert_frame_equal(
            back.evaluation[name], recorded.evaluation[name], check_dtype=False, check_exact=True
        )


def test_figures_are_rebuilt_byte_for_byte_from_the_files(report: Path, tmp_path: Path) -> None:
    paths = build(STUDY, load(report), tmp_path / "again")
    missing = {"blocks", "layers", "scaling", "trials", "importances", "orders", "start", "compute"}
    drawn = {plot.name for plot in FIGURES} - missing
    expected = {f"{name}.png" for name in drawn}
    expected |= {"runs.csv", "history.csv", "samples.npz", "study.json"}
    expected |= {"report.md", "report.html", *(f"{name}.csv" for name in EVALUATION)}
    assert {path.name for path in paths} == expected
    assert [p.name for p in paths if p.read_bytes() != (report / p.name).read_bytes()] == []
    drawings = {f"{name}.pdf" for name in drawn}
    assert {path.name for path in report.iterdir()} == expected | drawings
    assert (tmp_path / "spline.png").exists()
    assert b"Date" not in (report / "losses.pdf").read_bytes()


def test_a_failed_report_leaves_the_earlier_one(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("earlier")

    def fails(*_: object) -> str:
        raise RuntimeError

    undrawn(monkeypatch)
    monkeypatch.setattr("flowbench.report.document.html", fails)
    with pytest.raises(RuntimeError):
        build(STUDY, recorded, out)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("report.html", "earlier")]


def test_the_files_of_an_earlier_report_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undrawn(monkeypatch)
    monkeypatch.setattr("flowbench.report.document.html", lambda *_: "")
    stale = {f"{name}.csv" for name in EVALUATION if name != "patches"}
    stale |= {f"{plot.name}.png" for plot in FIGURES} | {"losses-2.png", "losses.pdf"}
    out = tmp_path / "out"
    out.mkdir()
    for name in stale:
        (out / name).touch()
    (out / "mine.png").touch()
    build(STUDY, tables()._replace(samples={}), out)
    assert not stale & {path.name for path in out.iterdir()}
    assert (out / "mine.png").exists()


# What the user can fix


def test_an_unknown_run_is_an_error_that_lists_the_valid(
    recorded: Recorded, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"'nope' is not a finished run.*{RUN}"):
        build(STUDY, recorded, tmp_path / "out", run="nope")
    assert not list((tmp_path / "out").iterdir())


def test_a_study_without_finished_runs_is_an_error(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run to report; recorded: 9 failed"):
        build(STUDY, changed(recorded, status="failed"), tmp_path)


@pytest.mark.parametrize(
    ("table", "column"), [("runs", "seed"), ("runs", TRANSFORM), ("positions", "block")]
)
def test_an_indispensable_column_is_named(
    table: str, column: str, recorded: Recorded, tmp_path: Path
) -> None:
    if table == "runs":
        broken = recorded._replace(runs=recorded.runs.drop(columns=column))
    else:
        less = recorded.evaluation[table].drop(columns=column)
        broken = recorded._replace(evaluation={**recorded.evaluation, table: less})
    with pytest.raises(UsageError, match=rf"{table}\.csv lacks {re.escape(column)}: it needs"):
        build(STUDY, broken, tmp_path)


def test_an_unwritable_directory_is_an_error(recorded: Recorded, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        build(STUDY, recorded, tmp_path / "file" / "below")


def test_a_directory_without_a_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"runs\.csv does not exist"):
        load(tmp_path)
    with pytest.raises(UsageError, match=r"study\.json does not exist"):
        Study.load(tmp_path)


# Pages


def before_the_appendix(text: str) -> str:
    return text.partition("## Appendix")[0]


def test_the_page_is_short_and_in_the_order_of_its_reader(report: Path) -> None:
    text = (report / "report.md").read_text()
    first = before_the_appendix(text)
    words = [word for word in first.split() if re.search(r"\w", word)]
    assert len(words) <= 900
    places = [
        first.index(part)
        for part in (
            *("**Question.**", "**Answer.**", "(bpd.png)", "## Claims", "(run_losses.png)"),
            *("(losses.png)", "(digits.png)", "(bins.png)", "(../spline.png)", "## Results"),
        )
    ]
    assert places == sorted(places)
    captions = [int(number) for number in re.findall(r"^\*Figure (\d+)\.", text, re.MULTILINE)]
    assert captions == [*range(1, len(captions) + 1)]
    assert first.count("Not measured: ") == 1


def test_missing_metrics_are_dashes(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    undrawn(monkeypatch)
    runs = recorded.runs.copy()
    runs.loc[runs[TRANSFORM] == "affine", ["test/bpd", "val/bpd"]] = np.nan
    text = markdown("report", page(analyses(STUDY, recorded._replace(runs=runs)), Path()))
    assert "| affine | 3 | – | – |" in text
    assert not re.search(r"\bnan\b", text.lower())


def test_runs_left_out_are_counted_and_named(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    undrawn(monkeypatch)
    runs = recorded.runs.copy()
    runs.loc[0, "status"] = "killed"
    runs.loc[1, "status"] = "failed"
    runs.loc[1, TRANSFORM] = np.nan  # before it said what it was
    text = markdown("report", page(analyses(STUDY, recorded._replace(runs=runs)), Path()))
    assert "9 recorded: 7 finished, 1 killed, 1 failed." in text
    assert "killed affine-4 (affine, seed 0); failed affine-4 (–, seed 1)" in text


def test_a_machine_that_differs_is_listed(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    undrawn(monkeypatch)
    runs = recorded.runs.copy()
    runs.loc[0, "device"] = "cuda"
    runs.loc[0, "commit"] = "fedcba9"
    text = markdown("report", page(analyses(STUDY, recorded._replace(runs=runs)), Path()))
    assert "device: cuda (1 run), CPU, 2 cores (8 runs); commit: fedcba9 (1 run)" in text


def test_a_study_of_times_has_a_report(tmp_path: Path) -> None:
    build(STUDY, untrained(sweep(TIMED, constant)), tmp_path / "timing")
    drawn = {path.stem for path in (tmp_path / "timing").glob("*.png")}
    assert drawn == {"bins", "blocks", "seconds_per_epoch"}
    text = (tmp_path / "timing" / "report.md").read_text()
    assert "These runs measure times only." in text
    assert "No data for the figures run_losses, losses" in text
    assert "(load 1.5)" in text


@pytest.mark.slow
def test_a_report_with_rounds_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    recorded = timed(sweep(OF_BLOCKS, power, workers=2))
    paths = build(STUDY, recorded, tmp_path / "first")
    again = build(STUDY, load(tmp_path / "first"), tmp_path / "again")
    assert {"blocks.png", "scaling.png", "timing.csv"} <= {path.name for path in paths}
    assert [path.name for path in paths] == [path.name for path in again]
    assert [
        p.name for p, q in zip(paths, again, strict=True) if p.read_bytes() != q.read_bytes()
    ] == []
    back, table = load(tmp_path / "first").evaluation[TIMING], recorded.evaluation[TIMING]
    kept = list(table.dropna(axis="columns", how="all"))
    pd.testing.assert_frame_equal(
        back[kept], table[kept].reset_index(drop=True), check_dtype=False, check_exact=True
    )


class Strict(HTMLParser):
    """Counts what is open, and gathers references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.alts: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [str(given[key]) for key in ("src", "href") if key in given]
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_self_contained_and_escaped(report: Path) -> None:
    text = (report / "report.html").read_text()
    parser = Strict()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.references) == len(list(report.glob("*.png"))) + 1  # and the spline
    assert all(reference.startswith("data:image/png;base64,") for reference in parser.references)
    assert all(parser.alts)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "compare &lt;quick&gt;" in text
    assert "|x| &lt; B &amp; beyond" in text
    assert "<quick>" not in text
    assert text.count("<details>") == text.count("</details>") > 4


def test_markdown_escapes_and_keeps_tables_whole() -> None:
    table = Table(["name", "value"], [["a|b_c", "<1>"], [link("x_", "y.md"), "2"]])
    blocks = [Paragraph("one\ntwo _three_"), table, Folded("More", [Code("a_b | c")])]
    assert markdown("*T*", blocks) == (
        "# \\*T\\*\n\none two \\_three\\_\n\n"
        "| name | value |\n| --- | ---: |\n| a\\|b_c | \\<1\\> |\n| [x\\_](y.md) | 2 |\n\n"
        "### More\n\n```sh\na_b | c\n```\n"
    )


def test_html_sets_numbers_flush_right_and_folds() -> None:
    blocks = [Heading("H"), Table(["name", "value"], [["a|b", "1"]]), Folded("F", [Code("x")])]
    text = html("T", blocks, Path)
    assert '<td>a|b</td>\n<td style="text-align:right">1</td>' in text
    assert "<details><summary>F</summary>" in text
    assert text.index("<details>") < text.index("<pre>") < text.index("</details>")


# The page over all studies


@pytest.fixture(scope="module")
def results(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with three small reports."""
    root = tmp_path_factory.mktemp("results")
    blocks = sweep(OF_BLOCKS, power)
    bad = blocks.runs["skipped"].astype(object)
    bad[0] = "1 of 9 samples are not finite"
    for name, one in {
        "compare": recorded._replace(samples={}),
        "blocks": changed(blocks, skipped=bad)._replace(samples={}),
        "timing": untrained(sweep(TIMED, constant))._replace(samples={}),
    }.items():
        (root / name).mkdir()
        Study(name, f"What of {name}?", "This.", "make").write(root / name)
        write(complete(one), root / name)
    return root


def test_the_page_over_all_studies_says_what_to_use(results: Path) -> None:
    overview.write(results)
    text = (results / "README.md").read_text()
    # RQS K=8 has the lowest loss in blocks; in compare affine has, but drew a non-finite sample.
    assert "**Recommendation.** Use RQS K=4" in text
    assert "study compare" in text
    row = next(line for line in text.splitlines() if line.startswith("| affine |"))
    assert "| 1 of 15 | 0 of 15 |" in row
    assert "[blocks](blocks/report.md) supported" in text
    claims = {
        line.split(".")[0][2:]: line.split(" | ")[1]
        for line in text.splitlines()
        if re.match(r"\| \d\. ", line)
    }
    assert claims["1"] == "mixed"  # blocks and compare disagree
    assert claims["5"] == "supported"
    page = (results / "index.html").read_text()
    assert 'href="blocks/report.html"' in page
    assert "What of timing?" in page


def test_two_studies_stand_side_by_side(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["compare", "blocks", "--results", str(results)])
    assert "compare+blocks" in capsys.readouterr().out
    text = (results / "compare+blocks" / "report.md").read_text()
    assert "**compare:** What of compare?" in text
    assert "## Results of blocks" in text
    rows = [line for line in text.splitlines() if line.startswith(("| compare |", "| blocks |"))]
    assert len(rows) == 3 + 8


def test_a_study_without_a_report_cannot_stand_beside_another(results: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        main.main(["compare", "nothing", "--results", str(results)])
    with pytest.raises(UsageError, match="--run names a run of one study"):
        main.main(["compare", "blocks", "--run", RUN, "--results", str(results)])


# From the store


def stored(store: Store, study: str, points: list[tuple[str, int, int]], losses: bool) -> None:
    """A study as the store has it, with a run of three epochs for each point."""
    texts = {f"flowbench.{name}": name for name in ("question", "expected", "command")}
    role = {"flowbench.role": "study", "flowbench.study": study}
    parent = store.start(study, study, {**role, **texts})
    for transform, blocks, layers in points:
        tags = {PARENT: parent, "flowbench.study": study, "flowbench.scale": "quick"}
        tags |= {"flowbench.digest": f"{transform}-{blocks}"}
        tags |= {"flowbench.workers": "2" if losses else "1"}
        run_id = store.start(study, transform, tags)
        params = {TRANSFORM: transform, BLOCKS: blocks, "model.layers": layers, "seed": 0}
        params |= {"model.width": 64, "model.patch": 4, "device": "CPU", "optim.ema": 0.5}
        params |= {"data.name": "mnist-5k", "data.batch": 128, "data.root": "/data"}
        values = {"seconds_per_epoch": 1.0, "images_per_second": 1.0, "load": 0.5, "novel": 2.0}
        values |= {"val/loss": 1.0 / blocks} if losses else {}
        store.client.log_batch(
            run_id,
            params=[Param(key, str(value)) for key, value in params.items()],
            metrics=[Metric(key, v, n, n) for n in (1, 2, 3) for key, v in values.items()],
        )
        store.finish(run_id, "FINISHED")
    store.finish(parent, "FINISHED")


def test_a_report_takes_its_seconds_from_the_newest_study_of_times(tmp_path: Path) -> None:
    store = Store(tiny.results(tmp_path / "results"))
    stored(store, "blocks", OF_BLOCKS, losses=True)
    _, recorded, _ = main._read("blocks", store.results, None)
    assert recorded.evaluation[TIMING].empty
    assert set(recorded.runs["optim.ema"]) == {0.5}
    assert "data.root" not in recorded.runs
    assert recorded.history["novel"].tolist() == [2.0] * 3 * len(OF_BLOCKS)
    stored(store, "timing/quick", TIMED, losses=False)
    _, recorded, _ = main._read("blocks", store.results, None)
    found = recorded.evaluation[TIMING]
    assert len(found) == len(OF_BLOCKS) * 2  # the first of three rounds is for warming up
    assert set(found["load"]) == {0.5}
    study, itself, _ = main._read("timing/quick", store.results, None)
    assert itself.evaluation[TIMING].empty
    (one,) = analyses(study, complete(itself))
    assert len(one.rounds) == len(TIMED) * 2
