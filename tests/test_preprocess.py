from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import (
    Camera,
    CameraOverrides,
    camera_from_photo,
    pixels_from_rays,
    rays_from_pixels,
)
from ciper.data.preprocess import CanvasSpec, canvas_spec_for, read_photo, reproject, to_canvas
from ciper.errors import CameraError, PhotoError
from ciper.metadata import read_metadata

Rgb = NDArray[np.uint8]

# ---------------------------------------------------------------------------------------- reading


def _colours() -> Image.Image:
    """6 wide, 4 high: red left half, blue right half, the upper left pixel white."""
    array = np.zeros((4, 6, 3), dtype=np.uint8)
    array[:, :3, 0] = 255
    array[:, 3:, 2] = 255
    array[0, 0] = 255
    return Image.fromarray(array)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_colour_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("photo.tif" if mode in ("CMYK", "YCbCr") else "photo.png")
    _colours().convert(mode).save(path)
    photo = read_photo(path)
    assert photo.shape == (4, 6, 3) and photo.dtype == np.uint8
    np.testing.assert_allclose(photo[2, 1], (255, 0, 0), atol=3)
    np.testing.assert_allclose(photo[2, 4], (0, 0, 255), atol=3)
    np.testing.assert_allclose(photo[0, 0], (255, 255, 255), atol=3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_flavours(tmp_path: Path, options: dict[str, Any]) -> None:
    image = _colours().resize((60, 40), Image.Resampling.NEAREST)
    for mode in ("RGB", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        image.convert(mode).save(path, quality=95, **options)
        np.testing.assert_allclose(read_photo(path)[30, 10], (255, 0, 0), atol=12)


def test_grey_and_16_bit(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 100, np.uint8)).save(tmp_path / "grey.png")
    assert (read_photo(tmp_path / "grey.png") == 100).all()
    deep = np.full((4, 6), 100 * 257, np.uint16)
    deep[0, 0], deep[0, 1] = 65535, 0
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        photo = read_photo(tmp_path / name)
        assert photo[0, :3, 1].tolist() == [255, 0, 100]
    Image.fromarray(np.eye(4) > 0).save(tmp_path / "bits.png")
    assert read_photo(tmp_path / "bits.png")[:2, :2, 0].tolist() == [[255, 0], [0, 255]]


def test_16_bit_colour_png(tmp_path: Path) -> None:
    """Pillow cannot write these: 2 x 1 px, 16 bits per channel."""
    row = b"\x00" + struct.pack(">6H", 65535, 0, 0, 0, 100 * 257, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row))
    (tmp_path / "deep.png").write_bytes(png + chunk(b"IEND", b""))
    assert read_photo(tmp_path / "deep.png").tolist() == [[[255, 0, 0], [0, 100, 0]]]


