"""Vision transformers in timm's key names (DeiT, DINOv2) as a start for the paper's encoder.

What does not fit is made to fit without changing what the transformer computes: LayerScale is
folded, position embeddings are resampled, patches are resized.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ciper.checkpoint import read_safetensors
from ciper.errors import CheckpointError
from ciper.model.beside import said_beside, whole_number
from ciper.model.pickles import check_tensors, load_pickle
from ciper.model.vit import Vit, VitPair

_PATCHES = "patch_embed.proj.weight"
HEAD_WIDTH = 64
# LayerScale's names within a block, in timm's two families, with the layer that it scales.
LAYER_SCALES = {
    "ls1.gamma": "attn.proj",
    "ls2.gamma": "mlp.fc2",
    "gamma_1": "attn.proj",
    "gamma_2": "mlp.fc2",
}


@dataclass(frozen=True)
class Initialisation:
    """What a network's weights started from, by tensor names.

    Attributes:
        source: `random`, the packages of the stems, or the file.
        taken: used as they are, up to exact rewriting.
        resampled: resized to our grid or patches.
        made: not in the source: copies of other tensors with noise, or left to chance.
        left_out: in the source, and not used.
    """

    source: str
    taken: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def init_from_timm(
    pair: VitPair,
    path: Path,
    *,
    ground_px: tuple[int, int],
    aerial_px: tuple[int, int],
    seed: int = 0,
) -> Initialisation:
    """Starts both views' transformers from a vision transformer in timm's key names.

    LayerScale is folded into the layers that it scales, exactly. The file's square grid of
    positions is resampled to each view's, patches to our patch size. Tokens that the file does not
    have, and their positions, start as copies of the class token's with a tenth of its spread as
    noise: equal tokens would stay equal. Further blocks, heads and registers are left out. No file
    tells into how many heads its attention is split: all DeiT and DINO have heads of 64 numbers,
    another file must say `num_heads` in a config.json beside it.

    Args:
        pair: the transformers.
        path: .safetensors or .pth.
        ground_px: `(height, width)` of the ground image.
        aerial_px: `(height, width)` of the chip.
        seed: of the noise.

    Raises:
        CheckpointError: the file cannot be read, or is of another architecture.
    """
    tensors = read_tensors(path)
    _check_architecture(tensors, pair.ground, path)
    source = fold_layer_scale(tensors)
    start = _token_start(source, pair.ground.token_names, path, seed)
    ground, aerial = (_grid(pair.ground, image_px) for image_px in (ground_px, aerial_px))
    _fill(pair.ground, source, start, path)
    _place(pair.ground.pos_embed, start, ground)
    if pair.aerial is None:
        _place(pair.get_parameter("aerial_pos_embed"), start, aerial)
    else:
        _fill(pair.aerial, source, start, path)
        _place(pair.aerial.pos_embed, start, aerial)
    resampled = set()
    if start.grid is not None and {ground, aerial} != {start.grid.shape[:2]}:
        resampled.add("pos_embed")
    if source[_PATCHES].shape != pair.ground.get_parameter(_PATCHES).shape:
        resampled.add(_PATCHES)
    return _report(path, tensors, pair.ground, resampled)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A foreign file's tensors as float32; a state under `model` or `state_dict` is unwrapped.

    Raises:
        CheckpointError: the file cannot be read or does not hold tensors by name.
    """
    is_safetensors = path.suffix == ".safetensors"
    content: object = read_safetensors(path) if is_safetensors else load_pickle(path)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    items = content.items() if isinstance(content, Mapping) else ()
    found = {name: value for name, value in items if isinstance(value, Tensor)}
    tensors = {name: value for name, value in found.items() if value.is_floating_point()}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name; expected a state dict of timm's.")
    check_tensors(path, tensors)
    return {name: value.float() for name, value in tensors.items()}


