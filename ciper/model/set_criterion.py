"""The paper's objective: retrieval by triplets, and pose as set prediction.

Losses come back by name and unweighted; `SetLossWeights` holds the paper's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.data.sample import Batch
from ciper.model.criterion import wrong_chips
from ciper.model.paper import PaperAerial, PaperGround, PaperNetwork
from ciper.model.two_way import Hypotheses, hypothesis_poses, pose_targets


@dataclass(frozen=True)
class SetCriterionConfig:
    """How triplets and hypotheses are scored.

    `triplet_scale` multiplies differences of cosine similarities. A hypothesis costs
    `confidence_cost` x (-prob) + `pose_cost` x L1 when it is matched with the true pose.
    `pose_loss` is the "squared" error of the matched pose (the paper's text) or its "l1" sum (the
    authors' code).
    """

    triplet_scale: float = 20.0
    confidence_cost: float = 1.0
    pose_cost: float = 5.0
    pose_loss: Literal["squared", "l1"] = "squared"


@dataclass(frozen=True)
class SetLossWeights:
    """Weights of the criterion's losses: the paper's (the authors' code has confidence 1)."""

    retrieval: float = 1.0
    confidence: float = 0.2
    pose: float = 1.0


class SetCriterion(nn.Module):
    """Scores a `PaperNetwork` on a batch."""

    def __init__(self, config: SetCriterionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        network: PaperNetwork,
        ground: PaperGround,
        aerial: PaperAerial,
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and running statistics of one batch.

        Args:
            network: decodes the pairs.
            ground: codes of the batch's photos.
            aerial: codes of the batch's chips; photo i was taken in chip i.
            batch: B pairs.
            generator: not used, for nothing here is random.

        Returns:
            Unweighted scalar losses by name, and detached statistics by name.
        """
        hypotheses = network.decode(ground, aerial.patches)
        hypotheses = Hypotheses(hypotheses.logit.float(), hypotheses.pose.float())
        target = pose_targets(batch.pose, network.config.side_m)
        matched = match(hypotheses, target, self.config)
        similarity = cosines(ground, aerial)
        is_wrong = wrong_chips(batch)
        losses = {
            "retrieval": triplet_loss(similarity, is_wrong, self.config.triplet_scale),
            "confidence": confidence_loss(hypotheses.logit, matched),
            "pose": matched_pose_loss(hypotheses.pose, matched, target, self.config),
        }
        stats = statistics(hypotheses, batch.pose, network.config.side_m)
        own = similarity.detach().diagonal()
        rivals = similarity.detach().masked_fill(~is_wrong, -torch.inf).amax(1)
        stats["chip_right"] = (own > rivals).float().mean()
        return losses, stats


def cosines(ground: PaperGround, aerial: PaperAerial) -> Tensor:
    """`(B, B)` cosine similarities of photo i and chip j.

    In float32, also under autocast: bfloat16's steps of 0.004 are 0.08 in the triplets' exponent.
    """
    with torch.autocast(ground.descriptor.device.type, enabled=False):
        return ground.descriptor.float() @ aerial.descriptors[:, 0].float().T


@torch.no_grad()
def match(hypotheses: Hypotheses, target: Tensor, config: SetCriterionConfig) -> Tensor:
    """The hypothesis that answers for each pair's one true pose `(B, 4)`: `(B,)` indices.

    DETR's matching (Hungarian, lowest total cost); with a single target it *is* the argmin. The
    confidence is part of the cost, so that the hypothesis that is trained is about the one that
    will be selected.
    """
    distance = (hypotheses.pose - target[:, None]).abs().sum(-1)
    prob = hypotheses.logit.sigmoid()
    return (config.pose_cost * distance - config.confidence_cost * prob).argmin(1)


def triplet_loss(similarity: Tensor, is_wrong: Tensor, scale: float) -> Tensor:
    """Soft-margin triplets log(1 + exp(scale (s_neg - s_pos))), mean of all pairs, both directions.

    Args:
        similarity: `(B, B)` cosines of photo i and chip j; the diagonal is positive.
        is_wrong: `(B, B)`, chip j is a negative of photo i; the others have no part in it.
        scale: of differences of cosines.

    Returns:
        The mean; 0 when the batch has no negative at all.
    """
    positive = similarity.diagonal()
    to_chips = F.softplus(scale * (similarity - positive[:, None]))
    to_photos = F.softplus(scale * (similarity - positive[None, :]))
    both = (to_chips + to_photos) / 2
    return (both * is_wrong).sum() / is_wrong.sum().clamp_min(1)


def confidence_loss(logit: Tensor, matched: Tensor) -> Tensor:
    """Binary cross-entropy of all K logits `(B, K)`: 1 for the matched `(B,)`, 0 for the others."""
    target = F.one_hot(matched, logit.shape[1]).to(logit.dtype)
    return F.binary_cross_entropy_with_logits(logit, target)


def matched_pose_loss(
    pose: Tensor, matched: Tensor, target: Tensor, config: SetCriterionConfig
) -> Tensor:
    """Error of the matched of poses `(B, K, 4)`, summed over its 4 numbers, mean of the batch."""
    error = pose[torch.arange(len(pose), device=pose.device), matched] - target
    error = error.abs() if config.pose_loss == "l1" else error.square()
    return error.sum(-1).mean()


def select(hypotheses: Hypotheses, side_m: float) -> Tensor:
    """The most confident hypothesis of each pair: `(B, 3)` x_m, y_m, heading_deg."""
    index = torch.arange(len(hypotheses.logit), device=hypotheses.logit.device)
    return hypothesis_poses(hypotheses.pose[index, hypotheses.logit.argmax(1)], side_m)


@torch.no_grad()
def statistics(hypotheses: Hypotheses, pose: Tensor, side_m: float) -> dict[str, Tensor]:
    """Errors of the most confident hypothesis, and how far the hypotheses lie apart.

    Args:
        hypotheses: of B pairs.
        pose: `(B, 3)` the true ones.
        side_m: side of a chip in metres.
    """
    answer = select(hypotheses, side_m)
    distance = torch.linalg.vector_norm(answer[:, :2] - pose[:, :2], dim=-1)
    turn = (answer[:, 2] - pose[:, 2] + 180) % 360 - 180
    position = hypotheses.pose[..., :2] * side_m
    offset = torch.linalg.vector_norm(position - position.mean(1, keepdim=True), dim=-1)
    return {
        "position_median_m": distance.quantile(0.5),
        "within_6m": (distance < 6.0).float().mean(),
        "heading_median_deg": turn.abs().quantile(0.5),
        "spread_m": offset.mean(),
    }
