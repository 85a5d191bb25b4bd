from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ciper.config import from_dict, load_config, to_dict
from ciper.errors import ConfigError
from ciper.model.encoder import EncoderConfig
from ciper.model.paper import RELEASED, PaperConfig, PaperNetwork, resize
from ciper.model.set_criterion import SetLossWeights
from ciper.model.two_way import PoseDecoderConfig
from ciper.model.vit import VitConfig
from ciper.training.recipe import TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL_DECODER = PoseDecoderConfig(width=24, num_heads=3, mlp_width=32, num_queries=5)
TINY_VIT = PaperConfig(
    vit=VitConfig(patch_px=16, width=24, depth=2, num_heads=3),
    decoder=SMALL_DECODER,
    descriptor_dim=24,
    chip_px=64,
    gsd=0.5,
    canvas_height_px=32,
    canvas_width_px=96,
)
TINY_STEM = replace(
    TINY_VIT,
    encoder="stem",
    trunk=EncoderConfig(width=24, depth=1, num_heads=3, stem_channels=(8, 12)),
)
TINY_RELEASED = replace(
    TINY_VIT,
    vit=VitConfig(patch_px=16, width=24, depth=2, num_heads=3, num_tokens=3, is_shared=False),
    decoder=replace(SMALL_DECODER, queries="identical", encoding="zero", head="linear"),
    descriptor="released",
    descriptor_dim=10,
)
ALL = {"vit": TINY_VIT, "stem": TINY_STEM, "released": TINY_RELEASED}


def make(config: PaperConfig) -> PaperNetwork:
    torch.manual_seed(13)
    return PaperNetwork(config).eval()


def images(num: int, config: PaperConfig = TINY_VIT) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(14)

    def one(height: int, width: int) -> tuple[Tensor, Tensor]:
        shape = (num, height, width, 3)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return pixels, torch.ones(shape[:3], dtype=torch.bool)

    ground = one(config.canvas_height_px, config.canvas_width_px)
    return (*ground, *one(config.chip_px, config.chip_px))


def num_parameters(config: PaperConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in PaperNetwork(config).parameters())


def test_the_released_network_has_exactly_the_published_parameters() -> None:
    patch_32 = replace(RELEASED, vit=replace(RELEASED.vit, patch_px=32))
    assert num_parameters(patch_32) == 52_536_421
    assert num_parameters(RELEASED) == 51_356_773  # 51.36 M


