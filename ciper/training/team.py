"""The processes that train together, one per device: alone, or under `torchrun` through Accelerate.

    torchrun --nproc-per-node 4 -m ciper train CONFIG.toml --out RUN

Every process encodes its share of each batch; codes and gradients travel. The first one alone
writes files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from ciper.errors import DependencyError

# Others wait while the first one renders the cities.
PATIENCE = timedelta(hours=12)


class Team:
    """A process that trains alone; the base of those that do not."""

    rank = 0
    size = 1

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, `(size * B, ...)`, in order of their ranks; no gradient."""
        return rows

    def share(self, first: Tensor) -> Tensor:
        """The first process's tensor, which has the same shape everywhere."""
        return first

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their mean over the processes."""

    def any(self, is_so: bool) -> bool:
        """Whether it is so in any process."""
        return is_so

    def wait(self) -> None:
        """Until all processes are here."""

    def leave(self) -> None:
        """Closes the connections."""


class AccelerateTeam(Team):
    """One of several processes that `torchrun` has started.

    Args:
        device: cpu or cuda; each process takes the device of its local rank.
    """

    def __init__(self, device: str) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError as error:
            raise DependencyError(
                f"training in {os.environ['WORLD_SIZE']} processes needs the package accelerate; "
                "install ciper-geo[train], or train without torchrun"
            ) from error
        patience: Any = InitProcessGroupKwargs(timeout=PATIENCE)
        self._accelerator: Any = Accelerator(
            cpu=torch.device(device).type == "cpu", kwargs_handlers=[patience]
        )
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
        super().__init__(str(self._accelerator.device))

    def gather(self, rows: Tensor) -> Tensor:
        """As `Team.gather`."""
        gathered: Tensor = self._accelerator.gather(rows.detach().contiguous())
        return gathered

    def share(self, first: Tensor) -> Tensor:
        """As `Team.share`."""
        return self.gather(first.to(self.device)[None])[0].to(first.device)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """As `Team.average_gradients`, in one message."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self._accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def any(self, is_so: bool) -> bool:
        """As `Team.any`."""
        return bool(self.gather(torch.tensor([is_so], device=self.device).float()).any())

    def wait(self) -> None:
        """As `Team.wait`."""
        self._accelerator.wait_for_everyone()

    def leave(self) -> None:
        """As `Team.leave`."""
        self._accelerator.end_training()


def join_team(device: str) -> Team:
    """The team that this process belongs to, by torchrun's environment."""
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return Team(device) if is_alone else AccelerateTeam(device)
