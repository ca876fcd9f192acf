"""The page over all studies of a results directory, and several studies side by side."""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pandas as pd

from flowbench import schema
from flowbench.errors import UsageError
from flowbench.report import document, files, laws, tables
from flowbench.report.analysis import Analysis, analyses
from flowbench.report.claims import Claim, Verdict, judged
from flowbench.report.document import Block, Heading, Markdown, Paragraph, Picture, Table, link
from flowbench.report.figures import style
from flowbench.report.figures.spline import CAPTION, spline
from flowbench.report.laws import FRONTIER, Fit
from flowbench.report.page import SPLINE
from flowbench.report.runs import Configuration, configurations, varied
from flowbench.report.stats import over_seeds
from flowbench.report.text import (
    AFFINE,
    MISSING,
    confidence,
    configuration,
    flops,
    label,
    number,
    ordered,
)
from flowbench.schema import SECONDS, TRANSFORM

CLOSE = 0.02
"""Bits per dimension within which a cheaper transform counts as equally good."""
SCALES = ("quick", "medium", "full")
"""From the smallest to the largest."""
SAMPLING = Path("bench") / "sample.csv"
"""The benchmark of sampling, used where runs have not recorded their own rate."""


def write(results: Path) -> list[Path]:
    """Write ``README.md`` and ``index.html`` over all reported studies of a directory.

    Raises:
        UsageError: There is no report below the directory, or a file of one cannot be read.
    """
    names = studies(results)
    found = [one for name in names for one in _read(results / name)]
    with files.published(results) as staging:
        style.save(spline(), staging / SPLINE)
        chosen = largest(names)
        blocks = list(_page([one for one in found if one.study.name in chosen], found, results))
        title = "flowbench: which transform to use, and at what cost"
        text = document.markdown(title, blocks)
        (staging / "README.md").write_text(text, encoding="utf-8")
        html = document.html(title, blocks, staging.joinpath).replace('report.md"', 'report.html"')
        (staging / "index.html").write_text(html, encoding="utf-8")
    return [results / name for name in (SPLINE, "README.md", "index.html")]


def write_together(results: Path, names: Sequence[str]) -> list[Path]:
    """Write a page with several studies side by side: ``results/A-quick+B-quick/``.

    Raises:
        UsageError: One of them has no report.
    """
    found = [one for name in names for one in _read(results / name)]
    out = results / "+".join(names).replace("/", "-")
    with files.published(out) as staging:
        title = f"flowbench: {' and '.join(names)}"
        blocks = list(_together(found))
        text = document.markdown(title, blocks)
        (staging / "report.md").write_text(text, encoding="utf-8")
        html = document.html(title, blocks, out.joinpath)
        (staging / "report.html").write_text(html, encoding="utf-8")
    return [out / name for name in ("report.md", "report.html")]


def studies(results: Path) -> list[str]:
    """List the studies that have a report, by name: ``bins/quick``."""
    found = [*results.glob(f"*/{files.STUDY}"), *results.glob(f"*/*/{files.STUDY}")]
    return sorted(path.parent.relative_to(results).as_posix() for path in found)


def largest(names: Sequence[str]) -> list[str]:
    """Select every study at the largest scale that was run.

    Example:
        >>> largest(["bins/medium", "bins/quick", "timing/quick"])
        ['bins/medium', 'timing/quick']
    """

    def size(name: str) -> int:
        scale = name.partition("/")[2]
        return SCALES.index(scale) if scale in SCALES else -1

    chosen: dict[str, str] = {}
    for name in sorted(names, key=size):
        chosen[name.partition("/")[0]] = name
    return sorted(chosen.values())


def _read(directory: Path) -> list[Analysis]:
    return analyses(files.Study.load(directory), files.load(directory))


