"""The report of a published protocol: tables, plots, and pictures of the worst cases and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ciper import plots
from ciper.asking import Progress
from ciper.data.sheet import draw_chip
from ciper.data.shown import read_shown
from ciper.drawing import ANSWER, DPI, INK, OUTLINE, PAPER, draw_arrow, save_figure
from ciper.geo import forward, right
from ciper.published.figures import Asked, SampleQuery, baseline_answers, table_of
from ciper.report import (
    END_TO_END_ROWS,
    METRICS,
    POSE_ROWS,
    RETRIEVAL_ROWS,
    TABLE,
    TEXT,
    block_table,
    calibration_table,
    drawn_cases,
    image,
    markdown,
    number,
    write_table,
)
from ciper.scoring import errors_of

MAX_PHOTO_PX = 900


def write_published_report(
    folder: Path,
    queries: Sequence[SampleQuery],
    figures: Mapping[str, Any],
    asked: Asked,
    progress: Progress,
) -> None:
    """Write everything but metrics.json into a folder.

    Args:
        folder: to write to.
        queries: with all answers.
        figures: what metrics.json holds.
        asked: what was asked of whom.
        progress: called with (what, done, total).
    """
    write_table(folder, table_of(queries, asked))
    pictures = plots.draw_all(folder, queries, figures, baseline_answers(queries, asked))
    cases = _draw_cases(folder, queries, progress)
    (folder / TEXT).write_text(_text(figures, pictures, cases), encoding="utf-8")


# -------------------------------------------------------------------------------------------- cases


def _draw_cases(
    folder: Path, queries: Sequence[SampleQuery], progress: Progress
) -> dict[str, list[str]]:
    readable = [query for query in queries if not query.problem]

    def draw(index: int, path: Path, caption: str) -> str:
        draw_case(readable[index], path, title=caption)
        return ""

    names = [query.sample.name for query in readable]
    error_m = errors_of(readable, "in_chip").position_m.tolist() if readable else []
    return drawn_cases(folder, names, error_m, draw, progress)


def draw_case(query: SampleQuery, path: Path, *, title: str) -> None:
    """A photo as it was shown, beside its published chip with the truth and the answer.

    Raises:
        OutputError: the file cannot be written.
        PhotoError, CameraError: the photo cannot be read any more.
    """
    figure = Figure(figsize=(13.0, 4.6), dpi=DPI, facecolor=PAPER)
    figure.text(0.015, 0.94, title, fontsize=12, weight="bold", color=INK)
    shown = Image.fromarray(read_shown(query.sample)[0])
    shown.thumbnail((MAX_PHOTO_PX, MAX_PHOTO_PX))
    photo = figure.add_axes((0.015, 0.05, 0.63, 0.84))
    photo.axis("off")
    photo.imshow(np.asarray(shown), interpolation="bilinear")
    chip = figure.add_axes((0.665, 0.03, 0.32, 0.87))
    # The sheet's arrow belongs to the middle of the file; here it is that of what is shown.
    draw_chip(chip, replace(query.sample, turn_deg=0.0))
    _draw_answer(chip, query)
    save_figure(figure, path)


def _draw_answer(ax: Axes, query: SampleQuery) -> None:
    sample, found = query.sample, query.in_chip
    offset = np.array([found.x_m, found.y_m])
    if not np.isfinite(offset).all():
        return
    up_deg = sample.cut.up_deg
    x_m = sample.pose[0] + float(offset @ right(up_deg))
    y_m = sample.pose[1] + float(offset @ forward(up_deg))
    if np.isfinite(found.heading_deg):
        draw_arrow(ax, x_m, y_m, found.heading_deg - up_deg, length_m=sample.cut.side_m / 6,
                   color=ANSWER, width=2.2)  # fmt: skip
    ax.plot(x_m, y_m, "o", ms=7, mfc=ANSWER, mec=OUTLINE, mew=1.2)


# --------------------------------------------------------------------------------------------- text


def _text(
    figures: Mapping[str, Any], pictures: Mapping[str, str], cases: Mapping[str, Sequence[str]]
) -> str:
    parts = [_introduction(figures)]
    parts += [f"> {warning}" for warning in figures["warnings"]]
    parts.append("## Which chip?\n\n" + _retrieval_table(figures) + image(pictures, "retrieval"))
    parts.append(
        "## Where in the chip?\n\nThe published chip of every query; `pose` with what the protocol "
        "tells of it beforehand, `pose_untold` without.\n\n" + _pose_table(figures)
    )
    if "end_to_end" in figures:
        parts.append(
            "## Where in the gallery?\n\nOne answer over the "
            f"{figures['num_candidates']} most similar references, over all queries.\n\n"
            + block_table(
                figures, "end_to_end", _asked_rows(figures, "end_to_end", END_TO_END_ROWS)
            )
        )
    parts.append("\n\n".join(image(pictures, name) for name in ("errors", "recall", "heading")))
    if "calibration_pose" in figures:
        parts.append("## Does it know what it knows?\n\n" + calibration_table(figures))
        parts.append(image(pictures, "calibration"))
    rows = [(name, _cell(name, value)) for name, value in figures["legacy"].items()]
    parts.append(
        "## As the paper's code counts\n\nFor comparison with published tables alone: these "
        "formulas are wrong in the ways that docs/datasets.md names.\n\n"
        + markdown(("", "legacy"), rows)
    )
    for kind, lines in cases.items():
        if lines:
            parts.append(
                f"## {kind.capitalize()} cases\n\nGreen is the truth, white the answer in the "
                "published chip.\n\n" + "\n\n".join(lines)
            )
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _introduction(figures: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in figures["settings"].items())
    return (
        f"# Evaluation of `{figures['model']}` on {figures['dataset']}\n\n"
        f"`{figures['spec']}`: {settings}. N = {figures['num_queries']} queries, R = "
        f"{figures['num_references']} references. {figures['num_outside']} queries without a "
        f"reference, {figures['num_unreadable']} unreadable. Seed {figures['seed']}. "
        f"{number(figures['seconds_per_query'])} s per query (median), "
        f"{figures['seconds']:.0f} s in all. Weights `{figures['model_hash'][:12]}`.\n\n"
        "Figures are defined in docs/metrics.md; those of every query are in "
        f"[{TABLE}]({TABLE}), these tables in [{METRICS}]({METRICS})."
    )


def _retrieval_table(figures: Mapping[str, Any]) -> str:
    block = "retrieval" if "retrieval" in figures else "retrieval_per_query_chips"
    num = figures["num_references"]
    ks = {"recall@1": 1, "recall@5": 5, "recall@10": 10, "recall@1%": num // 100 + 1, "hit_rate": 1}
    rows = [
        (name, number(figures[block][name]), number(min(1.0, ks[name] / num)))
        for name in RETRIEVAL_ROWS
        if name in figures[block]
    ]
    return markdown(("", block, "random"), rows) + "\n\n"


def _pose_table(figures: Mapping[str, Any]) -> str:
    baseline = figures["baseline"]
    columns = {name: figures[name] for name in ("pose", "pose_untold") if name in figures}
    columns["centre"], columns["random"] = baseline["center"]["pose"], baseline["random"]["pose"]
    names = _asked_rows(figures, "pose_untold" if "pose_untold" in figures else "pose", POSE_ROWS)
    rows = [(name, *(_cell(name, block[name]) for block in columns.values())) for name in names]
    return markdown(("", *columns), rows)


def _cell(name: str, value: float | None) -> str:
    """A heading that is told or that the model does not know has no figure."""
    return number(value, "" if name.startswith("heading") else "infinite")


def _asked_rows(figures: Mapping[str, Any], block: str, names: Sequence[str]) -> tuple[str, ...]:
    """The rows without those of headings where nothing is known of them."""
    is_unknown = figures[block]["heading_median_deg"] is None
    return tuple(n for n in names if not (is_unknown and n.startswith("heading")))