def fold_layer_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiplies the learned scale of every residual branch into the branch's last layer.

    gamma * (W x + b) = (gamma W) x + gamma b, so the transformer computes the same.
    """
    folded = dict(tensors)
    for name, gamma in tensors.items():
        block, _, part = _in_block(name)
        if part in LAYER_SCALES:
            layer = f"{block}.{LAYER_SCALES[part]}"
            del folded[name]
            folded[f"{layer}.weight"] = folded[f"{layer}.weight"] * gamma[:, None]
            folded[f"{layer}.bias"] = folded[f"{layer}.bias"] * gamma
    return folded


def resize_patches(weight: Tensor, size_px: int) -> Tensor:
    """A patch embedding for patches of another size, with the same scale of activations.

    Let B resize a patch x. What we want is w' with w' . B x = w . x for every x, that is
    transpose(B) w' = w: exact for larger patches, least squares for smaller ones. The
    pseudo-inverse gives the smallest such w' (as FlexiViT, Beyer et al. 2023). Resizing the weights
    as if they were pictures would multiply the activations by the ratio of the areas instead.

    Args:
        weight: `(D, 3, p, p)`.
        size_px: q.

    Returns:
        `(D, 3, q, q)`.
    """
    patch_px = weight.shape[-1]
    if patch_px == size_px:
        return weight
    units = torch.eye(patch_px**2, dtype=torch.float64).view(-1, 1, patch_px, patch_px)
    transposed = _resize(units, (size_px, size_px)).flatten(1)  # (p p, q q)
    resized = weight.double().flatten(2) @ torch.linalg.pinv(transposed).T
    out: Tensor = resized.view(*weight.shape[:2], size_px, size_px).float()
    return out


def resample_positions(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Position embeddings `(h, w, C)` of patches on another grid: `(rows, columns, C)`."""
    if grid.shape[:2] == size:
        return grid
    return _resize(grid.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image, size, mode="bicubic", antialias=True)


@dataclass(frozen=True)
class _Start:
    """Tokens by name with their positions, `(C,)` each, and the grid of positions `(s, s, C)`.

    A file without learned positions (rotary ones) has neither of the last two.
    """

    tokens: dict[str, Tensor]
    positions: dict[str, Tensor]
    grid: Tensor | None


def _token_start(
    source: Mapping[str, Tensor], names: tuple[str, ...], path: Path, seed: int
) -> _Start:
    generator = torch.Generator().manual_seed(seed)
    known = [name for name in ("cls_token", "dist_token") if name in source]
    tokens = {name: source[name].flatten() for name in known}
    positions: dict[str, Tensor] = {}
    grid = None
    if "pos_embed" in source:
        learned = source["pos_embed"].flatten(0, -2)
        # Some files give their tokens no positions.
        num_placed = next((n for n in (len(known), 0) if _is_square(len(learned) - n)), None)
        if num_placed is None:
            raise CheckpointError(
                f"{path}: has {len(learned)} positions; expected a square grid, with or without "
                f"one for each of {', '.join(known)}."
            )
        grid = learned[num_placed:].unflatten(0, (math.isqrt(len(learned) - num_placed), -1))
        placed = learned[:num_placed] if num_placed else torch.zeros(len(known), learned.shape[1])
        positions = dict(zip(known, placed, strict=True))
    for name in names:
        for states in (tokens, positions):
            if states and name not in states:
                first = states["cls_token"]
                noise = torch.randn(first.shape, generator=generator)
                states[name] = first + 0.1 * tokens["cls_token"].std() * noise
    return _Start(
        {name: tokens[name] for name in names},
        {name: positions[name] for name in names if positions},
        grid,
    )


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _grid(vit: Vit, image_px: tuple[int, int]) -> tuple[int, int]:
    patch_px = vit.patch_embed.proj.kernel_size[0]
    return image_px[0] // patch_px, image_px[1] // patch_px


@torch.no_grad()
def _fill(vit: Vit, source: Mapping[str, Tensor], start: _Start, path: Path) -> None:
    """Writes everything but the positions."""
    for name, parameter in vit.named_parameters():
        if name == "pos_embed":
            continue
        if name in start.tokens:
            parameter.copy_(start.tokens[name])
        elif name == _PATCHES:
            parameter.copy_(resize_patches(source[name], parameter.shape[-1]))
        elif name in source and source[name].shape == parameter.shape:
            parameter.copy_(source[name])
        elif name.endswith("qkv.bias") and name not in source:
            parameter.zero_()
        elif not name.startswith("head"):
            found = tuple(source[name].shape) if name in source else "nothing"
            raise CheckpointError(
                f"{path}: has {found} for {name}; expected {tuple(parameter.shape)}: take weights "
                "of this architecture or change [paper.vit]."
            )


