"""A moving average of the weights over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average (EMA) of a network's weights.

    In its first steps it forgets faster, decay (1 + step) / (10 + step), so that the random start
    does not stay in it.

    Args:
        network: whose weights it starts from.
        decay: share of the average that a step keeps, below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Takes in the weights after `step` steps (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Goes on from a saved average."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """While it lasts the network has the average for weights."""
        trained = {k: v.clone() for k, v in network.state_dict().items()}
        network.load_state_dict(self.weights)
        try:
            yield
        finally:
            network.load_state_dict(trained)
