"""The authors' checkpoint format: its tensors become a network of `ciper.model.paper`.

A file holds `{"model": state_dict, ...}` with the keys `query_net.*` (ground), `reference_net.*`
(aerial) and `two_way_decoder.*`, which differ from our names by these prefixes alone. Sizes are
read off the tensors; what they do not tell (numbers of heads, the images' aspect) is said by a
`config.json` beside the file, or by convention: 6 encoder and 8 decoder heads, ground height to
width as 1 to 4, aerial square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ciper.camera import Camera
from ciper.errors import CheckpointError, ConfigError
from ciper.model.beside import said_beside, whole_number
from ciper.model.paper import PaperConfig, PaperNetwork
from ciper.model.pickles import check_tensors, load_pickle
from ciper.model.two_way import PoseDecoderConfig
from ciper.model.vit import VitConfig

Dataset = Literal["vigor", "kitti", "ford"]

PREFIXES = {
    "query_net.": "encoder.ground.",
    "reference_net.": "encoder.aerial.",
    "two_way_decoder.": "decoder.",
}
NUM_TOKENS: Literal[3] = 3  # class, distillation and pose token
NUM_HEADS, NUM_DECODER_HEADS = 6, 8
GROUND_ASPECT = 4
NUM_SHOWN = 3
# Fields of view that pass for KITTI's 81 and Ford's 80 deg; 60 to 90 is what an unknown one may be.
HFOVS_DEG = (60.0, 100.0)


@dataclass(frozen=True)
class Origin:
    """What a converted file was trained on, which decides how photos are shown to it.

    `side_m` is a chip's side. Photos enter whole, squeezed to the network's ground image. A network
    that was trained on panoramas with north in their middle says nothing of the heading. Its chips
    had been turned to within `heading_range_deg` of the photo's heading; 180 is any heading.
    """

    dataset: Dataset
    side_m: float
    heading_range_deg: float = 180.0

    @property
    def says_heading(self) -> bool:
        """Whether headings varied in its training."""
        return self.dataset != "vigor"

    @property
    def photos(self) -> str:
        """Of what kind its training had them."""
        return "full panoramas" if self.dataset == "vigor" else "photos about 80 deg wide"

    def suits(self, camera: Camera) -> bool:
        """Whether a camera's photos look like those of its training."""
        if self.dataset == "vigor":
            return camera.is_full_circle
        narrowest, widest = HFOVS_DEG
        return camera.projection == "pinhole" and narrowest <= camera.hfov_deg <= widest

    @property
    def limits(self) -> tuple[str, ...]:
        """What its answers cannot tell, after "the model ..."."""
        if not self.says_heading:
            return (
                "says nothing of headings, they are null; it takes the middle of a panorama for "
                "north unless its heading is told",
            )
        if self.heading_range_deg < 180:
            return (
                f"was trained on chips turned to within {self.heading_range_deg:g} deg of the "
                "photo's heading; chips of a gallery are north up, so that it knows only photos "
                f"that look north to within {self.heading_range_deg:g} deg",
            )
        return ()


@dataclass(frozen=True)
class Released:
    """A released file: the network that it describes, its weights, the epoch that it is of."""

    config: PaperConfig
    weights: Mapping[str, Tensor]
    epoch: int | None


def read_released(path: Path, *, side_m: float) -> Released:
    """Reads a checkpoint in the authors' format.

    Args:
        path: the `.pth` file; a `config.json` beside it is read too.
        side_m: metres along a chip's side, which the file does not tell.

    Raises:
        CheckpointError: the file cannot be read, its pickle asks for more than tensors, or it
            holds other tensors than the authors' network has.
    """
    held = load_pickle(path)
    tensors = _tensors_of(path, held)
    try:
        config = _config_of(_Sizes(path, tensors), said_beside(path), side_m)
        _check_names(path, tensors, config)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: {error}. Say what its tensors do not in a config.json beside it "
            '({"num_heads": ...}).'
        ) from error
    _check_values(path, tensors)
    epoch = held.get("epoch")
    return Released(
        config=config,
        weights={_our_name(name): value.float() for name, value in tensors.items()},
        epoch=epoch if isinstance(epoch, int) else None,
    )


def _tensors_of(path: Path, held: object) -> dict[str, Tensor]:
    tensors = held.get("model") if isinstance(held, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(
            f'{path}: holds no weights under "model"; expected a checkpoint of the authors\' code.'
        )
    for name, value in tensors.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointError(
                f"{path}: {name!r} is no tensor of weights; expected names and tensors alone."
            )
    check_tensors(path, tensors)
    return tensors


def _check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite; take another checkpoint."
            )


# ------------------------------------------------------------------------------------------ sizes


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the authors' network, read off its tensors."""

    path: Path
    tensors: Mapping[str, Tensor]

    def of(self, name: str, num_axes: int) -> tuple[int, ...]:
        """A tensor's shape."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path}: has no tensor {name}; expected a checkpoint of the authors' code."
            )
        shape = tuple(self.tensors[name].shape)
        if len(shape) != num_axes or 0 in shape:
            raise CheckpointError(
                f"{self.path}: {name} has shape {shape}; expected {num_axes} axes."
            )
        return shape

    def count(self, prefix: str) -> int:
        """How many numbered modules there are under a prefix."""
        inside = (n.removeprefix(prefix) for n in self.tensors if n.startswith(prefix))
        return len({name.partition(".")[0] for name in inside})

    def num_patches(self, net: str) -> int:
        """P, of a view's image."""
        return self.of(f"{net}.pos_embed", 3)[1] - NUM_TOKENS


