"""The parts of training: exact gradients from pieces, averages, hard negatives, early stopping."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import TINY, TINY_PAPER, TINY_REFINED, make_batch
from test_synthetic import landmark_city
from torch import Tensor, nn

from ciper.config import from_dict, to_dict
from ciper.data.batches import Drawing
from ciper.data.neighbours import GROUP_SIZE
from ciper.data.sample import Batch
from ciper.data.synthetic import SyntheticConfig, SyntheticPairs
from ciper.errors import ConfigError, TrainingError
from ciper.model.criterion import CriterionConfig
from ciper.model.matcher import Evidence, best_pose, window_poses
from ciper.model.refine import Candidates, Refined
from ciper.training.average import WeightAverage
from ciper.training.gradients import Backward, encode, split
from ciper.training.log import MetricsLog, Pace, RunLog
from ciper.training.mining import hardest, mine
from ciper.training.recipe import (
    OptimConfig,
    TrainConfig,
    make_criterion,
    make_network,
)
from ciper.training.run import Run
from ciper.training.team import Team
from ciper.training.validation import Best, pose_figures, score, true_chip_poses, validate

FEW = CriterionConfig(num_negative_chips=2)
RECIPES = {
    "ciper": TrainConfig(network=TINY, criterion=FEW),
    "refined": TrainConfig(network=TINY_REFINED, criterion=FEW),
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


def stirred(config: TrainConfig) -> nn.Module:
    """A network none of whose parts is switched off by weights that start at zero."""
    torch.manual_seed(0)
    network = make_network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return network


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("model", list(RECIPES))
def test_gradients_from_pieces_are_those_of_the_whole(model: str, micro_batch: int | None) -> None:
    config = RECIPES[model]
    network = stirred(config)
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
        largest = float(gradient.abs().max())
        assert largest > 0, name
        assert float((found[name] - gradient).abs().max()) / largest < 1e-3, name


def test_gradients_of_several_batches_add_up() -> None:
    config = RECIPES["ciper"]
    network = stirred(config)
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
    return SyntheticPairs([replace(city, poses=poses[:num_photos])], SyntheticConfig(), Drawing(0))


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
    pairs = SyntheticPairs([city], SyntheticConfig(), Drawing(0))
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
    assert {"coarse", "position_median_m", "within_6m", "chip_right", "score"} <= set(first)
    assert first["score"] == score(first)
    assert network.training
    assert gradients_of(network) == {}


class Recorder(nn.Module):
    """A criterion that scores a batch by its first photo's place, and counts the pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[float, ...]] = []
        self.sizes: list[int] = []

    def forward(
        self, _network: Any, _ground: Any, _aerial: Any, batch: Batch, _generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self.sizes.append(len(batch))
        self.places += [tuple(place) for place in batch.camera_m.tolist()]
        return {"first": batch.camera_m[0, 0]}, {"chip_right": torch.tensor(0.5)}


@pytest.mark.parametrize(("model", "share"), [("ciper", 0.0), ("paper", 1.0)])
def test_validation_takes_all_its_pairs_and_pools_their_errors(model: str, share: float) -> None:
    torch.manual_seed(0)
    network, recorder = make_network(RECIPES[model]), Recorder()
    optim = OptimConfig(
        batch_size=4, validate_pairs=10, narrow_share=(0.0, share), precision="float32"
    )
    pairs = spread_pairs()
    metrics = validate(network, recorder, pairs, optim, torch.device("cpu"))
    assert recorder.sizes == [4, 3, 3]
    assert len(set(recorder.places)) == 10
    firsts = [recorder.places[index][0] for index in (0, 4, 7)]
    assert metrics["first"] == pytest.approx(np.average(firsts, weights=[4, 3, 3]))
    photos = pairs.sample(0, 10)
    batches = [
        pairs.pairs(part, (0, index), narrow_share=share)
        for index, part in enumerate((photos[:4], photos[4:7], photos[7:]))
    ]
    with torch.no_grad():
        found = [true_chip_poses(network.eval(), *encode(network, batch)) for batch in batches]
    true = [batch.pose.double().numpy() for batch in batches]
    figures = pose_figures(np.concatenate(found), np.concatenate(true))
    assert {name: metrics[name] for name in figures} == pytest.approx(figures, abs=1e-3)
    assert metrics["score"] == pytest.approx(2 * figures["position_median_m"], abs=1e-2)


@pytest.mark.parametrize("model", list(RECIPES))
def test_a_batchs_answers_are_those_of_its_pairs_alone(model: str) -> None:
    network, batch = stirred(RECIPES[model]).eval(), make_batch(3)
    with torch.no_grad():
        together = true_chip_poses(network, *encode(network, batch))
        alone = [true_chip_poses(network, *encode(network, one))[0] for one in split(batch, 1)]
    assert len({*together[:, 0]}) == 3
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)


