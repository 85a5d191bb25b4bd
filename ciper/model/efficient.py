"""The first stages of EfficientNet-Lite as a stem: features that have seen real photos.

Inverted residual blocks (Sandler et al. 2018) in the proportions of EfficientNet-Lite (Tan and Le
2019): no squeeze-and-excitation, ReLU6, and no batch norm, which `model.pretrained` folds into the
convolutions. Feature maps are `(B, H, W, C)`; 1 x 1 convolutions are linear layers on them.

EfficientNet pads strided convolutions on the right and below, so every halving moves the features
by half a pixel of its input: 1.5, 3.5 and 7.5 px at 1/4, 1/8 and 1/16. We alternate the side. The
weights do not notice, and the features lie within 0.5, 1.5 and 2.5 px of where they should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

StemName = Literal["plain", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution; the first one has the `stride`, the others are residual."""

    num_blocks: int
    channels: int
    expansion: int
    kernel: int
    stride: int


def stages_of(name: StemName) -> tuple[Stage, Stage, Stage, Stage]:
    """Stages at 1/2, 1/4, 1/8 and 1/16 of the image.

    Lite1 is 1.1 times deeper than Lite0, Lite2 1.2 times deeper and 1.1 times wider, rounded
    up to whole blocks and to the nearest multiples of 8 channels; the first stage is never scaled.

    Raises:
        ValueError: the stem is not an EfficientNet-Lite.
    """
    if name == "plain":
        raise ValueError("the stem 'plain' has no EfficientNet stages")
    depths = (2, 2, 3) if name == "efficientnet_lite0" else (3, 3, 4)
    widths = (24, 48, 88) if name == "efficientnet_lite2" else (24, 40, 80)
    return (
        Stage(num_blocks=1, channels=16, expansion=1, kernel=3, stride=1),
        Stage(num_blocks=depths[0], channels=widths[0], expansion=6, kernel=3, stride=2),
        Stage(num_blocks=depths[1], channels=widths[1], expansion=6, kernel=5, stride=2),
        Stage(num_blocks=depths[2], channels=widths[2], expansion=6, kernel=3, stride=2),
    )


def convolve_framed(conv: nn.Conv2d, x: Tensor, *, before: int, wraps: bool) -> Tensor:
    """A convolution on `(B, H, W, C)` that keeps `H / stride` rows and `W / stride` columns.

    Args:
        conv: its kernel is odd, its stride divides both sizes.
        x: the features.
        before: how many of the `kernel - stride` padding pixels stand on the left and above.
        wraps: columns are padded from the other edge (panoramas), not with zeros.
    """
    after = conv.kernel_size[0] - conv.stride[0] - before
    if wraps:
        x = torch.cat([x[:, :, x.shape[2] - before :], x, x[:, :, :after]], dim=2)
    y = x.permute(0, 3, 1, 2)
    if after > before:
        y = F.pad(y, (0, 0 if wraps else after - before, 0, after - before))
    padding = (before, 0 if wraps else before)
    if y.device.type == "cpu" and y.dtype == torch.bfloat16 and conv.groups > 1:
        weight, bias = conv.weight.bfloat16(), conv.bias.bfloat16()  # type: ignore[union-attr]
        y = _FilterOnCpu.apply(y, weight, bias, conv.stride[0], padding)  # type: ignore[no-untyped-call]
    else:
        y = F.conv2d(y, conv.weight, conv.bias, conv.stride, padding, groups=conv.groups)
    return y.permute(0, 2, 3, 1)


class _FilterOnCpu(torch.autograd.Function):
    """A depthwise convolution in bfloat16 with gradients that are fast on CPUs.

    Torch's own are twenty times slower than the forward pass for the input with stride 2, and
    forty times for 5 x 5 weights. The input's gradient is itself a convolution, of the spread
    gradient with the flipped kernel; that of large kernels is faster in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        """`x (B, C, H, W)` with `weight (C, 1, k, k)`; see `torch.nn.functional.conv2d`."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        by_input = _spread_back(grad, weight, x.shape[2:], ctx.stride, ctx.padding)
        dtype = torch.float32 if weight.shape[-1] > 3 else torch.bfloat16
        _, by_weight, by_bias = torch.ops.aten.convolution_backward(
            *(t.to(dtype) for t in (grad, x, weight)),
            [len(weight)],
            [ctx.stride] * 2,
            list(ctx.padding),
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [False, True, True],
        )
        return by_input, by_weight.to(x.dtype), by_bias.to(x.dtype), None, None


