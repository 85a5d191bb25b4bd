"""A cell: one training or one evaluation with all its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ciper.study.config import Condition

Decoder = Literal["authors", "text", "one_way", "ours", "ours_refined"]
Setting = Literal["unknown", "aligned"]
Task = Literal["both", "retrieval", "pose"]
Start = Literal["random", "stem", "frozen_stem"]
PhotoView = Literal["street", "nadir"]

DECODERS: tuple[Decoder, ...] = ("authors", "text", "one_way", "ours", "ours_refined")
SETTINGS: tuple[Setting, ...] = ("unknown", "aligned")
STARTS: tuple[Start, ...] = ("random", "stem", "frozen_stem")


@dataclass(frozen=True)
class Variant:
    """What has a learning rate of its own.

    Attributes:
        decoder: of the network.
        setting: of the heading: "unknown", or "aligned" with the camera within 20 m of the centre.
        start: a plain stem from chance, or a pretrained one that learns on or is frozen.
        is_mixed: whether half of the training's photos are pinhole views, not panoramas.
    """

    decoder: Decoder
    setting: Setting = "unknown"
    start: Start = "random"
    is_mixed: bool = False

    @property
    def title(self) -> str:
        """In a progress bar."""
        start = "" if self.start == "random" else f"-{self.start}"
        return f"{self.decoder}-{self.setting}{start}{'-mixed' if self.is_mixed else ''}"


@dataclass(frozen=True)
class TrainingCell:
    """One training, measured on the test cities.

    Attributes:
        variant: that is trained.
        num_pairs: seen.
        lr: learning rate.
        seed: of weights and pairs.
        task: that is trained for.
        num_tokens: one token for both tasks, or two.
        num_checks: how often it is measured on the validation cities, the end included.
        is_tested: whether it is measured on the test cities; who chooses a learning rate is not.
    """

    variant: Variant
    num_pairs: int
    lr: float
    seed: int = 0
    task: Task = "both"
    num_tokens: int = 2
    num_checks: int = 1
    is_tested: bool = True

    @property
    def keeps_weights(self) -> bool:
        """Whether other cells need its weights: swapped tokens, searches, real photos do."""
        variant = self.variant
        is_swapped = variant.decoder == "text" and self.num_tokens == 2
        is_usual = self.is_tested and self.num_checks == 1 and variant.setting == "unknown"
        return is_usual and (is_swapped or variant.decoder == "ours")

    @property
    def title(self) -> str:
        """In a progress bar, and the beginning of the key."""
        tokens = "" if self.num_tokens == 2 else f"-{self.num_tokens}t"
        return (
            f"{self.variant.title}-{self.task}{tokens}-{self.num_pairs}p-lr{self.lr:g}-s{self.seed}"
        )


@dataclass(frozen=True)
class SwapCell:
    """A trained two-token network whose tokens change their tasks at test."""

    trained: TrainingCell

    @property
    def title(self) -> str:
        """As of a training."""
        return f"swap-{self.trained.title}"


@dataclass(frozen=True)
class SearchCell:
    """Two trained networks (or one, twice): the first proposes chips, the second finds the pose."""

    retrieval: TrainingCell
    pose: TrainingCell
    num_shortlist: int

    @property
    def title(self) -> str:
        """As of a training."""
        return f"search{self.num_shortlist}-{self.retrieval.title}-{self.pose.task}"


@dataclass(frozen=True)
class RealCell:
    """A trained network on real photos, of streets or from above; `photos_hash` tells which."""

    trained: TrainingCell
    photos_hash: str
    view: PhotoView = "street"

    @property
    def title(self) -> str:
        """As of a training."""
        view = "" if self.view == "street" else f"{self.view}-"
        return f"real-{view}{self.trained.title}"


@dataclass(frozen=True)
class GridCell:
    """A finished model on one simulated city, with one field of view and under one condition."""

    model_hash: str
    city_seed: int
    hfov_deg: int
    heading_prior_deg: int
    condition: Condition

    @property
    def title(self) -> str:
        """As of a training."""
        words = "-".join(self.condition.name.split())
        return f"grid-{self.city_seed}-{self.hfov_deg}deg-prior{self.heading_prior_deg}-{words}"


Cell = TrainingCell | SwapCell | SearchCell | RealCell | GridCell
