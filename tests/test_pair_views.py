"""Pairs of samples: marks in the images lie where the pose says, for both kinds of pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_helpers import (
    BEARING_DEG,
    FOCAL_PX,
    PINHOLE_PX,
    PLAIN,
    PRINCIPAL_PX,
    centroid,
    panorama_sample,
    pinhole_sample,
    place,
    turned_sample,
    views,
)
from PIL import Image

from ciper.camera import camera_from_metadata
from ciper.data.datasets import Reading
from ciper.data.pair_views import Pair, redrawn, resized
from ciper.data.preprocess import CanvasSpec, to_canvas
from ciper.data.protocol import Sample
from ciper.errors import PhotoError
from ciper.geo import wrap_signed_deg
from ciper.metadata import PhotoMetadata

QUADRANTS = [(9.0, 6.0, 30.0), (9.0, -6.0, 140.0), (-9.0, -6.0, 250.0), (-9.0, 6.0, 320.0)]


def seen_bearing_deg(pair: Pair) -> float:
    """Where a canvas shows the landmark, clockwise of its middle."""
    width = pair.canvas.shape[1]
    # About the column that is greenest, so that a stripe across the edge counts as one.
    greenest = int(np.argmax((pair.canvas[..., 1].astype(int) - pair.canvas[..., 0]).sum(0)))
    rolled = np.roll(pair.canvas, width // 2 - greenest, axis=1)
    column = centroid(rolled, 1)[0] - width // 2 + greenest
    return float(wrap_signed_deg((column / width - 0.5) * 360.0))


def check_landmark(pair: Pair, side_m: float, bearing_deg: float) -> None:
    """The camera stands where the pose says, and sees the landmark where the chip has it."""
    camera = place(pair.chip, 0, side_m)
    assert camera == pytest.approx(pair.pose[:2], abs=0.4)
    east, north = place(pair.chip, 1, side_m) - camera
    bearing = math.degrees(math.atan2(east, north)) - pair.pose[2]
    assert float(wrap_signed_deg(bearing - bearing_deg)) == pytest.approx(0.0, abs=2.0)


@pytest.mark.parametrize(("x_m", "y_m", "heading_deg"), QUADRANTS)
def test_random_pairs_of_a_panorama(
    x_m: float, y_m: float, heading_deg: float, tmp_path: Path
) -> None:
    # What VIGOR calls north is any heading here: the file's middle looks along it.
    sample = panorama_sample(tmp_path, x_m, y_m, heading_deg)
    made = views("random")
    for seed in range(6):
        pair = made.make(sample, np.random.default_rng(seed), 0.0)
        assert np.abs(pair.pose[:2]).max() <= 32.0
        check_landmark(pair, 128.0, seen_bearing_deg(pair))
        # 71 m of 128 m hold imagery at most, and the camera's place is among them.
        assert pair.is_valid.mean() < (71.1 / 128.0) ** 2 + 0.01
        assert not pair.chip[~pair.is_valid].any()


@pytest.mark.parametrize(("x_m", "y_m", "heading_deg"), QUADRANTS)
def test_random_pairs_of_a_pinhole(
    x_m: float, y_m: float, heading_deg: float, tmp_path: Path
) -> None:
    sample = pinhole_sample(tmp_path, x_m, y_m, heading_deg)
    made = views("random", cache=tmp_path / "cache")
    for seed in range(6):
        pair = made.make(sample, np.random.default_rng(seed), 0.5)
        check_landmark(pair, 128.0, seen_bearing_deg(pair))
        assert abs(seen_bearing_deg(pair)) == pytest.approx(BEARING_DEG, abs=1.0)
        assert pair.is_valid.all()
        columns = np.flatnonzero(pair.is_visible.any(0))
        assert 360 / 512 * len(columns) == pytest.approx(81.4, abs=2.0)


def test_random_pairs_fill_the_central_half_and_all_headings(tmp_path: Path) -> None:
    sample = panorama_sample(tmp_path, 1.0, 2.0)
    made = views("random")
    poses = np.array(
        [made.make(sample, np.random.default_rng(seed), 0.0).pose for seed in range(80)]
    )
    for axis in range(2):
        counts = np.histogram(poses[:, axis], bins=4, range=(-32, 32))[0]
        assert counts.sum() == 80
        assert counts.min() > 8
    assert np.histogram(poses[:, 2], bins=4, range=(0, 360))[0].min() > 8


@pytest.mark.parametrize(("x_m", "y_m", "heading_deg"), QUADRANTS)
@pytest.mark.parametrize("reading", ["highlyaccurate", "ciper"])
def test_published_pairs_of_a_pinhole(
    x_m: float, y_m: float, heading_deg: float, reading: Reading, tmp_path: Path
) -> None:
    sample = pinhole_sample(tmp_path, x_m, y_m, heading_deg)
    if reading == "ciper":
        sample = replace(sample, told=replace(sample.told, heading_deg=0.0))
    made = replace(views("published"), reading=reading)
    for seed in range(3):
        pair = made.make(sample, np.random.default_rng(seed), 0.5)
        assert pair.is_visible.all()
        assert pair.is_valid.all()
        assert np.hypot(*pair.pose[:2]) <= 20 * math.sqrt(2)
        turn = wrap_signed_deg(pair.pose[2] - sample.told.heading_deg)
        assert abs(float(turn)) <= 10.0
        # The whole photo is squeezed: its columns are no bearings.
        column = centroid(pair.canvas, 1)[0] * PINHOLE_PX[1] / 512
        bearing = math.degrees(math.atan((column - PRINCIPAL_PX[0]) / FOCAL_PX))
        check_landmark(pair, 100.27, bearing)


@pytest.mark.parametrize(("x_m", "y_m", "heading_deg"), QUADRANTS)
def test_published_pairs_of_a_panorama(
    x_m: float, y_m: float, heading_deg: float, tmp_path: Path
) -> None:
    sample = panorama_sample(tmp_path, x_m, y_m, heading_deg)
    pair = views("published").make(sample, np.random.default_rng(0), 0.5)
    # The whole chip of 71.04 m: to the network it is as large as its own.
    scale = 100.27 / 71.04
    assert pair.pose == pytest.approx([x_m * scale, y_m * scale, heading_deg])
    check_landmark(pair, 100.27, seen_bearing_deg(pair))
    assert pair.centre_m == (0.0, 0.0)
    noisy = turned_sample(sample, 45.0)
    headings = []
    for seed in range(8):
        pair = views("published").make(noisy, np.random.default_rng(seed), 0.5)
        check_landmark(pair, 100.27, seen_bearing_deg(pair))
        headings.append(float(wrap_signed_deg(pair.pose[2] - heading_deg)))
    assert min(headings) < -10 < 10 < max(headings)
    assert max(map(abs, headings)) <= 45.0


def test_the_turn_that_a_protocol_drew_is_taken_back(tmp_path: Path) -> None:
    sample = panorama_sample(tmp_path, 3.0, 2.0, 50.0)
    shown = replace(turned_sample(sample, 45.0), turn_deg=30.0, heading_deg=80.0)
    for kind in ("random", "published"):
        pair = views(kind).make(shown, np.random.default_rng(3), 0.0)
        check_landmark(pair, 128.0 if kind == "random" else 100.27, seen_bearing_deg(pair))


def test_a_whole_chip_is_taken_as_it_is(tmp_path: Path) -> None:
    sample = panorama_sample(tmp_path, 3.0, 2.0)
    pair = views("published", chip_px=320).make(sample, np.random.default_rng(0), 0.0)
    assert np.array_equal(pair.chip, np.asarray(Image.open(sample.image.path)))
    assert pair.is_valid.all()


class FixedDraws:
    """Draws a turn and shifts as shares of their ranges."""

    def __init__(self, theta: float, x: float, y: float) -> None:
        self.theta, self.shifts = theta, np.array([x, y])

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        shares = self.theta if size is None else self.shifts
        return (low + high) / 2 + (high - low) / 2 * shares


@pytest.mark.parametrize(
    ("reading", "told_deg", "expected"),
    [
        # x .6, y .3 and 9 deg, as the two codes read them; CIPER's y counts down.
        ("highlyaccurate", 90.0, (10.91, 7.80, 81.0)),
        ("ciper", 0.0, (12.0, 6.0, 351.0)),
    ],
)
@pytest.mark.parametrize("heading_deg", [10.0, 100.0, 190.0, 280.0])
def test_shifts_are_redrawn_as_published(
    reading: Reading,
    told_deg: float,
    expected: tuple[float, float, float],
    heading_deg: float,
    tmp_path: Path,
) -> None:
    sample = pinhole_sample(tmp_path, 4.0, -7.0, heading_deg)
    sample = replace(sample, told=replace(sample.told, heading_deg=told_deg))
    draws: Any = FixedDraws(0.9, 0.6, 0.3)
    drawn = redrawn(sample, reading, draws)
    assert drawn.pose == pytest.approx(expected, abs=0.01)
    assert drawn.cut.side_m == sample.cut.side_m
    assert replace(drawn, cut=sample.cut) == sample


def test_a_sector_is_masked_or_stretched(tmp_path: Path) -> None:
    sample = replace(panorama_sample(tmp_path, 1.0, 1.0), fov_deg=90.0)
    pair = views("random").make(sample, np.random.default_rng(0), 0.0)
    assert pair.is_visible.all(0).sum() == 128
    assert pair.is_visible[:, 192:320].all()
    assert not pair.canvas[~pair.is_visible].any()
    pair = views("published").make(sample, np.random.default_rng(0), 0.0)
    assert pair.is_visible.all()
    column = centroid(pair.canvas, 1)[0]
    assert (column / 512 - 0.5) * 90.0 == pytest.approx(BEARING_DEG, abs=0.5)


def test_some_panoramas_become_pinhole_views(tmp_path: Path) -> None:
    sample = panorama_sample(tmp_path, 1.0, 1.0)
    shares = [
        views("random").make(sample, np.random.default_rng(seed), 0.5).is_visible.mean()
        for seed in range(16)
    ]
    assert 2 < sum(share == 1.0 for share in shares) < 14
    assert min(shares) < 0.3


def test_the_part_of_a_panorama_is_what_rays_would_sample(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (16, 32, 3), dtype=np.uint8))
    path = tmp_path / "smooth.png"
    coarse.resize((1024, 512), Image.Resampling.BICUBIC).save(path)
    sample = replace(panorama_sample(tmp_path, 0.0, 0.0), photo=path)
    pixels = np.asarray(Image.open(path))
    camera = camera_from_metadata(PhotoMetadata(), size_px=(512, 1024), overrides=sample.camera)
    made = replace(views("random"), augment=PLAIN)
    for spec in (CanvasSpec(), CanvasSpec(96, 512, 30.0, -60.0)):
        some = replace(made, wanted=replace(made.wanted, canvas=spec))
        canvas, is_visible, _ = some._canvas(sample)
        expected, _ = to_canvas(pixels, camera, spec=spec)
        assert is_visible.all()
        assert np.abs(canvas.astype(int) - expected).mean() < 0.7


def test_a_resized_pinhole_looks_the_same_way(tmp_path: Path) -> None:
    sample = pinhole_sample(tmp_path, 0.0, 0.0, 0.0)
    camera = camera_from_metadata(PhotoMetadata(), size_px=PINHOLE_PX, overrides=sample.camera)
    half = resized(camera, (48, 160))
    assert half.focal_px == pytest.approx(93.0)
    assert half.axis_px == (78.5, 22.0)
    assert half.hfov_deg == camera.hfov_deg


def test_colours_change_and_what_is_not_seen_stays_black(tmp_path: Path) -> None:
    sample = panorama_sample(tmp_path, 1.0, 1.0)
    plain = views("random")
    vivid = replace(plain, augment=replace(PLAIN, colour=1.0))
    one, other = (v.make(sample, np.random.default_rng(1), 1.0) for v in (plain, vivid))
    assert np.array_equal(one.pose, other.pose)
    assert not np.array_equal(one.chip, other.chip)
    assert not other.chip[~other.is_valid].any()
    assert not other.canvas[~other.is_visible].any()


def spoilt(sample: Sample) -> Sample:
    Image.new("RGB", (64, 63)).save(sample.image.path)
    return sample


def test_an_image_that_is_no_square_is_named(tmp_path: Path) -> None:
    sample = spoilt(panorama_sample(tmp_path, 1.0, 1.0))
    with pytest.raises(PhotoError, match=r"pano_aerial.png has 64 x 63 px; expected a square"):
        views("random").make(sample, np.random.default_rng(0), 0.0)
