"""What pictures and plots share: colours, marks on maps, and files that appear at once.

Drawn with matplotlib's objects alone: no global state, so a server may draw from any thread.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ciper.errors import OutputError
from ciper.files import written_whole
from ciper.geo import forward

Float = NDArray[np.floating[Any]]

DPI = 110
NUM_DECADES = 4.0  # of probability density, from the peak down, that a heat map shows

PAPER, INK, FAINT, MISSING = "#faf9f6", "#1c2430", "#6b7480", "#dfe1e0"
ANSWER, TRUTH, WARNING = "#ffffff", "#35f08b", "#c0392b"
OUTLINE, OTHER = "#10151c", "#cfe8ff"
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#3b1c8c", "#8a1fa8", "#e0357f", "#ff8c3a", "#ffe45c", "#fffbd0"]
)
HALO = [withStroke(linewidth=2.5, foreground=OUTLINE)]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a reader sees all of it or nothing.

    Raises:
        OutputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(buffer.getvalue())
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; choose another place or free some space"
        ) from error


def heat_rgba(prob: Float, peak: float) -> Float:
    """Colours of probabilities on a logarithmic scale; four decades below the peak is clear."""
    level = 1 + np.log10(np.maximum(prob / peak, 1e-12)) / NUM_DECADES
    level = np.clip(level, 0.0, 1.0)
    rgba = np.array(HEAT(level))
    rgba[..., 3] = 0.8 * level**1.2
    return rgba


def frame_map(ax: Axes, extent: tuple[float, float, float, float]) -> None:
    """Make axes a map of metres: left, right, bottom, top."""
    ax.set_xlim(extent[0], extent[1])
    ax.set_ylim(extent[2], extent[3])
    ax.set_aspect("equal")
    ax.set_autoscale_on(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor(MISSING)
    for side in ax.spines.values():
        side.set_color("#b8bcc0")


def draw_arrow(
    ax: Axes,
    x_m: float,
    y_m: float,
    heading_deg: float,
    *,
    length_m: float,
    color: str,
    width: float,
) -> None:
    """An arrow from a place along a heading, x east and y north."""
    tip = np.array([x_m, y_m]) + length_m * forward(heading_deg)
    outline = withStroke(linewidth=width + 2.4, foreground=OUTLINE)
    ax.add_patch(
        FancyArrowPatch(
            (x_m, y_m),
            (float(tip[0]), float(tip[1])),
            color=color,
            arrowstyle="-|>",
            mutation_scale=6 * width,
            lw=width,
            shrinkA=0,
            shrinkB=0,
            path_effects=[outline],
        )
    )


def draw_scale_bar(ax: Axes, left: float, bottom: float, width_m: float) -> None:
    """A bar of a round length in the lower left corner of a map of some width."""
    length = round_length(width_m / 4)
    x, y = left + 0.04 * width_m, bottom + 0.04 * width_m
    for color, line in ((OUTLINE, 6.0), ("#ffffff", 3.0)):
        ax.plot([x, x + length], [y, y], color=color, lw=line, solid_capstyle="butt")
    text = f"{length:g} m" if length < 1000 else f"{length / 1000:g} km"
    ax.text(x + length / 2, y + 0.015 * width_m, text, color="#ffffff", ha="center", va="bottom",
            fontsize=10.5, weight="bold", path_effects=HALO)  # fmt: skip


def round_length(length_m: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50 ... metres that is not longer."""
    power = 10.0 ** math.floor(math.log10(length_m))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= length_m)


def draw_north_arrow(ax: Axes, right: float, top: float, width_m: float) -> None:
    """An arrow to the north in the upper right corner of a map of some width."""
    x, y = right - 0.05 * width_m, top - 0.13 * width_m
    draw_arrow(ax, x, y, 0.0, length_m=0.075 * width_m, color="#ffffff", width=2.4)
    ax.text(x, y - 0.01 * width_m, "N", color="#ffffff", ha="center", va="top", fontsize=13,
            weight="bold", path_effects=HALO)  # fmt: skip
