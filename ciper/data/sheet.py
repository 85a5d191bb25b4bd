"""A contact sheet: photos of a data set beside their published chips, each with its camera drawn.

A label that is read with a wrong sign, or in pixels of another image size, shows here at a glance.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ciper.data.chips import ImageReader
from ciper.data.preprocess import read_photo
from ciper.data.protocol import Sample
from ciper.drawing import (
    DPI,
    FAINT,
    INK,
    MISSING,
    OUTLINE,
    PAPER,
    TRUTH,
    WARNING,
    draw_arrow,
    draw_scale_bar,
    frame_map,
    save_figure,
)
from ciper.errors import CiperError, DatasetError, OutputError, PhotoError

Rgb = NDArray[np.uint8]

CHIP_PX = 400
MAX_PHOTO_PX = 900
NUM_COLUMNS = 2
WIDTH_IN, TILE_IN, TITLE_IN = 15.0, 3.1, 0.55
_MAX_NAME = 64


def draw_sheet(samples: Sequence[Sample], path: str | Path, *, title: str) -> None:
    """Draw samples as a PNG that appears at once or not at all.

    Each photo lies beside its chip, drawn as it was published: not north up where that was turned.
    The arrow points where the middle of the photo looks. A file that cannot be read leaves its
    place empty and says so.

    Args:
        samples: what to draw, two in a row.
        path: the file to write; its folder is made if absent.
        title: the first line.

    Raises:
        OutputError: the path does not end in .png or cannot be written.
    """
    path = Path(path)
    require_png(path)
    num_rows = math.ceil(len(samples) / NUM_COLUMNS)
    height_in = TITLE_IN + num_rows * TILE_IN
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor=PAPER)
    figure.text(0.012, 1 - 0.5 * TITLE_IN / height_in, title, fontsize=15, weight="bold",
                color=INK, va="center", parse_math=False)  # fmt: skip
    for i, sample in enumerate(samples):
        row, column = divmod(i, NUM_COLUMNS)
        bottom = 1 - (TITLE_IN + (row + 1) * TILE_IN) / height_in
        _draw_tile(figure, sample, (column / NUM_COLUMNS, bottom), TILE_IN / height_in)
    save_figure(figure, path)


def require_png(path: Path) -> None:
    """Refuse a name that is no PNG's, before anything takes time.

    Raises:
        OutputError: it does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise OutputError(f"sheet {path} is not a PNG; expected a name that ends in .png")


def _draw_tile(figure: Figure, sample: Sample, corner: tuple[float, float], height: float) -> None:
    """A sample in a part of the figure: its lower left corner and its height, as fractions."""
    left, bottom = corner[0] + 0.006, corner[1]
    chip_width = 0.8 * TILE_IN / WIDTH_IN
    photo_width = 1 / NUM_COLUMNS - chip_width - 0.02
    figure.text(left, bottom + 0.9 * height, _short(sample.name), fontsize=10, weight="bold",
                color=INK, va="center", parse_math=False)  # fmt: skip
    photo = figure.add_axes((left, bottom + 0.17 * height, photo_width, 0.66 * height))
    _draw_photo(photo, sample)
    lines = "\n".join(describe(sample))
    figure.text(left, bottom + 0.15 * height, lines, fontsize=9, color=FAINT, va="top")
    chip = figure.add_axes((left + photo_width + 0.006, bottom + 0.03 * height,
                            chip_width, 0.8 * height))  # fmt: skip
    draw_chip(chip, sample)


def _short(name: str) -> str:
    """The name with its middle left out if it is long."""
    half = _MAX_NAME // 2
    return name if len(name) <= _MAX_NAME else f"{name[: half - 1]}…{name[-half:]}"


def describe(sample: Sample) -> tuple[str, str]:
    """The pose in the aerial image, and in the published chip."""
    right_m, up_m, turn_deg = sample.pose
    return (
        f"x {sample.x_m:+.2f} m, y {sample.y_m:+.2f} m, heading {sample.heading_deg:.2f}°",
        f"in the chip: {right_m:+.2f} m right, {up_m:+.2f} m up, {turn_deg:.2f}° from up",
    )


def _draw_photo(ax: Axes, sample: Sample) -> None:
    ax.axis("off")
    ax.set_anchor("W")
    try:
        photo = Image.fromarray(read_photo(sample.photo))
    except PhotoError as error:
        _draw_refusal(ax, error)
        return
    photo.thumbnail((MAX_PHOTO_PX, MAX_PHOTO_PX))
    ax.imshow(np.asarray(photo), interpolation="bilinear")
    # What the arrow on the chip belongs to.
    ax.axvline(photo.width / 2 - 0.5, ymax=0.08, color=TRUTH, lw=2.0)


def draw_chip(ax: Axes, sample: Sample) -> None:
    """The published chip with the camera: a dot, and an arrow where the photo's middle looks.

    The axes are metres from the chip's centre: right, and up.
    """
    half = sample.cut.side_m / 2
    extent = (-half, half, -half, half)
    frame_map(ax, extent)
    try:
        ax.imshow(_chip_of(sample), extent=extent, interpolation="bilinear")
    except DatasetError as error:
        _draw_refusal(ax, error)
        return
    x_m, y_m, heading_deg = sample.pose
    draw_arrow(ax, x_m, y_m, heading_deg - sample.turn_deg, length_m=half / 3, color=TRUTH,
               width=2.2)  # fmt: skip
    ax.plot(x_m, y_m, "o", ms=7, mfc=TRUTH, mec=OUTLINE, mew=1.2)
    draw_scale_bar(ax, -half, -half, 2 * half)


def _chip_of(sample: Sample) -> Rgb:
    rgb, is_valid = ImageReader(num_kept=1).cut(sample.image, sample.cut, CHIP_PX)
    rgb[~is_valid] = [int(MISSING[i : i + 2], 16) for i in (1, 3, 5)]
    return rgb


def _draw_refusal(ax: Axes, error: CiperError) -> None:
    text = "\n".join(textwrap.wrap(str(error), 44))
    ax.text(0.5, 0.5, text, transform=ax.transAxes, color=WARNING, fontsize=8, ha="center",
            va="center", parse_math=False)  # fmt: skip
