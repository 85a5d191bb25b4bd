"""The gradients of one batch, however large: losses on the codes of the whole batch.

The objective holds every photo against every chip of a batch, so a batch cannot simply be cut.
But its *codes* are small. Micro-batches are encoded without graph; the losses are taken on the
codes of all of them, and of all processes; their gradients with respect to the codes are kept; and
each micro-batch is encoded again, with its graph, to push its codes' gradients into the encoder
(gradient cache, Gao et al. 2021, arXiv 2101.06983). The networks have neither dropout nor batch
statistics, so there is no random state to restore: both passes give the same codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ciper.data.sample import Batch
from ciper.device import mixed_precision
from ciper.training.team import Team

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CodeT = TypeVar("CodeT", bound="DataclassInstance")
Losses = dict[str, Tensor]

LABELS = ("pose", "city", "centre_m", "camera_m")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which a network runs; `precision` bfloat16 means where that is fast."""
    if precision == "bfloat16":
        return mixed_precision(device)
    off: AbstractContextManager[None] = torch.autocast(device.type, enabled=False)
    return off


def encode(network: nn.Module, batch: Batch) -> tuple[Any, Any]:
    """The codes of a batch's photos and chips; any network's, frozen dataclasses of tensors."""
    net: Any = network
    return (
        net.encode_ground(batch.canvas, batch.is_visible),
        net.encode_aerial(batch.chip, batch.is_valid),
    )


def take(code: CodeT, start: int, stop: int) -> CodeT:
    """Some of a code's photos or chips."""
    return replace(code, **{f.name: getattr(code, f.name)[start:stop] for f in fields(code)})


def joined(codes: Iterable[CodeT]) -> CodeT:
    """Several codes' photos or chips as one code."""
    parts = list(codes)
    names = [f.name for f in fields(parts[0])]
    return replace(parts[0], **{n: torch.cat([getattr(p, n) for p in parts]) for n in names})


def split(batch: Batch, size: int | None) -> list[Batch]:
    """Cuts a batch into pieces of `size` pairs; the last may be smaller."""
    size = size or len(batch)
    columns = [getattr(batch, f.name).split(size) for f in fields(batch)]
    return [Batch(*parts) for parts in zip(*columns, strict=True)]


def with_labels(batch: Batch, labels: Mapping[str, Tensor]) -> Batch:
    """The labels of more pairs on a batch, whose images stay what they were."""
    return replace(batch, **labels)


@dataclass(frozen=True)
class Backward:
    """Adds a batch's gradients to a network's parameters.

    Attributes:
        network: encodes.
        criterion: takes losses on codes.
        weights: of the losses, by name.
        micro_batch: pairs that are encoded at once; None for all.
        precision: bfloat16 (where the device is fast in it) or float32.
        team: whose codes are negatives, too. Every process takes the losses of the whole batch,
            so that their gradients are those of one process that holds it all.
    """

    network: nn.Module
    criterion: nn.Module
    weights: Mapping[str, float]
    micro_batch: int | None
    precision: str
    team: Team

    def __call__(
        self, batch: Batch, generator: torch.Generator, *, scale: float = 1.0
    ) -> tuple[Losses, Losses]:
        """Adds `scale` times the gradients of the weighted losses.

        Args:
            batch: this process's pairs, on its device.
            generator: of the criterion; in the same state in every process.
            scale: what this batch counts for in the step.

        Returns:
            Detached unweighted losses and statistics.
        """
        parts = split(batch, self.micro_batch)
        # What is encoded at once keeps its graph, and is not encoded again.
        with torch.set_grad_enabled(len(parts) == 1):
            encoded = [self._encode(part) for part in parts]
        ground, aerial = (self._collect(codes) for codes in zip(*encoded, strict=True))
        labels = {name: self.team.gather(getattr(batch, name)) for name in LABELS}
        with autocast(self.team.device, self.precision):
            losses, stats = self.criterion(
                self.network, ground, aerial, with_labels(batch, labels), generator
            )
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        (scale * total).backward()
        first = self.team.rank * len(batch)
        for index, part in enumerate(parts):
            codes = encoded[0] if len(parts) == 1 else self._encode(part)
            self._push(codes, (ground, aerial), first)
            first += len(part)
            encoded[index] = (None, None)
        return {k: v.detach() for k, v in losses.items()}, stats

    def _encode(self, batch: Batch) -> tuple[Any, Any]:
        # A context each: autocast keeps the weights that it has cast, with or without graph.
        with autocast(self.team.device, self.precision):
            return encode(self.network, batch)

    def _collect(self, codes: Sequence[CodeT]) -> CodeT:
        """The codes of all micro-batches and processes, as leaves of a new graph."""
        own, leaves = joined(codes), {}
        for f in fields(own):
            rows = self.team.gather(getattr(own, f.name))
            leaves[f.name] = rows.detach().requires_grad_(rows.is_floating_point())
        return replace(own, **leaves)

    def _push(self, codes: Sequence[Any], whole: Sequence[Any], first: int) -> None:
        """Pushes the gradients of rows from `first` on of the `whole` codes into `codes`' graphs.

        Gradients are averaged over the team later. Those of the criterion's own parameters are
        the same in every process; those of the codes are not, and count once in all.
        """
        tensors, gradients = [], []
        for code, leaves in zip(codes, whole, strict=True):
            for f in fields(code):
                tensor, gradient = getattr(code, f.name), getattr(leaves, f.name).grad
                if gradient is not None and tensor.requires_grad:
                    tensors.append(tensor)
                    gradients.append(gradient[first : first + len(tensor)] * self.team.size)
        torch.autograd.backward(tensors, gradients)
