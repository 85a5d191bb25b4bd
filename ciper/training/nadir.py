"""Rasters of some places as a run's pairs of photos looking straight down and chips."""

from __future__ import annotations

from ciper.data.batches import Drawing
from ciper.data.nadir_pairs import NadirPairs, Sites
from ciper.data.pairs import held_apart
from ciper.errors import ConfigError
from ciper.gallery.inspect import expand_rasters, inspect_raster
from ciper.training.recipe import TrainConfig
from ciper.training.team import Team

# Cameras of one site are as near to each other as two chips of a gallery.
_SITE_M = 64.0
# Cameras lie within 32 m of their site along both axes, the ends of their chips within 128 m.
_MARGIN_M = 260.0


def open_nadir_pairs(config: TrainConfig, team: Team) -> tuple[NadirPairs, NadirPairs | None]:
    """The pairs of a recipe's rasters to train on, and those to validate on if the run does.

    Each process makes its part of every batch.

    Raises:
        ConfigError: nothing is left to train or to validate on.
        RasterError: there is no raster, or one that cannot be read.
    """
    train, named = config.train, config.data.rasters
    paths = expand_rasters([named] if isinstance(named, str) else named)
    rasters = [inspect_raster(path) for path in paths]
    sites = Sites.of(rasters, _SITE_M)
    share = config.nadir.validation_share if train.validate_every else 0.0
    is_training, is_validation = held_apart(sites.geographic, share, train.seed, margin_m=_MARGIN_M)
    size = config.network.chip_px, config.network.gsd

    def pairs_of(some: Sites, drawing: Drawing) -> NadirPairs:
        # Every thread opens its own: loaders, this one, and those of the validation.
        max_open = max(16, 256 // (train.num_loaders + 2))
        return NadirPairs(rasters, some, config.nadir, size, config.data.augment, drawing, max_open)

    for chosen, what in ((is_training, "train"), (is_validation, "validate")):
        if not chosen.any() and (what == "train" or train.validate_every):
            raise ConfigError(
                f"the rasters have {len(sites)} sites and none to {what} on with "
                f"nadir.validation_share {config.nadir.validation_share:g}; expected some: change "
                "the share or train.seed, or set train.validate_every=0"
            )
    drawing = Drawing(train.seed, train.neighbour_share, (team.rank, team.size))
    training = pairs_of(sites.taken(is_training), drawing)
    if not is_validation.any():
        return training, None
    return training, pairs_of(sites.taken(is_validation), Drawing(train.seed))