def test_figures_of_poses_by_hand() -> None:
    true = np.array([[0.0, 0.0, 359.0], [10.0, -10.0, 90.0], [5.0, 5.0, 180.0], [0.0, 0.0, 0.0]])
    # The first answer is 5 m and 2 deg off, across north.
    found = np.array([[3.0, 4.0, 1.0], [10.0, -11.0, 86.0], [11.0, 13.0, 0.0], [-2.0, 0.0, 10.0]])
    assert pose_figures(found, true) == pytest.approx(
        {"position_median_m": 3.5, "within_6m": 0.75, "heading_median_deg": 7.0}
    )


def one_window(heading: int, row: int, column: int) -> Evidence:
    """One window about a coarse cell, flat but for its middle: heading step 4, row 2, column 3."""
    fine = np.full((1, 9, 6, 6), -np.inf, np.float32)
    fine[0, 4, 2, 3] = 1.0
    chip, *cell = (np.array([i]) for i in (0, heading, row, column))
    coarse = np.zeros((1, 32, 16, 16), np.float32)
    return Evidence(coarse, chip, cell[0], cell[1], cell[2], fine)


@pytest.mark.parametrize(
    ("heading", "row", "column", "pose"),
    [
        # Window rows start 2 fine cells above the coarse cell: row 2 r + 0, column 2 c + 1.
        (4, 2, 3, (-17.0, 23.0, 45.0)),
        (12, 13, 3, (-17.0, -21.0, 135.0)),
        (20, 13, 12, (19.0, -21.0, 225.0)),
        (28, 2, 12, (19.0, 23.0, 315.0)),
    ],
)
def test_the_best_pose_in_all_four_quadrants(
    heading: int, row: int, column: int, pose: tuple[float, float, float]
) -> None:
    evidence = one_window(heading, row, column)
    chip, found = best_pose(evidence)
    assert chip == 0
    np.testing.assert_allclose(found, pose)
    x_m, y_m, heading_deg = window_poses(evidence)
    assert (x_m[0, 3], y_m[0, 2], heading_deg[0, 4]) == pose


def test_the_best_pose_is_the_mean_of_neighbours_across_north() -> None:
    evidence = one_window(0, 7, 7)
    evidence.fine[0, 3, 2, 3] = 1.0  # as likely, 2.8125 deg to the left
    assert best_pose(evidence)[1][2] == pytest.approx(360 - 2.8125 / 2)


class Partisan(nn.Module):
    """Stands for the refiner: wants what lies farthest to the north-east of its chip."""

    def forward(self, _polar: Any, _maps: Any, asked: Candidates) -> Refined:
        wanted = 100.0 * (asked.pose[:, 0] + asked.pose[:, 1])
        self.answer = asked.pose[int(wanted.argmax())]
        spread = torch.zeros(len(wanted), 2)
        return Refined(wanted, asked.pose, spread)


def test_the_answer_is_the_refiners() -> None:
    torch.manual_seed(0)
    network, batch = make_network(RECIPES["refined"]).eval(), make_batch(1)
    network.refiner = Partisan()
    with torch.no_grad():
        pose = true_chip_poses(network, *encode(network, batch))
    offset = pose[0] - network.refiner.answer.numpy()
    # Within the cells of its window: 2 m wide and 2.8125 deg.
    assert np.abs(offset[:2]).max() < 2.0
    assert abs((offset[2] + 180) % 360 - 180) < 2.9


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