def _page(
    found: Sequence[Analysis], all_scales: Sequence[Analysis], results: Path
) -> Iterator[Block]:
    reference = compared(found)
    yield Paragraph(_recommendation(reference, found), lead="Recommendation.")
    yield Paragraph(
        f"The rule: of the transforms below, the fastest whose mean validation loss is within "
        f"{CLOSE} bits/dim (or nats/dim) of the lowest and that drew no non-finite sample.",
    )
    yield Heading("What to use, and at what cost")
    yield _costs(reference, found, results)
    yield Paragraph(
        Markdown(
            f"Likelihood and FID: {_link(reference)}, which compares the most transforms at equal "
            f"settings ({_settings(reference)}), mean ± standard deviation over seeds. "
            f"Time: {' and '.join(map(_link, _timings(found)))}, an epoch's seconds divided by "
            "affine's, with 95 % interval. Sampling: the runs' own rate, else 500 images together "
            f"in {link(str(SAMPLING), str(SAMPLING))}. Last two columns: all studies; runs with a "
            "non-finite sample, and runs that ended with a non-finite loss."
        )
    )
    yield Heading("The original's claims, by all studies")
    yield _verdicts(judged(found))
    yield Paragraph(
        "Each study at the largest scale that was run, which its name ends with. All studies: "
        "supported or contradicted where every study that decides agrees, mixed where "
        "they disagree, undecided where none decides. Each study's rules are in its appendix."
    )
    yield Heading("Studies")
    yield _list(all_scales)
    yield Picture(SPLINE, "A rational-quadratic spline and its slope", CAPTION)


def compared(found: Sequence[Analysis]) -> Analysis:
    """Choose the analysis that compares the most with affine at equal settings, then most runs."""

    def breadth(one: Analysis) -> tuple[int, int]:
        own = _largest(one)
        return len({part.transform for part in own}), sum(len(part.runs) for part in own)

    trained = [one for one in found if not one.untrained] or list(found)
    trained = [one for one in trained if AFFINE in one.transforms] or trained
    return max(trained, key=breadth)


def _largest(one: Analysis) -> list[Configuration]:
    """Select the configurations at those settings that the most transforms share."""
    groups: dict[str, list[Configuration]] = {}
    for part in one.configurations:
        groups.setdefault(repr(part.settings), []).append(part)
    return max(groups.values(), key=len)


def _settings(one: Analysis) -> str:
    first = _largest(one)[0]
    row = first.runs.iloc[0]
    shown = [schema.BLOCKS, schema.LAYERS, schema.WIDTH, schema.DATA, schema.NOISE, schema.EPOCHS]
    return configuration("", {name: row[name] for name in shown}).removeprefix(", ")


def _recommendation(reference: Analysis, found: Sequence[Analysis]) -> str:
    """Apply the rule to the numbers of the table."""
    metric, unit = reference.quality.metric, reference.quality.unit
    means = {one.transform: over_seeds(one.runs, metric)[0] for one in _largest(reference)}
    broken = {name for name in means if _count(found, name, _nonfinite)[0]}
    sound = {name: value for name, value in means.items() if name not in broken and value == value}
    if not sound:
        return "None: every transform drew non-finite samples."
    least = min(sound.values())
    close = [name for name in ordered(sound) if sound[name] <= least + CLOSE]
    ratios = {name: _ratio(name, found) for name in close}
    chosen = min(close, key=lambda name: ratios[name][0] if ratios[name][0] else float("inf"))
    text = f"Use {label(chosen)}: {number(means[chosen])} {unit} in validation"
    if AFFINE in means and chosen != AFFINE:
        text += f", against {number(means[AFFINE])} for affine"
    if ratios[chosen][0]:
        text += f", at {number(ratios[chosen][0], 2)} times affine's time per epoch"
    scale = ", ".join(sorted(set(reference.runs["scale"].dropna()))) or "unnamed"
    return f"{text} (scale {scale}, study {reference.study.name})."