def test_the_papers_text_is_smaller() -> None:
    assert num_parameters(PaperConfig()) == 28_815_813
    separate = PaperConfig(vit=VitConfig(is_shared=False))
    assert num_parameters(separate) == 50_406_213


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_batched_equals_single(name: str) -> None:
    network = make(ALL[name])
    canvas, is_visible, chip, is_valid = images(3)
    ground = network.encode_ground(canvas, is_visible)
    aerial = network.encode_aerial(chip, is_valid)
    hypotheses = network.decode(ground, aerial.patches)
    for i in range(3):
        one = slice(i, i + 1)
        alone = network.encode_ground(canvas[one], is_visible[one])
        alone_aerial = network.encode_aerial(chip[one], is_valid[one])
        torch.testing.assert_close(alone.descriptor[0], ground.descriptor[i])
        torch.testing.assert_close(alone_aerial.descriptors[0], aerial.descriptors[i])
        found = network.decode(alone, alone_aerial.patches)
        torch.testing.assert_close(found.logit[0], hypotheses.logit[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pose[0], hypotheses.pose[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_one_photo_meets_many_chips(name: str) -> None:
    network = make(ALL[name])
    canvas, is_visible, chip, is_valid = images(3)
    ground = network.encode_ground(canvas[:1], is_visible[:1])
    patches = network.encode_aerial(chip, is_valid).patches
    many = network.decode(ground, patches)
    for i in range(3):
        single = network.decode(ground, patches[i : i + 1])
        torch.testing.assert_close(single.pose[0], many.pose[i], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_shapes_and_unit_descriptors() -> None:
    for config in ALL.values():
        network = make(config)
        canvas, is_visible, chip, is_valid = images(2)
        ground = network.encode_ground(canvas, is_visible)
        aerial = network.encode_aerial(chip, is_valid)
        assert ground.descriptor.shape == (2, config.descriptor_dim)
        assert ground.pose_token.shape == (2, 24)
        assert aerial.descriptors.shape == (2, 1, config.descriptor_dim)
        assert aerial.patches.shape == (2, 16, 24)
        for descriptors in (ground.descriptor, aerial.descriptors):
            torch.testing.assert_close(descriptors.norm(dim=-1), torch.ones(descriptors.shape[:-1]))


@torch.inference_mode()
def test_tokens_can_be_one_two_or_swapped() -> None:
    canvas, is_visible, _, _ = images(1)
    network = make(TINY_VIT)
    two = network.encode_ground(canvas, is_visible)
    swapped = replace(TINY_VIT, descriptor_from="pose_token", pose_from="class_token")
    network.config = swapped
    other = network.encode_ground(canvas, is_visible)
    unit = torch.nn.functional.normalize(two.pose_token, dim=-1)
    torch.testing.assert_close(other.descriptor, unit)
    torch.testing.assert_close(
        torch.nn.functional.normalize(other.pose_token, dim=-1), two.descriptor
    )
    one = make(replace(TINY_VIT, vit=replace(TINY_VIT.vit, num_tokens=1)))
    both = one.encode_ground(canvas, is_visible)
    unit = torch.nn.functional.normalize(both.pose_token, dim=-1)
    torch.testing.assert_close(both.descriptor, unit)


@torch.inference_mode()
def test_invalid_pixels_are_not_seen() -> None:
    network = make(TINY_VIT)
    canvas, is_visible, _, _ = images(1)
    is_visible[:, :, 40:] = False
    garbage = canvas.clone()
    garbage[:, :, 40:] = 255
    first, second = (network.encode_ground(c, is_visible).descriptor for c in (canvas, garbage))
    assert torch.equal(first, second)


@torch.inference_mode()
def test_images_of_other_sizes_are_resized() -> None:
    image = torch.arange(4.0).view(1, 2, 2, 1)
    assert resize(image, (2, 2)) is image
    halved = resize(image.repeat_interleave(2, 1).repeat_interleave(2, 2), (1, 1))
    torch.testing.assert_close(halved, torch.full((1, 1, 1, 1), 1.5))
    network = make(TINY_VIT)
    canvas, is_visible, chip, is_valid = images(1, replace(TINY_VIT, chip_px=128))
    assert network.encode_aerial(chip, is_valid).patches.shape == (1, 16, 24)
    assert network.encode_ground(canvas, is_visible).descriptor.shape == (1, 24)


@pytest.mark.parametrize("name", ["paper_vigor", "paper_kitti", "paper_small"])
def test_configurations_describe_the_network(name: str) -> None:
    recipe = load_config(TrainConfig, CONFIGS / f"{name}.toml")
    assert recipe.model == "paper"
    assert recipe.set_loss == SetLossWeights(retrieval=1.0, confidence=0.2, pose=1.0)
    config = recipe.paper
    assert from_dict(PaperConfig, to_dict(config)) == config
    # A chip has the same side in metres in the data, which are 256 px, and in the network.
    assert config.side_m == pytest.approx(256 * recipe.data.gsd)
    num_millions = {"paper_vigor": 28.82, "paper_kitti": 29.11, "paper_small": 2.20}[name]
    assert num_parameters(config) / 1e6 == pytest.approx(num_millions, abs=0.005)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="decoder is 384 wide and the encoder 192"):
        PaperConfig(vit=VitConfig(width=192))
    with pytest.raises(ConfigError, match=r"set paper\.descriptor_dim=384"):
        PaperConfig(descriptor_dim=1000)
    with pytest.raises(ConfigError, match="num_tokens=3"):
        PaperConfig(descriptor="released", descriptor_dim=1000)


@torch.inference_mode()
def test_the_authors_network_is_reproduced() -> None:
    if "CIPER_REAL_DATA" not in os.environ:
        pytest.skip("CIPER_REAL_DATA is not set: no checkpoint of the authors to compare with")
    folder = Path(os.environ["CIPER_REAL_DATA"]) / "released_checkpoint" / "tiny_p16"
    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    network = make(
        PaperConfig(
            vit=VitConfig(width=48, depth=3, num_tokens=3, is_shared=False),
            decoder=replace(RELEASED.decoder, width=48, num_queries=8),
            descriptor="released",
            descriptor_dim=40,
            chip_px=128,
            canvas_height_px=64,
            canvas_width_px=256,
        )
    )
    ours = {
        "query_net": "encoder.ground",
        "reference_net": "encoder.aerial",
        "two_way_decoder": "decoder",
    }
    split = {name: name.partition(".") for name in weights}
    network.load_state_dict({f"{ours[a]}.{b}": weights[n] for n, (a, _, b) in split.items()})
    expected = load_file(folder / "expected.safetensors")
    ground = network.ground_tokens(expected["ground"].permute(0, 2, 3, 1))
    aerial = network.aerial_tokens(expected["aerial"].permute(0, 2, 3, 1))
    code = network.ground_code(ground, torch.ones(len(ground.tokens)))
    hypotheses = network.decode(code, aerial.patches)
    found = {
        "ground_descriptor": network.ground_features(ground),
        "aerial_descriptor": network.aerial_features(aerial),
        "ground_pose_token": ground.pose_token,
        "aerial_pose_token": aerial.pose_token,
        "aerial_patches": aerial.patches,
        "pred_logits": hypotheses.logit,
        "pred_boxes": hypotheses.pose,
    }
    for name, value in found.items():
        assert float((value - expected[name]).abs().max()) < 1e-4, name
