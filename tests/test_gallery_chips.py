from __future__ import annotations

from pathlib import Path

import numpy as np
import pyproj
import pytest
from affine import Affine
from gallery_helpers import geographic, write_city, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st

from ciper.errors import ConfigError, GeoError, RasterError
from ciper.gallery.chips import (
    BAND_ROWS,
    Block,
    ChipGrid,
    chip_ids,
    plan_cell,
    plan_chips,
    raster_bounds,
    rasters_within,
    read_block,
)
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import Mosaic, Raster, RasterInfo, read_chip
from ciper.geo import LocalFrame

GRID = ChipGrid()
GEOD = pyproj.Geod(ellps="WGS84")


def raster_at(crs: str, transform: Affine, *, height: int = 600, width: int = 900) -> RasterInfo:
    """A raster that exists only as a description."""
    coefficients = tuple(transform)[:6]
    wkt = pyproj.CRS.from_user_input(crs).to_wkt()
    return RasterInfo("none.tif", 0, 0, height, width, wkt, coefficients, (1, 2, 3))


def cells_of(blocks: tuple[Block, ...]) -> set[tuple[int, int]]:
    cells = [(int(r), int(c)) for b in blocks for r, c in zip(b.rows, b.cols, strict=True)]
    assert len(cells) == len(set(cells)), "a cell was planned twice"
    return set(cells)


@settings(max_examples=40, deadline=None)
@given(lat=st.floats(-84, 84), lon=st.floats(-180, 180))
def test_every_place_lies_in_the_central_square_of_one_chip(lat: float, lon: float) -> None:
    rows, cols = GRID.cells_at(lat=lat, lon=lon)
    center_lat, center_lon = GRID.centers(rows, cols)
    x, y = LocalFrame(lat=float(center_lat[0]), lon=float(center_lon[0])).to_local(lat=lat, lon=lon)
    # The central square of 64 m, and 1e-4 tan(lat) of it that the grid may be off.
    slack = 64 * 2e-4 * abs(np.tan(np.radians(lat))) + 1e-3
    assert abs(float(np.ravel(x)[0])) <= 32 + slack
    assert abs(float(np.ravel(y)[0])) <= 32 + slack
    again = GRID.cells_at(lat=center_lat, lon=center_lon)
    assert (again[0] == rows).all()
    assert (again[1] == cols).all()