def _spread_back(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: int, padding: tuple[int, int]
) -> Tensor:
    """Gradient of a depthwise convolution's input of `size`.

    From y[o] = sum over j of x[s o + j - p] w[j] follows
    dx[i] = sum over o of dy[o] w[i - s o + p].
    """
    kernel = weight.shape[-1]
    rows, columns = (n + 2 * p - kernel + 1 for n, p in zip(size, padding, strict=True))
    if stride > 1:
        spread = grad.new_zeros(len(grad), rows, columns, len(weight)).permute(0, 3, 1, 2)
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    frame = [kernel - 1 - p for p in padding]
    return F.conv2d(grad, weight.flip(2, 3), padding=frame, groups=len(weight))


class InvertedResidual(nn.Module):
    """Expand, filter every channel by itself, project; beside an identity where shapes allow."""

    def __init__(
        self, channels: int, stage: Stage, *, stride: int, before: int, wraps: bool
    ) -> None:
        super().__init__()
        hidden = channels * stage.expansion
        self.before, self.wraps = before, wraps
        self.is_residual = stride == 1 and channels == stage.channels
        self.expand = nn.Linear(channels, hidden) if stage.expansion > 1 else None
        self.depthwise = nn.Conv2d(hidden, hidden, stage.kernel, stride=stride, groups=hidden)
        self.project = nn.Linear(hidden, stage.channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, H, W, C)` to `(B, H / stride, W / stride, C')`."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = convolve_framed(self.depthwise, y, before=self.before, wraps=self.wraps)
        y = self.project(F.relu6(y, inplace=True))
        out: Tensor = x + y if self.is_residual else y
        return out


class EfficientStem(nn.Module):
    """Pixels and their validity to maps at 1/4 and 1/8 and patch embeddings at 1/16.

    Validity is a fourth input channel, whose weights start at zero in pretrained stems.

    Args:
        name: which EfficientNet-Lite.
        width: of the patch embeddings.
        wraps: left and right edge meet (panoramas).
        num_frozen: how many of the first stages, with the convolution before them, do not learn.
    """

    def __init__(self, name: StemName, width: int, *, wraps: bool, num_frozen: int = 0) -> None:
        super().__init__()
        self.name, self.wraps = name, wraps
        self.first = nn.Conv2d(4, 32, 3, stride=2)
        half, quarter, eighth, sixteenth = stages_of(name)
        self.to_half = _make_stage(32, half, pads_before=False, wraps=wraps)
        self.to_quarter = _make_stage(half.channels, quarter, pads_before=True, wraps=wraps)
        self.to_eighth = _make_stage(quarter.channels, eighth, pads_before=False, wraps=wraps)
        self.to_sixteenth = _make_stage(eighth.channels, sixteenth, pads_before=True, wraps=wraps)
        self.to_patches = nn.Linear(sixteenth.channels, width)
        self._initialise()
        for part in (self.first, *self.stages[:num_frozen]) if num_frozen else ():
            part.requires_grad_(False)

    @property
    def is_frozen(self) -> bool:
        """Whether its first stages do not learn."""
        return not self.first.weight.requires_grad

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """All blocks, by resolution."""
        return self.to_half, self.to_quarter, self.to_eighth, self.to_sixteenth

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(B, H, W, 4)` RGB and validity to maps at 1/4, 1/8 and 1/16."""
        # Maps are large: on CPUs those of two images at a time stay in the cache.
        slices = x.split(2) if x.device.type == "cpu" else (x,)
        parts = [self._maps(part) for part in slices]
        fine, middle, patches = (torch.cat(maps) for maps in zip(*parts, strict=True))
        return fine, middle, patches

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu6(convolve_framed(self.first, x, before=0, wraps=self.wraps), inplace=True)
        fine = self.to_quarter(self.to_half(x))
        middle = self.to_eighth(fine)
        return fine, middle, self.to_patches(self.to_sixteenth(middle))

    def _initialise(self) -> None:
        """He's start before every ReLU6; residual branches start small."""
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        for block in self.modules():
            if isinstance(block, InvertedResidual):
                for layer in (block.expand, block.depthwise):
                    if layer is not None:
                        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.xavier_normal_(block.project.weight, 0.3 if block.is_residual else 1.0)


def _make_stage(channels: int, stage: Stage, *, pads_before: bool, wraps: bool) -> nn.Sequential:
    """A stage's blocks; `pads_before` puts a halving's odd padding pixel on the left and above."""
    blocks = nn.Sequential()
    for i in range(stage.num_blocks):
        stride = stage.stride if i == 0 else 1
        before = (stage.kernel - stride + int(pads_before and stride > 1)) // 2
        block = InvertedResidual(channels, stage, stride=stride, before=before, wraps=wraps)
        blocks.append(block)
        channels = stage.channels
    return blocks