def _ratio(transform: str, found: Sequence[Analysis]) -> tuple[float, str]:
    """Find the time ratio of a transform at the largest timed flow, with its interval and study."""
    for one in _timings(found):
        named = [name for name in one.time_ratios if name.partition(", ")[0] == label(transform)]
        known = [one.time_ratios[name] for name in named if one.time_ratios[name].n]
        if known:
            value = known[-1]
            ends = f"{number(value.low, 2)} to {number(value.high, 2)}"
            return value.mean, f"{number(value.mean, 2)} ({ends})"
    return 0.0, MISSING


def _timings(found: Sequence[Analysis]) -> list[Analysis]:
    """Select the timing studies; without one, all studies."""
    return [one for one in found if one.untrained] or list(found)


def _link(one: Analysis) -> Markdown:
    return link(_name(one), f"{one.study.name}/report.md")


def _costs(reference: Analysis, found: Sequence[Analysis], results: Path) -> Table:
    own = _largest(reference)
    scores = [f"{name}_{each.suffix}" for each in reference.extractors[:1] for name in ("fid",)]
    metrics = [f"test/{reference.quality.metric.partition('/')[2]}", *scores]
    rates = _sampling(results)
    rows = []
    for one in own:
        time = "1" if one.transform == AFFINE else _ratio(one.transform, found)[1]
        nonfinite, all_runs = _count(found, one.transform, _nonfinite)
        diverged, _ = _count(found, one.transform, _diverged)
        rows.append(
            [
                label(one.transform),
                *(tables.mean(one, metric) for metric in metrics),
                time,
                number(rates.get(one.transform, float("nan")), 0),
                f"{nonfinite} of {all_runs}",
                f"{diverged} of {all_runs}",
            ]
        )
    labels = [schema.find(metric).label for metric in metrics]
    header = ["transform", *labels, "time ÷ affine's", "sampling (images/s)"]
    return Table([*header, "not finite (runs)", "diverged (runs)"], rows)


def _sampling(results: Path) -> dict[str, float]:
    """Read the rate of sampling by transform from the benchmark, where it has been run."""
    path = results / SAMPLING
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype={"case": str, "setting": str, "images_per_second": float})
        names = table["case"].str.removesuffix(", float32")
        chosen = table[(table["setting"] == "500 images") & ~names.str.contains(",")]
        return dict(zip(names[chosen.index], chosen["images_per_second"], strict=True))
    except (ValueError, KeyError) as error:
        raise UsageError(f"{path} is not the table of flowbench bench sample: {error}") from error


def _nonfinite(runs: pd.DataFrame) -> pd.Series:
    skipped = runs["skipped"].fillna("").astype(str).str.contains("samples are not finite")
    return skipped | (runs["samples/nonfinite"] > 0)


def _diverged(runs: pd.DataFrame) -> pd.Series:
    return runs["status"] == "failed"


def _count(
    found: Sequence[Analysis], transform: str, which: Callable[[pd.DataFrame], pd.Series]
) -> tuple[int, int]:
    """Count the runs of a transform, over all studies, of which something holds."""
    runs = pd.concat([one.recorded.runs for one in found if not one.untrained])
    own = runs[runs[TRANSFORM] == transform]
    return int(which(own).sum()), len(own)


def combined(verdicts: Sequence[Verdict]) -> str:
    """Combine the verdicts of several studies on one claim.

    Example:
        >>> combined(["supported", "undecided"]), combined(["supported", "contradicted"])
        ('supported', 'mixed')
    """
    decided = {verdict for verdict in verdicts if verdict != "undecided"}
    if not decided:
        return "undecided"
    return decided.pop() if len(decided) == 1 else "mixed"


def _verdicts(judged: Sequence[tuple[Analysis, list[Claim]]]) -> Table:
    """Make a row per claim: the verdict of all studies together, and what each says."""
    by_text: dict[str, list[tuple[Analysis, Claim]]] = {}
    for one, theirs in judged:
        for claim in theirs:
            by_text.setdefault(claim.text, []).append((one, claim))
    rows = []
    for place, (text, found) in enumerate(by_text.items(), start=1):
        known = [(one, claim) for one, claim in found if claim.rule]
        cells = [f"{_link(one)} {claim.verdict}" for one, claim in known]
        verdict = combined([claim.verdict for _, claim in known])
        firsts = {claim.verdict: (one, claim) for one, claim in reversed(known)}
        if verdict != "undecided":
            firsts.pop("undecided", None)
        numbers = "; ".join(f"{_name(one)}: {claim.number}" for one, claim in firsts.values())
        study_by_study = Markdown("; ".join(cells) or MISSING)
        rows.append([f"{place}. {text}", verdict, numbers or MISSING, study_by_study])
    header = ["claim", "all studies", "a number that decides", "study by study"]
    return Table(header, rows, words=len(header))


