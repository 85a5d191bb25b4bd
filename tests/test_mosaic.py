from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_helpers import tree, write_kitti
from model_helpers import SmallWorld
from PIL import Image

from ciper.camera import CameraOverrides
from ciper.data.datasets import ProtocolOptions
from ciper.data.mosaic import gallery_images, mercator_transform, thinned, write_rasters
from ciper.data.protocol import AerialImage, Cut, Protocol, Sample, Told
from ciper.data.shown import ShownPose
from ciper.errors import DatasetError, OutputError
from ciper.evaluate import evaluate
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import Mosaic, read_chip
from ciper.gallery.store import Gallery
from ciper.geo import LocalFrame

SIDE_PX, GSD = 640, 0.2


def _image(path: Path, *, lat: float = 49.015, lon: float = 8.4) -> AerialImage:
    return AerialImage(path, lat=lat, lon=lon, gsd=GSD, side_px=SIDE_PX)


def _moved(image: AerialImage, east_m: float, north_m: float) -> AerialImage:
    frame = LocalFrame(lat=image.lat, lon=image.lon)
    lat, lon = frame.to_geographic(x=east_m, y=north_m)
    return _image(image.path, lat=float(lat), lon=float(lon))


def _write(path: Path, marks: dict[tuple[int, int], tuple[int, int, int]]) -> None:
    pixels = np.full((SIDE_PX, SIDE_PX, 3), 40, np.uint8)
    for (row, column), colour in marks.items():
        pixels[row : row + 10, column : column + 10] = colour
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(("lat", "lon"), [(49.015, 8.4), (-33.9, 151.2), (42.3, -83.2)])
def test_georeference_is_that_of_true_metres(lat: float, lon: float) -> None:
    image = _image(Path("x.png"), lat=lat, lon=lon)
    a, b, c, d, e, f = mercator_transform(image)
    to_local = LocalFrame(lat=lat, lon=lon).local_from_crs("EPSG:3857")
    u, v = np.array([0.0, 640.0, 0.0, 480.0]), np.array([0.0, 0.0, 640.0, 160.0])
    x, y = to_local(a * u + b * v + c, d * u + e * v + f)
    assert x == pytest.approx((u - 320) * GSD, abs=0.002)
    assert y == pytest.approx((320 - v) * GSD, abs=0.002)


@pytest.mark.parametrize("lat", [49.015, -33.9, 0.0])
def test_tiles_of_web_mercator_have_its_square_pixels(lat: float) -> None:
    """And the camera of a sample stands on the pixel that shows it."""
    gsd = 156543.03392 * np.cos(np.radians(lat)) / 2**19
    image = AerialImage(Path("x.png"), lat, 8.4, gsd, 1280, is_mercator=True)
    a, _, c, _, e, f = mercator_transform(image)
    assert (a, e) == pytest.approx((156543.03392 / 2**19, -156543.03392 / 2**19), rel=1e-7)
    told, cut = Told(0.0, 180.0, 64.0), Cut(0.0, 0.0, 0.0, 100.0)
    for x_m, y_m in ((90.0, 60.0), (-90.0, 60.0), (-90.0, -60.0), (90.0, -60.0)):
        sample = Sample("one", Path("p"), CameraOverrides(), x_m, y_m, 0.0, image, cut, told)
        at_lat, at_lon = sample.position
        east = 6_378_137.0 * np.radians(at_lon)
        north = 6_378_137.0 * np.arcsinh(np.tan(np.radians(at_lat)))
        column, row = (east - c) / a, (north - f) / e
        assert (column - 640) * gsd == pytest.approx(x_m, abs=0.002)
        assert (640 - row) * gsd == pytest.approx(y_m, abs=0.002)


def test_chips_of_the_rasters_show_what_lies_there(tmp_path: Path) -> None:
    """A red mark in the north-east of an image, a blue one in its south-west."""
    source = tmp_path / "set" / "one & only.png"
    source.parent.mkdir()
    # 30 m east and 20 m north of the centre is column 320 + 150, row 320 - 100.
    _write(source, {(215, 465): (255, 0, 0), (395, 195): (0, 0, 255)})
    image = _image(source)
    made = write_rasters([image], tmp_path / "vrt")
    assert not made.problems
    with Mosaic([inspect_raster(made.rasters[0])]) as mosaic:
        chip, is_valid = read_chip(mosaic, lat=image.lat, lon=image.lon, size_px=256, gsd=0.5)
    assert is_valid[10:-10, 10:-10].all()
    assert chip[128 - 40, 128 + 60].tolist() == [255, 0, 0]
    # 24 m west and 16 m south.
    assert chip[128 + 32, 128 - 48].tolist() == [0, 0, 255]
    assert chip[128 + 40, 128 + 60].tolist() == [40, 40, 40]


