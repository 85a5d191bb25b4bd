from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ciper.camera import Camera, camera_from_photo, pixels_from_rays
from ciper.city.aerial import georeference, write_geotiff
from ciper.city.layout import at_other_date, make_city
from ciper.city.render import Scene
from ciper.data.poses import PhotoPose, read_poses
from ciper.data.preprocess import canvas_spec_for, read_photo, to_canvas
from ciper.errors import ConfigError, OutputError
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import Mosaic, read_chip
from ciper.geo import LocalFrame, forward, grid_convergence_deg, heading_error_deg, right
from ciper.metadata import read_metadata
from ciper.simulate import (
    BORDER_M,
    SimulateConfig,
    SimulateResult,
    inner_sites,
    parse_camera,
    place_on_earth,
    random_shot,
    simulate,
    take_photo,
)

SIZE_M = 200.0


@pytest.fixture(scope="module")
def panoramas(tmp_path_factory: pytest.TempPathFactory) -> SimulateResult:
    out = tmp_path_factory.mktemp("simulate") / "panoramas"
    return simulate(out, SimulateConfig(seed=5, size_m=SIZE_M, num_photos=4))


@pytest.fixture(scope="module")
def pinholes(tmp_path_factory: pytest.TempPathFactory) -> SimulateResult:
    out = tmp_path_factory.mktemp("simulate") / "pinholes"
    return simulate(out, SimulateConfig(seed=5, size_m=SIZE_M, num_photos=4, camera="pinhole:90"))


# ----------------------------------------------------------------------------------------- aerial


@pytest.mark.parametrize(
    ("lat", "lon"), [(60.2, 24.9), (-33.9, 151.3), (-0.01, -70.0), (55.0, -6.1)]
)
def test_landmarks_of_the_aerial_image_lie_right(tmp_path: Path, lat: float, lon: float) -> None:
    """White squares at known metres come back at those metres to a small part of a pixel."""
    size_m, fine_gsd, frame = 200.0, 0.25, LocalFrame(lat=lat, lon=lon)
    landmarks = np.array([[-80.0, 75.0], [80.0, 75.0], [80.0, -75.0], [-80.0, -75.0], [3.0, 11.0]])
    image = np.full((800, 800, 3), 40, dtype=np.uint8)
    for x, y in landmarks:
        column, row = (x + size_m / 2) / fine_gsd, (size_m / 2 - y) / fine_gsd
        image[int(row) - 6 : int(row) + 6, int(column) - 6 : int(column) + 6] = 255
    path = tmp_path / "aerial.tif"
    write_geotiff(path, georeference(image, frame, size_m=size_m, gsd=0.5))
    with rasterio.open(path) as dataset:
        assert dataset.crs.to_epsg() // 100 == (326 if lat > 0 else 327)
        assert dataset.overviews(1) == [2]
        assert dataset.profile["tiled"] and dataset.compression.name == "deflate"
        pixels = dataset.read(1).astype(float)
        to_local = frame.local_from_crs(dataset.crs.to_wkt())
        v, u = np.nonzero(pixels > 60)
        x, y = to_local(*rasterio.transform.xy(dataset.transform, v, u))
    weights = pixels[v, u] - 40.0
    for landmark in landmarks:
        is_near = np.hypot(x - landmark[0], y - landmark[1]) < 6.0
        found = [np.average(axis[is_near], weights=weights[is_near]) for axis in (x, y)]
        np.testing.assert_allclose(found, landmark, atol=0.03)  # 1/16 of a pixel


def test_only_the_corners_outside_of_the_city_are_no_data() -> None:
    frame = LocalFrame(lat=60.2, lon=24.1)  # far west in its zone: grid north is 2.5 degrees off
    image = np.zeros((400, 400, 3), dtype=np.uint8)
    raster = georeference(image, frame, size_m=200.0, gsd=0.5)
    turn = math.radians(grid_convergence_deg(raster.crs, lat=60.2, lon=24.1))
    assert abs(math.degrees(turn)) > 2.0
    share = (raster.array == 0).all(axis=2).mean()
    spread = math.cos(turn) + abs(math.sin(turn))
    assert share == pytest.approx(1.0 - 1.0 / spread**2, abs=0.01)


