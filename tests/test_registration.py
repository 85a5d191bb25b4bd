from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from affine import Affine
from gallery_helpers import write_raster
from numpy.typing import NDArray

from ciper.classical.registration import (
    Floor,
    Shift,
    registration_floor,
    shift_between,
    shift_between_rasters,
)
from ciper.errors import ConfigError, DatasetError, RasterError
from ciper.gallery.inspect import inspect_raster

FOUR_WAYS = [(3.3, 2.6), (-4.7, 1.2), (-2.25, -6.5), (8.4, -3.9)]


def _texture(size_px: int, seed: int = 1) -> NDArray[np.float64]:
    """Smooth blobs of grey levels in [0, 255], larger than a pixel."""
    noise = np.random.default_rng(seed).normal(size=(size_px, size_px))
    smooth = scipy.ndimage.gaussian_filter(noise, 1.5)
    return np.asarray(np.clip(128 + 60 * smooth / smooth.std(), 0, 255))


def _moved(image: NDArray[np.float64], right: float, up: float) -> NDArray[np.float64]:
    return np.asarray(scipy.ndimage.shift(image, (-up, right), order=3, mode="nearest"))


def _pair(right: float, up: float, size_px: int = 160) -> tuple[NDArray[np.uint8], ...]:
    """Two windows of one image, the second one's content lying further right and up."""
    whole = _texture(size_px + 40)
    inside = slice(20, -20)
    return tuple(
        np.clip(image + 0.5, 0, 255).astype(np.uint8)[inside, inside]
        for image in (whole, _moved(whole, right, up))
    )


@pytest.mark.parametrize(("right", "up"), FOUR_WAYS)
def test_shifts_in_all_quadrants_are_found_to_a_tenth_of_a_pixel(right: float, up: float) -> None:
    a, b = _pair(right, up)
    shift = shift_between(a, b, 0.6)
    assert shift.x_m == pytest.approx(right * 0.6, abs=0.06)
    assert shift.y_m == pytest.approx(up * 0.6, abs=0.06)
    assert shift.length_m == pytest.approx(0.6 * math.hypot(right, up), abs=0.08)
    assert shift.quality > 5 and shift.is_reliable
    back = shift_between(b, a, 0.6)
    assert (back.x_m, back.y_m) == pytest.approx((-shift.x_m, -shift.y_m), abs=0.02)


