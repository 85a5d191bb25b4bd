"""The command line: one thin command per verb.

A command parses its options, imports its verb, calls it and prints. Nothing heavy is imported
before a command runs, so ``ciper --help`` answers at once. Results go to stdout; progress, notes
and errors go to stderr. Exit status: 0 done, 2 an error that CIPER names, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ciper.device import limit_threads, pick_device
from ciper.errors import CameraError, CiperError, ConfigError, PhotoError

if TYPE_CHECKING:
    from ciper.answers import Answer, Form

Progress = Callable[[str, int, int], None]

NEAR = "LAT,LON,RADIUS_M"
HEADING = "DEG,SIGMA"


class _Verbs(TyperGroup):
    """Runs a command and turns the errors that CIPER names into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CiperError as error:
            _note_error(error)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _note("interrupted; nothing that was finished is lost")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Device = Annotated[
    str | None, typer.Option(metavar="cpu|cuda|mps", help="Where to compute; cuda if present.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; as many as cores.")]
Seed = Annotated[int, typer.Option(min=0, help="Where everything random starts from.")]
Model = Annotated[
    str, typer.Option(metavar="NAME|FILE", help="Shipped weights, or a .safetensors file.")
]
Gallery = Annotated[Path, typer.Option(help="Folder that `ciper index` wrote.")]


def main() -> None:
    """Run the command line; the script ``ciper`` and ``python -m ciper`` call this."""
    app(prog_name="ciper")


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
        str, typer.Option(metavar="panorama|pinhole:DEG|nadir", help="What takes the photos.")
    ] = "panorama",
    rasters: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Cut nadir photos out of these; makes no city."),
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

    config = SimulateConfig(
        seed=seed,
        size_m=size_m,
        num_photos=num_photos,
        camera=camera,
        rasters=tuple(rasters or ()),
    )
    with _progress_bar() as progress:
        made = run(out, config, progress=progress)
    _note(f"wrote {made.num_photos} photos and {made.poses}")


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
    device = _set_up(device, threads)
    from ciper.index import IndexOptions, build_index
    from ciper.model.load import load_model

    options = IndexOptions(chip_m=chip_m, stride_m=stride_m, append=append)
    with _progress_bar() as progress:
        encoder = load_model(model, device)
        chip_m = encoder.chip_m if chip_m is None else chip_m
        encoder.check_grid(chip_m=chip_m, stride_m=chip_m / 2 if stride_m is None else stride_m)
        report = build_index(rasters, out, encoder, options, partial(progress, "chips"))
    _note(
        f"{report.path}: {report.num_chips} chips of {report.num_rasters} rasters, "
        f"{report.area_km2:.2f} km2, {report.seconds:.1f} s"
    )


