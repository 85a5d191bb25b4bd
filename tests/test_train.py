"""Training end to end on a tiny city: resumable, seeded, logged; pairs keep their geometry."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ciper.checkpoint import load_checkpoint
from ciper.data.augment import AugmentConfig
from ciper.data.synthetic import RenderedCity, SyntheticConfig, SyntheticPairs, render_city
from ciper.errors import ConfigError, OutputError
from ciper.model.encoder import EncoderConfig
from ciper.model.load import Calibration, export_weights, load_model
from ciper.model.network import NetworkConfig
from ciper.train import OptimConfig, TrainConfig, learning_rate, narrow_shares, train

TINY_DATA = SyntheticConfig(
    num_cities=1, first_seed=5, city_m=200.0, photos_per_city=6, aerials_per_city=1
)


def tiny_config(cache: Path, num_steps: int) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(encoder=EncoderConfig(depth=1)),
        data=TINY_DATA,
        train=OptimConfig(num_steps=num_steps, batch_size=3, warmup_steps=2, save_every=2),
        cache=str(cache),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    render_city(5, TINY_DATA, folder)
    return folder


def test_training_resumes_where_it_stopped(cache: Path, tmp_path: Path) -> None:
    config = tiny_config(cache, 4)
    torch.use_deterministic_algorithms(mode=True)
    try:
        train(config, tmp_path / "whole", num_workers=1)
        run = tmp_path / "parts"
        stopped = replace(config, train=replace(config.train, stop_at=3))
        train(stopped, run, num_workers=1)
        assert load_checkpoint(run / "checkpoint.safetensors")[1]["step"] == 3
        train(config, run, num_workers=1)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    whole, header = load_checkpoint(tmp_path / "whole" / "checkpoint.safetensors")
    parts, _ = load_checkpoint(run / "checkpoint.safetensors")
    assert header["step"] == 4
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-5), name


def test_an_interrupted_run_loses_nothing(cache: Path, tmp_path: Path) -> None:
    def progress(what: str, done: int, _total: int) -> None:
        if (what, done) == ("training", 3):
            raise KeyboardInterrupt

    config = tiny_config(cache, 4)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, num_workers=1, progress=progress)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["step"] == 3
    train(config, tmp_path, num_workers=1)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["step"] == 4


def test_a_run_of_another_network_is_refused(cache: Path, tmp_path: Path) -> None:
    train(tiny_config(cache, 2), tmp_path, num_workers=1)
    other = TrainConfig(data=TINY_DATA, train=OptimConfig(num_steps=2), cache=str(cache))
    with pytest.raises(ConfigError, match="of another network"):
        train(other, tmp_path, num_workers=1)


def test_more_pairs_a_batch_than_photos_are_refused(cache: Path, tmp_path: Path) -> None:
    config = tiny_config(cache, 2)
    config = replace(config, train=replace(config.train, batch_size=7))
    with pytest.raises(ConfigError, match="batch_size is 7, but the cities hold 6 photos"):
        train(config, tmp_path, num_workers=1)


def test_a_run_that_is_a_file_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="expected a folder"):
        train(tiny_config(cache, 2), tmp_path / "run", num_workers=1)


def test_a_cache_of_another_recipe_is_refused(cache: Path) -> None:
    other = SyntheticConfig(first_seed=5, city_m=300.0)
    with pytest.raises(ConfigError, match="another recipe"):
        render_city(5, other, cache)


def test_metrics_are_logged_and_weights_exported(cache: Path, tmp_path: Path) -> None:
    checkpoint = train(tiny_config(cache, 20), tmp_path / "run", num_workers=1)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["20"]
    assert {"coarse", "fine", "retrieval", "lr", "position_median_m"} <= set(rows[0])
    assert list((tmp_path / "run").glob("events.*"))
    calibration = Calibration(coarse_temperature=1.3, confidence=(1.0, 2.0, 3.0, 4.0))
    out = tmp_path / "tiny" / "model.safetensors"
    export_weights(checkpoint, out, calibration)
    model = load_model(out, "cpu")
    assert model.model_name == "tiny"
    assert model.calibration == calibration
    assert out.stat().st_size < checkpoint.stat().st_size / 4
    chips = np.zeros((2, 256, 256, 3), np.uint8)
    codes = model.encode(chips, np.ones((2, 256, 256), bool))
    assert codes.descriptors.shape == (2, 64, 64)
    assert codes.coarse.shape == (2, 16, 32, 32)
    assert codes.fine.shape == (2, 16, 64, 64)


def test_the_schedule_by_hand() -> None:
    config = OptimConfig(num_steps=110, warmup_steps=10, lr=1.0, narrow_share=(0.2, 0.6))
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == pytest.approx(1.0)
    assert learning_rate(60, config) == pytest.approx(0.5)
    assert learning_rate(110, config) == pytest.approx(0.0)
    shares = narrow_shares(config)
    assert shares[0] == 0.2
    assert shares[55] == pytest.approx(0.4)


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
    batch = SyntheticPairs([city], config, seed=0).batch(0, 40)
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
    first, again = (SyntheticPairs([city], config, seed=1).batch(3, 8) for _ in range(2))
    other = SyntheticPairs([city], config, seed=2).batch(3, 8)
    assert torch.equal(first.chip, again.chip)
    assert torch.equal(first.pose, again.pose)
    assert not torch.equal(first.pose, other.pose)


def test_an_epoch_shows_every_photo_once() -> None:
    city, _ = landmark_city()
    pairs = SyntheticPairs([city], SyntheticConfig(), seed=0)
    cameras = torch.cat([pairs.batch(step, 8).camera_m for step in range(5)])
    assert len({tuple(c) for c in cameras.tolist()}) == 40
