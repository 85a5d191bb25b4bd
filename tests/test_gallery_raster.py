from __future__ import annotations

import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from gallery_helpers import geographic, real_data, write_raster
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from ciper.errors import NoCrsError, RasterError
from ciper.gallery.inspect import expand_rasters, inspect_raster
from ciper.gallery.raster import Mosaic, Raster, RasterInfo, read_chip

UTM = "EPSG:32633"
NORTH_UP = Affine(0.5, 0, 380_000, 0, -0.5, 5_820_000)
GEOD = pyproj.Geod(ellps="WGS84")


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """Red grows by one per column, green per row, both 128 in the middle: value = coordinate."""
    u = np.clip(np.arange(width) - width // 2 + 128, 0, 255)
    v = np.clip(np.arange(height) - height // 2 + 128, 0, 255)
    red, green = np.broadcast_arrays(u[None, :], v[:, None])
    return np.stack([red, green, np.full_like(red, 7)]).astype(np.uint8)


def ramp_transforms() -> dict[str, tuple[str, Affine]]:
    """Rasters of about 0.5 m, named by what is special about them."""
    lat = 40.7
    degree_m = 111_320.0
    degrees = Affine(
        0.5 / degree_m / math.cos(math.radians(lat)), 0, -73.99, 0, -0.5 / degree_m, lat
    )
    mercator = 0.5 / math.cos(math.radians(lat))
    return {
        "utm": (UTM, NORTH_UP),
        "degrees": ("EPSG:4326", degrees),
        "unequal degrees": ("EPSG:4326", degrees @ Affine.scale(0.5, 1)),
        "feet": ("EPSG:2263", Affine(1.7, 0, 985_000, 0, -1.7, 200_000)),
        "web mercator": ("EPSG:3857", Affine(mercator, 0, -8_237_000, 0, -mercator, 4_970_000)),
        "rotated": (UTM, NORTH_UP @ Affine.rotation(30)),
        "south up": (UTM, Affine(0.5, 0, 380_000, 0, 0.5, 5_820_000)),
        "finer": (UTM, NORTH_UP @ Affine.scale(0.8)),
        "much finer": (UTM, NORTH_UP @ Affine.scale(0.3)),
    }


@pytest.mark.parametrize("name", ramp_transforms())
def test_a_chip_is_exact_to_a_fiftieth_of_a_pixel(tmp_path: Path, name: str) -> None:
    crs, transform = ramp_transforms()[name]
    # No whole ratio to the raster's pixels: the rounding to bytes then averages out.
    height, width, size, gsd = 420, 500, 50 if name == "much finer" else 100, 0.4371
    path = write_raster(tmp_path / "ramp.tif", ramp(height, width), crs=crs, transform=transform)
    x, y = transform @ (width / 2 + 3.37, height / 2 - 5.21)
    lat, lon = geographic(crs, x, y)
    with Raster(inspect_raster(path)) as raster:
        rgb, is_valid = read_chip(raster, lat=lat, lon=lon, size_px=size, gsd=gsd)

    # The same by another way: geodesics from the chip's centre.
    v, u = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    east, north = (u - size / 2) * gsd, (size / 2 - v) * gsd
    bearing = np.degrees(np.arctan2(east, north))
    lons, lats, _ = GEOD.fwd(
        np.full(u.shape, lon), np.full(u.shape, lat), bearing, np.hypot(east, north)
    )
    xs, ys = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lons, lats)
    inverse = ~transform
    columns = inverse.a * xs + inverse.b * ys + inverse.c
    rows = inverse.d * xs + inverse.e * ys + inverse.f
    # A pixel's value is that of its centre, half a pixel from its corner.
    red = rgb[..., 0] - (columns - 0.5 - width // 2 + 128)
    green = rgb[..., 1] - (rows - 0.5 - height // 2 + 128)
    # In raster pixels; a chip's pixel is up to three of them.
    tolerance = 0.06 if name == "much finer" else 0.02
    assert is_valid.all()
    for error in (red, green):
        assert abs(error.mean()) < tolerance
        assert np.abs(error).max() < 0.5 + tolerance
    assert (rgb[..., 2] == 7).all()


def test_pixels_are_averaged_not_skipped_where_the_raster_is_finer(tmp_path: Path) -> None:
    board = np.indices((800, 800)).sum(axis=0) % 2 * 200
    array = np.repeat(board[None], 3, axis=0).astype(np.uint8)
    lat, lon = geographic(UTM, 380_000 + 20, 5_820_000 - 20)
    for scale in (0.1, 0.2, 0.3):  # 10, 5 and 3.3 raster pixels of 0.05 m to a chip's pixel
        transform = NORTH_UP @ Affine.scale(scale)
        path = write_raster(tmp_path / "board.tif", array, crs=UTM, transform=transform)
        with Raster(inspect_raster(path)) as raster:
            rgb, _ = read_chip(raster, lat=lat, lon=lon, size_px=32)
        assert np.abs(rgb.astype(int) - 100).max() < 20, scale


def test_true_north_is_up_not_grid_north(tmp_path: Path) -> None:
    # A white grid-north line through the chip's centre, 1.4 degrees west of the central meridian:
    # grid north leans to the west of true north there, so the line's upper end leans left.
    array = np.zeros((3, 600, 600), np.uint8)
    array[:, :, 299:301] = 255
    path = write_raster(tmp_path / "line.tif", array, crs=UTM, transform=NORTH_UP)
    lat, lon = geographic(UTM, 380_150, 5_819_850)
    with Raster(inspect_raster(path)) as raster:
        rgb, _ = read_chip(raster, lat=lat, lon=lon)
    columns = np.arange(256) + 0.5
    weights = rgb[..., 0].astype(float)
    middle = (weights * columns).sum(axis=1) / weights.sum(axis=1)
    slope = np.polyfit(np.arange(256), middle, 1)[0]
    convergence = (lon - 15.0) * math.sin(math.radians(lat))
    assert convergence < -1
    # Down a chip's rows the line moves right by tan(-convergence).
    assert slope == pytest.approx(math.tan(math.radians(-convergence)), abs=2e-4)


def read_middle(path: Path, size_px: int = 64, gsd: float = 0.5) -> tuple[Any, Any]:
    info = inspect_raster(path)
    x, y = Affine(*info.transform) @ (info.width / 2, info.height / 2)
    lat, lon = geographic(pyproj.CRS.from_wkt(info.crs), x, y)
    with Raster(info) as raster:
        return read_chip(raster, lat=lat, lon=lon, size_px=size_px, gsd=gsd)


def test_grey_palette_and_four_bands_become_rgb(tmp_path: Path) -> None:
    grey = np.full((1, 200, 300), 90, np.uint8)
    path = write_raster(tmp_path / "grey.tif", grey, crs=UTM, transform=NORTH_UP)
    assert (read_middle(path)[0] == 90).all()

    colors = {0: (0, 0, 0, 255), 3: (200, 100, 50, 255)}
    path = write_raster(
        tmp_path / "palette.tif",
        np.full((1, 200, 300), 3, np.uint8),
        crs=UTM,
        transform=NORTH_UP,
        colormap=colors,
    )
    for gsd in (0.5, 1.7):
        rgb, is_valid = read_middle(path, 48, gsd)
        assert is_valid.all()
        assert (rgb == (200, 100, 50)).all()

    four = np.stack([np.full((200, 300), value, np.uint8) for value in (10, 20, 30, 40)])
    path = write_raster(
        tmp_path / "near_infrared.tif",
        four,
        crs=UTM,
        transform=NORTH_UP,
        colorinterp=[ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined],
    )
    assert (read_middle(path)[0] == (10, 20, 30)).all()

    swapped = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    five = np.concatenate([four, four[:1]])
    path = write_raster(
        tmp_path / "five.tif",
        five,
        crs=UTM,
        transform=NORTH_UP,
        colorinterp=[*swapped, ColorInterp.undefined],
    )
    assert (read_middle(path)[0] == (40, 30, 20)).all()


def test_sixteen_bits_are_stretched_by_percentiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(1000, 3000, (3, 300, 300)).astype(np.uint16)
    array[:, 0, 0] = 65_000
    path = write_raster(tmp_path / "deep.tif", array, crs=UTM, transform=NORTH_UP)
    info = inspect_raster(path)
    assert info.stretch is not None
    assert info.stretch == pytest.approx((1010, 2990), abs=8)
    rgb, _ = read_middle(path)
    assert rgb.min() < 40
    assert rgb.max() > 215
    assert rgb.mean() == pytest.approx(127, abs=3)
    assert inspect_raster(path) == info
    constant = np.full((1, 64, 64), 700, np.uint16)
    path = write_raster(tmp_path / "constant.tif", constant, crs=UTM, transform=NORTH_UP)
    assert (read_middle(path, 16)[0] == 0).all()


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "nan"])
@pytest.mark.parametrize("gsd", [0.5, 1.05])
def test_pixels_without_imagery_are_not_valid_and_do_not_bleed(
    tmp_path: Path, kind: str, gsd: float
) -> None:
    is_valid = np.zeros((400, 400), np.bool_)
    is_valid[:, 200:] = True
    array = np.where(is_valid, 180, 0).astype(np.uint8)[None].repeat(3, axis=0)
    profile: dict[str, Any] = {}
    if kind == "nodata":
        profile["nodata"] = 0
    elif kind == "alpha":
        array = np.concatenate([array, is_valid[None] * np.uint8(255)])
        profile["photometric"] = "RGB"
        profile["alpha"] = "YES"
    elif kind == "mask":
        profile["mask"] = is_valid
    else:
        array = np.where(is_valid, 180.0, np.nan)[None].repeat(3, axis=0).astype(np.float32)
        array[:, 0, 200:300], array[:, 0, 300:] = 0, 255
        profile["nodata"] = np.nan
    path = write_raster(tmp_path / "part.tif", array, crs=UTM, transform=NORTH_UP, **profile)
    rgb, found = read_middle(path, 64, gsd)
    assert found.mean() == pytest.approx(0.5, abs=0.04)
    assert not found[:, :28].any()
    assert found[:, 36:].all()
    assert len(np.unique(rgb[found])) == 1
    assert (rgb[~found] == 0).all()


def test_abutting_rasters_leave_no_seam_and_the_first_wins(tmp_path: Path) -> None:
    infos = []
    for number, (left, width) in enumerate([(0, 203), (203, 200), (100, 303)]):
        array = np.full((3, 300, width), 50 * (number + 1), np.uint8)
        for gsd in (1.0, 0.29):
            transform = NORTH_UP @ Affine.scale(gsd) @ Affine.translation(left, 0)
            name = tmp_path / f"{gsd}_{number}.tif"
            infos.append(inspect_raster(write_raster(name, array, crs=UTM, transform=transform)))
    for start, scale in ((0, 1.0), (1, 0.29)):
        lat, lon = geographic(UTM, *(NORTH_UP @ Affine.scale(scale) @ (203, 150)))
        with Mosaic(infos[start::2], max_open=1) as mosaic:
            rgb, is_valid = read_chip(mosaic, lat=lat, lon=lon, size_px=60, gsd=0.5)
        assert is_valid.all()
        assert (rgb[:, :28] == 50).all()
        assert (rgb[:, 32:] == 100).all()
        assert set(np.unique(rgb)) <= {50, 100}


def test_the_antimeridian_is_no_border(tmp_path: Path) -> None:
    step = 0.5 / 111_320
    transform = Affine(step, 0, 180 - 200 * step, 0, -step, 10.0)
    path = write_raster(
        tmp_path / "dateline.tif", ramp(300, 400), crs="EPSG:4326", transform=transform
    )
    with Raster(inspect_raster(path)) as raster:
        rgb, is_valid = read_chip(raster, lat=10 - 150 * step, lon=-180.0, size_px=64)
    assert is_valid.all()
    assert rgb[32, 31, 0] == pytest.approx(127, abs=1)
    assert (np.diff(rgb[32, :, 0].astype(int)) >= 0).all()


def test_a_huge_raster_is_read_in_a_window(tmp_path: Path) -> None:
    size = 200_000
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": size, "width": size}
    with rasterio.open(
        path,
        "w",
        crs=UTM,
        transform=NORTH_UP,
        tiled=True,
        blockxsize=512,
        blockysize=512,
        SPARSE_OK=True,
        BIGTIFF="YES",
        **profile,
    ) as dataset:
        dataset.write(ramp(1024, 1024), window=Window(102_400, 51_200, 1024, 1024))
    lat, lon = geographic(UTM, *(NORTH_UP @ (102_400 + 512, 51_200 + 512)))
    start = time.monotonic()
    tracemalloc.start()
    with Raster(inspect_raster(path)) as raster:
        rgb, is_valid = read_chip(raster, lat=lat, lon=lon, size_px=128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert is_valid.all()
    assert rgb[64, 64].tolist() == pytest.approx([128, 128, 7], abs=2)
    assert peak < 40e6
    assert time.monotonic() - start < 5


def test_a_raster_elsewhere_paints_nothing(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "here.tif", ramp(64, 64), crs=UTM, transform=NORTH_UP)
    with Raster(inspect_raster(path)) as raster:
        for lat, lon in ((0.0, 0.0), (52.5, -170.0), (-52.5, 13.2)):
            rgb, is_valid = read_chip(raster, lat=lat, lon=lon, size_px=32)
            assert not is_valid.any()
            assert not rgb.any()


def test_info_survives_json(tmp_path: Path) -> None:
    import dataclasses
    import json

    array = np.arange(3 * 64 * 64, dtype=np.uint16).reshape(3, 64, 64)
    info = inspect_raster(write_raster(tmp_path / "a.tif", array, crs=UTM, transform=NORTH_UP))
    assert RasterInfo.from_dict(json.loads(json.dumps(dataclasses.asdict(info)))) == info


def test_bad_rasters_are_named_with_what_was_expected(tmp_path: Path) -> None:
    array = ramp(300, 300)
    with pytest.raises(RasterError, match=r"missing\.tif: the file does not exist"):
        expand_rasters([tmp_path / "missing.tif"])
    path = write_raster(tmp_path / "whole.tif", array, crs=UTM, transform=NORTH_UP)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(RasterError, match=r"cut\.tif: .*expected a whole file of 300 x 300"):
        inspect_raster(cut)
    empty = tmp_path / "empty.tif"
    empty.touch()
    with pytest.raises(RasterError, match=r"empty\.tif: the file is empty \(0 bytes\)"):
        inspect_raster(empty)
    text = tmp_path / "text.tif"
    text.write_text("not an image")
    with pytest.raises(RasterError, match=r"text\.tif: cannot be opened as a raster"):
        inspect_raster(text)
    picture = tmp_path / "picture.png"
    Image.fromarray(np.moveaxis(array, 0, -1)).save(picture)
    with pytest.raises(NoCrsError, match=r"picture\.png: has no coordinate reference system"):
        inspect_raster(picture)
    two = write_raster(tmp_path / "two.tif", array[:2], crs=UTM, transform=NORTH_UP)
    with pytest.raises(RasterError, match=r"has 2 bands .*expected 1"):
        inspect_raster(two)
    six = write_raster(
        tmp_path / "six.tif", np.concatenate([array, array]), crs=UTM, transform=NORTH_UP
    )
    # Six bands of which the first three are marked as colours are taken by their marks.
    with rasterio.open(six, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.undefined] * 6
    with pytest.raises(RasterError, match="has 6 bands"):
        inspect_raster(six)
    nowhere = write_raster(
        tmp_path / "nowhere.tif", array, crs=UTM, transform=Affine(0.5, 0, 9e9, 0, -0.5, 9e9)
    )
    with pytest.raises(RasterError, match="border lies outside"):
        inspect_raster(nowhere)


def test_folders_and_patterns_are_expanded_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.tif", "a.TIF", "c.vrt", "notes.txt"):
        (tmp_path / name).touch()
    names = [path.name for path in expand_rasters([tmp_path / "c.vrt", tmp_path])]
    assert names == ["c.vrt", "a.TIF", "b.tif"]
    assert [p.name for p in expand_rasters([str(tmp_path / "*.tif"), tmp_path / "b.tif"])] == [
        "b.tif"
    ]
    (tmp_path / "void").mkdir()
    with pytest.raises(RasterError, match="the folder holds no raster"):
        expand_rasters([tmp_path / "void"])
    with pytest.raises(RasterError, match="the pattern matches no file"):
        expand_rasters([str(tmp_path / "x*.tif")])
    with pytest.raises(RasterError, match="no raster was given"):
        expand_rasters([])


@pytest.mark.parametrize(
    ("city", "crs"), [("long_beach_2020", "EPSG:26911"), ("chico_2020", "EPSG:26910")]
)
def test_a_real_raster_s_pixel_comes_back_at_its_utm_position(city: str, crs: str) -> None:
    paths = sorted((real_data() / "naip").glob(f"{city}_*.tif"))[:5]
    assert len(paths) == 5
    for path in paths:
        with rasterio.open(path) as dataset:
            pixels, transform = dataset.read(), dataset.transform
            assert dataset.crs.to_string() == crs
        with Raster(inspect_raster(path)) as raster:
            for row, col in ((128, 128), (100, 170), (60, 90)):
                # A chip of odd size has the middle of a pixel at its centre.
                lat, lon = geographic(crs, *(transform @ (col + 0.5, row + 0.5)))
                rgb, is_valid = read_chip(raster, lat=lat, lon=lon, size_px=33, gsd=0.5)
                assert is_valid.all()
                assert np.abs(rgb[16, 16].astype(int) - pixels[:, row, col]).max() <= 1
