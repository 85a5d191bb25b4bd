from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ciper.config import from_dict, to_dict
from ciper.errors import ConfigError
from ciper.model.efficient import EfficientStem, InvertedResidual, convolve_framed, stages_of
from ciper.model.encoder import EncoderConfig, Stem, make_stem

LITE0 = EncoderConfig(stem="efficientnet_lite0")


def stem(*, wraps: bool = False, num_frozen: int = 0) -> EfficientStem:
    torch.manual_seed(1)
    return EfficientStem("efficientnet_lite0", 16, wraps=wraps, num_frozen=num_frozen)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet_lite0", (24, 40)),
        ("efficientnet_lite1", (24, 40)),
        ("efficientnet_lite2", (24, 48)),
    ],
)
def test_channels_follow_from_the_stem(name: str, channels: tuple[int, int]) -> None:
    config = from_dict(EncoderConfig, {"stem": name})
    assert config.stem_channels == channels
    assert from_dict(EncoderConfig, to_dict(config)) == config
    with torch.no_grad():
        fine, middle, patches = make_stem(config, wraps=False)(torch.randn(1, 32, 64, 4))
    assert fine.shape == (1, 8, 16, channels[0])
    assert middle.shape == (1, 4, 8, channels[1])
    assert patches.shape == (1, 2, 4, config.width)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="stem_channels are"):
        from_dict(EncoderConfig, {"stem": "efficientnet_lite0", "stem_channels": [16, 24]})
    with pytest.raises(ConfigError, match="num_frozen_stages is 2 for the stem 'plain'"):
        from_dict(EncoderConfig, {"num_frozen_stages": 2})
    with pytest.raises(ConfigError, match="num_frozen_stages is 5"):
        from_dict(EncoderConfig, {"stem": "efficientnet_lite0", "num_frozen_stages": 5})
    with pytest.raises(ValueError, match="no EfficientNet stages"):
        stages_of("plain")


def test_the_plain_stem_is_the_default() -> None:
    assert EncoderConfig().stem_channels == (48, 96)
    assert isinstance(make_stem(EncoderConfig(), wraps=True), Stem)


@torch.no_grad()
def test_a_rolled_panorama_has_rolled_features() -> None:
    around, flat = stem(wraps=True), stem(wraps=False)
    canvas = torch.randn(1, 32, 128, 4)
    plain, rolled = around(canvas), around(canvas.roll(16 * 3, dims=2))
    for before, after, columns in zip(plain, rolled, (4 * 3, 2 * 3, 3), strict=True):
        torch.testing.assert_close(before.roll(columns, dims=2), after, rtol=1e-4, atol=1e-4)
    moved = flat(canvas.roll(48, dims=2))[0]
    assert not torch.allclose(flat(canvas)[0].roll(12, dims=2), moved)


@torch.no_grad()
def test_batched_equals_single() -> None:
    module, images = stem(), torch.randn(3, 32, 32, 4)
    together = module(images)
    for i in range(3):
        for one, many in zip(module(images[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], many[i], rtol=1e-4, atol=1e-5)


def test_features_lie_where_they_should() -> None:
    """The centre of what a cell sees, against the cell's: +0.5 - 1 + 2 - 4 px, level by level."""
    module = stem()
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            # Equal positive weights: everything is a mean, and ReLU6 an identity.
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    image = torch.full((1, 224, 224, 4), 0.01, requires_grad=True)
    maps = module(image)
    for features, size_px, offset_px in zip(maps, (4, 8, 16), (-0.5, 1.5, -2.5), strict=True):
        cell = features.shape[1] // 2
        target = features[0, cell, cell].sum()
        (seen,) = torch.autograd.grad(target, image, retain_graph=True)
        for share in (seen.sum((0, 1, 3)), seen.sum((0, 2, 3))):
            centre = float((share * (torch.arange(224) + 0.5)).sum() / share.sum())
            assert centre - (cell + 0.5) * size_px == pytest.approx(offset_px, abs=0.01)


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "before"),
    [(3, 1, 1), (5, 1, 2), (3, 2, 0), (3, 2, 1), (5, 2, 1), (5, 2, 2)],
)
def test_gradients_in_bfloat16_are_those_of_float32(
    kernel: int, stride: int, before: int, wraps: bool
) -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(8, 8, kernel, stride=stride, groups=8)
    x, target = torch.randn(2, 16, 32, 8), torch.rand(2, 16 // stride, 32 // stride, 8)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        conv.zero_grad()
        pixels = x.to(dtype, copy=True).detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = convolve_framed(conv, pixels, before=before, wraps=wraps)
        assert (y.shape, y.dtype) == (target.shape, dtype)
        (y.float() * target).sum().backward()
        results.append([y, pixels.grad, *(p.grad for p in conv.parameters())])
    for exact, fast in zip(*results, strict=True):
        assert exact is not None
        assert fast is not None
        assert (fast.float() - exact).norm() < 0.01 * exact.norm()


def test_a_framed_convolution_by_hand() -> None:
    conv = nn.Conv2d(1, 1, 3, stride=2, bias=False)
    nn.init.constant_(conv.weight, 0)
    row = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = row[None, None, :, None].expand(1, 2, 4, 1)
    with torch.no_grad():
        conv.weight[0, 0, 1, 0], conv.weight[0, 0, 1, 2] = 1, 10  # left and right neighbour
        # The middle tap stands on columns 1 and 3, or on 0 and 2.
        after = convolve_framed(conv, x, before=0, wraps=False)[0, 0, :, 0]
        assert after.tolist() == [1 + 30, 3 + 0]
        ahead = convolve_framed(conv, x, before=1, wraps=False)[0, 0, :, 0]
        assert ahead.tolist() == [0 + 20, 2 + 40]
        around = convolve_framed(conv, x, before=0, wraps=True)[0, 0, :, 0]
        assert around.tolist() == [1 + 30, 3 + 10]
        around = convolve_framed(conv, x, before=1, wraps=True)[0, 0, :, 0]
        assert around.tolist() == [4 + 20, 2 + 40]


def test_frozen_stages_do_not_learn() -> None:
    module = stem(num_frozen=2)
    sum(features.square().mean() for features in module(torch.randn(1, 32, 32, 4))).backward()
    learns = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in learns} == {"to_eighth", "to_sixteenth", "to_patches"}
    assert all(p.requires_grad for p in stem().parameters())


def test_a_random_stem_keeps_the_scale() -> None:
    with torch.no_grad():
        maps = stem()(torch.randn(2, 64, 64, 4))
    assert all(0.1 < float(features.std()) < 5 for features in maps)
    residual = [m for m in stem().modules() if isinstance(m, InvertedResidual) and m.is_residual]
    assert len(residual) == 1 + 1 + 2


def test_validity_can_be_learned() -> None:
    module = stem()
    with torch.no_grad():
        module.first.weight[:, 3] = 0  # as a pretrained stem starts
    image = torch.randn(1, 32, 32, 4)
    F.mse_loss(module(image)[0], torch.zeros(1, 8, 8, 24)).backward()
    assert module.first.weight.grad is not None
    assert module.first.weight.grad[:, 3].abs().max() > 0
