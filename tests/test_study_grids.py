from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ciper.data.poses import PhotoPose, write_poses
from ciper.errors import OutputError, PoseTableError
from ciper.study import grids
from ciper.study.config import Condition, GridConfig
from ciper.study.grids import (
    Grid,
    Shot,
    guessed_heading,
    hide_columns,
    hide_discs,
    imagery,
    narrowed,
    write_imagery,
)

SHOT = Shot(
    10.0, 20.0, 350.0, np.full((128, 512, 3), 200, np.uint8), np.ones((128, 512), dtype=bool)
)
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
    assert guessed_heading(350.0, 180, RNG(0)) is None
    known = guessed_heading(350.0, 0, RNG(0))
    assert known is not None and known.heading_deg == 350.0
    turns = []
    for seed in range(50):
        heading = guessed_heading(350.0, 45, RNG(seed))
        assert heading is not None
        assert heading.sigma_deg == pytest.approx(45 / 3**0.5)
        turns.append((heading.heading_deg - 350 + 180) % 360 - 180)
    assert 30 < np.abs(turns).max() <= 45 and min(turns) < 0 < max(turns)


def test_an_interrupted_write_leaves_no_imagery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, _image: object) -> None:
        path.write_bytes(b"II*")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grids, "imagery", lambda *_: None)
    monkeypatch.setattr("ciper.city.aerial.write_geotiff", half)
    path = tmp_path / "grid" / "cloudy.tif"
    with pytest.raises(OutputError, match=r"cloudy\.tif cannot be written"):
        write_imagery(path, 9101, GridConfig(), Condition("cloudy"))
    assert list(path.parent.iterdir()) == []


def test_photos_without_a_heading_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_poses(tmp_path / "poses.csv", [PhotoPose(tmp_path / "a.jpg", lat=10.0, lon=20.0)])
    monkeypatch.setattr(Grid, "_city", lambda *_: tmp_path)
    with pytest.raises(PoseTableError, match=r"does not know heading_deg and hfov_deg of a\.jpg"):
        Grid.__new__(Grid)._read_shots(1)


@pytest.mark.slow
def test_imagery_of_more_dates_apart_shows_other_things() -> None:
    config = GridConfig(size_m=240.0)

    def seen(dates: int, hidden: float = 0.0) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        condition = Condition("", dates_apart=dates, aerial_hidden=hidden)
        return imagery(9102, config, condition).array.astype(np.int64)

    same, usual, far = (seen(dates) for dates in (0, 1, 3))
    assert np.array_equal(usual, seen(1))

    def change(other: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
        return float((np.abs(same - other).max(-1) > 40).mean())

    assert 0.005 < change(usual) < change(far)
    hidden = (seen(1, 0.25) == 225).all(-1) & ~(usual == 225).all(-1)
    assert 0.2 < hidden[usual.any(-1)].mean() < 0.4
