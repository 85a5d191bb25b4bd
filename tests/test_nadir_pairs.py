from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from model_helpers import TINY, write_tiny_weights
from numpy.typing import NDArray
from rasterio.transform import Affine

from ciper.camera import Camera
from ciper.config import load_config
from ciper.data.augment import AugmentConfig
from ciper.data.batches import Drawing
from ciper.data.nadir_pairs import NadirPairs, Sites
from ciper.data.nadir_view import NadirViewConfig
from ciper.errors import ConfigError, RasterError
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import RasterInfo
from ciper.model.criterion import CriterionConfig
from ciper.model.load import load_model
from ciper.model.network import Network
from ciper.train import train
from ciper.training.nadir import open_nadir_pairs
from ciper.training.recipe import OptimConfig, TrainConfig
from ciper.training.run import Run
from ciper.training.team import Team

# Nothing is drawn wrong: what the told height and tilt say is what the photo shows.
EXACT = NadirViewConfig(
    width_m=(100.0, 100.0), height_error=0.0, tilt_error_deg=0.0, max_tilt_deg=0.0, blur_share=0.0
)
PLAIN = AugmentConfig(colour=0.0, grey_share=0.0)


def write_raster(
    path: Path, array: NDArray[np.uint8], *, left: float = 385_000.0, pixel: float = 0.5
) -> RasterInfo:
    """A GeoTIFF at 60 degrees north, 2 degrees west of its zone's meridian."""
    height, width, count = array.shape
    transform = Affine(pixel, 0, left, 0, -pixel, 6_672_000.0)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype="uint8",
        crs="EPSG:32635", transform=transform,
    ) as dataset:  # fmt: skip
        dataset.write(np.moveaxis(array, -1, 0))
    return inspect_raster(path)


def marked(channel: int) -> NDArray[np.uint8]:
    """A grey square of 160 m with one mark in the middle, pure in one channel."""
    array = np.full((320, 320, 3), 110, np.uint8)
    array[150:170, 140:180] = 0
    array[150:170, 140:180, channel] = 255
    return array


def middle_of(image: NDArray[np.uint8], channel: int) -> tuple[float, float] | None:
    """Metres right of and above an image's middle of the mark; None where it is not whole."""
    other = [c for c in range(3) if c != channel]
    is_mark = (image[..., channel] > 170) & (image[..., other].max(-1) < 90)
    if not 740 <= is_mark.sum() <= 900:
        return None
    rows, columns = np.nonzero(is_mark)
    return (columns.mean() + 0.5 - 128) * 0.5, (128 - rows.mean() - 0.5) * 0.5


def pairs_of(rasters: list[RasterInfo], config: NadirViewConfig, seed: int = 0) -> NadirPairs:
    return NadirPairs(rasters, Sites.of(rasters, 64.0), config, (256, 0.5), PLAIN, Drawing(seed))


def test_the_pose_carries_the_photo_onto_the_chip(tmp_path: Path) -> None:
    """The mark is red at one date and blue at the other: photo and chip are never of one date."""
    rasters = [write_raster(tmp_path / f"{c}.tif", marked(c)) for c in (0, 2)]
    pairs = pairs_of(rasters, EXACT)
    assert set(map(len, pairs.sites.others)) == {1}
    batches = [pairs.pairs(np.arange(len(pairs.sites)), (0, number)) for number in range(6)]
    num_seen = 0
    for batch in batches:
        for plan, chip, pose, photo in zip(
            batch.canvas.numpy(), batch.chip.numpy(), batch.pose.numpy(),
            range(len(batch)), strict=True,
        ):  # fmt: skip
            shown = 2 * int(pairs.sites.raster[photo])
            on_plan, on_chip = middle_of(plan, shown), middle_of(chip, 2 - shown)
            if on_plan is None or on_chip is None:
                continue
            num_seen += 1
            heading = np.deg2rad(pose[2])
            right_m, ahead_m = on_plan
            x = pose[0] + right_m * np.cos(heading) + ahead_m * np.sin(heading)
            y = pose[1] - right_m * np.sin(heading) + ahead_m * np.cos(heading)
            assert (x, y) == pytest.approx(on_chip, abs=0.6)
            assert np.abs(pose[:2]).max() <= 32.0
    assert num_seen >= 20


