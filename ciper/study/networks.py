"""The study's networks: four decoders on one trunk, as recipes of `ciper train`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ciper.errors import DependencyError
from ciper.model.criterion import CriterionConfig
from ciper.model.efficient import StemName
from ciper.model.encoder import PLAIN_CHANNELS, EncoderConfig
from ciper.model.lite import lite_weights
from ciper.model.network import NetworkConfig
from ciper.model.paper import PaperConfig
from ciper.model.refine import RefinerConfig
from ciper.model.set_criterion import SetCriterionConfig, SetLossWeights
from ciper.model.two_way import PoseDecoderConfig
from ciper.study.cells import STARTS, Decoder, Start, Task, TrainingCell
from ciper.study.config import StudyConfig
from ciper.study.pairs import ALIGNED
from ciper.training.recipe import LossWeights, OptimConfig, TrainConfig

WARMUP_STEPS = 150
MIXED_SHARE = 0.5
REFINER = RefinerConfig(width=48, depth=2)
PRETRAINED: StemName = "efficientnet_lite0"
NUM_STAGES = 4


def recipe(cell: TrainingCell, study: StudyConfig) -> TrainConfig:
    """The recipe of a training."""
    variant, num_steps = cell.variant, cell.num_pairs // study.batch_size
    narrow_share = MIXED_SHARE if variant.is_mixed else 0.0
    optim = OptimConfig(
        num_steps=num_steps,
        batch_size=study.batch_size,
        lr=cell.lr,
        warmup_steps=min(WARMUP_STEPS, num_steps // 10),
        narrow_share=(narrow_share, narrow_share),
        seed=cell.seed,
    )
    common: dict[str, Any] = {"data": study.train, "train": optim}
    trunk = started(study.trunk, variant.start)
    if variant.decoder in ("ours", "ours_refined"):
        refiner = REFINER if variant.decoder == "ours_refined" else None
        return TrainConfig(
            network=NetworkConfig(encoder=trunk, refiner=refiner),
            criterion=_criterion(cell),
            loss=_loss_weights(cell.task),
            init=None if variant.start == "random" else "stem",
            **common,
        )
    pose_loss = SetCriterionConfig(pose_loss="l1" if variant.decoder == "authors" else "squared")
    return TrainConfig(
        model="paper",
        paper=paper_config(variant.decoder, trunk, num_tokens=cell.num_tokens),
        set_criterion=pose_loss,
        set_loss=_set_loss_weights(variant.decoder, cell.task),
        **common,
    )


def started(trunk: EncoderConfig, start: Start) -> EncoderConfig:
    """The trunk with the stem of a start."""
    if start == "random":
        return trunk
    num_frozen = NUM_STAGES if start == "frozen_stem" else 0
    # An EfficientNet has channels of its own.
    return replace(
        trunk, stem=PRETRAINED, stem_channels=PLAIN_CHANNELS, num_frozen_stages=num_frozen
    )


def refused_starts() -> dict[Start, str]:
    """Starts whose weights are not installed, and what to do about it."""
    try:
        lite_weights(PRETRAINED)
    except DependencyError as error:
        return {start: str(error) for start in STARTS if start != "random"}
    return {}


def paper_config(decoder: Decoder, trunk: EncoderConfig, *, num_tokens: int) -> PaperConfig:
    """The paper's network on the study's trunk, with our inputs."""
    ours = NetworkConfig()
    return PaperConfig(
        encoder="stem",
        trunk=replace(trunk, num_tokens=num_tokens),
        decoder=_decoder_config(decoder, trunk.width),
        descriptor_dim=trunk.width,
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


def _criterion(cell: TrainingCell) -> CriterionConfig:
    config = CriterionConfig(known=ALIGNED if cell.variant.setting == "aligned" else None)
    # Who is trained for poses alone is not told which chips are wrong.
    return replace(config, num_negative_chips=0) if cell.task == "pose" else config


def _loss_weights(task: Task) -> LossWeights:
    weights = LossWeights()
    if task == "retrieval":
        return replace(weights, coarse=0.0, fine=0.0, ranking=0.0, refined_pose=0.0)
    return replace(weights, retrieval=0.0) if task == "pose" else weights


def _set_loss_weights(decoder: Decoder, task: Task) -> SetLossWeights:
    confidence = 1.0 if decoder == "authors" else 0.2
    return SetLossWeights(
        retrieval=0.0 if task == "pose" else 1.0,
        confidence=0.0 if task == "retrieval" else confidence,
        pose=0.0 if task == "retrieval" else 1.0,
    )
