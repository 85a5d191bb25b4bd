"""Pairs of data sets: determinism, damaged files, holdout, and training on them end to end."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_helpers import TINY
from pair_helpers import (
    many_samples,
    pairs_of,
    spoil,
    views,
    write_kitti_root,
    write_vigor_root,
)
from torch import Tensor
from typer.testing import CliRunner, Result

from ciper.checkpoint import find_weights, load_checkpoint
from ciper.cli import app
from ciper.config import from_dict, load_config
from ciper.data.augment import AugmentConfig
from ciper.data.pairs import MARGIN_M, Damage, Places, hold_out
from ciper.data.protocol import AerialImage, Protocol, Sample
from ciper.data.sample import Batch
from ciper.errors import ConfigError, DatasetError
from ciper.model.criterion import CriterionConfig, wrong_chips
from ciper.model.network import NetworkConfig
from ciper.model.pretrained import initialise
from ciper.train import OptimConfig, Run, TrainConfig, make_network, open_data, training_steps
from ciper.training.real import open_pairs
from ciper.training.recipe import RealConfig
from ciper.training.team import Team

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    """Ten panoramas, 111 m apart; nobody changes their files."""
    return many_samples(tmp_path_factory.mktemp("samples") / "made", 10)


def columns(batch: Batch) -> dict[str, Tensor]:
    return {name: getattr(batch, name) for name in Batch.__dataclass_fields__}


def assert_same(one: Batch, other: Batch, rows: slice = slice(None)) -> None:
    """`one` is the `rows` of the other."""
    for name, value in columns(one).items():
        assert torch.equal(value, getattr(other, name)[rows]), name


# ------------------------------------------------------------------------------------ determinism


def test_items_are_functions_of_seed_step_and_number(samples: tuple[Sample, ...]) -> None:
    made = views("random", augment=AugmentConfig())
    batch = pairs_of(samples, made=made).batch(3, 6, narrow_share=0.5)
    assert_same(pairs_of(samples, made=made).batch(3, 6, narrow_share=0.5), batch)
    for rank in range(2):
        part = pairs_of(samples, made=made, part=(rank, 2)).batch(3, 6, narrow_share=0.5)
        assert_same(part, batch, slice(3 * rank, 3 * rank + 3))
    for other in (
        pairs_of(samples, made=made).batch(4, 6),
        pairs_of(samples, made=made, seed=1).batch(3, 6),
    ):
        assert not torch.equal(other.pose, batch.pose)


def test_threads_make_the_same_batches_in_order(samples: tuple[Sample, ...]) -> None:
    made = views("published")
    expected = [pairs_of(samples, made=made).batch(step, 4) for step in range(2, 6)]
    for num_threads in (1, 3):
        found = list(
            pairs_of(samples, made=made).batches(range(2, 6), 4, [0.0] * 6, num_threads=num_threads)
        )
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_an_epoch_shows_every_sample_once(samples: tuple[Sample, ...]) -> None:
    pairs = pairs_of(samples)
    seen = torch.cat([pairs.batch(step, 5).camera_m for step in range(2)])
    assert len({tuple(row) for row in seen.tolist()}) == 10


def test_the_batch_is_what_networks_take(samples: tuple[Sample, ...]) -> None:
    batch = pairs_of(samples).batch(0, 4)
    assert batch.canvas.shape == (4, 128, 512, 3)
    assert batch.is_visible.shape == (4, 128, 512)
    assert batch.chip.shape == (4, 256, 256, 3)
    assert batch.is_valid.shape == (4, 256, 256)
    kinds = [value.dtype for value in columns(batch).values()]
    assert kinds == [
        torch.uint8,
        torch.bool,
        torch.uint8,
        torch.bool,
        torch.float32,
        torch.int64,
        torch.float32,
        torch.float32,
    ]
    # Up to quarter turns and mirrors of the pair, the pose is the camera from the chip's centre.
    offset = (batch.camera_m - batch.centre_m).abs().sort(1).values
    assert torch.allclose(batch.pose[:, :2].abs().sort(1).values, offset, atol=1e-2)


def test_neighbours_are_no_negatives(samples: tuple[Sample, ...]) -> None:
    row = tuple(
        replace(s, image=replace(s.image, lat=41.9 + 0.0003 * i)) for i, s in enumerate(samples)
    )
    pairs = pairs_of(row, made=views("published"))
    batch = pairs.pairs(np.arange(10), (0, 0))
    # 33 m apart: those within two steps show the same ground (80 m).
    apart = np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    assert np.array_equal(wrong_chips(batch).numpy(), apart > 2)


def test_groups_are_of_one_neighbourhood(samples: tuple[Sample, ...]) -> None:
    batch = pairs_of(samples, neighbour_share=1.0).batch(0, 8)
    for group in batch.camera_m.split(4):
        distance = (group[1:] - group[:1]).norm(dim=1)
        assert (distance >= 60).all()
        assert (distance <= 250).all()


def test_a_set_of_one_photo_works(samples: tuple[Sample, ...]) -> None:
    pairs = pairs_of(samples[:1])
    assert len(pairs.batch(5, 1)) == 1
    assert len(pairs.pairs(pairs.sample(0, 4), (0, 0))) == 1
    with pytest.raises(ConfigError, match="batch_size is 2, but there are 1 photos"):
        pairs.batch(0, 2)
    with pytest.raises(ConfigError, match="expected a multiple of 2"):
        pairs_of(samples, part=(0, 2)).batch(0, 3)


# ------------------------------------------------------------------------------------------ damage


def test_a_damaged_sample_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    samples = many_samples(tmp_path / "made", 6)
    made = views("random")
    expected = pairs_of(samples, made=made).pairs(np.array([1, 2, 3]), (0, 0))
    spoil(samples[2].photo)
    for _ in range(2):
        pairs = pairs_of(samples, made=made)
        found = pairs.pairs(np.array([1, 2, 3]), (0, 0))
        assert list(pairs.damage.reasons) == ["Chicago/p2"]
        assert "p2.jpg is damaged" in pairs.damage.reasons["Chicago/p2"]
        assert_same(Batch(*(v[:1] for v in columns(found).values())), expected, slice(0, 1))
        assert torch.equal(found.camera_m[1], expected.camera_m[2])
        # Shown as the one in its place would have been.
        assert not torch.equal(found.pose[1], found.pose[2])
    again = pairs.pairs(np.array([1, 2, 3]), (0, 0))
    assert_same(again, found)
    assert len(pairs.damage.reasons) == 1


def test_the_last_sample_is_replaced_by_the_first(tmp_path: Path) -> None:
    samples = many_samples(tmp_path / "made", 3)
    samples[2].image.path.unlink()
    found = pairs_of(samples).pairs(np.array([2]), (0, 0))
    assert torch.equal(found.camera_m, pairs_of(samples).pairs(np.array([0]), (0, 0)).camera_m)


def test_more_damage_than_a_thousandth_is_an_error(tmp_path: Path) -> None:
    samples = many_samples(tmp_path / "made", 4)
    for sample in samples[:2]:
        spoil(sample.image.path)
    pairs = pairs_of(samples)
    with pytest.raises(DatasetError, match=r"2 of 4 samples .* at most 1. The first: .*a0.png"):
        list(pairs.batches(range(2), 4, [0.0] * 2, num_threads=2))


def test_how_much_damage_is_survived() -> None:
    assert [Damage(n).limit for n in (1, 1999, 2000, 52_605)] == [1, 1, 2, 52]
    damage = Damage(3000)
    for name in ("a", "b", "a", "c", "b"):
        damage.add(name, ValueError(f"{name} is bad"))
    with pytest.raises(DatasetError, match=r"4 of 3000 .*: a is bad; b is bad; c is bad. Mend"):
        damage.add("d", ValueError("d is bad"))


def test_a_set_without_a_readable_photo_is_an_error(tmp_path: Path) -> None:
    samples = many_samples(tmp_path / "made", 1)
    spoil(samples[0].photo)
    with pytest.raises(DatasetError, match=r"none of 1 samples .*p0.jpg is damaged"):
        pairs_of(samples).batch(0, 1)


# ------------------------------------------------------------------------------- places and holdout


def scattered(base: Sample, positions: Sequence[tuple[float, float]]) -> tuple[Sample, ...]:
    """The same sample at many latitudes and longitudes, with names of its own."""
    return tuple(
        replace(
            base,
            name=f"Chicago/{lat:.5f},{lon:.5f}",
            image=AerialImage(base.image.path, lat, lon, base.image.gsd, base.image.side_px),
        )
        for lat, lon in positions
    )


def test_places_are_metres_in_one_city(samples: tuple[Sample, ...]) -> None:
    here, there = scattered(samples[0], [(41.9, -87.6), (41.91, -87.6)])
    other = replace(there, name="Seattle/x")
    places = Places.of([here, there, other], "vigor")
    assert places.city.tolist() == [0, 0, 1]
    assert places.image_m[1] - places.image_m[0] == pytest.approx([0.0, 1110.7], abs=0.1)
    assert places.camera_m - places.image_m == pytest.approx(np.tile([0.0, -2.0], (3, 1)))
    assert Places.of([here, other], "kitti").city.tolist() == [0, 0]


def test_what_is_held_out_lies_apart(samples: tuple[Sample, ...]) -> None:
    rng = np.random.default_rng(0)
    positions = [(41.8 + 0.1 * a, -87.7 + 0.1 * b) for a, b in rng.random((3000, 2))]
    made = scattered(samples[0], positions)
    held = hold_out(Protocol("vigor", {}, made), 0.2, seed=1)
    share = len(held.validation) / len(made)
    assert 0.1 < share < 0.3
    assert 0 < len(made) - len(held.training) - len(held.validation) < share * len(made)
    places = Places.of((*held.training, *held.validation), "vigor").camera_m
    training, validation = np.split(places, [len(held.training)])
    nearest = min(np.abs(training - v).max(1).min() for v in validation)
    assert MARGIN_M * 0.98 < nearest < MARGIN_M * 1.5
    # Of half of the samples the same ones are held out.
    half = hold_out(Protocol("vigor", {}, made[::2]), 0.2, seed=1)
    assert set(half.validation) == set(held.validation) & set(made[::2])
    other = hold_out(Protocol("vigor", {}, made), 0.2, seed=2)
    assert set(other.validation) != set(held.validation)
    assert hold_out(Protocol("vigor", {}, made), 0.0, seed=1).training == made


# ---------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def vigor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that nobody changes."""
    return write_vigor_root(tmp_path_factory.mktemp("data") / "vigor")


