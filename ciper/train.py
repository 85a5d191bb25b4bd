"""Training: one joint objective over retrieval, coarse and fine poses; seeded, logged, resumable.

`RUN/checkpoint.safetensors` holds the weights, the optimiser's state, the resolved configuration
and the step; a run that is started again with the same RUN goes on from there.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from ciper.checkpoint import load_checkpoint, save_checkpoint, weights_of
from ciper.config import from_dict, to_dict
from ciper.data.sample import Batch
from ciper.data.synthetic import SyntheticConfig, SyntheticPairs, open_city, render_city
from ciper.errors import ConfigError, OutputError, TrainingError
from ciper.model.criterion import Criterion, CriterionConfig
from ciper.model.network import Network, NetworkConfig

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the criterion's losses."""

    retrieval: float = 0.3
    coarse: float = 1.0
    fine: float = 0.5


@dataclass(frozen=True)
class OptimConfig:
    """Schedule and optimiser.

    The learning rate rises over `warmup_steps` and falls to 0 along a cosine at `num_steps`.
    `narrow_share` (start, end) ramps over the run how many photos become pinhole views. With
    `stop_at` the run ends early, at that step, as if it were interrupted: it can go on later, also
    with other settings.
    """

    num_steps: int = 3000
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    max_grad_norm: float = 1.0
    narrow_share: tuple[float, float] = (0.1, 0.5)
    save_every: int = 200
    stop_at: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """The whole recipe of a run. `cache` keeps the rendered cities; `init` is a checkpoint."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: SyntheticConfig = field(default_factory=SyntheticConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    train: OptimConfig = field(default_factory=OptimConfig)
    cache: str = "cache/synthetic"
    init: str | None = None


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """The silent progress callback."""


def prepare_cities(
    config: SyntheticConfig, cache: Path, num_workers: int, progress: Progress = ignore_progress
) -> list[Path]:
    """Renders the cities that `cache` lacks, `num_workers` at a time; returns their folders."""
    seeds = range(config.first_seed, config.first_seed + config.num_cities)
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))
    try:
        jobs = [pool.submit(render_city, seed, config, cache) for seed in seeds]
        folders = []
        for done, job in enumerate(jobs, start=1):
            folders.append(job.result())
            progress("rendering cities", done, len(jobs))
        return folders
    finally:
        # After an error or an interruption the cities that wait are not rendered first.
        pool.shutdown(cancel_futures=True)


def learning_rate(step: int, config: OptimConfig) -> float:
    """Linear warm-up, then half a cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimiser(network: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (norms, biases, scales) are not decayed."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(0.9, 0.98),
    )


