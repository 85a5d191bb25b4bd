from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ciper.data.poses import PhotoPose
from ciper.study.config import Condition
from ciper.study.grids import (
    Shot,
    guessed_heading,
    hide_columns,
    hide_discs,
    narrowed,
    write_imagery,
)

POSE = PhotoPose(Path("a.jpg"), lat=10.0, lon=20.0, heading_deg=350.0)
SHOT = Shot(POSE, np.full((128, 512, 3), 200, np.uint8), np.ones((128, 512), dtype=bool))
RNG = np.random.default_rng


def test_narrowed_views_are_about_the_heading() -> None:
    for hfov_deg, columns in [(360, 512), (180, 256), (90, 128)]:
        canvas, is_visible = narrowed(SHOT, hfov_deg)
        seen = np.flatnonzero(is_visible.any(0))
        assert len(seen) == pytest.approx(columns, abs=2)
        assert seen.min() + seen.max() == 511
        assert np.array_equal(canvas.any(-1), is_visible)


def test_a_pinhole_sees_less_of_the_sky_than_a_sector() -> None:
    assert narrowed(SHOT, 180)[1][0].any()
    assert not narrowed(SHOT, 70)[1][0].any()


def test_hidden_columns_stay_visible() -> None:
    canvas, is_visible = narrowed(SHOT, 90)
    hidden = hide_columns(canvas, is_visible, 0.5, RNG(0))
    is_changed = (hidden != canvas).any(-1)
    assert is_changed.any(0).sum() == pytest.approx(64, abs=1)
    assert not is_changed[~is_visible].any()
    assert hide_columns(canvas, is_visible, 0.0, RNG(0)) is canvas


def test_discs_cover_the_share_that_is_asked_for() -> None:
    image = np.zeros((300, 200, 3), np.uint8)
    covered = hide_discs(image, 0.25, 20.0, RNG(1)).any(-1).mean()
    assert 0.25 <= covered < 0.25 + np.pi * 20**2 / (300 * 200)
    assert not image.any()


def test_guessed_headings_are_wrong_by_no_more_than_told() -> None:
    assert guessed_heading(POSE, 180, RNG(0)) is None
    known = guessed_heading(POSE, 0, RNG(0))
    assert known is not None and known.heading_deg == 350.0
    turns = []
    for seed in range(50):
        heading = guessed_heading(POSE, 45, RNG(seed))
        assert heading is not None
        assert heading.sigma_deg == pytest.approx(45 / 3**0.5)
        turns.append((heading.heading_deg - 350 + 180) % 360 - 180)
    assert 30 < np.abs(turns).max() <= 45 and min(turns) < 0 < max(turns)


@pytest.mark.slow
def test_other_imagery_of_the_same_city(tmp_path: Path) -> None:
    paths = []
    for name, dates in (("same", 0), ("far", 3)):
        paths.append(tmp_path / f"{name}.tif")
        write_imagery(paths[-1], 9101, 160.0, Condition(name, dates_apart=dates))
    assert paths[0].read_bytes() != paths[1].read_bytes()
