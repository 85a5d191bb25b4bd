"""The commands of `ciper data`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ciper.cli.options import Seed
from ciper.cli.protocols import one_of
from ciper.cli.screen import note, progress_bar

if TYPE_CHECKING:
    from ciper.data.check import Checked
    from ciper.data.listing import Finding, Level

datasets = typer.Typer(no_args_is_help=True, help="Look at data sets.")

_SUMMED: tuple[Level, ...] = ("problem", "note")
_COLOURS = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "problem": typer.colors.RED}


@datasets.callback()
def _data() -> None:
    """Look at data sets."""


@datasets.command()
def check(
    spec: Annotated[
        str,
        typer.Argument(metavar="SPEC", help="vigor:ROOT, kitti:ROOT, ford:ROOT or POSES.csv."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="SHEET.png", help="Draw samples: photo, chip and camera."),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, max=200, help="Images to open, samples to draw.")
    ] = 12,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also look whether any image is cut short.")
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(metavar="same_area|test1|log1|...", help="Only this; all of them."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="corrected|original", help="VIGOR: only these; both."),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(metavar="highlyaccurate|ciper", help="KITTI, Ford: reading of the labels."),
    ] = "highlyaccurate",
    seed: Seed = 0,
) -> None:
    """Say what is there, missing, misnamed or cut short; status 1 if something is in the way."""
    from ciper.data.check import CheckOptions, check_data
    from ciper.data.datasets import Labels, Reading
    from ciper.data.sheet import draw_sheet, require_png

    options = CheckOptions(
        num_samples=samples,
        is_deep=deep,
        seed=seed,
        split=split,
        labels=one_of("--labels", labels, get_args(Labels)),
        reading=one_of("--protocol", protocol, get_args(Reading)),
    )
    if out is not None:
        require_png(out)
    with progress_bar() as progress:
        checked = check_data(spec, options, progress)
    for finding in checked.findings:
        _print(finding)
    if out is not None and checked.samples:
        draw_sheet(checked.samples, out, title=f"{spec}, seed {seed}")
        note(f"wrote {out}")
    elif out is not None:
        note(f"{out} was not written: no label with a chip was read")
    typer.echo(summary(checked))
    if checked.num_problems:
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    mark = typer.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
    # Messages of other libraries may hold line breaks.
    typer.echo(f"{mark} {finding.subject}: {' '.join(finding.text.split())}")


def summary(checked: Checked) -> str:
    """The last line."""
    counts = Counter(finding.level for finding in checked.findings)
    parts = [f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in _SUMMED]
    return ", ".join(parts)
