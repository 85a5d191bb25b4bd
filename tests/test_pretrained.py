from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_helpers import TINY, write_tiny_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from ciper.errors import CheckpointError, ConfigError
from ciper.model.efficient import EfficientStem
from ciper.model.network import Network, normalise
from ciper.model.paper import PaperConfig, PaperNetwork
from ciper.model.pretrained import init_from_timm, initialise
from ciper.model.timm import fold_layer_scale, read_tensors, resample_positions, resize_patches
from ciper.model.two_way import PoseDecoderConfig
from ciper.model.vit import Block, Vit, VitConfig, VitPair

SQUARE = (28, 28)
ONE = VitConfig(patch_px=7, width=24, depth=2, num_heads=3, num_tokens=1)
TWO = dataclasses.replace(ONE, patch_px=8, num_tokens=2)


def random_like(state: Mapping[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: 0.2 * torch.randn(v.shape, generator=generator) for k, v in state.items()}


def timm_state(config: VitConfig = ONE) -> dict[str, Tensor]:
    """A file's content: 4 x 4 patches and a class token."""
    return random_like(Vit(config, num_patches=16).state_dict())


def write(path: Path, state: Mapping[str, Tensor], *, num_heads: int | None = 3) -> Path:
    """A file, with the number of heads beside it, since ours are no 64 numbers wide."""
    save_file(dict(state), path)
    if num_heads is not None:
        path.with_name("config.json").write_text(json.dumps({"num_heads": num_heads}))
    return path


def pair(config: VitConfig = TWO) -> VitPair:
    torch.manual_seed(3)
    return VitPair(config, ground_px=(16, 48), aerial_px=(32, 24)).eval()


def load(pair: VitPair, path: Path, seed: int = 0) -> tuple[str, ...]:
    report = init_from_timm(pair, path, ground_px=(16, 48), aerial_px=(32, 24), seed=seed)
    return report.left_out


def smooth_images(num: int, size: int) -> Tensor:
    """`(B, 3, size, size)` noise without detail below a sixth of the image."""
    noise = torch.randn(num, 3, 6, 6, generator=torch.Generator().manual_seed(7))
    return F.interpolate(noise, (size, size), mode="bicubic")


# ------------------------------------------------------------------------------------ positions


def test_positions_of_another_grid_keep_rows_and_columns() -> None:
    rows = torch.linspace(-1, 1, 4)[:, None, None].expand(4, 4, 1)
    grid = torch.cat([rows, rows.transpose(0, 1), torch.full((4, 4, 1), 5.0)], dim=-1)
    out = resample_positions(grid, (2, 6))
    assert out.shape == (2, 6, 3)
    torch.testing.assert_close(out[:, :1, 0].expand(2, 6), out[..., 0])
    torch.testing.assert_close(out[:1, :, 1].expand(2, 6), out[..., 1])
    torch.testing.assert_close(out[..., 2], torch.full((2, 6), 5.0))
    assert out[0, 0, 0] < -0.5 < 0.5 < out[1, 0, 0]
    assert (out[0, :, 1].diff() > 0).all()


def test_the_same_grid_is_not_touched() -> None:
    grid = torch.randn(3, 3, 2)
    assert resample_positions(grid, (3, 3)) is grid


# -------------------------------------------------------------------------------------- patches


def test_one_pixel_spreads_over_four_by_hand() -> None:
    # A pixel enlarged to 2 x 2 is four equal pixels: a quarter of the weight on each.
    weight = torch.tensor([[[[2.0]], [[-4.0]], [[8.0]]]])
    resized = resize_patches(weight, 2)
    torch.testing.assert_close(resized[0, :, 0, 0], torch.tensor([0.5, -1.0, 2.0]))
    torch.testing.assert_close(resized, resized[..., :1, :1].expand(1, 3, 2, 2))


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_larger_patch_gives_the_same_answer_exactly(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(5, 3, 7, 7, generator=generator)
    patch = torch.randn(4, 3, 7, 7, generator=generator)
    enlarged = F.interpolate(patch, (size, size), mode="bicubic", antialias=True)
    before = F.conv2d(patch, weight).flatten()
    torch.testing.assert_close(
        F.conv2d(enlarged, resize_patches(weight, size)).flatten(), before, rtol=1e-4, atol=1e-4
    )


def test_a_smaller_patch_answers_nearly_the_same_on_smooth_images() -> None:
    weight = F.interpolate(torch.randn(5, 3, 3, 3), (14, 14), mode="bicubic")
    image = smooth_images(3, 70)
    before = F.conv2d(image, weight, stride=14)
    small = F.interpolate(image, (40, 40), mode="bicubic", antialias=True)
    after = F.conv2d(small, resize_patches(weight, 8), stride=8)
    assert (after - before).norm() < 0.03 * before.norm()


# ------------------------------------------------------------------------------ whole transformers


def test_a_file_of_our_shape_is_taken_as_it_is(tmp_path: Path) -> None:
    state = timm_state()
    original = Vit(ONE, num_patches=16)
    original.load_state_dict(state)
    both = VitPair(ONE, ground_px=SQUARE, aerial_px=SQUARE)
    report = init_from_timm(
        both, write(tmp_path / "vit.safetensors", state), ground_px=SQUARE, aerial_px=SQUARE
    )
    assert set(report.taken) == set(state)
    assert report.resampled == report.made == report.left_out == ()
    image = torch.randn(2, 28, 28, 4)
    expected = original(image[..., :3].permute(0, 3, 1, 2))
    for tokens in (both.encode_ground(image), both.encode_aerial(image)):
        assert torch.equal(tokens.tokens, expected.tokens)
        assert torch.equal(tokens.patches, expected.patches)


def test_other_patches_and_grids(tmp_path: Path) -> None:
    state, vits = timm_state(), pair()
    path = write(tmp_path / "vit.safetensors", state)
    report = init_from_timm(vits, path, ground_px=(16, 48), aerial_px=(32, 24))
    assert report.resampled == ("patch_embed.proj.weight", "pos_embed")
    assert report.made == ("pose_token",)
    grid = state["pos_embed"][0, 1:].view(4, 4, -1)
    ground, aerial = vits.ground.pos_embed[0], vits.get_parameter("aerial_pos_embed")[0]
    assert (len(ground), len(aerial)) == (2 + 12, 2 + 12)
    for positions, size in ((ground, (2, 6)), (aerial, (4, 3))):
        assert torch.equal(positions[0], state["pos_embed"][0, 0])
        torch.testing.assert_close(positions[2:], resample_positions(grid, size).flatten(0, 1))


def test_two_encoders_both_start_from_the_file(tmp_path: Path) -> None:
    vits = pair(dataclasses.replace(TWO, is_shared=False))
    load(vits, write(tmp_path / "vit.safetensors", timm_state()))
    assert vits.aerial is not None
    for name in ("blocks.1.mlp.fc1.weight", "cls_token", "patch_embed.proj.bias"):
        assert torch.equal(vits.ground.get_parameter(name), vits.aerial.get_parameter(name))
    assert not torch.equal(vits.ground.pos_embed, vits.aerial.pos_embed)


def test_new_tokens_are_noisy_copies_of_the_class_token(tmp_path: Path) -> None:
    path = write(tmp_path / "vit.safetensors", timm_state())
    one, again, other = pair(), pair(), pair()
    for vits, seed in ((one, 0), (again, 0), (other, 1)):
        load(vits, path, seed)
    first, second = (one.ground.get_parameter(name) for name in ("cls_token", "pose_token"))
    distance = (first - second).std() / first.std()
    assert 0.05 < distance < 0.2
    assert not torch.equal(one.ground.pos_embed[0, 0], one.ground.pos_embed[0, 1])
    assert torch.equal(second, again.ground.get_parameter("pose_token"))
    assert not torch.equal(second, other.ground.get_parameter("pose_token"))


def test_layer_scale_is_folded_exactly() -> None:
    torch.manual_seed(5)
    block = Block(ONE)
    gamma1, gamma2 = torch.randn(24), torch.randn(24)
    x = torch.randn(2, 9, 24)
    y = x + gamma1 * block.attn(block.norm1(x))
    expected = y + gamma2 * block.mlp(block.norm2(y))
    for first, second in (("ls1.gamma", "ls2.gamma"), ("gamma_1", "gamma_2")):
        state = {f"blocks.0.{name}": value.clone() for name, value in block.state_dict().items()}
        scales = {f"blocks.0.{first}": gamma1, f"blocks.0.{second}": gamma2}
        folded = fold_layer_scale({**state, **scales})
        assert folded.keys() == state.keys()
        other = Block(ONE)
        other.load_state_dict({k.removeprefix("blocks.0."): v for k, v in folded.items()})
        torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5)


def test_what_is_not_used_is_reported(tmp_path: Path) -> None:
    state = timm_state(dataclasses.replace(ONE, depth=3))
    state |= {"reg_token": torch.zeros(1, 4, 24), "head.weight": torch.zeros(10, 24)}
    left_out = load(pair(), write(tmp_path / "vit.safetensors", state))
    assert {"reg_token", "head.weight", "blocks.2.norm1.weight"} <= set(left_out)
    assert not any(name.startswith("blocks.1.") for name in left_out)


def test_a_distilled_file_gives_its_token_and_heads_to_three_tokens(tmp_path: Path) -> None:
    config = dataclasses.replace(ONE, num_tokens=3)
    state = random_like(Vit(config, 16, num_features=10).state_dict())
    del state["third_token"]
    state["pos_embed"] = state["pos_embed"][:, 1:].clone()
    vits = VitPair(config, ground_px=SQUARE, aerial_px=SQUARE, num_features=10)
    path = write(tmp_path / "deit.safetensors", state)
    report = init_from_timm(vits, path, ground_px=SQUARE, aerial_px=SQUARE)
    assert report.made == ("third_token",)
    assert torch.equal(vits.ground.get_parameter("dist_token"), state["dist_token"])
    assert torch.equal(vits.ground.pos_embed[0, :2], state["pos_embed"][0, :2])
    assert torch.equal(vits.ground.head_dist.weight, state["head_dist.weight"])


def test_positions_without_the_class_token(tmp_path: Path) -> None:
    state = timm_state()
    state["pos_embed"] = state["pos_embed"][:, 1:].clone()
    vits = pair()
    load(vits, write(tmp_path / "vit.safetensors", state))
    assert vits.ground.pos_embed[0, 0].abs().max() == 0
    assert vits.ground.pos_embed[0, 1].abs().max() > 0


def test_rotary_files_leave_positions_to_chance(tmp_path: Path) -> None:
    state = {k: v for k, v in timm_state().items() if not k.endswith(("qkv.bias", "pos_embed"))}
    vits = pair()
    chance = vits.ground.pos_embed.clone()
    path = write(tmp_path / "vit.safetensors", state)
    report = init_from_timm(vits, path, ground_px=(16, 48), aerial_px=(32, 24))
    assert {"pos_embed", "blocks.0.attn.qkv.bias"} <= set(report.made)
    assert torch.equal(vits.ground.pos_embed, chance)
    assert vits.ground.get_parameter("blocks.0.attn.qkv.bias").abs().max() == 0


def test_pth_files_are_unwrapped(tmp_path: Path) -> None:
    state = timm_state()
    torch.save({"model": {k: v.half() for k, v in state.items()}, "epoch": 3}, tmp_path / "a.pth")
    tensors = read_tensors(tmp_path / "a.pth")
    assert tensors.keys() == state.keys()
    assert tensors["norm.weight"].dtype == torch.float32


def without(name: str) -> dict[str, Tensor]:
    state = timm_state()
    del state[name]
    return state


def with_patches(*shape: int) -> dict[str, Tensor]:
    return {**timm_state(), "patch_embed.proj.weight": torch.zeros(shape)}


def test_a_file_of_other_heads_is_refused(tmp_path: Path) -> None:
    """24 numbers are one head if nobody says more."""
    path = write(tmp_path / "vit.safetensors", timm_state(), num_heads=None)
    with pytest.raises(CheckpointError, match="taken to have 1 heads; expected 3: set"):
        load(pair(), path)
    write(path, timm_state(), num_heads=4)
    with pytest.raises(CheckpointError, match="taken to have 4 heads; expected 3"):
        load(pair(), path)
    (tmp_path / "config.json").write_text('{"num_heads": "3"}')
    with pytest.raises(CheckpointError, match="num_heads is '3'; expected a whole number"):
        load(pair(), path)


def test_small_files_that_would_become_large_are_refused(tmp_path: Path) -> None:
    torch.save({"norm.weight": torch.ones(1).expand(10**10)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"'norm\.weight' has more numbers than the file"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (timm_state(dataclasses.replace(ONE, width=48)), "is 48 wide; expected 24"),
        (timm_state(dataclasses.replace(ONE, depth=1)), "has 1 blocks; expected at least 2"),
        (timm_state(dataclasses.replace(ONE, mlp_ratio=2)), r"has \(48, 24\) for blocks.0.mlp.fc1"),
        (without("cls_token"), "has no cls_token"),
        (without("blocks.1.norm2.bias"), "has nothing for blocks.1.norm2.bias"),
        ({**timm_state(), "blocks.0.attn.q_norm.weight": torch.ones(8)}, "attn.q_norm.weight"),
        ({**timm_state(), "pos_embed": torch.zeros(1, 15, 24)}, "has 15 positions"),
        ({**timm_state(), "pos_embed": torch.zeros(1, 17, 1)}, "pos_embed is 1 wide; expected 24"),
        (with_patches(24, 1, 7, 7), r"patch_embed.proj.weight has shape \(24, 1, 7, 7\)"),
        (with_patches(24, 3, 7, 8), "expected square patches of three colours"),
        (with_patches(24, 3, 49), r"has shape \(24, 3, 49\)"),
    ],
)
def test_other_architectures_are_refused(
    state: dict[str, Tensor], match: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=match):
        load(pair(), write(tmp_path / "vit.safetensors", state))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_tensors(tmp_path / "cut.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        read_tensors(tmp_path / "list.pth")


# ------------------------------------------------------------------------------------ initialise


def small_paper() -> PaperNetwork:
    decoder = PoseDecoderConfig(width=24, num_heads=2, mlp_width=32, num_queries=4)
    return PaperNetwork(
        PaperConfig(
            vit=TWO,
            decoder=decoder,
            descriptor_dim=24,
            chip_px=32,
            canvas_height_px=16,
            canvas_width_px=48,
        )
    )


def test_random_changes_nothing() -> None:
    network = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert initialise(network, "random").source == "random"
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_checkpoint_of_ours(tmp_path: Path) -> None:
    path = write_tiny_weights(tmp_path / "tiny.safetensors", seed=4)
    torch.manual_seed(4)
    expected = Network(TINY).state_dict()
    network = Network(TINY)
    report = initialise(network, str(path))
    assert set(report.taken) == set(expected)
    assert all(torch.equal(expected[k], v) for k, v in network.state_dict().items())
    with pytest.raises(ConfigError, match="weights of another network"):
        initialise(small_paper(), str(path))


def test_a_timm_file_for_the_papers_network(tmp_path: Path) -> None:
    path = write(tmp_path / "vit.safetensors", timm_state())
    network = small_paper()
    report = initialise(network, str(path))
    assert report.source == str(path)
    assert torch.equal(network.get_parameter("encoder.ground.norm.bias"), timm_state()["norm.bias"])
    with pytest.raises(ConfigError, match="no vision transformer"):
        initialise(nn.Identity(), str(path))


def test_chance_is_not_frozen() -> None:
    stem = EfficientStem("efficientnet_lite0", 16, wraps=False, num_frozen=1)
    with pytest.raises(ConfigError, match='init is "random", and num_frozen_stages is above 0'):
        initialise(nn.Sequential(stem), "random")
    initialise(EfficientStem("efficientnet_lite0", 16, wraps=False), "random")


def test_unknown_starts_are_refused() -> None:
    with pytest.raises(ConfigError, match="init is 'stme'; expected random, stem"):
        initialise(nn.Identity(), "stme")
    with pytest.raises(ConfigError, match="the network has a plain stem"):
        initialise(nn.Identity(), "stem")


# ------------------------------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def real_data() -> Path:
    folder = os.environ.get("CIPER_REAL_DATA")
    if folder is None:
        pytest.skip("CIPER_REAL_DATA is unset: it names the folder of real imagery and weights")
    return Path(folder)


@pytest.fixture(scope="module")
def dinov2(real_data: Path) -> Path:
    return real_data / "weights" / "dinov2_vits14_finetuned_timm_fp16.safetensors"


@pytest.mark.parametrize("patch_px", [16, 32])
def test_dinov2_keeps_the_scale_of_its_activations(
    real_data: Path, dinov2: Path, patch_px: int
) -> None:
    import rasterio

    size = (18 * patch_px,) * 2
    vits = VitPair(VitConfig(patch_px=patch_px, depth=1), ground_px=size, aerial_px=size)
    init_from_timm(vits, dinov2, ground_px=size, aerial_px=size)
    files = sorted((real_data / "naip").glob("*.tif"))[::100]
    chips = [rasterio.open(file).read()[:, :252, :252] for file in files]
    image = torch.from_numpy(np.stack(chips)).permute(0, 2, 3, 1)
    x = normalise(image, torch.ones(image.shape[:3], dtype=torch.bool))[..., :3].permute(0, 3, 1, 2)
    source = read_tensors(dinov2)
    weight, bias = source["patch_embed.proj.weight"], source["patch_embed.proj.bias"]
    before = F.conv2d(x, weight, bias, stride=14)
    with torch.no_grad():
        after = vits.ground.patch_embed.proj(F.interpolate(x, size, mode="bicubic", antialias=True))
    assert float(after.mean()) == pytest.approx(float(before.mean()), rel=0.1, abs=0.002)
    assert float(after.std()) == pytest.approx(float(before.std()), rel=0.1)
    assert (after - before).norm() < 0.05 * (before - before.mean()).norm()


@pytest.mark.slow
def test_dinov2_fills_the_papers_network(dinov2: Path) -> None:
    network = PaperNetwork(PaperConfig(chip_px=128, canvas_height_px=64, canvas_width_px=256))
    report = initialise(network, str(dinov2))
    assert (len(report.taken), report.made, report.left_out) == (172, ("pose_token",), ())
    canvas = torch.randint(0, 256, (1, 64, 256, 3), dtype=torch.uint8)
    with torch.no_grad():
        tokens = network.ground_tokens(normalise(canvas, torch.ones(1, 64, 256, dtype=torch.bool)))
    # The pose token begins as the class token's twin.
    assert F.cosine_similarity(tokens.class_token, tokens.pose_token).item() > 0.9
    assert 0.5 < float(tokens.patches.std()) < 5
