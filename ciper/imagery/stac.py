"""Items of a STAC catalogue: which to take, and their pixels read by window.

An item is read as JSON, of which five members count, so that it is asked for as politely as tiles
are. Its image is opened by GDAL, which fetches the blocks below the place and no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urljoin, urlsplit

import numpy as np
import rasterio
import shapely
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from ciper.errors import ConfigError, ImageryError, NoImageryError
from ciper.imagery.place import Bounds, Frame, covering, shifted
from ciper.imagery.polite import Client, Reply, UnusableReplyError, excerpt
from ciper.imagery.source import Address
from ciper.imagery.write import Strip

Progress = Callable[[str, int, int], None]

_USUAL_ASSETS = ("visual", "image", "data")
_MAX_PAGES = 20
_STRIP_PX = 512
_COLORS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True)
class Item:
    """An image of a catalogue.

    Attributes:
        name: its id.
        date: when it was taken, ISO 8601; empty if the catalogue does not say.
        license: as the catalogue says; empty if it does not.
        outline: in longitudes and latitudes.
        href: the image's address or path, without keys of ours.
    """

    name: str
    date: str
    license: str
    outline: shapely.Geometry
    href: str


# ----------------------------------------------------------------------------------------- choosing


def find_items(
    address: Address, bounds: Bounds, client: Client, asset: str | None
) -> tuple[Item, ...]:
    """The newest item that covers a place, else all that touch it, newest first.

    Args:
        address: of an item, an item collection or a search; or a path.
        bounds: the place.
        client: asks for what is on a server.
        asset: its name; the usual ones if None.

    Raises:
        NoImageryError: no item touches the place.
        ImageryError: something else than items is there.
        ConfigError: an item has no such asset.
    """
    features = list(_features(address, bounds, client))
    place = shapely.box(bounds.west, bounds.south, bounds.east, bounds.north)
    items = [_item(feature, base, asset, address) for feature, base in features]
    items = [item for item in items if item.outline.intersects(place)]
    if not items:
        raise NoImageryError(
            f"{address.shown}: none of its {len(features)} items shows {bounds}; expected one "
            "that does. Check the bbox, or search there"
        )
    items.sort(key=lambda item: (item.date, item.name), reverse=True)
    whole = [item for item in items if item.outline.covers(place)]
    return (whole[0],) if whole else tuple(items)


def _features(
    address: Address, bounds: Bounds, client: Client
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Items as JSON, each with the address that its relative ones start from."""
    base = _with_bbox(address.text, bounds)
    for _ in range(_MAX_PAGES):
        document = _read(base, address, client)
        if document.get("type") == "Feature":
            yield document, base
            return
        if document.get("type") != "FeatureCollection":
            raise ImageryError(
                f"{address.hide(base)}: is a STAC {document.get('type', 'nothing')}; expected an "
                "item, an item collection or a search (.../search?collections=NAME)"
            )
        for feature in document.get("features", ()):
            yield feature, _link(feature, "self", base) or base
        following = _link(document, "next", base)
        if following is None:
            return
        base = following


def _with_bbox(text: str, bounds: Bounds) -> str:
    """A search without a place of its own searches this one."""
    parts = urlsplit(text)
    is_search = parts.path.rstrip("/").endswith(("/search", "/items"))
    if parts.scheme not in {"http", "https"} or not is_search or "bbox" in parse_qs(parts.query):
        return text
    asked = urlencode({"bbox": str(bounds), "limit": 100}, safe=",")
    return parts._replace(query=f"{parts.query}&{asked}".lstrip("&")).geturl()


def _read(where: str, address: Address, client: Client) -> Mapping[str, Any]:
    if urlsplit(where).scheme in {"http", "https"}:
        body = client.get(address.fill(where), _check)
    else:
        try:
            body = _local(where).read_bytes()
        except OSError as error:
            raise ImageryError(
                f"{where}: cannot be read ({error.strerror}); expected a STAC item"
            ) from error
    try:
        document = json.loads(body or b"null")
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ImageryError(f"{address.hide(where)}: holds no JSON object; expected a STAC item")
    return document