@app.command()
def localize(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="Files, globs or folders.")
    ],
    gallery: Gallery,
    model: Model = "ground",
    near: Annotated[
        str | None, typer.Option(metavar=NEAR, help="A last known place, such as a GPS fix.")
    ] = None,
    heading: Annotated[
        str | None,
        typer.Option(metavar=HEADING, help="A compass: from true north, and its spread."),
    ] = None,
    projection: Annotated[
        str | None, typer.Option(metavar="equirectangular|pinhole", help="Of the photos.")
    ] = None,
    hfov: Annotated[
        float | None, typer.Option(metavar="DEG", help="Horizontal field of view.")
    ] = None,
    pitch: Annotated[
        float | None, typer.Option(metavar="DEG", help="Up is positive, -90 looks down.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many hypotheses to report.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    as_geojson: Annotated[bool, typer.Option("--geojson", help="Write GeoJSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="OUT.png", help="Draw the answer; OUT-PHOTO.png for several photos."),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Say where photos were taken: position, heading and how sure that is."""
    form = _form(json=as_json, geojson=as_geojson, csv=as_csv)
    place = _numbers(near, NEAR, option="--near")
    compass = _numbers(heading, HEADING, option="--heading")
    device = _set_up(device, threads)
    from ciper.answers import answer_of, format_answers
    from ciper.camera import CameraOverrides
    from ciper.data.photos import find_photos
    from ciper.localize import Localizer
    from ciper.prior import Heading, Near

    files = find_photos(photos)
    pictures = None if picture is None else _picture_paths(picture, files)
    camera = CameraOverrides(projection=projection, hfov_deg=hfov, pitch_deg=pitch)
    near_prior = None if place is None else Near(*place)
    heading_prior = None if compass is None else Heading(*compass)
    localizer = Localizer(gallery, model, device)
    answers: list[Answer] = []
    misread: list[str] = []

    def answer(photo: Path) -> None:
        found = localizer.localize(photo, near=near_prior, heading=heading_prior, camera=camera)
        misread.extend(found.metadata.problems)
        answers.append(answer_of(found, localizer.gallery.chips, num_hypotheses=top))
        if pictures is not None:
            from ciper.data.preprocess import read_photo
            from ciper.picture import answer_picture

            answer_picture(found, localizer, read_photo(photo), pictures[photo], top=top)

    problems, stop = _answer_all(files, answer)
    if answers or stop is None:
        typer.echo(format_answers(answers, form), nl=False)
    _note_assumed_cameras(answers)
    _note_unknown_headings(answers)
    _note_misread(misread)
    for problem in problems:
        _note_error(problem)
    if stop is not None:
        raise stop
    if problems:
        raise typer.Exit(2)


def _answer_all(
    photos: Sequence[Path], answer: Callable[[Path], None]
) -> tuple[list[CiperError], CiperError | KeyboardInterrupt | None]:
    """Answer photo by photo; what goes wrong must not cost the answers that there are.

    Returns:
        What was wrong with single photos, and what stopped the run before its end, to be raised
        when the answers have been printed.
    """
    problems: list[CiperError] = []
    try:
        with _progress_bar() as progress:
            for done, photo in enumerate(photos, start=1):
                try:
                    answer(photo)
                except (PhotoError, CameraError) as error:
                    problems.append(error)
                progress("photos", done, len(photos))
    except (CiperError, KeyboardInterrupt) as error:
        return problems, error
    return problems, None


@app.command()
def evaluate(
    poses: Annotated[str, typer.Argument(metavar="POSES.csv", help="Photos and their truth.")],
    out: Annotated[Path, typer.Option(help="Folder of the report; an older one is replaced.")],
    gallery: Annotated[Path | None, typer.Option(help="Folder that `ciper index` wrote.")] = None,
    model: Model = "ground",
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
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Compare answers with the truth: metrics.json, per_query.parquet, report.md and plots."""
    device = _set_up(device, threads)
    from ciper.evaluate import evaluate as run
    from ciper.scoring import EvaluateOptions

    options = EvaluateOptions(near_error, near_radius, tuple(foreign or ()))
    with _progress_bar() as progress:
        figures = run(
            poses,
            out,
            gallery=gallery,
            model=model,
            seed=seed,
            device=device,
            options=options,
            progress=progress,
        )
    for warning in figures["warnings"]:
        _note(f"warning: {warning}")
    _note(f"wrote {out / 'report.md'}")


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
    device = _set_up(device, threads)
    from ciper.config import load_config
    from ciper.train import TrainConfig
    from ciper.train import train as run

    settings = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
    recipe = load_config(TrainConfig, config, settings)
    with _progress_bar() as progress:
        checkpoint = run(recipe, out, device=device, num_workers=workers, progress=progress)
    _note(f"wrote {checkpoint}")


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
    _set_up(device, threads)
    from ciper.convert import LARGEST_DIFFERENCE
    from ciper.convert import convert as run

    made = run(source, out, dataset, gsd=gsd, verify=verify)
    for name, value in made.differences.items():
        typer.echo(f"{name}: largest difference {value:.2e}")
    if not made.is_right:
        _note(f"error: a difference is above {LARGEST_DIFFERENCE:g}; {out} was not written")
        raise typer.Exit(1)
    _note(
        f"wrote {out}: {made.num_parameters:,} parameters, chips of {made.config.side_m:g} m at "
        f"{made.config.gsd:.4g} m/px"
    )


@app.command()
def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="RUN/checkpoint.safetensors, or weights.")],
    out: Annotated[Path, typer.Option(help="Weights file to write.")],
    cache: Annotated[Path, typer.Option(help="Keeps the validation cities.")] = Path(
        "cache/calibrate"
    ),
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 200_001,
) -> None:
    """Fit a model's probabilities on validation cities and write its weights."""
    device = _set_up(device, threads)
    from ciper.calibrate import CalibrateConfig
    from ciper.calibrate import calibrate as run

    config = CalibrateConfig(seeds=(seed, seed + 1, seed + 2))
    with _progress_bar() as progress:
        run(checkpoint, out, config, cache=cache, device=device, progress=progress)
    _note(f"wrote {out}")


