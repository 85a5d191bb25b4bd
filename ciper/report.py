"""The report of an evaluation: tables, plots, and pictures of the worst and of typical cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from ciper import plots
from ciper.asking import Progress
from ciper.errors import OutputError
from ciper.files import is_free
from ciper.localize import Localizer
from ciper.metrics import finite_or_none
from ciper.picture import answer_picture
from ciper.scoring import Query, Setting, baseline_answers, errors_of, table_of

METRICS, TABLE, TEXT = "metrics.json", "per_query.parquet", "report.md"
NUM_CASES = 6

RETRIEVAL_ROWS = ("recall@1", "recall@5", "recall@10", "recall@1%", "hit_rate")
POSE_ROWS = (
    "mean_m", "median_m", "recall@1m", "recall@3m", "recall@5m", "lateral_median_m",
    "lateral_recall@1m", "lateral_recall@5m", "longitudinal_median_m", "longitudinal_recall@1m",
    "longitudinal_recall@5m", "heading_mean_deg", "heading_median_deg", "heading_recall@1deg",
    "heading_recall@5deg",
)  # fmt: skip
END_TO_END_ROWS = (
    "median_m", "recall@1m", "recall@3m", "recall@5m", "recall@10m", "recall@25m",
    "heading_median_deg", "gated_recall@1m", "gated_recall@5m",
)  # fmt: skip
CALIBRATION_ROWS = (
    "coverage_50", "coverage_90", "median_radius_90_m", "ece", "aurc", "nll",
    "heading_within_sigma",
)  # fmt: skip
FOREIGN_ROWS = ("num", "auroc", "share_above_0.5", "share_right_confident")


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report is made of.

    Attributes:
        queries: with all answers.
        metrics: what metrics.json holds.
        setting: what the queries have in common.
        localizer: that answered.
        foreign_confidence: of the photos that were taken elsewhere.
    """

    queries: Sequence[Query]
    metrics: Mapping[str, Any]
    setting: Setting
    localizer: Localizer
    foreign_confidence: Sequence[float]


def check_replaceable(out: Path) -> None:
    """Refuse a place that holds anything but an older report.

    Raises:
        OutputError: it is neither free nor a report.
    """
    is_report = all((out / name).is_file() for name in (METRICS, TEXT))
    if not (is_report or is_free(out)):
        raise OutputError(
            f"{out} exists and is not a report of ciper evaluate; name a new folder or remove it"
        )


