"""A study that takes seconds, on cities of random pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ciper.data.synthetic import RenderedCity, SyntheticConfig
from ciper.model.encoder import EncoderConfig
from ciper.study.config import Condition, GridConfig, StudyConfig, quick_study
from ciper.study.store import CellStore
from ciper.study.training import Deadline, Workshop

SMALL_TRUNK = EncoderConfig(width=32, depth=1, num_heads=2, mlp_ratio=2, stem_channels=(16, 24))


def tiny_study() -> StudyConfig:
    """Two steps per training."""
    quick = quick_study()
    small = SyntheticConfig(num_cities=1, city_m=160.0, photos_per_city=4, aerials_per_city=1)
    return replace(
        quick,
        train=replace(small, photos_per_city=8),
        validation=replace(small, first_seed=quick.validation.first_seed),
        test=replace(small, first_seed=quick.test.first_seed),
        trunk=SMALL_TRUNK,
        num_pairs=8,
        curve_pairs=8,
        lr_pairs=4,
        lrs=(1e-3, 3e-3),
        batch_size=4,
        num_checks=2,
        num_shortlist=3,
        num_matched=3,
        grid=GridConfig(
            num_cities=1,
            size_m=200.0,
            num_photos=2,
            hfovs_deg=(360,),
            heading_priors_deg=(0, 180),
            conditions=(
                Condition("cloudy", aerial_hidden=0.25),
                Condition("behind a bus", photo_hidden=0.5),
            ),
        ),
    )


def random_city(config: SyntheticConfig, seed: int = 0) -> RenderedCity:
    """Pixels without meaning, cameras anywhere."""
    rng = np.random.default_rng([config.first_seed, seed])
    size_px, num = round(config.city_m / config.gsd), config.photos_per_city
    position = rng.uniform(20, config.city_m - 20, (num, 2))
    heading, height = rng.uniform(0, 360, num), np.full(num, 2.0)
    return RenderedCity(
        aerials=rng.integers(1, 256, (1, size_px, size_px, 3), dtype=np.uint8),
        canvases=rng.integers(1, 256, (num, 128, 512, 3), dtype=np.uint8),
        poses=np.column_stack([position, heading, height]),
    )


def workshop(
    folder: Path, config: StudyConfig | None = None, deadline: Deadline | None = None
) -> Workshop:
    """One whose cities need no rendering."""
    config = config or tiny_study()
    made = Workshop(
        CellStore(folder / "cells", config),
        folder / "cache",
        "cpu",
        deadline or Deadline(),
        lambda _what, _done, _total: None,
    )
    for cities in (config.train, config.validation, config.test):
        made.keep(cities, [random_city(cities)])
    return made
