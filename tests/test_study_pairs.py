from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from study_helpers import random_city, tiny_study

from ciper.data.sample import Batch
from ciper.data.synthetic import cut_chip
from ciper.study.cells import Setting
from ciper.study.config import default_study, quick_study
from ciper.study.pairs import StudyPairs, aligned, as_pinhole, centre_recall, study_cache

CONFIG = tiny_study().train


def pairs(setting: Setting, seed: int = 0) -> StudyPairs:
    return StudyPairs([random_city(CONFIG)], CONFIG, seed, setting)


@pytest.mark.parametrize("heading_deg", [45.0, 135.0, 225.0, 315.0, 0.2])
def test_aligned_turns_the_canvas_until_its_middle_is_the_chips_up(heading_deg: float) -> None:
    # One white column where north is: the canvas's middle looks along the heading.
    width = 512
    north = round((0.5 - heading_deg / 360) * width) % width
    canvas = torch.zeros(1, 4, width, 3, dtype=torch.uint8)
    canvas[:, :, north] = 255
    is_visible = canvas[..., 0] > 0
    pose = torch.tensor([[3.0, -7.0, heading_deg]])
    none = torch.zeros(1)
    batch = aligned(Batch(canvas, is_visible, none, none, pose, none, none, none))
    assert torch.nonzero(batch.canvas[0, 0, :, 0]).tolist() == [[width // 2]]
    assert torch.equal(batch.is_visible, batch.canvas[..., 0] > 0)
    assert batch.pose[0, :2].tolist() == [3.0, -7.0]
    turn = (float(batch.pose[0, 2]) + 180) % 360 - 180
    assert abs(turn) <= 360 / width / 2 + 1e-3


def test_settings_bound_position_and_heading() -> None:
    unknown = torch.cat([pairs("unknown").batch(i, 8).pose for i in range(8)])
    near = torch.cat([pairs("aligned").batch(i, 8).pose for i in range(8)])
    assert 20.5 < unknown[:, :2].abs().max() <= 32.5
    assert 10 < near[:, :2].abs().max() <= 20.5
    turn = (near[:, 2] + 180) % 360 - 180
    assert turn.abs().max() < 0.36
    assert unknown[:, 2].std() > 50


def test_fixed_pairs_are_the_photos_unchanged_and_the_same_again() -> None:
    first, second = (list(pairs("unknown").fixed(3)) for _ in range(2))
    assert [len(batch) for batch in first] == [3, 3, 2]
    assert all(torch.equal(a.chip, b.chip) for a, b in zip(first, second, strict=True))
    city = random_city(CONFIG)
    canvases = torch.cat([batch.canvas for batch in first])
    assert np.array_equal(canvases.numpy(), city.canvases)
    camera = torch.cat([b.centre_m + b.pose[:, :2] for b in first])
    np.testing.assert_allclose(camera, city.poses[:, :2], atol=1e-3)
    other = next(iter(pairs("unknown", seed=1).fixed(3)))
    assert not torch.equal(other.chip, first[0].chip)


def test_cut_chip_in_all_four_quadrants_of_a_city() -> None:
    # 400 x 600 px of 0.5 m: 200 m north to south, 300 m west to east.
    aerial = np.zeros((400, 600, 3), np.uint8)
    row, column = np.mgrid[0:400, 0:600]
    aerial[..., 0], aerial[..., 1] = row % 251, column % 253
    for x_m, y_m in [(150.0, 100.0), (10.0, 190.0), (290.0, 190.0), (10.0, 10.0), (290.0, 10.0)]:
        chip, is_valid, centre = cut_chip(aerial, x_m, y_m, 0.5)
        assert centre == (x_m, y_m)
        # The pixel just south-east of the centre.
        expected = aerial[400 - round(y_m / 0.5), round(x_m / 0.5)]
        assert np.array_equal(chip[128, 128], expected)
        assert is_valid[128, 128]
    assert np.array_equal(chip[~is_valid], np.zeros(((~is_valid).sum(), 3)))
    # At the south-east corner 20 px (10 m) are left to the east and to the south.
    assert is_valid[0, 147] and not is_valid[0, 148]
    assert is_valid[147, 0] and not is_valid[148, 0]


def test_the_gallery_covers_the_city_and_knows_its_chips() -> None:
    made = pairs("unknown")
    gallery = made.gallery()
    assert len(gallery) == 9  # 160 m are two and a half strides
    batch = next(iter(made.fixed(8)))
    for photo, chip in enumerate(gallery.true_chips(batch)):
        distance = (gallery.centre_m - batch.camera_m[photo]).abs().amax(1)
        assert distance[chip] == distance.min() <= 32


def test_cities_of_another_recipe_have_their_own_folder() -> None:
    cache = Path("cache")
    assert study_cache(cache, default_study().train) == cache
    assert study_cache(cache, default_study().test) != cache
    assert study_cache(cache, quick_study().train) != study_cache(cache, quick_study().test)


def test_pinhole_views_show_the_middle_of_the_same_panoramas() -> None:
    batch = next(iter(pairs("unknown").fixed(2)))
    seen = as_pinhole(batch)
    columns = torch.nonzero(seen.is_visible[0].any(0))[:, 0]
    assert len(columns) == pytest.approx(512 * 75 / 360, abs=2)
    assert int(columns.min() + columns.max()) == 511
    assert torch.equal(seen.canvas[seen.is_visible], batch.canvas[seen.is_visible])
    assert not seen.canvas[~seen.is_visible].any()
    assert torch.equal(seen.pose, batch.pose)


def test_how_often_the_centre_is_within_5_m() -> None:
    # A disc of 78.54 m^2 in squares of 64 m and 40 m.
    assert centre_recall("unknown", 0.5) == pytest.approx(78.5398 / 4096)
    assert centre_recall("aligned", 0.5) == pytest.approx(78.5398 / 1600)