def write_metrics(folder: Path, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Write metrics.json into a folder; returns what it holds."""
    finite = finite_or_none(figures)
    text = json.dumps(finite, indent=2, allow_nan=False) + "\n"
    (folder / METRICS).write_text(text, encoding="utf-8")
    return finite


def write_report(folder: Path, evaluation: Evaluation, progress: Progress) -> None:
    """Write everything but metrics.json into a folder."""
    write_table(folder, table_of(evaluation.queries, evaluation.setting))
    pictures = plots.draw_all(
        folder, evaluation.queries, evaluation.metrics,
        baseline_answers(evaluation.queries, evaluation.setting),
        foreign_confidence=evaluation.foreign_confidence,
    )  # fmt: skip
    cases = _draw_cases(folder, evaluation, progress)
    (folder / TEXT).write_text(_text(evaluation.metrics, pictures, cases), encoding="utf-8")


def write_table(folder: Path, columns: Mapping[str, list[Any]]) -> None:
    """Write per_query.parquet into a folder."""
    table = pyarrow.table(dict(columns))
    pyarrow.parquet.write_table(table, folder / TABLE, compression="zstd")


# -------------------------------------------------------------------------------------------- cases


def choose_cases(error_m: Sequence[float]) -> dict[str, list[int]]:
    """Indexes of the worst answers and of typical ones, evenly spread over the others by error."""
    order = np.argsort(-np.asarray(error_m), kind="stable")
    worst, others = order[:NUM_CASES], order[NUM_CASES:][::-1]
    middle = (np.arange(NUM_CASES) + 0.5) / NUM_CASES * len(others)
    typical = others[np.unique(middle.astype(int))] if len(others) else others
    return {"worst": worst.tolist(), "typical": typical.tolist()}


def drawn_cases(
    folder: Path,
    names: Sequence[str],
    error_m: Sequence[float],
    draw: Callable[[int, Path, str], str],
    progress: Progress,
) -> dict[str, list[str]]:
    """Pictures of the cases of some queries; their names by kind, each with a line about the case.

    Args:
        folder: of the report; the pictures lie in its new folder "cases".
        names: of the queries.
        error_m: of their answers.
        draw: called with a query's index, the file to write and a caption; returns what else the
            line says of it.
        progress: called with (what, done, total).
    """
    (folder / "cases").mkdir()
    if not names:
        return {}
    chosen = choose_cases(error_m)
    lines: dict[str, list[str]] = {kind: [] for kind in chosen}
    num_done, num_total = 0, sum(map(len, chosen.values()))
    for kind, indexes in chosen.items():
        for number, index in enumerate(indexes, start=1):
            name = f"cases/{kind}-{number}.png"
            caption = f"{names[index]}: {error_m[index]:.1f} m off"
            remark = draw(index, folder / name, caption)
            lines[kind].append(f"**{caption}**{remark}\n\n![{caption}]({name})")
            num_done += 1
            progress("pictures", num_done, num_total)
    return lines


def _draw_cases(folder: Path, evaluation: Evaluation, progress: Progress) -> dict[str, list[str]]:
    queries = [query for query in evaluation.queries if query.encoded is not None]

    def draw(index: int, path: Path, _caption: str) -> str:
        query = queries[index]
        assert query.encoded is not None
        found = evaluation.localizer.answer(query.encoded)
        photo, _, _ = query.pose.read()
        answer_picture(found, evaluation.localizer, photo, path, truth=query.pose)
        return f", confidence {found.stated_confidence}"

    names = [query.pose.photo.name for query in queries]
    error_m = errors_of(queries, "whole").position_m.tolist() if queries else []
    return drawn_cases(folder, names, error_m, draw, progress)


# --------------------------------------------------------------------------------------------- text


def _text(
    figures: Mapping[str, Any], pictures: Mapping[str, str], cases: Mapping[str, Sequence[str]]
) -> str:
    parts = [_introduction(figures)]
    parts += [f"> {warning}" for warning in figures["warnings"]]
    parts.append("## Which chip?\n\n" + _retrieval_table(figures) + image(pictures, "retrieval"))
    parts.append(
        "## Where in the chip?\n\nOne chip per photo, cut so that the camera lies uniformly in its "
        "central half; heading unknown.\n\n" + block_table(figures, "pose", POSE_ROWS)
    )
    parts.append(
        "## Where in the gallery?\n\nThe final answer over all queries; heading and place "
        "unknown.\n\n" + block_table(figures, "end_to_end", END_TO_END_ROWS)
    )
    if "end_to_end_near" in figures:
        near = figures["end_to_end_near"]
        parts.append(
            f"### With a prior {near['near_error_m']:g} m off, radius "
            f"{near['near_radius_m']:g} m\n\n"
            + block_table(figures, "end_to_end_near", END_TO_END_ROWS)
        )
    parts.append(image(pictures, "errors") + image(pictures, "recall") + image(pictures, "heading"))
    parts.append("## Does it know what it knows?\n\n" + calibration_table(figures))
    parts.append(image(pictures, "calibration"))
    if "foreign" in figures:
        rows = [(name, number(figures["foreign"][name])) for name in FOREIGN_ROWS]
        parts.append("### Photos taken elsewhere\n\n" + markdown(("", "foreign"), rows))
    for kind, lines in cases.items():
        if lines:
            parts.append(f"## {kind.capitalize()} cases\n\n" + "\n\n".join(lines))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _introduction(figures: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in figures.get("settings", {}).items())
    return (
        f"# Evaluation of `{figures['model']}`\n\n"
        f"{settings}{'. ' if settings else ''}"
        f"N = {figures['num_queries']} photos of `{figures['spec']}` against R = "
        f"{figures['num_references']} chips of `{figures['gallery']}`: chips of "
        f"{figures['chip_m']:g} m every {figures['stride_m']:g} m. "
        f"{figures['num_outside']} true positions outside the gallery, "
        f"{figures['num_unreadable']} photos unreadable. Seed {figures['seed']}. "
        f"{number(figures['seconds_per_query'])} s per photo (median), "
        f"{figures['seconds']:.0f} s in all. Weights `{figures['model_hash'][:12]}`.\n\n"
        "Figures are defined in docs/metrics.md; those of every query are in "
        f"[{TABLE}]({TABLE}), these tables in [{METRICS}]({METRICS})."
    )


def _retrieval_table(figures: Mapping[str, Any]) -> str:
    num = figures["num_references"]
    ks = {"recall@1": 1, "recall@5": 5, "recall@10": 10, "recall@1%": num // 100 + 1, "hit_rate": 1}
    rows = [
        (
            name,
            number(figures["retrieval"][name]),
            number(figures["retrieval_matched"][name]),
            number(figures["retrieval_posterior"][name]),
            number(min(1.0, ks[name] / num)),
        )
        for name in RETRIEVAL_ROWS
    ]
    head = ("", "by descriptor", "by evidence of all poses", "in the answer", "random")
    return markdown(head, rows) + "\n\n"


def block_table(figures: Mapping[str, Any], block: str, names: Sequence[str]) -> str:
    """A measurement beside its baselines."""
    baseline = figures["baseline"]
    rows = [
        (
            name,
            number(figures[block][name]),
            *(number(baseline[kind].get(block, {}).get(name), "") for kind in ("center", "random")),
        )
        for name in names
    ]
    return markdown(("", "CIPER", "centre", "random"), rows)


def calibration_table(figures: Mapping[str, Any]) -> str:
    """How calibrated the answers are that were measured so."""
    columns = {"calibration": "whole gallery", "calibration_near": "with the prior",
               "calibration_pose": "in the true chip"}  # fmt: skip
    shown = {block: title for block, title in columns.items() if block in figures}
    rows = [(name, *(number(figures[block][name]) for block in shown)) for name in CALIBRATION_ROWS]
    return markdown(("", *shown.values()), rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, missing: str = "infinite") -> str:
    """Four significant digits; what JSON holds as null was infinite or undefined."""
    return missing if value is None else f"{value:.4g}"


def image(pictures: Mapping[str, str], name: str) -> str:
    """A picture, if there is one of that name."""
    return f"![{name}]({pictures[name]})\n\n" if name in pictures else ""
