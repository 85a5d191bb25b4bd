"""The study's networks: four decoders on one trunk, as recipes of `ciper train`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ciper.model.encoder import EncoderConfig
from ciper.model.network import NetworkConfig
from ciper.model.paper import PaperConfig
from ciper.model.set_criterion import SetCriterionConfig, SetLossWeights
from ciper.model.two_way import PoseDecoderConfig
from ciper.study.cells import Decoder, Task, TrainingCell
from ciper.study.config import StudyConfig
from ciper.training.recipe import LossWeights, OptimConfig, TrainConfig

WARMUP_STEPS = 150


def recipe(cell: TrainingCell, study: StudyConfig) -> TrainConfig:
    """The recipe of a training."""
    num_steps = cell.num_pairs // study.batch_size
    optim = OptimConfig(
        num_steps=num_steps,
        batch_size=study.batch_size,
        lr=cell.lr,
        warmup_steps=min(WARMUP_STEPS, num_steps // 10),
        narrow_share=(0.0, 0.0),
        seed=cell.seed,
    )
    common: dict[str, Any] = {"data": study.train, "train": optim}
    if cell.decoder == "ours":
        network = NetworkConfig(encoder=study.trunk)
        return TrainConfig(network=network, loss=_loss_weights(cell.task), **common)
    pose_loss = SetCriterionConfig(pose_loss="l1" if cell.decoder == "authors" else "squared")
    return TrainConfig(
        model="paper",
        paper=paper_config(cell.decoder, study.trunk, num_tokens=cell.num_tokens),
        set_criterion=pose_loss,
        set_loss=_set_loss_weights(cell.decoder, cell.task),
        **common,
    )


def paper_config(decoder: Decoder, trunk: EncoderConfig, *, num_tokens: int) -> PaperConfig:
    """The paper's network on the study's trunk, with our inputs."""
    ours = NetworkConfig()
    return PaperConfig(
        encoder="stem",
        trunk=trunk,
        decoder=_decoder_config(decoder, trunk.width),
        descriptor_dim=trunk.width,
        pose_from="pose_token" if num_tokens == 2 else "class_token",
        chip_px=ours.chip_px,
        gsd=ours.gsd,
        canvas_height_px=ours.canvas_height_px,
        canvas_width_px=ours.canvas_width_px,
        elevation_top_deg=ours.elevation_top_deg,
        elevation_bottom_deg=ours.elevation_bottom_deg,
    )


def swapped(config: PaperConfig) -> PaperConfig:
    """The same network with its tokens' tasks exchanged (the paper's Table 5)."""
    return replace(config, descriptor_from=config.pose_from, pose_from=config.descriptor_from)


def _decoder_config(decoder: Decoder, width: int) -> PoseDecoderConfig:
    # As in Segment Anything the MLP is a little over five times as wide as the queries.
    common = PoseDecoderConfig(width=width, mlp_width=16 * width // 3)
    if decoder == "authors":
        return replace(common, queries="identical", encoding="zero", head="linear")
    return replace(common, variant="one_way" if decoder == "one_way" else "two_way")


def _loss_weights(task: Task) -> LossWeights:
    weights = LossWeights()
    if task == "retrieval":
        return replace(weights, coarse=0.0, fine=0.0)
    return replace(weights, retrieval=0.0) if task == "pose" else weights


def _set_loss_weights(decoder: Decoder, task: Task) -> SetLossWeights:
    confidence = 1.0 if decoder == "authors" else 0.2
    return SetLossWeights(
        retrieval=0.0 if task == "pose" else 1.0,
        confidence=0.0 if task == "retrieval" else confidence,
        pose=0.0 if task == "retrieval" else 1.0,
    )