def test_an_image_of_another_size_shows_the_same_square(tmp_path: Path) -> None:
    Image.new("L", (320, 320), 90).save(tmp_path / "half.png")
    raster = write_rasters([_image(tmp_path / "half.png")], tmp_path / "vrt").rasters[0]
    info = inspect_raster(raster)
    full = mercator_transform(_image(tmp_path / "half.png"))
    assert info.transform[0] == pytest.approx(2 * full[0])
    assert info.transform[2] == pytest.approx(full[2])
    assert len(info.bands) == 1


def test_written_once_and_again_only_if_they_differ(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", {})
    image = _image(tmp_path / "a.png")
    raster = write_rasters([image], tmp_path / "vrt").rasters[0]
    before = raster.stat().st_mtime_ns
    assert write_rasters([image], tmp_path / "vrt").rasters == (raster,)
    assert raster.stat().st_mtime_ns == before


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    _write(tmp_path / "good.png", {})
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad, gone = _image(tmp_path / "bad.png"), _image(tmp_path / "gone.png")
    made = write_rasters([bad, _image(tmp_path / "good.png"), gone], tmp_path / "vrt")
    assert len(made.rasters) == 1
    assert [problem.partition(":")[0] for problem in made.problems] == [
        str(tmp_path / "bad.png"),
        str(tmp_path / "gone.png"),
    ]
    with pytest.raises(DatasetError, match="none of 2 aerial images can be read"):
        write_rasters([bad, gone], tmp_path / "vrt")


def test_thinning_keeps_a_cover() -> None:
    """Frames every 3 m for 600 m: with sides of 128 m about one in eleven stays."""
    first = _image(Path("x.png"))
    frames = [_moved(first, 3.0 * i, 0.1 * i) for i in range(200)]
    kept = thinned(frames)
    assert kept[0] == frames[0]
    assert 15 <= len(kept) <= 20
    frame = LocalFrame(lat=first.lat, lon=first.lon)

    def place(image: AerialImage) -> np.ndarray:
        return np.stack(frame.to_local(lat=image.lat, lon=image.lon))

    for image in frames:
        nearest = min(np.hypot(*(place(image) - place(k))) for k in kept)
        assert nearest <= 0.25 * 128.0 + 1.0


def test_published_galleries_are_not_thinned() -> None:
    images = tuple(_moved(_image(Path("x.png")), 3.0 * i, 0.0) for i in range(3))
    protocol = Protocol("vigor", {}, (), references=images)
    assert gallery_images(protocol) == images


def test_samples_as_poses(tmp_path: Path) -> None:
    """40 m west and 30 m north; the panorama is turned by 90 degrees and cut to half."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 12:14] = 200
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    image = _image(tmp_path / "x.png")
    lens = CameraOverrides(projection="equirectangular", hfov_deg=360.0)
    sample = Sample(
        "one", tmp_path / "photo.png", lens, -40.0, 30.0, 90.0, image,
        Cut(0.0, 0.0, 0.0, 128.0), Told(0.0, 180.0, 64.0), turn_deg=90.0, fov_deg=180.0,
    )  # fmt: skip
    pose = ShownPose.of(sample)
    assert pose.heading_deg == 90.0
    x, y = LocalFrame(lat=image.lat, lon=image.lon).to_local(lat=pose.lat, lon=pose.lon)
    assert (float(x), float(y)) == pytest.approx((-40.0, 30.0), abs=1e-6)
    shown, camera, _ = pose.read()
    # The file's column 12 looks 90 degrees to the right of its middle: now it is the middle.
    assert shown.shape == (8, 8, 3)
    assert shown[0, 4:6, 0].tolist() == [200, 200]
    assert camera.hfov_deg == pytest.approx(180.0)


def test_a_data_set_on_a_grid(small_world: SmallWorld, tmp_path: Path) -> None:
    root = write_kitti(tmp_path / "kitti")
    before, gallery = tree(root), tmp_path / "gallery"

    def ask(split: str) -> dict[str, object]:
        return evaluate(
            f"kitti:{root}", tmp_path / "report", gallery=gallery, model=small_world.weights,
            device="cpu", protocol=ProtocolOptions(split=split), is_on_grid=True,
        )  # fmt: skip

    figures = ask("test1")
    assert figures["num_queries"] == 2
    # Both images lie on one another: one of 250 m makes the gallery.
    assert figures["num_references"] == len(Gallery.open(gallery)) > 1
    warnings = figures["warnings"]
    assert isinstance(warnings, list)
    assert any("grid of north-up chips over 1 aerial images" in text for text in warnings)
    assert "retrieval_per_query_chips" not in figures
    made = (gallery / "manifest.json").read_bytes()
    assert ask("test1")["retrieval"] == figures["retrieval"]
    assert (gallery / "manifest.json").read_bytes() == made
    assert tree(root) == before
    # The other split's imagery is another gallery.
    with pytest.raises(OutputError, match="is of other imagery or another model"):
        ask("test2")
    settings = figures["settings"]
    assert isinstance(settings, dict)
    assert (settings["split"], settings["protocol"]) == ("test1", "grid")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    gallery = tmp_path / "mine"
    with pytest.raises(OutputError, match="holds something else"):
        ask("test1")
    assert not (tmp_path / "mine-rasters").exists()