def test_told_heights_are_wrong_by_the_share_asked_for(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "a.tif", np.full((600, 600, 3), 110, np.uint8))
    pairs = pairs_of([raster], replace(EXACT, width_m=(80.0, 80.0), height_error=0.1))
    batch = pairs.pairs(np.zeros(200, np.int64) + 8, (0, 0))
    width_m = batch.is_visible.any(1).sum(1).numpy() * 0.5
    assert np.log(width_m / 80).std() == pytest.approx(0.1, abs=0.02)
    assert np.log(width_m / 80).mean() == pytest.approx(0, abs=0.03)


def test_places_without_imagery_are_drawn_again(tmp_path: Path) -> None:
    """Of a raster whose west half is a hole: sites lie there too, pairs show something."""
    array = np.full((600, 1200, 3), 110, np.uint8)
    array[:, :600] = 0
    path = tmp_path / "holed.tif"
    write_raster(path, array)
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = 0
    pairs = pairs_of([inspect_raster(path)], EXACT)
    batch = pairs.pairs(np.arange(len(pairs.sites)), (0, 0))
    is_seen = batch.is_visible.any((1, 2)) & batch.is_valid.any((1, 2))
    assert is_seen.all()
    with rasterio.open(path, "r+") as dataset:
        dataset.write(np.zeros((3, 600, 1200), np.uint8))
    empty = pairs_of([inspect_raster(path)], EXACT)
    with pytest.raises(RasterError, match="expected rasters with less nodata"):
        empty.pairs(np.arange(2), (0, 0))


def test_items_are_functions_of_seed_and_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rasters = [
        write_raster(tmp_path / f"{i}.tif", rng.integers(1, 255, (320, 320, 3), np.uint8))
        for i in range(2)
    ]
    one, same, other = (pairs_of(rasters, NadirViewConfig(), seed) for seed in (0, 0, 1))
    batch, again = one.batch(3, 6), same.batch(3, 6)
    for name in ("canvas", "chip", "pose", "is_visible", "camera_m"):
        assert torch.equal(getattr(batch, name), getattr(again, name))
    assert not torch.equal(batch.pose, other.batch(3, 6).pose)
    threads = [b.pose for b in one.batches(range(2, 5), 6, [0.0] * 5, num_threads=3)]
    assert torch.equal(threads[1], batch.pose)


def test_sites_tile_rasters_and_know_their_neighbours(tmp_path: Path) -> None:
    grey = np.full((600, 900, 3), 110, np.uint8)  # 450 m x 300 m
    here = write_raster(tmp_path / "here.tif", grey)
    again = write_raster(tmp_path / "again.tif", grey)
    near = write_raster(tmp_path / "near.tif", grey, left=385_000.0 + 900)
    far = write_raster(tmp_path / "far.tif", grey, left=385_000.0 + 30_000)
    sites = Sites.of([here, again, near, far], 64.0)
    # (450 - 32) / 64 and (300 - 32) / 64, rounded up; the bounds of a turned raster are larger.
    for raster in range(4):
        assert 7 * 5 <= (sites.raster == raster).sum() <= 8 * 6
    assert sites.side_m.max() <= 64.0
    assert {o for o, r in zip(sites.others, sites.raster, strict=True) if r == 0} == {(1,)}
    assert {o for o, r in zip(sites.others, sites.raster, strict=True) if r == 3} == {()}
    city = [set(sites.city[sites.raster == raster]) for raster in range(4)]
    assert city[0] == city[1] == city[2] != city[3]
    # 900 m apart in one city, to a metre.
    east = [sites.position_m[sites.raster == raster, 0].mean() for raster in (0, 2)]
    assert east[1] - east[0] == pytest.approx(900 / 0.99977, abs=1.0)
    some = sites.taken(sites.raster == 2)
    assert set(some.raster) == {2} and len(some.others) == len(some)


