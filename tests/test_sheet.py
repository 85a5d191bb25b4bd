from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import CameraOverrides
from ciper.data.protocol import AerialImage, Cut, Sample, Told
from ciper.data.sheet import describe, draw_chip, draw_sheet
from ciper.drawing import TRUTH
from ciper.errors import OutputError
from ciper.geo import forward

SIDE_PX, GSD = 400, 0.5  # an image of 200 m
CHIP_M, DRAWN_PX = 80.0, 400  # 5 px per metre as drawn
AHEAD_M = 20.0
MARK = tuple(int(TRUTH[i : i + 2], 16) for i in (1, 3, 5))
RED = (255, 0, 0)

Drawn = NDArray[np.uint8]


NORTH_UP = Cut(x_m=0.0, y_m=0.0, up_deg=0.0, side_m=CHIP_M)
EAST_UP = dataclasses.replace(NORTH_UP, up_deg=90.0)


def sample(folder: Path, x_m: float, y_m: float, heading_deg: float, cut: Cut = NORTH_UP) -> Sample:
    """A camera on a dark image with a red square of 6 m that lies ahead of it."""
    aerial = np.full((SIDE_PX, SIDE_PX, 3), 30, np.uint8)
    east, north = np.array([x_m, y_m]) + AHEAD_M * forward(heading_deg)
    row, column = round(SIDE_PX / 2 - north / GSD), round(SIDE_PX / 2 + east / GSD)
    aerial[row - 6 : row + 6, column - 6 : column + 6] = RED
    Image.fromarray(aerial).save(folder / "aerial.png")
    Image.new("RGB", (64, 32), (90, 120, 200)).save(folder / "photo.jpg")
    return Sample(
        name="city/photo.jpg",
        photo=folder / "photo.jpg",
        camera=CameraOverrides(),
        x_m=x_m,
        y_m=y_m,
        heading_deg=heading_deg,
        image=AerialImage(folder / "aerial.png", 60.0, 25.0, GSD, SIDE_PX),
        cut=cut,
        told=Told(0.0, 180.0, 40.0),
    )


def drawn(shown: Sample) -> Drawn:
    """The chip as it is drawn, (400, 400, 3), nothing else in the figure."""
    figure = Figure(figsize=(4.0, 4.0), dpi=DRAWN_PX / 4)
    draw_chip(figure.add_axes((0.0, 0.0, 1.0, 1.0)), shown)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


def is_colour(picture: Drawn, u: float, v: float, colour: tuple[int, ...]) -> bool:
    return bool(np.abs(picture[round(v), round(u)].astype(int) - colour).max() <= 12)


@pytest.mark.parametrize(
    ("x_m", "y_m", "u", "v"),
    [(16.0, 8.0, 280, 160), (16.0, -8.0, 280, 240), (-16.0, -8.0, 120, 240), (-16, 8.0, 120, 160)],
)
def test_the_dot_is_at_the_camera(tmp_path: Path, x_m: float, y_m: float, u: int, v: int) -> None:
    picture = drawn(sample(tmp_path, x_m, y_m, 0.0))
    assert is_colour(picture, u, v, MARK)
    # Nowhere else but where the arrow is: up from the dot.
    for other_u, other_v in ((400 - u, v), (u, 400 - v), (400 - u, 400 - v)):
        assert not is_colour(picture, other_u, other_v, MARK)


@pytest.mark.parametrize(
    ("heading_deg", "across", "down"),
    [(0.0, 0, -1), (90.0, 1, 0), (180.0, 0, 1), (270.0, -1, 0), (45.0, 0.707, -0.707)],
)
def test_the_arrow_points_along_the_heading(
    tmp_path: Path, heading_deg: float, across: float, down: float
) -> None:
    picture = drawn(sample(tmp_path, 0.0, 0.0, heading_deg))
    # It ends 13.3 m from the dot: 67 px.
    assert is_colour(picture, 200 + 40 * across, 200 + 40 * down, MARK)
    for turn in (1, 2, 3):
        across, down = -down, across
        assert not is_colour(picture, 200 + 40 * across, 200 + 40 * down, MARK), turn


