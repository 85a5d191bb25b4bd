"""What turns a model's logits into probabilities; `ciper.calibrate` fits it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import exp, isfinite, log

from ciper.errors import ConfigError
from ciper.model.matcher import Evidence


@dataclass(frozen=True)
class PosteriorShape:
    """How a posterior is shaped out of logits, see `Posterior.from_logits`.

    `heading_scale` multiplies the spread that is stated of the heading: temperatures are those
    under which positions are most likely, which leave headings too wide.
    """

    coarse_temperature: float = 1.0
    fine_temperature: float = 1.0
    unrefined_offset: float = 0.0
    floor: float = 0.01
    heading_scale: float = 1.0


# Numbers that a confidence rests on, see `localize.confidence_features`.
NUM_FEATURES = 4


@dataclass(frozen=True)
class ViewCalibration:
    """What turns the logits of one photo into probabilities; see `Calibration`.

    Raises:
        ConfigError: weights for other features.
    """

    shape: PosteriorShape = field(default_factory=PosteriorShape)
    confidence: tuple[float, ...] = (0.0, 1.0, *(0.0,) * (NUM_FEATURES - 1))
    in_gallery: tuple[float, ...] = (2.0, *(0.0,) * NUM_FEATURES)

    def __post_init__(self) -> None:
        _check_weights(self.confidence, self.in_gallery)


def _check_weights(confidence: tuple[float, ...], in_gallery: tuple[float, ...]) -> None:
    for name, weights in (("confidence", confidence), ("in_gallery", in_gallery)):
        if len(weights) != 1 + NUM_FEATURES:
            raise ConfigError(
                f"calibration.{name} has {len(weights)} weights; expected {1 + NUM_FEATURES}"
            )


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities; fitted on validation cities, never on test ones.

    `wide` shapes the posteriors of full panoramas, `narrow` those of photos that see a quarter of
    the horizon or less. `confidence` and `in_gallery` are the weights of two logistic models on
    (1, `localize.confidence_features`). `plan` holds all of these for photos that look straight
    down, if it is fitted. The next three are for models of set prediction: what
    multiplies a cosine similarity, and the standard deviations of a hypothesis (per axis). Where
    nothing `is_fitted` these are numbers to start from, and none of them is a confidence.

    Raises:
        ConfigError: weights for other features, or a scale or spread that is none.
    """

    wide: PosteriorShape = field(default_factory=PosteriorShape)
    narrow: PosteriorShape = field(default_factory=PosteriorShape)
    confidence: tuple[float, ...] = (0.0, 1.0, *(0.0,) * (NUM_FEATURES - 1))
    in_gallery: tuple[float, ...] = (2.0, *(0.0,) * NUM_FEATURES)
    plan: ViewCalibration | None = None
    similarity_scale: float = 20.0
    position_sigma_m: float = 4.0
    heading_sigma_deg: float = 6.0
    is_fitted: bool = True

    def __post_init__(self) -> None:
        _check_weights(self.confidence, self.in_gallery)
        for name in ("similarity_scale", "position_sigma_m", "heading_sigma_deg"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(
                    f"calibration.{name} is {getattr(self, name):g}; expected a number above 0"
                )

    def is_fitted_to(self, evidence: Evidence) -> bool:
        """Whether confidences of photos like the one that some evidence is of are meant."""
        return self.plan is not None if evidence.is_plan else self.is_fitted

    def view(self, evidence: Evidence) -> ViewCalibration:
        """What suits the photo that some evidence is of."""
        if evidence.is_plan and self.plan is not None:
            return self.plan
        shape = self.shape(evidence.visible_share)
        return ViewCalibration(shape, self.confidence, self.in_gallery)

    def shape(self, visible_share: float) -> PosteriorShape:
        """The shape for photos that see a share of the horizon, 0 to 1.

        Between a quarter and the whole all parameters go with the logarithm of the share; what
        must stay positive goes in logarithms itself.
        """
        narrowness = min(max(-log(max(visible_share, 1e-3)) / log(4.0), 0.0), 1.0)
        steps = (1.0 - narrowness, narrowness)

        def between(name: str) -> float:
            wide, narrow = getattr(self.wide, name), getattr(self.narrow, name)
            if name == "unrefined_offset" or min(wide, narrow) <= 0:
                return float(steps[0] * wide + steps[1] * narrow)
            return exp(steps[0] * log(wide) + steps[1] * log(narrow))

        return PosteriorShape(**{f.name: between(f.name) for f in fields(PosteriorShape)})
