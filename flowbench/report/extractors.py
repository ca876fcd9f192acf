"""Which feature extractor made which FID, for values compare only within one extractor."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from flowbench.report.files import EXTRACTOR
from flowbench.report.numbers import MISSING, number, plain
from flowbench.report.seeds import finished

SCORES = ("fid", "kid", "precision", "recall")
"""What is measured in an extractor's features; each has a floor."""
_COLUMN = re.compile(rf"({'|'.join(SCORES)}|agreement)_(.+?)(_floor)?")


@dataclass(frozen=True)
class Extractor:
    """A feature extractor, and the finished runs whose scores in its features compare."""

    suffix: str
    """What its metrics are named by: ``digits`` in ``fid_digits``."""
    runs: pd.DataFrame
    """Runs of the same weights and the same numbers of images."""

    def column(self, score: str) -> pd.Series:
        """A score of every run; ``fid_floor`` for the floor of fid; NaN where there is none."""
        name, _, floor = score.partition("_")
        full = f"{name}_{self.suffix}{'_floor' if floor else ''}"
        return self.runs[full] if full in self.runs else pd.Series(float("nan"), self.runs.index)

    @property
    def named(self) -> str:
        """Its name with the hash of its weights, where one is recorded."""
        weights = _one(self.runs, f"{EXTRACTOR}{self.suffix}")
        return self.suffix if weights == MISSING else f"{self.suffix}, weights {weights}"

    @property
    def counts(self) -> str:
        """How many images of which kind its scores compare."""
        generated, real = (_count(self.runs, f"fidelity/{name}") for name in ("samples", "real"))
        return f"{generated} generated and {real} test images"

    @property
    def told(self) -> str:
        """All that its scores rest on, in a sentence."""
        told = f"{self.named}: {self.counts} a run"
        accuracy = _mean(self.runs, f"{EXTRACTOR}{self.suffix}/accuracy")
        if pd.notna(accuracy):
            told += f", the extractor's own test accuracy {number(100 * accuracy, 2)} %"
        subset = _count(self.runs, "fidelity/kid_subset")
        return f"{told}." if subset == MISSING else f"{told}, KID over subsets of {subset}."


def extractors(runs: pd.DataFrame) -> list[Extractor]:
    """Every extractor of the finished runs; one for each set of weights and number of images."""
    return list(_extractors(finished(runs)))


def _extractors(runs: pd.DataFrame) -> Iterator[Extractor]:
    matches = [_COLUMN.fullmatch(name) for name in runs.columns]
    for suffix in dict.fromkeys(match[2] for match in matches if match):
        scores = [f"{score}_{suffix}" for score in SCORES if f"{score}_{suffix}" in runs]
        scored = runs[runs[scores].notna().any(axis=1)]
        keys = [f"{EXTRACTOR}{suffix}", "fidelity/samples", "fidelity/real"]
        for _, own in scored.groupby([key for key in keys if key in runs], dropna=False):
            yield Extractor(suffix, own)


def is_score(column: str) -> bool:
    """Whether a column of the table of runs is of some extractor.

    Example:
        >>> [is_score(name) for name in ("kid_folder_floor", "extractor_digits", "test/bpd")]
        [True, True, False]
    """
    return column.startswith(EXTRACTOR) or _COLUMN.fullmatch(column) is not None


def _one(runs: pd.DataFrame, column: str) -> str:
    return plain(runs[column].iloc[0]) if column in runs else MISSING


def _count(runs: pd.DataFrame, column: str) -> str:
    return number(_mean(runs, column), 0)


def _mean(runs: pd.DataFrame, column: str) -> float:
    return float(runs[column].mean()) if column in runs else float("nan")
