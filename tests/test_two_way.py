from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ciper.errors import ConfigError
from ciper.model.two_way import (
    PoseDecoder,
    PoseDecoderConfig,
    TwoWayLayer,
    hypothesis_poses,
    pose_targets,
    sine_encoding,
)

TINY = PoseDecoderConfig(width=32, num_heads=4, mlp_width=48, num_queries=5)
AUTHORS = PoseDecoderConfig(
    width=32,
    num_heads=4,
    mlp_width=48,
    num_queries=5,
    queries="identical",
    encoding="zero",
    head="linear",
)
VARIANTS: list[dict[str, Any]] = [
    dict(zip(("variant", "queries", "encoding", "head"), names, strict=True))
    for names in itertools.product(
        ("two_way", "one_way"), ("learned", "identical"), ("sine", "zero"), ("mlp", "linear")
    )
]


def decoder(config: PoseDecoderConfig) -> PoseDecoder:
    torch.manual_seed(9)
    return PoseDecoder(config).eval()


def inputs(num: int, width: int = 32, num_patches: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10)
    token = torch.randn(num, width, generator=generator)
    return token, torch.randn(num, num_patches, width, generator=generator)


# Side 100 m. tx counts to the south, ty to the east; the angle less 180 deg is counter-clockwise.
HAND_VALUES = [
    ((-0.10, 0.20, -1.0, 0.0), (20.0, 10.0, 0.0)),  # north-east of the centre, looks north
    ((0.10, 0.20, 0.0, 1.0), (20.0, -10.0, 90.0)),  # south-east, looks east
    ((0.10, -0.20, 1.0, 0.0), (-20.0, -10.0, 180.0)),  # south-west, looks south
    ((-0.10, -0.20, 0.0, -1.0), (-20.0, 10.0, 270.0)),  # north-west, looks west
]


@pytest.mark.parametrize(("hypothesis", "pose"), HAND_VALUES)
def test_poses_in_all_quadrants(hypothesis: tuple[float, ...], pose: tuple[float, ...]) -> None:
    given_pose, expected = torch.tensor(hypothesis), torch.tensor(pose)
    torch.testing.assert_close(hypothesis_poses(given_pose, 100.0), expected)
    # cos and sin need not be of unit length.
    scaled = given_pose * torch.tensor([1.0, 1.0, 3.0, 3.0])
    torch.testing.assert_close(hypothesis_poses(scaled, 100.0), expected)
    torch.testing.assert_close(pose_targets(expected, 100.0), given_pose, atol=1e-6, rtol=0)


@given(st.floats(-60, 60), st.floats(-60, 60), st.floats(0, 359.9), st.floats(50, 200))
def test_poses_round_trip(x_m: float, y_m: float, heading_deg: float, side_m: float) -> None:
    pose = torch.tensor([x_m, y_m, heading_deg], dtype=torch.float64)
    back = hypothesis_poses(pose_targets(pose, side_m), side_m)
    torch.testing.assert_close(back[:2], pose[:2])
    assert abs((float(back[2] - pose[2]) + 180) % 360 - 180) < 1e-6
    assert 0.0 <= float(back[2]) < 360.0


def test_every_chip_may_have_its_own_side() -> None:
    pose = torch.tensor([[[0.1, 0.2, -1.0, 0.0]], [[0.1, 0.2, -1.0, 0.0]]])
    out = hypothesis_poses(pose, torch.tensor([[50.0], [100.0]]))
    torch.testing.assert_close(out[:, 0, :2], torch.tensor([[10.0, -5.0], [20.0, -10.0]]))


