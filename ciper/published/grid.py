"""A data set's queries in a gallery of its own imagery that knows none of their poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ciper.asking import Progress
from ciper.data.mosaic import gallery_images, write_rasters
from ciper.data.protocol import Protocol, Sample
from ciper.data.shown import ShownPose
from ciper.errors import GalleryModelMismatchError, OutputError
from ciper.files import is_free
from ciper.gallery.manifest import holds_gallery
from ciper.index import AerialEncoder, build_index


def index_imagery(
    protocol: Protocol,
    gallery: Path,
    encoder: AerialEncoder,
    progress: Progress,
) -> tuple[str, ...]:
    """Makes a gallery of a protocol's imagery, or goes on with it; a finished one is left alone.

    Args:
        protocol: whose imagery.
        gallery: folder to write; the rasters that it is made of lie beside it, in NAME-rasters.
        encoder: a model.
        progress: called with (what, done, total).

    Returns:
        What whoever reads the figures must know.

    Raises:
        DatasetError: no image can be read.
        OutputError: `gallery` holds something else.
    """
    if not (is_free(gallery) or holds_gallery(gallery)):
        raise OutputError(
            f"--gallery {gallery} holds something else; expected a gallery of this imagery, or a "
            "folder that is not there yet"
        )
    images = gallery_images(protocol)
    made = write_rasters(images, gallery.with_name(f"{gallery.name}-rasters"))
    try:
        report = build_index(
            made.rasters, gallery, encoder, progress=lambda done, num: progress("chips", done, num)
        )
    except (OutputError, GalleryModelMismatchError) as error:
        raise OutputError(
            f"--gallery {gallery} is of other imagery or another model; name another folder for "
            f"{protocol.dataset} {protocol.settings.get('split', '')}"
        ) from error
    notes = [
        f"the gallery is a grid of north-up chips over {len(made.rasters)} aerial images "
        f"({report.area_km2:.2f} km2); headings are not told"
    ]
    if made.problems:
        notes.append(
            f"{len(made.problems)} of {len(images)} aerial images cannot be read and are no part "
            f"of the gallery; the first: {made.problems[0]}"
        )
    return tuple(notes)


def different_poses(samples: Sequence[Sample]) -> tuple[ShownPose, ...]:
    """Queries that differ in the shift and the turn of their chips alone are one on a grid."""
    poses = [ShownPose.of(sample) for sample in samples]
    once = {(p.photo, p.lat, p.lon, p.heading_deg): p for p in reversed(poses)}
    return tuple(reversed(once.values()))
