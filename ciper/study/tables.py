"""The study's tables: means and standard deviations of finished cells, as Markdown and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciper.study.cells import DECODERS, SETTINGS, Cell, CellResult, Decoder, Setting, Task
from ciper.study.config import Condition, Part
from ciper.study.plan import CONDITION_HFOVS_DEG, UNKNOWN_HEADING_DEG, USUAL, Plan

Figures = Mapping[str, float]

DECODER_NAMES: dict[Decoder, str] = {
    "authors": "authors' code",
    "text": "paper's text",
    "one_way": "one-way",
    "ours": "geometric correlation (ours)",
}
POSE_COLUMNS = ("median_m", "mean_m", "heading_median_deg", "recall@1m", "recall@5m")
RETRIEVAL_COLUMNS = ("retrieval_recall@1",)
SEARCH_COLUMNS = ("end_to_end_recall@1m", "end_to_end_recall@5m")
# What a column's name means in a table's head; recalls are shown in per cent.
HEADS = {
    "median_m": "position median, m",
    "mean_m": "position mean, m",
    "heading_median_deg": "heading median, deg",
    "recall@1m": "within 1 m, %",
    "recall@5m": "within 5 m, %",
    "retrieval_recall@1": "retrieval recall@1, %",
    "end_to_end_recall@1m": "end to end within 1 m, %",
    "end_to_end_recall@5m": "end to end within 5 m, %",
    "pairs_per_s": "training pairs/s",
}


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (n - 1; 0 of a single value) and number of values."""

    mean: float
    deviation: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), deviation, len(values))


@dataclass(frozen=True)
class Row:
    """One line of a table: what it is of, and the figures of its repetitions."""

    labels: tuple[str, ...]
    results: tuple[Figures, ...]

    def spread(self, name: str) -> Spread | None:
        """Of one figure; None where nobody has it."""
        values = [figures[name] for figures in self.results if name in figures]
        return Spread.of(values) if values else None


@dataclass(frozen=True)
class Table:
    """A table of a part.

    Attributes:
        name: of its files.
        title, meaning: for the report.
        labels: heads of the first columns.
        columns: the figures that it shows.
        rows: finished ones only.
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
            shown = [format_spread(row.spread(name), name) for name in self.columns]
            lines.append([*row.labels, str(len(row.results)), *shown])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def write_csv(self, path: Path) -> None:
        """Fractions, metres and degrees as they are, unrounded."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            pairs = [f"{name} {what}" for name in self.columns for what in ("mean", "sd")]
            writer.writerow([*self.labels, f"num_{self.repeated}", *pairs])
            for row in self.rows:
                spreads = [row.spread(name) for name in self.columns]
                cells = [x for s in spreads for x in (("", "") if s is None else _plain(s))]
                writer.writerow([*row.labels, len(row.results), *cells])


def _plain(spread: Spread) -> tuple[str, str]:
    return repr(spread.mean), repr(spread.deviation)


def format_spread(spread: Spread | None, name: str) -> str:
    """`mean +- deviation`; recalls in per cent; nothing where there is nothing."""
    if spread is None:
        return ""
    factor, digits = (100.0, 1) if "recall" in name else (1.0, 2)
    mean = f"{factor * spread.mean:.{digits}f}"
    if spread.num == 1:
        return mean
    return f"{mean} ± {factor * spread.deviation:.{digits}f}"