def test_where_a_raster_ends_its_neighbour_goes_on(tmp_path: Path) -> None:
    """Two overlapping tiles of one date, and a larger raster of another that holds both."""
    tile, large = np.full((400, 400, 3), 90, np.uint8), np.full((400, 700, 3), 90, np.uint8)
    rasters = [
        write_raster(tmp_path / "west.tif", tile),
        write_raster(tmp_path / "east.tif", tile, left=385_000.0 + 150),
        write_raster(tmp_path / "later.tif", large),
    ]
    pairs = pairs_of(rasters, EXACT)
    site = next(
        i for i, others in enumerate(pairs.sites.others)
        if pairs.sites.raster[i] == 0 and others == (1, 2)
    )  # fmt: skip
    seen = {pairs._seen(site, np.random.default_rng(i)) for i in range(20)}
    # What shows the place at the other date is the later raster, which ends nowhere near, or the
    # tile beside it; the photo goes on into the other one of them.
    assert seen == {((0, 1), (2,)), ((0, 2), (1, 2))}


def config_of(*rasters: str, init: Path | None = None, **changes: object) -> TrainConfig:
    settings = {"num_steps": 2, "batch_size": 4, "warmup_steps": 1, "precision": "float32"}
    settings |= changes
    return TrainConfig(
        network=replace(TINY, has_plan_head=True),
        data=replace(TrainConfig().data, rasters=rasters),
        criterion=CriterionConfig(num_negative_chips=2),
        train=OptimConfig(**settings),  # type: ignore[arg-type]
        init=str(init) if init else None,
    )


@pytest.fixture
def dates(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for place in range(2):
        for year in (2018, 2020):
            array = rng.integers(1, 255, (320, 320, 3), np.uint8)
            left = 385_000.0 + 3000 * place
            write_raster(tmp_path / f"{place}_{year}.tif", array, left=left)
    return f"{tmp_path}/*.tif"


def test_a_run_on_rasters(dates: str, tmp_path: Path) -> None:
    config = config_of(dates)
    checkpoint = train(config, tmp_path / "run")
    assert checkpoint.exists()
    pairs, validation = open_nadir_pairs(config, Team("cpu"))
    assert validation is None and len(pairs.sites) >= 16
    assert not pairs.sites.note


def test_imagery_of_one_date_is_noted(dates: str, tmp_path: Path) -> None:
    said: list[str] = []
    config = config_of(dates.replace("*.tif", "*_2020.tif"))
    train(config, tmp_path / "run", progress=lambda what, _done, _total: said.append(what))
    assert said and all("100% of the places are in one raster alone" in what for what in said)


def test_validation_is_held_apart(dates: str) -> None:
    config = config_of(dates, validate_every=1)
    for seed in range(20):
        some = replace(config, train=replace(config.train, seed=seed))
        some = replace(some, nadir=replace(some.nadir, validation_share=0.5))
        try:
            training, validation = open_nadir_pairs(some, Team("cpu"))
        except ConfigError as error:
            assert "none to" in str(error)
            continue
        assert validation is not None
        batches = [p.pairs(np.arange(len(p.sites)), (0, 0)) for p in (training, validation)]
        # Of one city's metres: no chip shows ground that a chip of the others shows.
        seen, held = ({int(c) for c in b.city} for b in batches)
        for city in seen & held:
            centres = [b.centre_m[b.city == city].numpy() for b in batches]
            assert np.abs(centres[0][:, None] - centres[1]).max(-1).min() > 128.0
        return
    pytest.fail("no seed holds anything out")


def test_the_plan_head_learns_alone(dates: str, tmp_path: Path) -> None:
    start = write_tiny_weights(tmp_path / "start.safetensors")
    run = Run(config_of(dates, init=start, trained="plan"), tmp_path / "run", "cpu")
    pairs, _ = open_nadir_pairs(run.config, Team("cpu"))
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.advance(pairs.batch(0, 4))
    run.save({})
    for name, value in run.network.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("plan."), name
    resumed = Run(run.config, tmp_path / "run", "cpu")
    assert resumed.step == 1
    one, other = (r.advance(pairs.batch(1, 4)) for r in (run, resumed))
    assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("trained", "knows_level"), [("all", False), ("plan", True)])
