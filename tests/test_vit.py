from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ciper.errors import ConfigError
from ciper.model.vit import Block, Vit, VitConfig, VitPair, attend, num_patches

TINY = VitConfig(patch_px=8, width=24, depth=2, num_heads=3)
SEPARATE = VitConfig(patch_px=8, width=24, depth=2, num_heads=3, num_tokens=3, is_shared=False)


def pair(config: VitConfig = TINY) -> VitPair:
    torch.manual_seed(4)
    return VitPair(config, ground_px=(16, 48), aerial_px=(32, 32)).eval()


def image(num: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(num, height, width, 4, generator=torch.Generator().manual_seed(5))


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_vit_s_has_its_published_size() -> None:
    # timm's deit_small_patch16_224 has 22,050,664 parameters: 196 patches, one token, one head.
    config = VitConfig(num_tokens=1)
    with torch.device("meta"):
        vit = Vit(config, 196)
    assert num_parameters(vit) + 1000 * 384 + 1000 == 22_050_664


def test_names_are_those_of_timm() -> None:
    names = set(Vit(VitConfig(8, 24, 1, 3, num_tokens=1), 4).state_dict())
    block = {
        f"blocks.0.{layer}.{kind}"
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    rest = {"patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert names == block | rest | {"cls_token", "pos_embed"}


@torch.inference_mode()
def test_tokens_and_patches_of_both_views() -> None:
    for config, num_tokens in ((TINY, 2), (SEPARATE, 3)):
        views = pair(config)
        ground = views.encode_ground(image(2, 16, 48))
        aerial = views.encode_aerial(image(2, 32, 32))
        assert ground.tokens.shape == aerial.tokens.shape == (2, num_tokens, 24)
        assert ground.patches.shape == (2, 2 * 6, 24)
        assert aerial.patches.shape == (2, 4 * 4, 24)
        assert torch.equal(ground.class_token, ground.tokens[:, 0])
        assert torch.equal(ground.pose_token, ground.tokens[:, num_tokens - 1])


def test_a_shared_encoder_has_two_sets_of_positions_only() -> None:
    shared, separate = pair(), pair(VitConfig(8, 24, 2, 3, is_shared=False))
    positions = (2 + 16) * 24
    assert num_parameters(shared) == num_parameters(shared.ground) + positions
    aerial = separate.aerial
    assert aerial is not None
    assert num_parameters(separate) == num_parameters(separate.ground) + num_parameters(aerial)
    assert num_parameters(aerial) - positions == num_parameters(shared.ground) - (2 + 12) * 24


@torch.inference_mode()
def test_batched_equals_single() -> None:
    for config in (TINY, SEPARATE):
        views, images = pair(config), image(3, 16, 48)
        together = views.encode_ground(images)
        for i in range(3):
            alone = views.encode_ground(images[i : i + 1])
            torch.testing.assert_close(alone.tokens[0], together.tokens[i])
            torch.testing.assert_close(alone.patches[0], together.patches[i])


def test_attention_is_the_scaled_dot_product() -> None:
    generator = torch.Generator().manual_seed(6)
    query, key, value = (torch.randn(2, 3, n, 8, generator=generator) for n in (5, 7, 7))
    weights = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
    torch.testing.assert_close(attend(query, key, value), weights @ value)
    half = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), weights @ value, rtol=0.05, atol=0.02)


@torch.inference_mode()
def test_a_block_is_torchs_pre_norm_encoder_layer() -> None:
    torch.manual_seed(7)
    block = Block(TINY).eval()
    layer = nn.TransformerEncoderLayer(
        24, 3, 96, 0.0, F.gelu, layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    layer.self_attn.in_proj_weight.copy_(block.attn.qkv.weight)
    layer.self_attn.in_proj_bias.copy_(block.attn.qkv.bias)
    for theirs, ours in (
        (layer.self_attn.out_proj, block.attn.proj),
        (layer.linear1, block.mlp.fc1),
        (layer.linear2, block.mlp.fc2),
        (layer.norm1, block.norm1),
        (layer.norm2, block.norm2),
    ):
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(block(x), layer(x))


@torch.inference_mode()
def test_patches_go_row_by_row() -> None:
    views = pair(VitConfig(8, 24, 0, 3))
    dark = torch.zeros(1, 16, 48, 4)
    lit = dark.clone()
    lit[0, 8:16, 32:40, :3] = 1.0  # row 1, column 4 of 2 x 6 patches
    changed = views.encode_ground(lit).patches - views.encode_ground(dark).patches
    assert changed.abs().amax(-1)[0].nonzero().flatten().tolist() == [1 * 6 + 4]


@torch.inference_mode()
def test_validity_is_not_looked_at() -> None:
    views, images = pair(), image(1, 32, 32)
    masked = images.clone()
    masked[..., 3] = 0.0
    assert torch.equal(views.encode_aerial(images).tokens, views.encode_aerial(masked).tokens)


def test_patches_must_fill_the_image() -> None:
    assert num_patches((256, 1024), VitConfig()) == 1024
    with pytest.raises(ConfigError, match="250 x 1024 px cannot be cut into patches of 16 px"):
        num_patches((250, 1024), VitConfig())
    with pytest.raises(ConfigError, match="width 100 cannot be split"):
        VitConfig(width=100)