def _check(reply: Reply) -> None:
    try:
        json.loads(reply.body)
    except ValueError as error:
        raise UnusableReplyError(f"status 200 without JSON{excerpt(reply)}") from error


def _link(document: Mapping[str, Any], relation: str, base: str) -> str | None:
    for link in document.get("links", ()):
        if link.get("rel") == relation and link.get("method", "GET").upper() == "GET":
            return urljoin(base, str(link["href"]))
    return None


def _item(feature: Mapping[str, Any], base: str, asset: str | None, address: Address) -> Item:
    properties, name = feature.get("properties") or {}, str(feature.get("id", "?"))
    href = _choose(feature.get("assets") or {}, asset, name)
    return Item(
        name=name,
        date=str(properties.get("datetime") or properties.get("start_datetime") or ""),
        license=str(properties.get("license") or ""),
        outline=_outline(feature, name),
        href=_resolved(href, base, address),
    )


def _outline(feature: Mapping[str, Any], name: str) -> shapely.Geometry:
    geometry, bbox = feature.get("geometry"), feature.get("bbox")
    if geometry is not None:
        return shapely.from_geojson(json.dumps(geometry))
    if bbox is not None:
        half = len(bbox) // 2  # with heights there are six numbers
        return shapely.box(*bbox[:2], *bbox[half : half + 2])
    raise ImageryError(f"item {name}: says nothing of its place; expected a geometry or a bbox")


def _choose(assets: Mapping[str, Any], wanted: str | None, name: str) -> str:
    for key in _USUAL_ASSETS if wanted is None else (wanted,):
        if key in assets:
            return str(assets[key]["href"])
    images = [a for a in assets.values() if "geotiff" in str(a.get("type", "")).lower()]
    if wanted is None and len(images) == 1:
        return str(images[0]["href"])
    raise ConfigError(
        f"item {name}: has the assets {', '.join(sorted(assets)) or 'none'}; expected "
        f"{wanted or ', '.join(_USUAL_ASSETS)}: choose one that is an image with --asset NAME"
    )


def _resolved(href: str, base: str, address: Address) -> str:
    """Where an image lies. What a server says leads to servers only, never to one's own files."""
    is_remote = urlsplit(base).scheme in {"http", "https"}
    if not is_remote and not re.match(r"[a-z][a-z0-9+.-]+:", href, re.IGNORECASE):
        return str(_local(base).parent / href)
    full = urljoin(base, href) if is_remote else href
    scheme = urlsplit(full).scheme
    if scheme in {"http", "https"} or (scheme == "file" and not is_remote):
        return str(_local(full)) if scheme == "file" else full
    raise ImageryError(
        f"{address.hide(full).partition('?')[0]}: is an image that cannot be read from there; "
        "expected https:// or, beside a local item, a file"
    )


def _local(text: str) -> Path:
    return Path(unquote(urlsplit(text).path) if text.startswith("file:") else text)


# ------------------------------------------------------------------------------------------ reading