def test_light_on_the_other_side_moves_nothing() -> None:
    """Inverted, brighter, of less contrast: edges stay edges."""
    a, b = _pair(-2.6, 1.7)
    shift = shift_between(np.stack([a] * 3, axis=2), np.stack([200 - b // 2] * 3, axis=2), 1.0)
    assert (shift.x_m, shift.y_m) == pytest.approx((-2.6, 1.7), abs=0.1)


def test_images_that_are_not_square() -> None:
    a, b = _pair(3.0, -4.0)
    shift = shift_between(a[:100], b[:100], 1.0)
    assert (shift.x_m, shift.y_m) == pytest.approx((3.0, -4.0), abs=0.1)


def test_an_image_lies_on_itself() -> None:
    a, _ = _pair(0.0, 0.0)
    shift = shift_between(a, a, 0.6)
    assert shift.length_m == pytest.approx(0.0, abs=1e-6)


def test_different_places_are_not_reliable() -> None:
    images = [_texture(160, seed).astype(np.uint8) for seed in range(12)]
    qualities = [shift_between(a, b, 0.6).quality for a, b in itertools.pairwise(images)]
    assert np.mean([quality < 1.6 for quality in qualities]) >= 0.9


@pytest.mark.parametrize("level", [0, 7, 255])
def test_images_without_edges_have_no_shift(level: int) -> None:
    flat = np.full((80, 90, 3), level, np.uint8)
    shift = shift_between(flat, flat, 0.6)
    assert math.isnan(shift.x_m) and math.isnan(shift.y_m)
    assert shift.quality == 0.0 and not shift.is_reliable


def test_shapes_that_cannot_be_searched_are_refused() -> None:
    a = np.zeros((80, 80), np.uint8)
    with pytest.raises(ConfigError, match=r"\(80, 80\) and \(80, 81\)"):
        shift_between(a, np.zeros((80, 81), np.uint8), 0.6)
    with pytest.raises(ConfigError, match="up to 25 px"):
        shift_between(a[:50], a[:50], 0.6)


def test_the_floor_is_of_reliable_shifts_only() -> None:
    shifts = [Shift(3.0, 4.0, 9.0), Shift(0.0, 1.0, 2.0), Shift(-1.0, 0.0, 2.0), Shift(90.0, 0, 1)]
    floor = Floor.of(shifts)
    assert (floor.num_pairs, floor.num_reliable) == (4, 3)
    assert (floor.median_m, floor.max_m) == (1.0, 5.0)
    assert floor.p90_m == pytest.approx(1.0 + 0.8 * 4.0)  # at 0.9 * 2 = 1.8 of 1, 1, 5
    assert (floor.median_x_m, floor.median_y_m) == (0.0, 1.0)
    none = Floor.of([Shift(math.nan, math.nan, 0.0)])
    assert (none.num_pairs, none.num_reliable) == (1, 0) and math.isnan(none.median_m)


# --------------------------------------------------------------------------------------- rasters


def _write(path: Path, image: NDArray[np.float64], east: float = 500_000.0) -> Path:
    """A raster on the meridian of UTM zone 33N, where grid north is true north."""
    array = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    transform = Affine(0.6, 0, east, 0, -0.6, 5_000_000.0)
    return write_raster(path, np.stack([array] * 3), crs="EPSG:32633", transform=transform)


@pytest.mark.parametrize(("right", "up"), FOUR_WAYS)
def test_rasters_shift_in_metres_east_and_north(tmp_path: Path, right: float, up: float) -> None:
    image = _texture(200)
    first, second = (
        _write(tmp_path / "a.tif", image),
        _write(tmp_path / "b.tif", _moved(image, right, up)),
    )
    shift = shift_between_rasters(inspect_raster(first), inspect_raster(second))
    assert (shift.x_m, shift.y_m) == pytest.approx((0.6 * right, 0.6 * up), abs=0.06)


def test_files_are_paired_by_their_bounds(tmp_path: Path) -> None:
    places = [_texture(200, seed) for seed in range(3)]
    firsts = [
        _write(tmp_path / f"first_{i}.tif", image, 500_000.0 + 300 * i)
        for i, image in enumerate(places)
    ]
    # Other names, another order, one place not there.
    seconds = [
        _write(tmp_path / f"z{2 - i}.tif", _moved(places[i], 5.0, 0.0), 500_000.0 + 300 * i)
        for i in (2, 0)
    ]
    floor = registration_floor(firsts, seconds)
    assert (floor.num_pairs, floor.num_reliable) == (2, 2)
    assert floor.median_x_m == pytest.approx(3.0, abs=0.06)
    assert floor.max_m == pytest.approx(3.0, abs=0.06)
    with pytest.raises(DatasetError, match="none of 1 rasters has the bounds"):
        registration_floor(firsts[1:2], seconds)
    with pytest.raises(DatasetError, match=r"z2.tif has the same bounds as .*first_0.tif"):
        registration_floor([firsts[0], seconds[1]], seconds)


def test_a_raster_with_a_hole_is_refused(tmp_path: Path) -> None:
    image = _texture(200)
    whole = _write(tmp_path / "a.tif", image)
    mask = np.full((200, 200), 255, np.uint8)
    mask[90:120, 80:120] = 0
    holed = write_raster(
        tmp_path / "b.tif",
        np.stack([image.astype(np.uint8)] * 3),
        crs="EPSG:32633",
        transform=Affine(0.6, 0, 500_000.0, 0, -0.6, 5_000_000.0),
        mask=mask,
    )
    with pytest.raises(RasterError, match=r"b.tif: 9\d.\d% of the 1\d\d m square"):
        shift_between_rasters(inspect_raster(whole), inspect_raster(holed))


def test_real_years_lie_within_metres_of_each_other() -> None:
    if "CIPER_REAL_DATA" not in os.environ:
        pytest.skip("CIPER_REAL_DATA is not set: it names the folder of real imagery")
    folder = Path(os.environ["CIPER_REAL_DATA"]) / "naip"
    years = [[folder / f"chico_{year}_{i}.tif" for i in range(12)] for year in (2018, 2020)]
    floor = registration_floor(*years)
    assert floor.num_reliable >= 10
    assert 0.1 < floor.median_m < 0.7
    assert floor.max_m < 3.0
