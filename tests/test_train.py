"""Training end to end on a tiny city: resumable, seeded, logged, validated, on many processes."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_helpers import TINY, TINY_PAPER, TINY_REFINED

from ciper.checkpoint import load_checkpoint, weights_of
from ciper.data.synthetic import SyntheticConfig, find_city, render_city
from ciper.errors import ConfigError, OutputError
from ciper.model.calibration import PosteriorShape
from ciper.model.criterion import CriterionConfig
from ciper.model.known import KnownPose
from ciper.model.load import Calibration, export_weights, load_model
from ciper.model.network import NetworkConfig
from ciper.train import OptimConfig, Run, TrainConfig, open_data, train, training_steps
from ciper.training.recipe import learning_rate, narrow_shares
from ciper.training.team import Team

TINY_DATA = SyntheticConfig(
    num_cities=1,
    first_seed=5,
    first_validation_seed=6,
    city_m=200.0,
    photos_per_city=12,
    aerials_per_city=1,
)
# Everything that a step can depend on.
ALL_PARTS = OptimConfig(
    batch_size=8,
    micro_batch=5,
    accumulate=2,
    warmup_steps=2,
    precision="float32",
    ema_decay=0.9,
    neighbour_share=1.0,
    mine_photos=12,
    mine_every=2,
)


def tiny_config(cache: Path, num_steps: int) -> TrainConfig:
    return TrainConfig(
        network=TINY,
        data=TINY_DATA,
        criterion=CriterionConfig(num_negative_chips=2),
        train=OptimConfig(num_steps=num_steps, batch_size=3, warmup_steps=2, save_every=2),
        cache=str(cache),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A city to train on, and one to validate on."""
    folder = tmp_path_factory.mktemp("cache")
    for seed in (5, 6):
        render_city(seed, TINY_DATA, folder)
    return folder


def take_steps(config: TrainConfig, out: Path, save_at: int = 0) -> list[dict[str, float]]:
    """Losses and statistics of the steps that the run in `out` has left.

    Nothing is written but the checkpoint of step `save_at`, and then that of the last step.
    """
    run = Run(config, out, "cpu")
    rows = []
    for batches in training_steps(run, open_data(config, Team("cpu")).training):
        rows.append(run.advance(*batches))
        if run.step in (save_at, config.train.num_steps):
            run.save({})
            (out / "checkpoint.safetensors").rename(out / f"{run.step}.safetensors")
    return rows


@pytest.mark.parametrize(
    ("num_steps", "stop", "mine_every"),
    [(4, 3, 2), pytest.param(30, 10, 4, marks=pytest.mark.slow)],
)
def test_a_resumed_run_takes_the_same_steps(
    num_steps: int, stop: int, mine_every: int, cache: Path, tmp_path: Path
) -> None:
    train = replace(ALL_PARTS, num_steps=num_steps, mine_every=mine_every)
    config = replace(tiny_config(cache, num_steps), train=train, network=TINY_REFINED)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    torch.use_deterministic_algorithms(mode=True)
    try:
        expected = take_steps(config, whole, stop)
        shutil.copy(whole / f"{stop}.safetensors", parts / "checkpoint.safetensors")
        rows = take_steps(config, parts)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert len(rows) == num_steps - stop
    for row, other in zip(rows, expected[stop:], strict=True):
        assert row == pytest.approx(other, abs=1e-6)
    state, header = load_checkpoint(whole / f"{num_steps}.safetensors")
    resumed, other_header = load_checkpoint(parts / f"{num_steps}.safetensors")
    assert header == other_header
    assert {"ema.retrieval_log_scale", "optimiser.exp_avg.refiner.head.weight"} <= set(state)
    assert len(state["mined.photos"]) > 0
    assert set(state) == set(resumed)
    for name, value in state.items():
        assert torch.allclose(value, resumed[name], atol=1e-6), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_loses_nothing(
    number: signal.Signals, cache: Path, tmp_path: Path
) -> None:
    def progress(what: str, done: int, _total: int) -> None:
        if what.startswith("training | ") and done == 3:
            os.kill(os.getpid(), number)

    config = tiny_config(cache, 4)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, num_workers=1, progress=progress)
    assert signal.getsignal(number) == before
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["step"] == 3
    train(config, tmp_path, num_workers=1)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["step"] == 4


