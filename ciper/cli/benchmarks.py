"""The commands of `ciper benchmark`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ciper.cli.options import Device, Model, Seed, Threads, set_up
from ciper.cli.screen import note, progress_bar

benchmarks = typer.Typer(no_args_is_help=True, help="Measure accuracy, simulated and real.")


@benchmarks.callback()
def _benchmark() -> None:
    """Measure CIPER itself."""


@benchmarks.command()
def accuracy(
    out: Annotated[Path, typer.Option(metavar="REPORT", help="Folder, new or to go on with.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny: proves the command, not the conclusions.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="a,b,...",
            help="Parts: a decoder, b tokens, c joint "
            "training, d field of view, e change and occlusion, f initialisation.",
        ),
    ] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs of a training.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions of a training.")] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The weights that d and e evaluate.")
    ] = "ground",
    cache: Annotated[Path, typer.Option(help="Keeps the rendered cities.")] = Path(
        "cache/synthetic"
    ),
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop then; the same command goes on.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Train and evaluate what the accuracy tables show; goes on after an interruption."""
    device = set_up(device, threads)
    from ciper.benchmark import AccuracyOptions, parse_parts, study_config
    from ciper.benchmark import accuracy as run

    config = study_config(device, is_quick=quick, num_pairs=pairs, num_seeds=seeds)
    options = AccuracyOptions(config, parse_parts(only), model, device, cache, max_minutes)
    with progress_bar() as progress:
        result = run(out, options, progress=progress)
    if result.num_missing:
        note(f"{result.num_missing} cells are missing so far; the same command goes on with them")
    for refusal in result.refusals:
        note(refusal)
    note(f"wrote {result.report}")


@benchmarks.command()
def photos(
    out: Annotated[Path, typer.Option(metavar="REPORT", help="Folder, new or of an old report.")],
    model: Model = "ground",
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="poses.csv (id, compass_deg), ID_ground.jpg, ID_aerial.jpg; "
            "$CIPER_REAL_DATA/helsinki.",
        ),
    ] = None,
    distractors: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Rasters from elsewhere, a chip of each; repeatable."),
    ] = None,
    seed: Seed = 20_260_102,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Hold a few real photos against real aerial imagery, and the answers against chance."""
    device = set_up(device, threads)
    from ciper.real_photos.evaluation import RealPhotosOptions, measure_real_photos

    options = RealPhotosOptions(folder, model, tuple(distractors or ()), device, seed)
    with progress_bar() as progress:
        measure_real_photos(out, options, progress)
    note(f"wrote {out / 'report.md'}")


@benchmarks.command()
def nadir(
    out: Annotated[Path, typer.Option(metavar="REPORT", help="Folder, new or of an old report.")],
    photos: Annotated[
        list[str],
        typer.Option(metavar="RASTERS", help="Photos are cut out of these, of one date."),
    ],
    imagery: Annotated[
        list[str],
        typer.Option(metavar="RASTERS", help="They are searched in these, of another date."),
    ],
    model: Model = "ground",
    num_photos: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    num_classical: Annotated[
        int, typer.Option(min=0, help="Of them for template matching and SIFT, which are slow.")
    ] = 40,
    height_error: Annotated[
        float, typer.Option(min=0, help="How wrong told heights are, as a share: 0.05 is 5 %.")
    ] = 0.0,
    tells_height: Annotated[
        bool, typer.Option("--height/--no-height", help="Whether heights are told at all.")
    ] = True,
    cache: Annotated[Path, typer.Option(help="Keeps photos and galleries.")] = Path("cache/nadir"),
    seed: Seed = 7,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Search photos that look straight down in imagery of another date; classical methods too."""
    device = set_up(device, threads)
    from ciper.nadir_benchmark import NadirBenchmarkOptions, benchmark_nadir

    options = NadirBenchmarkOptions(
        photos=tuple(photos),
        imagery=tuple(imagery),
        model=model,
        num_photos=num_photos,
        num_classical=num_classical,
        height_error=height_error if tells_height else None,
        seed=seed,
        device=device,
        num_threads=threads or os.cpu_count() or 1,
        cache=cache,
    )
    with progress_bar() as progress:
        figures = benchmark_nadir(out, options, progress=progress)
    for warning in figures["model"]["warnings"]:
        note(f"warning: {warning}")
    note(f"wrote {out / 'report.md'}")
