from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ciper.data.sample import Batch
from ciper.model.encoder import EncoderConfig
from ciper.model.paper import PaperConfig, PaperNetwork
from ciper.model.set_criterion import (
    SetCriterion,
    SetCriterionConfig,
    SetLossWeights,
    confidence_loss,
    match,
    matched_pose_loss,
    select,
    statistics,
    triplet_loss,
)
from ciper.model.two_way import Hypotheses, PoseDecoderConfig, pose_targets

CONFIG = SetCriterionConfig()
TINY = PaperConfig(
    encoder="stem",
    trunk=EncoderConfig(width=32, depth=1, num_heads=2, stem_channels=(8, 16)),
    decoder=PoseDecoderConfig(width=32, num_heads=4, mlp_width=64, num_queries=8),
    descriptor_dim=32,
    chip_px=64,
    gsd=2.0,
    canvas_height_px=32,
    canvas_width_px=128,
)
AUTHORS = replace(
    TINY, decoder=replace(TINY.decoder, queries="identical", encoding="zero", head="linear")
)


def batch(num: int, *, apart_m: float = 1000.0) -> Batch:
    generator = torch.Generator().manual_seed(15)

    def image(height: int, width: int) -> Tensor:
        shape = (num, height, width, 3)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    offset = torch.rand(num, 2, generator=generator) * 64 - 32
    heading = torch.rand(num, 1, generator=generator) * 360
    centre = torch.arange(num)[:, None] * torch.tensor([[apart_m, 0.0]])
    return Batch(
        canvas=image(32, 128),
        is_visible=torch.ones(num, 32, 128, dtype=torch.bool),
        chip=image(64, 64),
        is_valid=torch.ones(num, 64, 64, dtype=torch.bool),
        pose=torch.cat([offset, heading], dim=1),
        city=torch.zeros(num, dtype=torch.long),
        centre_m=centre,
        camera_m=centre + offset,
    )


def score(
    network: PaperNetwork, pairs: Batch, config: SetCriterionConfig = CONFIG
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    ground = network.encode_ground(pairs.canvas, pairs.is_visible)
    aerial = network.encode_aerial(pairs.chip, pairs.is_valid)
    losses, stats = SetCriterion(config)(network, ground, aerial, pairs, torch.Generator())
    return losses, stats


def test_the_match_is_the_cheapest_hypothesis() -> None:
    target = torch.tensor([[0.0, 0.0, 1.0, 0.0]] * 2)
    pose = torch.tensor([[[0.1, 0.0, 1.0, 0.0], [0.2, 0.0, 1.0, 0.0]]] * 2)
    # 5 x 0.1 - prob against 5 x 0.2 - prob: a lead of 0.5 in confidence decides.
    prob = torch.tensor([[0.3, 0.7], [0.2, 0.8]])
    matched = match(Hypotheses(prob.logit(), pose), target, CONFIG)
    assert matched.tolist() == [0, 1]
    free = SetCriterionConfig(confidence_cost=0.0)
    assert match(Hypotheses(prob.logit(), pose), target, free).tolist() == [0, 0]


def test_the_match_is_the_hungarian_assignment() -> None:
    from scipy.optimize import linear_sum_assignment

    generator = torch.Generator().manual_seed(16)
    pose, target = torch.randn(20, 6, 4, generator=generator), torch.randn(20, 4)
    logit = torch.randn(20, 6, generator=generator)
    matched = match(Hypotheses(logit, pose), target, CONFIG)
    for i in range(20):
        cost = 5 * (pose[i] - target[i]).abs().sum(-1) - logit[i].sigmoid()
        rows, _ = linear_sum_assignment(cost[:, None].numpy())
        assert rows[0] == matched[i]


def test_triplets_by_hand() -> None:
    similarity = torch.tensor([[0.5, 0.4], [0.7, 0.6]])
    is_wrong = ~torch.eye(2, dtype=torch.bool)
    # Photo to chips: 0.4 - 0.5 and 0.7 - 0.6; chip to photos: 0.4 - 0.6 and 0.7 - 0.5.
    margins = (-0.1, 0.1, -0.2, 0.2)
    expected = sum(math.log1p(math.exp(20 * m)) for m in margins) / 4
    assert float(triplet_loss(similarity, is_wrong, 20.0)) == pytest.approx(expected, rel=1e-5)


def test_semi_positives_are_no_negatives() -> None:
    similarity = torch.tensor([[0.5, 0.9, 0.4], [0.1, 0.6, 0.2], [0.3, 0.2, 0.7]])
    is_wrong = ~torch.eye(3, dtype=torch.bool)
    is_wrong[0, 1] = False
    changed = similarity.clone()
    changed[0, 1] = -1.0
    masked = triplet_loss(similarity, is_wrong, 20.0)
    torch.testing.assert_close(masked, triplet_loss(changed, is_wrong, 20.0))
    assert float(masked) < float(triplet_loss(similarity, ~torch.eye(3, dtype=torch.bool), 20.0))
    assert float(triplet_loss(similarity, torch.zeros_like(is_wrong), 20.0)) == 0.0


def test_neighbouring_chips_count_as_semi_positives() -> None:
    torch.manual_seed(17)
    network = PaperNetwork(TINY)
    near, _ = score(network, batch(3, apart_m=10.0))
    assert float(near["retrieval"].detach()) == 0.0
    far, _ = score(network, batch(3))
    assert float(far["retrieval"].detach()) > 0.0


def test_confidence_and_pose_losses_by_hand() -> None:
    logit = torch.tensor([[0.0, math.log(3.0)]])
    # The first is matched: -log(1/2); the second is not: -log(1/4).
    expected = (math.log(2) + math.log(4)) / 2
    assert float(confidence_loss(logit, torch.tensor([0]))) == pytest.approx(expected)
    pose = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.3, -0.1, 0.0, 0.5]]])
    target, matched = torch.tensor([[0.1, 0.1, 0.0, 1.0]]), torch.tensor([1])
    squared = matched_pose_loss(pose, matched, target, CONFIG)
    assert float(squared) == pytest.approx(0.04 + 0.04 + 0.25)
    l1 = matched_pose_loss(pose, matched, target, SetCriterionConfig(pose_loss="l1"))
    assert float(l1) == pytest.approx(0.2 + 0.2 + 0.5)


