from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine

from ciper.camera import Camera, camera_from_photo
from ciper.data.nadir import NadirConfig, View, cut_nadir_photos, moved, photograph
from ciper.data.poses import read_poses
from ciper.data.preprocess import canvas_spec_for, read_photo
from ciper.errors import ConfigError, NoCrsError, RasterError
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import Mosaic, read_chip
from ciper.geo import LocalFrame, Pose
from ciper.simulate import SimulateConfig, simulate


def _raster(
    path: Path,
    array: NDArray[np.uint8],
    *,
    epsg: int | None = 32635,
    left: float = 385000.0,
    top: float = 6672000.0,
    pixel: float = 0.5,
) -> Path:
    profile = {
        "driver": "GTiff", "height": array.shape[0], "width": array.shape[1],
        "count": array.shape[2], "dtype": "uint8",
        "transform": Affine(pixel, 0, left, 0, -pixel, top),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile, crs=epsg and f"EPSG:{epsg}") as dataset:
        dataset.write(np.moveaxis(array, -1, 0))
    return path


def _texture(height_px: int, width_px: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(3).integers(1, 256, (height_px // 8, width_px // 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC)
    return np.array(image)


@pytest.mark.parametrize(
    ("heading_deg", "corner"),
    [(0.0, (0, 1)), (90.0, (0, 0)), (180.0, (1, 0)), (270.0, (1, 1))],
)
def test_top_of_the_photo_points_along_the_heading(
    tmp_path: Path, heading_deg: float, corner: tuple[int, int]
) -> None:
    """A red mark 20 m north-east of the camera: upper right when looking north."""
    frame = LocalFrame(lat=0.001, lon=27.0)  # on the zone's meridian: grid north is true north
    east, north = (float(axis) for axis in frame.crs_from_local(32635)(0.0, 0.0))
    array = np.full((400, 400, 3), 90, dtype=np.uint8)
    array[156:164, 236:244] = (255, 0, 0)  # 40 px = 20 m east and north of the middle
    path = _raster(tmp_path / "a.tif", array, left=east - 100, top=north + 100)
    camera = Camera("pinhole", 300, 400, 90.0, pitch_deg=-90.0)
    view = View(Pose(lat=0.001, lon=27.0, heading_deg=heading_deg), camera, height_m=50.0)
    with Mosaic([inspect_raster(path)]) as mosaic:
        canvas = photograph(mosaic, view)
    assert canvas.is_valid.all()
    rows, columns = np.nonzero(canvas.rgb[..., 1] < 40)
    # 100 m across 400 px: 4 px per metre, so 80 px from the middle (150, 200).
    expected = (150 + (80 if corner[0] else -80), 200 + (80 if corner[1] else -80))
    assert rows.mean() + 0.5 == pytest.approx(expected[0], abs=0.5)
    assert columns.mean() + 0.5 == pytest.approx(expected[1], abs=0.5)


def test_a_tilted_camera_sees_further_ahead(tmp_path: Path) -> None:
    """Tilted by 10 degrees at 50 m, the middle of the photo is 50 tan(10) m ahead."""
    frame = LocalFrame(lat=0.001, lon=27.0)
    east, north = (float(axis) for axis in frame.crs_from_local(32635)(0.0, 0.0))
    ahead_px = round(2 * 50.0 * math.tan(math.radians(10.0)))
    array = np.full((400, 400, 3), 90, dtype=np.uint8)
    array[198:202, 198 + ahead_px : 202 + ahead_px] = (255, 0, 0)
    path = _raster(tmp_path / "a.tif", array, left=east - 100, top=north + 100)
    camera = Camera("pinhole", 200, 300, 40.0, pitch_deg=-80.0)
    view = View(Pose(lat=0.001, lon=27.0, heading_deg=90.0), camera, height_m=50.0)
    with Mosaic([inspect_raster(path)]) as mosaic:
        rows, columns = np.nonzero(photograph(mosaic, view).rgb[..., 1] < 40)
    assert rows.mean() + 0.5 == pytest.approx(100, abs=3.0)
    assert columns.mean() + 0.5 == pytest.approx(150, abs=1.0)


@pytest.mark.parametrize(
    ("epsg", "left", "top", "pixel", "bands"),
    [
        (32635, 385000.0, 6672000.0, 0.5, 3),
        (2263, 987000.0, 200000.0, 1.6, 4),
        (4326, 24.9, 40.0, 5e-6, 1),
    ],
)
def test_photos_and_poses_of_any_raster(
    tmp_path: Path, epsg: int, left: float, top: float, pixel: float, bands: int
) -> None:
    array = _texture(480, 640)
    array = np.concatenate([array, np.full_like(array[..., :1], 255)], axis=2)[..., :bands]
    path = _raster(tmp_path / "a.tif", array, epsg=epsg, left=left, top=top, pixel=pixel)
    out = tmp_path / "out"
    simulate(out, SimulateConfig(num_photos=3, camera="nadir", rasters=(path,)))
    assert {item.name for item in out.iterdir()} == {"photos", "poses.csv"}
    for pose in read_poses(out / "poses.csv"):
        assert pose.projection == "pinhole" and pose.pitch_deg is not None
        assert -90.0 <= pose.pitch_deg <= -87.0
        camera = camera_from_photo(pose.photo, pose.camera_overrides)
        assert canvas_spec_for(camera).elevation_bottom_deg == -90.0
        assert pose.hfov_deg is not None and pose.height_m is not None
        assert camera_from_photo(pose.photo).hfov_deg == pytest.approx(pose.hfov_deg, abs=1e-3)
        photo = read_photo(pose.photo)
        assert photo.shape == (480, 640, 3)
        # Turned back to true north by its table, the photo matches the chip below it.
        gsd = 2 * pose.height_m * math.tan(math.radians(pose.hfov_deg / 2)) / 640
        upright = Image.fromarray(photo).rotate(
            -(pose.heading_deg or 0.0), Image.Resampling.BILINEAR
        )
        with Mosaic([inspect_raster(path)]) as mosaic:
            chip, _ = read_chip(mosaic, lat=pose.lat, lon=pose.lon, size_px=200, gsd=gsd)
        cut = np.asarray(upright)[140:340, 220:420].astype(float)
        shift = 240 * math.tan(math.radians(90.0 + pose.pitch_deg)) if pose.pitch_deg else 0.0
        assert abs(shift) < 15
        agreement = np.corrcoef(cut.mean(axis=2).ravel(), chip.mean(axis=2).ravel())[0, 1]
        backwards = np.corrcoef(cut.mean(axis=2)[::-1].ravel(), chip.mean(axis=2).ravel())[0, 1]
        assert agreement > max(0.2, 2 * abs(backwards))


def test_deterministic_and_shared_between_rasters(tmp_path: Path) -> None:
    paths = [
        _raster(tmp_path / f"{i}.tif", _texture(400, 400), left=385000.0 + 1000 * i)
        for i in range(2)
    ]
    config = NadirConfig(num_photos=4, seed=1, size_px=(96, 128))
    seen = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        poses = cut_nadir_photos(paths, tmp_path / name, config)
        seen.append([(pose.lat, pose.lon, pose.photo.read_bytes()) for pose in poses])
    assert seen[0] == seen[1]
    # Photos 0 and 2 of the first raster, 1 and 3 of the second, 1 km to the east.
    lons = [pose.lon for pose in poses]
    assert max(lons[0], lons[2]) + 0.01 < min(lons[1], lons[3])


def test_photos_avoid_holes(tmp_path: Path) -> None:
    array = _texture(600, 600)
    array[:, :150] = 0
    path = _raster(tmp_path / "a.tif", array)
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = 0
    (tmp_path / "out").mkdir()
    for pose in cut_nadir_photos([path], tmp_path / "out", NadirConfig(num_photos=4)):
        with Mosaic([inspect_raster(path)]) as mosaic:
            _, is_valid = read_chip(mosaic, lat=pose.lat, lon=pose.lon, size_px=80)
        assert is_valid.all()


def test_a_photo_tells_what_a_drone_tells(tmp_path: Path) -> None:
    path = _raster(tmp_path / "a.tif", _texture(600, 600))
    (tmp_path / "out").mkdir()
    for pose in cut_nadir_photos([path], tmp_path / "out", NadirConfig(num_photos=4)):
        said, told = camera_from_photo(pose.photo), pose.camera_overrides
        assert said.looks_down and told.height_m is not None
        assert said.height_m == pytest.approx(told.height_m, abs=0.006)
        assert said.pitch_deg == pytest.approx(told.pitch_deg, abs=0.006)
        width_m = 2 * told.height_m * math.tan(math.radians(said.hfov_deg / 2))
        assert 60.0 <= width_m <= 100.0


def test_what_nobody_tells_moves_the_photo(tmp_path: Path) -> None:
    """A tilt of 1 degree to the right shows what is 50 tan(1) = 0.87 m to the right."""
    path = _raster(tmp_path / "a.tif", _texture(600, 600))
    info = inspect_raster(path)
    lat, lon = (float(v.mean()) for v in info.outline())
    camera = Camera("pinhole", 200, 200, 60.0, pitch_deg=-90.0)
    plain = View(Pose(lat=lat, lon=lon, heading_deg=0.0), camera, 50.0)
    east = LocalFrame(lat=lat, lon=lon).pose(x=50 * math.radians(1.0), y=0.0, heading_deg=0.0)
    with Mosaic([info]) as mosaic:
        tilted = photograph(mosaic, replace(plain, tilt_error_rad=(math.radians(1.0), 0.0))).rgb
        beside = photograph(mosaic, replace(plain, pose=east)).rgb
        upright = photograph(mosaic, plain).rgb
    assert np.abs(tilted.astype(int) - beside).mean() < 0.5
    assert np.abs(tilted.astype(int) - upright).mean() > 2


def test_a_moved_photo_is_blurred_one_way() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    spread = [moved(photo, np.random.default_rng(seed)).astype(float).std() for seed in range(5)]
    assert max(spread) < 0.85 * photo.std()
    flat = np.full((16, 16, 3), 77, np.uint8)
    assert (moved(flat, np.random.default_rng(0)) == 77).all()


def test_unusable_rasters(tmp_path: Path) -> None:
    small = _raster(tmp_path / "small.tif", _texture(64, 64))
    with pytest.raises(RasterError, match="no place for a photo"):
        simulate(tmp_path / "out", SimulateConfig(num_photos=1, camera="nadir", rasters=(small,)))
    assert not (tmp_path / "out").exists()
    with pytest.raises(RasterError, match="does not exist"):
        cut_nadir_photos([tmp_path / "none.tif"], tmp_path, NadirConfig())
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        lost = _raster(tmp_path / "lost.tif", _texture(64, 64), epsg=None, left=0, top=0, pixel=1)
    with pytest.raises((NoCrsError, RasterError), match="coordinate reference system"):
        cut_nadir_photos([lost], tmp_path, NadirConfig())


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="num_photos -1"):
        NadirConfig(num_photos=-1)
    with pytest.raises(ConfigError, match="max_tilt_deg 45"):
        NadirConfig(max_tilt_deg=45.0)
    with pytest.raises(ConfigError, match="width_m"):
        NadirConfig(width_m=(0.0, 10.0))


def test_nadir_photos_of_a_city(tmp_path: Path) -> None:
    out = tmp_path / "city"
    simulate(out, SimulateConfig(seed=5, size_m=200.0, num_photos=2, camera="nadir"))
    assert {item.name for item in out.iterdir()} == {"aerial.tif", "photos", "poses.csv"}


def test_real_rasters(tmp_path: Path) -> None:
    root = os.environ.get("CIPER_REAL_DATA")
    if root is None:
        pytest.skip("CIPER_REAL_DATA is not set")
    pattern = str(Path(root, "naip", "chico_2020_1*.tif"))
    out = tmp_path / "naip"
    simulate(out, SimulateConfig(num_photos=6, camera="nadir", rasters=(pattern,)))
    photos = [read_photo(pose.photo) for pose in read_poses(out / "poses.csv")]
    assert len(photos) == 6 and all(photo.std() > 10 for photo in photos)
    folder = os.environ.get("CIPER_TEST_PICTURES")
    if folder is not None:
        Image.fromarray(np.vstack([np.hstack(photos[:3]), np.hstack(photos[3:])])).save(
            Path(folder, "nadir_naip.png")
        )
