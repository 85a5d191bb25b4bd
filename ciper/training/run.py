"""One training run: network, optimiser, average, and the step that they have reached.

`RUN/checkpoint.safetensors` holds all that the next step depends on, so that a run which goes on
from it takes the same steps as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ciper.checkpoint import (
    find_weights,
    knows_level_photos,
    load_checkpoint,
    part_of,
    save_checkpoint,
    weights_of,
)
from ciper.config import from_dict, to_dict
from ciper.data.batches import Pairs
from ciper.data.neighbours import Int
from ciper.data.sample import Batch
from ciper.errors import ConfigError, TrainingError
from ciper.model.network import Network
from ciper.training.average import WeightAverage
from ciper.training.gradients import Backward
from ciper.training.mining import mine
from ciper.training.recipe import (
    TrainConfig,
    learning_rate,
    make_criterion,
    make_network,
    make_optimiser,
    origin_of,
)
from ciper.training.team import Team
from ciper.training.validation import Best, validate


class Run:
    """A run in its folder; goes on from its checkpoint if there is one.

    Args:
        config: the recipe.
        out: RUN folder.
        device: cpu, cuda or mps.
        team: the processes that train together; alone if None.
    """

    def __init__(
        self, config: TrainConfig, out: Path, device: str, team: Team | None = None
    ) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.out, self.team = config, out, team or Team(device)
        self.device = self.team.device
        self.network = make_network(config).to(self.device)
        self.criterion = make_criterion(config).to(self.device)
        self.backward = Backward(
            self.network,
            self.criterion,
            config.loss_weights,
            config.train.micro_batch,
            config.train.precision,
            self.team,
        )
        self.optimiser = make_optimiser(self.network, config.train)
        self.step, self.best = 0, Best()
        self.mined: Int | None = None
        if not self.checkpoint.exists() and config.init is not None:
            self._initialise(config.init)
        self.average = (
            WeightAverage(self.network, config.train.ema_decay) if config.train.ema_decay else None
        )
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        """Where the run keeps everything that it needs to go on."""
        return self.out / "checkpoint.safetensors"

    @property
    def has_stalled(self) -> bool:
        """Whether validation has not improved for so long that the run ends."""
        patience = self.config.train.patience
        return patience > 0 and self.best.num_since >= patience

    @property
    def is_finished(self) -> bool:
        """Whether the last step was taken, or the run has stalled."""
        return self.step >= self.config.train.last_step or self.has_stalled

    def advance(self, *batches: Batch) -> dict[str, float]:
        """One optimiser step on `accumulate` batches; returns losses and statistics by name.

        Raises:
            TrainingError: a loss is not finite.
        """
        train = self.config.train
        lr = learning_rate(self.step, train)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad()
        rows = []
        for index, batch in enumerate(batches, start=self.step * len(batches)):
            generator = torch.Generator().manual_seed(train.seed * 1_000_003 + index)
            losses, stats = self.backward(batch.to(self.device), generator, scale=1 / len(batches))
            self._check_finite(losses)
            rows.append({**losses, **stats})
        self.team.average_gradients(self.network.parameters())
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), train.max_grad_norm)
        self.optimiser.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.network, self.step)
        means = {k: float(torch.stack([r[k].float() for r in rows]).mean()) for k in rows[0]}
        return {"lr": lr, **means, "grad_norm": float(norm)}

    def mine(self, pairs: Pairs) -> None:
        """Makes the table of hard negatives anew, with the weights of now."""
        table = mine(self.network, pairs, self.config.train, self.step, self.device)
        self.mined = self.team.share(torch.from_numpy(table)).numpy()

    def validate(self, pairs: Pairs) -> dict[str, float]:
        """Scores the run's weights, and keeps them as `RUN/best.safetensors` if they are the best.

        Returns:
            As `validation.validate`.
        """
        with self.averaged():
            metrics = validate(self.network, self.criterion, pairs, self.config.train, self.device)
            # All processes must agree on when to stop.
            score = float(self.team.share(torch.tensor(metrics["score"], dtype=torch.float64)))
            self.best = self.best.after(score, self.step)
            if self.best.is_new and self.team.is_first:
                weights = _prefixed("model", self.network.state_dict())
                save_checkpoint(self.out / "best.safetensors", weights, self._header(metrics))
        return metrics

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with the weights that are to be used: the average, if there is one."""
        if self.average is None:
            yield self.network
        else:
            with self.average.applied(self.network):
                yield self.network

    def save(self, metrics: dict[str, float]) -> None:
        """Writes the checkpoint, atomically; one process does."""
        if not self.team.is_first:
            return
        state = _prefixed("model", self.network.state_dict())
        if self.average is not None:
            state |= _prefixed("ema", self.average.weights)
        if self.mined is not None:
            state["mined.photos"] = torch.from_numpy(self.mined)
        names = {id(p): name for name, p in self.network.named_parameters()}
        for parameter, slots in self.optimiser.state.items():
            for slot, value in slots.items():
                state[f"optimiser.{slot}.{names[id(parameter)]}"] = value
        save_checkpoint(self.checkpoint, state, self._header(metrics))

    def _header(self, metrics: dict[str, float]) -> dict[str, object]:
        origin = origin_of(self.config)
        return {
            "config": to_dict(self.config),
            "step": self.step,
            "metrics": metrics,
            "best": to_dict(self.best),
            **({} if origin is None else {"origin": to_dict(origin)}),
        }

    def _resume(self) -> None:
        state, header = load_checkpoint(self.checkpoint)
        saved = from_dict(TrainConfig, header["config"])
        if (saved.model, saved.network, saved.paper) != (
            self.config.model,
            self.config.network,
            self.config.paper,
        ):
            raise ConfigError(
                f"{self.checkpoint} is of another network; expected the configuration that it was "
                "started with; name another --out or take the old configuration"
            )
        try:
            self.network.load_state_dict(part_of(state, "model"))
        except RuntimeError as error:
            raise ConfigError(
                f"{self.checkpoint} does not fit the network that it describes "
                f"({str(error).splitlines()[-1].strip()}); expected a run of this version of "
                "ciper: name another --out"
            ) from error
        if self.average is not None:
            # Switched on later, it starts from the weights as they are.
            self.average.load(weights_of(state))
        for name, parameter in self.network.named_parameters():
            slots = {
                slot: state[f"optimiser.{slot}.{name}"]
                for slot in ("step", "exp_avg", "exp_avg_sq")
                if f"optimiser.{slot}.{name}" in state
            }
            if slots:
                self.optimiser.state[parameter] = {
                    k: v if k == "step" else v.to(self.device) for k, v in slots.items()
                }
        if "mined.photos" in state:
            self.mined = state["mined.photos"].numpy()
        self.step = int(header["step"])
        self.best = from_dict(Best, header.get("best", {}))

    def _initialise(self, init: str) -> None:
        # Only here, for it reads foreign files and optional packages.
        from ciper.model.pretrained import initialise

        start = initialise(self.network, init, seed=self.config.train.seed)
        is_head_alone = self.config.train.trained == "plan"
        if is_head_alone and any(not name.startswith("plan.") for name in start.made):
            raise ConfigError(
                f"train.trained is plan, but init={init} leaves more than the head to chance, "
                "which would never learn; expected all weights beside the head, as of init=ground, "
                "or train.trained=all"
            )
        if is_head_alone and not knows_level_photos(load_checkpoint(find_weights(init))[1]):
            raise ConfigError(
                f"train.trained is plan, and {init} was trained on photos from above alone: beside "
                "its weights a head would serve nobody; expected weights of street photos such as "
                "init=ground, or train.trained=all"
            )
        if self.config.plan_head == "new" and isinstance(self.network, Network):
            assert self.network.plan is not None, "the recipe refuses what is not there"
            self.network.plan.start_from(self.network.maps, self.network.place_descriptors)

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss '{name}' is {float(loss)} at step {self.step}; expected "
                    "a finite number; lower train.lr or start again from the last checkpoint"
                )


def _prefixed(part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value for name, value in weights.items()}
