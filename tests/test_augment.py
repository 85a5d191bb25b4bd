"""Augmentations keep the geometry: what stood at a place stands there after the change."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ciper.camera import Camera
from ciper.data.augment import (
    AugmentConfig,
    change_colour,
    mirror_pose,
    pinhole_mask,
    roll_canvas,
    turn_pose,
)
from ciper.data.preprocess import CanvasSpec, to_canvas
from ciper.geo import bearing_deg, heading_error_deg, pixel_from_chip_xy

POSE = np.array([10.0, -20.0, 30.0])
SIZE_PX, GSD = 256, 0.5


@pytest.mark.parametrize(
    ("quarter_turns", "expected"),
    [
        (0, [10.0, -20.0, 30.0]),
        (1, [20.0, 10.0, 300.0]),  # east turns to north, south to east, heading 30 to -60
        (2, [-10.0, 20.0, 210.0]),
        (3, [-20.0, -10.0, 120.0]),
        (-1, [-20.0, -10.0, 120.0]),
    ],
)
def test_turned_poses_by_hand(quarter_turns: int, expected: list[float]) -> None:
    np.testing.assert_allclose(turn_pose(POSE, quarter_turns), expected)


def test_mirrored_poses_by_hand() -> None:
    np.testing.assert_allclose(mirror_pose(POSE), [-10.0, -20.0, 330.0])
    np.testing.assert_allclose(mirror_pose(np.array([0.0, 5.0, 0.0])), [0.0, 5.0, 0.0])


def chip_with_landmark(x_m: float, y_m: float) -> NDArray[np.bool_]:
    u, v = pixel_from_chip_xy(x_m, y_m, SIZE_PX, GSD)
    chip = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
    chip[int(v), int(u)] = True
    return chip


def place_of(chip: NDArray[np.bool_]) -> tuple[float, float]:
    row, column = (int(i[0]) for i in np.nonzero(chip))
    return (column + 0.5 - SIZE_PX / 2) * GSD, (SIZE_PX / 2 - row - 0.5) * GSD


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
@pytest.mark.parametrize(("x_m", "y_m"), [(30.25, 12.25), (-8.25, 40.75), (-5.75, -31.25)])
def test_a_landmark_keeps_its_bearing_when_the_chip_turns(
    quarter_turns: int, x_m: float, y_m: float
) -> None:
    """Seen from the camera a landmark keeps its distance and its bearing from the heading."""
    turned = np.rot90(chip_with_landmark(x_m, y_m), quarter_turns)
    pose = turn_pose(POSE, quarter_turns)
    new_x, new_y = place_of(turned)
    before = bearing_deg(x_m - POSE[0], y_m - POSE[1]) - POSE[2]
    after = bearing_deg(new_x - pose[0], new_y - pose[1]) - pose[2]
    assert abs(heading_error_deg(after, before)) < 1e-6
    distance = np.hypot(x_m - POSE[0], y_m - POSE[1])
    assert np.hypot(new_x - pose[0], new_y - pose[1]) == pytest.approx(distance)


@pytest.mark.parametrize(("x_m", "y_m"), [(30.25, 12.25), (-8.25, 40.75), (-5.75, -31.25)])
def test_a_landmark_changes_sides_when_the_chip_is_mirrored(x_m: float, y_m: float) -> None:
    mirrored = chip_with_landmark(x_m, y_m)[:, ::-1]
    pose = mirror_pose(POSE)
    new_x, new_y = place_of(mirrored)
    before = bearing_deg(x_m - POSE[0], y_m - POSE[1]) - POSE[2]
    after = bearing_deg(new_x - pose[0], new_y - pose[1]) - pose[2]
    assert abs(heading_error_deg(after, -before)) < 1e-6


@pytest.mark.parametrize("num_columns", [0, 16, 100, 511])
def test_a_rolled_canvas_is_the_view_of_a_turned_camera(num_columns: int) -> None:
    spec = CanvasSpec()
    bearing = 70.3125 + 360 / 1024  # the middle of a column
    canvas = np.zeros((4, 512, 3), dtype=np.uint8)
    canvas[:, np.argmin(abs(spec.bearings_deg - bearing))] = 255
    rolled = roll_canvas(canvas, num_columns)
    seen = spec.bearings_deg[int(rolled[0, :, 0].argmax())]
    assert abs(heading_error_deg(seen, bearing - num_columns * 360 / 512)) < 1e-9


def test_a_pinhole_mask_is_what_a_pinhole_photo_covers() -> None:
    for hfov_deg, aspect, pitch_deg in ((90.0, 4 / 3, 0.0), (60.0, 2.0, 5.0), (110.0, 1.0, -7.0)):
        mask = pinhole_mask(128, 512, hfov_deg=hfov_deg, aspect=aspect, pitch_deg=pitch_deg)
        width = 600
        camera = Camera("pinhole", round(width / aspect), width, hfov_deg, pitch_deg=pitch_deg)
        photo = np.zeros((camera.height_px, camera.width_px, 3), dtype=np.uint8)
        _, is_visible = to_canvas(photo, camera)
        assert np.mean(mask != is_visible) < 2e-3  # rounding at the rim


def test_colours_change_and_geometry_does_not() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[2, 5] = 200
    changed = change_colour(image, np.random.default_rng(0), AugmentConfig(grey_share=0.0))
    is_dark = (changed == changed[0, 0]).all(axis=2)
    assert np.argwhere(~is_dark).tolist() == [[2, 5]]
    same = change_colour(image, np.random.default_rng(0), AugmentConfig(colour=0.0, grey_share=0.0))
    np.testing.assert_array_equal(same, image)
    grey = change_colour(
        image + np.array([10, 40, 90], dtype=np.uint8),
        np.random.default_rng(0),
        AugmentConfig(grey_share=1.0),
    )
    assert (grey == grey[..., :1]).all()