def test_places_depend_on_the_seed() -> None:
    places = [place_on_earth(seed) for seed in range(20)]
    assert len({int((place.lon + 180) // 6) for place in places}) > 10
    assert 4 < sum(place.lat > 0 for place in places) < 17


# ----------------------------------------------------------------------------------------- photos


def test_table_and_metadata_agree(panoramas: SimulateResult, pinholes: SimulateResult) -> None:
    frame = place_on_earth(5)
    for result, projection in ((panoramas, "equirectangular"), (pinholes, "pinhole")):
        poses = read_poses(result.poses)
        assert len(poses) == result.num_photos == 4
        assert len(list((result.out / "photos").iterdir())) == 4
        for pose in poses:
            assert pose.projection == projection
            metadata, told = read_metadata(pose.photo), camera_from_photo(pose.photo)
            assert metadata.problems == () and not told.is_assumed
            assert metadata.lat == pytest.approx(pose.lat, abs=1e-8)
            assert metadata.lon == pytest.approx(pose.lon, abs=1e-8)
            assert metadata.heading_deg == pytest.approx(pose.heading_deg, abs=1e-3)
            camera = camera_from_photo(pose.photo, pose.camera_overrides)
            assert told.projection == camera.projection
            assert told.hfov_deg == pytest.approx(camera.hfov_deg, abs=1e-3)
            assert read_photo(pose.photo).shape == (camera.height_px, camera.width_px, 3)
            assert pose.height_m is not None and 1.5 <= pose.height_m <= 2.6
            x, y = frame.to_local(lat=pose.lat, lon=pose.lon)
            assert max(abs(float(x)), abs(float(y))) <= SIZE_M / 2 - BORDER_M


def test_photos_are_deterministic(tmp_path: Path, pinholes: SimulateResult) -> None:
    again = simulate(
        tmp_path / "again", SimulateConfig(seed=5, size_m=SIZE_M, num_photos=2, camera="pinhole:90")
    )
    for first, second in zip(read_poses(pinholes.poses)[:2], read_poses(again.poses), strict=True):
        assert (first.lat, first.heading_deg) == (second.lat, second.heading_deg)
        assert first.photo.read_bytes() == second.photo.read_bytes()
    assert again.aerial is not None and pinholes.aerial is not None
    with rasterio.open(again.aerial) as new, rasterio.open(pinholes.aerial) as old:
        np.testing.assert_array_equal(new.read(), old.read())


def test_pinhole_photo_sees_what_the_panorama_sees() -> None:
    """From one place, under one light: a tilted pinhole photo on the canvas, and the panorama."""
    city = make_city(5, SIZE_M)
    scene = Scene.from_city(city)
    x, y = inner_sites(city, 1, np.random.default_rng(0))[0]
    shot = random_shot(float(x), float(y), "pinhole:80", np.random.default_rng(1))
    assert shot.camera.pitch_deg != 0.0 and shot.camera.roll_deg != 0.0
    photo = take_photo(scene, shot, np.random.default_rng(2))
    wide = random_shot(float(x), float(y), "panorama", np.random.default_rng(1))
    assert (wide.heading_deg, wide.height_m) == (shot.heading_deg, shot.height_m)
    panorama = take_photo(scene, wide, np.random.default_rng(2))
    narrow_canvas, is_visible = to_canvas(photo, shot.camera)
    wide_canvas, _ = to_canvas(panorama, wide.camera)
    assert 0.05 < is_visible.mean() < 0.25
    first = narrow_canvas[is_visible].astype(float).ravel()
    second = wide_canvas[is_visible].astype(float).ravel()
    agreement = np.corrcoef(first, second)[0, 1]
    shifted = np.roll(wide_canvas, 3, axis=1)[is_visible].astype(float).ravel()
    assert agreement > 0.9
    assert agreement > np.corrcoef(first, shifted)[0, 1]


def test_headings_ignore_the_street() -> None:
    headings = [
        random_shot(0.0, 0.0, "panorama", np.random.default_rng(seed)).heading_deg
        for seed in range(200)
    ]
    counts, _ = np.histogram(headings, bins=4, range=(0.0, 360.0))
    assert counts.min() > 30


def test_more_photos_than_places() -> None:
    city = at_other_date(make_city(5, 100.0), 5)
    sites = inner_sites(city, 500, np.random.default_rng(0))
    assert sites.shape == (500, 2)
    assert sites.min() >= BORDER_M and sites.max() <= 100.0 - BORDER_M
    assert inner_sites(city, 0, np.random.default_rng(0)).shape == (0, 2)


# --------------------------------------------------------------------------------- contact sheet


def _seen_from_above(photo: NDArray[np.uint8], camera: Camera, pose: PhotoPose) -> Image.Image:
    """The photo laid on flat ground, true-north-up, 64 m wide: roads lie where they are."""
    rows, columns = np.mgrid[0.5:256, 0.5:256]
    east, north = (columns - 128.0) * 0.25, (128.0 - rows) * 0.25
    assert pose.heading_deg is not None and pose.height_m is not None
    metres = np.stack([east, north], axis=-1)
    rays = np.stack(
        [
            metres @ right(pose.heading_deg),
            metres @ forward(pose.heading_deg),
            np.full_like(east, -pose.height_m),
        ],
        axis=-1,
    )
    u, v, is_visible = pixels_from_rays(camera, rays)
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    image[is_visible] = photo[
        np.clip(v[is_visible].astype(int), 0, camera.height_px - 1),
        np.clip(u[is_visible].astype(int), 0, camera.width_px - 1),
    ]
    return Image.fromarray(image)


def _with_arrow(chip: NDArray[np.uint8], heading_deg: float) -> Image.Image:
    image = Image.fromarray(chip)
    draw = ImageDraw.Draw(image)
    east, north = 40.0 * forward(heading_deg)
    middle = image.width / 2
    draw.line([middle, middle, middle + east, middle - north], fill=(255, 0, 0), width=3)
    draw.ellipse([middle - 4, middle - 4, middle + 4, middle + 4], fill=(255, 255, 0))
    return image


def _contact_sheet(result: SimulateResult, aerial: Path, path: Path) -> None:
    """Per photo: the photo, its canvas, the photo on the ground, the chip there with the pose."""
    poses = read_poses(result.poses)
    sheet = Image.new("RGB", (512 + 256 + 256, 264 * len(poses)))
    with Mosaic([inspect_raster(aerial)]) as mosaic:
        for i, pose in enumerate(poses):
            photo = read_photo(pose.photo)
            camera = camera_from_photo(pose.photo, pose.camera_overrides)
            canvas, _ = to_canvas(photo, camera, spec=canvas_spec_for(camera))
            chip, _ = read_chip(mosaic, lat=pose.lat, lon=pose.lon, size_px=256, gsd=0.25)
            small = Image.fromarray(photo)
            small.thumbnail((512, 130))
            sheet.paste(small, (0, 264 * i))
            sheet.paste(Image.fromarray(canvas), (0, 264 * i + 132))
            sheet.paste(_seen_from_above(photo, camera, pose), (512, 264 * i))
            sheet.paste(_with_arrow(chip, pose.heading_deg or 0.0), (768, 264 * i))
    sheet.save(path)


@pytest.mark.parametrize("camera", ["panorama", "pinhole:90"])
def test_contact_sheet(
    camera: str, panoramas: SimulateResult, pinholes: SimulateResult, tmp_path: Path
) -> None:
    """A picture to look at: set CIPER_TEST_PICTURES to a folder to keep it."""
    folder = Path(os.environ.get("CIPER_TEST_PICTURES", tmp_path))
    result = panoramas if camera == "panorama" else pinholes
    assert result.aerial is not None
    path = folder / f"simulate_{camera.partition(':')[0]}.png"
    _contact_sheet(result, result.aerial, path)
    assert path.stat().st_size > 50_000


def test_roads_of_the_photo_lie_on_the_roads_of_the_chip(panoramas: SimulateResult) -> None:
    """The photo laid on the ground matches the aerial chip best at the true heading."""
    assert panoramas.aerial is not None
    scores = np.zeros(8)
    turns_deg = np.arange(8) * 45.0
    with Mosaic([inspect_raster(panoramas.aerial)]) as mosaic:
        for pose in read_poses(panoramas.poses):
            photo = read_photo(pose.photo)
            camera = camera_from_photo(pose.photo)
            chip, _ = read_chip(mosaic, lat=pose.lat, lon=pose.lon, size_px=256, gsd=0.25)
            for i, turn_deg in enumerate(turns_deg):
                turned = PhotoPose(
                    **{**vars(pose), "heading_deg": (pose.heading_deg or 0.0) + turn_deg}
                )
                ground = np.asarray(_seen_from_above(photo, camera, turned))
                middle = (slice(78, 178), slice(78, 178))
                scores[i] += np.corrcoef(
                    ground[middle].mean(axis=2).ravel(), chip[middle].mean(axis=2).ravel()
                )[0, 1]
    assert abs(float(heading_error_deg(turns_deg[scores.argmax()], 0.0))) == 0.0


# ------------------------------------------------------------------------------------ bad settings


def test_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not empty"):
        simulate(tmp_path, SimulateConfig(size_m=SIZE_M, num_photos=1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        simulate(tmp_path / "file", SimulateConfig(size_m=SIZE_M, num_photos=1))
    with pytest.raises(OutputError, match="cannot write beside"):
        simulate(tmp_path / "file" / "out", SimulateConfig(size_m=SIZE_M, num_photos=1))


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "taking photos":
            raise KeyboardInterrupt

    config = SimulateConfig(seed=5, size_m=100.0, num_photos=2)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "out", config, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"camera": "fisheye"}, "fisheye"),
        ({"camera": "pinhole:200"}, "pinhole:200"),
        ({"camera": "pinhole:wide"}, "pinhole:wide"),
        ({"camera": "nadir:90"}, "nadir:90"),
        ({"size_m": 10.0}, "size_m 10"),
        ({"size_m": math.nan}, "size_m nan"),
        ({"num_photos": -1}, "num_photos -1"),
        ({"seed": -1}, "seed -1"),
        ({"gsd": 0.0}, "gsd 0"),
        ({"rasters": (Path("a.tif"),)}, "flat"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimulateConfig(**settings)  # type: ignore[arg-type]


def test_parse_camera() -> None:
    assert parse_camera("panorama") == ("panorama", None)
    assert parse_camera("pinhole:72.5") == ("pinhole", 72.5)
    assert parse_camera("pinhole") == ("pinhole", 90.0)
