"""The parts of training: exact gradients from pieces, averages, hard negatives, early stopping."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import TINY, TINY_PAPER, make_batch
from test_synthetic import landmark_city
from torch import Tensor, nn

from ciper.config import from_dict, to_dict
from ciper.data.neighbours import GROUP_SIZE
from ciper.data.sample import Batch
from ciper.data.synthetic import SyntheticConfig, SyntheticPairs
from ciper.errors import ConfigError
from ciper.model.criterion import CriterionConfig
from ciper.training.average import WeightAverage
from ciper.training.gradients import Backward, encode
from ciper.training.log import MetricsLog, Pace
from ciper.training.mining import hardest, mine
from ciper.training.recipe import (
    OptimConfig,
    TrainConfig,
    make_criterion,
    make_network,
)
from ciper.training.run import Run
from ciper.training.team import Team
from ciper.training.validation import Best, score, validate

FEW = CriterionConfig(num_negative_chips=2)
RECIPES = {
    "ciper": TrainConfig(network=TINY, criterion=FEW),
    "paper": TrainConfig(model="paper", paper=TINY_PAPER),
}


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def plain_gradients(config: TrainConfig, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    network.zero_grad()
    losses, _ = make_criterion(config)(
        network, *encode(network, batch), batch, torch.Generator().manual_seed(3)
    )
    torch.stack([config.loss_weights[name] * x for name, x in losses.items()]).sum().backward()
    return {name: g.clone() for name, g in gradients_of(network).items()}


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("model", list(RECIPES))
def test_gradients_from_pieces_are_those_of_the_whole(model: str, micro_batch: int | None) -> None:
    torch.manual_seed(0)
    config = RECIPES[model]
    network = make_network(config)
    batch = make_batch(5)  # the last piece is smaller
    expected = plain_gradients(config, network, batch)
    network.zero_grad()
    backward = Backward(
        network,
        make_criterion(config),
        config.loss_weights,
        micro_batch,
        "float32",
        Team("cpu"),
    )
    losses, _ = backward(batch, torch.Generator().manual_seed(3))
    assert set(losses) == set(config.loss_weights)
    found = gradients_of(network)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((found[name] - gradient).abs().max()) / scale < 1e-5, name


def test_gradients_of_several_batches_add_up() -> None:
    torch.manual_seed(0)
    config = RECIPES["ciper"]
    network = make_network(config)
    batch = make_batch(3)
    expected = plain_gradients(config, network, batch)
    network.zero_grad()
    backward = Backward(
        network, make_criterion(config), config.loss_weights, None, "float32", Team("cpu")
    )
    for _ in range(2):
        backward(batch, torch.Generator().manual_seed(3), scale=0.5)
    for name, gradient in gradients_of(network).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


@dataclass(frozen=True)
class StrangeCode:
    """A code as no network of ours has it: integers, and numbers that no loss asks for."""

    value: Tensor
    index: Tensor
    unused: Tensor


class StrangeNetwork(nn.Module):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(1.0))
        self.sizes: list[int] = []

    def encode_ground(self, canvas: Tensor, _is_visible: Tensor) -> StrangeCode:
        self.sizes.append(len(canvas))
        value = canvas.float().mean((1, 2, 3)) / 255 * self.scale
        return StrangeCode(value, torch.arange(len(canvas)), value * 3)

    def encode_aerial(self, chip: Tensor, is_valid: Tensor) -> StrangeCode:
        return self.encode_ground(chip, is_valid)


class StrangeCriterion(nn.Module):
    """Every photo against every chip, with a parameter of the network itself."""

    def forward(
        self, network: Any, ground: Any, aerial: Any, batch: Batch, _generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert ground.index.dtype == torch.int64
        table = ground.value[:, None] * aerial.value[None] + network.bias
        return {"all": table.square().mean()}, {"size": torch.tensor(float(len(batch)))}


def test_any_frozen_dataclass_of_tensors_is_a_code() -> None:
    network, batch = StrangeNetwork(), make_batch(4)
    g, a = (getattr(batch, n).float().mean((1, 2, 3)) / 255 for n in ("canvas", "chip"))
    scale, bias = (torch.tensor(x, requires_grad=True) for x in (2.0, 1.0))
    (scale**2 * g[:, None] * a[None] + bias).square().mean().backward()
    Backward(network, StrangeCriterion(), {"all": 1.0}, 3, "float32", Team("cpu"))(
        batch, torch.Generator()
    )
    assert float(network.scale.grad) == pytest.approx(float(scale.grad))  # type: ignore[arg-type]
    assert float(network.bias.grad) == pytest.approx(float(bias.grad))  # type: ignore[arg-type]
    # Ground and aerial of 3 and 1 pairs, without and with their graphs.
    assert network.sizes == [3, 3, 1, 1, 3, 3, 1, 1]


def test_the_average_by_hand() -> None:
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 1.0)
    average = WeightAverage(network, 0.5)
    nn.init.constant_(network.weight, 3.0)
    average.update(network, 1)  # decay 2 / 11
    assert average.weights["weight"].item() == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    average.weights["weight"].fill_(1.0)
    average.update(network, 1000)
    assert average.weights["weight"].item() == pytest.approx(2.0)
    with average.applied(network):
        assert network.weight.item() == pytest.approx(2.0)
    assert network.weight.item() == 3.0


def test_the_hardest_chips_are_wrong_and_alike() -> None:
    query = torch.tensor([[1.0, 0.0]]).expand(5, 2)
    cosine = torch.tensor([1.0, 0.9, 0.1, 0.5, 0.7])
    best = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=-1)
    places = torch.stack([best, -best], dim=1)  # a chip is as good as its best place
    is_wrong = torch.ones(5, 5, dtype=torch.bool) & ~torch.eye(5, dtype=torch.bool)
    is_wrong[0, 1] = False
    rivals = hardest(query, places, is_wrong)
    assert rivals[0].tolist() == [4, 3, 2]
    assert rivals[1].tolist() == [0, 4, 3]


def spread_pairs(num_photos: int = 40) -> SyntheticPairs:
    """Photos of a grey city all over it, many of them apart."""
    city, _ = landmark_city()
    rng = np.random.default_rng(1)
    poses = city.poses.copy()
    poses[:, :2] = rng.uniform(20, 380, (40, 2))
    return SyntheticPairs([replace(city, poses=poses[:num_photos])], SyntheticConfig(), seed=0)


def test_mined_rows_hold_a_photo_and_chips_without_it() -> None:
    torch.manual_seed(0)
    pairs, network = spread_pairs(), make_network(RECIPES["ciper"])
    config = OptimConfig(batch_size=8, mine_photos=12, precision="float32")
    table = mine(network, pairs, config, 7, torch.device("cpu"))
    assert table.shape == (12, GROUP_SIZE)
    position_m = pairs.order.position_m
    for photo, *rivals in table:
        assert len({photo, *rivals}) == GROUP_SIZE
        for rival in rivals:
            # A rival's chip is cut with its photo within 32 m of the centre, and does not reach.
            assert np.abs(position_m[rival] - position_m[photo]).max() > 80 - 32
    assert np.array_equal(table, mine(network, pairs, config, 7, torch.device("cpu")))


def test_no_rows_are_mined_where_all_chips_hold_the_same_place() -> None:
    city, _ = landmark_city()  # 60 m x 60 m of photos
    pairs = SyntheticPairs([city], SyntheticConfig(), seed=0)
    config = OptimConfig(batch_size=8, mine_photos=8)
    table = mine(make_network(RECIPES["ciper"]), pairs, config, 0, torch.device("cpu"))
    assert table.shape == (0, GROUP_SIZE)


def test_validation_repeats_itself_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    config = RECIPES["ciper"]
    network, criterion = make_network(config), make_criterion(config)
    optim = OptimConfig(batch_size=4, validate_pairs=9)
    first, again = (
        validate(network, criterion, spread_pairs(), optim, torch.device("cpu")) for _ in range(2)
    )
    assert first == again
    assert {"coarse", "position_median_m", "chip_right", "score"} <= set(first)
    assert network.training
    assert gradients_of(network) == {}


def test_the_score_falls_with_the_error_and_with_right_chips() -> None:
    assert score({"position_median_m": 3.0, "chip_right": 0.75}) == pytest.approx(4.0)
    assert score({"position_median_m": 3.0, "chip_right": 0.0}) == pytest.approx(3000.0)


def test_the_best_validation_is_kept() -> None:
    best = Best().after(5.0, 100)
    assert (best.score, best.step, best.is_new) == (5.0, 100, True)
    worse = best.after(6.0, 200).after(float("nan"), 300)
    assert (worse.score, worse.step, worse.num_since) == (5.0, 100, 2)
    assert worse.after(4.0, 400) == Best(4.0, 400, 0)
    assert from_dict(Best, to_dict(worse)) == worse
    assert Best().after(float("nan"), 1).num_since == 1


def test_a_run_that_does_not_improve_has_stalled(tmp_path: Path) -> None:
    config = replace(
        RECIPES["ciper"],
        data=SyntheticConfig(validation_cities=1),
        train=OptimConfig(validate_every=1, patience=2),
    )
    run = Run(config, tmp_path, "cpu")
    assert not run.is_finished
    run.best = Best(1.0, 10, 2)
    assert run.is_finished


def test_the_validated_weights_are_the_average(tmp_path: Path) -> None:
    config = replace(RECIPES["ciper"], train=OptimConfig(ema_decay=0.9))
    run = Run(config, tmp_path, "cpu")
    assert run.average is not None
    run.average.weights["retrieval_log_scale"].fill_(0.25)
    with run.averaged() as network:
        assert float(network.state_dict()["retrieval_log_scale"]) == 0.25
    assert float(run.network.state_dict()["retrieval_log_scale"]) != 0.25


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"mine_every": 5}, "neighbour_share is 0"),
        ({"patience": 3}, "validate_every is 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; expected 0"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"validate_every": 10}, "no city to validate on"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, {"train": train})


@pytest.mark.parametrize("first", [9000, 9998, 8995])
def test_test_cities_are_neither_trained_nor_validated_on(first: int) -> None:
    data = {"first_seed": first, "num_cities": 3, "validation_cities": 3}
    with pytest.raises(ConfigError, match="is a test city"):
        from_dict(TrainConfig, {"data": data})


def test_rows_are_means_and_go_on_where_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, every=2)
    for step in range(1, 7):
        log.add(step, {"a": float(step)})
    log = MetricsLog(path, start=4, every=2)  # the checkpoint was of step 4
    log.add(5, {"a": 50.0, "b": 1.0})
    log.add(6, {"a": 60.0, "b": 1.0})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [
        ("2", "1.5", ""),
        ("4", "3.5", ""),
        ("6", "55", "1"),
    ]
    assert float(rows[2]["seconds"]) >= float(rows[1]["seconds"])


def test_the_pace_tells_pairs_per_second_and_the_time_left() -> None:
    pace = Pace(32)
    pace.seconds_per_step = 0.5
    assert pace.metrics(10) == {"pairs_per_s": 64.0, "eta_s": 5.0}