def tiny_config(root: Path, num_steps: int) -> TrainConfig:
    return TrainConfig(
        network=TINY,
        real=RealConfig(spec=f"vigor:{root}", heading_noise_deg=20.0, validation_share=0.5),
        criterion=CriterionConfig(num_negative_chips=2),
        train=OptimConfig(
            num_steps=num_steps, batch_size=2, warmup_steps=2, save_every=2, precision="float32"
        ),
    )


def take_steps(config: TrainConfig, out: Path) -> list[dict[str, float]]:
    run = Run(config, out, "cpu")
    rows = [run.advance(*b) for b in training_steps(run, open_data(config, Team("cpu")).training)]
    run.save({})
    return rows


def test_a_resumed_run_takes_the_same_steps(vigor: Path, tmp_path: Path) -> None:
    config = tiny_config(vigor, 3)
    config = replace(config, train=replace(config.train, mine_every=2, neighbour_share=1.0))
    expected = take_steps(config, tmp_path / "whole")
    parts = [
        take_steps(replace(config, train=replace(config.train, stop_at=stop)), tmp_path / "parts")
        for stop in (2, None)
    ]
    assert [len(part) for part in parts] == [2, 1]
    for row, other in zip((*parts[0], *parts[1]), expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6, abs=1e-6)


