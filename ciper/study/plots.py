"""The study's plots: learning curves, bars of the tables, and the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciper.study.cells import Decoder
from ciper.study.config import Part
from ciper.study.parts import DECODER_NAMES, SETTING_TITLES, Tables
from ciper.study.plan import CURVE_DECODERS
from ciper.study.tables import HEADS, Figures, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: dict[Decoder, str] = {
    "authors": "#8d99ae",
    "text": "#e07a3f",
    "one_way": "#c9a227",
    "ours": "#1f6f8b",
    "ours_refined": "#0b3c49",
}
BAR_COLOR = "#1f6f8b"
CURVE = "a_decoder_unknown_curve"


def draw_part(folder: Path, part: Part, tables: Tables) -> dict[str, str]:
    """Writes the plots of a part; returns their file names by the table that they belong to."""
    drawn: dict[str, str] = {}
    for table in tables.of(part):
        figure, shown = _new_figure(), _bar_columns(table)
        if table.name == "d_grid":
            _draw_grid(figure, table, "end_to_end_recall@5m")
        elif shown:
            _draw_bars(figure, table, shown)
        else:
            continue
        drawn[table.name] = _save(figure, folder, table.name)
    if part == "a":
        name = _draw_curves(folder, tables)
        if name:
            drawn[CURVE] = name
    return drawn


def _new_figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(8.0, 4.2), layout="constrained")


def _save(figure: Figure, folder: Path, name: str) -> str:
    figure.savefig(folder / f"{name}.png", dpi=130)
    return f"{name}.png"


def _bar_columns(table: Table) -> list[str]:
    """Which of a table's figures are drawn: those that any row has."""
    by_descriptor, by_evidence = "retrieval_recall@1", "matched_recall@1"
    found = by_descriptor if by_descriptor in table.columns else by_evidence
    wanted = ("median_m", found, "end_to_end_recall@5m")
    return [n for n in wanted if n in table.columns and any(r.summary(n) for r in table.rows)]


def _draw_bars(figure: Figure, table: Table, shown: Sequence[str]) -> None:
    """One panel per kind of figure, a bar per row, the standard deviation as a whisker."""
    panels: Any = figure.subplots(1, len(shown), squeeze=False, sharey=True)
    labels = [", ".join(part for part in row.labels if part) for row in table.rows]
    for axes, name in zip(panels[0], shown, strict=True):
        _bars(axes, table, name)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0][0].invert_yaxis()
    figure.suptitle(table.title, fontsize=10)


def _bars(axes: Axes, table: Table, name: str) -> None:
    factor = 100.0 if "recall" in name else 1.0
    for number, row in enumerate(table.rows):
        summary = row.summary(name)
        if summary is not None:
            error = factor * summary.deviation if summary.num > 1 else None
            axes.barh(number, factor * summary.mean, xerr=error, color=BAR_COLOR, capsize=3)
    if "recall" in name:
        axes.set_xlim(0, 100)
    axes.set_xlabel(HEADS[name])
    axes.grid(axis="x", alpha=0.3)


def _draw_grid(figure: Figure, table: Table, name: str) -> None:
    """Field of view down, heading prior across, one colour per recall."""
    views = list(dict.fromkeys(row.labels[0] for row in table.rows))
    priors = list(dict.fromkeys(row.labels[1] for row in table.rows))
    values = np.full((len(views), len(priors)), np.nan)
    for row in table.rows:
        summary = row.summary(name)
        if summary is not None:
            values[views.index(row.labels[0]), priors.index(row.labels[1])] = 100 * summary.mean
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value < 60 else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(priors)), priors)
    axes.set_yticks(range(len(views)), views)
    axes.set_xlabel(table.labels[1])
    axes.set_ylabel(table.labels[0])
    figure.colorbar(image, label=HEADS[name])
    figure.suptitle(table.title, fontsize=10)


def _draw_curves(folder: Path, tables: Tables) -> str | None:
    """Validation error against pairs seen, of the long training of every decoder."""
    curves: dict[Decoder, list[tuple[int, float]]] = {}
    for decoder in CURVE_DECODERS:
        cell = tables.plan.curve_cell(decoder)
        for result in tables.results([] if cell is None else [cell]):
            # A training that diverged early was never measured.
            if result.curve:
                curves[decoder] = [(pairs, figures["median_m"]) for pairs, figures in result.curve]
    if not curves:
        return None
    figure = _new_figure()
    axes = figure.subplots()
    for decoder, points in curves.items():
        pairs, errors = zip(*points, strict=True)
        label = DECODER_NAMES[decoder]
        axes.plot(pairs, errors, marker="o", color=COLORS[decoder], label=label)
    baseline: Mapping[str, Figures] = tables.baselines.get("unknown", {})
    if "center" in baseline:
        center = baseline["center"]["median_m"]
        axes.axhline(center, color="black", linestyle=":", label="chip centre (test)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("pairs seen")
    axes.set_ylabel(f"{HEADS['median_m']} (validation)")
    axes.set_title(f"Decoder, {SETTING_TITLES['unknown']}", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return _save(figure, folder, CURVE)
