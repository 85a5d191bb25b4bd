"""The recipe of a run: its settings, and the network, criterion and optimiser made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from ciper.config import to_dict
from ciper.data.nadir_view import NadirViewConfig
from ciper.data.synthetic import RESERVED_SEEDS, SyntheticConfig
from ciper.errors import ConfigError
from ciper.model.criterion import Criterion, CriterionConfig
from ciper.model.network import Network, NetworkConfig
from ciper.model.paper import PaperConfig, PaperNetwork
from ciper.model.released import Dataset, Origin
from ciper.model.set_criterion import SetCriterion, SetCriterionConfig, SetLossWeights


@dataclass(frozen=True)
class LossWeights:
    """Weights of `Criterion`'s losses; the last two, `REFINER_LOSSES`, are the refiner's."""

    retrieval: float = 0.3
    coarse: float = 1.0
    fine: float = 0.5
    ranking: float = 0.5
    refined_pose: float = 0.1


REFINER_LOSSES = ("ranking", "refined_pose")


@dataclass(frozen=True)
class OptimConfig:
    """Schedule, optimiser, and what a step is made of.

    The learning rate rises over `warmup_steps` and falls to 0 along a cosine at `num_steps`.
    `narrow_share` (start, end) ramps over the run how many photos become pinhole views. With
    `stop_at` the run ends early, at that step, as if it were interrupted: it can go on later, also
    with other settings.

    A step takes `accumulate` batches of `batch_size` pairs and averages their gradients. Photos
    are held against all chips of their own batch; `micro_batch` pairs are encoded at a time, so
    that a batch need not fit into memory (same gradients, encoded twice; None: all at once).

    A share `neighbour_share` of the batch are groups of pairs whose chips look alike: neighbours
    in their city and, when every `mine_every` steps (0: never) the chips of `mine_photos` photos
    are ranked by the current weights, photos with the wrong chips that they are mistaken for.

    With `trained` "plan" the plan head learns alone: what the network says of other photos and of
    chips stays as it is.

    `ema_decay` above 0 keeps a moving average of the weights, which is then what is validated and
    used. Every `validate_every` steps (0: never) `validate_pairs` pairs of the validation cities
    are scored; after `patience` validations without a better one (0: no limit) the run ends.
    """

    num_steps: int = 3000
    batch_size: int = 32
    micro_batch: int | None = None
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    max_grad_norm: float = 1.0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    ema_decay: float = 0.0
    narrow_share: tuple[float, float] = (0.1, 0.5)
    neighbour_share: float = 0.0
    mine_every: int = 0
    mine_photos: int = 1024
    validate_every: int = 0
    validate_pairs: int = 512
    patience: int = 0
    num_loaders: int = 1
    trained: Literal["all", "plan"] = "all"
    save_every: int = 200
    stop_at: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "num_loaders", "save_every", "validate_pairs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; expected 1 or more")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError(
                f"train.micro_batch is {self.micro_batch}; expected 1 or more, or none"
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay is {self.ema_decay}; expected 0 (off) to below 1")
        if not 0 <= self.neighbour_share <= 1:
            raise ConfigError(f"train.neighbour_share is {self.neighbour_share}; expected 0 to 1")
        if self.mine_every and not self.neighbour_share:
            raise ConfigError(
                f"train.mine_every is {self.mine_every}, but train.neighbour_share is 0; expected "
                "the share of the batch that mined pairs may take: set train.neighbour_share"
            )
        if self.patience and not self.validate_every:
            raise ConfigError(
                f"train.patience is {self.patience}, but train.validate_every is 0; expected how "
                "often to validate: set train.validate_every"
            )

    @property
    def last_step(self) -> int:
        """Where the run ends, or stops for now."""
        return self.num_steps if self.stop_at is None else min(self.num_steps, self.stop_at)


@dataclass(frozen=True)
class RealConfig:
    """The data set to train on in place of rendered cities.

    `spec` is vigor:ROOT, kitti:ROOT or ford:ROOT; empty for none. `split` (none: the data set's
    first), `labels`, `reading`, `heading_noise_deg` and `fov_deg` are those of
    `data.datasets.ProtocolOptions`.

    `pairs` are "random", as those of rendered cities: canvases, chips of the network's metres, the
    camera anywhere in their central half, any heading; or "published": photos squeezed to the
    ground image, and the chips of the data set's authors, shifted and turned as they would be.

    The folder `cache` keeps resized images, for those that take long to decode; none: no folder.
    Where a run validates, `validation_share` of the ground is held out of the training samples.
    """

    spec: str = ""
    split: str | None = None
    labels: Literal["corrected", "original"] = "corrected"
    reading: Literal["highlyaccurate", "ciper"] = "highlyaccurate"
    heading_noise_deg: float | None = None
    fov_deg: float = 360.0
    pairs: Literal["random", "published"] = "random"
    cache: str | None = None
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share <= 0.5:
            raise ConfigError(
                f"real.validation_share is {self.validation_share}; expected 0 to 0.5"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The whole recipe of a run.

    `model` chooses the network: ours (`network`, `criterion`, `loss`) or the paper's (`paper`,
    `set_criterion`, `set_loss`). `real` is a data set to train on; without one the cities of `data`
    are, which `cache` keeps, or its rasters, with photos as in `nadir`. `init` is where the weights
    start from: "random" (or none), "stem" or a file, see `model.pretrained.initialise`. A
    `plan_head` that is "new" starts from the chips' maps, whatever head the file holds.
    """

    model: Literal["ciper", "paper"] = "ciper"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    paper: PaperConfig = field(default_factory=PaperConfig)
    data: SyntheticConfig = field(default_factory=SyntheticConfig)
    real: RealConfig = field(default_factory=RealConfig)
    nadir: NadirViewConfig = field(default_factory=NadirViewConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    set_criterion: SetCriterionConfig = field(default_factory=SetCriterionConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    set_loss: SetLossWeights = field(default_factory=SetLossWeights)
    train: OptimConfig = field(default_factory=OptimConfig)
    cache: str = "cache/synthetic"
    init: str | None = None
    plan_head: Literal["taken", "new"] = "taken"

    def __post_init__(self) -> None:
        if self.plan_head == "new" and not self.network.has_plan_head:
            raise ConfigError(
                'plan_head is "new", but the network has none; expected one: set '
                "network.has_plan_head=true"
            )
        if self.train.trained == "plan":
            _check_plan_head(self)
        if self.data.rasters:
            _check_rasters(self)
            return
        if self.real.spec:
            _check_real(self)
            return
        _check_seeds(self.data)
        if self.train.validate_every and not self.data.validation_cities:
            raise ConfigError(
                f"train.validate_every is {self.train.validate_every}, but there is no city to "
                "validate on; expected some: set data.validation_cities"
            )

    @property
    def inputs(self) -> NetworkConfig | PaperConfig:
        """The configured network, which says what its inputs are."""
        return self.network if self.model == "ciper" else self.paper

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of every loss that the configured criterion has for the network, by name."""
        if self.model == "paper":
            return to_dict(self.set_loss)
        is_refined = self.network.refiner is not None
        weights = to_dict(self.loss)
        return {k: v for k, v in weights.items() if is_refined or k not in REFINER_LOSSES}


def _check_plan_head(config: TrainConfig) -> None:
    """Refuses to train a plan head alone that is not there, or on photos that it never sees."""
    if not config.network.has_plan_head:
        raise ConfigError(
            'train.trained is "plan", but the network has no plan head; expected one: set '
            "network.has_plan_head=true"
        )
    if not config.data.rasters:
        raise ConfigError(
            'train.trained is "plan", which learns from photos from above, but there are no '
            "rasters to cut them out of; expected some: set data.rasters"
        )
    if config.init in (None, "random", "stem"):
        raise ConfigError(
            'train.trained is "plan", which learns beside weights that stay as they are, but '
            f"init={config.init or 'none'} leaves these to chance; expected weights such as "
            "init=ground, or train.trained=all"
        )


def _check_rasters(config: TrainConfig) -> None:
    """Refuses photos from above for a network that cannot take them, and two kinds of pairs."""
    if config.real.spec:
        raise ConfigError(
            f"data.rasters and real.spec={config.real.spec} are both set; expected one of them"
        )
    if config.model != "ciper" or not config.network.has_plan_head:
        raise ConfigError(
            "data.rasters make photos that look straight down, which the network does not take; "
            'expected model="ciper" with network.has_plan_head=true'
        )
    _check_held_out(config.train, config.nadir.validation_share, "nadir.validation_share")


def _check_real(config: TrainConfig) -> None:
    """Refuses pairs that the network cannot be trained on, and to validate on nothing."""
    if config.real.pairs == "published" and config.model == "ciper":
        raise ConfigError(
            'real.pairs is "published", but our network takes canvases and chips of its own '
            'metres; expected real.pairs="random", or model="paper"'
        )
    _check_held_out(config.train, config.real.validation_share, "real.validation_share")


def _check_held_out(train: OptimConfig, share: float, setting: str) -> None:
    """Refuses to validate on nothing."""
    if train.validate_every and not share:
        raise ConfigError(
            f"train.validate_every is {train.validate_every}, but nothing is held out to "
            f"validate on; expected a share: set {setting}"
        )


def _check_seeds(data: SyntheticConfig) -> None:
    """Refuses cities that are kept for measuring, and to validate on those that are trained on."""
    training, plans, validation = data.training_seeds, data.plan_seeds, data.validation_seeds
    for setting, seeds in (
        ("first_seed", training),
        ("first_plan_seed", plans),
        ("first_validation_seed", validation),
    ):
        for name, reserved in RESERVED_SEEDS.items():
            shared = _common(seeds, reserved)
            if shared:
                raise ConfigError(
                    f"city {shared[0]} is among those to train or validate on, but is {name} "
                    f"({reserved[0]} to {reserved[-1]}); expected others: set data.{setting}"
                )
    shared = _common(training, plans)
    if shared:
        raise ConfigError(
            f"city {shared[0]} is to be procedural and to have a real plan; expected other seeds "
            "for each: set data.first_plan_seed"
        )
    shared = _common(training, validation) or _common(plans, validation)
    if shared:
        raise ConfigError(
            f"city {shared[0]} is to be trained and to be validated on; expected other cities for "
            "each: set data.first_validation_seed"
        )


def _common(some: range, others: range) -> range:
    return range(max(some.start, others.start), min(some.stop, others.stop))


def origin_of(config: TrainConfig) -> Origin | None:
    """How photos are shown to a network that was trained on published pairs; None for others."""
    real = config.real
    if not real.spec or real.pairs != "published":
        return None
    dataset = next(name for name in get_args(Dataset) if real.spec.lower().startswith(f"{name}:"))
    noise_deg = 10.0 if real.heading_noise_deg is None else real.heading_noise_deg
    return Origin(dataset, config.paper.side_m, 180.0 if dataset == "vigor" else noise_deg)


def make_network(config: TrainConfig) -> nn.Module:
    """The configured network, with random weights."""
    if config.model == "paper":
        return PaperNetwork(config.paper)
    network = Network(config.network)
    if config.train.trained == "plan" and network.plan is not None:
        network.requires_grad_(False)
        network.plan.requires_grad_()
    return network


def make_criterion(config: TrainConfig) -> nn.Module:
    """The configured network's objective; its losses are those of `TrainConfig.loss_weights`."""
    if config.model == "paper":
        return SetCriterion(config.set_criterion)
    return Criterion(config.criterion)


def make_optimiser(network: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW of all that learns; vectors and scalars (norms, biases, scales) are not decayed."""
    learning = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in learning if p.ndim > 1]
    free = [p for p in learning if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(0.9, 0.98),
    )


def learning_rate(step: int, config: OptimConfig) -> float:
    """Linear warm-up, then half a cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def narrow_shares(config: OptimConfig) -> Sequence[float]:
    """The share of pinhole photos at every step: a straight ramp."""
    first, last = config.narrow_share
    return [first + (last - first) * i / max(1, config.num_steps) for i in range(config.num_steps)]