TINY_CIPER = """
[network.encoder]
width = 32
depth = 1
stem_channels = [16, 24]
[criterion]
num_negative_chips = 2
[train]
num_steps = 2
batch_size = 2
warmup_steps = 1
"""
TINY_PAPER = """
model = "paper"
[real]
pairs = "published"
[paper]
encoder = "vit"
descriptor_dim = 32
chip_px = 64
gsd = {gsd}
canvas_height_px = 32
canvas_width_px = 128
[paper.vit]
width = 32
depth = 1
num_heads = 2
[paper.decoder]
width = 32
depth = 1
num_heads = 2
mlp_width = 32
num_queries = 4
[train]
num_steps = 2
batch_size = 2
"""


def train_by_command(recipe: str, tmp_path: Path, *settings: str) -> Result:
    config = tmp_path / "recipe.toml"
    config.write_text(recipe)
    words = ["train", str(config), "--out", str(tmp_path / "run"), "--device", "cpu", *settings]
    return CliRunner().invoke(app, words)


def test_the_command_trains_our_network(tmp_path: Path) -> None:
    root = write_vigor_root(tmp_path / "vigor")
    spoil(next((root / "Chicago" / "panorama").iterdir()))
    before = sorted(root.rglob("*"))
    done = train_by_command(
        TINY_CIPER,
        tmp_path,
        f"real.spec=vigor:{root}",
        f"real.cache={tmp_path / 'cache'}",
        "train.batch_size=6",
        "train.num_loaders=2",
    )
    assert done.exit_code == 0, done.output
    assert "1 damaged samples skipped, see damaged.csv" in " ".join(done.output.split())
    _, header = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert header["config"]["real"]["spec"] == f"vigor:{root}"
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert rows[-1]["step"] == "2"
    assert rows[-1]["num_damaged"] == "1"
    assert all(math.isfinite(float(value)) for value in rows[-1].values())
    (damaged,) = csv.DictReader((tmp_path / "run" / "damaged.csv").read_text().splitlines())
    assert damaged["name"].startswith("Chicago/id")
    assert "is damaged" in damaged["reason"]
    assert sorted(root.rglob("*")) == before
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) > 6