def test_transparent_pixels_lie_over_grey(tmp_path: Path) -> None:
    image = _colours().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    assert (read_photo(tmp_path / "clear.png") == 128).all()
    palette = _colours().convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((5, 3)))
    photo = read_photo(tmp_path / "palette.png")
    assert photo[3, 5].tolist() == [128, 128, 128] and photo[3, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "white_at", "is_turned"),
    [
        (1, (0, 0), False),
        (2, (0, -1), False),
        (3, (-1, -1), False),
        (4, (-1, 0), False),
        (5, (0, 0), True),
        (6, (0, -1), True),
        (7, (-1, -1), True),
        (8, (-1, 0), True),
    ],
)
def test_exif_orientation(
    tmp_path: Path, orientation: int, white_at: tuple[int, int], is_turned: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    _colours().save(path, exif=exif)
    photo = read_photo(path)
    assert photo.shape == ((6, 4, 3) if is_turned else (4, 6, 3))
    assert photo[white_at].tolist() == [255, 255, 255]
    camera = camera_from_photo(path)
    assert (camera.height_px, camera.width_px) == photo.shape[:2]


def test_damaged_exif_does_not_stop_a_photo(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    _colours().save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0abcdefgh")
    assert read_photo(path).shape == (4, 6, 3)
    assert any("EXIF is damaged" in line for line in read_metadata(path).problems)


def test_strips_make_one_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    monkeypatch.setattr("ciper.data.preprocess._STRIP_PX", 3)
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.png"), pixels)


def test_upright_photos_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.png"
    _colours().save(path)

    def copy(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Image.Image, "transpose", copy)
    assert read_photo(path).shape == (4, 6, 3)


def test_photos_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(PhotoError, match=r"photo\.jpg cannot be opened \(Permission denied\)"):
        read_photo(tmp_path / "photo.jpg")


def _png_of_one_colour(width_px: int, height_px: int) -> bytes:
    """A valid PNG of any size in few bytes: compressed row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_bad_files_are_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        whole, "JPEG"
    )
    files = {
        "empty.jpg": b"",
        "text.jpg": b"this is not an image",
        "cut.jpg": whole.getvalue()[:2000],
        "huge.png": _png_of_one_colour(30_000, 30_000),
        "large.png": _png_of_one_colour(15_000, 8_001),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = {
        "missing.jpg": "does not exist",
        ".": "is a folder",
        "empty.jpg": "0 bytes",
        "text.jpg": "not an image",
        "cut.jpg": "cut short",
        "huge.png": "too large .* at most 120 million pixels: make it smaller",
        "large.png": r"too large \(15000 x 8001 px\); expected at most 120 million pixels",
    }
    for name, message in expected.items():
        with pytest.raises(PhotoError, match=message) as caught:
            read_photo(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_float_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 0.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(PhotoError, match="float32"):
        read_photo(tmp_path / "float.tif")


# ----------------------------------------------------------------------------------------- canvas


def _sphere(height_px: int, width_px: int, **tilt: float) -> Camera:
    return Camera("equirectangular", height_px, width_px, 360.0, **tilt)  # type: ignore[arg-type]


def _photo_of_directions(camera: Camera) -> Rgb:
    """A photo whose colours are the rays of its pixels, as a smooth test picture."""
    rows, columns = np.mgrid[0.5 : camera.height_px, 0.5 : camera.width_px]
    rays = rays_from_pixels(camera, columns, rows)
    return np.rint(127.5 + 127.5 * rays).astype(np.uint8)


def _canvas_of_directions(spec: CanvasSpec) -> NDArray[np.float64]:
    bearing, elevation = np.meshgrid(np.deg2rad(spec.bearings_deg), np.deg2rad(spec.elevations_deg))
    rays = np.stack(
        [
            np.sin(bearing) * np.cos(elevation),
            np.cos(bearing) * np.cos(elevation),
            np.sin(elevation),
        ],
        axis=-1,
    )
    return 127.5 + 127.5 * rays


def test_spec_angles() -> None:
    spec = CanvasSpec()
    assert spec.bearings_deg[[0, 255, 256, 511]].tolist() == [
        -179.6484375,
        -0.3515625,
        0.3515625,
        179.6484375,
    ]
    assert spec.elevations_deg[[0, 127]].tolist() == [44.6484375, -44.6484375]


def test_a_panorama_of_the_canvas_s_density_is_cut_not_blurred() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    canvas, is_visible = to_canvas(photo, _sphere(256, 512))
    assert is_visible.all()
    np.testing.assert_array_equal(canvas, photo[64:192])


def test_a_larger_panorama_is_averaged() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
    canvas, _ = to_canvas(photo, _sphere(1024, 2048))
    blocks = photo[256:768].reshape(128, 4, 512, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(canvas, blocks, atol=1.0)


@pytest.mark.parametrize(
    "camera",
    [
        _sphere(1000, 2000),
        _sphere(300, 600, pitch_deg=12.0, roll_deg=-7.0),
        Camera("equirectangular", 300, 1000, 360.0, 30.0, -60.0),
        Camera("equirectangular", 500, 600, 130.0, 50.0, -20.0, roll_deg=4.0),
        Camera("pinhole", 480, 640, 90.0),
        Camera("pinhole", 640, 480, 50.0, pitch_deg=10.0, roll_deg=5.0),
        Camera("pinhole", 375, 1242, 81.0, roll_deg=-170.0),
        Camera("pinhole", 100, 150, 100.0, pitch_deg=-40.0),
        Camera("pinhole", 600, 800, 70.0, pitch_deg=-90.0),
        Camera("pinhole", 600, 800, 70.0, pitch_deg=-85.0, roll_deg=30.0),
    ],
    ids=lambda camera: f"{camera.projection}-{camera.hfov_deg:g}-{camera.pitch_deg:g}",
)
def test_every_canvas_pixel_shows_its_own_direction(camera: Camera) -> None:
    spec = canvas_spec_for(camera)
    canvas, is_visible = to_canvas(_photo_of_directions(camera), camera, spec=spec)
    expected = _canvas_of_directions(spec)
    assert 0.02 < is_visible.mean() <= 1.0
    # At an edge the averaged photo is clamped by up to half a canvas pixel: 128 * 0.0123 / 2.
    np.testing.assert_allclose(canvas[is_visible], expected[is_visible], atol=2.5)
    assert (canvas[~is_visible] == 0).all()


def test_visible_region_of_a_pinhole() -> None:
    """90 degrees wide: columns 192 to 319; on the middle column 36.87 degrees up and down."""
    _, is_visible = to_canvas(np.zeros((480, 640, 3), np.uint8), Camera("pinhole", 480, 640, 90.0))
    columns = np.flatnonzero(is_visible[64])
    assert (columns[0], columns[-1]) == (192, 319)
    rows = np.flatnonzero(is_visible[:, 256])
    spec = CanvasSpec()
    assert spec.elevations_deg[rows[0]] == pytest.approx(36.87, abs=0.71)
    assert spec.elevations_deg[rows[-1]] == pytest.approx(-36.87, abs=0.71)


def test_bearing_grows_to_the_right() -> None:
    photo = np.zeros((200, 400, 3), dtype=np.uint8)
    photo[:, 300:310] = 255  # 300 / 400 of the circle: a quarter turn right of the heading
    canvas, _ = to_canvas(photo, _sphere(200, 400))
    weights = canvas[64, :, 0].astype(np.float64)
    # Columns 300 to 310 of 400: their middle is 305 / 400 of the circle.
    assert np.average(CanvasSpec().bearings_deg, weights=weights) == pytest.approx(94.5, abs=0.05)


def test_nadir_shows_the_heading_s_side_ahead() -> None:
    """The upper half of a nadir photo lies ahead: bearings within 90 degrees."""
    photo = np.zeros((400, 400, 3), dtype=np.uint8)
    photo[:199] = 255
    camera = Camera("pinhole", 400, 400, 90.0, pitch_deg=-90.0)
    spec = canvas_spec_for(camera)
    assert (spec.elevation_top_deg, spec.elevation_bottom_deg) == (0.0, -90.0)
    canvas, is_visible = to_canvas(photo, camera, spec=spec)
    ahead = np.abs(spec.bearings_deg) < 85.0
    behind = np.abs(spec.bearings_deg) > 95.0
    row = 90  # elevation -63.6
    assert is_visible[row].all()
    assert (canvas[row, ahead] == 255).all() and (canvas[row, behind] == 0).all()


def test_canvas_spec_for_tilted_cameras() -> None:
    level = Camera("pinhole", 480, 640, 90.0, pitch_deg=-20.0)
    assert canvas_spec_for(level) == CanvasSpec()
    up = canvas_spec_for(Camera("pinhole", 480, 640, 90.0, pitch_deg=80.0))
    assert (up.elevation_top_deg, up.elevation_bottom_deg) == (90.0, 0.0)
    base = CanvasSpec(64, 512, 10.0, -35.0)
    low = canvas_spec_for(Camera("pinhole", 480, 640, 90.0, pitch_deg=-50.0), base)
    assert (low.elevation_top_deg, low.elevation_bottom_deg) == (-27.5, -72.5)
    assert low.height_px == 64


@settings(max_examples=15, deadline=None)
@given(st.floats(-40, 40), st.floats(-60, 60), st.floats(30, 120))
def test_visibility_agrees_with_the_camera(pitch: float, roll: float, hfov: float) -> None:
    camera = Camera("pinhole", 60, 80, hfov, pitch_deg=pitch, roll_deg=roll)
    spec = CanvasSpec(32, 128)
    _, is_visible = to_canvas(np.zeros((60, 80, 3), np.uint8), camera, spec=spec)
    rays = (_canvas_of_directions(spec) - 127.5) / 127.5
    np.testing.assert_array_equal(is_visible, pixels_from_rays(camera, rays)[2])


def test_photo_of_another_size_is_refused() -> None:
    with pytest.raises(CameraError, match="480 x 640"):
        to_canvas(np.zeros((640, 480, 3), np.uint8), Camera("pinhole", 480, 640, 90.0))


def test_speed_on_a_large_panorama() -> None:
    photo = np.zeros((1024, 2048, 3), dtype=np.uint8)
    camera = _sphere(1024, 2048)
    to_canvas(photo, camera)
    seconds = []
    for _ in range(5):
        # Of this process alone: the machine may be busy with something else.
        start = time.process_time()
        to_canvas(photo, camera)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.025


def test_real_photos() -> None:
    root = os.environ.get("CIPER_REAL_DATA")
    if root is None:
        pytest.skip("CIPER_REAL_DATA is not set")
    panoramas = sorted(Path(root, "ground").glob("vigor_*.jpg"))[:2]
    frames = sorted(Path(root, "ground").glob("kitti_*.png"))[:1]
    street = sorted(Path(root, "helsinki").glob("*_ground.jpg"))[:2]
    assert panoramas and frames and street
    for path in panoramas + frames + street:
        overrides = CameraOverrides(hfov_deg=81.0) if path in frames else None
        camera = camera_from_photo(path, overrides)
        canvas, is_visible = to_canvas(read_photo(path), camera)
        assert camera.projection == ("equirectangular" if path in panoramas else "pinhole")
        assert is_visible.all() == (path in panoramas)
        assert canvas[is_visible].std() > 20


def test_reproject_panorama_to_a_tilted_pinhole() -> None:
    """A pinhole photo cut out of a panorama shows the directions of its own pixels."""
    panorama = _sphere(512, 1024)
    pinhole = Camera("pinhole", 240, 320, 90.0, pitch_deg=5.0, roll_deg=-3.0)
    photo, is_visible = reproject(_photo_of_directions(panorama), panorama, pinhole)
    assert is_visible.all()
    np.testing.assert_allclose(photo, _photo_of_directions(pinhole).astype(float), atol=1.5)