def _name(one: Analysis) -> str:
    return f"{one.study.name} ({one.protocol})" if one.protocol else one.study.name


def _list(found: Sequence[Analysis]) -> Table:
    rows = [
        [
            _link(one),
            one.study.question,
            f"{len(one.runs)} runs",
        ]
        for one in found
    ]
    return Table(["study", "question", "size"], rows, words=3)


def _together(found: Sequence[Analysis]) -> Iterator[Block]:
    for one in found:
        yield Paragraph(one.study.question, lead=f"{_name(one)}:")
    yield Heading("Claims")
    yield _verdicts(judged(found))
    for one in found:
        if not one.untrained:
            yield Heading(f"Results of {_name(one)}")
            yield tables.summary(one)
    yield from _foretold(found)
    yield Heading("All configurations")
    yield _pooled(found)


def _foretold(found: Sequence[Analysis]) -> Iterator[Block]:
    """Make the table of what one study's laws foresee at the larger budgets of another."""
    rows = []
    for one, other in permutations(found, 2):
        for fit, points in _continued(one, other):
            head = [_name(one), _name(other), label(fit.transform)]
            if fit.law is None:
                rows.append([*head, MISSING, f"not determined: {fit.why}", MISSING])
                continue
            for each in laws.beyond(fit, points):
                both = (confidence(loss, "", sign="-") for loss in (each.foreseen, each.trained))
                rows.append([*head, flops(each.x), *both])
    if not rows:
        return
    yield Heading("Foreseen by one study, trained in another")
    header = ["law of", "trained in", "transform", "FLOPs", f"foreseen ({found[0].quality.unit})"]
    yield Table([*header, "trained"], rows, words=4)
    yield Paragraph(
        "The law of the loss at the best trained size of every budget of training FLOPs, with its "
        "95 % interval over resampled seeds, at the larger budgets of a study that differs from it "
        "in nothing but budgets, sizes and seeds; and what was trained there, with the t interval "
        "over seeds."
    )


def _continued(one: Analysis, other: Analysis) -> Iterator[tuple[Fit, pd.DataFrame]]:
    """Find the laws along budgets of one study that another has points of."""
    # An option that one of them does not have came later.
    differing = varied(pd.concat([one.runs, other.runs], join="inner", ignore_index=True))
    if any(name != schema.BUDGET and not name.startswith(laws.MODEL) for name in differing):
        return
    points = {fit.transform: fit.points for fit in other.fits if fit.quantity == FRONTIER}
    for fit in one.fits:
        if fit.quantity == FRONTIER and fit.transform in points:
            own = points[fit.transform]
            if own["x"].max() > fit.points["x"].max():
                yield fit, own


def _pooled(found: Sequence[Analysis]) -> Table:
    """Make a row per study and configuration, named by everything that differs between them."""
    metric = found[0].quality.metric
    runs = pd.concat([one.runs.assign(study=_name(one)) for one in found], ignore_index=True)
    rows = []
    for part in configurations(runs):
        for study, own in part.runs.groupby("study", sort=False):
            one = Configuration(part.name, part.transform, part.settings, own)
            seeds = str(own[schema.SEED].nunique())
            rows.append(
                [study, part.name, seeds, tables.mean(one, metric), tables.mean(one, SECONDS)]
            )
    labels = [schema.find(name).label for name in (metric, SECONDS)]
    return Table(["study", "configuration", "seeds", *labels], rows, words=2)