@pytest.mark.parametrize("setting", ["first_seed", "first_validation_seed"])
@pytest.mark.parametrize(
    ("first", "message"),
    [
        (8998, "city 9000 .* is a test city"),
        (9999, "city 9999 .* is a test city"),
        (199_999, "city 200001 .* is a city of the calibration"),
        (200_099, "city 200099 .* is a city of the calibration"),
        (210_001, "city 210001 .* is a validation city of the study"),
        (310_098, "city 310098 .* is a test city of the study"),
    ],
)
def test_cities_that_are_measured_on_are_neither_trained_nor_validated_on(
    setting: str, first: int, message: str
) -> None:
    data = {"num_cities": 3, "validation_cities": 3, setting: first}
    with pytest.raises(ConfigError, match=f"{message}.*: set data.{setting}"):
        from_dict(TrainConfig, {"data": data})


@pytest.mark.parametrize("first", [8997, 10_000, 200_100, 310_100])
def test_cities_beside_the_reserved_ones_are_free(first: int) -> None:
    data = {"first_seed": first, "num_cities": 3}
    assert from_dict(TrainConfig, {"data": data}).data.first_seed == first


def test_cities_are_not_both_trained_and_validated_on() -> None:
    data = {"first_seed": 189_000, "num_cities": 1000, "validation_cities": 3}
    assert from_dict(TrainConfig, {"data": data}).data.num_cities == 1000
    with pytest.raises(ConfigError, match=r"city 190000 .*set data.first_validation_seed"):
        from_dict(TrainConfig, {"data": {**data, "num_cities": 1001}})


def test_the_refiners_losses_have_weights_where_there_is_a_refiner() -> None:
    plain, refined = (set(RECIPES[name].loss_weights) for name in ("ciper", "refined"))
    assert plain == {"retrieval", "coarse", "fine"}
    assert refined == {*plain, "ranking", "refined_pose"}


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


def test_every_step_is_in_one_row_wherever_the_run_is_saved(tmp_path: Path) -> None:
    for start, end in ((0, 7), (7, 27)):
        with RunLog(tmp_path, start) as log:
            for step in range(start + 1, end + 1):
                log.add_step(step, {"a": float(step)})
            if end == 7:
                assert log.flush()["a"] == 4.0
                log.add_step(8, {"a": 1e9})  # killed before it was saved again
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    # Means of 1 to 7, 8 to 20 and 21 to 27.
    assert [(row["step"], row["a"]) for row in rows] == [("7", "4"), ("20", "14"), ("27", "24")]


def test_events_of_steps_that_are_done_again_are_hidden(tmp_path: Path) -> None:
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, value in ((0, 1.0), (20, 2.0)):
        with RunLog(tmp_path, start) as log:
            for step in range(start + 1, 41):
                log.add_step(step, {"a": value})
    found = event.EventAccumulator(str(tmp_path)).Reload().Scalars("a")
    assert [(e.step, e.value) for e in found] == [(20, 1.0), (40, 2.0)]


def test_a_row_that_was_cut_off_is_dropped_and_a_foreign_table_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, every=1)
    for step in (1, 2):
        log.add(step, {"a": 0.5})
    path.write_text(path.read_text()[:-4])
    log = MetricsLog(path, start=2, every=1)
    log.add(3, {"a": 0.25})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["step"], row["a"]) for row in rows] == [("1", "0.5"), ("3", "0.25")]
    for text, value in (("step,a\nfirst,1\n", "'first'"), ("time,a\n1,1\n", "None")):
        path.write_text(text)
        with pytest.raises(TrainingError, match=f"row with step {value}; expected a number"):
            MetricsLog(path, start=2)


def test_the_pace_tells_pairs_per_second_and_the_time_left() -> None:
    pace = Pace(32)
    pace.seconds_per_step = 0.5
    assert pace.metrics(10) == {"pairs_per_s": 64.0, "eta_s": 5.0}