class Run:
    """One training run: network, optimiser and the step that they have reached."""

    def __init__(self, config: TrainConfig, out: Path, device: str) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.out, self.device = config, out, torch.device(device)
        self.network = Network(config.network).to(self.device)
        self.criterion = Criterion(config.criterion)
        self.optimiser = make_optimiser(self.network, config.train)
        self.step = 0
        if self.checkpoint.exists():
            self._resume()
        elif config.init is not None:
            self._load(Path(config.init))

    @property
    def checkpoint(self) -> Path:
        """Where the run keeps everything that it needs to go on."""
        return self.out / "checkpoint.safetensors"

    def advance(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns losses and statistics by name.

        Raises:
            TrainingError: a loss is not finite.
        """
        batch = batch.to(self.device)
        generator = torch.Generator().manual_seed(self.config.train.seed * 1_000_003 + self.step)
        lr = learning_rate(self.step, self.config.train)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16):
            losses, stats = self.criterion(self.network, batch, generator)
        self._check_finite(losses)
        weights = to_dict(self.config.loss)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.max_grad_norm)
        self.optimiser.step()
        self.step += 1
        values = {**losses, **stats, "grad_norm": norm}
        return {"lr": lr, **{name: float(value.detach()) for name, value in values.items()}}

    def save(self, metrics: dict[str, float]) -> None:
        """Writes the checkpoint, atomically."""
        state = {f"model.{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        names = {id(p): name for name, p in self.network.named_parameters()}
        for parameter, slots in self.optimiser.state.items():
            for slot, value in slots.items():
                state[f"optimiser.{slot}.{names[id(parameter)]}"] = value
        header = {"config": to_dict(self.config), "step": self.step, "metrics": metrics}
        save_checkpoint(self.checkpoint, state, header)

    def _resume(self) -> None:
        state, header = load_checkpoint(self.checkpoint)
        saved = from_dict(TrainConfig, header["config"])
        if saved.network != self.config.network:
            raise ConfigError(
                f"{self.checkpoint} is of another network; expected the configuration that it was "
                "started with; name another --out or take the old configuration"
            )
        self._load(self.checkpoint)
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
        self.step = int(header["step"])

    def _load(self, path: Path) -> None:
        state, _ = load_checkpoint(path)
        try:
            self.network.load_state_dict(weights_of(state))
        except RuntimeError as error:
            raise ConfigError(
                f"{path} holds weights of another network ({str(error).splitlines()[-1].strip()}); "
                "expected the configured one: change [network] or name another checkpoint"
            ) from error

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss '{name}' is {float(loss.detach())} at step {self.step}; expected "
                    "a finite number; lower train.lr or start again from the last checkpoint"
                )


class MetricsLog:
    """`metrics.csv`, one row every `every` steps with means since the last row."""

    def __init__(self, path: Path, every: int = 20) -> None:
        self.path, self.every = path, every
        self.rows: list[dict[str, float]] = []
        self.started = time.monotonic()

    def add(self, step: int, row: dict[str, float]) -> dict[str, float] | None:
        """Collects a step; returns the means when a row was written."""
        self.rows.append(row)
        if step % self.every:
            return None
        means = {name: sum(r[name] for r in self.rows) / len(self.rows) for name in row}
        means = {"step": step, "seconds": time.monotonic() - self.started, **means}
        self.rows.clear()
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(means))
            if is_new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" for k, v in means.items()})
        return means


def train(
    config: TrainConfig,
    out: Path,
    *,
    device: str = "cpu",
    num_workers: int = 2,
    progress: Progress = ignore_progress,
) -> Path:
    """Trains, or goes on training, into the folder `out`.

    Args:
        config: the recipe.
        out: RUN folder; its checkpoint is resumed from if it has one.
        device: of the network.
        num_workers: processes that render cities.
        progress: called with (what, done, total).

    Returns:
        The checkpoint's path.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be made ({error.strerror}); expected a folder, new or of a run"
        ) from error
    folders = prepare_cities(config.data, Path(config.cache), num_workers, progress)
    pairs = SyntheticPairs([open_city(f) for f in folders], config.data, config.train.seed)
    run = Run(config, out, device)
    log = MetricsLog(out / "metrics.csv")
    means: dict[str, float] = {}
    ends = (config.train.num_steps, config.train.stop_at)
    with event_writer(out) as write_event:
        try:
            for batch in training_batches(pairs, config.train, run.step):
                means = log.add(run.step + 1, run.advance(batch)) or means
                if run.step % log.every == 0:
                    write_event(means, run.step)
                if run.step % config.train.save_every == 0 or run.step in ends:
                    run.save(means)
                progress("training", run.step, config.train.num_steps)
        except KeyboardInterrupt:
            run.save(means)
            raise
    return run.checkpoint


def training_batches(pairs: SyntheticPairs, config: OptimConfig, start: int) -> Iterator[Batch]:
    """The batches from step `start` to the end."""
    stop = config.num_steps if config.stop_at is None else min(config.num_steps, config.stop_at)
    return pairs.batches(range(start, stop), config.batch_size, narrow_shares(config))


def narrow_shares(config: OptimConfig) -> Sequence[float]:
    """The share of pinhole photos at every step: a straight ramp."""
    first, last = config.narrow_share
    return [first + (last - first) * i / max(1, config.num_steps) for i in range(config.num_steps)]


@contextmanager
def event_writer(out: Path) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Writes TensorBoard events into RUN when the package is installed, else nothing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield lambda _means, _step: None
        return
    writer = SummaryWriter(str(out))

    def write(means: dict[str, float], step: int) -> None:
        for name, value in means.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()
