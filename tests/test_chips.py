from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import CameraOverrides
from ciper.data.chips import ImageReader, cut_chip, image_pixels
from ciper.data.protocol import AerialImage, Cut, Sample, Told
from ciper.errors import DatasetError
from ciper.geo import forward, right

Rgb = NDArray[np.uint8]


def image(path: Path = Path("none.png"), *, side_px: int = 100, gsd: float = 1.0) -> AerialImage:
    return AerialImage(path, lat=49.0, lon=8.4, gsd=gsd, side_px=side_px)


def ramp(num_px: int = 100) -> Rgb:
    """Red is twice the column, green twice the row: the colours tell where a pixel is from."""
    rows, columns = np.mgrid[:num_px, :num_px]
    return np.stack([2 * columns, 2 * rows, 0 * rows], axis=2).astype(np.uint8)


def chip_of(pixels: Rgb, aerial: AerialImage, cut: Cut, size_px: int) -> tuple[Rgb, Rgb]:
    rgb, is_valid = cut_chip(
        pixels, aerial, x_m=cut.x_m, y_m=cut.y_m, up_deg=cut.up_deg, side_m=cut.side_m,
        size_px=size_px,
    )  # fmt: skip
    return rgb, np.asarray(is_valid)


@pytest.mark.parametrize(
    ("x_m", "y_m", "column", "row"),
    [(20, 10, 65, 35), (-20, 10, 25, 35), (-20, -10, 25, 55), (20, -10, 65, 55)],
)
def test_a_chip_in_each_quadrant(x_m: float, y_m: float, column: int, row: int) -> None:
    """10 m about 20 m east and 10 m north of the middle begin at column 65 and row 35."""
    rgb, is_valid = chip_of(ramp(), image(), Cut(x_m, y_m, 0.0, 10.0), 10)
    assert is_valid.all()
    np.testing.assert_array_equal(rgb, ramp()[row : row + 10, column : column + 10])


def test_half_a_pixel_is_half_a_pixel() -> None:
    rgb, _ = chip_of(ramp(), image(), Cut(0.5, -0.25, 0.0, 10.0), 10)
    # Between two columns 2 apart lies 1 more; a quarter of a row down adds 0.5, rounded up.
    np.testing.assert_array_equal(rgb[..., 0], ramp()[45:55, 45:55, 0] + 1)
    np.testing.assert_array_equal(rgb[..., 1], ramp()[45:55, 45:55, 1] + 1)


@pytest.mark.parametrize(
    ("up_deg", "top", "right_edge"),
    [
        (0.0, (50, 45.5), (54.5, 50)),
        (90.0, (54.5, 50), (50, 54.5)),
        (180.0, (50, 54.5), (45.5, 50)),
        (270.0, (45.5, 50), (50, 45.5)),
    ],
)
def test_up_points_where_it_should(
    up_deg: float, top: tuple[float, float], right_edge: tuple[float, float]
) -> None:
    """Up 90 has the east at the top and the south to the right."""
    rgb, _ = chip_of(ramp(), image(), Cut(0.0, 0.0, up_deg, 10.0), 10)
    mean = rgb.astype(float)
    for edge, (u, v) in ((mean[0], top), (mean[:, -1], right_edge)):
        np.testing.assert_allclose(edge[:, :2].mean(0), (2 * (u - 0.5), 2 * (v - 0.5)), atol=0.6)


