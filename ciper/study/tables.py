"""Tables of means and standard deviations, as Markdown and CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Figures = Mapping[str, float]

# What a column's name means in a table's head; recalls are shown in per cent.
HEADS = {
    "median_m": "position median, m",
    "mean_m": "position mean, m",
    "heading_median_deg": "heading median, deg",
    "recall@1m": "within 1 m, %",
    "recall@5m": "within 5 m, %",
    "pinhole_median_m": "75 deg views: position median, m",
    "pinhole_recall@5m": "75 deg views: within 5 m, %",
    "retrieval_recall@1": "retrieval recall@1, %",
    "matched_recall@1": "matched recall@1, %",
    "retrieval_rank": "retrieval mean rank",
    "matched_rank": "matched mean rank",
    "chosen_recall@1": "chosen chip right, %",
    "end_to_end_recall@1m": "end to end within 1 m, %",
    "end_to_end_recall@5m": "end to end within 5 m, %",
    "pairs_per_s": "training pairs/s",
}


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1; 0 of a single value) and number of values."""

    mean: float
    deviation: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Of at least one value."""
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), deviation, len(values))


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        labels: what it is of.
        results: the figures of the repetitions that have any.
        num_planned: repetitions that were wanted; 0 of a baseline, which knows none.
        num_diverged: repetitions without figures because their training diverged.
    """

    labels: tuple[str, ...]
    results: tuple[Figures, ...]
    num_planned: int = 0
    num_diverged: int = 0

    def summary(self, name: str) -> Summary | None:
        """Of one figure; None where nobody has it."""
        values = [figures[name] for figures in self.results if name in figures]
        return Summary.of(values) if values else None

    @property
    def count(self) -> str:
        """How many of the repetitions the figures are of."""
        if not self.num_planned:
            return ""
        diverged = f", {self.num_diverged} diverged" if self.num_diverged else ""
        return f"{len(self.results)} of {self.num_planned}{diverged}"


@dataclass(frozen=True)
class Table:
    """A table of a part.

    Attributes:
        name: of its files.
        title, meaning: for the report.
        labels: heads of the first columns.
        columns: the figures that it shows.
        rows: those of which anything is finished.
        repeated: what the repetitions are: "seeds" or "cities".
    """

    name: str
    title: str
    meaning: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    repeated: str = "seeds"

    def markdown(self) -> str:
        """With mean +- standard deviation and the number of repetitions."""
        head = [*self.labels, self.repeated, *(HEADS[name] for name in self.columns)]
        lines = [head, ["---"] * len(self.labels) + ["---:"] * (1 + len(self.columns))]
        for row in self.rows:
            shown = [format_summary(row.summary(name), name) for name in self.columns]
            lines.append([*row.labels, row.count, *shown])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def write_csv(self, path: Path) -> None:
        """Fractions, metres and degrees as they are, unrounded."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            pairs = [f"{name} {what}" for name in self.columns for what in ("mean", "sd")]
            counts = [f"num_{self.repeated}", "num_planned", "num_diverged"]
            writer.writerow([*self.labels, *counts, *pairs])
            for row in self.rows:
                summaries = [row.summary(name) for name in self.columns]
                cells = [x for s in summaries for x in (("", "") if s is None else _plain(s))]
                numbers = (len(row.results), row.num_planned, row.num_diverged)
                writer.writerow([*row.labels, *numbers, *cells])


def _plain(summary: Summary) -> tuple[str, str]:
    return repr(summary.mean), repr(summary.deviation)


def format_summary(summary: Summary | None, name: str) -> str:
    """`mean +- deviation`; recalls in per cent; nothing where there is nothing."""
    if summary is None:
        return ""
    factor, digits = (100.0, 1) if "recall" in name else (1.0, 2)
    mean = f"{factor * summary.mean:.{digits}f}"
    if summary.num == 1:
        return mean
    return f"{mean} ± {factor * summary.deviation:.{digits}f}"