@torch.no_grad()
def _place(target: Tensor, start: _Start, size: tuple[int, int]) -> None:
    """Writes position embeddings `(1, T + P, C)`, where the file has some."""
    if start.grid is not None:
        patches = resample_positions(start.grid, size).flatten(0, 1)
        target.copy_(torch.cat([torch.stack(list(start.positions.values())), patches]))


def _check_architecture(tensors: Mapping[str, Tensor], vit: Vit, path: Path) -> None:
    missing = [name for name in ("cls_token", _PATCHES, "norm.weight") if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{path}: has no {missing[0]}, but {', '.join(sorted(tensors)[:3])}, ...; expected a "
            "vision transformer in timm's key names."
        )
    width, wanted = tensors["cls_token"].shape[-1], vit.norm.weight.shape[0]
    if width != wanted:
        raise CheckpointError(
            f"{path}: is {width} wide; expected {wanted}: set paper.vit.width={width} with "
            f"num_heads={width // HEAD_WIDTH}, and paper.decoder.width, or take another file."
        )
    for name in ("dist_token", "pos_embed"):
        if name in tensors and tensors[name].shape[-1] != width:
            raise CheckpointError(
                f"{path}: {name} is {tensors[name].shape[-1]} wide; expected {width}, as its class "
                "token: fetch it again."
            )
    num_heads = whole_number(path, said_beside(path), "num_heads", max(1, width // HEAD_WIDTH))
    if num_heads != vit.num_heads:
        raise CheckpointError(
            f"{path}: is taken to have {num_heads} heads; expected {vit.num_heads}: set "
            f"paper.vit.num_heads={num_heads}, or say its num_heads in a config.json beside it."
        )
    patches = tensors[_PATCHES].shape
    if len(patches) != 4 or patches[1] != 3 or patches[2] != patches[3]:
        raise CheckpointError(
            f"{path}: {_PATCHES} has shape {tuple(patches)}; expected square patches of three "
            "colours: take a file for RGB images."
        )
    known = {name for name, _ in vit.blocks[0].named_parameters()} | set(LAYER_SCALES)
    blocks = [_in_block(name) for name in tensors if name.startswith("blocks.")]
    foreign = sorted({part for _, _, part in blocks} - known)
    if foreign:
        raise CheckpointError(
            f"{path}: its blocks have {', '.join(foreign)}; expected plain pre-norm blocks, as "
            "DeiT and DINOv2 have: take another file."
        )
    depth = 1 + max((index for _, index, _ in blocks), default=-1)
    if depth < len(vit.blocks):
        raise CheckpointError(
            f"{path}: has {depth} blocks; expected at least {len(vit.blocks)}: set "
            f"paper.vit.depth={depth} or take another file."
        )


def _in_block(name: str) -> tuple[str, int, str]:
    """Block, its index and the rest of a parameter's name; an index of -1 outside of blocks."""
    found = re.fullmatch(r"(blocks\.(\d+))\.(.+)", name)
    return (found[1], int(found[2]), found[3]) if found else ("", -1, name)


def _report(
    path: Path, tensors: Mapping[str, Tensor], vit: Vit, resampled: set[str]
) -> Initialisation:
    owned = dict(vit.named_parameters())

    def is_used(name: str) -> bool:
        _, index, part = _in_block(name)
        if part in LAYER_SCALES:
            return index < len(vit.blocks)
        if name.startswith("head"):
            return name in owned and owned[name].shape == tensors[name].shape
        return name in owned

    used = [name for name in tensors if is_used(name)]
    return Initialisation(
        source=str(path),
        taken=tuple(name for name in used if name not in resampled),
        resampled=tuple(sorted(resampled)),
        made=tuple(name for name in owned if name not in used),
        left_out=tuple(name for name in tensors if name not in used),
    )
