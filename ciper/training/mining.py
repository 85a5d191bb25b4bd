"""Hard negatives out of the current gallery: which wrong chips photos are mistaken for now."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ciper.data.batches import Pairs
from ciper.data.neighbours import GROUP_SIZE
from ciper.model.criterion import wrong_chips
from ciper.training.gradients import LABELS, autocast, encode, with_labels
from ciper.training.recipe import OptimConfig

PHOTOS_AT_ONCE = 64


@torch.no_grad()
def mine(
    network: nn.Module, pairs: Pairs, config: OptimConfig, step: int, device: torch.device
) -> NDArray[np.int64]:
    """Ranks a sample's chips for the sample's photos, by descriptors.

    Args:
        network: as it is now.
        pairs: the training pairs; the sample is a function of their seed and `step`.
        config: size of the sample and of the batches, precision.
        step: that has been reached.
        device: of the network.

    Returns:
        `(M, GROUP_SIZE)` photos as `Pairs.sample` counts them: a photo, and those in whose chips
        it is not, but which look to the network most like where it is.
    """
    photos = pairs.sample(step, config.mine_photos)
    queries, places, labels = [], [], []
    for first in range(0, len(photos), config.batch_size):
        chosen = photos[first : first + config.batch_size]
        batch = pairs.pairs(chosen, (step, first), narrow_share=0.0).to(device)
        with autocast(device, config.precision):
            ground, aerial = encode(network, batch)
        queries.append(ground.descriptor.float())
        places.append(aerial.descriptors.float())
        labels.append(batch)
    joined = {name: torch.cat([getattr(b, name) for b in labels]) for name in LABELS}
    is_wrong = wrong_chips(with_labels(labels[0], joined))
    rivals = hardest(torch.cat(queries), torch.cat(places), is_wrong)
    table = np.column_stack([photos, photos[rivals.cpu().numpy()]])
    has_rivals = (is_wrong.sum(1) >= GROUP_SIZE - 1).cpu().numpy()
    return np.asarray(table[has_rivals])


def hardest(queries: Tensor, places: Tensor, is_wrong: Tensor) -> Tensor:
    """The most similar wrong chips of every photo, `(M, GROUP_SIZE - 1)`, best first.

    Args:
        queries: `(M, D)` descriptors of photos.
        places: `(M, P, D)` descriptors of chips; a chip is as similar as its best place.
        is_wrong: `(M, M)` chip j does not hold photo i.
    """
    chosen = []
    for some, wrong in zip(
        queries.split(PHOTOS_AT_ONCE), is_wrong.split(PHOTOS_AT_ONCE), strict=True
    ):
        similarity = torch.einsum("nd,mpd->nmp", some, places).amax(-1)
        similarity = similarity.masked_fill(~wrong, -torch.inf)
        chosen.append(similarity.topk(GROUP_SIZE - 1, dim=1).indices)
    return torch.cat(chosen)
