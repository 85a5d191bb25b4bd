"""What a network costs: parameters by part, and multiply-adds of one ground-aerial pair.

The paper publishes 24.28 GFLOP and does not say of what. It is the cost of one pair at patch 32
(KITTI, Ford), two FLOP per multiply-add, as a counter of layers sees it: `layer_flop` of the
authors' code is 24.235 GFLOP, and 24.277 with 8 more per number that goes through a LayerNorm, as
the counter `thop` has it (4 "multiply-adds"). The paper's text as built has the same figure,
24.275. Such a counter does not see the attention's products: with them it is 26.78 GFLOP. VIGOR's
network, patch 16, takes 129.7 GFLOP (90.6 without attention), more than five times the published
figure.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ciper.model.decoder import Windows
from ciper.model.matcher import MatchConfig
from ciper.model.network import Network
from ciper.model.paper import PaperNetwork
from ciper.model.refine import window_candidates

BATCHED_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


@dataclass(frozen=True)
class Cost:
    """Of a network and of one pair that goes through it.

    Attributes:
        parameters: by part of the network.
        multiply_adds: by pass: "ground", "aerial" and "pose"; attention counted, norms and
            activation functions not. "pose" is what a pair takes: a decoding, or for our network
            the coarse volume, one fine window, and its hypothesis refined.
        attention: those among `multiply_adds` that are batched products of activations; a counter
            that looks at layers alone misses them.
        normalised: numbers that go through a LayerNorm, by pass.
        num_windows: fine windows that a photo gets, once for the whole gallery.
        search: multiply-adds of "pose" with so many windows, each refined.
    """

    parameters: Mapping[str, int]
    multiply_adds: Mapping[str, int]
    attention: Mapping[str, int]
    normalised: Mapping[str, int]
    num_windows: int
    search: int

    @property
    def num_parameters(self) -> int:
        """Of the whole network."""
        return sum(self.parameters.values())

    @property
    def num_multiply_adds(self) -> int:
        """Of the whole pair."""
        return sum(self.multiply_adds.values())

    @property
    def pose_share(self) -> float:
        """Multiply-adds of finding the pose in a pair's chip, over those of encoding the pair."""
        return self.multiply_adds["pose"] / (
            self.multiply_adds["ground"] + self.multiply_adds["aerial"]
        )

    @property
    def layer_flop(self) -> int:
        """Operations of the layers with weights: two per multiply-add, attention left out."""
        return 2 * (self.num_multiply_adds - sum(self.attention.values()))


@torch.no_grad()
def cost(network: Network | PaperNetwork) -> Cost:
    """Counts a network on images of the configured sizes.

    Nothing is computed, so that large ones take no time.
    """
    weightless = copy.deepcopy(network).to("meta").eval()
    passes = (
        _paper_passes(weightless)
        if isinstance(weightless, PaperNetwork)
        else _our_passes(weightless)
    )
    counts = {name: _count(weightless, run) for name, run in passes.items()}
    search = counts.pop("search", counts["pose"])
    return Cost(
        parameters=parameters_by_part(network),
        multiply_adds={name: count[0] for name, count in counts.items()},
        attention={name: count[1] for name, count in counts.items()},
        normalised={name: count[2] for name, count in counts.items()},
        num_windows=1 if isinstance(network, PaperNetwork) else MatchConfig().num_windows,
        search=search[0],
    )


def parameters_by_part(network: nn.Module) -> dict[str, int]:
    """Number of parameters by top-level module; two encoders count one by one."""
    parts: Counter[str] = Counter()
    is_pair = any(name.startswith("encoder.aerial.") for name, _ in network.named_parameters())
    for name, parameter in network.named_parameters():
        depth = 2 if is_pair and name.startswith("encoder.") else 1
        parts[".".join(name.split(".")[:depth])] += parameter.numel()
    return dict(parts)


def cost_table(costs: Mapping[str, Cost]) -> str:
    """Markdown: parameters and multiply-adds of named networks, by part and in total."""
    lines = [
        "| network | parts (M parameters) | parameters | ground | aerial | pose | of encoding "
        "| all | of which attention | GFLOP without | pose of a photo |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in costs.items():
        parts = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in one.parameters.items())
        passes = " | ".join(f"{one.multiply_adds[p] / 1e9:.2f}" for p in ("ground", "aerial"))
        lines.append(
            f"| {name} | {parts} | {one.num_parameters:,} | {passes} | "
            f"{one.multiply_adds['pose'] / 1e9:.3f} | {one.pose_share:.1%} | "
            f"{one.num_multiply_adds / 1e9:.2f} | {sum(one.attention.values()) / 1e9:.2f} | "
            f"{one.layer_flop / 1e9:.2f} | {one.search / 1e9:.3f}, windows: {one.num_windows} |"
        )
    told = (
        "In 10^9 multiply-adds of a pair: ground, aerial, pose (for ours the coarse volume, one "
        "window and its refinement), all, attention. The last column: with all windows of a photo."
    )
    return "\n".join([*lines, "", told])


def _paper_passes(network: PaperNetwork) -> dict[str, Callable[[], object]]:
    canvas, chip = _images(network)
    ground, aerial = network.encode_ground(*canvas), network.encode_aerial(*chip)
    return {
        "ground": lambda: network.encode_ground(*canvas),
        "aerial": lambda: network.encode_aerial(*chip),
        "pose": lambda: network.decode(ground, aerial.patches),
    }


def _our_passes(network: Network) -> dict[str, Callable[[], object]]:
    canvas, chip = _images(network)
    ground, aerial = network.encode_ground(*canvas), network.encode_aerial(*chip)

    def pose(num_windows: int) -> None:
        index = torch.zeros(num_windows, dtype=torch.long, device="meta")
        windows = Windows(index, index, index, index, index)
        templates = network.correlation.coarse_templates(ground.polar_coarse)
        network.correlation.coarse_volume(templates, aerial.coarse)
        fine = network.correlation.fine_volume(ground.polar_fine, aerial.fine, windows)
        if network.refiner is not None:
            polar = (ground.polar_coarse, ground.polar_fine)
            maps = (aerial.coarse, aerial.fine)
            network.refiner(polar, maps, window_candidates(windows, fine))

    return {
        "ground": lambda: network.encode_ground(*canvas),
        "aerial": lambda: network.encode_aerial(*chip),
        "pose": lambda: pose(1),
        "search": lambda: pose(MatchConfig().num_windows),
    }


def _images(network: Network | PaperNetwork) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One canvas and one chip, each with its mask, without content."""
    config = network.config

    def image(height: int, width: int) -> tuple[Tensor, Tensor]:
        pixels = torch.empty(1, height, width, 3, dtype=torch.uint8, device="meta")
        return pixels, torch.empty(1, height, width, dtype=torch.bool, device="meta")

    return (
        image(config.canvas_height_px, config.canvas_width_px),
        image(config.chip_px, config.chip_px),
    )


def _count(network: nn.Module, run: Callable[[], object]) -> tuple[int, int, int]:
    """Multiply-adds of one pass, those of batched products among them, and normalised numbers."""
    normalised = 0

    def add(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal normalised
        normalised += output.numel()

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.LayerNorm)]
    with FlopCounterMode(display=False) as counter:
        run()
    for hook in hooks:
        hook.remove()
    by_operator = counter.get_flop_counts()["Global"]
    batched = sum(flop for op, flop in by_operator.items() if op in BATCHED_PRODUCTS)
    return counter.get_total_flops() // 2, batched // 2, normalised