@pytest.mark.parametrize(("dataset", "gsd"), [("vigor", 1.11), ("kitti", 1.5666)])
def test_the_command_trains_the_papers_network(dataset: str, gsd: float, tmp_path: Path) -> None:
    write = {"vigor": write_vigor_root, "kitti": write_kitti_root}[dataset]
    root = write(tmp_path / dataset)
    done = train_by_command(TINY_PAPER.format(gsd=gsd), tmp_path, f"real.spec={dataset}:{root}")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert rows[-1]["step"] == "2"
    assert rows[-1]["num_damaged"] == "0"
    assert {"retrieval", "confidence", "pose"} <= set(rows[-1])
    assert not (tmp_path / "run" / "damaged.csv").exists()


def test_the_command_validates_on_what_is_held_out(vigor: Path, tmp_path: Path) -> None:
    done = train_by_command(
        TINY_CIPER,
        tmp_path,
        f"real.spec=vigor:{vigor}",
        "real.validation_share=0.5",
        "train.validate_every=2",
        "train.validate_pairs=2",
        "train.seed=3",
    )
    assert done.exit_code == 0, done.output
    (row,) = csv.DictReader((tmp_path / "run" / "validation.csv").read_text().splitlines())
    assert float(row["position_median_m"]) >= 0
    assert (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["real.spec=vigor:{root}", "real.pairs=published"], 'expected real.pairs="random"'),
        (["real.spec=vigor:{root}", "train.batch_size=7"], "there are 6 photos"),
        (["real.spec=vigor:{root}", "real.cache={root}/cache"], "expected another place"),
        (["real.spec=vigor:{root}", "real.validation_share=0.6"], "expected 0 to 0.5"),
        (
            ["real.spec=vigor:{root}", "real.validation_share=0", "train.validate_every=1"],
            "set real.validation_share",
        ),
        (
            ["real.spec=vigor:{root}", "real.validation_share=1e-9", "train.validate_every=1"],
            "6 samples and none to validate on",
        ),
        (["real.spec=vigor:{root}/none"], "none is no folder"),
        (["real.spec=amsterdam"], "names no data set"),
        (["real.spec=vigor:{root}", "real.split=test1"], "vigor has none such"),
        (["real.spec=vigor:{root}", "real.reading=own"], "real.reading"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    settings: list[str], message: str, vigor: Path, tmp_path: Path
) -> None:
    done = train_by_command(TINY_CIPER, tmp_path, *(s.format(root=vigor) for s in settings))
    assert done.exit_code == 2
    (line,) = done.output.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_published_chips_of_other_metres_are_refused(vigor: Path, tmp_path: Path) -> None:
    done = train_by_command(TINY_PAPER.format(gsd=1.5666), tmp_path, f"real.spec=vigor:{vigor}")
    assert done.exit_code == 2
    assert "chips of 100.3 m, and those of vigor have 71.2 m" in done.output


# ----------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", ["vigor", "kitti"])
def test_our_recipes_start_from_the_shipped_weights(name: str) -> None:
    config = load_config(TrainConfig, CONFIGS / f"{name}.toml")
    assert config.init == "ground"
    _, header = load_checkpoint(find_weights(config.init))
    shipped = from_dict(NetworkConfig, header["config"]["network"])
    # Its plan head is left out: these are street photos.
    assert replace(shipped, has_plan_head=False) == config.network
    initialise(make_network(config), config.init)
    assert config.real.spec.startswith(f"{name}:")


@pytest.mark.parametrize("name", ["vigor", "kitti", "ford"])
def test_the_papers_recipes_fit_their_data_sets(name: str) -> None:
    config = load_config(TrainConfig, CONFIGS / f"{name}_paper.toml")
    assert config.real.spec.startswith(f"{name}:")
    assert config.real.pairs == "published"
    sides_m = {"vigor": 71.04, "kitti": 100.27, "ford": 112.6}
    assert config.paper.side_m == pytest.approx(sides_m[name], abs=0.01)
    assert config.paper.vit.patch_px == (16 if name == "vigor" else 32)
    assert (config.train.batch_size, config.train.lr, config.set_loss.confidence) == (
        12,
        1e-4,
        0.2,
    )


@pytest.mark.slow
def test_training_imports_no_geodesy_until_a_data_set_asks() -> None:
    code = "import sys, ciper.train; print(*(set(sys.modules) & {'pyproj', 'rasterio', 'numba'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_pairs_open_with_a_folder_that_cannot_be_changed(vigor: Path, tmp_path: Path) -> None:
    config = tiny_config(vigor, 2)
    real = replace(config.real, cache=str(tmp_path / "cache"))
    training, validation = open_pairs(replace(config, real=real), Team("cpu"))
    assert validation is None
    assert len(training.samples) == 6
    assert {s.told.heading_within_deg for s in training.samples} == {20.0}
