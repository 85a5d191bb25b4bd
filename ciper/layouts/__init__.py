"""Simulated cities in the very layouts of the field's data sets.

Cameras stand at known poses, so that whoever reads such a folder can be measured by geometry. Every
part of a data set gets a share of the photos: photo i goes to part i modulo 4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ciper.data.poses import PhotoPose
from ciper.layouts.ford import write_ford
from ciper.layouts.kitti import write_kitti
from ciper.layouts.vigor import write_vigor
from ciper.simulate import Progress, SimulateConfig

__all__ = ["write_ford", "write_kitti", "write_layout", "write_vigor"]

_Writer = Callable[[Path, SimulateConfig, Progress], tuple[PhotoPose, ...]]
_WRITERS: dict[str, _Writer] = {
    "vigor": write_vigor,
    "kitti": write_kitti,
    "ford": write_ford,
}


def write_layout(
    folder: Path, layout: str, config: SimulateConfig, tell: Progress
) -> tuple[PhotoPose, ...]:
    """Write a data set's folders and files; the true poses of its photos.

    Raises:
        ConfigError: the city has no place for a camera.
        OSError: `folder` cannot be written.
    """
    return _WRITERS[layout](folder, config, tell)
