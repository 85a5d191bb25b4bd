"""The verbs as commands."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ciper.cli.answering import Question, answer_all, print_answers
from ciper.cli.benchmarks import benchmarks
from ciper.cli.datasets import datasets
from ciper.cli.imagery import imagery
from ciper.cli.options import (
    HEADING,
    NEAR,
    AsCsv,
    AsGeojson,
    AsJson,
    Device,
    FieldOfView,
    Gallery,
    HeadingPrior,
    Height,
    Model,
    ModelOfGallery,
    NearPrior,
    Picture,
    Pitch,
    Projection,
    Seed,
    Threads,
    numbers,
    one_form,
    picture_paths,
    set_up,
)
from ciper.cli.protocols import (
    GRID,
    HeadingNoise,
    Labels,
    Reading,
    ShownFov,
    Split,
    protocol_options,
)
from ciper.cli.screen import Verbs, note, progress_bar
from ciper.device import limit_threads, pick_device
from ciper.errors import ConfigError

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(benchmarks, name="benchmark")
app.add_typer(datasets, name="data")
app.add_typer(imagery, name="imagery")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from ciper import __version__

        typer.echo(f"ciper {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    is_version_asked: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Say and leave."),
    ] = False,
) -> None:
    """From a ground photo to a position on the map."""


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    size_m: Annotated[float, typer.Option(help="Side of the square city.")] = 1000.0,
    num_photos: Annotated[int, typer.Option(min=0, help="How many photos to take.")] = 200,
    camera: Annotated[
        str | None,
        typer.Option(metavar="panorama|pinhole:DEG|nadir", help="What takes the photos; panorama."),
    ] = None,
    rasters: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Cut nadir photos out of these; makes no city."),
    ] = None,
    footprints: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Build the city of a GeoJSON, GeoPackage, .osm or .osm.pbf file."
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="LAT,LON", help="Its middle; where it has the most buildings."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="vigor|kitti|ford", help="Write a small data set as these are laid out."
        ),
    ] = None,
    seed: Seed = 7,
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Make a synthetic city: aerial.tif, photos/*.jpg and poses.csv."""
    limit_threads(threads)
    if device is not None:
        # Nothing of this verb runs elsewhere than on the CPU, but a wrong name is still wrong.
        pick_device(device)
    from ciper.simulate import SimulateConfig
    from ciper.simulate import simulate as run

    if layout is not None and camera is not None:
        raise ConfigError(f"--layout {layout} has a camera of its own; leave --camera out")
    place = numbers(at, "LAT,LON", option="--at")
    config = SimulateConfig(
        seed=seed,
        size_m=size_m,
        num_photos=num_photos,
        camera=camera or "panorama",
        rasters=tuple(rasters or ()),
        layout=layout,
        footprints=footprints,
        at=None if place is None else (place[0], place[1]),
    )
    with progress_bar() as progress:
        made = run(out, config, progress=progress)
    note(f"wrote {made.num_photos} photos and {made.poses}")
    if layout is not None:
        note(f"next: ciper data check {layout}:{out}")


