"""Every error that CIPER raises on purpose.

    CiperError
    |-- ConfigError                  a setting is unknown, of the wrong type or out of range
    |-- GeoError                     a coordinate, CRS or transform that makes no sense
    |-- RasterError                  a georeferenced image cannot be read
    |   `-- NoCrsError               ... because it does not say where it lies
    |-- PhotoError                   a ground photo cannot be read or is not an image
    |-- CameraError                  a camera description contradicts itself
    |-- PoseTableError               a poses.csv is malformed
    |-- DatasetError                 a benchmark's folder or annotation is not as published
    |-- ImageryError                 a server gives no imagery that can be used
    |   |-- AccessRefusedError       ... because it wants a key or forbids it
    |   `-- NoImageryError           ... because it has none of most of the place
    |-- GalleryError                 a gallery cannot be used
    |   |-- GalleryDamagedError      ... because a file is missing or fails its checksum
    |   `-- GalleryModelMismatchError    ... because another model wrote it
    |-- CheckpointError              weights cannot be read or do not fit the model
    |-- TrainingError                a loss is not finite or a run cannot be resumed
    |-- OutputError                  the place to write to is taken or not writable
    |-- DependencyError              an optional package that this verb needs is not installed
    `-- DeviceError                  the requested device is absent or out of memory

A message says in one or two sentences what was found (with the value), what was expected, and what
to do. The command line prints it on one line to stderr and exits with status 2.
"""

from __future__ import annotations


class CiperError(Exception):
    """Base of every error raised on purpose; catching it catches nothing else."""


class ConfigError(CiperError):
    """A setting is unknown, has the wrong type or lies out of its range."""


class GeoError(CiperError):
    """A coordinate, a CRS or a transform makes no sense."""


class RasterError(CiperError):
    """A georeferenced image cannot be read."""


class NoCrsError(RasterError):
    """A raster does not say where on Earth it lies."""


class PhotoError(CiperError):
    """A ground photo cannot be read or is not an image."""


class CameraError(CiperError):
    """A camera description contradicts itself or the photo."""


class PoseTableError(CiperError):
    """A table of photos and poses is malformed; the message names the line."""


class DatasetError(CiperError):
    """A benchmark's folder or annotation is not as its authors published it."""


class ImageryError(CiperError):
    """A server or a catalogue gives no imagery that can be used."""


class AccessRefusedError(ImageryError):
    """A server wants a key or forbids what was asked."""


class NoImageryError(ImageryError):
    """A source has no imagery of most of the place."""


class GalleryError(CiperError):
    """A gallery cannot be used."""


class GalleryDamagedError(GalleryError):
    """A file of a gallery is missing, cut short or fails its checksum."""


class GalleryModelMismatchError(GalleryError):
    """A gallery was written by another model than the one that asks."""


class CheckpointError(CiperError):
    """Weights cannot be read or do not fit the model."""


class TrainingError(CiperError):
    """A loss is not finite or a run cannot be continued."""


class OutputError(CiperError):
    """The place to write to is taken or not writable."""


class DependencyError(CiperError):
    """An optional package that this verb needs is not installed."""


class DeviceError(CiperError):
    """The requested device is absent or has too little memory."""
