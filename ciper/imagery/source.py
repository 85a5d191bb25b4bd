"""Where tiles are asked for: templates of addresses, and keys that nobody else gets to see."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, urlsplit

from ciper.errors import ConfigError
from ciper.imagery.grid import Tile, TileMatrix

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PLACEHOLDER = re.compile(r"(?<!\$)\{([^{}]*)\}")
# Parameters of addresses that are keys as a rule, in case one was written out all the same.
_KEY_PARAMETER = re.compile(
    r"(?i)(?<=[?&;])((?:[\w.-]*[-_.])?(?:api|access|sub)?"
    r"(?:key|token|sig|signature|secret|password|auth|credential)=)(?!\$\{)[^&;#\s'\"]+"
)
_SWITCH = "switch:"
_SUBDOMAINS = ("a", "b", "c")
_WMTS = {
    "SERVICE": "WMTS",
    "REQUEST": "GetTile",
    "VERSION": "1.0.0",
    "TILEMATRIX": "{z}",
    "TILEROW": "{y}",
    "TILECOL": "{x}",
}


@dataclass(frozen=True)
class Address:
    """An address with ``${NAME}`` where a key belongs, and the keys.

    Attributes:
        text: as it may be shown and stored.
    """

    text: str
    _keys: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Look the keys up in the environment.

        Raises:
            ConfigError: a variable is not set or holds what no address can.
        """
        keys = []
        for name in dict.fromkeys(_VARIABLE.findall(text)):
            value = os.environ.get(name, "").strip()
            if not value or re.search(r"\s", value):
                what = "is not set" if not value else "holds white space"
                raise ConfigError(
                    f"--source: the environment variable {name} {what}; set it to the key that "
                    f"belongs in place of ${{{name}}}"
                )
            keys.append((name, value))
        # The longest first: a key may be part of another one.
        return cls(text, tuple(sorted(keys, key=lambda key: -len(key[1]))))

    @property
    def shown(self) -> str:
        """The address without keys, even those that were written out."""
        return self.hide(self.text)

    @property
    def host(self) -> str:
        """Whose server it is."""
        host = urlsplit(_PLACEHOLDER.sub("", self.text)).hostname or ""
        return host.strip(".") or "the source"

    def fill(self, text: str) -> str:
        """Put the keys in."""
        values = dict(self._keys)
        return _VARIABLE.sub(lambda found: values.get(found[1], found[0]), text)

    def hide(self, text: str) -> str:
        """Take the keys out of any text: a message, another address."""
        for name, value in self._keys:
            for form in dict.fromkeys((value, quote(value, safe=""), quote(value))):
                text = text.replace(form, f"${{{name}}}")
        return _KEY_PARAMETER.sub(r"\1***", text)


