"""Checkpoints in the format of the authors' code, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ciper.convert import outputs_of
from ciper.model.paper import RELEASED, PaperConfig, PaperNetwork
from ciper.model.released import PREFIXES

# 6 encoder heads and 8 decoder heads, as no tensor tells; every size differs from every other, and
# so do the numbers of patches: 64 of the ground image, 36 of the chip.
SMALL = replace(
    RELEASED,
    vit=replace(RELEASED.vit, patch_px=8, width=48, depth=2, mlp_ratio=3),
    decoder=replace(RELEASED.decoder, width=48, depth=2, mlp_width=56, num_queries=5),
    descriptor_dim=20,
    chip_px=48,
    gsd=71.04 / 48,
    canvas_height_px=32,
    canvas_width_px=128,
)


def random_network(config: PaperConfig = SMALL, *, seed: int = 0) -> PaperNetwork:
    """The authors' network with random weights that spread its outputs."""
    torch.manual_seed(seed)
    network = PaperNetwork(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                parameter.normal_(std=0.15)
    return network


def their_names(network: PaperNetwork) -> dict[str, Tensor]:
    """A network's weights under the names of the authors' code."""
    named = {}
    for name, value in network.state_dict().items():
        theirs, ours = next(p for p in PREFIXES.items() if name.startswith(p[1]))
        named[theirs + name.removeprefix(ours)] = value
    return named


def write_released(path: Path, tensors: Mapping[str, Any] | None = None, **extra: Any) -> Path:
    """A `.pth` file as the authors' training writes it."""
    named = their_names(random_network()) if tensors is None else dict(tensors)
    torch.save({"model": named, "optimizer": {"param_groups": []}, "epoch": 7, **extra}, path)
    return path


def write_expected(path: Path, network: PaperNetwork | None = None) -> Path:
    """Random normalised inputs of three pairs and what a network computes for them."""
    network = network or random_network()
    config, generator = network.config, torch.Generator().manual_seed(1)
    size = (config.canvas_height_px, config.canvas_width_px)
    ground = torch.randn(3, 3, *size, generator=generator)
    aerial = torch.randn(3, 3, config.chip_px, config.chip_px, generator=generator)
    outputs = {k: v.contiguous() for k, v in outputs_of(network, ground, aerial).items()}
    save_file({"ground": ground, "aerial": aerial, **outputs}, path)
    return path