@pytest.mark.parametrize("up_deg", [0.0, 90.0, 200.0, 300.0])
@pytest.mark.parametrize("heading_deg", [35.0, 125.0, 215.0, 305.0])
def test_the_arrow_points_to_what_lies_ahead(
    tmp_path: Path, up_deg: float, heading_deg: float
) -> None:
    shown = sample(tmp_path, 5.0, -3.0, heading_deg, Cut(2.0, 4.0, up_deg, CHIP_M))
    picture = drawn(shown)
    x_m, y_m, in_chip_deg = shown.pose
    assert is_colour(picture, 200 + 5 * x_m, 200 - 5 * y_m, MARK)
    for length_m, colour in ((8.0, MARK), (AHEAD_M, RED)):
        east, north = np.array([x_m, y_m]) + length_m * forward(in_chip_deg)
        assert is_colour(picture, 200 + 5 * east, 200 - 5 * north, colour)


def test_a_chip_that_points_east_has_the_east_above(tmp_path: Path) -> None:
    # The camera is 16 m east and 8 m north: up in the chip, and left.
    picture = drawn(sample(tmp_path, 16.0, 8.0, 90.0, EAST_UP))
    assert is_colour(picture, 200 - 5 * 8, 200 - 5 * 16, MARK)
    assert is_colour(picture, 200 - 5 * 8, 200 - 5 * 16 - 40, MARK)


def test_the_arrow_is_that_of_the_photo_as_its_file_has_it(tmp_path: Path) -> None:
    shown = dataclasses.replace(sample(tmp_path, 0.0, 0.0, 90.0), turn_deg=90.0)
    picture = drawn(shown)
    assert is_colour(picture, 200, 160, MARK)
    assert not is_colour(picture, 240, 200, MARK)


def test_what_lies_outside_of_the_image_is_marked(tmp_path: Path) -> None:
    picture = drawn(sample(tmp_path, 80.0, 0.0, 180.0, Cut(80.0, 0.0, 0.0, CHIP_M)))
    assert is_colour(picture, 100, 100, (30, 30, 30))
    assert is_colour(picture, 350, 100, (0xDF, 0xE1, 0xE0))


def test_the_numbers(tmp_path: Path) -> None:
    assert describe(sample(tmp_path, 16.0, 8.0, 10.0, EAST_UP)) == (
        "x +16.00 m, y +8.00 m, heading 10.00°",
        "in the chip: -8.00 m right, +16.00 m up, 280.00° from up",
    )


def test_the_sheet_is_written_whole_and_survives_files_that_are_not(tmp_path: Path) -> None:
    good = sample(tmp_path, 1.0, 2.0, 3.0)
    (tmp_path / "cut.png").write_bytes((tmp_path / "aerial.png").read_bytes()[:100])
    bad = dataclasses.replace(
        good,
        name="a_very_long_name/" * 9,
        photo=tmp_path / "absent_$x$.jpg",
        image=dataclasses.replace(good.image, path=tmp_path / "cut.png"),
    )
    path = tmp_path / "new" / "sheet.png"
    draw_sheet([good, bad, good], path, title="vigor:root, seed 0")
    with Image.open(path) as picture:
        one_row_px = 3.1 * 110
        assert picture.size == (1650, round(0.55 * 110 + 2 * one_row_px))
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 20)
    # The photos' blue, and both refusals.
    assert colours is not None
    found = {colour for _, colour in colours}
    assert any(np.abs(np.subtract(c, (90, 120, 200))).max() <= 3 for c in found)
    assert (0xC0, 0x39, 0x2B) in found
    assert list(path.parent.iterdir()) == [path]


def test_a_sheet_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"sheet .*sheet\.jpg is not a PNG"):
        draw_sheet([], tmp_path / "sheet.jpg", title="")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        draw_sheet([], tmp_path / "file" / "sheet.png", title="")
