from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ciper.camera import ASSUMED_HEIGHTS_M, Camera, assumed_heights
from ciper.data.plan_view import ground_outline_m, to_plan
from ciper.errors import CameraError

# 90 degrees at 50 m: 100 m across 200 px, 2 px per metre.
CAMERA = Camera("pinhole", 120, 200, hfov_deg=90.0, pitch_deg=-90.0, height_m=50.0)


def photo_with_mark(u: int, v: int, camera: Camera = CAMERA) -> NDArray[np.uint8]:
    """Grey, with a red mark of 6 x 6 px about a pixel corner."""
    photo = np.full((camera.height_px, camera.width_px, 3), 90, np.uint8)
    photo[v - 3 : v + 3, u - 3 : u + 3] = (255, 0, 0)
    return photo


def mark_of(plan: NDArray[np.uint8], is_visible: NDArray[np.bool_]) -> tuple[float, float]:
    """The mark's (u, v) on a plan."""
    rows, columns = np.nonzero(is_visible & (plan[..., 1] < 45))
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


@pytest.mark.parametrize(
    ("right_m", "ahead_m"), [(20.0, 15.0), (20.0, -15.0), (-20.0, -15.0), (-20.0, 15.0)]
)
def test_the_mark_lies_where_the_ground_is(right_m: float, ahead_m: float) -> None:
    photo = photo_with_mark(round(100 + 2 * right_m), round(60 - 2 * ahead_m))
    plan, is_visible = to_plan(photo, CAMERA, size_px=256, gsd=0.5)
    assert mark_of(plan, is_visible) == pytest.approx(
        (128 + 2 * right_m, 128 - 2 * ahead_m), abs=0.3
    )
    # On another raster of pixels it is the same metres.
    coarse = to_plan(photo, CAMERA, size_px=96, gsd=1.0)
    assert mark_of(*coarse) == pytest.approx((48 + right_m, 48 - ahead_m), abs=0.5)


def test_what_the_photo_does_not_show_is_not_visible() -> None:
    plan, is_visible = to_plan(np.full((120, 200, 3), 200, np.uint8), CAMERA)
    # 100 m x 60 m of 128 m x 128 m, in the middle.
    assert is_visible.sum() == 200 * 120
    assert is_visible[128 - 60 : 128 + 60, 128 - 100 : 128 + 100].all()
    assert (plan[~is_visible] == 0).all()
    assert (plan[is_visible] == 200).all()


def test_twice_as_high_is_twice_as_far() -> None:
    photo = photo_with_mark(120, 50)
    high = replace(CAMERA, height_m=100.0)
    near = mark_of(*to_plan(photo, CAMERA))
    far = mark_of(*to_plan(photo, high))
    assert np.array(far) - 128 == pytest.approx(2 * (np.array(near) - 128), abs=0.5)


def test_a_tilted_camera_looks_ahead() -> None:
    """Tilted by 10 degrees at 50 m, the photo's middle shows what is 50 tan(10) m ahead."""
    camera = replace(CAMERA, pitch_deg=-80.0)
    u, v = mark_of(*to_plan(photo_with_mark(100, 60, camera), camera))
    ahead_m = 50.0 * math.tan(math.radians(10.0))
    assert (u, v) == pytest.approx((128, 128 - 2 * ahead_m), abs=0.5)


def test_a_rolled_camera_is_turned() -> None:
    """Rolled by 90 degrees clockwise the right edge of a photo points backwards."""
    camera = replace(CAMERA, roll_deg=90.0)
    u, v = mark_of(*to_plan(photo_with_mark(140, 60, camera), camera))
    assert (u, v) == pytest.approx((128, 128 + 40), abs=0.5)


@settings(max_examples=30, deadline=None)
@given(
    height_m=st.floats(30, 90),
    pitch_deg=st.floats(-90, -80),
    u=st.integers(30, 170),
    v=st.integers(30, 90),
)
def test_the_ground_along_a_pixels_ray(height_m: float, pitch_deg: float, u: int, v: int) -> None:
    from ciper.camera import rays_from_pixels

    camera = Camera("pinhole", 120, 200, hfov_deg=60.0, pitch_deg=pitch_deg, height_m=height_m)
    ray = rays_from_pixels(camera, u, v)
    right_m, ahead_m = ray[:2] * height_m / -ray[2]
    photo = photo_with_mark(u, v, camera)
    plan, is_visible = to_plan(photo, camera, size_px=512, gsd=0.25)
    assert mark_of(plan, is_visible) == pytest.approx(
        (256 + 4 * right_m, 256 - 4 * ahead_m), abs=0.8
    )


def test_detail_finer_than_the_plan_is_averaged() -> None:
    fine = Camera("pinhole", 1200, 2000, hfov_deg=90.0, pitch_deg=-90.0, height_m=50.0)
    photo = np.zeros((1200, 2000, 3), np.uint8)
    photo[:, ::2] = 200
    plan, is_visible = to_plan(photo, fine)
    assert np.abs(plan[is_visible].astype(int) - 100).max() <= 1


def test_a_height_is_needed() -> None:
    with pytest.raises(CameraError, match="takes the camera's height"):
        to_plan(np.zeros((120, 200, 3), np.uint8), replace(CAMERA, height_m=None))
    with pytest.raises(CameraError, match="of the camera's size"):
        to_plan(np.zeros((121, 200, 3), np.uint8), CAMERA)
    for height_m in (0.0, -5.0, math.nan):
        with pytest.raises(CameraError, match="sees none"):
            replace(CAMERA, height_m=height_m)


def test_which_cameras_look_down() -> None:
    assert CAMERA.looks_down
    assert replace(CAMERA, pitch_deg=-75.0).looks_down
    assert not replace(CAMERA, pitch_deg=-74.0).looks_down
    assert not Camera("equirectangular", 100, 200, 360.0, pitch_deg=-90.0).looks_down
    # A street photo's height is nobody's business.
    assert replace(CAMERA, pitch_deg=0.0, height_m=-1.0).height_m == -1.0


def test_unknown_heights_are_assumed() -> None:
    assert assumed_heights(CAMERA) == (CAMERA,)
    assert len(assumed_heights(replace(CAMERA, is_assumed=True))) == 5
    cameras = assumed_heights(replace(CAMERA, height_m=None, is_assumed=True))
    assert [c.height_m for c in cameras] == list(ASSUMED_HEIGHTS_M)
    assert {c.hfov_deg for c in cameras} == {90.0}
    heights = np.array(ASSUMED_HEIGHTS_M)
    assert (heights[1:] / heights[:-1] < 1.18).all()


def test_the_outline_of_a_photo_on_the_ground() -> None:
    corners = [(-50, 30), (50, 30), (50, -30), (-50, -30)]
    assert ground_outline_m(CAMERA) == pytest.approx(np.array(corners, float))
    # Tilted by 10 degrees: the middle of the upper edge looks atan(60 / 100) + 10 degrees ahead.
    tilted = ground_outline_m(replace(CAMERA, pitch_deg=-80.0))
    assert tilted[:2, 1] == pytest.approx(50 * np.tan(np.arctan(0.6) + np.radians(10)))
    above = ground_outline_m(replace(CAMERA, hfov_deg=160.0, pitch_deg=-60.0))
    assert np.isnan(above[:2]).all() and np.isfinite(above[2:]).all()
    with pytest.raises(CameraError, match="takes the camera's height"):
        ground_outline_m(replace(CAMERA, height_m=None))
