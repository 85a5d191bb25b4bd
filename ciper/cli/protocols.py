"""The options that say which queries of a published data set `ciper evaluate` asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ciper.errors import ConfigError

if TYPE_CHECKING:
    from ciper.data.datasets import ProtocolOptions

GRID = "grid"

Split = Annotated[
    str | None,
    typer.Option(
        metavar="same_area|cross_area|test1|test2|log1|log2", help="Of a data set; its first."
    ),
]
Labels = Annotated[
    str | None, typer.Option(metavar="corrected|original", help="VIGOR's; corrected.")
]
ShownFov = Annotated[
    float | None, typer.Option(metavar="DEG", help="VIGOR: the sector that is shown; 360.")
]
HeadingNoise = Annotated[
    float | None,
    typer.Option(metavar="DEG", help="How wrong the told heading may be; VIGOR 0, others 10."),
]
Reading = Annotated[
    str | None,
    typer.Option(
        metavar="highlyaccurate|ciper|grid",
        help="KITTI, Ford: reading of the labels, or a gallery that knows no poses.",
    ),
]


def protocol_options(
    *,
    split: str | None,
    labels: str | None,
    fov: float | None,
    heading_noise: float | None,
    protocol: str | None,
    seed: int,
) -> ProtocolOptions | None:
    """What is asked; None if no option says anything.

    Raises:
        ConfigError: an option names no choice, or lies out of its range.
    """
    from ciper.data.datasets import Labels as LabelKinds
    from ciper.data.datasets import ProtocolOptions
    from ciper.data.datasets import Reading as Readings

    if all(value is None for value in (split, labels, fov, heading_noise, protocol)):
        return None
    reading = one_of("--protocol", protocol, (*get_args(Readings), GRID))
    chosen = {
        "labels": one_of("--labels", labels, get_args(LabelKinds)),
        "reading": None if reading == GRID else reading,
        "fov_deg": fov,
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    return ProtocolOptions(split=split, heading_noise_deg=heading_noise, seed=seed, **given)


def one_of(option: str, value: str | None, choices: tuple[Any, ...]) -> Any:
    """The value of an option, None if it was not given.

    Raises:
        ConfigError: it is none of the choices.
    """
    if value is not None and value not in choices:
        raise ConfigError(f"{option} {value}: expected {' or '.join(choices)}")
    return value