def test_weights_know_which_photos_they_were_trained_on(
    dates: str, tmp_path: Path, trained: str, knows_level: bool
) -> None:
    start = write_tiny_weights(tmp_path / "start.safetensors")
    checkpoint = train(config_of(dates, init=start, trained=trained), tmp_path / "run")
    model = load_model(checkpoint, "cpu")
    level = Camera("pinhole", 300, 400, 90.0)
    from_above = replace(level, pitch_deg=-90.0)
    assert model.misfit(from_above) is None
    misfit = model.misfit(level)
    assert misfit is None if knows_level else "photos that look straight down alone" in str(misfit)


def test_a_head_does_not_learn_beside_weights_without_streets(dates: str, tmp_path: Path) -> None:
    all_of_them = train(config_of(dates), tmp_path / "all")
    for trained in ("all", "plan"):
        config = config_of(dates, init=all_of_them, trained=trained)
        if trained == "all":
            assert Run(config, tmp_path / "again", "cpu").step == 0
            continue
        with pytest.raises(ConfigError, match="trained on photos from above alone"):
            Run(config, tmp_path / "head", "cpu")


def test_a_new_head_forgets_what_the_file_holds(dates: str, tmp_path: Path) -> None:
    headed = replace(TINY, has_plan_head=True)
    start = write_tiny_weights(tmp_path / "start.safetensors", config=headed)
    config = config_of(dates, init=start)
    taken = Run(config, tmp_path / "taken", "cpu").network
    new = Run(replace(config, plan_head="new"), tmp_path / "new", "cpu").network
    assert isinstance(taken, Network) and isinstance(new, Network)
    assert taken.plan is not None and new.plan is not None
    assert torch.equal(taken.maps.to_fine.weight, new.maps.to_fine.weight)
    assert torch.equal(new.plan.lift.maps.to_fine.weight, new.maps.to_fine.weight)
    assert not torch.equal(taken.plan.lift.maps.to_fine.weight, taken.maps.to_fine.weight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.rasters=a.tif"], "expected model=.ciper. with network.has_plan_head=true"),
        (["train.trained=plan"], "the network has no plan head"),
        (
            ["data.rasters=a.tif", "network.has_plan_head=true", "real.spec=vigor:x"],
            "are both set",
        ),
        (["plan_head=new"], "expected one: set network.has_plan_head=true"),
        (["train.trained=plan", "network.has_plan_head=true"], r"set data\.rasters"),
        (
            ["train.trained=plan", "network.has_plan_head=true", "data.rasters=a.tif"],
            "init=none leaves these to chance",
        ),
        (["nadir.width_m=[90.0, 60.0]"], "expected two rising metres"),
    ],
)
def test_settings_that_do_not_fit(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, overrides)


def test_rasters_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RasterError):
        open_nadir_pairs(config_of(str(tmp_path / "none.tif")), Team("cpu"))


def test_real_places_at_two_dates() -> None:
    root = os.environ.get("CIPER_REAL_DATA")
    if root is None:
        pytest.skip("CIPER_REAL_DATA is unset")
    names = sorted(Path(root, "naip").glob("santa_monica_*_1*.tif"))[:9]
    rasters = [inspect_raster(path) for path in names]
    pairs = pairs_of(rasters, NadirViewConfig())
    batch = pairs.batch(0, 4)
    assert batch.is_visible.any((1, 2)).all() and batch.is_valid.any((1, 2)).all()