@pytest.mark.parametrize("up_deg", [0.0, 37.0, 128.0, 211.0, 340.0])
@pytest.mark.parametrize(("x_m", "y_m"), [(9.0, 14.0), (-11.0, 6.0), (-8.0, -13.0), (12.0, -7.0)])
def test_a_camera_lies_in_its_chip_where_its_pose_says(
    up_deg: float, x_m: float, y_m: float
) -> None:
    """A spot painted at the camera is found at `Sample.pose` of the chip, at another gsd."""
    gsd, chip_gsd, size_px = 0.25, 0.4, 160
    aerial = image(side_px=400, gsd=gsd)
    rows, columns = np.mgrid[0.5:400, 0.5:400]
    away = np.hypot(columns - 200 - x_m / gsd, 200 - rows - y_m / gsd)
    spot = np.repeat(np.exp(-0.5 * (away / 8) ** 2)[:, :, None] * 255, 3, axis=2).astype(np.uint8)
    cut = Cut(x_m=3.0, y_m=-2.0, up_deg=up_deg, side_m=chip_gsd * size_px)
    told = Told(heading_deg=0.0, heading_within_deg=180.0, within_m=20.0)
    sample = Sample("a", Path("a.jpg"), CameraOverrides(), x_m, y_m, 70.0, aerial, cut, told)
    rgb, is_valid = chip_of(spot, aerial, cut, size_px)
    weight = rgb[..., 0].astype(float) * is_valid
    v, u = np.mgrid[0.5:size_px, 0.5:size_px]
    found_u, found_v = (weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()
    right_m, up_m, turn_deg = sample.pose
    assert (found_u - size_px / 2) * chip_gsd == pytest.approx(right_m, abs=0.03)
    assert (size_px / 2 - found_v) * chip_gsd == pytest.approx(up_m, abs=0.03)
    assert turn_deg == pytest.approx((70.0 - up_deg) % 360.0)
    # And back: the pixel of the pose is the image's pixel of the camera.
    back = image_pixels(aerial, 400, np.array(right_m), np.array(up_m), cut=cut)
    assert np.array(back) == pytest.approx(np.array([200 + x_m / gsd, 200 - y_m / gsd]))


def test_smaller_chips_average_and_do_not_alias() -> None:
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[:, ::2] = 255
    for up_deg in (0.0, 30.0):
        rgb, _ = chip_of(stripes, image(), Cut(0.0, 0.0, up_deg, 60.0), 15)
        assert np.ptp(rgb.astype(int)) <= 2
        assert abs(rgb.mean() - 127.5) < 1.5


def test_larger_chips_are_bilinear() -> None:
    rgb, _ = chip_of(ramp(), image(), Cut(0.0, 0.0, 0.0, 10.0), 40)
    u = 45 + (np.arange(40) + 0.5) / 4
    np.testing.assert_allclose(rgb[20, :, 0], 2 * (u - 0.5), atol=0.51)


def test_what_lies_outside_is_masked() -> None:
    white = np.full((100, 100, 3), 255, np.uint8)
    rgb, is_valid = chip_of(white, image(), Cut(45.0, 0.0, 0.0, 20.0), 20)
    assert is_valid[:, :15].all() and not is_valid[:, 15:].any()
    assert (rgb[is_valid] == 255).all() and (rgb[~is_valid] == 0).all()
    rgb, is_valid = chip_of(white, image(), Cut(0.0, 60.0, 0.0, 20.0), 20)
    assert not is_valid.any() and not rgb.any()
    # A corner of a turned square: a disc of 50 m radius is always inside, the corners never.
    _, is_valid = chip_of(white, image(), Cut(0.0, 0.0, 45.0, 100.0), 100)
    assert not is_valid[0, 0] and not is_valid[-1, 0] and is_valid[50, 50]
    # A regular octagon's share of its square.
    assert is_valid.mean() == pytest.approx(2 * math.sqrt(2) - 2, abs=0.01)


def test_the_control_map_is_a_rotation() -> None:
    for up_deg in (10.0, 100.0, 190.0, 280.0):
        cut = Cut(3.0, 5.0, up_deg, 40.0)
        u, v = image_pixels(image(gsd=0.5), 100, np.array([2.0]), np.array([-7.0]), cut=cut)
        east, north = 2.0 * right(up_deg) - 7.0 * forward(up_deg) + (3.0, 5.0)
        assert (u[0], v[0]) == pytest.approx((50 + east / 0.5, 50 - north / 0.5))


# ------------------------------------------------------------------------------------------ reading


def test_a_file_of_another_size_shows_the_same_square(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    Image.fromarray(ramp()).resize((50, 50), Image.Resampling.BOX).save(tmp_path / "b.png")
    reader, cut = ImageReader(), Cut(-20.0, 10.0, 0.0, 20.0)
    whole, _ = reader.cut(image(tmp_path / "a.png"), cut, 10)
    assert not reader.resized
    small, is_valid = reader.cut(image(tmp_path / "b.png"), cut, 10)
    assert reader.resized == {tmp_path / "b.png"}
    assert is_valid.all()
    np.testing.assert_allclose(whole.astype(int), small.astype(int), atol=1)


def test_the_last_images_are_kept(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(ramp()).save(path)
    reader = ImageReader(num_kept=2)
    first = reader.read(image(paths[0]))
    assert not first.flags.writeable
    reader.read(image(paths[1]))
    assert reader.read(image(paths[0])) is first
    reader.read(image(paths[2]))
    assert reader.read(image(paths[0])) is first
    paths[1].unlink()
    with pytest.raises(DatasetError, match=r"1\.png does not exist"):
        reader.read(image(paths[1]))


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    reader = ImageReader()
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"aerial image: .*bad\.png is not an image"):
        reader.read(image(tmp_path / "bad.png"))
    Image.fromarray(ramp()[:80]).save(tmp_path / "flat.png")
    with pytest.raises(DatasetError, match=r"flat\.png has 100 x 80 px; expected a square"):
        reader.read(image(tmp_path / "flat.png"))
    Image.fromarray(ramp()[..., 0]).save(tmp_path / "grey.png")
    assert reader.read(image(tmp_path / "grey.png")).shape == (100, 100, 3)
