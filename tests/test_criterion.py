"""The objective: labels by hand, which chips are wrong, and that one batch can be learned."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import TINY, TINY_REFINED, make_batch
from torch import Tensor, nn

from ciper.data.sample import Batch
from ciper.errors import ConfigError, TrainingError
from ciper.model.criterion import (
    Criterion,
    CriterionConfig,
    KnownCells,
    Modes,
    Negatives,
    coarse_labels,
    coarse_loss,
    linear_labels,
    near_truth,
    statistics,
    true_windows,
    unravel,
    wrong_chips,
    wrong_mode_windows,
)
from ciper.model.decoder import COARSE, FINE, Windows
from ciper.model.known import KnownPose
from ciper.model.network import Network, NetworkConfig
from ciper.model.refine import Candidates, Refined
from ciper.train import OptimConfig, Run, TrainConfig


def test_linear_labels_share_between_the_two_nearest_bins() -> None:
    labels = linear_labels(torch.tensor([0.0, 1.25, 9.0, -2.0]), 4)
    expected = [[1, 0, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert torch.allclose(labels, torch.tensor(expected))


def test_linear_labels_wrap_around_the_circle() -> None:
    labels = linear_labels(torch.tensor([3.5, 4.0, -0.25]), 4, wraps=True)
    expected = [[0.5, 0, 0, 0.5], [1, 0, 0, 0], [0.75, 0, 0, 0.25]]
    assert torch.allclose(labels, torch.tensor(expected))


@pytest.mark.parametrize(
    ("x", "y", "heading", "row", "column", "step"),
    [
        (30.0, 30.0, 0.0, 0, 15, 0),
        (-30.0, 30.0, 90.0, 0, 0, 8),
        (-30.0, -30.0, 180.0, 15, 0, 16),
        (30.0, -30.0, 348.75, 15, 15, 31),
        (2.0, -2.0, 270.0, 8, 8, 24),
    ],
)
def test_coarse_labels_in_all_quadrants(
    x: float, y: float, heading: float, row: int, column: int, step: int
) -> None:
    labels = coarse_labels(torch.tensor([[x, y, heading]]))
    best = unravel(labels.flatten(1).argmax(1), labels.shape[1:])
    assert [int(i) for i in best] == [step, row, column]
    assert labels.sum() == pytest.approx(1.0)


def test_coarse_loss_is_the_log_of_all_poses_when_nothing_is_known() -> None:
    volume, negatives = torch.zeros(3, 32, 16, 16), torch.zeros(3, 2, 16, 8, 8)
    loss = coarse_loss(volume, negatives, torch.zeros(3, 3))
    assert float(loss) == pytest.approx(np.log(32 * 256 + 2 * 16 * 64))


def test_true_windows_hold_the_truth() -> None:
    pose = make_batch(64).pose
    windows, labels = true_windows(pose, torch.Generator().manual_seed(0))
    assert torch.allclose(labels.sum(1), torch.ones(64))
    step, row, column = unravel(labels.argmax(1), torch.Size((9, 7, 7)))
    x = (windows.column + column - 3 + 0.5 - 32) * 2.0
    y = (32 - (windows.row + row - 3) - 0.5) * 2.0
    heading = (windows.heading + step - 4) * 2.8125
    turn = (heading - pose[:, 2] + 180) % 360 - 180
    assert (x - pose[:, 0]).abs().max() <= 1.0 + 1e-4
    assert (y - pose[:, 1]).abs().max() <= 1.0 + 1e-4
    assert turn.abs().max() <= 1.41


def test_near_truth_is_kept_out_of_the_wrong_modes() -> None:
    pose = torch.tensor([[10.0, -6.0, 45.0]])
    volume = coarse_labels(pose) * 9.0
    volume[0, 20, 3, 3] = 1.0
    windows = wrong_mode_windows(
        volume.masked_fill(near_truth(pose, CriterionConfig()), -torch.inf),
        torch.Generator().manual_seed(0),
    )
    assert int(windows.row) // 2 - 8 == 3
    assert int(windows.column) // 2 - 8 == 3
    assert abs(int(windows.heading) - 80) <= 1


def test_overlapping_chips_of_a_city_are_no_negatives() -> None:
    batch = replace(
        make_batch(4),
        city=torch.tensor([0, 0, 0, 1]),
        centre_m=torch.tensor([[0.0, 0.0], [70.0, 0.0], [200.0, 0.0], [0.0, 0.0]]),
        camera_m=torch.tensor([[5.0, 0.0], [75.0, 0.0], [205.0, 0.0], [5.0, 0.0]]),
    )
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert wrong_chips(batch).int().tolist() == expected


def score(network: Network, batch: Batch, **config: Any) -> tuple[dict[str, Tensor], ...]:
    """Losses and statistics of a network that encodes a batch."""
    ground = network.encode_ground(batch.canvas, batch.is_visible)
    aerial = network.encode_aerial(batch.chip, batch.is_valid)
    criterion = Criterion(CriterionConfig(**config))
    losses, stats = criterion(network, ground, aerial, batch, torch.Generator().manual_seed(0))
    return losses, stats


@pytest.mark.parametrize("num_negative_chips", [0, 2])
@pytest.mark.parametrize("config", [TINY, TINY_REFINED], ids=["plain", "refined"])
def test_losses_are_named_finite_and_differentiable(
    config: NetworkConfig, num_negative_chips: int
) -> None:
    torch.manual_seed(0)
    network = Network(config)
    losses, stats = score(network, make_batch(4), num_negative_chips=num_negative_chips)
    assert set(losses) == set(TrainConfig(network=config).loss_weights)
    torch.stack(list(losses.values())).sum().backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert missing == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())  # type: ignore[arg-type]
    assert all(bool(torch.isfinite(s)) for s in stats.values())


class Listener(nn.Module):
    """Stands for the refiner: says nothing, and remembers what it was asked about."""

    asked: Candidates
    has_graph: bool

    def forward(
        self, polar: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor], asked: Candidates
    ) -> Refined:
        self.asked = asked
        self.has_graph = any(t.requires_grad for t in (*polar, *maps, asked.pose))
        silence = torch.zeros(len(asked.pose))
        return Refined(silence, asked.pose, silence[:, None].expand(-1, 2))


@pytest.mark.parametrize(("num_negative_chips", "num_modes"), [(0, 2), (1, 3), (3, 5), (9, 6)])
def test_the_refiner_judges_the_truth_first_then_wrong_modes(
    num_negative_chips: int, num_modes: int
) -> None:
    torch.manual_seed(0)
    network, batch, listener = Network(TINY), make_batch(5), Listener()
    network.refiner = listener  # type: ignore[assignment]
    with torch.no_grad():
        network.correlation.fine_log_scale.fill_(-30.0)  # flat: candidates are windows' middles
    losses, _ = score(network, batch, num_negative_chips=num_negative_chips)
    assert not listener.has_graph
    assert float(losses["ranking"].detach()) > 0
    asked, own = listener.asked, torch.arange(5)
    # At most four wrong chips, and not more than there are.
    photo, chip = asked.photo.view(num_modes, 5), asked.chip.view(num_modes, 5)
    assert torch.equal(photo, own.expand(num_modes, 5))
    assert torch.equal(chip[:2], own.expand(2, 5))
    if num_negative_chips == 9:  # all five chips are asked, of which four are wrong
        assert bool((chip[2:] != own).all())
    else:
        assert len(set(chip[2:].flatten().tolist())) == num_negative_chips
    offset = asked.pose.view(num_modes, 5, 3) - batch.pose
    turn = (offset[..., 2] + 180) % 360 - 180
    near = torch.hypot(offset[..., 0], offset[..., 1])
    # A window is up to 2.5 cells of 2 m off the truth in both directions, and 3.5 of 2.8125 deg.
    assert near[0].max() <= 5 * 2**0.5 + 0.1
    assert turn[0].abs().max() <= 3.5 * 2.8125 + 0.1
    # The wrong mode is in a coarse cell that is not near; a window is up to a cell off that.
    assert bool(((near[1] > 8.0 - 2.0) | (turn[1].abs() > 28.0 - 3.0)).all())


def test_fine_and_ranking_losses_by_hand() -> None:
    # Two photos with five modes each; mode m of photo p has logit[m, p] in all of its cells.
    logit = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0], [-1.0, 1.0], [4.0, 0.0]])
    index = torch.arange(10)
    windows = Windows(index % 2, index % 2, 20 + index, 30 + index, index)
    labels = torch.zeros(2, 9 * 7 * 7)
    labels[:, 5] = 1.0
    half = logit.flatten() / 2  # as much from the coarse as from the fine level

    def fine_volume(_polar: Tensor, _fine: Tensor, asked: Windows) -> Tensor:
        return half[asked.row - 20].view(-1, 1, 1, 1).expand(-1, 9, 7, 7)

    names, listener = ("polar_coarse", "polar_fine", "coarse", "fine"), Listener()
    code: Any = SimpleNamespace(**dict.fromkeys(names, torch.zeros(2)))
    correlation = SimpleNamespace(fine_volume=fine_volume)
    network: Any = SimpleNamespace(correlation=correlation, refiner=listener)
    losses = Criterion(CriterionConfig())._fine_losses(
        network, code, code, make_batch(2), Modes(windows, half, labels)
    )
    ranking = -logit.log_softmax(0)[0].mean()
    fine = -logit[:3].log_softmax(0)[0].mean() + np.log(9 * 7 * 7)  # one cell of its window's
    torch.testing.assert_close(losses["ranking"], ranking)
    torch.testing.assert_close(losses["fine"], fine)
    # Flat windows have their mean in the middle.
    torch.testing.assert_close(listener.asked.pose[:, 0], (30 + index - 31.5) * 2.0)
    torch.testing.assert_close(listener.asked.pose[:, 1], (31.5 - 20 - index) * 2.0)


def test_the_best_modes_of_the_best_wrong_chips_by_hand() -> None:
    logits = torch.zeros(2, 3, 16, 8, 8)
    logits[0, 1, 5, 2, 7], logits[0, 2, 0, 0, 0] = 4.0, 3.0
    logits[1, 0, 15, 7, 1], logits[1, 2, 3, 4, 5] = 2.0, 6.0
    negatives = Negatives(logits, torch.tensor([7, 8, 9]), torch.tensor([1.0, 0.5]), (1, 0, 1))
    windows, logit = negatives.modes(2, torch.Generator().manual_seed(0))
    assert windows.photo.tolist() == [0, 1, 0, 1]
    assert windows.chip.tolist() == [8, 9, 9, 7]
    assert logit.tolist() == [3.0, 5.5, 2.0, 1.5]
    # Every second row, column and heading, from the shift on; of the central half of 64 cells.
    assert (windows.row // 2 - 8).tolist() == [5, 9, 1, 15]
    assert (windows.column // 2 - 8).tolist() == [14, 10, 0, 2]
    heading = torch.tensor([11, 7, 1, 31]) * 4
    assert (((windows.heading - heading + 64) % 128 - 64).abs() <= 1).all()
    assert len(negatives.modes(9, torch.Generator())[1]) == 6


def test_without_negative_chips_a_photo_is_held_against_its_own_alone() -> None:
    torch.manual_seed(0)
    network, batch = Network(TINY), make_batch(3)
    asked: list[Windows] = []
    correlate = network.correlation.fine_volume

    def listen(polar: Tensor, fine: Tensor, windows: Windows) -> Tensor:
        asked.append(windows)
        return correlate(polar, fine, windows)

    network.correlation.fine_volume = listen  # type: ignore[method-assign]
    losses, stats = score(network, batch, num_negative_chips=0)
    assert asked[0].photo.tolist() == asked[0].chip.tolist() == [0, 1, 2] * 2
    assert float(stats["chip_right"]) == 1.0
    alone = [
        score(network, Batch(*(column[i : i + 1] for column in vars(batch).values())),
              num_negative_chips=0)[0]["coarse"]
        for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(losses["coarse"], torch.stack(alone).mean(), rtol=1e-4, atol=0)
    nothing = coarse_loss(torch.zeros(3, 32, 16, 16), torch.zeros(3, 0, 16, 8, 8), batch.pose)
    assert float(nothing) == pytest.approx(np.log(32 * 256))


@pytest.mark.parametrize(
    ("name", "value"), [("num_negative_chips", -1), ("num_wrong_hypotheses", 0)]
)
def test_numbers_of_wrong_chips_that_make_no_sense_are_refused(name: str, value: int) -> None:
    config: Any = {name: value}
    with pytest.raises(ConfigError, match=f"criterion.{name} is {value}"):
        CriterionConfig(**config)


def test_what_is_known_by_hand() -> None:
    known = KnownPose(heading_sigma_deg=10.0, reach_m=20.0)
    prior = known.on_coarse_cells()
    assert prior.shape == (32, 16, 16)
    # Rows and columns at -30, -26, ... 30 m: 22 m may hold a camera at 20 m, 26 m may not.
    is_near = prior[0] == 0
    assert np.array_equal(np.flatnonzero(is_near.any(0)), np.arange(2, 14))
    assert np.array_equal(np.flatnonzero(is_near.any(1)), np.arange(2, 14))
    assert prior[0][~is_near].max() < -1000
    # One step of 11.25 deg either way, on a Gaussian widened by that step's own variance.
    step = -0.5 * 11.25**2 / (10.0**2 + 11.25**2 / 12)
    assert prior[1, 8, 8] == prior[31, 8, 8] == pytest.approx(step)
    assert known.log_heading(np.array([359.0, 1.0]), FINE)[0] == pytest.approx(
        float(known.log_heading(np.array([1.0]), FINE)[0])
    )
    assert known.log_offset(np.array([-21.9, 22.0]), FINE).tolist() == [0.0, -1e4]
    assert known.log_offset(np.array([23.9, -24.0]), COARSE).tolist() == [0.0, -1e4]


@pytest.mark.parametrize(("sigma", "reach"), [(0.0, 1.0), (1.0, -2.0), (float("nan"), 1.0)])
def test_what_cannot_be_known_is_refused(sigma: float, reach: float) -> None:
    with pytest.raises(ConfigError, match=r"known\.\w+ is"):
        KnownPose(sigma, reach)


@pytest.mark.parametrize("reach_m", [11.0, 15.0, 18.0, 20.0, 22.5, 23.0, 32.0])
def test_poses_that_are_ruled_out_teach_nothing(reach_m: float) -> None:
    torch.manual_seed(0)
    network, batch = Network(TINY_REFINED), make_batch(8)
    batch.pose[:, :2] = (2 * torch.rand(8, 2) - 1) * reach_m
    batch.pose[:2, :2] = torch.tensor([[reach_m, -reach_m], [-reach_m, reach_m]])
    batch.pose[:, 2] = torch.rand(8) * 0.7 - 0.35
    known = KnownPose(heading_sigma_deg=0.5, reach_m=reach_m)
    with torch.no_grad():
        plain, told, city, told_city = (
            score(network, batch, num_negative_chips=number, known=prior)[0]
            for number in (0, 3)
            for prior in (None, known)
        )
    # A new network finds all poses equally likely: 8,192, or some hundred and their neighbours.
    num_near = len(np.flatnonzero(known.on_axes(COARSE, 16)[1] == 0)) ** 2
    assert float(plain["coarse"]) == pytest.approx(np.log(32 * 256), abs=0.5)
    assert float(told["coarse"]) == pytest.approx(np.log(num_near), abs=0.7)
    assert told["coarse"] < told_city["coarse"] < city["coarse"]
    # Nor is any truth ruled out at the fine level, or for the refiner.
    assert float(told_city["fine"]) < float(city["fine"])
    assert float(told_city["ranking"]) < 10.0


def test_wrong_chips_stand_for_the_city_whatever_is_known() -> None:
    for sigma_deg, share in ((0.5, 0.994), (1e6, 0.5)):
        known = KnownCells(KnownPose(heading_sigma_deg=sigma_deg))
        assert known.heading_share == pytest.approx(share, abs=0.01)


def test_fine_cells_know_what_coarse_ones_do() -> None:
    known = KnownCells(KnownPose(heading_sigma_deg=5.0, reach_m=20.0))
    # Windows in all four quadrants: about 21 m from the centre along both axes, at two headings.
    one = torch.zeros(4, dtype=torch.long)
    row, column = torch.tensor([21, 21, 42, 42]), torch.tensor([21, 42, 21, 42])
    windows = Windows(one, one, row, column, torch.tensor([0, 127, 1, 64]))
    fine = known.fine(windows)
    assert fine.shape == (4, 9, 7, 7)
    middle = fine[:, 4, 3, 3]
    variance = 5.0**2 + 2.8125**2 / 12
    assert middle[0] == 0 and middle[1] == middle[2]
    assert middle[1] == pytest.approx(-0.5 * 2.8125**2 / variance)
    assert middle[3] == pytest.approx(-0.5 * 180**2 / variance)
    # Beyond 22 m, outwards of the middle cell, no camera has a share in a cell.
    for quadrant, (rows, columns) in enumerate(
        [
            (slice(0, 3), slice(0, 3)),
            (slice(0, 3), slice(4, 7)),
            (slice(4, 7), slice(0, 3)),
            (slice(4, 7), slice(4, 7)),
        ]
    ):
        assert fine[quadrant, 4, rows].max() < -1000 and fine[quadrant, 4, :, columns].max() < -1000
    assert np.isclose(fine[0, 4, 3:, 3:].numpy(), 0).all()


def test_statistics_by_hand() -> None:
    volume = torch.full((2, 32, 16, 16), -50.0)
    volume[:, 8, 8, 7] = 3.0  # 2 m west and 2 m south of the centre, 90 deg
    negatives = torch.full((2, 1, 16, 8, 8), -torch.inf)
    negatives[1, 0, 0, 0, 0] = negatives[1, 0, 0, 0, 1] = 2.5  # together more than 3
    pose = torch.tensor([[-2.0, 1.0, 91.0], [-9.0, -2.0, 85.0]])  # 3 m and 7 m, 1 and 5 deg
    found = {name: float(value) for name, value in statistics(volume, negatives, pose).items()}
    assert found == {
        "position_median_m": pytest.approx(5.0),
        "within_6m": 0.5,
        "heading_median_deg": pytest.approx(3.0),
        "chip_right": 0.5,
    }


@pytest.mark.slow
def test_one_batch_is_overfitted(tmp_path: object) -> None:
    config = TrainConfig(train=OptimConfig(num_steps=100, warmup_steps=5, lr=2e-3))
    run = Run(config, tmp_path, "cpu")  # type: ignore[arg-type]
    batch = make_batch(4)
    first = run.advance(batch)
    for _ in range(99):
        last = run.advance(batch)
    assert last["coarse"] < 0.4 * first["coarse"]
    assert last["position_median_m"] < 4.0


def test_a_loss_that_is_not_finite_names_itself(tmp_path: object) -> None:
    run = Run(TrainConfig(network=TINY), tmp_path, "cpu")  # type: ignore[arg-type]
    with torch.no_grad():
        run.network.get_parameter("retrieval_log_scale").fill_(torch.nan)
    with pytest.raises(TrainingError, match="'retrieval' is nan at step 0"):
        run.advance(make_batch(2))