def _set_up(device: str | None, threads: int | None) -> str:
    """Limit the threads before anything numerical is loaded, then look for the device."""
    limit_threads(threads)
    return pick_device(device)


def _form(**is_asked: bool) -> Form:
    """The one form of output that was asked for, or text for people.

    Raises:
        ConfigError: There are several.
    """
    asked: list[Any] = [form for form, is_on in is_asked.items() if is_on]
    if len(asked) > 1:
        raise ConfigError(f"--{' and --'.join(asked)}: expected one form of output; leave one out.")
    form: Form = asked[0] if asked else "text"
    return form


def _picture_paths(picture: Path, photos: Sequence[Path]) -> dict[Path, Path]:
    """OUT.png for one photo, OUT-PHOTO.png for each of several, numbered where names repeat.

    Raises:
        ConfigError: OUT.png is none.
    """
    if picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture {picture}: expected a name that ends in .png.")
    if len(photos) == 1:
        return {photos[0]: picture}
    paths: dict[Path, Path] = {}
    for photo in photos:
        stem, number = f"{picture.stem}-{photo.stem}", 1
        path = picture.with_stem(stem)
        while path in paths.values():
            number += 1
            path = picture.with_stem(f"{stem}-{number}")
        paths[photo] = path
    return paths


def _numbers(text: str | None, form: str, *, option: str) -> tuple[float, ...] | None:
    """The numbers of an option such as ``LAT,LON,RADIUS_M``.

    Raises:
        ConfigError: There are more or fewer than the form has, or one is not a number.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != form.count(",") + 1:
        raise ConfigError(f"{option} {text!r}: expected numbers as {form}.")
    return values


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Bars on stderr with the time left; yields what a verb calls with (what, done, total)."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("left:"),
        bars.TimeRemainingColumn(),
        bars.TimeElapsedColumn(),
    )
    tasks: dict[str, bars.TaskID] = {}
    display = bars.Progress(*columns, console=Console(stderr=True))

    def update(what: str, done: int, total: int) -> None:
        # Started with the first news: a verb that fails at once leaves its one line and no more.
        display.start()
        # "training | 41 pairs/s": one bar, whose note changes.
        name = what.partition(" | ")[0]
        if name not in tasks:
            tasks[name] = display.add_task(name, total=total)
        display.update(
            tasks[name], description=what.replace(" | ", ", "), completed=done, total=total
        )

    try:
        yield update
    finally:
        if tasks:
            display.stop()


def _note_assumed_cameras(answers: Sequence[Answer]) -> None:
    num_assumed = sum(answer["camera"] == "assumed" for answer in answers)
    if num_assumed:
        _note(
            f"note: {num_assumed} of {len(answers)} photos do not tell their field of view; "
            "assumed 60 to 90 deg, --hfov DEG would make the answers sharper"
        )


def _note_unknown_headings(answers: Sequence[Answer]) -> None:
    if any(answer.get("heading_sigma_deg", 0.0) is None for answer in answers):
        _note(
            "warning: this model says nothing of headings, they are null; it takes the middle of a "
            "panorama for north unless --heading DEG,SIGMA says where it looks"
        )


def _note_misread(problems: Sequence[str]) -> None:
    """What the photos' metadata leave open: each kind once."""
    for problem in dict.fromkeys(problems):
        count = problems.count(problem)
        times = f" ({count} photos)" if count > 1 else ""
        _note(f"warning: {' '.join(problem.split())}{times}")


def _note_error(error: CiperError) -> None:
    """One line, whatever line breaks a library's message brought along."""
    _note(f"error: {' '.join(str(error).split())}")


def _note(line: str) -> None:
    typer.echo(line, err=True)


# -------------------------------------------------------------------------------------- benchmarks

benchmarks = typer.Typer(no_args_is_help=True, help="Measure accuracy.")
app.add_typer(benchmarks, name="benchmark")


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
            "training, d field of view, e change and occlusion.",
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
    device = _set_up(device, threads)
    from ciper.benchmark import AccuracyOptions, parse_parts, study_config
    from ciper.benchmark import accuracy as run

    config = study_config(device, is_quick=quick, num_pairs=pairs, num_seeds=seeds)
    options = AccuracyOptions(config, parse_parts(only), model, device, cache, max_minutes)
    with _progress_bar() as progress:
        result = run(out, options, progress=progress)
    if result.num_missing:
        _note(f"{result.num_missing} cells are missing so far; the same command goes on with them")
    _note(f"wrote {result.report}")
