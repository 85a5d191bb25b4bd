"""Real photos from above: what a network that has seen simulated streets alone makes of them.

`$CIPER_REAL_DATA/naip` holds `CITY_YEAR_PLACE.tif`, the same place in several years. Photos are cut
out of one year, chips out of a later one. The network never saw either; it gets a plan head that
starts as the maps of its chips and is not trained. So what is measured is how well the aerial half
of its weights carries over to real imagery.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ciper.data.augment import AugmentConfig
from ciper.data.batches import Drawing
from ciper.data.nadir_pairs import NadirPairs, Sites
from ciper.data.nadir_view import NadirViewConfig
from ciper.data.sample import Batch
from ciper.data.synthetic import CHIP_PX
from ciper.errors import DatasetError
from ciper.gallery.inspect import inspect_raster
from ciper.metrics import pose_errors, ranks_from_similarity, recall_at_k
from ciper.model.decoder import AerialMaps
from ciper.model.network import Network
from ciper.study.measuring import (
    chance_figures,
    evaluation,
    find_pose,
    pose_evidence,
    pose_figures,
)
from ciper.study.real import VARIABLE
from ciper.training.gradients import encode, joined, split, take

NO_RASTERS = f"not measured: there is no ${VARIABLE}/naip"
PHOTO_YEAR, CHIP_YEAR = "2018", "2020"
NUM_PLACES = 96
GSD = 0.5
# Cameras stand so near to the middle of their raster, which is hardly wider than a chip.
SQUARE_M = 30.0
REACH_M = CHIP_PX * GSD / 4
SEED = 20_260_103
VIEW = NadirViewConfig(width_m=(60.0, 100.0), height_error=0.0, max_tilt_deg=3.0)
ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class NadirPlaces:
    """Photos from above and chips of the same places, a pair of each; `digest` tells them apart."""

    pairs: Batch
    digest: str


def nadir_folder() -> Path | None:
    """The rasters' folder; None where the variable is unset, or names a folder without them."""
    folder = Path(os.environ.get(VARIABLE, "")) / "naip"
    return folder if VARIABLE in os.environ and folder.is_dir() else None


def read_nadir(folder: Path) -> NadirPlaces:
    """Cuts one pair out of every place, `NUM_PLACES` of them, spread evenly over the list.

    Raises:
        DatasetError: fewer than two places are there in both years.
        RasterError: a raster is damaged.
    """
    both = list(_both_years(folder))
    if len(both) < 2:
        raise DatasetError(
            f"{folder} holds {len(both)} places of {PHOTO_YEAR} and {CHIP_YEAR}; expected files "
            f"named CITY_{PHOTO_YEAR}_PLACE.tif and CITY_{CHIP_YEAR}_PLACE.tif: correct "
            f"${VARIABLE}, or unset it"
        )
    chosen = np.unique(np.linspace(0, len(both) - 1, NUM_PLACES).round().astype(int))
    paths = [year for i in chosen for year in both[i]]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return NadirPlaces(_cut(paths), digest.hexdigest()[:12])


def _both_years(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The rasters of a place in the photos' and in the chips' year."""
    for photo in sorted(folder.glob(f"*_{PHOTO_YEAR}_*.tif")):
        city, _, place = photo.stem.rsplit("_", 2)
        chip = folder / f"{city}_{CHIP_YEAR}_{place}.tif"
        if chip.exists():
            yield photo, chip


def _cut(paths: list[Path]) -> Batch:
    """A pair per place; rasters come as photo, chip, photo, chip."""
    rasters = [inspect_raster(path) for path in paths]
    sites = Sites.of(rasters, side_m=1e4)
    sites = sites.taken(sites.raster % 2 == 0)
    own = tuple((int(raster) + 1,) for raster in sites.raster)
    sites = replace(sites, others=own, side_m=np.full(len(sites), SQUARE_M))
    colours = AugmentConfig(colour=0.0, grey_share=0.0)
    pairs = NadirPairs(rasters, sites, VIEW, (CHIP_PX, GSD), colours, Drawing(SEED))
    return pairs.pairs(np.arange(len(sites)), (0, 0))


def measure_nadir(network: Network, places: NadirPlaces) -> dict[str, float]:
    """Every photo against its own chip and those of all other places.

    Returns:
        Figures of the poses in the own chips; how often the own chip has the most evidence of all,
        and its mean rank (1 is best).
    """
    pairs = places.pairs
    network = with_plan_head(network)
    # A context each: autocast may keep the weights that it has cast.
    with evaluation(network) as device:
        centre(network, pairs.to(device))
    with evaluation(network) as device:
        codes = [encode(network, part.to(device)) for part in split(pairs, ENCODED_AT_ONCE)]
        aerial = joined(aerial for _, aerial in codes)
        photos = [take(ground, i, i + 1) for ground, _ in codes for i in range(len(ground.is_plan))]
        found = [find_pose(network, p, take(aerial, i, i + 1))[1] for i, p in enumerate(photos)]
        scores = np.stack([pose_evidence(network, photo, aerial) for photo in photos])
    ranks = ranks_from_similarity(scores, np.arange(len(photos)))
    return {
        **pose_figures(pose_errors(np.stack(found), pairs.pose.numpy().astype(np.float64))),
        "matched_recall@1": recall_at_k(ranks, 1),
        "matched_rank": float(ranks.mean()) + 1,
    }


def with_plan_head(network: Network) -> Network:
    """The same network, which reads plan views as it reads chips."""
    with torch.random.fork_rng(devices=[]):
        made = Network(replace(network.config, has_plan_head=True))
    assert made.plan is not None
    own = {k: v for k, v in network.state_dict().items() if not k.startswith("plan.")}
    made.load_state_dict(made.state_dict() | own)
    made.plan.start_from(made.maps, made.place_descriptors)
    return made.to(next(network.parameters()).device)


def centre(network: Network, pairs: Batch) -> None:
    """Takes from maps and templates what the chips' maps are on average.

    What all places have in common tells nothing of where a photo was taken, but outweighs the rest
    in a product of two maps that were not trained for each other.
    """
    assert network.plan is not None
    parts = split(pairs, ENCODED_AT_ONCE)
    codes = [network.encode_aerial(part.chip, part.is_valid) for part in parts]
    for name in ("coarse", "fine"):
        mean = torch.cat([getattr(code, name).float() for code in codes]).mean((0, 2, 3))
        for maps in (network.maps, network.plan.lift.maps):
            _less(maps, name, mean)


def _less(maps: AerialMaps, name: str, mean: Tensor) -> None:
    layer = maps.to_coarse if name == "coarse" else maps.to_fine
    layer.bias.data.sub_(mean)


def nadir_baselines(places: NadirPlaces) -> dict[str, dict[str, float]]:
    """What knowing nothing finds: the own chip's centre or a random place in its central half."""
    true = places.pairs.pose.numpy().astype(np.float64)
    return chance_figures(true, len(true), reach_m=REACH_M, seed=SEED, ranked=("matched",))