class ItemImages:
    """Open images of items, the first of which says what the pixels of the result are."""

    def __init__(self, items: Sequence[Item], address: Address, *, user_agent: str) -> None:
        """Open the images.

        Raises:
            ImageryError: one cannot be opened or is no picture.
        """
        self._items = items
        self._address = address
        self._stack = ExitStack()
        self._stack.enter_context(
            rasterio.Env(
                GDAL_HTTP_USERAGENT=user_agent,
                GDAL_HTTP_MAX_RETRY="4",
                GDAL_HTTP_RETRY_DELAY="1",
                GDAL_HTTP_CONNECTTIMEOUT="10",
                GDAL_HTTP_TIMEOUT="60",
                # Otherwise the server is asked for all that lies beside the image.
                GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
            )
        )
        try:
            self._datasets = [self._open(item) for item in items]
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> ItemImages:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_lossy(self) -> bool:
        """Whether the first image is JPEG or WebP inside."""
        compression = self._datasets[0].compression
        return compression is not None and compression.name.lower() in {"jpeg", "webp"}

    def frame(self, bounds: Bounds) -> Frame:
        """The first image's own pixels, as far as they cover a place.

        Raises:
            GeoError: the place lies within a pixel, or outside of the CRS.
        """
        dataset = self._datasets[0]
        crs = dataset.crs.to_wkt()
        span = covering(bounds, crs, dataset.transform)
        transform = shifted(dataset.transform, span.left, span.top)
        return Frame(crs, transform, span.size_px)

    def strips(self, frame: Frame, progress: Progress) -> Iterator[Strip]:
        """The pixels of a frame; later items fill what earlier ones leave.

        Raises:
            ImageryError: an image cannot be read.
        """
        height, width = frame.size_px
        with ExitStack() as stack:
            views = [stack.enter_context(_view(d, frame)) for d in self._datasets]
            for top in range(0, height, _STRIP_PX):
                progress("rows", top, height)
                strip = Strip.empty(top, (min(_STRIP_PX, height - top), width))
                for item, dataset, view in zip(self._items, self._datasets, views, strict=True):
                    if not strip.is_valid.all():
                        self._fill(strip, item, view, _rgb_bands(dataset, item.name))
                yield strip
        progress("rows", height, height)

    def _open(self, item: Item) -> Any:
        try:
            path = self._address.fill(item.href)
            dataset = self._stack.enter_context(rasterio.open(path, driver="GTiff"))
        except (RasterioError, OSError) as error:
            raise self._unreadable(item, error) from None
        if dataset.crs is None:
            raise ImageryError(f"item {item.name}: its image has no CRS; expected a georeferenced")
        _rgb_bands(dataset, item.name)
        return dataset

    def _fill(self, strip: Strip, item: Item, view: Any, bands: tuple[int, ...]) -> None:
        height, width = strip.is_valid.shape
        window = Window(0, strip.top_px, width, height)
        try:
            rgb = np.moveaxis(view.read(list(bands), window=window), 0, -1)
            is_new = (view.dataset_mask(window=window) >= 128) & ~strip.is_valid
        except (RasterioError, OSError) as error:
            raise self._unreadable(item, error) from None
        strip.rgb[is_new] = np.broadcast_to(rgb, strip.rgb.shape)[is_new]
        strip.is_valid[is_new] = True

    def _unreadable(self, item: Item, error: Exception) -> ImageryError:
        # Addresses that a catalogue signed carry keys in their query.
        where = self._address.hide(item.href.partition("?")[0])
        said = re.sub(r"\?\S+", "", self._address.hide(" ".join(str(error).split())))
        return ImageryError(
            f"item {item.name}: {where} cannot be read ({said[:200]}); expected a GeoTIFF that may "
            "be read in parts. If the server wants signed addresses, sign the item first"
        )


def _view(dataset: Any, frame: Frame) -> WarpedVRT:
    """An image on a frame's pixels: copied where they are its own, else bilinear."""
    height, width = frame.size_px
    own, wanted = np.array(dataset.transform)[:6], np.array(frame.transform)[:6]
    axes, corner = own[[0, 1, 3, 4]].reshape(2, 2), wanted[[2, 5]] - own[[2, 5]]
    steps = np.linalg.solve(axes, corner)
    is_own = (
        dataset.crs.to_wkt() == frame.crs
        and np.allclose(axes.ravel(), wanted[[0, 1, 3, 4]], rtol=1e-9, atol=0.0)
        and np.abs(steps - np.round(steps)).max() < 1e-3
    )
    has_alpha = ColorInterp.alpha in dataset.colorinterp
    return WarpedVRT(
        dataset,
        crs=frame.crs,
        transform=frame.transform,
        width=width,
        height=height,
        resampling=Resampling.nearest if is_own else Resampling.bilinear,
        add_alpha=not has_alpha,
    )


def _rgb_bands(dataset: Any, name: str) -> tuple[int, ...]:
    """One-based indexes of grey or of red, green and blue."""
    meaning = dataset.colorinterp
    if set(dataset.dtypes) != {"uint8"} or meaning[0] is ColorInterp.palette:
        raise ImageryError(
            f"item {name}: its image has {dataset.count} bands of {dataset.dtypes[0]} "
            f"({meaning[0].name}); expected 8-bit colours: choose another with --asset"
        )
    if all(color in meaning for color in _COLORS):
        return tuple(meaning.index(color) + 1 for color in _COLORS)
    return (1, 2, 3) if dataset.count >= 3 else (1,)