@app.command()
def index(
    rasters: Annotated[list[str], typer.Argument(metavar="RASTER...", help="Files or globs.")],
    out: Annotated[Path, typer.Option(help="Gallery folder to write.")],
    model: Model = "ground",
    chip_m: Annotated[
        float | None, typer.Option(help="Side of a chip; the model's, 128 of the shipped one.")
    ] = None,
    stride_m: Annotated[
        float | None, typer.Option(help="Distance between chips; half of their side.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to a finished gallery.")] = False,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Encode rasters into a gallery; goes on by itself after an interruption."""
    device = set_up(device, threads)
    from ciper.index import IndexOptions, build_index
    from ciper.model.load import load_model

    options = IndexOptions(chip_m=chip_m, stride_m=stride_m, append=append)
    with progress_bar() as progress:
        encoder = load_model(model, device)
        chip_m = encoder.chip_m if chip_m is None else chip_m
        encoder.check_grid(chip_m=chip_m, stride_m=chip_m / 2 if stride_m is None else stride_m)
        report = build_index(rasters, out, encoder, options, partial(progress, "chips"))
    note(
        f"{report.path}: {report.num_chips} chips of {report.num_rasters} rasters, "
        f"{report.area_km2:.2f} km2, {report.seconds:.1f} s"
    )


@app.command()
def localize(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="Files, globs or folders.")
    ],
    gallery: Gallery,
    model: ModelOfGallery = None,
    near: NearPrior = None,
    heading: HeadingPrior = None,
    projection: Projection = None,
    hfov: FieldOfView = None,
    pitch: Pitch = None,
    height: Height = None,
    top: Annotated[int, typer.Option(min=1, help="How many hypotheses to report.")] = 5,
    as_json: AsJson = False,
    as_geojson: AsGeojson = False,
    as_csv: AsCsv = False,
    picture: Picture = None,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Say where photos were taken: position, heading and how sure that is."""
    form = one_form(json=as_json, geojson=as_geojson, csv=as_csv)
    place = numbers(near, NEAR, option="--near")
    compass = numbers(heading, HEADING, option="--heading")
    device = set_up(device, threads)
    from ciper.camera import CameraOverrides
    from ciper.data.photos import find_photos
    from ciper.localize import Localizer
    from ciper.prior import Heading, Near

    files = find_photos(photos)
    question = Question(
        near=None if place is None else Near(*place),
        heading=None if compass is None else Heading(*compass),
        camera=CameraOverrides(
            projection=projection, hfov_deg=hfov, pitch_deg=pitch, height_m=height
        ),
        num_hypotheses=top,
        pictures=picture_paths(picture, files),
    )
    print_answers(answer_all(files, Localizer(gallery, model, device), question), form)


@app.command()
def evaluate(
    poses: Annotated[
        str,
        typer.Argument(
            metavar="POSES.csv|vigor:ROOT|kitti:ROOT|ford:ROOT",
            help="Photos and their truth, or a published data set.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the report; an older one is replaced.")],
    gallery: Annotated[Path | None, typer.Option(help="Folder that `ciper index` wrote.")] = None,
    model: ModelOfGallery = None,
    near_error: Annotated[
        float | None,
        typer.Option(metavar="M", help="Also with a prior that is this wrong, any direction."),
    ] = None,
    near_radius: Annotated[
        float | None, typer.Option(metavar="M", help="Of that prior; 1.5 times its error.")
    ] = None,
    foreign: Annotated[
        list[str] | None,
        typer.Option(metavar="POSES.csv|GLOB", help="Photos taken elsewhere; may be repeated."),
    ] = None,
    split: Split = None,
    labels: Labels = None,
    fov: ShownFov = None,
    heading_noise: HeadingNoise = None,
    protocol: Reading = None,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Compare answers with the truth: metrics.json, per_query.parquet, report.md and plots."""
    device = set_up(device, threads)
    from ciper.evaluate import evaluate as run
    from ciper.scoring import EvaluateOptions

    asked = protocol_options(
        split=split,
        labels=labels,
        fov=fov,
        heading_noise=heading_noise,
        protocol=protocol,
        seed=seed,
    )
    options = EvaluateOptions(near_error, near_radius, tuple(foreign or ()))
    with progress_bar() as progress:
        figures = run(
            poses,
            out,
            gallery=gallery,
            model=model,
            seed=seed,
            device=device,
            options=options,
            protocol=asked,
            is_on_grid=protocol == GRID,
            progress=progress,
        )
    for warning in figures["warnings"]:
        note(f"warning: {warning}")
    note(f"wrote {out / 'report.md'}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The recipe.")],
    out: Annotated[Path, typer.Option(help="Folder of the run, new or to go on with.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value ...]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render cities.")] = 2,
    device: Device = None,
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same as train.seed=SEED.")] = None,
) -> None:
    """Train a model; goes on by itself after an interruption."""
    device = set_up(device, threads)
    from ciper.config import load_config
    from ciper.train import TrainConfig
    from ciper.train import train as run

    settings = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
    recipe = load_config(TrainConfig, config, settings)
    with progress_bar() as progress:
        checkpoint = run(recipe, out, device=device, num_workers=workers, progress=progress)
    note(f"wrote {checkpoint}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="MODEL.pth", help="A released checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="MODEL.safetensors", help="Weights to write.")],
    dataset: Annotated[
        str, typer.Option(metavar="vigor|kitti|ford", help="What it was trained on.")
    ],
    gsd: Annotated[
        float | None,
        typer.Option(metavar="M", help="Of the data set's chips, if not as published."),
    ] = None,
    heading_range: Annotated[
        float | None,
        typer.Option(metavar="10|180", help="KITTI, Ford: how far chips were off the heading."),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="EXPECTED.safetensors", help="Inputs and outputs to compare with."),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Turn a checkpoint of the authors' code into weights that every verb takes."""
    # It computes on the CPU, but a wrong name of a device is still wrong.
    set_up(device, threads)
    from ciper.convert import LARGEST_DIFFERENCE
    from ciper.convert import convert as run

    range_deg = 180.0 if heading_range is None else heading_range
    made = run(source, out, dataset, gsd=gsd, heading_range_deg=range_deg, verify=verify)
    for name, value in made.differences.items():
        typer.echo(f"{name}: largest difference {value:.2e}")
    if not made.is_right:
        note(f"error: a difference is above {LARGEST_DIFFERENCE:g}; {out} was not written")
        raise typer.Exit(1)
    note(
        f"wrote {out}: {made.num_parameters:,} parameters, chips of {made.config.side_m:g} m at "
        f"{made.config.gsd:.4g} m/px"
    )
    if heading_range is None and dataset != "vigor":
        note(
            "warning: taken to know all headings; if its training had turned the chips to within "
            "10 deg of the heading, as half of the published ones, say --heading-range 10"
        )


@app.command()
def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="RUN/checkpoint.safetensors, or weights.")],
    out: Annotated[Path, typer.Option(help="Weights file to write.")],
    cache: Annotated[Path, typer.Option(help="Keeps the validation cities.")] = Path(
        "cache/calibrate"
    ),
    nadir_photos: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RASTERS",
            help="Calibrate photos that look straight down, cut out of these, instead.",
        ),
    ] = None,
    nadir_imagery: Annotated[
        list[str] | None,
        typer.Option(metavar="RASTERS", help="The same places at another date."),
    ] = None,
    nadir_elsewhere: Annotated[
        list[str] | None, typer.Option(metavar="RASTERS", help="Other places.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 200_001,
) -> None:
    """Fit a model's probabilities on validation cities and write its weights."""
    device = set_up(device, threads)
    from ciper.calibrate import calibrate as run
    from ciper.calibration_cities import CalibrateConfig, NadirImagery
    from ciper.errors import ConfigError

    rasters = [tuple(r or ()) for r in (nadir_photos, nadir_imagery, nadir_elsewhere)]
    if any(rasters) and not all(rasters):
        raise ConfigError(
            "--nadir-photos, --nadir-imagery and --nadir-elsewhere belong together; expected all "
            "three or none"
        )
    nadir = NadirImagery(*rasters) if any(rasters) else None
    config = CalibrateConfig(seeds=(seed, seed + 1, seed + 2))
    with progress_bar() as progress:
        run(checkpoint, out, config, cache=cache, nadir=nadir, device=device, progress=progress)
    note(f"wrote {out}")
