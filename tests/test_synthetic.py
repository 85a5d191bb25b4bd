"""Training pairs: exact geometry, one order of photos, groups that look alike, parts of a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ciper.data.augment import AugmentConfig
from ciper.data.batches import Drawing
from ciper.data.neighbours import GROUP_SIZE, PhotoOrder
from ciper.data.synthetic import (
    RenderedCity,
    SyntheticConfig,
    SyntheticPairs,
    _recipe,
    find_city,
    open_city,
    render_city,
)
from ciper.errors import ConfigError, DatasetError
from ciper.training.recipe import TrainConfig


def landmark_city() -> tuple[RenderedCity, tuple[float, float]]:
    """A grey city with one red square; each canvas is red in the column that looks at it."""
    size_m, gsd, landmark = 400.0, 0.5, (230.0, 190.0)
    aerial = np.full((1, 800, 800, 3), 90, np.uint8)
    column, row = int(landmark[0] / gsd), int((size_m - landmark[1]) / gsd)
    aerial[0, row - 2 : row + 2, column - 2 : column + 2] = (255, 0, 0)
    rng = np.random.default_rng(0)
    poses = np.column_stack(
        [rng.uniform(200, 260, 40), rng.uniform(160, 220, 40), rng.uniform(0, 360, 40), np.ones(40)]
    )
    canvases = np.full((40, 128, 512, 3), 90, np.uint8)
    for canvas, (x, y, heading, _) in zip(canvases, poses, strict=True):
        bearing = np.rad2deg(np.arctan2(landmark[0] - x, landmark[1] - y)) - heading
        canvas[:, int(((bearing / 360 + 0.5) % 1) * 512)] = (255, 0, 0)
    return RenderedCity(aerial, canvases, poses), landmark


def test_every_change_of_a_pair_keeps_the_landmark_in_sight() -> None:
    city, _ = landmark_city()
    config = SyntheticConfig(augment=AugmentConfig(narrow_share=0, colour=0, grey_share=0))
    batch = SyntheticPairs([city], config, Drawing(0)).batch(0, 40)
    seen = 0
    for i in range(len(batch)):
        is_red = (batch.chip[i, ..., 0] > 200) & (batch.chip[i, ..., 1] < 50)
        if not is_red.any():
            continue
        seen += 1
        v, u = is_red.nonzero().float().add(0.5).mean(0).tolist()
        x, y, heading = batch.pose[i].tolist()
        east, north = (u - 128) * 0.5 - x, (128 - v) * 0.5 - y
        bearing = (np.rad2deg(np.arctan2(east, north)) - heading + 180) % 360 - 180
        red_columns = (batch.canvas[i, 64, :, 0] > 200).nonzero().flatten().float() + 0.5
        looked = (float(red_columns.mean()) / 512 - 0.5) * 360
        # A quarter pixel of the chip's cut, a column of the canvas, at distances over 5 m.
        if np.hypot(east, north) > 5:
            assert (bearing - looked + 180) % 360 - 180 == pytest.approx(0, abs=4.0)
    assert seen > 20


def test_batches_depend_on_seed_and_step_alone() -> None:
    city, _ = landmark_city()
    config = SyntheticConfig()
    first, again = (SyntheticPairs([city], config, Drawing(1)).batch(3, 8) for _ in range(2))
    other = SyntheticPairs([city], config, Drawing(2)).batch(3, 8)
    assert torch.equal(first.chip, again.chip)
    assert torch.equal(first.pose, again.pose)
    assert not torch.equal(first.pose, other.pose)


def test_an_epoch_shows_every_photo_once() -> None:
    city, _ = landmark_city()
    pairs = SyntheticPairs([city], SyntheticConfig(), Drawing(0))
    cameras = torch.cat([pairs.batch(step, 8).camera_m for step in range(5)])
    assert len({tuple(c) for c in cameras.tolist()}) == 40


def grid_order(neighbour_share: float, seed: int = 0) -> PhotoOrder:
    """Two cities of 10 x 10 photos every 50 m, in the same places."""
    x, y = np.meshgrid(np.arange(10) * 50.0, np.arange(10) * 50.0)
    position_m = np.tile(np.column_stack([x.ravel(), y.ravel()]), (2, 1))
    return PhotoOrder(np.repeat([0, 1], 100), position_m, seed, neighbour_share)


def test_neighbours_are_of_the_same_city_and_neither_too_near_nor_too_far() -> None:
    order = grid_order(0.5)
    neighbours = order.neighbours(100)  # the south-west corner of the second city
    offset = order.position_m[neighbours] - order.position_m[100]
    distance = np.hypot(*offset.T)
    assert set(order.city[neighbours]) == {1}
    # (1, 0) and (0, 1) are 50 m away, (1, 1) 70.7 m; (5, 0) is 250 m, (4, 4) 283 m.
    assert not {101, 110, 100} & set(neighbours)
    assert {111, 105, 150, 134} <= set(neighbours)
    assert 144 not in neighbours
    assert distance.min() == pytest.approx(70.71, abs=0.01)
    assert distance.max() == pytest.approx(250.0)


def test_the_share_of_a_batch_comes_in_groups_of_neighbours() -> None:
    order = grid_order(0.5)
    photos = order.photos(3, 32)
    assert len(photos) == 32
    for group in photos[:16].reshape(-1, GROUP_SIZE):
        assert set(group[1:]) <= set(order.neighbours(group[0]))
        assert len(set(group)) == GROUP_SIZE


def test_with_groups_an_epoch_still_shows_every_photo() -> None:
    order = grid_order(0.5)
    in_turn = []  # a batch of 32 has 4 groups: 20 photos come in turn
    for step in range(10):
        photos = order.photos(step, 32)
        in_turn += [*photos[0:16:GROUP_SIZE], *photos[16:]]
    assert sorted(in_turn) == list(range(200))


@pytest.mark.parametrize("size", [1, 3, 6, 7, 32])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_batches_have_their_size_whatever_the_share(share: float, size: int) -> None:
    assert len(grid_order(share).photos(5, size)) == size


def test_every_second_group_is_mined_where_there_is_a_table() -> None:
    order = grid_order(1.0)
    mined = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    groups = order.photos(0, 16, mined).reshape(-1, GROUP_SIZE)
    rows = {(1, 2, 3, 4), (5, 6, 7, 8)}
    assert [tuple(group) in rows for group in groups] == [False, True, False, True]
    plain = order.photos(0, 16).reshape(-1, GROUP_SIZE)
    assert np.array_equal(groups[::2], plain[::2])


def test_a_lonely_photo_is_grouped_with_any_others() -> None:
    order = PhotoOrder(np.zeros(8, np.int64), np.arange(16.0).reshape(8, 2) * 1000, 0, 1.0)
    for group in order.photos(0, 8).reshape(-1, GROUP_SIZE):
        assert len(set(group)) == GROUP_SIZE


def test_the_parts_of_a_batch_make_the_batch() -> None:
    city, _ = landmark_city()
    whole = SyntheticPairs([city], SyntheticConfig(), Drawing(1, 0.5)).batch(3, 8)
    parts = [
        SyntheticPairs([city], SyntheticConfig(), Drawing(1, 0.5, (rank, 2))).batch(3, 8)
        for rank in range(2)
    ]
    for name in ("canvas", "chip", "pose", "camera_m"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(getattr(whole, name), joined)
    odd = SyntheticPairs([city], SyntheticConfig(), Drawing(1, part=(0, 3)))
    with pytest.raises(ConfigError, match="batch_size is 8 for 3 processes"):
        odd.batch(0, 8)


def test_threads_that_load_ahead_keep_the_order() -> None:
    city, _ = landmark_city()
    pairs = SyntheticPairs([city], SyntheticConfig(), Drawing(0))
    ahead = list(pairs.batches(range(2, 7), 4, [0.5] * 7, num_threads=3))
    for step, batch in zip(range(2, 7), ahead, strict=True):
        assert torch.equal(batch.chip, pairs.batch(step, 4, narrow_share=0.5).chip)


def test_chosen_pairs_are_of_the_chosen_photos() -> None:
    city, _ = landmark_city()
    pairs = SyntheticPairs([city], SyntheticConfig(), Drawing(0))
    chosen = np.array([7, 3, 3])
    batch = pairs.pairs(chosen, (10, 0), narrow_share=0.0)
    assert np.allclose(batch.camera_m.numpy(), city.poses[chosen, :2])
    assert bool(batch.is_visible.all())
    again = pairs.pairs(chosen, (11, 0), narrow_share=0.0)
    assert not torch.equal(batch.centre_m, again.centre_m)


@pytest.mark.parametrize(("num_cities", "setting"), [(0, "num_cities"), (2, "photos_per_city")])
def test_no_photos_are_refused(num_cities: int, setting: str) -> None:
    city = replace(landmark_city()[0], poses=np.zeros((0, 4)))
    with pytest.raises(ConfigError, match=f"no photo in {num_cities} cities.*data.{setting}"):
        SyntheticPairs([city] * num_cities, SyntheticConfig(), Drawing(0))


def test_more_cities_to_train_on_leave_the_others_what_they_are() -> None:
    few = SyntheticConfig(num_cities=2, validation_cities=3)
    many = replace(few, num_cities=2000)
    assert few.training_seeds == range(100_000, 100_002)
    assert few.validation_seeds == many.validation_seeds == range(190_000, 190_003)


def test_a_sample_is_of_different_photos_and_a_function_of_the_step() -> None:
    city, _ = landmark_city()
    pairs = SyntheticPairs([city], SyntheticConfig(), Drawing(0))
    sample = pairs.sample(4, 10)
    assert len(set(sample)) == 10
    assert np.array_equal(sample, pairs.sample(4, 10))
    assert not np.array_equal(sample, pairs.sample(5, 10))
    assert len(pairs.sample(4, 1000)) == 40


def plan_file(folder: Path) -> Path:
    """A map of 36 houses on a grid, 25 m apart."""
    houses = []
    for row in range(6):
        for column in range(6):
            west, south = 24.94 + column * 45e-5, 60.17 + row * 22e-5
            east, north = west + 25e-5, south + 12e-5
            ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
            houses.append(
                {
                    "type": "Feature",
                    "properties": {"building": "yes", "height": 9},
                    "geometry": {"type": "Polygon", "coordinates": [ring]},
                }
            )
    path = folder / "houses.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": houses}))
    return path


def test_cities_of_real_plans(tmp_path: Path) -> None:
    plan = plan_file(tmp_path)
    config = SyntheticConfig(
        num_cities=1, city_m=120.0, photos_per_city=3, aerials_per_city=1,
        footprints=(str(plan),), num_plans=2,
    )  # fmt: skip
    assert config.plan_of(config.first_seed) is None
    assert list(config.plan_seeds) == [150_000, 150_001]
    assert config.plan_of(150_001) == plan
    city = open_city(render_city(150_000, config, tmp_path / "cache"))
    assert city.canvases.shape[0] == 3 and city.aerials.shape[1:3] == (240, 240)
    # What is rendered is known by the map's content; the procedural cities are what they were.
    assert find_city(150_000, config, tmp_path / "cache") is not None
    plan.write_text(plan.read_text().replace('"height": 9', '"height": 12'))
    with pytest.raises(ConfigError, match="another recipe"):
        find_city(150_000, config, tmp_path / "cache")
    plain = replace(config, num_plans=0, footprints=())
    assert _recipe(config.first_seed, config) == _recipe(plain.first_seed, plain)


def test_plans_need_maps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set data\.footprints"):
        SyntheticConfig(num_plans=1)
    lost = SyntheticConfig(num_plans=1, footprints=(str(tmp_path / "none.geojson"),))
    with pytest.raises(DatasetError, match="does not exist"):
        render_city(lost.first_plan_seed, lost, tmp_path)
    with pytest.raises(ConfigError, match=r"set data\.first_plan_seed"):
        TrainConfig(
            data=SyntheticConfig(num_plans=1, footprints=("a.geojson",), first_plan_seed=100_001)
        )
