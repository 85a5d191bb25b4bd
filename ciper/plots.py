"""The plots of an evaluation, drawn with matplotlib's objects alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ciper import metrics
from ciper.drawing import DPI, FAINT, INK, PAPER, save_figure
from ciper.scoring import Query, answers_of, errors_about_truth, errors_of

Floats = NDArray[np.float64]

COLORS = {
    "end_to_end": "#1f6f8b", "end_to_end_near": "#2ca58d", "pose": "#e07a3f",
    "pose_untold": "#8e7cc3",
}  # fmt: skip
NAMES = {
    "end_to_end": "whole gallery",
    "end_to_end_near": "with the prior",
    "pose": "in the true chip",
    "pose_untold": "in the true chip, nothing told",
}
FOUND = {
    "end_to_end": "whole",
    "end_to_end_near": "near",
    "pose": "in_chip",
    "pose_untold": "untold",
}
MAX_RECALL_M = 25.0
LEVELS = np.linspace(0.0, 1.0, 101)


def draw_all(
    folder: Path,
    queries: Sequence[Query],
    figures: Mapping[str, Any],
    baselines: Mapping[str, Mapping[str, Floats]],
    *,
    foreign_confidence: Sequence[float] = (),
) -> dict[str, str]:
    """Write the plots of the blocks that there are; returns their file names by what they show.

    Args:
        folder: to write to.
        queries: with all answers.
        figures: what metrics.json holds.
        baselines: by block and baseline, `(N, 3)` answers about the true positions.
        foreign_confidence: of photos that were taken elsewhere.
    """
    blocks = [block for block in FOUND if block in figures]
    errors = {block: errors_of(queries, FOUND[block]).position_m for block in blocks}
    random = {
        f"{NAMES[block]}: random": errors_about_truth(baselines[block]["random"], queries)
        for block in blocks
        if block in baselines
    }
    random_m = {name: found.position_m for name, found in random.items()}
    drawn: dict[str, Callable[[Figure], None]] = {
        "errors": lambda figure: _draw_errors(figure, errors, random_m),
        "recall": lambda figure: _draw_recall(figure, errors, random_m, queries),
        "heading": lambda figure: _draw_heading(figure, queries, blocks),
    }
    if "retrieval" in figures:
        drawn["retrieval"] = lambda figure: _draw_retrieval(figure, queries, figures)
    if "calibration_pose" in figures:
        drawn["calibration"] = lambda figure: _draw_calibration(
            figure, queries, blocks, foreign_confidence
        )
    for name, draw in drawn.items():
        width = 13.0 if name == "calibration" else 7.5
        figure = Figure(figsize=(width, 4.8), dpi=DPI, facecolor=PAPER, layout="constrained")
        draw(figure)
        save_figure(figure, folder / f"{name}.png")
    return {name: f"{name}.png" for name in drawn}


def _axes(figure: Figure, title: str, x: str, y: str, place: tuple[int, int, int]) -> Axes:
    ax = figure.add_subplot(*place)
    ax.set_title(title, loc="left", fontsize=12, color=INK, weight="bold")
    ax.set_xlabel(x, color=FAINT)
    ax.set_ylabel(y, color=FAINT)
    ax.set_facecolor("#ffffff")
    ax.grid(color="#e4e6e8", lw=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#b8bcc0")
    ax.tick_params(colors=FAINT)
    return ax


def _legend(ax: Axes, place: Any) -> None:
    ax.legend(loc=place, fontsize=9, frameon=True, framealpha=0.9, edgecolor="#e4e6e8")


def _draw_errors(
    figure: Figure, errors: Mapping[str, Floats], baselines: Mapping[str, Floats]
) -> None:
    ax = _axes(figure, "Position error", "error, m", "fraction of queries below", (1, 1, 1))
    curves = {NAMES[block]: (values, COLORS[block], "-") for block, values in errors.items()}
    for block in errors:
        name = f"{NAMES[block]}: random"
        if name in baselines:
            curves[name] = (baselines[name], COLORS[block], ":")
    for name, (values, color, style) in curves.items():
        ordered = np.sort(values)
        height = np.arange(1, len(values) + 1) / len(values)
        is_finite = np.isfinite(ordered)
        ax.step(np.maximum(ordered[is_finite], 0.02), height[is_finite], where="post", label=name,
                color=color, ls=style, lw=2.2 if style == "-" else 1.3)  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(0, 1.02)
    for threshold in (1, 5):
        ax.axvline(threshold, color="#b8bcc0", lw=1, ls="--")
    _legend(ax, "upper left")


def _draw_recall(
    figure: Figure,
    errors: Mapping[str, Floats],
    baselines: Mapping[str, Floats],
    queries: Sequence[Query],
) -> None:
    ax = _axes(figure, "Recall over distance", "distance, m", "recall", (1, 1, 1))
    distance = np.linspace(0, MAX_RECALL_M, 251)[1:]
    is_first_right = np.array([query.rank == 0 for query in queries])
    curves = [(NAMES[block], values, COLORS[block], "-") for block, values in errors.items()]
    if "end_to_end" in errors:
        gated = np.where(is_first_right, errors["end_to_end"], np.inf)
        curves.append(("whole gallery, first chip right", gated, COLORS["end_to_end"], "--"))
    name = f"{NAMES['pose']}: random"
    curves.append((name, baselines[name], COLORS["pose"], ":"))
    for name, values, color, style in curves:
        recall = [metrics.recall_within(values, float(d)) for d in distance]
        ax.plot(
            distance, recall, color=color, ls=style, label=name, lw=2.2 if style == "-" else 1.4
        )
    ax.set_xlim(0, MAX_RECALL_M)
    ax.set_ylim(0, 1.02)
    _legend(ax, "lower right")


def _draw_retrieval(figure: Figure, queries: Sequence[Query], figures: Mapping[str, Any]) -> None:
    num_references = figures["num_references"]
    ax = _axes(figure, f"Retrieval among {num_references} chips", "k", "recall@k", (1, 1, 1))
    k = np.unique(np.geomspace(1, num_references, 60).astype(int))
    curves = [("by descriptor", [query.rank for query in queries], COLORS["end_to_end"])]
    if "retrieval_matched" in figures:
        matched = [query.matched_rank for query in queries]
        curves.append(("by evidence of all poses", matched, COLORS["pose"]))
    for name, ranks, color in curves:
        recall = [metrics.recall_at_k(ranks, int(i)) for i in k]
        ax.plot(k, recall, color=color, lw=2.2, label=name, marker="o", ms=3)
    ax.plot(k, k / num_references, color=FAINT, ls=":", lw=1.3, label="random")
    ax.set_xscale("log")
    ax.set_ylim(0, 1.02)
    _legend(ax, "lower right")


def _draw_heading(figure: Figure, queries: Sequence[Query], blocks: Sequence[str]) -> None:
    ax = _axes(figure, "Heading error", "error, degrees", "fraction of queries", (1, 1, 1))
    edges = np.array([0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 135, 180.0])
    place = np.arange(len(edges) - 1)
    width = 0.8 / len(blocks)
    for number, block in enumerate(blocks):
        error = errors_of(queries, FOUND[block]).heading_deg
        error = error[~np.isnan(error)]  # the unknown true headings
        if not len(error):
            continue
        share = np.histogram(error, edges)[0] / len(error)
        ax.bar(place + (number - (len(blocks) - 1) / 2) * width, share, width, color=COLORS[block],
               label=NAMES[block])  # fmt: skip
    labels = [f"{a:g}-{b:g}" for a, b in pairwise(edges)]
    ax.set_xticks(place, labels, rotation=45, ha="right", fontsize=8)
    if ax.has_data():
        _legend(ax, "upper right")


def _draw_calibration(
    figure: Figure,
    queries: Sequence[Query],
    blocks: Sequence[str],
    foreign_confidence: Sequence[float],
) -> None:
    ax = _axes(figure, "Credible regions", "mass of the region", "truths inside", (1, 3, 1))
    ax.plot([0, 1], [0, 1], color=FAINT, ls=":", lw=1.3)
    for block in blocks:
        found = answers_of(queries, FOUND[block])
        masses = [f.denser_mass for f in found], [f.credible_mass for f in found]
        covered = [metrics.coverage(*masses, float(level)) for level in LEVELS]
        ax.plot(LEVELS, covered, color=COLORS[block], lw=2.2, label=NAMES[block])
    _legend(ax, "upper left")
    main = FOUND["end_to_end" if "end_to_end" in blocks else "pose"]
    confidence = np.array([found.confidence for found in answers_of(queries, main)])
    is_right = errors_of(queries, main).position_m < metrics.CORRECT_WITHIN_M
    _draw_reliability(figure, confidence, is_right)
    ax = _axes(figure, "Confidence", "confidence", "fraction of photos", (1, 3, 3))
    groups = [("within 5 m", confidence[is_right], "#2ca58d"),
              ("wrong", confidence[~is_right], "#c0392b"),
              ("foreign", np.asarray(foreign_confidence), "#8e7cc3")]  # fmt: skip
    shown = [group for group in groups if len(group[1])]
    ax.hist([values for _, values, _ in shown], bins=np.linspace(0, 1, 11).tolist(),
            weights=[np.full(len(values), 1 / len(values)) for _, values, _ in shown],
            color=[color for *_, color in shown],
            label=[f"{name} ({len(values)})" for name, values, _ in shown])  # fmt: skip
    _legend(ax, "upper center")


def _draw_reliability(figure: Figure, confidence: Floats, is_right: NDArray[np.bool_]) -> None:
    """Bins of equal mass, as the expected calibration error has them."""
    ax = _axes(figure, "Reliability", "confidence", "answers within 5 m", (1, 3, 2))
    ax.plot([0, 1], [0, 1], color=FAINT, ls=":", lw=1.3)
    order = np.argsort(confidence, kind="stable")
    num_bins = min(metrics.NUM_CALIBRATION_BINS, max(1, len(order) // 4))
    bins = np.array_split(order, num_bins)
    x = [confidence[b].mean() for b in bins]
    y = [is_right[b].mean() for b in bins]
    spread = [np.sqrt(p * (1 - p) / len(b)) for p, b in zip(y, bins, strict=True)]
    ax.errorbar(x, y, yerr=spread, color=COLORS["end_to_end"], marker="o", lw=1.8, capsize=3)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