class Tables:
    """Makes the tables of a plan out of its finished cells.

    Args:
        plan: what was wanted.
        baselines: by setting, what knowing nothing finds; empty before the test cities exist.
    """

    def __init__(
        self, plan: Plan, baselines: Mapping[Setting, Mapping[str, Figures]] | None = None
    ) -> None:
        self.plan, self.baselines = plan, baselines or {}

    def of(self, part: Part) -> list[Table]:
        """The tables of a part, without those that have no row yet."""
        makers = {
            "a": self._decoders,
            "b": self._tokens,
            "c": self._tasks,
            "d": self._grid,
            "e": self._conditions,
        }
        return [table for table in makers[part]() if table.rows]

    def results(self, cells: Sequence[Cell]) -> tuple[CellResult, ...]:
        """Of those that are finished."""
        found = (self.plan.store.result(cell) for cell in cells)
        return tuple(result for result in found if result is not None)

    def row(self, labels: tuple[str, ...], cells: Sequence[Cell]) -> Iterator[Row]:
        """One row if any of its cells is finished."""
        results = self.results(cells)
        if results:
            yield Row(labels, tuple(result.metrics for result in results))

    def _baseline_rows(self, setting: Setting, extra: tuple[str, ...] = ()) -> Iterator[Row]:
        for name, figures in self.baselines.get(setting, {}).items():
            yield Row((f"baseline: {name}", *extra), (figures,))

    def _decoders(self) -> Iterator[Table]:
        columns = (*POSE_COLUMNS, *RETRIEVAL_COLUMNS, "pairs_per_s")
        for setting in SETTINGS:
            rows: list[Row] = []
            for decoder in DECODERS:
                lr = self.plan.lr(decoder, setting)
                label = (DECODER_NAMES[decoder], "" if lr is None else f"{lr:g}")
                rows += self.row(label, self.plan.runs(decoder, setting=setting))
            rows += self._baseline_rows(setting, ("",))
            yield Table(
                f"a_decoder_{setting}",
                f"Decoder, {SETTING_TITLES[setting]}, {self.plan.config.num_pairs:,} pairs",
                MEANINGS[setting],
                ("decoder", "learning rate"),
                columns,
                tuple(rows),
            )
        rows = []
        for decoder in DECODERS:
            cell = self.plan.curve_cell(decoder)
            rows += self.row((DECODER_NAMES[decoder],), [] if cell is None else [cell])
        yield Table(
            "a_decoder_unknown_long",
            f"Decoder, {SETTING_TITLES['unknown']}, {self.plan.config.curve_pairs:,} pairs",
            "The same, one longer training each.",
            ("decoder",),
            columns,
            (*rows, *self._baseline_rows("unknown")),
        )

    def _tokens(self) -> Iterator[Table]:
        plan = self.plan
        rows = [
            *self.row(("one token for both tasks",), plan.runs("text", num_tokens=1)),
            *self.row(("two tokens",), plan.runs("text")),
            *self.row(("two tokens, swapped at test",), list(plan.swaps())),
            *self._baseline_rows("unknown"),
        ]
        yield Table(
            "b_tokens",
            f"Tokens of the paper's network, {plan.config.num_pairs:,} pairs",
            "If each token had learned its task, exchanging them must cost both tasks.",
            ("tokens",),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS),
            tuple(rows),
        )

    def _tasks(self) -> Iterator[Table]:
        plan, half = self.plan, self.plan.config.num_pairs // 2
        names: dict[Task, str] = {
            "both": f"joint, {plan.config.num_pairs:,} pairs",
            "retrieval": f"retrieval only, {half:,} pairs",
            "pose": f"pose only, {half:,} pairs",
        }
        rows = [row for task in names for row in self._task_rows(task, names[task])]
        yield Table(
            "c_single_tasks",
            "Joint training and single tasks",
            "Each task on its own; the two single-task networks together saw as many pairs as the "
            "joint one. What a network was not trained for is left out.",
            ("network",),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS),
            tuple(rows),
        )
        searches: list[Row] = []
        for first, second, num in plan.ways():
            kind = "joint" if first == "both" else "two networks"
            how = "first chip alone" if num == 1 else f"cascade, {num} chips"
            searches += self.row((kind, how), list(plan.searches(first, second, num)))
        yield Table(
            "c_end_to_end",
            "Joint network, two networks, and cascades, end to end",
            "Descriptors propose chips over all test cities; the evidence for poses decides.",
            ("networks", "search"),
            (*RETRIEVAL_COLUMNS, *SEARCH_COLUMNS),
            tuple(searches),
        )

    def _task_rows(self, task: Task, name: str) -> Iterator[Row]:
        for row in self.row((name,), self.plan.runs("ours", task=task)):
            left_out = {"retrieval": POSE_COLUMNS, "pose": RETRIEVAL_COLUMNS, "both": ()}[task]
            kept = ({k: v for k, v in f.items() if k not in left_out} for f in row.results)
            yield Row(row.labels, tuple(kept))

    def _grid(self) -> Iterator[Table]:
        grid = self.plan.config.grid
        rows: list[Row] = []
        for hfov_deg in grid.hfovs_deg:
            for prior_deg in grid.heading_priors_deg:
                labels = (f"{hfov_deg}", prior_name(prior_deg))
                rows += self.row(labels, self.plan.grid_cells(hfov_deg, prior_deg, USUAL))
        yield Table(
            "d_grid",
            "Field of view by prior on the heading",
            "One model for all; spread over cities.",
            ("field of view, deg", "heading prior"),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS, *SEARCH_COLUMNS),
            tuple(rows),
            repeated="cities",
        )

    def _conditions(self) -> Iterator[Table]:
        rows: list[Row] = []
        condition: Condition
        for hfov_deg in CONDITION_HFOVS_DEG:
            for condition in (USUAL, *self.plan.config.grid.conditions):
                cells = self.plan.grid_cells(hfov_deg, UNKNOWN_HEADING_DEG, condition)
                rows += self.row((f"{hfov_deg}", condition.name), cells)
        yield Table(
            "e_conditions",
            "Aerial change and occlusion, heading unknown",
            "The same model; one date apart is the usual case. Spread over cities.",
            ("field of view, deg", "condition"),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS, *SEARCH_COLUMNS),
            tuple(rows),
            repeated="cities",
        )


MEANINGS: dict[Setting, str] = {
    "unknown": "Four decoders on one trunk with the same pairs; poses in the true chip.",
    "aligned": "The same when the photo looks to the chip's up and the camera is within 20 m of "
    "its centre, east and north. The set decoders have learned that from their pairs; the "
    "geometric correlation is told as a prior.",
}
SETTING_TITLES: dict[Setting, str] = {
    "unknown": "unknown heading",
    "aligned": "aligned heading, shift of up to 20 m",
}


def prior_name(half_width_deg: int) -> str:
    """A heading prior in words."""
    if half_width_deg == 0:
        return "known"
    return "unknown" if half_width_deg >= 180 else f"±{half_width_deg} deg"