@pytest.mark.parametrize("names", VARIANTS, ids=lambda names: "-".join(names.values()))
@torch.inference_mode()
def test_batched_equals_single(names: dict[str, Any]) -> None:
    network = decoder(replace(TINY, **names))
    tokens, patches = inputs(3)
    together = network(tokens, patches)
    assert together.logit.shape == (3, 5)
    assert together.pose.shape == (3, 5, 4)
    for i in range(3):
        alone = network(tokens[i : i + 1], patches[i : i + 1])
        torch.testing.assert_close(alone.logit[0], together.logit[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.pose[0], together.pose[i], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_identical_queries_have_no_spread_and_learned_ones_have() -> None:
    tokens, patches = inputs(3)
    void = decoder(AUTHORS)(tokens, patches)
    assert float((void.pose - void.pose[:, :1]).abs().max()) == 0.0
    assert float((void.logit - void.logit[:, :1]).abs().max()) == 0.0
    spread = decoder(TINY)(tokens, patches).pose.std(1)
    assert float(spread.min()) > 1e-3


@torch.inference_mode()
def test_without_encodings_the_decoder_does_not_know_where_a_patch_is() -> None:
    tokens, patches = inputs(2)
    moved = patches[:, torch.randperm(16, generator=torch.Generator().manual_seed(11))]
    blind, sighted = decoder(AUTHORS), decoder(TINY)
    torch.testing.assert_close(blind(tokens, moved).pose, blind(tokens, patches).pose)
    assert float((sighted(tokens, moved).pose - sighted(tokens, patches).pose).abs().max()) > 1e-3


@torch.inference_mode()
def test_only_two_way_patches_attend_back() -> None:
    tokens, patches = inputs(2)
    queries, encoding = tokens[:, None].expand(-1, 5, -1), torch.zeros(16, 32)
    one_way = PoseDecoderConfig(32, 2, 4, 48, 5, variant="one_way")
    for config, attends_back in ((TINY, True), (one_way, False)):
        torch.manual_seed(12)
        layer = TwoWayLayer(config, is_first=True)
        _, after = layer(queries, patches, queries, encoding)
        assert torch.equal(after, patches) is not attends_back
        names = {name.split(".")[0] for name, _ in layer.named_parameters()}
        assert ({"norm4", "cross_attn_image_to_token"} <= names) is attends_back


@torch.inference_mode()
def test_the_pose_token_reaches_every_hypothesis() -> None:
    network = decoder(TINY)
    tokens, patches = inputs(1)
    change = (network(tokens + 1.0, patches).pose - network(tokens, patches).pose).abs().amax(-1)
    assert float(change.min()) > 1e-4


def test_what_the_authors_do_not_train_is_not_trained() -> None:
    network = decoder(AUTHORS)
    out = network(*inputs(2))
    (out.logit.sum() + out.pose.sum()).backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert idle == {"iou_token.weight", "mask_tokens.weight"}
    assert not any(network.get_parameter(name).requires_grad for name in idle)
    learned = decoder(TINY)
    out = learned(*inputs(2))
    (out.logit.sum() + out.pose.sum()).backward()
    assert all(p.grad is not None for p in learned.parameters())


def test_sine_encoding_by_hand() -> None:
    encoding = sine_encoding(2, 4, 8)
    assert encoding.shape == (8, 8)
    # Patch (row 0, column 2): phases pi for the row, 3/2 pi for the column; then 100 times slower.
    expected = torch.tensor([0.0, -1.0, 0.031411, 0.999507, -1.0, 0.0, 0.047106, 0.998890])
    torch.testing.assert_close(encoding[2], expected, atol=1e-5, rtol=0)
    assert len(torch.unique(sine_encoding(32, 32, 64), dim=0)) == 1024


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 aerial patches are no square grid"):
        decoder(TINY)(*inputs(1, num_patches=12))
    with pytest.raises(ConfigError, match="width 40 does not suit num_heads 8"):
        PoseDecoderConfig(width=40)


@torch.inference_mode()
def test_the_authors_decoder_is_reproduced() -> None:
    if "CIPER_REAL_DATA" not in os.environ:
        pytest.skip("CIPER_REAL_DATA is not set: no checkpoint of the authors to compare with")
    folder = Path(os.environ["CIPER_REAL_DATA"]) / "released_checkpoint" / "tiny_p16"
    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    prefix = "two_way_decoder."
    state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    network = PoseDecoder(
        PoseDecoderConfig(
            width=48, num_queries=8, queries="identical", encoding="zero", head="linear"
        )
    ).eval()
    network.load_state_dict(state)
    expected = load_file(folder / "expected.safetensors")
    out = network(expected["ground_pose_token"], expected["aerial_patches"])
    assert float((out.logit - expected["pred_logits"]).abs().max()) < 1e-4
    assert float((out.pose - expected["pred_boxes"]).abs().max()) < 1e-4
    assert float((out.pose - out.pose[:, :1]).abs().max()) == 0.0