def test_the_papers_network_is_another_configuration(cache: Path, tmp_path: Path) -> None:
    config = replace(tiny_config(cache, 2), model="paper", paper=TINY_PAPER)
    state, header = load_checkpoint(train(config, tmp_path, num_workers=1))
    assert header["config"]["model"] == "paper"
    # Also of a run that is shorter than the interval of its rows.
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2"]
    assert header["metrics"]["confidence"] == pytest.approx(float(rows[0]["confidence"]), rel=1e-4)
    assert any(name.startswith("model.decoder.") for name in state)
    with pytest.raises(ConfigError, match="of another network"):
        train(tiny_config(cache, 2), tmp_path, num_workers=1)


def test_validation_keeps_the_best_weights_and_stops_the_run(cache: Path, tmp_path: Path) -> None:
    config = tiny_config(cache, 9)
    config = replace(
        config,
        data=replace(TINY_DATA, validation_cities=1),
        # Nothing is learned at this rate: the second validation is as good as the first.
        train=replace(
            config.train, lr=1e-30, ema_decay=0.5, validate_every=2, validate_pairs=6, patience=1
        ),
    )
    checkpoint = train(config, tmp_path, num_workers=1)
    rows = list(csv.DictReader((tmp_path / "validation.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert {"coarse", "position_median_m", "chip_right", "score"} <= set(rows[0])
    state, header = load_checkpoint(checkpoint)
    assert header["step"] == 4
    assert header["best"] == {"score": header["best"]["score"], "step": 2, "num_since": 1}
    assert header["best"]["score"] == pytest.approx(float(rows[0]["score"]), rel=1e-4)
    best, kept = load_checkpoint(tmp_path / "best.safetensors")
    assert kept["step"] == 2
    for name, value in weights_of(best).items():
        assert torch.allclose(value, state[f"ema.{name}"]), name
    train(config, tmp_path, num_workers=1)  # it stays stopped
    assert load_checkpoint(checkpoint)[1]["step"] == 4


def test_a_run_starts_from_the_average_of_another(cache: Path, tmp_path: Path) -> None:
    config = tiny_config(cache, 2)
    averaged = replace(config, train=replace(config.train, ema_decay=0.9))
    checkpoint = train(averaged, tmp_path / "first", num_workers=1)
    run = Run(replace(config, init=str(checkpoint)), tmp_path / "second", "cpu")
    state, _ = load_checkpoint(checkpoint)
    name = "retrieval_log_scale"
    assert torch.equal(run.network.state_dict()[name], state[f"ema.{name}"])
    assert not torch.equal(state[f"model.{name}"], state[f"ema.{name}"])


def test_a_network_of_other_metres_is_refused(cache: Path, tmp_path: Path) -> None:
    paper = replace(TINY_PAPER, gsd=0.25)
    config = replace(tiny_config(cache, 2), model="paper", paper=paper)
    with pytest.raises(ConfigError, match=r"takes chips of 64 m .*expected 128 m"):
        train(config, tmp_path, num_workers=1)


def test_cities_that_are_there_are_not_rendered_again(cache: Path) -> None:
    assert find_city(5, TINY_DATA, cache) == cache / "5"
    assert find_city(7, TINY_DATA, cache) is None
    more = replace(TINY_DATA, num_cities=9, validation_cities=2, first_validation_seed=99)
    assert find_city(6, more, cache) == cache / "6"


def test_a_run_of_another_network_is_refused(cache: Path, tmp_path: Path) -> None:
    train(tiny_config(cache, 2), tmp_path, num_workers=1)
    other = replace(tiny_config(cache, 2), network=NetworkConfig())
    with pytest.raises(ConfigError, match="of another network"):
        train(other, tmp_path, num_workers=1)


def test_more_pairs_a_batch_than_photos_are_refused(cache: Path, tmp_path: Path) -> None:
    config = tiny_config(cache, 2)
    config = replace(config, train=replace(config.train, batch_size=13))
    with pytest.raises(ConfigError, match="batch_size is 13, but there are 12 photos"):
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
    checkpoint = train(tiny_config(cache, 3), tmp_path / "run", num_workers=1)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "3"]  # where it was saved
    assert {
        "coarse",
        "fine",
        "retrieval",
        "lr",
        "position_median_m",
        "pairs_per_s",
        "eta_s",
    } <= set(rows[0])
    assert list((tmp_path / "run").glob("events.*"))
    calibration = Calibration(
        wide=PosteriorShape(coarse_temperature=1.3), confidence=(1.0, 2.0, 3.0, 4.0, 5.0)
    )
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


WORKER = """
import sys
from pathlib import Path
from ciper.checkpoint import save_checkpoint
from ciper.config import load_config
from ciper.train import Run, TrainConfig, open_data, training_steps
from ciper.training.team import join_team

config, out = load_config(TrainConfig, sys.argv[1], sys.argv[2:3]), Path(sys.argv[3])
team = join_team("cpu")
run = Run(config, out, "cpu", team)
rows = [run.advance(*b) for b in training_steps(run, open_data(config, team).training)]
save_checkpoint(
    out / f"{team.rank}.safetensors", run.network.state_dict(), {"size": team.size, "rows": rows}
)
team.leave()
"""


def run_processes(number: int, arguments: list[str]) -> None:
    """Python under torchrun, in so many processes, on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", str(number), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def recipe_file(cache: Path, tmp_path: Path) -> Path:
    """The tiny recipe with pieces, groups and mining, as TOML."""
    text = f"""
        cache = "{cache}"
        [network.encoder]
        width = 32
        depth = 1
        stem_channels = [16, 24]
        [criterion]
        num_negative_chips = 2
        [data]
        num_cities = 1
        first_seed = 5
        city_m = 200.0
        photos_per_city = 12
        aerials_per_city = 1
        [train]
        num_steps = 3
        batch_size = 8
        accumulate = 2
        warmup_steps = 1
        neighbour_share = 1.0
        mine_every = 2
        mine_photos = 12
        ema_decay = 0.9
        """
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_processes_train_as_one(precision: str, recipe_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    found = {}
    for number, micro_batch in ((1, 8), (2, 3)):
        out = tmp_path / str(number)
        recipe = tmp_path / f"{number}.toml"
        recipe.write_text(f"{recipe_file.read_text()}\nmicro_batch = {micro_batch}\n")
        run_processes(number, [str(worker), str(recipe), f"train.precision={precision}", str(out)])
        found[number] = [load_checkpoint(out / f"{rank}.safetensors") for rank in range(number)]
    (one, header), (first, _), (second, other) = *found[1], *found[2]
    assert (header["size"], other["size"]) == (1, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if precision == "float32":
        for row, expected in zip(other["rows"], header["rows"], strict=True):
            assert row == pytest.approx(expected, abs=2e-3, rel=1e-3)
        for name, value in one.items():
            assert torch.allclose(value, first[name], atol=1e-3), name


@pytest.mark.slow
def test_the_command_trains_under_torchrun(recipe_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    out = tmp_path / "run"
    command = ["-m", "ciper", "train", str(recipe_file), "--out", str(out), "--device", "cpu"]
    run_processes(2, command)
    _, header = load_checkpoint(out / "checkpoint.safetensors")
    assert header["step"] == 3
    assert len(list(out.glob("events.*"))) <= 1


def test_what_no_pair_keeps_to_cannot_be_known() -> None:
    config = TrainConfig(criterion=CriterionConfig(known=KnownPose()))
    with pytest.raises(ConfigError, match=r"criterion\.known is set"):
        open_data(config, Team("cpu"))
