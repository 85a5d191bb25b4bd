"""The commands of `ciper imagery`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ciper.cli.options import numbers
from ciper.cli.screen import note, progress_bar
from ciper.errors import ConfigError

BBOX = "W,S,E,N"

imagery = typer.Typer(no_args_is_help=True, help="Fetch aerial imagery.")


@imagery.callback()
def _imagery() -> None:
    """Imagery of others."""


@imagery.command()
def fetch(
    bbox: Annotated[str, typer.Option(metavar=BBOX, help="The place, in degrees.")],
    source: Annotated[
        str,
        typer.Option(
            metavar="TEMPLATE|stac:URL",
            help="Tiles: https://.../{z}/{x}/{y}, {-y} for TMS, {TileMatrix}/{TileRow}/{TileCol} "
            "for WMTS, {q}, {s}, {switch:a,b}; ${NAME} is taken from the environment: quote it "
            "with '...'. Or a STAC item, collection of items or search.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="AERIAL.tif", help="GeoTIFF to write.")],
    zoom: Annotated[
        int | None, typer.Option(min=0, help="Of tiles; the coarsest of at most 0.3 m/px.")
    ] = None,
    license_text: Annotated[
        str, typer.Option("--license", metavar="TEXT", help="What you may do with it; kept in it.")
    ] = "",
    cache: Annotated[Path, typer.Option(help="Keeps the tiles.")] = Path("cache/imagery"),
    rate: Annotated[str, typer.Option(metavar="N/s", help="Requests that start in a second.")] = (
        "4/s"
    ),
    connections: Annotated[int, typer.Option(min=1, max=8, help="Requests at a time.")] = 2,
    max_tiles: Annotated[int, typer.Option(min=1, help="Refuse places of more.")] = 10_000,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Also if more than half has no imagery.")
    ] = False,
    asset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of STAC items; visual, image or data.")
    ] = None,
    tile_matrix_set: Annotated[
        str, typer.Option(metavar="NAME|FILE.json", help="Of WMTS, by its OGC name.")
    ] = "WebMercatorQuad",
) -> None:
    """Fetch tiles or STAC imagery of a place; goes on by itself after an interruption."""
    place = numbers(bbox, BBOX, option="--bbox")
    assert place is not None
    from ciper.imagery.fetch import FetchConfig
    from ciper.imagery.fetch import fetch as run
    from ciper.imagery.place import Bounds
    from ciper.imagery.polite import Manners

    config = FetchConfig(
        bbox=Bounds(*place),
        source=source,
        zoom=zoom,
        license=license_text,
        cache=cache,
        max_tiles=max_tiles,
        asset=asset,
        tile_matrix_set=tile_matrix_set,
        is_missing_allowed=allow_missing,
        manners=Manners(rate_per_s=requests_per_s(rate), num_connections=connections),
    )
    try:
        with progress_bar() as progress:
            fetched = run(config, out, progress=progress, say=note)
    except KeyboardInterrupt:
        note(f"tiles are kept in {cache}; the same command goes on with the rest")
        raise
    note(f"wrote {fetched}")
    note(f"next: ciper index {out} --out GALLERY")


def requests_per_s(text: str) -> float:
    """A number of requests per second, with or without its unit.

    Raises:
        ConfigError: it is none, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:/\s*s)?\s*", text)
    if found is None or float(found[1]) == 0.0:
        raise ConfigError(f"--rate {text!r}: expected requests per second above 0, such as 4/s")
    return float(found[1])