@pytest.mark.parametrize("lat", [-65.0, -33.4, 0.3, 45.0, 65.0])
def test_cells_are_squares_of_the_stride_without_gap(lat: float) -> None:
    rows, cols = GRID.cells_at(lat=lat, lon=12.3456)
    row, col = int(rows[0]), int(cols[0])
    band = GRID.band(row // BAND_ROWS)
    for step in range(BAND_ROWS):
        r = band.index * BAND_ROWS + step
        south, north, west, east = band.lat(r), band.lat(r + 1), band.lon(col), band.lon(col + 1)
        middle = (south + north) / 2
        assert GEOD.line_length([west, east], [middle, middle]) == pytest.approx(64, abs=0.02)
        assert GEOD.line_length([west, west], [south, north]) == pytest.approx(64, abs=1e-3)
    assert GRID.band(band.index + 1).south == band.north
    assert band.lon(0) == -180
    assert band.lon(band.num_columns) == 180
    assert band.num_columns % BAND_ROWS == 0


def test_positions_off_the_earth_are_refused() -> None:
    for lat, lon in ((np.nan, 3.0), (91.0, 3.0), (48.0, np.inf)):
        with pytest.raises(GeoError, match=r"position 1 .* is not on Earth"):
            GRID.cells_at(lat=[48.0, lat], lon=[11.0, lon])


def test_a_plan_covers_its_raster_and_nothing_else() -> None:
    # 450 m x 300 m, turned by 20 degrees.
    transform = Affine(0.5, 0, 380_000, 0, -0.5, 5_820_000) @ Affine.rotation(20)
    raster = raster_at("EPSG:32633", transform)
    cells = cells_of(plan_chips([raster], GRID))
    rng = np.random.default_rng(0)
    for u, v in rng.uniform(0, 1, (300, 2)) * (900, 600):
        lat, lon = geographic("EPSG:32633", *(transform @ (u, v)))
        rows, cols = GRID.cells_at(lat=lat, lon=lon)
        # Slivers of less than 2 % of a cell may be left out at the border only.
        is_inner = 20 < u < 880 and 20 < v < 580
        assert (int(rows[0]), int(cols[0])) in cells or not is_inner
    assert 33 < len(cells) < 65  # 135,000 m2 are 33 cells, and the border's


def test_tiles_of_a_mosaic_share_one_grid() -> None:
    whole = raster_at(
        "EPSG:32633", Affine(0.5, 0, 380_000, 0, -0.5, 5_820_000), height=1200, width=1600
    )
    tiles = [
        raster_at(
            "EPSG:32633", Affine(0.5, 0, 380_000 + x, 0, -0.5, 5_820_000 - y), height=600, width=800
        )
        for y in (0, 300)
        for x in (0, 400)
    ]
    together = plan_chips(tiles, GRID)
    assert cells_of(together) == cells_of(plan_chips([whole], GRID))
    separate = set[tuple[int, int]]().union(*(cells_of(plan_chips([tile], GRID)) for tile in tiles))
    assert separate <= cells_of(together)
    assert {number for block in together for number in block.rasters} == {0, 1, 2, 3}


def test_new_rasters_bring_the_cells_that_their_pixels_reach() -> None:
    old = raster_at(
        "EPSG:32633", Affine(0.5, 0, 380_000, 0, -0.5, 5_820_000), height=1000, width=1000
    )
    new = raster_at(
        "EPSG:32633", Affine(0.5, 0, 380_500, 0, -0.5, 5_820_000), height=1000, width=1000
    )
    only_old, both = cells_of(plan_chips([old], GRID)), cells_of(plan_chips([old, new], GRID))
    due = cells_of(plan_chips([old, new], GRID, first_new=1))
    assert both - only_old < due < both
    # Chips of which only the outer margin sees the new raster are due as well: two columns or so.
    assert 6 <= len(due & only_old) <= 30


def test_the_antimeridian_is_no_border_of_a_plan() -> None:
    step = 0.5 / 111_320
    across = raster_at(
        "EPSG:4326", Affine(step, 0, 180 - 400 * step, 0, -step, 10.0), height=800, width=800
    )
    east = raster_at("EPSG:4326", Affine(step, 0, -180, 0, -step, 10.0), height=800, width=800)
    cells = cells_of(plan_chips([across, east], GRID))
    num_columns = GRID.band(int(GRID.band_indexes(10.0)[0])).num_columns
    cols = {col for _, col in cells}
    assert min(cols) == 0
    assert max(cols) == num_columns - 1
    assert cells == {(row, col % num_columns) for row, col in cells}


def test_blocks_split_into_runs_of_rows() -> None:
    rows, cols = np.divmod(np.arange(40), 8)
    parts = list(Block(0, 0, (0,), rows, cols).split(20))
    assert [len(part) for part in parts] == [16, 16, 8]
    assert (np.concatenate([part.rows for part in parts]) == rows).all()
    assert (np.concatenate([part.cols for part in parts]) == cols).all()
    assert [len(part) for part in Block(0, 0, (0,), rows, cols).split(3)] == [8] * 5


def test_polar_rasters_are_refused() -> None:
    raster = raster_at("EPSG:3413", Affine(0.5, 0, 0, 0, -0.5, 0))
    with pytest.raises(RasterError, match="reaches to latitude"):
        plan_chips([raster], GRID)


@pytest.mark.parametrize(
    "values", [(100.1, 64, 0.5), (128, 130, 0.5), (128, 64.5, 0.5), (0, 0, 0.5), (128, 64, -1)]
)
def test_grids_that_leave_gaps_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        ChipGrid(*values)


@pytest.mark.parametrize(
    ("crs", "east", "north"),
    [("EPSG:32633", 380_000, 5_820_000), ("EPSG:32633", 500_400, 7_210_000)],
)
def test_a_chip_cut_from_a_block_equals_one_read_in_its_own_frame(
    tmp_path: Path, crs: str, east: float, north: float
) -> None:
    path = write_city(tmp_path / "city.tif", east=east, north=north, size_px=2400)
    info = inspect_raster(path)
    blocks = plan_chips([info], GRID)
    block = max(blocks, key=len)
    assert len(block) > 60
    with Mosaic([info]) as mosaic, Raster(info) as raster:
        image = read_block(mosaic, GRID, block)
        whole, central = image.valid_fractions()
        for index in {0, len(block) // 3, len(block) - 1}:
            rgb, is_valid = (a[0] for a in image.chips([index]))
            lat, lon = GRID.centers(block.rows[[index]], block.cols[[index]])
            exact, is_exact = read_chip(raster, lat=float(lat[0]), lon=float(lon[0]))
            assert (is_valid != is_exact).mean() < 1e-3
            both = is_valid & is_exact
            difference = np.abs(rgb[both].astype(int) - exact[both])
            # Steps of up to 200 levels within one raster pixel: 0.04 px is at most 8 levels.
            assert difference.max() <= 8
            assert difference.mean() < 0.5
            assert whole[index] == is_valid.mean()
            assert central[index] == is_valid[64:192, 64:192].mean()
        cell = plan_cell(raster_bounds([info]), GRID, int(block.rows[3]), int(block.cols[3]))
        alone, _ = read_block(mosaic, GRID, cell).chips([0])
        assert np.abs(alone[0].astype(int) - image.chips([3])[0][0]).max() <= 1


def test_central_squares_of_neighbours_meet_without_gap_or_overlap(tmp_path: Path) -> None:
    info = inspect_raster(
        write_city(tmp_path / "city.tif", east=380_000, north=5_820_000, size_px=1200)
    )
    with Mosaic([info]) as mosaic:
        block = max(plan_chips([info], GRID), key=len)
        image = read_block(mosaic, GRID, block)
        place = {cell: i for i, cell in enumerate(zip(block.rows, block.cols, strict=True))}
        row, col = next((r, c) for r, c in place if (r, c + 1) in place and (r - 1, c) in place)
        here, east, south = (
            image.chips([place[cell]])[0][0]
            for cell in ((row, col), (row, col + 1), (row - 1, col))
        )
    assert (here[:, 128:] == east[:, :128]).all()
    assert (here[128:] == south[:128]).all()


def test_rasters_within_counts_turns_around_the_earth() -> None:
    bounds = np.array([[179.9, 0, 180.1, 1], [-180.05, 0, -179.9, 1], [10, 0, 11, 1]], np.float64)
    assert rasters_within(bounds, np.array([-179.99, 0.2, -179.98, 0.3])) == (0, 1)
    assert rasters_within(bounds, np.array([180.01, 0.2, 180.02, 0.3])) == (0, 1)
    assert rasters_within(bounds, np.array([10.5, 0.2, 10.6, 0.3])) == (2,)
    assert rasters_within(bounds, np.array([10.5, 2, 10.6, 3])) == ()


def test_footprints_and_names() -> None:
    rows, cols = GRID.cells_at(lat=48.1, lon=11.5)
    whole = GRID.footprints(rows, cols)[0]
    central = GRID.footprints(rows, cols, is_whole=False)[0]
    assert whole.area == pytest.approx(4 * central.area, rel=1e-6)
    assert whole.contains(central)
    assert abs(GEOD.geometry_area_perimeter(whole)[0]) == pytest.approx(128**2, rel=1e-3)
    assert chip_ids(np.array([-3, 5]), np.array([7, 8])) == ["r-3c7", "r5c8"]


def test_nodata_of_an_earlier_raster_is_filled_by_a_later_one(tmp_path: Path) -> None:
    transform = Affine(0.5, 0, 380_000, 0, -0.5, 5_820_000)
    first = np.full((3, 600, 600), 50, np.uint8)
    first[:, :, 300:] = 0
    paths = [
        write_raster(tmp_path / "a.tif", first, crs="EPSG:32633", transform=transform, nodata=0),
        write_raster(
            tmp_path / "b.tif", np.full_like(first, 99), crs="EPSG:32633", transform=transform
        ),
    ]
    infos = [inspect_raster(path) for path in paths]
    with Mosaic(infos) as mosaic:
        lat, lon = geographic("EPSG:32633", 380_150, 5_819_850)
        rgb, is_valid = read_chip(mosaic, lat=lat, lon=lon, size_px=100)
    assert is_valid.all()
    assert (rgb[:, :45] == 50).all()
    assert (rgb[:, 55:] == 99).all()