def test_the_most_confident_hypothesis_is_the_answer() -> None:
    poses = torch.tensor([[20.0, 10.0, 350.0], [-8.0, 6.0, 90.0]])
    right, wrong = pose_targets(poses, 100.0), torch.zeros(2, 4)
    hypotheses = Hypotheses(
        torch.tensor([[0.0, 2.0], [3.0, 1.0]]),
        torch.stack([torch.stack([wrong[0], right[0]]), torch.stack([right[1], wrong[1]])]),
    )
    torch.testing.assert_close(select(hypotheses, 100.0), poses)
    truth = torch.tensor([[23.0, 14.0, 5.0], [-8.0, 6.0, 80.0]])
    stats = statistics(hypotheses, truth, 100.0)
    assert float(stats["position_median_m"]) == pytest.approx(2.5, abs=1e-4)  # of 0 and 5 m
    assert float(stats["heading_median_deg"]) == pytest.approx(12.5, abs=1e-3)  # of 15 and 10
    assert float(stats["within_6m"]) == 1.0
    assert float(stats["spread_m"]) == pytest.approx((math.hypot(20, 10) + 10) / 4, rel=1e-5)


def test_losses_and_statistics_carry_the_names_of_their_weights() -> None:
    torch.manual_seed(18)
    losses, stats = score(PaperNetwork(TINY), batch(3))
    assert set(losses) == set(vars(SetLossWeights()))
    assert all(loss.requires_grad and loss.isfinite() for loss in losses.values())
    assert not any(value.requires_grad for value in stats.values())
    assert {"position_median_m", "within_6m", "heading_median_deg", "chip_right"} <= set(stats)


def test_identical_queries_make_the_set_void() -> None:
    torch.manual_seed(19)
    _, void = score(PaperNetwork(AUTHORS), batch(3))
    _, spread = score(PaperNetwork(TINY), batch(3))
    assert float(void["spread_m"]) < 1e-4
    assert float(spread["spread_m"]) > 0.1


def test_one_batch_is_overfitted() -> None:
    torch.manual_seed(20)
    network, pairs = PaperNetwork(TINY), batch(4)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    weights = vars(SetLossWeights())
    for _ in range(150):
        losses, stats = score(network, pairs)
        optimiser.zero_grad()
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        optimiser.step()
    baseline_m = float(pairs.pose[:, :2].norm(dim=1).median())
    assert float(stats["position_median_m"]) < baseline_m / 10
    assert float(stats["heading_median_deg"]) < 5.0
    assert float(stats["chip_right"]) == 1.0
