"""A picture of one real photo, of its place from above, and of a model's answers there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import Camera
from ciper.drawing import (
    ANSWER,
    DPI,
    FAINT,
    INK,
    OUTLINE,
    PAPER,
    TRUTH,
    draw_arrow,
    draw_north_arrow,
    draw_scale_bar,
    frame_map,
    heat_rgba,
    save_figure,
)
from ciper.real_photos.figures import Trials, measures_of

Rgb = NDArray[np.uint8]
Floats = NDArray[np.float64]

MAX_PHOTO_PX = 1000


@dataclass(frozen=True)
class Shown:
    """What a picture shows besides answers.

    Attributes:
        pixels: `(H, W, 3)` the photo.
        camera: what it was taken to be.
        aerial: `(H, W, 3)` north up, the camera in its middle.
        gsd: of `aerial`.
        chip_m: side of the windows.
    """

    pixels: Rgb
    camera: Camera
    aerial: Rgb
    gsd: float
    chip_m: float


def draw_photo(trials: Trials, index: int, shown: Shown, path: Path) -> None:
    """Draw a photo, its window at the first offset, and the answers at all offsets, as PNG.

    Args:
        trials: with the answers.
        index: of the photo.
        shown: the photo and its imagery.
        path: the file to write.

    Raises:
        OutputError: it cannot be written.
    """
    figure = Figure(figsize=(16.0, 5.9), dpi=DPI, facecolor=PAPER)
    _draw_title(figure, trials, index)
    _draw_photo(figure.add_axes((0.012, 0.03, 0.31, 0.79)), shown)
    window = figure.add_axes((0.334, 0.03, 0.32, 0.79))
    _draw_window(window, trials, index, shown)
    _draw_all_answers(figure.add_axes((0.668, 0.03, 0.32, 0.79)), trials, index, shown)
    save_figure(figure, path)


def _draw_title(figure: Figure, trials: Trials, index: int) -> None:
    medians = {name: np.median(m.values[index]) for name, m in measures_of(trials).items()}
    text = f"median of {trials.confidence.shape[1]} offsets: {medians['distance_m']:.0f} m"
    if "heading_error_deg" in medians:
        text += f" and {medians['heading_error_deg']:.0f}°"
    text += f" off; rank {medians['rank_evidence']:.3g} of {len(trials.names)} windows"
    if trials.among_distractors is not None:
        rank, num = medians["distractor_rank_evidence"], trials.among_distractors.num + 1
        text += f", {rank:.4g} of {num} with distractors"
    figure.text(
        0.012, 0.94, trials.names[index], fontsize=17, weight="bold", color=INK, va="center"
    )
    figure.text(0.012, 0.875, f"{text} (by evidence)", fontsize=11.5, color=FAINT, va="center")


def _draw_photo(ax: Axes, shown: Shown) -> None:
    image = Image.fromarray(shown.pixels)
    image.thumbnail((MAX_PHOTO_PX, MAX_PHOTO_PX))
    ax.imshow(np.asarray(image), interpolation="bilinear")
    ax.set_anchor("NW")
    ax.set_axis_off()
    told = " (assumed)" if shown.camera.is_assumed else ""
    ax.set_title(
        f"the photo, {shown.camera.hfov_deg:.0f}° wide{told}", loc="left", fontsize=10, color=FAINT
    )


def _draw_window(ax: Axes, trials: Trials, index: int, shown: Shown) -> None:
    """All in metres about the camera."""
    true, found = trials.true[index, 0], trials.found[index, 0]
    centre, half = -true[:2], shown.chip_m / 2
    frame_map(ax, _square(centre, half))
    _draw_aerial(ax, shown)
    prob = trials.place_prob[index, 0]
    heat = heat_rgba(prob, float(prob.max()))
    ax.imshow(heat, extent=_square(centre, trials.half_m), interpolation="nearest")
    for color, width in ((OUTLINE, 2.6), (ANSWER, 1.2)):
        ax.add_patch(
            Rectangle(tuple(centre - trials.half_m), 2 * trials.half_m, 2 * trials.half_m,
                      fill=False, ec=color, lw=width, ls=(0, (4, 3)))
        )  # fmt: skip
    _draw_truth(ax, float(true[2]), length_m=half / 4)
    _draw_answer(ax, found[:2] - true[:2], float(found[2]), length_m=half / 4)
    _finish(ax, centre, half, f"window of {shown.chip_m:.0f} m, first offset")


def _draw_all_answers(ax: Axes, trials: Trials, index: int, shown: Shown) -> None:
    half = min(shown.aerial.shape[:2]) * shown.gsd / 2
    frame_map(ax, _square(np.zeros(2), half))
    _draw_aerial(ax, shown)
    _draw_truth(ax, float(trials.true[index, 0, 2]), length_m=half / 6)
    for true, found in zip(trials.true[index], trials.found[index], strict=True):
        _draw_answer(ax, found[:2] - true[:2], float(found[2]), length_m=half / 10)
    _finish(ax, np.zeros(2), half, "answers at all offsets")


def _square(centre: Floats, half: float) -> tuple[float, float, float, float]:
    x, y = centre.tolist()
    return x - half, x + half, y - half, y + half


def _draw_aerial(ax: Axes, shown: Shown) -> None:
    height, width = (n * shown.gsd / 2 for n in shown.aerial.shape[:2])
    ax.imshow(shown.aerial, extent=(-width, width, -height, height), interpolation="bilinear")


def _draw_truth(ax: Axes, heading_deg: float, *, length_m: float) -> None:
    draw_arrow(ax, 0.0, 0.0, heading_deg, length_m=length_m, color=TRUTH, width=2.2)
    for color, width in ((OUTLINE, 5.0), (TRUTH, 2.8)):
        ax.plot(0.0, 0.0, "o", ms=17, mfc="none", mec=color, mew=width)


def _draw_answer(ax: Axes, place: Floats, heading_deg: float, *, length_m: float) -> None:
    x_m, y_m = place.tolist()
    if np.isfinite(heading_deg):
        draw_arrow(ax, x_m, y_m, heading_deg, length_m=length_m, color=ANSWER, width=1.9)
    ax.plot(x_m, y_m, "o", ms=7, mfc=ANSWER, mec=OUTLINE, mew=1.2)


def _finish(ax: Axes, centre: Floats, half: float, title: str) -> None:
    left, right, bottom, top = _square(centre, half)
    draw_scale_bar(ax, left, bottom, 2 * half)
    draw_north_arrow(ax, right, top, 2 * half)
    ax.set_title(title, loc="left", fontsize=10, color=FAINT)