def _config_of(sizes: _Sizes, said: Mapping[str, Any], side_m: float) -> PaperConfig:
    """The network that the tensors, and what is said beside them, describe."""
    width, _, patch_px, _ = sizes.of("query_net.patch_embed.proj.weight", 4)
    layer = "two_way_decoder.transformer.layers.0."
    inner = sizes.of(f"{layer}cross_attn_token_to_image.q_proj.weight", 2)[0]
    ground_px = _ground_px(sizes, said, patch_px)
    aerial_px = _aerial_px(sizes, said, patch_px)
    hidden = sizes.of("query_net.blocks.0.mlp.fc1.weight", 2)[0]
    found = {
        "patch_size": patch_px,
        "dim_embed": width,
        "dim_feature": sizes.of("query_net.head.weight", 2)[0],
        "num_enc_layers": sizes.count("query_net.blocks."),
        "mlp_ratio": hidden // width,
        "num_multimask_outputs": sizes.of("two_way_decoder.mask_tokens.weight", 2)[0],
    }
    _check_said(sizes.path, said, found)
    vit = VitConfig(
        patch_px=patch_px,
        width=width,
        depth=found["num_enc_layers"],
        num_heads=whole_number(sizes.path, said, "num_heads", NUM_HEADS),
        mlp_ratio=found["mlp_ratio"],
        num_tokens=NUM_TOKENS,
        is_shared=False,
    )
    decoder = PoseDecoderConfig(
        width=width,
        depth=sizes.count("two_way_decoder.transformer.layers."),
        num_heads=NUM_DECODER_HEADS,
        mlp_width=sizes.of(f"{layer}mlp.lin1.weight", 2)[0],
        num_queries=found["num_multimask_outputs"],
        attention_downsample=max(1, width // inner),
        queries="identical",
        encoding="zero",
        head="linear",
    )
    return PaperConfig(
        vit=vit,
        decoder=decoder,
        descriptor="released",
        descriptor_dim=found["dim_feature"],
        chip_px=aerial_px,
        gsd=side_m / aerial_px,
        canvas_height_px=ground_px[0],
        canvas_width_px=ground_px[1],
    )


def _ground_px(sizes: _Sizes, said: Mapping[str, Any], patch_px: int) -> tuple[int, int]:
    """`(height, width)` of the ground image."""
    num_patches = sizes.num_patches("query_net")
    if "grd_img_size" in said:
        return _image_px(sizes.path, said, "grd_img_size", num_patches * patch_px**2)
    rows = math.isqrt(max(0, num_patches) // GROUND_ASPECT)
    if rows * rows * GROUND_ASPECT != num_patches or not rows:
        raise CheckpointError(
            f"{sizes.path}: {num_patches} ground patches are no image of height : width = "
            f'1 : {GROUND_ASPECT}; say its size in a config.json beside it ("grd_img_size").'
        )
    return rows * patch_px, rows * GROUND_ASPECT * patch_px


def _aerial_px(sizes: _Sizes, said: Mapping[str, Any], patch_px: int) -> int:
    """Side of the aerial image."""
    num_patches = sizes.num_patches("reference_net")
    if "arl_img_size" in said:
        height, width = _image_px(sizes.path, said, "arl_img_size", num_patches * patch_px**2)
        is_square = height == width
    else:
        height = math.isqrt(max(0, num_patches)) * patch_px
        is_square = height > 0 and height**2 == num_patches * patch_px**2
    if not is_square:
        raise CheckpointError(
            f"{sizes.path}: {num_patches} aerial patches are no square image; expected one."
        )
    return height


# ------------------------------------------------------------------------------------ config.json


def _image_px(path: Path, said: Mapping[str, Any], name: str, num_px: int) -> tuple[int, int]:
    """A said `(height, width)` that has the pixels which the tensors ask for."""
    size = said[name]
    is_size = isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)
    if not is_size or size[0] * size[1] != num_px or size[0] < 1:
        raise CheckpointError(
            f"{path.with_name('config.json')}: {name} is {size}; its tensors ask for "
            f"[height, width] of {num_px} pixels in all."
        )
    return size[0], size[1]


def _check_said(path: Path, said: Mapping[str, Any], found: Mapping[str, int]) -> None:
    for name, value in found.items():
        if said.get(name, value) != value:
            raise CheckpointError(
                f"{path.with_name('config.json')}: {name} is {said[name]!r}, but the tensors of "
                f"{path.name} have {value}; it belongs to another file."
            )


# ------------------------------------------------------------------------------------------ names


def _our_name(name: str) -> str:
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _their_name(name: str) -> str:
    theirs, ours = next(pair for pair in PREFIXES.items() if name.startswith(pair[1]))
    return theirs + name.removeprefix(ours)


def _check_names(path: Path, tensors: Mapping[str, Tensor], config: PaperConfig) -> None:
    """Refuses a file whose tensors are not exactly the network's."""
    with torch.device("meta"):
        wanted = {_their_name(n): v.shape for n, v in PaperNetwork(config).state_dict().items()}
    both = wanted.keys() & tensors.keys()
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name])}"
        for name in sorted(both)
        if tensors[name].shape != wanted[name]
    ]
    faults = {
        "lacks": sorted(wanted.keys() - tensors.keys()),
        "has besides": sorted(tensors.keys() - wanted.keys()),
        "has in another shape": misshapen,
    }
    told = [f"{fault} {_shown(names)}" for fault, names in faults.items() if names]
    if told:
        raise CheckpointError(
            f"{path}: {'; '.join(told)}; expected the tensors of the authors' network."
        )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
