from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ciper.model.cost import Cost, cost, cost_table
from ciper.model.network import Network, NetworkConfig
from ciper.model.paper import RELEASED, PaperConfig, PaperNetwork
from ciper.model.refine import RefinerConfig

PUBLISHED_GFLOP = 24.28


def count(config: PaperConfig) -> Cost:
    with torch.device("meta"):
        return cost(PaperNetwork(config))


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    text = PaperConfig()
    return {
        "released, patch 32": count(replace(RELEASED, vit=replace(RELEASED.vit, patch_px=32))),
        "released, patch 16": count(RELEASED),
        "text, patch 32": count(replace(text, vit=replace(text.vit, patch_px=32))),
        "text, patch 16": count(text),
    }


def encoder_multiply_adds(patch_px: int, num_tokens: int) -> tuple[int, int]:
    """Of one view with 2^18 pixels, by hand: all, and the attention's share."""
    num_patches, width = 2**18 // patch_px**2, 384
    tokens = num_patches + num_tokens
    layers = 12 * tokens * 12 * width**2  # qkv 3, projection 1, MLP 8 squares of the width
    attention = 12 * 2 * tokens**2 * width
    return layers + attention + num_patches * 3 * patch_px**2 * width, attention


def decoder_multiply_adds(num_patches: int, num_queries: int) -> int:
    """Of the two-way transformer's layers with weights, by hand."""
    width, half = 384, 192
    own = 4 * num_queries * width**2
    cross = 2 * (num_queries + num_patches) * width * half
    mlp = 2 * num_queries * width * 2048
    return 2 * (own + 2 * cross + mlp) + cross


@pytest.mark.parametrize(
    ("name", "patch_px", "num_tokens", "num_features"),
    [
        ("released, patch 32", 32, 3, 1000),
        ("released, patch 16", 16, 3, 1000),
        ("text, patch 32", 32, 2, 0),
        ("text, patch 16", 16, 2, 0),
    ],
)
def test_counts_agree_with_the_formulas(
    costs: dict[str, Cost], name: str, patch_px: int, num_tokens: int, num_features: int
) -> None:
    found = costs[name]
    total, attention = encoder_multiply_adds(patch_px, num_tokens)
    for view in ("ground", "aerial"):
        assert found.multiply_adds[view] == total + 2 * 384 * num_features
        assert found.attention[view] == attention
    is_text = num_features == 0
    heads = 64 * (4 * 384**2 + 5 * 384) if is_text else 5 * 384
    layers = decoder_multiply_adds(2**18 // patch_px**2, 65 if is_text else 64)
    assert found.multiply_adds["pose"] - found.attention["pose"] == layers + heads


def test_parameters_by_part(costs: dict[str, Cost]) -> None:
    released = costs["released, patch 32"]
    assert released.num_parameters == 52_536_421
    assert released.parameters == {
        "encoder.ground": 23_344_976,
        "encoder.aerial": 23_344_976,
        "decoder": 5_846_469,
    }
    assert set(costs["text, patch 16"].parameters) == {"encoder", "decoder"}


def test_the_published_figure_is_that_of_patch_32_without_attention(
    costs: dict[str, Cost],
) -> None:
    def counter_of_layers(name: str) -> float:
        # thop: 4 "multiply-adds" per number that a LayerNorm gives out.
        return (costs[name].layer_flop + 8 * sum(costs[name].normalised.values())) / 1e9

    assert costs["released, patch 32"].layer_flop / 1e9 == pytest.approx(24.235, abs=5e-4)
    assert round(counter_of_layers("released, patch 32"), 2) == PUBLISHED_GFLOP
    assert round(counter_of_layers("text, patch 32"), 2) == PUBLISHED_GFLOP
    whole = {name: 2 * c.num_multiply_adds / 1e9 for name, c in costs.items()}
    assert whole["released, patch 32"] == pytest.approx(26.78, abs=5e-3)
    assert whole["text, patch 16"] == pytest.approx(129.67, abs=5e-3)


def test_our_network_is_counted() -> None:
    network = Network(NetworkConfig())
    found = cost(network)
    assert found.num_parameters == sum(p.numel() for p in network.parameters())
    assert set(found.multiply_adds) == {"ground", "aerial", "pose"}
    assert min(found.multiply_adds.values()) > 1e8
    assert found.num_windows == 24
    assert found.search > found.multiply_adds["pose"]
    assert next(network.parameters()).device.type == "cpu"


def test_the_refiner_is_counted_once_per_window() -> None:
    plain = cost(Network(NetworkConfig()))
    refined = cost(Network(NetworkConfig(refiner=RefinerConfig())))
    for view in ("ground", "aerial"):
        assert refined.multiply_adds[view] == plain.multiply_adds[view]
    once = refined.multiply_adds["pose"] - plain.multiply_adds["pose"]
    assert once > 1e6
    # Bearings are encoded once for all windows.
    assert refined.search - plain.search == pytest.approx(24 * once, rel=0.002)
    # A window costs the same each time, beside the coarse volume.
    window = (plain.search - plain.multiply_adds["pose"]) / 23
    assert 0 < window < plain.multiply_adds["pose"]
    assert plain.pose_share < refined.pose_share


def test_a_paper_decoder_sees_a_pair(costs: dict[str, Cost]) -> None:
    released = costs["released, patch 32"]
    assert released.num_windows == 1
    assert released.search == released.multiply_adds["pose"]
    assert released.pose_share == pytest.approx(0.551 / (2 * 6.42), abs=1e-3)


def test_the_table_names_every_network(costs: dict[str, Cost]) -> None:
    table = cost_table(costs)
    assert (
        "| released, patch 32 | encoder.ground 23.34, encoder.aerial 23.34, decoder 5.85 |" in table
    )
    assert "52,536,421" in table
    assert len(table.splitlines()) == 2 + len(costs) + 2
