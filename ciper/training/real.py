"""A data set of the field as a run's pairs: trained on, held out, or skipped as damaged."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from ciper.data.batches import Drawing
from ciper.data.datasets import ProtocolOptions, parse_spec, read_protocol
from ciper.data.image_cache import ImageCache
from ciper.data.pair_views import NetworkInput, PairViews
from ciper.data.pairs import Damage, Places, RealPairs, hold_out
from ciper.data.preprocess import CanvasSpec
from ciper.data.protocol import Protocol, Sample
from ciper.errors import ConfigError, OutputError
from ciper.files import written_whole
from ciper.training.recipe import RealConfig, TrainConfig
from ciper.training.team import Team

# VIGOR's chips are up to 9 % smaller than their mean; KITTI's and Ford's differ by 12 %.
_SIDE_TOLERANCE = 0.11


def open_pairs(config: TrainConfig, team: Team) -> tuple[RealPairs, RealPairs | None]:
    """The pairs of a recipe's data set to train on, and those to validate on if the run does.

    Each process makes its part of every batch.

    Raises:
        ConfigError: a setting does not suit the data set or the network.
        DatasetError: a folder or a label file is not as published.
        OutputError: the cache cannot be written.
    """
    real, train = config.real, config.train
    protocol = read_protocol(real.spec, _options(real, train.seed))
    views = PairViews(
        images=ImageCache(_cache_of(real)),
        wanted=_input_of(config),
        kind=real.pairs,
        reading=real.reading,
        augment=config.data.augment,
    )
    if real.pairs == "published":
        _check_sides(protocol, views.wanted)
    held = hold_out(protocol, real.validation_share if train.validate_every else 0.0, train.seed)
    damage = Damage(len(protocol.samples))

    def pairs_of(samples: tuple[Sample, ...], part: tuple[int, int], share: float) -> RealPairs:
        places = Places.of(samples, protocol.dataset)
        drawing = Drawing(train.seed, share, part)
        return RealPairs(samples, places, views, damage, drawing)

    for samples, what in ((held.training, "train"), (held.validation, "validate")):
        if not samples and (what == "train" or train.validate_every):
            raise ConfigError(
                f"{real.spec} has {len(protocol.samples)} samples and none to {what} on with "
                f"real.validation_share {real.validation_share:g}; expected some: change the "
                "share or train.seed, or set train.validate_every=0"
            )
    training = pairs_of(held.training, (team.rank, team.size), train.neighbour_share)
    if not held.validation:
        return training, None
    return training, pairs_of(held.validation, (0, 1), 0.0)


def write_damaged(out: Path, reasons: Mapping[str, str]) -> None:
    """Lists the samples that were skipped in RUN/damaged.csv; nothing is written if none were.

    Raises:
        OutputError: it cannot be written.
    """
    if not reasons:
        return
    path = out / "damaged.csv"
    try:
        with written_whole(path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "reason"])
            writer.writerows(sorted(reasons.items()))
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error.strerror}); free some space or go elsewhere"
        ) from error


def _options(real: RealConfig, seed: int) -> ProtocolOptions:
    return ProtocolOptions(
        split=real.split,
        part="train",
        labels=real.labels,
        reading=real.reading,
        fov_deg=real.fov_deg,
        heading_noise_deg=real.heading_noise_deg,
        seed=seed,
    )


def _input_of(config: TrainConfig) -> NetworkInput:
    network = config.inputs
    return NetworkInput(
        chip_px=network.chip_px,
        gsd=network.gsd,
        canvas=CanvasSpec(
            network.canvas_height_px,
            network.canvas_width_px,
            network.elevation_top_deg,
            network.elevation_bottom_deg,
        ),
    )


def _cache_of(real: RealConfig) -> Path | None:
    """The folder of resized images, which may not lie in the data set's own."""
    parsed = parse_spec(real.spec)
    if real.cache is None or parsed is None:
        return None
    cache, root = Path(real.cache).resolve(), parsed[1].resolve()
    if cache.is_relative_to(root):
        raise ConfigError(
            f"real.cache is {real.cache}, in the data set's folder {root}, which is not written "
            "to; expected another place"
        )
    return cache


def _check_sides(protocol: Protocol, wanted: NetworkInput) -> None:
    """Refuses a network whose chips have other metres than the published ones."""
    for sample in protocol.samples:
        if abs(sample.cut.side_m / wanted.side_m - 1) > _SIDE_TOLERANCE:
            raise ConfigError(
                f"the network takes chips of {wanted.side_m:.1f} m, and those of "
                f"{protocol.dataset} have {sample.cut.side_m:.1f} m; expected the same up to "
                f"{_SIDE_TOLERANCE:.0%}: set paper.gsd"
            )