@dataclass(frozen=True)
class TileSource:
    """A server of tiles.

    Attributes:
        address: the template; see `parse`.
    """

    address: Address

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a template of XYZ, TMS or WMTS.

        Placeholders: {z}, {x}, {y}; {-y} counts rows from the bottom (TMS); {TileMatrix},
        {TileCol}, {TileRow} (WMTS); {q} or {quadkey}; {s} and {switch:a,b,c} spread over servers.
        An address of WMTS with SERVICE=WMTS and no placeholder gets them.

        Raises:
            ConfigError: a placeholder is unknown or missing, or a key is not set.
        """
        text = _with_wmts(text.strip())
        _check_scheme(text)
        names = [name for name in _PLACEHOLDER.findall(text) if not name.startswith(_SWITCH)]
        for name in names:
            if name.lower() not in _VALUES:
                variable = re.sub(r"\W", "_", name).upper() or "NAME"
                raise ConfigError(
                    f"--source: the placeholder {{{name}}} is unknown; expected {{z}}, {{x}} and "
                    f"{{y}}, {{-y}}, {{TileMatrix}}, {{TileCol}}, {{TileRow}}, {{q}}, {{s}} or "
                    f"{{switch:a,b}}. For a key write ${{{variable}}} and set the environment "
                    f"variable {variable}; write anything else out"
                )
        told = {_TELLS[name.lower()] for name in names if name.lower() in _TELLS}
        if not ("zxy" in told or {"z", "x", "y"} <= told):
            raise ConfigError(
                f"--source {Address(text).shown!r} does not say where zoom, column and row go; "
                "expected a template with {z}, {x} and {y}"
            )
        return cls(Address.parse(text))

    @property
    def key(self) -> str:
        """A name of a folder for what came from here, without secrets."""
        digest = hashlib.sha256(self.address.shown.encode()).hexdigest()[:12]
        return f"{re.sub(r'[^A-Za-z0-9.-]', '_', self.address.host)}-{digest}"

    def url(self, matrix: TileMatrix, tile: Tile) -> str:
        """The address of a tile, with the keys."""

        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name.startswith(_SWITCH):
                return _spread(tuple(name.removeprefix(_SWITCH).split(",")), tile)
            return _VALUES[name.lower()](matrix, tile)

        return self.address.fill(_PLACEHOLDER.sub(value, self.address.text))


def _spread(servers: tuple[str, ...], tile: Tile) -> str:
    # The same tile always comes from the same server, whose caches then know it.
    return servers[(tile.col + tile.row) % len(servers)]


def quadkey(zoom: int, tile: Tile) -> str:
    """Bing's name of a tile: a digit for every zoom, 1 for the east and 2 for the south."""
    bits = range(zoom - 1, -1, -1)
    return "".join(str((tile.col >> bit & 1) + 2 * (tile.row >> bit & 1)) for bit in bits)


_Value = Callable[[TileMatrix, Tile], str]
_VALUES: dict[str, _Value] = {
    "z": lambda matrix, tile: str(matrix.zoom),
    "zoom": lambda matrix, tile: str(matrix.zoom),
    "tilematrix": lambda matrix, tile: quote(matrix.name, safe=":"),
    "x": lambda matrix, tile: str(tile.col),
    "tilecol": lambda matrix, tile: str(tile.col),
    "y": lambda matrix, tile: str(tile.row),
    "tilerow": lambda matrix, tile: str(tile.row),
    "-y": lambda matrix, tile: str(matrix.num_rows - 1 - tile.row),
    "q": lambda matrix, tile: quadkey(matrix.zoom, tile),
    "quadkey": lambda matrix, tile: quadkey(matrix.zoom, tile),
    "s": lambda matrix, tile: _spread(_SUBDOMAINS, tile),
}
_TELLS = {
    **dict.fromkeys(("z", "zoom", "tilematrix"), "z"),
    **dict.fromkeys(("x", "tilecol"), "x"),
    **dict.fromkeys(("y", "tilerow", "-y"), "y"),
    **dict.fromkeys(("q", "quadkey"), "zxy"),
}


def _with_wmts(text: str) -> str:
    """An address of WMTS in key-value form with all that a request for a tile says."""
    path, _, query = text.partition("?")
    given = {pair.partition("=")[0].upper(): pair.partition("=")[2] for pair in query.split("&")}
    if given.get("SERVICE", "").upper() != "WMTS" or _PLACEHOLDER.search(text):
        return text
    if "LAYER" not in given or "TILEMATRIXSET" not in given:
        raise ConfigError(
            f"--source {Address(text).shown!r} names no LAYER or no TILEMATRIXSET; expected an "
            "address of WMTS with both, as its capabilities list them"
        )
    kept = [pair for pair in query.split("&") if pair.partition("=")[0].upper() not in _WMTS]
    filled = [f"{name}={value}" for name, value in _WMTS.items()]
    return f"{path}?{'&'.join([*filled, *kept])}"


def _check_scheme(text: str) -> None:
    shown = Address(text).shown
    if not re.match(r"https?://[^/]+/", text):
        raise ConfigError(
            f"--source {shown!r} is no address of tiles; expected https://HOST/... with {{z}}, "
            "{x} and {y}, or stac:URL"
        )
    if "@" in text.split("/")[2]:
        raise ConfigError(
            "--source: a name and a password stand before the host; expected an address without "
            "them: ask the server's owner for a key and write it as ${NAME}"
        )
