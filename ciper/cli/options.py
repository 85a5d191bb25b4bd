"""Options that several commands share or that have a form of their own, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ciper.device import limit_threads, pick_device
from ciper.errors import ConfigError

if TYPE_CHECKING:
    from ciper.answers import Form

NEAR = "LAT,LON,RADIUS_M"
HEADING = "DEG,SIGMA"

# ------------------------------------------------------------------------------------- of all verbs

Device = Annotated[
    str | None, typer.Option(metavar="cpu|cuda|mps", help="Where to compute; cuda if present.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; as many as cores.")]
Seed = Annotated[int, typer.Option(min=0, help="Where everything random starts from.")]
Model = Annotated[
    str, typer.Option(metavar="NAME|FILE", help="Shipped weights, or a .safetensors file.")
]
ModelOfGallery = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Shipped weights, or a .safetensors file; if none, what the gallery was made with.",
    ),
]
Gallery = Annotated[Path, typer.Option(help="Folder that `ciper index` wrote.")]

# ------------------------------------------------------------------------------------ of `localize`

NearPrior = Annotated[
    str | None, typer.Option(metavar=NEAR, help="A last known place, such as a GPS fix.")
]
HeadingPrior = Annotated[
    str | None, typer.Option(metavar=HEADING, help="A compass: from true north, and its spread.")
]
Projection = Annotated[
    str | None, typer.Option(metavar="equirectangular|pinhole", help="Of the photos.")
]
FieldOfView = Annotated[float | None, typer.Option(metavar="DEG", help="Horizontal field of view.")]
Pitch = Annotated[float | None, typer.Option(metavar="DEG", help="Up is positive, -90 looks down.")]
Height = Annotated[
    float | None,
    typer.Option(metavar="METRES", help="Above the ground; asked of photos that look down."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]
AsGeojson = Annotated[bool, typer.Option("--geojson", help="Write GeoJSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Write CSV.")]
Picture = Annotated[
    Path | None,
    typer.Option(metavar="OUT.png", help="Draw the answer; OUT-PHOTO.png for several photos."),
]

# ---------------------------------------------------------------------------------------- as values


def set_up(device: str | None, threads: int | None) -> str:
    """Limit the threads before anything numerical is loaded, then look for the device."""
    limit_threads(threads)
    return pick_device(device)


def one_form(**is_asked: bool) -> Form:
    """The one form of output that was asked for, or text for people.

    Raises:
        ConfigError: There are several.
    """
    asked: list[Any] = [form for form, is_on in is_asked.items() if is_on]
    if len(asked) > 1:
        raise ConfigError(f"--{' and --'.join(asked)}: expected one form of output; leave one out.")
    form: Form = asked[0] if asked else "text"
    return form


def picture_paths(picture: Path | None, photos: Sequence[Path]) -> dict[Path, Path]:
    """OUT.png for one photo, OUT-PHOTO.png for each of several, numbered where names repeat.

    Raises:
        ConfigError: OUT.png is none.
    """
    if picture is None:
        return {}
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


def numbers(text: str | None, form: str, *, option: str) -> tuple[float, ...] | None:
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
