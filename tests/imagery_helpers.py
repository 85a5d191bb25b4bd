"""A server of tiles and files that counts what it is asked and misbehaves on demand."""

from __future__ import annotations

import io
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from ciper.imagery.polite import Clock

HALF_M = 20037508.342789244
Key = tuple[int, int, int]


def mercator(lat: float, lon: float) -> tuple[float, float]:
    """Spherical formulas of EPSG:3857."""
    radius = HALF_M / math.pi
    return radius * math.radians(lon), radius * math.log(
        math.tan(math.pi / 4 + math.radians(lat) / 2)
    )


def world_tile(z: int, x: int, y: int, side_px: int = 256) -> NDArray[np.uint8]:
    """Pixels that tell their own number in the world's grid: every pixel of a city is another.

    Red and green are the column and the row modulo 256, blue tells the next four bits of both.
    """
    cols = x * side_px + np.arange(side_px)
    rows = y * side_px + np.arange(side_px)
    row, col = np.meshgrid(rows, cols, indexing="ij")
    blue = (col // 256 % 16) * 16 + row // 256 % 16
    return np.stack([col % 256, row % 256, blue], axis=-1).astype(np.uint8)


def encoded(array: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


@lru_cache(maxsize=256)
def world_png(z: int, x: int, y: int, side_px: int = 256) -> bytes:
    return encoded(world_tile(z, x, y, side_px), compress_level=1)


def raster_tiles(path: Path) -> Callable[[int, int, int], bytes | None]:
    """What a server of tiles would make of a raster: Web Mercator, transparent beyond its edge."""
    lock = threading.Lock()

    def draw(z: int, x: int, y: int) -> bytes | None:
        pixel = 2 * HALF_M / 2**z / 256
        west, north = -HALF_M + x * 256 * pixel, HALF_M - y * 256 * pixel
        view = {
            "crs": "EPSG:3857", "width": 256, "height": 256, "add_alpha": True,
            "transform": Affine(pixel, 0.0, west, 0.0, -pixel, north),
            "resampling": Resampling.cubic,
        }  # fmt: skip
        with lock, rasterio.open(path) as dataset, WarpedVRT(dataset, **view) as tile:
            rgba = np.moveaxis(tile.read(), 0, -1)
        return encoded(rgba, compress_level=1) if rgba[..., 3].any() else None

    return draw


@dataclass
class Answer:
    """What the server sends, and how badly."""

    body: bytes = b""
    status: int = 200
    content_type: str = "image/png"
    headers: dict[str, str] = field(default_factory=dict)
    sent_bytes: int | None = None  # fewer than it promises
    delay_s: float = 0.0


Script = Callable[[str, int], Answer | None]


class TileServer:
    """Answers `/Z/X/Y...` with `draw`, files below `/files/`, and what `script` says before that.

    Attributes:
        asked: every path, in order.
        script: (path, how often it was asked before) -> an answer; None for the usual one.
    """

    def __init__(self, draw: Callable[[int, int, int], bytes | None], files: Path | None) -> None:
        self.draw = draw
        self.files = files
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.ranges: list[str] = []
        self.most_at_once = 0
        self._num_now = 0
        self.script: Script = lambda path, before: None
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._handle(self)

            def do_HEAD(self) -> None:
                server._handle(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.asked)

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            before = self.asked.count(request.path)
            self.asked.append(request.path)
            self.agents.add(request.headers.get("User-Agent", ""))
            self._num_now += 1
            self.most_at_once = max(self.most_at_once, self._num_now)
        answer = self.script(request.path, before) or self._usual(request)
        time.sleep(answer.delay_s)
        with self._lock:
            self._num_now -= 1
        try:
            self._send(request, answer)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True

    def _usual(self, request: BaseHTTPRequestHandler) -> Answer:
        path = request.path.partition("?")[0]
        if path.startswith("/files/") and self.files is not None:
            return self._file(request, self.files / path.removeprefix("/files/"))
        numbers = re.search(r"/(\d+)/(\d+)/(\d+)", path)
        if numbers is None:
            return Answer(status=400)
        body = self.draw(*(int(number) for number in numbers.groups()))
        return Answer(status=404) if body is None else Answer(body)

    def _file(self, request: BaseHTTPRequestHandler, path: Path) -> Answer:
        if not path.is_file():
            return Answer(status=404)
        body = path.read_bytes()
        kind = "application/json" if path.suffix == ".json" else "image/tiff"
        wanted = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if wanted is None:
            return Answer(body, content_type=kind, headers={"Accept-Ranges": "bytes"})
        with self._lock:
            self.ranges.append(wanted[0])
        first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
        told = {"Content-Range": f"bytes {first}-{last}/{len(body)}", "Accept-Ranges": "bytes"}
        return Answer(body[first : last + 1], 206, kind, told)

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer) -> None:
        request.send_response(answer.status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        if answer.status != 204:
            request.send_header("Content-Type", answer.content_type)
            request.send_header("Content-Length", str(len(answer.body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(answer.body[: answer.sent_bytes])
        if answer.sent_bytes is not None:
            request.close_connection = True


@contextmanager
def serving(
    draw: Callable[[int, int, int], bytes | None] | None = None, files: Path | None = None
) -> Iterator[TileServer]:
    """A server of `world_tile`s, or of what `draw` makes."""
    server = TileServer(draw or world_png, files)
    try:
        yield server
    finally:
        server.close()


class FakeClock(Clock):
    """Time that passes by sleeping only, and at once; `slept` is noted for all clocks."""

    def __init__(self, slept: list[float] | None = None) -> None:
        super().__init__()
        self.time_s = 0.0
        self.slept = [] if slept is None else slept
        self._lock = threading.Lock()

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        super().sleep(0.0)
        with self._lock:
            self.slept.append(seconds)
            self.time_s += max(seconds, 0.0)
