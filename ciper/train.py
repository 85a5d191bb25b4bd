"""Training: one joint objective over retrieval and poses; seeded, logged, validated, resumable.

A run that is started again with the same RUN folder goes on from its checkpoint. Several processes
train one run when `torchrun` starts them (see `training.team`).
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ciper.data.batches import Drawing, Pairs
from ciper.data.sample import Batch
from ciper.data.synthetic import (
    CHIP_PX,
    ELEVATION_DEG,
    SyntheticConfig,
    SyntheticPairs,
    find_city,
    open_city,
    render_city,
)
from ciper.errors import ConfigError, OutputError
from ciper.training.log import Pace, RunLog
from ciper.training.recipe import (
    LossWeights,
    OptimConfig,
    TrainConfig,
    make_criterion,
    make_network,
    narrow_shares,
)
from ciper.training.run import Run
from ciper.training.team import Team, join_team

if TYPE_CHECKING:
    from ciper.data.pairs import Damage

__all__ = [
    "LossWeights",
    "OptimConfig",
    "Run",
    "TrainConfig",
    "make_criterion",
    "make_network",
    "prepare_cities",
    "train",
]

Progress = Callable[[str, int, int], None]


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """The silent progress callback."""


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
        progress: called with (what, done, total); what may end in " | " and a note.

    Returns:
        The checkpoint's path.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was finished and the run is saved.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be made ({error.strerror}); expected a folder, new or of a run"
        ) from error
    team = join_team(device)
    if not team.is_first:
        progress = ignore_progress
    try:
        if team.is_first and not (config.real.spec or config.data.rasters):
            prepare_all_cities(config, num_workers, progress)
        team.wait()
        run = Run(config, out, device, team)
        _train(run, open_data(config, team), progress)
    finally:
        team.leave()
    return run.checkpoint


def prepare_cities(
    config: SyntheticConfig,
    cache: Path,
    num_workers: int,
    progress: Progress = ignore_progress,
    *,
    seeds: Sequence[int] | None = None,
) -> list[Path]:
    """Renders the cities that `cache` lacks, `num_workers` at a time; returns their folders.

    `seeds` are those of the training cities if None.
    """
    seeds = config.training_seeds if seeds is None else seeds
    missing = [seed for seed in seeds if find_city(seed, config, cache) is None]
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))
    try:
        jobs = [pool.submit(render_city, seed, config, cache) for seed in missing]
        for done, job in enumerate(jobs, start=1):
            job.result()
            progress("rendering cities", done, len(jobs))
        return [cache / str(seed) for seed in seeds]
    finally:
        # After an error or an interruption the cities that wait are not rendered first.
        pool.shutdown(cancel_futures=True)


def prepare_all_cities(config: TrainConfig, num_workers: int, progress: Progress) -> None:
    """Renders the cities to train and to validate on that the cache lacks."""
    data = config.data
    seeds = (*data.training_seeds, *data.plan_seeds, *data.validation_seeds)
    prepare_cities(config.data, Path(config.cache), num_workers, progress, seeds=seeds)


@dataclass(frozen=True)
class Data:
    """The pairs of a run; `validation` is None when it does not validate.

    `damage` tells which samples of a data set were skipped; None for rendered cities. `note` is
    what is to be known of the data while it is trained on.
    """

    training: Pairs
    validation: Pairs | None
    damage: Damage | None = None
    note: str = ""


def open_data(config: TrainConfig, team: Team) -> Data:
    """Opens the data set or the rendered cities; each process makes its part of every batch.

    Raises:
        ConfigError: the network expects chips or canvases of another geometry, or something is
            said to be known of poses that are drawn without it.
        DatasetError: the data set is not as published.
    """
    if config.criterion.known is not None:
        raise ConfigError(
            "criterion.known is set, but the data have any heading, and cameras anywhere in the "
            "chip's central half; expected none: the study alone has pairs that keep to it"
        )
    if config.real.spec:
        # Only here, for the label files of data sets take geodesy, which nothing else here needs.
        from ciper.training.real import open_pairs

        training, validation = open_pairs(config, team)
        return Data(training, validation, training.damage)
    if config.data.rasters:
        # Only here, for it takes the libraries that read rasters.
        from ciper.training.nadir import open_nadir_pairs

        nadir, held_out = open_nadir_pairs(config, team)
        return Data(nadir, held_out, note=nadir.sites.note)
    check_geometry(config)
    data, train = config.data, config.train
    cities, others = (
        [open_city(Path(config.cache) / str(seed)) for seed in seeds]
        for seeds in ((*data.training_seeds, *data.plan_seeds), data.validation_seeds)
    )
    drawing = Drawing(train.seed, train.neighbour_share, (team.rank, team.size))
    return Data(
        SyntheticPairs(cities, data, drawing),
        SyntheticPairs(others, data, Drawing(train.seed)) if others else None,
    )


def check_geometry(config: TrainConfig) -> None:
    """Refuses networks for which the synthetic chips and canvases would have other metres and rays.

    Raises:
        ConfigError: the chip's side or the canvas's elevations differ.
    """
    network = config.inputs
    top_deg, bottom_deg = network.elevation_top_deg, network.elevation_bottom_deg
    wanted = (network.chip_px * network.gsd, top_deg, bottom_deg)
    made = (CHIP_PX * config.data.gsd, *ELEVATION_DEG)
    if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(wanted, made, strict=True)):
        raise ConfigError(
            f"the network takes chips of {wanted[0]:g} m and canvases of {wanted[1]:g} to "
            f"{wanted[2]:g} deg; expected {made[0]:g} m and {made[1]:g} to {made[2]:g} deg, as "
            "the synthetic cities have: set data.gsd, or gsd, elevation_top_deg and "
            f"elevation_bottom_deg of {'network' if config.model == 'ciper' else 'paper'}"
        )


def training_steps(run: Run, pairs: Pairs) -> Iterator[tuple[Batch, ...]]:
    """The batches of every step from the run's to its end; mines where that is due.

    The caller advances the run between two steps. Batches are made ahead only as far as the mined
    table is known.
    """
    config = run.config.train
    shares = [share for share in narrow_shares(config) for _ in range(config.accumulate)]
    while not run.is_finished:
        end = config.last_step
        if config.mine_every:
            if run.step and run.step % config.mine_every == 0:
                run.mine(pairs)
            end = min(end, run.step + config.mine_every - run.step % config.mine_every)
        pairs.mined = run.mined
        steps = range(run.step, end)
        batches = pairs.batches(
            range(steps.start * config.accumulate, steps.stop * config.accumulate),
            config.batch_size,
            shares,
            num_threads=config.num_loaders,
        )
        for _ in steps:
            yield tuple(next(batches) for _ in range(config.accumulate))
            if run.has_stalled:
                break


def _train(run: Run, data: Data, progress: Progress) -> None:
    """Takes the run's steps; saves regularly, at the end, and when it is told to stop."""
    config = run.config.train
    pace = Pace(config.batch_size * config.accumulate)
    folder = run.out if run.team.is_first else None
    with RunLog(folder, run.step) as log, stop_requests() as stop:
        for batches in training_steps(run, data.training):
            row = run.advance(*batches)
            pace.tick()
            paces = pace.metrics(config.num_steps - run.step)
            log.add_step(run.step, {**paces, **row, **_damage_metrics(data.damage)})
            if data.validation is not None and _is_due(config.validate_every, run):
                log.add_validation(run.step, run.validate(data.validation))
            if _is_due(config.save_every, run) or run.is_finished:
                _save(run, log, data.damage)
            note = f"{pace.pairs_per_s:.0f} pairs/s{_damage_note(data.damage)}"
            note = f"{note} | {data.note}" if data.note else note
            progress(f"training | {note}", run.step, config.num_steps)
            if run.team.any(stop.is_set()):
                _save(run, log, data.damage)
                raise KeyboardInterrupt


def _save(run: Run, log: RunLog, damage: Damage | None) -> None:
    """Saves the run, its metrics, and which samples of its data set it has skipped."""
    run.save(log.flush())
    if damage is not None and run.team.is_first:
        from ciper.training.real import write_damaged

        write_damaged(run.out, damage.reasons)


def _damage_metrics(damage: Damage | None) -> dict[str, float]:
    return {} if damage is None else {"num_damaged": float(len(damage.reasons))}


def _damage_note(damage: Damage | None) -> str:
    if damage is None or not damage.reasons:
        return ""
    return f" | {len(damage.reasons)} damaged samples skipped, see damaged.csv"


def _is_due(every: int, run: Run) -> bool:
    """At every so many steps, 0 for never, and at the run's end."""
    return every > 0 and (run.step % every == 0 or run.step == run.config.train.num_steps)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turns SIGTERM and SIGINT (Ctrl-C) into a request, so that no step is left half done.

    A second SIGINT interrupts at once. Threads cannot watch signals: there nothing is requested.
    """
    requested = threading.Event()

    def request(_number: int, _frame: FrameType | None) -> None:
        requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
