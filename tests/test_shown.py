from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciper.camera import Camera, CameraOverrides, rays_from_pixels
from ciper.data.protocol import AerialImage, Cut, Sample, Told
from ciper.data.shown import read_shown, sector, turned
from ciper.errors import CameraError, PhotoError

PANORAMA = CameraOverrides(projection="equirectangular", hfov_deg=360.0)


def compass(width_px: int = 360) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A panorama whose columns' brightness is the distance from its middle, in 2 degrees."""
    bearing = (np.arange(width_px) + 0.5) / width_px * 360.0 - 180.0
    row = np.clip(np.abs(bearing) / 2 + 100, 0, 255).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (width_px // 2, width_px, 3)).copy()


def sample(photo: Path, *, camera: CameraOverrides = PANORAMA, **shown: float) -> Sample:
    image = AerialImage(Path("a.png"), 40.0, -74.0, 0.1, 640)
    told = Told(0.0, 180.0, 16.0)
    return Sample("a", photo, camera, 0.0, 0.0, 0.0, image, Cut(0, 0, 0, 64.0), told, **shown)


@pytest.mark.parametrize("turn_deg", [0.0, 30.0, 135.0, -100.0, 270.0, 360.0])
def test_what_stood_clockwise_comes_to_the_middle(turn_deg: float) -> None:
    dark = np.full((4, 360, 3), 200, np.uint8)
    column = int(180 + turn_deg) % 360
    dark[:, column] = 0
    assert (turned(dark, turn_deg)[:, 180] == 0).all()


def test_parts_of_a_column_are_linear() -> None:
    row = np.zeros((1, 8, 3), np.uint8)
    row[0, 5] = 100
    # 45 deg are a column; a quarter more than one column clockwise.
    found = turned(row, 1.25 * 45.0)[0, :, 0]
    assert found.tolist() == [0, 0, 0, 25, 75, 0, 0, 0]
    assert turned(row, -0.5 * 45.0)[0, :, 0].tolist() == [0, 0, 0, 0, 0, 50, 50, 0]


@pytest.mark.parametrize(("fov_deg", "width_px"), [(360.0, 2048), (180.0, 1024), (70.0, 398)])
def test_a_sector_keeps_its_rays(fov_deg: float, width_px: int) -> None:
    whole = Camera("equirectangular", 1024, 2048, 360.0)
    pixels = np.zeros((1024, 2048, 3), np.uint8)
    pixels[:, 1024:] = 9
    shown, camera = sector(pixels, whole, fov_deg)
    assert shown.shape == (1024, width_px, 3)
    assert (camera.width_px, camera.vfov_top_deg, camera.vfov_bottom_deg) == (width_px, 90, -90)
    assert camera.hfov_deg == pytest.approx(fov_deg, abs=0.18)
    assert (shown[:, width_px // 2] == 9).all() and (shown[:, width_px // 2 - 1] == 0).all()
    offset = (2048 - width_px) / 2
    u, v = np.array([0.5, 10.0, width_px - 3.0]), np.array([1.0, 500.0, 900.0])
    expected = rays_from_pixels(whole, u + offset, v)
    np.testing.assert_allclose(rays_from_pixels(camera, u, v), expected, atol=1e-12)


def test_a_panorama_is_turned_then_cut(tmp_path: Path) -> None:
    Image.fromarray(compass()).save(tmp_path / "a.png")
    whole, camera, _ = read_shown(sample(tmp_path / "a.png"))
    np.testing.assert_array_equal(whole, compass())
    assert camera.is_full_circle
    shown, camera, _ = read_shown(sample(tmp_path / "a.png", turn_deg=90.0, fov_deg=60.0))
    assert (camera.width_px, camera.hfov_deg, camera.is_full_circle) == (60, 60.0, False)
    # The middle looked 90 deg to the right before, its edges 60 and 120 deg.
    assert shown[0, [0, 30, 59], 0] == pytest.approx([130, 145, 159], abs=1)


def test_what_cannot_be_turned_is_refused(tmp_path: Path) -> None:
    Image.fromarray(compass()).save(tmp_path / "a.png")
    lens = CameraOverrides(projection="pinhole", hfov_deg=80.0)
    plain = sample(tmp_path / "a.png", camera=lens)
    assert read_shown(plain)[1].projection == "pinhole"
    with pytest.raises(CameraError, match="is no full panorama"):
        read_shown(sample(tmp_path / "a.png", camera=lens, turn_deg=20.0))
    with pytest.raises(PhotoError, match="does not exist"):
        read_shown(sample(tmp_path / "none.png"))
